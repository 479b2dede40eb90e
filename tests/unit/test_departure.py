"""A training in a job that is being ended: a save that cannot fit is not begun, one that fits is."""

import os
import signal
import threading
import time

import numpy as np
import pytest

import holdfast
from holdfast import cost, files
from holdfast.errors import Preempted
from holdfast.store import book

SHOW = """\
JobId=41 JobName=digits
   JobState={state} Reason=None Dependency=(null)
   Requeue=0 Restarts=0 ExitCode=0:0
   StartTime=1000 EndTime={end} Deadline=N/A
"""


@pytest.fixture
def ended(scontrol, tmp_path, monkeypatch):
    """Trains in a job until SIGTERM, where saves were measured to take so long; the steps that are saved."""
    monkeypatch.setenv("SLURM_JOB_ID", "41")

    def call(seconds, state="COMPLETING", end="Unknown", wait=10, every=10**6):
        show = SHOW.format(state=state, end=end)
        scontrol(
            f"if [ \"$2\" = config ]; then echo 'KillWait = {wait} sec'\nelse cat <<'END'\n{show}END\nfi\n"
        )
        path = str(tmp_path / "run")
        with holdfast.Run(path, every=holdfast.Every(steps=10**6)) as first:
            first.resume()
            first.save(step=1)
        book.note_event(path, "save", name="x", reason="x", bytes=1, held_seconds=0.0, seconds=seconds)
        run = holdfast.Run(path, every=holdfast.Every(steps=every))
        with pytest.raises(Preempted) as caught:
            for step in run.steps(100):
                if step == 5:
                    run._training.departure._limit.look(wait=True)  # KillWait is known
                    assert run._training.saver.busy == (every < step)
                    os.kill(os.getpid(), signal.SIGTERM)
        there = [name for name in os.listdir(path) if "_step-" in name and not name.startswith(".")]
        assert max(there) in str(caught.value)
        run.close()
        return [checkpoint.progress.step for checkpoint in run.checkpoints]

    return call


def test_a_save_that_cannot_fit_is_not_begun(ended, capsys):
    """With less left than a save was measured to take none is begun; the newest checkpoint stands, and that is said."""
    assert ended(60.0) == [1]
    assert "are left before Slurm ends this job, so none is begun" in capsys.readouterr().err


def test_a_write_in_flight_is_finished(ended, capsys, monkeypatch):
    """The save that is being written when the signal comes is waited for, also where no other one fits after it."""

    sent, kill = threading.Event(), os.kill

    class Slow(files.System):
        def rename(self, source, target):
            if "_step-00000005_" in target and "writing" not in target:
                assert sent.wait(20)  # else it might be there before the signal is
                time.sleep(0.9)
            super().rename(source, target)

    monkeypatch.setattr(files, "system", Slow())
    monkeypatch.setattr(os, "kill", lambda *args: (sent.set(), kill(*args)))
    assert ended(60.0, wait=1, every=4) == [1, 5]
    assert "so none is begun" in capsys.readouterr().err


def test_a_warning_that_slurm_gives_by_sigterm_leaves_its_time(ended, capsys):
    """With `--signal=B:TERM@120` the job runs on after the signal: what is left is the job's own time, not KillWait."""
    assert ended(60.0, state="RUNNING", end=int(time.time()) + 120) == [1, 6]
    assert "none is begun" not in capsys.readouterr().err


def test_such_a_warning_may_come_too_late_as_well(ended, capsys):
    """Where the job's own time is not enough, either, none is begun."""
    assert ended(60.0, state="RUNNING", end=int(time.time()) + 80) == [1]
    assert "are left before Slurm ends this job, so none is begun" in capsys.readouterr().err


def test_a_save_that_fits_is_made(ended, capsys):
    """With more than that left the place is saved."""
    assert ended(1.0) == [1, 6]
    assert "none is begun" not in capsys.readouterr().err


def test_a_launch_that_comes_too_late_still_gets_on(scontrol, tmp_path, monkeypatch):
    """In a job with almost no time left a batch is done before the end: else each launch would end where it began."""
    monkeypatch.setenv("SLURM_JOB_ID", "41")
    show = SHOW.format(state="RUNNING", end=int(time.time()) + 3)
    scontrol(f"[ \"$2\" = config ] || cat <<'END'\n{show}END\n")
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + 3))
    with pytest.raises(Preempted, match="time limit"), holdfast.Run(tmp_path / "run") as run:
        for _ in run.epochs(3):
            for _ in run.batches(range(10)):
                time.sleep(0.05)
    assert [checkpoint.progress.batch for checkpoint in run.checkpoints] == [1]


def test_launches_that_get_nowhere_are_told_of(scontrol, tmp_path, monkeypatch, caplog):
    """The third launch in a row that begins where those before it began says so, and what to do; one that got on does not."""
    monkeypatch.setenv("SLURM_JOB_ID", "41")
    show = SHOW.format(state="RUNNING", end="Unknown")
    scontrol(f"[ \"$2\" = config ] || cat <<'END'\n{show}END\n")
    said = []
    for launch in range(5):
        caplog.clear()
        with holdfast.Run(tmp_path / "run", every=holdfast.Every(steps=2)) as run, pytest.raises(KeyError):
            for step in run.steps(9):
                if launch != 3 or step == 3:
                    raise KeyError(step)
        told = [record.getMessage() for record in caplog.records if "got no further" in record.getMessage()]
        said.append(told)
    assert [len(lines) for lines in said] == [0, 0, 1, 1, 0]
    assert "Slurm job 41: the last 2 launches began where this one does, and got no further" in said[2][0]
    assert "Next: " in said[2][0] and "run.batches(" in said[2][0]


def test_mirrors_are_brought_up_to_date_before_a_job_is_queued_again(scontrol, tmp_path, monkeypatch):
    """Slurm ends the process as soon as it is asked to: by then a required mirror has what was saved last."""
    monkeypatch.setenv("SLURM_JOB_ID", "41")
    monkeypatch.setenv("HOLDFAST_CONTINUE", "requeue")
    show = SHOW.format(state="RUNNING", end=int(time.time()) + 600)
    there = tmp_path / "shared" / "run"
    scontrol(
        f"case $1-$2 in requeue-*) ls {there} >{tmp_path}/then;; show-config) ;; *) cat <<'END'\n{show}END\n;; esac\n"
    )
    (tmp_path / "shared").mkdir()
    mirror = holdfast.Mirror(there, limit="1MB", required=True)
    run = holdfast.Run(tmp_path / "run", every=holdfast.Every(steps=10**6), mirrors=[mirror])
    run.state["x"] = np.random.default_rng(0).bytes(1_000_000)
    with pytest.raises(Preempted):
        for step in run.steps(100):
            if step == 5:
                os.kill(os.getpid(), signal.SIGUSR1)
    run.close()
    (saved,) = run.checkpoints
    assert saved.name in (tmp_path / "then").read_text().split()


def test_mirrors_are_planned_for(tmp_path):
    """What the slowest of a mirror's last copies took is what the next may take, from the history at first; others are bounded."""
    (tmp_path / "shared").mkdir()
    url = str(tmp_path / "shared" / "run")
    run = holdfast.Run(tmp_path / "run", mirrors=[holdfast.Mirror(url, required=True)])
    run.resume()
    mirroring = run._training.mirroring
    assert mirroring.closing_seconds({}) == 0.0
    assert mirroring.closing_seconds({url: 70.0}) == 70.0
    run.save(step=1, wait=True)
    mirroring.wait(30.0)
    assert 0.0 < mirroring.closing_seconds({url: 70.0}) < 70.0
    mirroring.states[0].took = (1.0, 80.0, 2.0)
    assert mirroring.closing_seconds({}) == 80.0
    mirroring.states[0].mirror = holdfast.Mirror(url)
    assert mirroring.closing_seconds({}) == 5.0
    run.close()
    events = [{"event": "mirror", "url": url, "seconds": seconds} for seconds in (99, *range(20), "x")]
    assert cost.slowest_copies([*events, {"event": "mirror", "url": 3}]) == {url: 19.0}
