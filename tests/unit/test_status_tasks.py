"""What became of each job: told from Slurm, from what its script wrote, and from the run's history."""

import pytest

from holdfast.jobs import group as groups
from holdfast.jobs.launches import Launch, launches
from holdfast.jobs.record import Ended, Submission
from holdfast.jobs.tasks import Known, counts, judge
from holdfast.slurm.commands import Record


def record(state, code="0:0", *, reason="", task="3", restarts=0, start=100.0, end=200.0):
    return Record(
        id="42",
        array="40",
        task=task,
        state=state,
        exit_code=code,
        reason=reason,
        restarts=restarts,
        start=start,
        end=end,
    )


def ended(code, doing="command", began=100, end=190):
    return Ended(3, "42", 0, began, end, code, doing)


def launch(why="", began=101.0, end=189.0):
    return Launch(job="42", array="40", task=3, began=began, ended=end if why else None, why=why)


CASES = {
    "running": ({"record": record("RUNNING")}, "running", ""),
    "ending": ({"record": record("COMPLETING")}, "running", "ending"),
    "suspended": ({"record": record("SUSPENDED")}, "running", "suspended"),
    "to come": ({"record": record("PENDING", reason="JobArrayTaskLimit", task="3-9%1")}, "waiting", ""),
    "held": ({"record": record("PENDING", reason="JobHeldUser")}, "waiting", "held"),
    "queued again": (
        {"record": record("PENDING", restarts=1), "ended": ended(75)},
        "waiting",
        "queued again",
    ),
    "completed": (
        {"record": record("COMPLETED"), "ended": ended(0), "launch": launch("goal reached")},
        "done",
        "complete",
    ),
    "completed by hand": (
        {"record": record("COMPLETED"), "launch": launch("goal reached")},
        "done",
        "complete",
    ),
    "nothing to do": ({"record": record("COMPLETED"), "ended": ended(0, "gate")}, "done", "nothing to do"),
    "interrupted": (
        {"record": record("COMPLETED"), "ended": ended(75), "launch": launch("time limit")},
        "done",
        "time limit, its place is saved",
    ),
    "interrupted last": ({"record": record("FAILED", "75:0")}, "done", "interrupted, its place is saved"),
    "time limit with a save": (
        {"record": record("TIMEOUT", "0:15"), "launch": launch("SIGTERM")},
        "done",
        "time limit, its place is saved",
    ),
    "time limit without": (
        {"record": record("TIMEOUT", "0:15"), "launch": launch()},
        "failed",
        "time limit, with nothing saved at the end",
    ),
    "cancelled": ({"record": record("CANCELLED")}, "cancelled", ""),
    "cancelled and saved": (
        {"record": record("CANCELLED"), "ended": ended(75)},
        "cancelled",
        "its place is saved",
    ),
    "an exception": (
        {"record": record("FAILED", "1:0"), "ended": ended(1), "launch": launch("left")},
        "failed",
        "exit code 1",
    ),
    "an exception by hand": (
        {"record": record("FAILED", "1:0"), "launch": launch("left")},
        "failed",
        "exit code 1",
    ),
    "killed by hand": ({"record": record("FAILED", "0:9")}, "failed", "killed by SIGKILL"),
    "memory": ({"record": record("OUT_OF_MEMORY", "0:125")}, "failed", "out of memory"),
    "node": ({"record": record("NODE_FAIL")}, "failed", "node fail"),
    "setup": ({"ended": ended(1, "setup")}, "failed", "exit code 1, before the command began"),
    "hopeless": ({"ended": ended(1, "gate")}, "failed", "not begun, as those before it failed"),
    "forgotten": ({"answered": True, "ended": ended(137)}, "failed", "killed by SIGKILL"),
    "forgotten, by its history": (
        {"answered": True, "launch": launch("SIGUSR1")},
        "done",
        "SIGUSR1, its place is saved",
    ),
    "forgotten, stopped": (
        {"answered": True, "launch": launch("stopped")},
        "done",
        "complete: it was stopped",
    ),
    "forgotten, left": ({"answered": True, "launch": launch("left")}, "failed", "left before its goal"),
    "forgotten, without a word": ({"answered": True, "launch": launch()}, "failed", "ended without a word"),
    "Slurm is silent, and it lives": ({"launch": launch(), "alive": True}, "running", ""),
    "Slurm is silent": ({"launch": launch()}, "unknown", "Slurm was not asked"),
    "Slurm is silent, nothing known": ({}, "waiting", ""),
    "never seen": ({"answered": True}, "unknown", "Slurm does not know it any more"),
    "cancelled before it began": (
        {"answered": True, "array_known": True},
        "cancelled",
        "before it began",
    ),
    "no log": (
        {"record": record("FAILED", "0:53", reason="JobLaunchFailure")},
        "failed",
        "it could not be started (JobLaunchFailure): look at the places of its log and its directory",
    ),
    "refused for ever": (
        {"record": record("PENDING", reason="DependencyNeverSatisfied")},
        "waiting",
        "waits for ever: what it depends on failed",
    ),
    "too long": (
        {"record": record("PENDING", reason="PartitionTimeLimit")},
        "waiting",
        "its --time is more than the partition allows",
    ),
    "started again": (
        {"ended": ended(75, end=90), "launch": launch(began=150.0), "alive": True},
        "running",
        "",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_became_of_a_job(name):
    """Each job gets the state and the words that follow from all that is known of it."""
    known, state, why = CASES[name]
    task = judge(Known(number=3, job="40_3", **known))
    assert (task.state, task.why) == (state, why)


def test_when_a_job_was(tmp_path):
    """The times of a job come from Slurm or, where it has forgotten, from its script or the history."""
    running = judge(Known(number=1, job="42", record=record("RUNNING")))
    assert (running.began, running.ended, running.ends) == (100.0, None, 200.0)
    over = judge(Known(number=1, job="42", ended=ended(0)))
    assert (over.began, over.ended, over.ends) == (100, 190, None)
    seen = judge(Known(number=1, job="42", launch=launch("goal reached")))
    assert (seen.began, seen.ended) == (101.0, 189.0)
    assert judge(Known(number=1, job="42", record=record("PENDING", restarts=2))).restarts == 2


def test_states_are_counted():
    """Counts stand in a fixed order, and only those that there are."""
    tasks = [
        judge(Known(number=n, job="", record=record(state)))
        for n, state in enumerate(["PENDING", "RUNNING", "PENDING"])
    ]
    assert counts(tasks) == {"running": 1, "waiting": 2}


# -- which jobs belong together ----------------------------------------------------------------------


def submission(mode="array", jobs=("40",), numbers=(1, 2, 3), created="2026-01-01T00:00:00.000Z"):
    return Submission(
        id="s",
        created=created,
        directory="/d",
        argv=[],
        command=[],
        mode=mode,
        tasks=3,
        numbers=list(numbers),
        jobs=list(jobs),
        output="/d/%A-%a.out" if mode == "array" else "/d/%j.out",
    )


def event(kind, second, **more):
    return {"event": kind, "time": f"2026-01-01T00:00:{second:02}.000Z", **more}


def slurm(job, task=None, array="40", **more):
    return {"job": job, **({"array": array, "task": task} if task is not None else {}), **more}


def test_launches_are_read_from_the_history():
    """A launch and its end belong together by their job; what is not whole is left out."""
    found = launches(
        [
            event(
                "launch", 1, slurm=slurm("41", 1, ends=99, output="/d/o"), goal={"kind": "epochs", "value": 5}
            ),
            event("launch", 2, goal={"kind": "steps", "value": -1}),
            event("save", 3),
            event("end", 4, why="time limit", slurm=slurm("41", 1), requeued=True),
            event("end", 5, why="left"),
            event("end", 6, why="nobody began"),
            {"event": "launch"},
            {"event": "launch", "time": "yesterday", "slurm": 3},
        ]
    )
    assert [(one.job, one.task, one.why, one.requeued) for one in found] == [
        ("41", 1, "time limit", True),
        ("", None, "left", False),
    ]
    assert (found[0].goal, found[0].limit, found[0].output) == (("epochs", 5), 99.0, "/d/o")
    assert found[1].goal is None


def test_the_last_submission_counts_unless_a_later_job_is_another():
    """Shown are the jobs of the last submission, or those that a user queued after it."""
    early = Launch(began=0.0, job="7")
    assert groups.newest([], []) is None
    assert groups.newest([], [Launch(began=1.0)]) is None
    assert groups.newest([submission()], [early]).array == "40"
    assert groups.newest([submission(mode="chain", jobs=("40", "41"))], []).jobs == ("40", "41")
    late = Launch(began=4e9, job="91", array="90", task=1)
    assert groups.newest([submission()], [late]).array == "90"
    assert (
        groups.newest([submission()], [Launch(began=4e9, job="41", array="40", task=1)]).submission
        is not None
    )
    by_hand = [Launch(began=1.0, job="7"), Launch(began=2.0, job="8"), Launch(began=3.0, job="8")]
    assert groups.newest([], by_hand).jobs == ("7", "8")


def test_the_tasks_of_an_array_are_all_told():
    """Each task of a submission is told, with its log: those that wait in one record, run, ended, or were forgotten."""
    found = groups.known_of(
        groups.Group(array="40", submission=submission(numbers=(1, 2, 3, 4))),
        ended=[Ended(1, "41", 0, 1, 2, 0, "command")],
        launches=[Launch(began=1.0, job="42", array="40", task=2, output="/elsewhere/2.out")],
        records=[
            Record(id="42", array="40", task="2", state="RUNNING"),
            Record(id="40", array="40", task="3-4%1", state="PENDING", output="/d/40-%a.out"),
        ],
        answered=True,
        alive=lambda job, task: task == 2,
    )
    tasks = [judge(known) for known in found]
    assert [(task.number, task.job, task.state, task.log) for task in tasks] == [
        (1, "40_1", "done", "/d/40-1.out"),
        (2, "40_2", "running", "/elsewhere/2.out"),
        (3, "40_3", "waiting", "/d/40-3.out"),
        (4, "40_4", "waiting", "/d/40-4.out"),
    ]


def test_jobs_that_were_not_asked_for_are_still_to_come():
    """Of a long chain only the next jobs are asked for: of the others Slurm has not said that it knows none."""
    jobs = tuple(map(str, range(1, 41)))
    found = groups.known_of(
        groups.Group(jobs=jobs, submission=submission(mode="chain", jobs=jobs)),
        ended=[Ended(1, "1", 0, 1, 2, 0, "command")],
        launches=[],
        records=[Record(id="2", state="RUNNING")],
        answered=True,
        alive=lambda job, task: False,
    )
    states = [judge(known).state for known in found]
    assert states[:2] == ["done", "running"]
    assert states[2 : groups.MOST] == ["unknown"] * (groups.MOST - 2)  # asked for, and not known
    assert set(states[groups.MOST :]) == {"waiting"}


def test_slurm_is_asked_for_no_more_than_needed():
    """An array is one question; of a chain those are asked for that are not known to be over; a few at most."""
    chain = groups.Group(jobs=("1", "2", "3"), submission=submission(mode="chain", jobs=("1", "2", "3")))
    over = [Ended(1, "1", 0, 1, 2, 0, "command"), Ended(2, "2", 0, 1, 2, 0, "command")]
    assert groups.questions(groups.Group(array="40"), []) == ["40"]
    assert groups.questions(chain, over) == ["2", "3"]
    again = groups.Group(jobs=("1",), submission=submission(mode="requeue", jobs=("1",)))
    ends = [Ended(1, "1", restart, 10 * restart, 10 * restart + 5, 75, "command") for restart in range(3)]
    assert groups.questions(again, ends) == ["1"]
    assert groups.questions(groups.Group(jobs=("1", "2")), []) == ["2"]
    many = tuple(map(str, range(500)))
    assert (
        len(groups.questions(groups.Group(jobs=many, submission=submission(mode="chain")), [])) == groups.MOST
    )
