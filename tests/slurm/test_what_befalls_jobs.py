"""What befalls a job: its node fails, its limit ends, another needs its place, the controller is gone."""

import os
import re
import shutil
import subprocess
import sys

import pytest

import slurm

REQUEUE = "export HOLDFAST_CONTINUE=requeue\n"


@pytest.fixture
def submit(lab, tmp_path):
    """Submits `training.py` in the test's folder."""
    shutil.copy(os.path.join(slurm.HERE, "training.py"), tmp_path)

    def call(words, *options, before="", start="exec python"):
        options = ("--time=5", "--output=%j.out", "--open-mode=append", *options)
        return slurm.sbatch(f"#!/bin/bash\n{before}{start} training.py {words}\n", *options, cwd=tmp_path)

    return call


def said(folder, job):
    return slurm.text_of(folder / f"{job}.out")


def result(text):
    """What the training says when it has reached its goal."""
    (line,) = re.findall(r"^done: .*$", text, re.M)
    return line


def through(folder, steps):
    """What the same training says that nothing befell."""
    place = folder / "through"
    place.mkdir()
    words = [sys.executable, f"{folder}/training.py", str(steps), "--pause=0"]
    return result(subprocess.run(words, cwd=place, check=True, capture_output=True, text=True).stdout)


def processes(text):
    return [int(pid) for pid in re.findall(r"^process (\d+)$", text, re.M)]


def test_a_failed_node(submit, tmp_path):
    """On another node the job goes on from its newest checkpoint, while its former self finds itself replaced and ends."""
    job = submit("400 --every=10", "--requeue")
    slurm.wait_for_line(tmp_path / f"{job}.out", "did 60")
    node = slurm.record(job)["NodeList"]
    slurm.fail_node(node)
    try:
        slurm.until(lambda: len(processes(said(tmp_path, job))) == 2, "the job to start again")
        former, _ = processes(said(tmp_path, job))
        slurm.until(lambda: not os.path.exists(f"/proc/{former}"), "the former process to end")
        assert slurm.wait_until(job) == "COMPLETED"
    finally:
        slurm.mend_node(node)
    assert result(said(tmp_path, job)) == through(tmp_path, 400)


def test_a_limit_that_comes_too_early(submit, tmp_path):
    """Where the limit was shortened unseen, SIGTERM is a save, and a job that asks for it is queued again."""
    job = submit("1200", "--requeue", before=REQUEUE)
    slurm.wait_for_line(tmp_path / f"{job}.out", "did 20")
    slurm.end_limit(job)
    assert slurm.wait_until(job) == "COMPLETED"
    text = said(tmp_path, job)
    assert "holdfast: SIGTERM: " in text
    assert slurm.record(job)["Restarts"] == "1"
    assert result(text) == through(tmp_path, 1200)


def test_a_shell_that_is_cancelled(submit, tmp_path):
    """A training below a shell is killed with it; the next job takes its lease at once, and its newest checkpoint."""
    job = submit("300 --every=10", start="python")
    slurm.wait_for_line(tmp_path / f"{job}.out", "did 30")
    slurm.cancel(job)
    slurm.wait_until(job)
    text = said(tmp_path, job)
    assert "is saved" not in text
    after = submit("300 --pause=0")
    assert slurm.wait_until(after) == "COMPLETED"
    assert re.search(r"resumed from .*step \d+0 of 300 steps", said(tmp_path, after))
    assert result(said(tmp_path, after)) == through(tmp_path, 300)


@pytest.mark.parametrize("warned", [False, True], ids=["at its end", "within it"])
def test_preemption_with_a_time_of_grace(submit, tmp_path, warned):
    """A job that is preempted comes back, whether it leaves at the end of its grace or, warned, within it."""
    job = submit("1500", "--partition=lowpri-grace", "--requeue")
    slurm.wait_for_line(tmp_path / f"{job}.out", "did 20")
    other = slurm.preempt(job)
    if warned:
        slurm.until(lambda: slurm.record(job).get("PreemptTime", "None") != "None", "the grace to begin")
        slurm.signal(job, "USR1")
    slurm.wait_for_line(tmp_path / f"{job}.out", "is saved; ending with exit code 75")
    slurm.wait_until(other, "RUNNING")
    slurm.cancel(other)
    assert slurm.wait_until(job) == "COMPLETED"
    text = said(tmp_path, job)
    assert slurm.record(job)["Restarts"] == "1"
    assert result(text) == through(tmp_path, 1500)


def test_a_controller_that_is_gone(submit, tmp_path):
    """Without the controller a training goes on and saves at a signal; one that cannot be queued again says so."""
    job = submit("400", "--requeue", before=REQUEUE)
    slurm.wait_for_line(tmp_path / f"{job}.out", "did 20")
    slurm.stop_controller()
    try:
        slurm.wait_for_line(tmp_path / f"{job}.out", "did 40")
        (pid,) = processes(said(tmp_path, job))
        os.kill(pid, 10)
        slurm.until(lambda: not os.path.exists(f"/proc/{pid}"), "the training to end")
        assert "is saved; ending with exit code 75" in said(tmp_path, job)
        assert "cannot be queued again" in said(tmp_path, job)
    finally:
        slurm.start_controller()
    assert slurm.wait_until(job) == "FAILED"
    assert slurm.record(job)["ExitCode"] == "75:0"
