"""A training in a job: what it sees, when it saves, how it ends, and whether it comes back."""

import os
import re
import shutil
import subprocess
import sys

import pytest

import holdfast
import slurm
from holdfast import comparison
from holdfast.store import book

TRAINING = os.path.join(slurm.HERE, "training.py")


def script(words, *, start="exec python", lines=()):
    """A batch script that starts the training with these words."""
    return "\n".join(["#!/bin/bash", *lines, f"{start} training.py {words}", ""])


@pytest.fixture
def submit(lab, tmp_path):
    """Submits a training in the test's folder."""
    shutil.copy(TRAINING, tmp_path)

    def call(words, *options, **parts):
        options = ("--time=5", "--output=%j.out", "--open-mode=append", *options)
        return slurm.sbatch(script(words, **parts), *options, cwd=tmp_path)

    return call


def said(folder, job):
    return slurm.text_of(folder / f"{slurm.record(job)['JobId']}.out")


def ends(folder):
    """What the history tells of the ends of loops."""
    return [event for event in book.read_events(str(folder / "run")) if event["event"] == "end"]


def newest_step(folder):
    return holdfast.open(str(folder / "run")).progress.step


def last_step(text):
    return int(re.findall(r"^did (\d+)$", text, re.M)[-1])


def assert_like_one_through(folder, steps, run="run"):
    """The run in the folder equals one that was never interrupted, to the bit."""
    through = folder / "through"
    shutil.rmtree(through, ignore_errors=True)
    through.mkdir()
    words = [sys.executable, TRAINING, str(steps), "--pause=0"]
    subprocess.run(words, cwd=through, check=True, capture_output=True, timeout=120)
    first, second = holdfast.open(str(folder / run)), holdfast.open(str(through / "run"))
    assert comparison.compare(first, second).equal


# -- an array, and the limit ---------------------------------------------------------------------------------


def test_the_last_save_is_planned_before_the_limit(submit, tmp_path):
    """Without any signal a job saves before its time is over and leaves with 75; the next one ends like one training."""
    # Slurm counts limits in minutes; this one ends sooner, and the training finds it so.
    shorter = ["scontrol update JobId=$SLURM_JOB_ID EndTime=now+30"]
    job = submit("100000 --every=50", "--time=1", lines=shorter)
    slurm.wait_for_line(tmp_path / f"{job}.out", "the last save is planned")
    slurm.wait_until(job)
    text = said(tmp_path, job)
    assert re.search(r"Slurm job \d+: its time is over at \d\d:\d\d:\d\d, in \d\d s\.", text)
    assert "holdfast: time limit: " in text
    assert "CANCELLED" not in text  # Slurm had nothing to end
    fields = slurm.record(job)
    assert (fields["JobState"], fields["ExitCode"]) == ("FAILED", "75:0")
    assert newest_step(tmp_path) == last_step(text) + 1
    (end,) = ends(tmp_path)
    assert end["why"] == "time limit"
    assert (end["slurm"]["job"], end["slurm"]["output"]) == (job, str(tmp_path / f"{job}.out"))
    goal = newest_step(tmp_path) + 50
    job = submit(f"{goal} --pause=0")
    assert slurm.wait_until(job) == "COMPLETED"
    assert "resumed from" in said(tmp_path, job)
    assert_like_one_through(tmp_path, goal)


def test_ten_tasks_are_one_training(submit, tmp_path):
    """Ten tasks, each with a goal that follows from its number and with a log of its own, end like one training."""
    words = '"$numOfSteps" --pause=0 > "log.$SLURM_ARRAY_TASK_ID"'
    goal = ["numOfSteps=$(( 20 * SLURM_ARRAY_TASK_ID ))"]
    array = submit(words, "--array=1-10%1", "--output=%A-%a.out", lines=goal)
    assert set(slurm.wait_for_array(array).values()) == {"COMPLETED"}
    for task in range(1, 11):
        log = slurm.text_of(tmp_path / f"log.{task}")
        assert re.findall(r"^did (\d+)$", log, re.M) == [
            str(step) for step in range(20 * task - 20, 20 * task)
        ]
    assert_like_one_through(tmp_path, 200)


def test_a_job_that_asks_for_it_is_queued_again(submit, tmp_path):
    """With HOLDFAST_CONTINUE=requeue one job goes on under its number until the goal, and is one training."""
    job = submit("300", "--requeue", lines=["export HOLDFAST_CONTINUE=requeue"])
    slurm.wait_for_line(tmp_path / f"{job}.out", "did 20")
    slurm.signal(job, "USR1")
    slurm.wait_for_line(tmp_path / f"{job}.out", "restart 1")
    assert slurm.wait_until(job) == "COMPLETED"
    text = said(tmp_path, job)
    assert text.count("queued again (HOLDFAST_CONTINUE=requeue)") == 1
    assert text.count("done: ") == 1
    assert slurm.record(job)["Restarts"] == "1"
    assert [(end["why"], end.get("requeued")) for end in ends(tmp_path)] == [
        ("SIGUSR1", True),
        ("goal reached", None),
    ]
    assert_like_one_through(tmp_path, 300)


def test_a_task_is_queued_again_alone(submit, tmp_path):
    """The last task of an array, which has the array's own number, brings no other task back."""
    asks = ["export HOLDFAST_CONTINUE=requeue", "cd $SLURM_ARRAY_TASK_ID"]
    for task in ("1", "2"):
        (tmp_path / task).mkdir()
        shutil.copy(TRAINING, tmp_path / task)
    array = submit("400 --pause=0.02", "--array=1-2%1", "--requeue", "--output=%A-%a.out", lines=asks)
    slurm.wait_for_line(tmp_path / f"{array}-2.out", "did 5")
    assert slurm.record(f"{array}_2")["JobId"] == array
    slurm.signal(f"{array}_2", "USR1")
    slurm.wait_for_line(tmp_path / f"{array}-2.out", "restart 1")
    assert slurm.wait_for_array(array) == {"1": "COMPLETED", "2": "COMPLETED"}
    assert [slurm.record(f"{array}_{task}")["Restarts"] for task in (1, 2)] == ["0", "1"]


# -- signals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", ["exec python", "exec srun python", "srun python"])
def test_what_cancel_ends_is_saved(submit, tmp_path, start):
    """After scancel the training saves and leaves, whether Slurm started it as the script or as a step; it stays away."""
    job = submit("5000", "--requeue", start=start, lines=["export HOLDFAST_CONTINUE=requeue"])
    slurm.wait_for_line(tmp_path / f"{job}.out", "did 20")
    slurm.cancel(job)
    # Its words may be lost: a srun that is no longer there passes none on.
    slurm.until(lambda: ends(tmp_path), "the training to end")
    assert slurm.wait_until(job) == "CANCELLED"
    assert [(end["why"], end.get("requeued")) for end in ends(tmp_path)] == [("SIGTERM", None)]
    assert newest_step(tmp_path) >= last_step(said(tmp_path, job)) + 1 > 20
    assert slurm.record(job)["Restarts"] == "0"


@pytest.mark.parametrize(
    ("start", "options"), [("exec python", ("--signal=B:USR1@60",)), ("srun python", ("--signal=USR1@60",))]
)
def test_a_warning_is_a_save(submit, tmp_path, start, options):
    """SIGUSR1, sent as Slurm sends its warning, is a save at the next boundary and an end with 75."""
    job = submit("5000", *options, start=start)
    slurm.wait_for_line(tmp_path / f"{job}.out", "did 20")
    if "B:" in options[0]:
        slurm.signal(job, "USR1")
    else:
        slurm.command("scancel", "--signal=USR1", job)
    assert slurm.wait_until(job) == "FAILED"
    text = said(tmp_path, job)
    assert "holdfast: SIGUSR1: " in text
    assert slurm.record(job)["ExitCode"] == "75:0"
    assert newest_step(tmp_path) == last_step(text) + 1


def test_repeated_signals_change_nothing(submit, tmp_path):
    """Signals that come while the save is written, or the process ends, neither undo it nor change the code."""
    job = submit("5000")
    slurm.wait_for_line(tmp_path / f"{job}.out", "did 20")
    for name in ("USR1", "USR1", "TERM", "USR2", "USR1"):
        subprocess.run(
            ["scancel", f"--signal={name}", "--batch", job], env=slurm.environ(), check=False, timeout=60
        )
    assert slurm.wait_until(job) == "FAILED"
    assert slurm.record(job)["ExitCode"] == "75:0"
    assert newest_step(tmp_path) == last_step(said(tmp_path, job)) + 1


def test_a_snapshot_on_request(submit, tmp_path):
    """SIGUSR2 is a save, and the training goes on."""
    job = submit("5000")
    slurm.wait_for_line(tmp_path / f"{job}.out", "did 20")
    slurm.signal(job, "USR2")
    slurm.until(lambda: (tmp_path / "run" / "latest").exists(), "a checkpoint")
    done = newest_step(tmp_path)
    slurm.wait_for_line(tmp_path / f"{job}.out", f"did {done + 20}")


def test_a_shell_in_between_is_told_of(submit, tmp_path):
    """A shell that keeps Slurm's signals from the training is named in one line, with what to write instead."""
    job = submit("30", start="python", lines=["#SBATCH --signal=B:USR1@100"])
    assert slurm.wait_until(job) == "COMPLETED"
    assert said(tmp_path, job).count("asks for --signal=B:USR1@100, which only the shell gets") == 1
    job = submit("60", start="python")
    assert slurm.wait_until(job) == "COMPLETED"
    text = said(tmp_path, job)
    assert text.count("a shell stands between Slurm and this process") == 1
    assert "Next: write `exec python …` or `srun python …`" in text
    (tmp_path / "called.sh").write_text('#!/bin/bash\npython "$@"\n')
    (tmp_path / "called.sh").chmod(0o755)
    job = submit("65", start="exec ./called.sh")
    assert slurm.wait_until(job) == "COMPLETED"
    assert said(tmp_path, job).count("a shell stands between Slurm and this process") == 1
    for start, lines in (("exec python", []), ("srun python", []), ("python", ["trap : TERM"])):
        job = submit("70", start=start, lines=lines)
        assert slurm.wait_until(job) == "COMPLETED"
        assert "warning" not in said(tmp_path, job)


# -- preemption, requeue, failures ---------------------------------------------------------------


def test_a_preempted_job_comes_back_and_goes_on(submit, tmp_path):
    """A job that makes room for another saves, is started again by Slurm, and ends like one training."""
    job = submit("400", "--partition=lowpri", "--requeue")
    slurm.wait_for_line(tmp_path / f"{job}.out", "did 20")
    other = slurm.preempt(job)
    slurm.wait_for_line(tmp_path / f"{job}.out", "is saved; ending with exit code 75")
    slurm.wait_until(other, "RUNNING")
    slurm.cancel(other)
    assert slurm.wait_until(job) == "COMPLETED"
    text = said(tmp_path, job)
    assert slurm.record(job)["Restarts"] == "1"
    assert "resumed from" in text
    assert_like_one_through(tmp_path, 400)


def test_a_requeued_job_takes_its_own_run_over(submit, tmp_path):
    """After scontrol requeue the job goes on from its save, without waiting for its former self."""
    job = submit("300")
    slurm.wait_for_line(tmp_path / f"{job}.out", "did 20")
    slurm.requeue(job)
    assert slurm.wait_until(job) == "COMPLETED"
    text = said(tmp_path, job)
    assert "SIGTERM: " in text
    assert "Waiting" not in text
    assert_like_one_through(tmp_path, 300)


def test_a_failure_is_not_queued_again(submit, tmp_path):
    """An exception ends the job for good, with Python's own code, however it was to continue."""
    job = submit("300 --fail-at=20", "--requeue", lines=["export HOLDFAST_CONTINUE=requeue"])
    assert slurm.wait_until(job) == "FAILED"
    fields = slurm.record(job)
    assert (fields["ExitCode"], fields["Restarts"]) == ("1:0", "0")
    assert "ArithmeticError: this step fails" in said(tmp_path, job)
    assert [end["why"] for end in ends(tmp_path)] == ["left"]


TOO_EARLY = """
import os, signal
import holdfast

run = holdfast.Run("run")
run.state["n"] = 0
for epoch in run.epochs(3):
    os.kill(os.getpid(), signal.SIGUSR1)  # a warning before the first batch, at each launch
    for batch in run.batches(range(10)):
        print("did one", flush=True)
"""


def test_a_job_that_gets_nowhere_is_left(submit, tmp_path):
    """A job whose launches make no progress is queued again three times, and then left with the reason."""
    (tmp_path / "early.py").write_text(TOO_EARLY)
    lines = ["export HOLDFAST_CONTINUE=requeue", "exec python early.py"]
    job = submit("", "--requeue", lines=lines)
    assert slurm.wait_until(job) == "FAILED"
    text = said(tmp_path, job)
    fields = slurm.record(job)
    assert (fields["ExitCode"], fields["Restarts"]) == ("75:0", "3")
    assert text.count("queued again (") == 3
    assert "is not queued again: it was started 4 times in a row without getting any further" in text
    assert "did one" not in text


# -- two at once -----------------------------------------------------------------------------------


def test_two_tasks_at_once(submit, tmp_path):
    """Of an array without %1 one task trains; the others leave before they harm anything, and name its job."""
    array = submit("150 --hold=go", "--array=1-3", "--output=%A-%a.out")
    slurm.until(lambda: list(slurm.tasks(array).values()).count("FAILED") == 2, "two tasks to be refused")
    (tmp_path / "go").touch()
    states = slurm.wait_for_array(array)
    assert sorted(states.values()) == ["COMPLETED", "FAILED", "FAILED"]
    (winner,) = [task for task, state in states.items() if state == "COMPLETED"]
    holder = slurm.record(f"{array}_{winner}")["JobId"]
    for task in set(states) - {winner}:
        text = slurm.text_of(tmp_path / f"{array}-{task}.out")
        assert f"Slurm job {holder}, array task {winner}" in text
        assert "only one process may write a run" in text
        assert "did 0" not in text
    assert_like_one_through(tmp_path, 150)


def test_several_tasks_of_one_srun_are_told_of_it(submit, tmp_path):
    """Of three tasks that one srun starts one trains, and the others are told that srun started them."""
    job = submit("60 --hold=go", "--ntasks=3", start="exec srun python")
    told = "so several tasks of one srun seem to run this script"
    slurm.until(lambda: said(tmp_path, job).count(told) == 2, "two refusals")
    (tmp_path / "go").touch()
    assert slurm.wait_until(job) == "FAILED"
    assert said(tmp_path, job).count("done: ") == 1
    assert_like_one_through(tmp_path, 60)


def test_a_task_waits_for_the_one_before_to_end(submit, tmp_path):
    """Slurm starts the next task while a cancelled one is still ending: it waits for that, and continues from it."""
    array = submit("200 --linger=9", "--array=1-2%1", "--output=%A-%a.out")
    slurm.wait_for_line(tmp_path / f"{array}-1.out", "did 20")
    slurm.cancel(f"{array}_1")
    assert slurm.wait_for_array(array) == {"1": "CANCELLED", "2": "COMPLETED"}
    text = slurm.text_of(tmp_path / f"{array}-2.out")
    assert "resumed from" in text
    assert_like_one_through(tmp_path, 200)


def test_the_second_waits_where_it_is_told_to(submit, tmp_path):
    """With wait= a job that comes too early waits for the run, then goes on with it."""
    first = submit("100 --hold=go")
    slurm.wait_for_line(tmp_path / f"{first}.out", "did 5")
    second = submit("150 --wait=120")
    slurm.wait_for_line(tmp_path / f"{second}.out", "Waiting up to")
    (tmp_path / "go").touch()
    assert slurm.wait_until(second) == "COMPLETED"
    text = said(tmp_path, second)
    assert f"Slurm job {first}" in text
    assert "(epoch 0, step 100 of 150 steps)" in text
    assert_like_one_through(tmp_path, 150)


def test_a_dead_job_on_another_node_is_taken_over_at_once(submit, tmp_path):
    """A job that was killed on a node that nobody can look into is dead as soon as Slurm says so."""
    # A pid namespace of its own is what another node is: its processes cannot be seen from outside.
    if subprocess.run(["unshare", "--pid", "--fork", "true"], check=False, capture_output=True).returncode:
        pytest.skip("this user may make no pid namespace")
    elsewhere = "exec unshare --pid --fork --kill-child --mount-proc python"
    first = submit("5000 --every=10", start=elsewhere)
    slurm.wait_for_line(tmp_path / f"{first}.out", "did 30")
    second = submit("60", start=elsewhere)
    assert slurm.wait_until(second) == "FAILED"
    assert "Slurm says that this job is running" in said(tmp_path, second)
    slurm.command("scancel", "--signal=KILL", "--full", first)
    slurm.wait_until(first)
    third = submit("60", start=elsewhere)
    assert slurm.wait_until(third) == "COMPLETED"
    assert "no sign of life" not in said(tmp_path, third)


# -- node-local scratch ----------------------------------------------------------------------------


def test_a_run_on_local_scratch_goes_on_on_another_node(submit, tmp_path):
    """A run in a node's own scratch, with a mirror that all nodes see, resumes on another node from the mirror."""
    (tmp_path / "shared").mkdir()
    words = '120 --every=10 --mirror=shared/run --run="$TMPDIR/run"'
    # What is local to a node here is a folder that no other node's job is given.
    lines = ["export TMPDIR=$PWD/scratch-$SLURMD_NODENAME", "mkdir -p $TMPDIR"]
    first = submit(words, "--nodelist=node1", lines=lines)
    slurm.wait_for_line(tmp_path / f"{first}.out", "did 40")
    slurm.signal(first, "USR1")
    assert slurm.wait_until(first) == "FAILED"
    shutil.rmtree(tmp_path / "scratch-node1")
    second = submit(words, "--nodelist=node2", lines=lines)
    assert slurm.wait_until(second) == "COMPLETED"
    text = said(tmp_path, second)
    assert "did 30" not in text
    assert re.search(r"resumed from \S+_step-0*4\d_", text)
    assert_like_one_through(tmp_path, 120, "scratch-node2/run")
    assert_like_one_through(tmp_path, 120, "shared/run")
