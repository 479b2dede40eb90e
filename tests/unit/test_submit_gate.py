"""Whether a later job has anything to do, asked by the script of `holdfast submit`."""

import datetime
import os
import shutil
import subprocess
import sys

import pytest
from cli_runs import call, checkpoints

import holdfast
from holdfast.jobs.gate import hopeless, look, repeated_goal
from holdfast.jobs.record import Ended
from holdfast.jobs.script import GO_ON, HOPELESS, NOTHING_TO_DO

SUBMISSION = {"HOLDFAST_SUBMISSION": "s"}


def train(path, goal, task, monkeypatch, *, stop_at=None, submission="s"):
    """One job of a submission, as the training writes it down."""
    monkeypatch.setenv("SLURM_JOB_ID", str(100 + task))
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "99")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(task))
    monkeypatch.setenv("HOLDFAST_SUBMISSION", submission)
    monkeypatch.setenv("PATH", os.path.dirname(sys.executable))  # no Slurm to ask
    run = holdfast.Run(str(path))
    for step in run.steps(goal):
        run.state["n"] = step
        if stop_at is not None and step + 1 == stop_at:
            run.stop()
    run.close()


def test_two_tasks_with_the_same_goal_that_is_reached(tmp_path, monkeypatch):
    """A job has nothing to do once two tasks asked for the same goal and it is reached; before that it has."""
    run = tmp_path / "run"
    assert look(str(run), SUBMISSION) == (GO_ON, "")
    train(run, 4, 1, monkeypatch)
    assert look(str(run), SUBMISSION) == (GO_ON, "")
    train(run, 4, 2, monkeypatch)
    code, line = look(str(run), SUBMISSION)
    assert code == NOTHING_TO_DO
    assert (
        line == f"{run}: complete: 4 steps are reached, and tasks 1 and 2 asked for no more. Nothing to do."
    )
    assert look(str(run), {"HOLDFAST_SUBMISSION": "another"})[0] == GO_ON
    assert look(str(run), {})[0] == GO_ON


def test_a_goal_that_depends_on_the_task_goes_on(tmp_path, monkeypatch):
    """With goals of 4, 8 and 12 steps every task has something to do; a higher one than was repeated counts, too."""
    for task in (1, 2, 3):
        train(tmp_path / "run", 4 * task, task, monkeypatch)
        assert look(str(tmp_path / "run"), SUBMISSION)[0] == GO_ON
    train(tmp_path / "other", 4, 1, monkeypatch)
    train(tmp_path / "other", 4, 2, monkeypatch)
    train(tmp_path / "other", 8, 3, monkeypatch)
    assert look(str(tmp_path / "other"), SUBMISSION)[0] == GO_ON


def test_after_a_rewind_there_is_something_to_do(tmp_path, monkeypatch):
    """What is reached is read off the newest clean checkpoint: one that is gone or rewound over counts no more."""
    run = tmp_path / "run"
    run_keep = holdfast.Run(str(run), keep=holdfast.Keep(last=None))
    run_keep.resume()
    run_keep.state["n"] = 0
    run_keep.save(step=1, wait=True)
    run_keep.close()
    train(run, 4, 1, monkeypatch)
    train(run, 4, 2, monkeypatch)
    assert look(str(run), SUBMISSION)[0] == NOTHING_TO_DO
    copy = tmp_path / "copy"
    shutil.copytree(run, copy, symlinks=True)
    shutil.rmtree(checkpoints(copy)[-1])
    assert look(str(copy), SUBMISSION)[0] == GO_ON
    assert call("rewind", run, "@step=1").exit_code == 0
    assert look(str(run), SUBMISSION)[0] == GO_ON


def test_a_run_that_was_stopped_is_complete(tmp_path, monkeypatch):
    """A training that stopped before its goal is complete for later tasks with that goal."""
    train(tmp_path / "run", 9, 1, monkeypatch, stop_at=3)
    train(tmp_path / "run", 9, 2, monkeypatch)
    code, line = look(str(tmp_path / "run"), SUBMISSION)
    assert (code, "it was stopped" in line) == (NOTHING_TO_DO, True)


@pytest.mark.parametrize(
    "goals",
    [
        {},
        {"1": {"kind": "steps", "value": 4}},
        {"1": {"kind": "steps", "value": 4, "job": "s"}},
        {"1": {"kind": "steps", "value": 4, "job": "s"}, "2": {"kind": "steps", "value": 4, "job": "t"}},
        {"1": {"kind": "steps", "value": 4, "job": "s"}, "2": {"kind": "epochs", "value": 4, "job": "s"}},
        {
            "1": "x",
            "2": {"kind": "steps", "value": True, "job": "s"},
            "3": {"kind": "steps", "value": True, "job": "s"},
        },
    ],
)
def test_goals_that_are_not_repeated(goals):
    """One task, tasks of other submissions, of other kinds or nonsense are no two tasks with the same goal."""
    assert repeated_goal(goals, "s") is None


# -- failures ----------------------------------------------------------------------------------------


def ends(*codes, began=1000, doing="command"):
    return [
        Ended(n, str(n), 0, began + 10 * n, began + 10 * n + 5, code, doing)
        for n, code in enumerate(codes, 1)
    ]


def at(seconds):
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC)


@pytest.mark.parametrize(
    ("codes", "saved", "expected"),
    [
        ((1, 1), None, False),
        ((1, 1, 1), None, True),
        ((1, 137, 2), None, True),
        ((1, 1, 1), 1000, True),
        ((1, 1, 1), 1025, False),
        ((1, 0, 1, 1), None, False),
        ((1, 75, 1, 1), None, False),
        ((0, 75, 1, 1, 1), 1008, True),
        ((143, 143, 143), None, False),
        ((138, 1, 1), None, False),
    ],
)
def test_three_failures_without_a_checkpoint_are_enough(codes, saved, expected):
    """Three failed jobs in a row without a checkpoint since the first of them began; ends that a signal asked for are none."""
    assert hopeless(ends(*codes), None if saved is None else at(saved)) is expected


def test_a_hopeless_job_does_not_begin(tmp_path):
    """After three failures the gate ends with 20 and names the exit codes and what to do."""
    folder = tmp_path / "run" / "submitted" / "s"
    folder.mkdir(parents=True)
    lines = [f"{n} {n} 0 {1000 + n} {1001 + n} {126 + n} command\n" for n in (1, 2, 3)]
    (folder / "ended").write_text("".join(lines[:2]))
    assert look(str(tmp_path / "run"), SUBMISSION)[0] == GO_ON
    (folder / "ended").write_text("nonsense\n" + "".join(lines) + "4 torn")
    code, line = look(str(tmp_path / "run"), SUBMISSION)
    assert code == HOPELESS
    assert "the last 3 jobs failed (exit codes 127, 128, 129)" in line
    assert "Next: read their logs" in line
    refused = [f"{n} {n} 0 {1000 + n} {1001 + n} 1 gate\n" for n in (4, 5, 6)]
    (folder / "ended").write_text("".join([*lines, *refused]))
    assert look(str(tmp_path / "run"), SUBMISSION) == (code, line)


# -- the command ---------------------------------------------------------------------------------


def test_the_gate_is_cheap(tmp_path, monkeypatch):
    """The gate loads neither NumPy nor a framework nor rich, writes nothing, and says one line."""
    run = tmp_path / "run"
    train(run, 4, 1, monkeypatch)
    train(run, 4, 2, monkeypatch)
    before = sorted(os.listdir(run))
    script = (
        "import sys\nfrom holdfast.cli.main import main\n"
        f"try:\n    main(['status', '--gate', {str(run)!r}])\n"
        "finally:\n    print(*[name for name in ('numpy', 'torch', 'tensorflow', 'keras', 'jax', 'rich') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (NOTHING_TO_DO, "\n")
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"holdfast: {run}: complete: ")
    assert sorted(os.listdir(run)) == before


def test_the_gate_as_the_script_calls_it(tmp_path, monkeypatch):
    """`python -P -m holdfast` is the command line, whatever lies in the current directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "click.py").write_text("raise SystemExit(99)")
    words = [sys.executable, "-P", "-m", "holdfast", "status", "--gate", "nowhere"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (GO_ON, "", "")


def test_a_run_that_cannot_be_read_goes_on(tmp_path, monkeypatch):
    """A gate that meets a damaged run ends with neither of the codes that keep the training from beginning."""
    train(tmp_path / "run", 4, 1, monkeypatch)
    (tmp_path / "run" / "run.json").write_text("{}")
    result = call("status", "--gate", tmp_path / "run")
    assert result.exit_code not in (NOTHING_TO_DO, HOPELESS)
