"""What `holdfast submit` writes, on a real Slurm: signals, exit codes, and trainings that go on until they are complete."""

import json
import os
import re
import subprocess
import sys
import textwrap

import pytest

import slurm

# Needs 2 seconds after a signal, as a save may.
SLOW = """
import os, signal, sys, time
came = []
for name in ("SIGTERM", "SIGUSR1", "SIGUSR2"):
    signal.signal(getattr(signal, name), lambda number, frame: came.append(signal.Signals(number).name))
print("begun, until", os.environ.get("SLURM_JOB_END_TIME"), flush=True)
while not {"SIGTERM", "SIGUSR1"} & set(came):
    time.sleep(0.02)
time.sleep(2)
print("saved after", *sorted(set(came)), flush=True)
sys.exit(75)
"""

# One training, as a user writes it; the goal may depend on the task.
TRAIN = """
import os, sys, time
import holdfast

class Loaded:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print("a framework was asked for", flush=True)

sys.meta_path.insert(0, Loaded())
goal, pause = sys.argv[1:3]
run = holdfast.Run("runs/digits", every=holdfast.Every(steps=5), keep=holdfast.Keep(last=2))
goal = int(goal) * int(os.environ["SLURM_ARRAY_TASK_ID"]) if sys.argv[3:] == ["task"] else int(goal)
for step in run.steps(goal):
    run.state["sum"] = run.state.get("sum", 0) + step
    time.sleep(float(pause))
run.close()
"""


@pytest.fixture
def submit(lab, tmp_path):
    """Submits a script of this name; what --json tells of it."""
    (tmp_path / "slow.py").write_text(SLOW)
    (tmp_path / "train.py").write_text(TRAIN)

    def call(*words, options=()):
        words = [
            sys.executable,
            "-m",
            "holdfast",
            "submit",
            "--json",
            "--allow-local",
            "--run",
            "runs/digits",
            *options,
            "--",
            *words,
        ]
        done = subprocess.run(
            words, cwd=tmp_path, env=slurm.environ(), capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return call


def interrupt(job):
    """SIGUSR1 to a batch script; of an array of which several tasks wait, scancel 22.05 delivers it and says that it failed."""
    slurm.command("scancel", "--signal=USR1", "--batch", job, check=False)


def ends(tmp_path):
    """Of each job that ended: (number, code, what it did last)."""
    (folder,) = (tmp_path / "runs" / "digits" / "submitted").iterdir()
    rows = [line.split() for line in slurm.text_of(folder / "ended").splitlines()]
    return [(int(row[0]), int(row[5]), row[6]) for row in rows]


def checkpoint(tmp_path):
    """The step and the sum of the newest checkpoint."""
    words = [sys.executable, "-m", "holdfast", "status", "runs/digits", "--json"]
    done = subprocess.run(
        words, cwd=tmp_path, env=slurm.environ(), capture_output=True, text=True, timeout=60, check=True
    )
    found = json.loads(done.stdout)
    import holdfast

    return found, holdfast.open(str(tmp_path / "runs" / "digits")).load(parts=["state"])["state"]["sum"]


@pytest.mark.parametrize(
    ("send", "state"),
    [
        (slurm.cancel, "CANCELLED"),
        (lambda job: slurm.signal(job, "USR1"), "COMPLETED"),
        (lambda job: slurm.signal(job, "TERM"), "COMPLETED"),
        (slurm.end_limit, "TIMEOUT"),
    ],
    ids=["scancel", "USR1 to the batch script", "TERM to the batch script", "time limit"],
)
def test_a_training_gets_the_time_that_its_save_needs(submit, tmp_path, send, state):
    """A command that takes 2 s after a signal gets them, whatever ends its job, and the job knows when its time is over."""
    (array,) = submit("python", "slow.py", options=["--tasks=2", "--time=5"])["jobs"]
    log = tmp_path / f"{array}-1.out"
    assert re.search(r"begun, until \d{10}\n", slurm.wait_for_line(log, "\n"))
    send(f"{array}_1")
    assert slurm.wait_until(f"{array}_1") == state
    # The next task, whose own number is that of the array, may begin before this one has quite ended.
    text = slurm.wait_for_line(log, "the next one continues")
    assert (
        f"saved after {'SIGUSR1' if send is not slurm.cancel and 'SIGUSR1' in text else 'SIGTERM'}\n" in text
    )
    assert re.search(r"begun, until \d{10}\n", slurm.wait_for_line(tmp_path / f"{array}-2.out", "\n"))
    assert ends(tmp_path)[0] == (1, 75, "command")


def test_a_job_that_is_preempted_saves_and_comes_back(submit, tmp_path):
    """A job that makes place for another gets the time that its save needs, is queued again, and its log goes on."""
    (job,) = submit("python", "slow.py", options=["--chain=1", "--time=5", "--partition=lowpri"])["jobs"]
    log = tmp_path / f"{job}.out"
    slurm.wait_for_line(log, "begun")
    other = slurm.preempt(job)
    slurm.wait_for_line(log, "saved after SIGTERM")
    slurm.wait_until(other, "RUNNING")
    slurm.cancel(other)
    assert slurm.until(lambda: slurm.text_of(log).count("begun") == 2, "it to begin again")
    assert ends(tmp_path) == [(1, 75, "command")]


def test_the_last_task_says_that_the_training_is_not_complete(submit, tmp_path):
    """The last task of an array keeps exit code 75, since nothing continues after it."""
    (array,) = submit("python", "slow.py", options=["--tasks=1", "--time=5"])["jobs"]
    slurm.wait_for_line(tmp_path / f"{array}-1.out", "begun")
    slurm.signal(f"{array}_1", "USR1")
    assert slurm.wait_until(f"{array}_1") == "FAILED"
    assert slurm.record(f"{array}_1")["ExitCode"] == "75:0"


def test_srun_as_the_command(submit, tmp_path):
    """A command that srun starts is told as well, and its code is passed on."""
    first, second = submit("srun", "python", "slow.py", options=["--chain=2", "--time=5"])["jobs"]
    slurm.wait_for_line(tmp_path / f"{first}.out", "begun")
    slurm.cancel(first)
    assert slurm.wait_until(first) == "CANCELLED"
    assert "saved after SIGTERM" in slurm.wait_for_line(tmp_path / f"{first}.out", "the next one continues")
    slurm.wait_for_line(tmp_path / f"{second}.out", "begun")
    assert ends(tmp_path) == [(1, 75, "command")]


def test_tasks_continue_one_training_until_it_is_complete(submit, tmp_path):
    """With a fixed goal the tasks of an array continue one training; once two have asked for it, the others end without beginning."""
    (array,) = submit("python", "train.py", "60", "0.05", options=["--tasks=5", "--time=5"])["jobs"]
    slurm.wait_for_line(tmp_path / f"{array}-1.out", "new run")
    slurm.until(
        lambda: any("_step-" in name for name in os.listdir(tmp_path / "runs" / "digits")), "a checkpoint"
    )
    interrupt(f"{array}_1")
    assert set(slurm.wait_for_array(array).values()) == {"COMPLETED"}
    assert ends(tmp_path) == [(1, 75, "command"), (2, 0, "command"), *((n, 0, "gate") for n in (3, 4, 5))]
    assert "60 steps are reached, and tasks 1 and 2 asked for no more. Nothing to do." in slurm.text_of(
        tmp_path / f"{array}-3.out"
    )
    found, total = checkpoint(tmp_path)
    assert (found["complete"], found["step"], total) == (True, 60, sum(range(60)))
    assert [task["why"] for task in found["tasks"]] == [
        "SIGUSR1, its place is saved",
        "complete",
        *["nothing to do"] * 3,
    ]
    # What the script does not import, no task imports: those that find the goal reached least of all.
    said = [slurm.text_of(tmp_path / f"{array}-{number}.out") for number in range(1, 6)]
    assert not any("a framework was asked for" in text for text in said)


def test_the_jobs_of_a_chain_continue_one_training(submit, tmp_path):
    """Each job of a chain begins when the one before has ended, goes on where it stopped, and the last finds nothing to do."""
    jobs = submit("python", "train.py", "60", "0.05", options=["--chain=3", "--time=5"])["jobs"]
    slurm.wait_for_line(tmp_path / f"{jobs[0]}.out", "new run")
    slurm.until(
        lambda: any("_step-" in name for name in os.listdir(tmp_path / "runs" / "digits")), "a checkpoint"
    )
    interrupt(jobs[0])
    assert [slurm.wait_until(job) for job in jobs] == ["COMPLETED"] * 3
    assert ends(tmp_path) == [(1, 75, "command"), (2, 0, "command"), (3, 0, "gate")]
    assert "resumed from" in slurm.text_of(tmp_path / f"{jobs[1]}.out")
    found, total = checkpoint(tmp_path)
    assert (found["complete"], found["step"], total) == (True, 60, sum(range(60)))


def test_a_goal_that_depends_on_the_task(submit, tmp_path):
    """With 20 steps more in each task, as with run.steps(20 * task), each task trains its part."""
    (array,) = submit("python", "train.py", "20", "0.001", "task", options=["--tasks=3", "--time=5"])["jobs"]
    assert set(slurm.wait_for_array(array).values()) == {"COMPLETED"}
    assert ends(tmp_path) == [(1, 0, "command"), (2, 0, "command"), (3, 0, "command")]
    found, total = checkpoint(tmp_path)
    assert (found["step"], total) == (60, sum(range(60)))


def test_one_job_requeues_itself_until_the_training_is_complete(submit, tmp_path):
    """With --requeue the job is queued again after an interruption, under its number and with its log, and ends when all is done."""
    (job,) = submit("python", "train.py", "60", "0.1", options=["--requeue", "--time=5"])["jobs"]
    slurm.until(
        lambda: (
            os.path.exists(tmp_path / "runs/digits/run.json")
            and any("_step-" in name for name in os.listdir(tmp_path / "runs" / "digits"))
        ),
        "a checkpoint",
    )
    slurm.signal(job, "USR1")
    assert slurm.wait_until(job) == "COMPLETED"
    assert slurm.record(job)["Restarts"] == "1"
    text = slurm.text_of(tmp_path / f"{job}.out")
    assert text.index("queued again") < text.index("resumed from")
    assert checkpoint(tmp_path)[1] == sum(range(60))


def test_a_training_that_fails_again_and_again_is_given_up(submit, tmp_path):
    """After three failures in a row the other tasks do not begin, and each failure is a failure to Slurm."""
    (array,) = submit("python", "-c", "raise SystemExit('broken')", options=["--tasks=5", "--time=5"])["jobs"]
    assert set(slurm.wait_for_array(array).values()) == {"FAILED"}
    assert ends(tmp_path) == [*((n, 1, "command") for n in (1, 2, 3)), (4, 1, "gate"), (5, 1, "gate")]
    assert "the last 3 jobs failed (exit codes 1, 1, 1)" in slurm.text_of(tmp_path / f"{array}-5.out")


def test_any_argument_and_option_arrives(submit, tmp_path):
    """Arguments and options with spaces, quotes, line breaks, $ and other alphabets arrive as they were given."""
    words = ["it's", 'a "b"', "$HOME `id`", "two\r\nlines", "", "é語", "#x"]
    show = "import json, os, sys; print(json.dumps([sys.argv[1:], os.getcwd()]))"
    (job,) = submit(
        "python",
        "-c",
        show,
        *words,
        options=["--chain=1", "-t", "5", "--comment", 'a "b" # c\\', "-J", "it's a name"],
    )["jobs"]
    assert slurm.wait_until(job) == "COMPLETED"
    assert json.loads(slurm.text_of(tmp_path / f"{job}.out")) == [words, str(tmp_path)]
    text = slurm.command("scontrol", "show", "job", job)
    assert 'Comment=a "b" # c\\' in text
    assert "JobName=it's a name" in text


def test_what_sbatch_refuses_leaves_nothing_behind(lab, tmp_path):
    """The words of the real sbatch reach the user, and neither a run nor a job is left."""
    words = [
        sys.executable,
        "-m",
        "holdfast",
        "submit",
        "--allow-local",
        "--run",
        "r",
        "-t",
        "5",
        "--mem=99T",
        "--",
        "true",
    ]
    done = subprocess.run(
        words, cwd=tmp_path, env=slurm.environ(), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 13
    assert "sbatch: error: " in done.stderr
    assert not (tmp_path / "r").exists()
    assert slurm.command("squeue", "-h") == ""


def test_the_partition_may_have_a_time_limit(lab, tmp_path):
    """Without --time the DefaultTime of the partition counts, and a partition that is not there is none."""
    words = [sys.executable, "-m", "holdfast", "submit", "--allow-local", "--run", "r", "--print"]

    def printed(*options):
        done = subprocess.run(
            [*words, *options, "--", "true"],
            cwd=tmp_path,
            env=slurm.environ(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done.returncode, done.stderr

    assert printed() == (0, "")
    assert printed("-p", "gpu") == (0, "")
    code, said = printed("-p", "nowhere")
    assert (code, textwrap.shorten(said, 40)) == (2, "holdfast: error: There is no time [...]")
