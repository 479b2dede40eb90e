"""The last save before a job's time limit: when it is planned for, and what is asked of Slurm for it."""

import pytest

from holdfast.limit import FACTOR, LEAST, SPARE, TimeLimit
from holdfast.slurm.job import Job

SHOW = """\
JobId=41 JobName=digits
   JobState={state} Reason={reason} Dependency=(null)
   Requeue=1 Restarts=0 ExitCode=0:0
   StartTime=1000 EndTime={end} Deadline=N/A
"""


class Course:
    """A loop under a time limit, on a clock that moves only when it is told to; epoch seconds are its own."""

    def __init__(self, scontrol, job=None, after=0.0):
        self.now, self.write, self._scontrol = 1000.0, None, scontrol
        times = {"clock": lambda: self.now, "wall": lambda: self.now}
        self.limit = TimeLimit(job or Job(id="41"), lambda: self.write, lambda: after, **times)

    def say(self, end, state="RUNNING", reason="None", kill_wait="30 sec"):
        show = SHOW.format(state=state, reason=reason, end=end)
        config = f"KillWait                = {kill_wait}\n"
        self._scontrol(
            f"if [ \"$2\" = config ]; then cat <<'END'\n{config}END\nelse cat <<'END'\n{show}END\nfi\n"
        )

    def enter(self, early=0.0):
        self.limit.enter(early)
        self.limit.look(wait=True)
        return self

    def step(self, seconds, where="between"):
        """Works for so many seconds, comes to a boundary; whether it is the last chance."""
        self.now += seconds
        self.limit.reach(where)
        last = self.limit.is_last_chance
        self.limit.go_on()
        return last


@pytest.fixture
def course(scontrol):
    made = Course(scontrol)
    made.say(2000)
    return made


def test_the_last_boundary_from_which_another_save_fits(course):
    """It is the last one after which one more step, and one and a half saves, and five seconds still fit."""
    course.write = 20.0
    course.enter()
    reached = []
    for _ in range(100):
        if course.step(10):
            break
        reached.append(course.now)
    need = 10 + 20 * FACTOR + SPARE
    assert course.now + need >= 2000
    assert reached[-1] + need < 2000


def test_mirrors_get_their_time(scontrol, caplog):
    """Where a save is worth something only in a mirror, what the copy takes is planned for, too, and told."""
    course = Course(scontrol, after=100.0)
    course.say(2000)
    course.write = 20.0
    course.enter()
    while not course.step(10):
        pass
    need = 10 + (20 + 100) * FACTOR + SPARE
    assert 2000 - need <= course.now + 10 and course.now + need >= 2000
    assert any("100 s until its mirrors have it" in record.getMessage() for record in caplog.records)


def test_what_comes_after_an_epoch_is_measured_apart(course):
    """An evaluation that takes minutes makes no batch count as slow, and is planned for where it comes next."""
    course.write = 0.1
    course.enter()
    for where, seconds in [("start", 1), ("between", 1), ("end", 1), ("epoch", 200), ("start", 1)]:
        assert not course.step(seconds, where)
    while not course.step(1):
        pass
    assert 2000 - course.now < 10
    course.now = 1850.0
    course.limit.reach("end")
    assert course.limit.is_last_chance


def test_what_only_the_first_batch_takes_is_forgotten(course):
    """A model that is compiled in its first batch does not make later epochs end early."""
    course.write = 0.1
    course.enter()
    for compiling in (300, 1, 1):
        for where, seconds in [("start", 1), ("between", compiling), ("end", 1), ("epoch", 1)]:
            assert not course.step(seconds, where)
    course.now = 1900.0
    course.limit.reach("start")
    assert not course.limit.is_last_chance


def test_a_loop_of_epochs_does_not_begin_one_that_cannot_end(course):
    """Where only the ends of epochs are boundaries, an epoch that would end too late is not begun."""
    course.write = 1.0
    course.enter()
    assert not course.step(300, "epoch")
    assert not course.step(300, "epoch")
    assert course.step(110, "epoch")


def test_an_unmeasured_save_is_measured_in_time(course):
    """Before less is left than a save might take, one is made to measure it; only then the end is planned."""
    course.enter()
    assert course.limit.due() is None
    assert not course.step(1)
    while course.limit.due() is None:
        assert not course.step(1)
    assert 2000 - course.now > LEAST * FACTOR + SPARE
    assert course.limit.due() is None  # once
    course.write = 0.5
    while not course.step(1):
        pass
    assert 2000 - course.now < 8


def test_an_unmeasured_save_still_gets_a_few_seconds(course):
    """If that save is still being written near the end, what is left is not spent on steps."""
    course.enter()
    while not course.step(1):
        pass
    assert 2000 - course.now >= LEAST * FACTOR + SPARE


def test_a_save_before_a_signal_ends_the_shell(course):
    """Where a warning will end the shell, a save is made before that, and the training goes on."""
    course.write = 1.0
    course.enter(early=100)
    reasons = []
    while not course.step(1):
        reasons.append((course.now, course.limit.due()))
    given = [(when, reason) for when, reason in reasons if reason]
    assert [reason for _, reason in given] == ["before a signal ends the shell"]
    assert 1890 <= given[0][0] < 1900
    assert course.now > 1990


def test_a_limit_that_was_extended_is_noticed(course):
    """The end is asked for once more before it is acted on."""
    course.write = 1.0
    course.enter()
    course.say(3000)
    while not course.step(1):
        pass
    assert 2990 <= course.now < 3000


def test_a_limit_that_was_cut_is_noticed(course):
    """The end is asked for each time that half of what was left has passed."""
    course.write = 1.0
    course.enter()
    course.say(1700)
    for _ in range(520):
        assert not course.step(1)
    course.limit.look(wait=True)
    while not course.step(1):
        pass
    assert course.now < 1700


def test_without_a_limit_nothing_is_planned(course):
    """A job without a time limit, and a controller that knows none, lead to no save and no end."""
    course.say("Unknown")
    course.enter()
    assert course.limit.end is None
    assert not any(course.step(1000) or course.limit.due() for _ in range(10))


def test_a_limit_that_cannot_be_known_is_told(course, scontrol, caplog):
    """Where scontrol fails and Slurm tells no end, one line says what to write."""
    scontrol("exit 1")
    course.enter()
    (line,) = [record.getMessage() for record in caplog.records]
    assert "time limit is not known" in line
    assert "export SLURM_JOB_END_TIME" in line
    assert not course.step(5000)


def test_a_job_that_has_ended_limits_nothing(course, caplog):
    """A number that a shell kept from a job that is over neither ends the training nor asks for a save; one line says so."""
    course.say(900, state="TIMEOUT", reason="TimeLimit")
    course.write = 1.0
    course.enter()
    (line,) = [record.getMessage() for record in caplog.records]
    assert "Slurm job 41 has ended (timeout)" in line
    assert "unset SLURM_JOB_ID" in line
    assert not any(course.step(1000) or course.limit.due() for _ in range(10))


def test_a_job_that_slurm_does_not_know_is_told_as_that(course, scontrol, caplog):
    """Where the controller answers and knows no such job, it is not said to be silent."""
    scontrol("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    course.enter()
    (line,) = [record.getMessage() for record in caplog.records]
    assert "Slurm does not know this job" in line
    assert "does not answer" not in line
    assert not course.step(5000)


def test_an_array_that_was_inherited_is_not_believed(scontrol):
    """A job that was queued from within a task of an array has that array's variables; what the controller says counts."""
    course = Course(scontrol, Job(id="41", array="30", task=3, end=100.0))
    course.say(2000)
    course.write = 1.0
    course.enter()
    assert course.limit.end == 2000
    assert str(course.limit.job) == "Slurm job 41"
    assert not course.step(100)


def test_the_environment_is_enough(scontrol):
    """SLURM_JOB_END_TIME tells the end where no command of Slurm is to be had."""
    scontrol("exit 1")
    course = Course(scontrol, Job(id="41", end=1500.0))
    course.write = 1.0
    course.enter()
    while not course.step(1):
        pass
    assert 1480 < course.now < 1500


def test_what_is_left_after_sigterm(course):
    """After SIGTERM the controller's KillWait is left, before it the time of the job; only a save that fits is begun."""
    course.say(2000, kill_wait="10 sec")
    course.enter()
    assert course.limit.left(None) == pytest.approx(1000)
    assert course.limit.left(998.0) == pytest.approx(8)
    course.write = 5.6
    assert course.limit.fits(8.0)
    course.write = 5.7
    assert not course.limit.fits(8.0)
    assert course.limit.fits(None)
    course.write = None
    assert course.limit.fits(0.0)  # nobody knows, and nothing is lost by trying
