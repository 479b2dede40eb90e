"""`holdfast status` beside a real Slurm: what it tells of jobs that run, wait and ended, and when the controller is gone."""

import json
import os
import subprocess
import sys

import pytest

import slurm

TRAIN = """
import sys, time
import holdfast

run = holdfast.Run("runs/digits", every=holdfast.Every(steps=5), keep=holdfast.Keep(metric="loss", mode="min"))
for step in run.steps(int(sys.argv[1])):
    run.state["n"] = step
    run.log(loss=1 / (step + 1))
    time.sleep(0.05)
run.close()
"""


@pytest.fixture
def holdfast(lab, tmp_path):
    """Calls the command; its output."""
    (tmp_path / "train.py").write_text(TRAIN)

    def call(*words, **variables):
        done = subprocess.run(
            [sys.executable, "-m", "holdfast", *words],
            cwd=tmp_path,
            env=slurm.environ(COLUMNS="100", **variables),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return call


def status(holdfast, **variables):
    return json.loads(holdfast("status", "runs/digits", "--json", **variables))


def begin(holdfast, tmp_path, *options):
    words = (
        "submit",
        "--json",
        "--allow-local",
        "--run",
        "runs/digits",
        "--time=5",
        *options,
        "--",
        "python",
        "train.py",
        "100000",
    )
    jobs = json.loads(holdfast(*words))["jobs"]
    folder = tmp_path / "runs" / "digits"
    slurm.until(
        lambda: sum("_step-" in name for name in os.listdir(folder)) >= 2 and (folder / "run.json").exists(),
        "two checkpoints",
    )
    return jobs


def test_a_training_that_runs(holdfast, tmp_path):
    """Of an array the running task, the time that it has left, those to come, pace and end are told, and nothing is made."""
    (array,) = begin(holdfast, tmp_path, "--tasks=4")
    found = status(holdfast)
    assert found["slurm"] == "answered"
    assert found["counts"] == {"running": 1, "waiting": 3}
    task = found["tasks"][0]
    assert (task["job"], task["log"]) == (f"{array}_1", str(tmp_path / f"{array}-1.out"))
    assert task["ends"] > found["saved"]
    assert f"Slurm job {slurm.record(f'{array}_1')['JobId']}" in found["holder"]
    assert found["more_tasks"] > 0
    assert 0 < found["steps_per_second"] < 25
    text = holdfast("status", "runs/digits")
    assert f"{array}_1 runs, " in text
    assert "2-4  to come" in text
    assert f"{array}-1.out" in text
    assert "more jobs of this length" in text


def test_what_slurm_no_longer_tells(holdfast, tmp_path):
    """Once Slurm does not answer, or does not know the jobs, their ends are told from the run, with a line on why."""
    (array,) = begin(holdfast, tmp_path, "--tasks=3")
    # Where several tasks wait, scancel 22.05 delivers it and says that it failed.
    slurm.command("scancel", "--signal=USR1", "--batch", f"{array}_1", check=False)
    slurm.wait_for_line(tmp_path / f"{array}-2.out", "resumed from")
    slurm.cancel(f"{array}_2")
    slurm.wait_for_line(tmp_path / f"{array}-2.out", "the next one continues")
    slurm.cancel(f"{array}_3")
    slurm.wait_for_array(array)
    known = status(holdfast)
    assert known["counts"]["done"] == 1
    assert known["counts"]["cancelled"] == 2
    # A controller that is not there: the configuration names a port on which nobody listens.
    (tmp_path / "slurm.conf").write_text("ClusterName=lab\nSlurmctldHost=localhost\nSlurmctldPort=1\n")
    silent = status(holdfast, SLURM_CONF=str(tmp_path / "slurm.conf"))
    assert silent["slurm"] != "answered"
    assert [task["state"] for task in silent["tasks"]][:2] == ["done", "done"]
    assert [task["log"] for task in silent["tasks"]] == [task["log"] for task in known["tasks"]]
    assert silent["step"] == known["step"]


def test_a_job_that_waits_to_begin_again(holdfast, tmp_path):
    """A job that was requeued is told as one that is to come, with its restarts."""
    (job,) = begin(holdfast, tmp_path, "--requeue")
    slurm.signal(job, "USR1")
    found = slurm.until(lambda: (now := status(holdfast))["counts"].get("waiting") and now, "the job to wait")
    assert found["tasks"][0]["why"] == "queued again"
    slurm.wait_until(job, "RUNNING")
    again = slurm.until(lambda: (now := status(holdfast))["counts"].get("running") and now, "the job to run")
    assert again["tasks"][0]["restarts"] == 1


def test_an_array_of_the_users_own(holdfast, tmp_path):
    """Jobs that were queued by hand are told from the history and from Slurm, with their logs."""
    script = "#!/bin/bash\nexec python train.py 30\n"
    array = slurm.sbatch(script, "--array=1-3%1", "--time=5", "--output=%A-%a.txt", cwd=tmp_path)
    slurm.wait_for_array(array)
    found = status(holdfast)
    assert found["submission"] is None
    assert [task["state"] for task in found["tasks"]] == ["done"] * 3
    assert found["tasks"][0]["why"] == "complete"
    assert [task["log"] for task in found["tasks"]] == [str(tmp_path / f"{array}-{n}.txt") for n in (1, 2, 3)]
