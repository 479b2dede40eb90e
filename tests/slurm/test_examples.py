"""The scripts in examples/slurm: the tasks of an array are one training, and end as one that ran through."""

import importlib.util
import itertools
import json
import os
import re
import shutil
import subprocess
import sys

import pytest

import slurm
from holdfast import comparison
from holdfast import open as open_checkpoint

EXAMPLES = os.path.join(slurm.HERE, "..", "..", "examples", "slurm")
# Two runs are equal to the bit only if as many threads add up their numbers.
SETTINGS = {"OMP_NUM_THREADS": "1", "KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"}
# A test machine has less memory than the examples ask for.
SMALL = ("--mem=1000", "--time=5")
GOAL = 10_000


def submit(name, folder, *options):
    """Submits an example in a folder of its own."""
    shutil.copytree(EXAMPLES, folder)
    return slurm.sbatch(f"digits_{name}.sh", *SMALL, *options, cwd=folder, **SETTINGS)


def train_through(name, folder, steps):
    """The same training in one go, outside of Slurm."""
    shutil.copytree(EXAMPLES, folder)
    words = [sys.executable, f"train_{name}.py", str(steps)]
    done = subprocess.run(
        words, cwd=folder, env={**os.environ, **SETTINGS}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def assert_same_end(name, *folders):
    """The newest checkpoints of two runs are equal: all arrays, values, random streams and the progress."""
    first, second = (open_checkpoint(os.path.join(folder, "runs", f"digits_{name}")) for folder in folders)
    found = comparison.compare(first, second)
    assert found.equal, found


def needs(module):
    return pytest.mark.skipif(importlib.util.find_spec(module) is None, reason=f"{module} is not installed")


@pytest.mark.parametrize(
    ("name", "tasks"),
    [pytest.param("torch", 3, marks=needs("torch")), pytest.param("keras", 2, marks=needs("tensorflow"))],
)
def test_tasks_with_growing_goals_are_one_training(lab, tmp_path, name, tasks):
    """Each task trains 500 steps more than the one before, one at a time; the end equals one training's, to the bit."""
    array = submit(name, tmp_path / "array", f"--array=1-{tasks}%1")
    train_through(name, tmp_path / "through", 500 * tasks)
    assert slurm.wait_for_array(array) == {str(task): "COMPLETED" for task in range(1, tasks + 1)}
    for task in range(1, tasks + 1):
        said = slurm.text_of(tmp_path / "array" / f"{array}-{task}.err")
        assert ("new run" if task == 1 else f"step {500 * (task - 1)} of ") in said
        log = slurm.text_of(tmp_path / "array" / f"log.{task}")
        assert re.search(rf"^({500 * task} steps|{20 * task} epochs) are done", log, re.M), log
    records = [slurm.record(f"{array}_{task}") for task in range(1, tasks + 1)]
    for before, after in itertools.pairwise(records):
        assert before["EndTime"] <= after["StartTime"]
    assert_same_end(name, tmp_path / "array", tmp_path / "through")


@needs("torch")
def test_tasks_with_one_goal_are_one_training(lab, tmp_path):
    """With one goal the tasks go on where one was warned or cancelled; those after the goal say complete and end."""
    folder = tmp_path / "array"
    shutil.copytree(EXAMPLES, folder)
    script = (folder / "digits_torch.sh").read_text(encoding="utf-8")
    script = re.sub(r"^numOfSteps=.*\n", "", script, flags=re.M)
    script = script.replace("# numOfSteps=5000\n", f"numOfSteps={GOAL}\n")
    array = slurm.sbatch(script, *SMALL, "--array=1-4%1", cwd=folder, **SETTINGS)
    slurm.wait_for_line(folder / "log.1", "step 500:")
    slurm.signal(f"{array}_1", "USR1")
    slurm.wait_until(f"{array}_1")
    slurm.wait_for_line(folder / "log.2", "step ")
    slurm.cancel(f"{array}_2")
    train_through("torch", tmp_path / "through", GOAL)
    ends = slurm.wait_for_array(array)
    assert ends == {"1": "FAILED", "2": "CANCELLED", **{str(task): "COMPLETED" for task in (3, 4)}}
    assert slurm.record(f"{array}_1")["ExitCode"] == "75:0"
    for task in (2, 3, 4):
        said = slurm.text_of(folder / f"{array}-{task}.err")
        assert ("resumed from" if task <= 3 else f"complete at epoch 0, step {GOAL} ") in said
        assert (f"{GOAL} steps are done" in slurm.text_of(folder / f"log.{task}")) == (task >= 3)
        assert ("loss" in slurm.text_of(folder / f"log.{task}")) == (task <= 3)
    assert_same_end("torch", folder, tmp_path / "through")


@pytest.mark.parametrize(
    ("name", "tasks"),
    [pytest.param("torch", 2, marks=needs("torch")), pytest.param("keras", 2, marks=needs("tensorflow"))],
)
def test_the_examples_submitted_are_one_training(lab, tmp_path, name, tasks):
    """The same by `holdfast submit`, with goals that depend on the task: one training, one task at a time, to the bit."""
    folder = tmp_path / "array"
    shutil.copytree(EXAMPLES, folder)
    words = f"""exec python train_{name}.py $(( 500 * SLURM_ARRAY_TASK_ID ))"""
    submitted = slurm.command(
        *(sys.executable, "-m", "holdfast", "submit", "--json", "--allow-local"),
        *("--run", f"runs/digits_{name}", "--tasks", str(tasks), "--partition=gpu", "--gres=gpu:1", *SMALL),
        *("--", "bash", "-c", words),
        cwd=folder,
        **SETTINGS,
    )
    array = json.loads(submitted)["jobs"][0]
    assert set(slurm.wait_for_array(array).values()) == {"COMPLETED"}
    train_through(name, tmp_path / "through", 500 * tasks)
    assert_same_end(name, folder, tmp_path / "through")
