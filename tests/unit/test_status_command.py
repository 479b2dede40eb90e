"""`holdfast status` as a user calls it: one screen, whatever is known and whoever answers."""

import contextlib
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from cli_runs import call, call_json, checkpoints, make_run
from submit_cluster import submit

import holdfast
from holdfast import Keep, files
from holdfast.cli import screen as drawing
from holdfast.jobs import record, rivals, standing
from holdfast.store import book

RECORD = """\
JobId={id} ArrayJobId=100 ArrayTaskId={task} JobName=digits
   JobState={state} Reason=None Dependency=(null)
   Requeue=1 Restarts=0 ExitCode=0:0
   StartTime={start} EndTime={end} Deadline=N/A
   Command={command}
   StdOut={log}

"""


@pytest.fixture
def laptop(tmp_path, monkeypatch):
    """A machine without Slurm, and in none of its jobs."""
    folder = tmp_path / "nothing"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    for name in list(os.environ):
        if name.startswith(("SLURM", "HOLDFAST")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def train(path, goal, epochs, **more):
    """A training that is left after some epochs."""
    run = holdfast.Run(path, keep=Keep(metric="accuracy", mode="max"), note="a note", **more)
    for epoch in run.epochs(goal):
        if epoch == epochs:
            break
        for _ in run.batches(list(range(4))):
            run.state["w"] = np.zeros(2)
        run.log(accuracy=epoch / 10, loss=1 / (epoch + 1))
    run.close()


def shown(*words):
    result = call("status", *words, env={"COLUMNS": "100"})
    assert result.exit_code == 0, result.stderr
    return result.stdout


def line(text, name):
    return next((line[len(name) :].strip() for line in text.splitlines() if line.startswith(name)), None)


# -- without Slurm -----------------------------------------------------------------------------------


def test_a_run_on_a_laptop(laptop):
    """Progress, metrics, last save and lease are shown where there is no Slurm, and nothing of jobs."""
    train("digits", 10, 3)
    text = shown("digits")
    assert text.startswith("digits: a note\n")
    assert line(text, "progress").endswith("30 % epoch 3 of 10, step 12")
    assert line(text, "accuracy") == "▁▅█ 0.2, best 0.2 at epoch 3"
    assert line(text, "loss").endswith("0.33333")
    assert "s ago" in line(text, "saved")
    assert line(text, "lease") == "held by nobody"
    assert line(text, "jobs") is None
    assert line(text, "Slurm") is None


def test_a_complete_run(laptop):
    """A run that has reached its goal is complete, and expects neither a save nor an end."""
    train("digits", 3, 9)
    text = shown("digits")
    assert line(text, "progress") == "complete: epoch 3 of 3, step 12"
    assert line(text, "complete") is None
    assert "next" not in line(text, "saved")
    found = call_json("status", "digits")
    assert (found["complete"], found["fraction"], found["next_save"], found["remaining"]) == (
        True,
        1.0,
        None,
        None,
    )


def test_a_rewound_run_is_not_complete(laptop):
    """After a rewind the place and the state are those of the checkpoint that a launch resumes from."""
    train("digits", 3, 9)
    assert call("rewind", "digits", "@epoch=1").exit_code == 0
    assert "33 % epoch 1 of 3" in line(shown("digits"), "progress")


def test_a_run_that_lost_its_last_checkpoint_is_not_complete(laptop):
    """Whether a run is complete is read off the checkpoint that a launch resumes from, not off what run.json remembers."""
    train("digits", 3, 9)
    shutil.rmtree(checkpoints("digits")[-1])
    assert call_json("status", "digits")["complete"] is False
    for path in checkpoints("digits"):
        shutil.rmtree(path)
    assert line(shown("digits"), "progress") == "nothing saved yet, of 3 epochs"
    assert call_json("status", "digits")["complete"] is False


def test_who_holds_the_lease(laptop):
    """A training that runs is named with its process."""
    run = holdfast.Run("digits")
    run.resume()
    run.save(step=1, wait=True)
    assert f"held by pid {os.getpid()} on " in line(shown("digits"), "lease")
    found = call_json("status", "digits")
    assert found["holder_life"] == "ours"  # of another process it is "alive"
    run.close()
    assert call_json("status", "digits")["holder"] is None


def test_status_writes_nothing(laptop):
    """Looking changes nothing in the run: no file, no time of a change."""
    train("digits", 10, 3)

    def everything():
        return {
            (folder, name): os.lstat(os.path.join(folder, name)).st_mtime_ns
            for folder, folders, files in os.walk("digits")
            for name in [".", *folders, *files]
        }

    before = everything()
    shown("digits")
    call_json("status", "digits")
    assert everything() == before


@pytest.mark.parametrize(("name", "code"), [("nothing-there", 4), ("file", 6)])
def test_what_is_no_run(laptop, name, code):
    """A place that is no run is an error of its kind, and nothing is made there."""
    with open("file", "w"):
        pass
    assert call("status", name).exit_code == code
    assert not os.path.exists("nothing-there")


def test_a_checkpoint_is_no_run(laptop):
    """For a checkpoint the command that shows it is named."""
    result = call("status", checkpoints(make_run("digits"))[0])
    assert result.exit_code == 2
    assert "holdfast show" in result.stderr


def test_a_name_cannot_steer_the_terminal(laptop):
    """Notes and names of metrics reach the screen without control characters."""
    run = holdfast.Run("digits", note="\x1b[2Jbad\x07")
    run.resume()
    run.save(step=1, metrics={"lo\x1bss": 1.0}, wait=True)
    run.close()
    text = shown("digits")
    assert "\x1b" not in text
    assert "\x07" not in text


def test_very_many_checkpoints_are_not_read(laptop, monkeypatch):
    """Of a run with very many checkpoints only the newest manifest is read."""
    make_run("digits", 30)
    newest = checkpoints("digits")[-1]
    read = []
    real = files.read_file
    monkeypatch.setattr(
        files, "read_file", lambda path, *more, **most: read.append(str(path)) or real(path, *more, **most)
    )
    assert "step 300" in shown("digits")
    manifests = {path for path in read if path.endswith("checkpoint.json")}
    assert manifests == {os.path.join(os.path.abspath(newest), "checkpoint.json")}


# -- with Slurm -----------------------------------------------------------------------------------------


@pytest.fixture
def submitted(cluster):
    """An array of four tasks that was submitted; its submission."""
    assert submit("--tasks", "4", "-t", "10").exit_code == 0
    (kept,) = record.submissions("runs/digits")
    return kept


def put(cluster, *tasks, command="(null)"):
    now = int(time.time())
    cluster.write(
        "job-100",
        "".join(
            RECORD.format(
                id=100 + n,
                task=task,
                state=state,
                start=now - 60,
                end=now + 540,
                log=f"{os.getcwd()}/100-{task}.out",
                command=command,
            )
            for n, (task, state) in enumerate(tasks, 1)
        ),
    )


def test_a_training_that_has_not_begun(cluster, submitted):
    """A run that was only submitted shows its jobs, before there is a run.json."""
    put(cluster, ("1-4%1", "PENDING"))
    text = shown("runs/digits")
    assert line(text, "progress") == "nothing saved yet"
    assert line(text, "jobs") == f"4 to come (submission {submitted.id})"
    assert text.splitlines()[-1].split() == ["1-4", "to", "come"]
    assert not os.path.exists("runs/digits/run.json")


def test_tasks_and_their_logs(cluster, submitted):
    """Each task is shown with its state, its log and why; the job that runs with the time that is left."""
    with open(f"runs/digits/submitted/{submitted.id}/ended", "w") as file:
        file.write("1 101 0 1000 1010 75 command\n2 102 0 1010 1020 1 command\n")
    put(cluster, ("3", "RUNNING"), ("4%1", "PENDING"))
    text = shown("runs/digits")
    assert line(text, "now").startswith("100_3 runs, 9 min left, until ")
    assert line(text, "jobs").startswith("1 done, 1 failed, 1 running, 1 to come")
    rows = [row.split(maxsplit=1) for row in text.splitlines()[-4:]]
    assert [row[0] for row in rows] == ["1", "2", "3", "4"]
    assert "100-1.out" in rows[0][1]
    assert rows[0][1].endswith("interrupted, its place is saved")
    assert rows[1][1].endswith("exit code 1")
    assert rows[2][1].startswith("running")
    found = call_json("status", "runs/digits")
    assert found["counts"] == {"done": 1, "failed": 1, "running": 1, "waiting": 1}
    assert found["tasks"][2]["ends"] is not None


def test_a_job_of_the_same_number_elsewhere_is_not_ours(cluster, submitted):
    """On another cluster, or after numbers began anew, the job of that number runs another script: nothing is said of it."""
    script = f"{os.getcwd()}/runs/digits/submitted/{submitted.id}/script.sh"
    for command, state in ((script, "running"), ("/data/eve/job.sh", "unknown")):
        put(cluster, ("1", "RUNNING"), command=command)
        assert call_json("status", "runs/digits")["tasks"][0]["state"] == state
        assert len(rivals.queued("runs/digits")) == (state == "running")


def test_slurm_has_forgotten(cluster, submitted):
    """When Slurm does not know the jobs any more, their ends are told from what they wrote themselves."""
    with open(f"runs/digits/submitted/{submitted.id}/ended", "w") as file:
        file.write("".join(f"{n} {100 + n} 0 1000 1010 0 command\n" for n in (1, 2, 4)))
    text = shown("runs/digits")
    assert line(text, "jobs").startswith("3 done, 1 unknown")
    assert line(text, "Slurm") is None


@pytest.mark.parametrize("how", ["fails", "is silent", "is missing"])
def test_slurm_does_not_answer(cluster, submitted, monkeypatch, how):
    """When the controller is down, hangs or has no command here, one line says so, and the rest is shown."""
    if how == "is missing":
        cluster.remove("scontrol")
    else:
        command = "exec /bin/sleep 30" if how == "is silent" else "echo cannot contact >&2; exit 1"
        cluster.write("scontrol", f"#!/bin/sh\n{command}\n")
        monkeypatch.setattr("holdfast.slurm.commands.PATIENCE", 0.3)
    make_run("runs/digits")
    text = shown("runs/digits")
    assert {"fails": "cannot contact", "is silent": "gave no answer", "is missing": "no scontrol"}[
        how
    ] in line(text, "Slurm")
    assert "step 40" in line(text, "progress")
    assert line(text, "jobs").startswith("4 to come")
    assert call_json("status", "runs/digits")["slurm"] != "answered"


def test_a_submission_that_cannot_be_read_is_passed_over(cluster, submitted):
    """What is no submission in the folder, or a broken one, does not keep the rest from being shown."""
    os.makedirs("runs/digits/submitted/99990101T000000Z-aaaa")
    with open("runs/digits/submitted/99990101T000000Z-aaaa/submission.json", "w") as file:
        file.write("{}")
    with open("runs/digits/submitted/stray", "w"):
        pass
    assert submitted.id in line(shown("runs/digits"), "jobs")


# -- what is to be expected ----------------------------------------------------------------------------


def history(run, *events):
    """Writes a history of (event, seconds ago, facts)."""
    lines = []
    for kind, ago, facts in events:
        when = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(time.time() - ago))
        lines.append(json.dumps({"time": when, "event": kind, **facts}) + "\n")
    with open(os.path.join(run, book.HISTORY_FILE), "w") as file:
        file.writelines(lines)


def shown_in(seconds, run):
    """The screen in so many seconds from now."""
    now = time.time() + seconds
    return "\n".join(drawing.screen(standing.stand(run, now=now), run, now))


def saved_twenty_apart(run):
    """The saves of a run as of now, in its history's terms: 20 s and ten steps apart."""
    made = checkpoints(run)
    return [
        ("save", 20 * (len(made) - n), {"name": os.path.basename(path)}) for n, path in enumerate(made, 1)
    ]


def test_the_end_is_expected_from_the_pace(cluster, submitted):
    """Pace, next save, end and the jobs that are still needed follow from the last saves and the time that is left."""
    run = make_run("runs/digits")
    saves = [
        ("save", 80 - 20 * n, {"name": os.path.basename(path)}) for n, path in enumerate(checkpoints(run), 1)
    ]
    goal = {"kind": "steps", "value": 540}
    history(
        run,
        ("launch", 90, {"goal": goal, "slurm": {"job": "101", "array": "100", "task": 1}}),
        ("start", 80, {}),
        *saves,
    )
    put(cluster, ("1", "RUNNING"), ("2-4%1", "PENDING"))
    text = shown("runs/digits")
    assert line(text, "pace") == "180 epochs/h, 0.5 steps/s"
    # 500 steps at 0.5 a second are 1000 s; 540 s are left of a job of 600 s.
    assert line(text, "complete").startswith("in about 17 min, ")
    assert line(text, "complete").endswith("; 1 more job of this length")
    assert "; the next one in about 20 s" in line(text, "saved") or "in about 19 s" in line(text, "saved")
    found = call_json("status", "runs/digits")
    assert found["steps_per_second"] == pytest.approx(0.5)
    assert found["more_tasks"] == 1
    put(cluster, ("1", "COMPLETED"), ("2-4%1", "PENDING"))
    assert "after about 17 min more of training" in line(shown("runs/digits"), "complete")


def test_time_in_the_queue_is_not_training(cluster, submitted):
    """After hours in the queue a job has all of the way before it: neither its next save nor the end is overdue."""
    run = make_run("runs/digits")
    goal = {"kind": "steps", "value": 540}
    first, second = ({"job": job, "array": "100", "task": task} for job, task in (("101", 1), ("102", 2)))
    before = [
        ("launch", 90, {"goal": goal, "slurm": first}),
        ("start", 80, {}),
        *saved_twenty_apart(run),
        ("end", 0, {"why": "time limit", "slurm": first}),
    ]
    put(cluster, ("1", "COMPLETED"), ("2", "RUNNING"), ("3-4%1", "PENDING"))
    for since in ([], [("launch", -7200, {"goal": goal, "slurm": second})]):  # still loading; in its loop
        history(run, *before, *since)
        text = shown_in(7200, run)
        assert line(text, "complete").startswith("in about 17 min, ")
        assert re.search(r"; the next one in about (19|20) s$", line(text, "saved"))


def test_a_training_by_hand_while_jobs_wait(cluster, submitted):
    """A training that somebody started himself gets on, though all jobs of the last submission still wait."""
    put(cluster, ("1-4%1", "PENDING"))
    run = holdfast.Run("runs/digits", every=holdfast.Every(steps=1))
    for step in run.steps(100_000):
        time.sleep(0.02)
        if step == 5:
            break
    text = shown("runs/digits")
    run.close()
    assert re.match(r"in about \d+ (s|min|h), ", line(text, "complete"))
    assert line(shown("runs/digits"), "complete").startswith("after about ")


@pytest.mark.parametrize(("later", "save"), [(70, "is due"), (620, "was due 10 min ago")])
def test_what_is_overdue_is_said_to_be(cluster, submitted, later, save):
    """Where save and end were expected earlier, they are told as that, and not as a matter of no time."""
    run = make_run("runs/digits")
    goal = {"kind": "steps", "value": holdfast.open(run).progress.step + 10}
    history(
        run,
        ("launch", 90, {"goal": goal, "slurm": {"job": "101", "array": "100", "task": 1}}),
        ("start", 80, {}),
        *saved_twenty_apart(run),
    )
    put(cluster, ("1", "RUNNING"), ("2-4%1", "PENDING"))
    text = shown_in(later, run)
    assert line(text, "saved").endswith(f"; the next one {save}")
    assert re.match(r"at any moment: it was expected \d+ (s|min) ago, ", line(text, "complete"))
    assert "is enough" not in line(text, "complete")


def test_a_screen_fits_its_width(cluster, submitted, monkeypatch):
    """No line of the tables is wider than the terminal, for long names, too."""
    monkeypatch.setenv("COLUMNS", "80")
    with open(f"runs/digits/submitted/{submitted.id}/ended", "w") as file:
        file.write("1 101 0 1000 1010 1 setup\n")
    made = drawing.screen(standing.stand("runs/digits"), "runs/digits", time.time())
    assert max(map(len, made)) <= 80


def test_many_tasks_are_told_in_few_lines(cluster):
    """Of very many tasks those that went wrong and the newest are shown, those to come in one line."""
    assert submit("--tasks", "400", "-t", "10").exit_code == 0
    (kept,) = record.submissions("runs/digits")
    with open(f"runs/digits/submitted/{kept.id}/ended", "w") as file:
        file.writelines(f"{n} {n} 0 1 2 {1 if n == 7 else 75} command\n" for n in range(1, 200))
    put(cluster, ("200-400%1", "PENDING"))
    text = shown("runs/digits")
    assert len(text.splitlines()) < 32
    assert "exit code 1" in text
    assert "200-400  to come" in text
    assert "180 more before them, done" in text


# -- again and again ---------------------------------------------------------------------------------


def test_json_is_not_watched(laptop):
    """--json and --watch exclude one another."""
    make_run("digits")
    assert call("status", "--json", "--watch", "1", "digits").exit_code == 2


def watch_until(words, count, **environ):
    """Watches on a terminal until these words were shown so often, then presses Ctrl-C; all that it showed."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "holdfast", "status", "digits", "--watch", "0.2"],
        stdin=follower,
        stdout=follower,
        stderr=subprocess.PIPE,
        env={**os.environ, "COLUMNS": "100", "LINES": "40", "PYTHONUTF8": "1", **environ},
    )
    os.close(follower)
    seen = b""
    while seen.count(words) < count:
        seen += os.read(leader, 4096)
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(OSError):  # how a terminal says that nobody writes to it any more
        while piece := os.read(leader, 4096):
            seen += piece
    os.close(leader)
    assert (process.wait(60), process.stderr.read()) == (0, b"")
    process.stderr.close()
    return seen


def test_watch_ends_by_ctrl_c_with_a_clean_screen(laptop, tmp_path):
    """--watch draws on a screen of its own, in the same letters each time; Ctrl-C leaves the last picture and code 0."""
    make_run("digits")
    seen = watch_until(b"lease", 3, TERM="xterm")
    assert seen.count(b"\x1b[?1049h") == seen.count(b"\x1b[?1049l") == 1
    before, _, after = seen.rpartition(b"\x1b[?1049l")
    assert b"progress" in after
    assert b"lease" in after
    assert before.count("█".encode()) >= 3 and b"@" not in seen


def test_watch_on_a_plain_terminal_is_plain(laptop):
    """A terminal that can only print gets one picture after another, as a pipe does."""
    make_run("digits")
    seen = watch_until(b"digits: a note", 2, TERM="dumb")
    assert b"\x1b" not in seen


def test_watch_into_a_pipe_is_plain(laptop):
    """Into a pipe --watch writes one plain picture after another."""
    make_run("digits")
    process = subprocess.Popen(
        [sys.executable, "-m", "holdfast", "status", "digits", "--watch=0.2"],
        stdout=subprocess.PIPE,
        text=True,
    )
    lines = [process.stdout.readline() for _ in range(12)]
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    process.stdout.close()
    assert lines.count("digits: a note\n") >= 2
    assert "\x1b" not in "".join(lines)
