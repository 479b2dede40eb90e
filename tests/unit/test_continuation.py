"""Whether a job is queued again: where its user says so, while it gets further, and never after `scancel`."""

import pytest

from holdfast import continuation
from holdfast.errors import UsageError
from holdfast.limit import TimeLimit
from holdfast.slurm.job import Job

SHOW = """\
JobId=40 ArrayJobId=40 ArrayTaskId=3 JobName=digits
   JobState={state} Reason={reason} Dependency=(null)
   Requeue={requeue} Restarts={restarts} ExitCode=0:0
   StartTime=1000 EndTime=2000 Deadline=N/A
   PreemptEligibleTime=1000 PreemptTime={preempt}
"""
JOB = Job(id="40", array="40", task=3)


@pytest.fixture
def asked(scontrol, tmp_path):
    """Calls `requeue` with what Slurm says; tells whether it will come back, and what was asked of Slurm."""
    log = tmp_path / "requeued"

    def call(
        word="requeue",
        *,
        moved=True,
        launches=0,
        state="RUNNING",
        reason="None",
        restarts=0,
        requeue=1,
        preempt="None",
        refuse="",
    ):
        log.unlink(missing_ok=True)
        show = SHOW.format(state=state, reason=reason, restarts=restarts, requeue=requeue, preempt=preempt)
        refusal = f"echo '{refuse}' >&2; exit 1" if refuse else "exit 0"
        scontrol(f"[ $1 = requeue ] && {{ echo $2 >> {log}; {refusal}; }}\ncat <<'END'\n{show}END\n")
        environ = {continuation.CONTINUE: word} if word else {}
        comes_back = continuation.requeue(
            TimeLimit(JOB, lambda: None, lambda: 0.0),
            lambda: log.write_text("ready "),
            moved=moved,
            launches=launches,
            environ=environ,
        )
        told = log.read_text().split() if log.exists() else []
        assert told[:1] in ([], ["ready"])  # nothing is asked for before all is ready for it
        return comes_back, told[1:]

    return call


def test_who_asks_for_it_is_queued_again(asked):
    """With HOLDFAST_CONTINUE=requeue the job is queued again, by an address that means this task alone."""
    assert asked() == (True, ["40_3"])
    assert asked("") == (False, [])


def test_what_was_cancelled_stays_so(asked):
    """A SIGTERM by scancel looks like one by the limit but for its reason, and queues nothing again."""
    assert asked(state="COMPLETING") == (False, [])
    assert asked(state="CANCELLED") == (False, [])
    assert asked(state="COMPLETING", reason="TimeLimit") == (True, ["40_3"])


def test_what_slurm_itself_queues_again_is_not_asked_for(asked):
    """A job that is being requeued already comes back by itself."""
    assert asked(state="COMPLETING", restarts=1) == (True, [])
    assert asked("", state="COMPLETING", restarts=1) == (True, [])


def test_a_preempted_job_would_count_as_failed(asked):
    """One that ends by itself in its grace time is not queued again by Slurm, so it asks for that itself."""
    assert asked("", preempt="1500") == (True, ["40_3"])
    assert asked("", preempt="1500", requeue=0) == (False, [])
    assert asked(preempt="1500", moved=False, launches=9) == (True, ["40_3"])


@pytest.mark.parametrize(
    ("moved", "launches", "again"), [(False, 2, True), (False, 3, False), (True, 3, True)]
)
def test_at_most_three_times_without_progress(asked, caplog, moved, launches, again):
    """After three restarts that got no further a job is left, and told so."""
    assert asked(moved=moved, launches=launches)[0] is again
    assert ("4 times in a row without getting any further" in caplog.text) is not again


def test_a_refusal_of_slurm_is_told(asked, caplog):
    """Where Slurm does not queue it again the log says why, and what to write."""
    came, _ = asked(refuse="Requested operation is presently disabled for job 40")
    assert not came
    assert "presently disabled" in caplog.text
    assert "#SBATCH --requeue" in caplog.text


def test_a_controller_that_is_silent_is_told(asked, scontrol, caplog):
    """Where Slurm does not answer, the job is not queued again, and that is said."""
    scontrol("exit 1")
    limit = TimeLimit(JOB, lambda: None, lambda: 0.0)
    assert not continuation.requeue(
        limit, print, moved=True, launches=0, environ={continuation.CONTINUE: "requeue"}
    )
    assert "cannot be queued again: scontrol does not answer" in caplog.text
    caplog.clear()
    assert not continuation.requeue(limit, print, moved=True, launches=0, environ={})
    assert caplog.text == ""


def test_launches_without_progress_are_counted():
    """A launch that begins where the one before it began counts up; progress begins anew."""
    first = continuation.count_launch(None, (0, 0, 0))
    assert first == {"progress": [0, 0, 0], "times": 0}
    second = continuation.count_launch(first, (0, 0, 0))
    assert second["times"] == 1
    assert continuation.count_launch(second, (0, 5, 5)) == {"progress": [0, 5, 5], "times": 0}
    assert continuation.count_launch({"progress": "x", "times": None}, (0, 0, 0))["times"] == 0
    assert continuation.count_launch({"progress": [0, 0, 0], "times": None}, (0, 0, 0))["times"] == 0


def test_a_word_that_means_nothing_is_refused():
    """A misspelt HOLDFAST_CONTINUE is an error at once, not a chain that ends one night."""
    with pytest.raises(
        UsageError, match="HOLDFAST_CONTINUE='requeu'.* Next: export HOLDFAST_CONTINUE=requeue"
    ):
        continuation.check_environment("run", {"HOLDFAST_CONTINUE": "requeu"})
    continuation.check_environment("run", {})
    continuation.check_environment("run", {"HOLDFAST_CONTINUE": "requeue"})


def test_another_run_than_submitted_is_told(tmp_path, caplog):
    """A job whose training writes another run than it was submitted for says so; another name of the same does not."""
    (tmp_path / "run").mkdir()
    (tmp_path / "alias").symlink_to("run")
    continuation.check_environment(str(tmp_path / "run"), {"HOLDFAST_RUN": str(tmp_path / "alias")})
    assert caplog.text == ""
    continuation.check_environment(str(tmp_path / "run"), {"HOLDFAST_RUN": str(tmp_path / "other")})
    assert f"Next: holdfast submit --run {tmp_path / 'run'}." in caplog.text


def test_what_belongs_together():
    """The tasks of one submission, one array, or one job share a word."""
    task = Job(id="42", array="40", task=2)
    assert continuation.submission(task, {}) == "40"
    assert continuation.submission(task, {"HOLDFAST_SUBMISSION": "x"}) == "x"
    assert continuation.submission(Job(id="42"), {}) == "42"
    assert continuation.submission(None, {}) == ""
