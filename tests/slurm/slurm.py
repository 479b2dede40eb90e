"""A private Slurm for this process, and what tests ask of it; `conftest.py` starts and stops it.

A job is named as Slurm's commands name it: ``42``, or ``40_3`` for a task of an array. Each command
has a limit of time.
"""

import os
import random
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time

import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
UP, DOWN = os.path.join(HERE, "lab", "up.sh"), os.path.join(HERE, "lab", "down.sh")
NODES = ("node1", "node2")
ENDED = frozenset(
    ["CANCELLED", "COMPLETED", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT"]
)
_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "squeue", "scancel", "srun")
_SYSTEM = ":/usr/local/sbin:/usr/sbin:/sbin"
_lab = {}  # its place, and the process that stops it: of each process that runs tests one


# -- the lab itself ------------------------------------------------------------------------------------


def lacking():
    """What this machine lacks for a Slurm of its own; empty when it lacks nothing."""
    if sys.platform != "linux":
        return "a private Slurm takes Linux"
    path = os.environ.get("PATH", "") + _SYSTEM
    missing = [name for name in _PROGRAMS if shutil.which(name, path=path) is None]
    return f"not installed: {', '.join(missing)} (Debian's slurm-wlm and munge)" if missing else ""


def start(**settings):
    """Starts a Slurm in a temporary folder, on ports that are free; `settings` are those of up.sh."""
    for _ in range(5):
        # Short, because a socket lies in it whose path may have 107 bytes.
        place = tempfile.mkdtemp(prefix="holdfast-slurm-")
        # It stops the Slurm when its input ends: also when these tests are killed, interrupted or out of time.
        guard = subprocess.Popen(
            ["sh", "-c", 'cat >/dev/null; exec "$0" "$1" --wipe', DOWN, place],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        _lab.update(place=place, guard=guard)
        port = _free_ports(len(NODES) + 1)
        done = subprocess.run(
            [UP, place],
            env={**_outside(), "LAB_PORT": str(port), "LAB_NODES": str(len(NODES)), **settings},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if done.returncode == 0:
            return
        stop()
        if "is taken" not in done.stderr:  # else somebody was quicker; there are other ports
            break
    pytest.fail(f"no Slurm could be started:\n{done.stderr}", pytrace=False)


def stop():
    """Stops it, and all its jobs."""
    guard = _lab.pop("guard")
    guard.stdin.close()
    guard.wait(60)
    _lab.clear()


def _free_ports(number):
    """The first of so many free ports, below those that the system gives to connections."""
    while True:
        first = random.SystemRandom().randrange(20000, 32000)
        try:
            for port in range(first, first + number):
                with socket.socket() as probe:
                    probe.bind(("", port))
        except OSError:
            continue
        return first


def _outside():
    """This environment without the job that the tests themselves may run in."""
    environ = {name: value for name, value in os.environ.items() if not re.match("SLURM|SBATCH|SQUEUE", name)}
    return {**environ, "PATH": environ.get("PATH", "") + _SYSTEM}


def environ(**variables):
    """The environment in which Slurm's commands find this Slurm, and scripts this Python."""
    outside = _outside()
    path = os.path.dirname(sys.executable) + ":" + outside["PATH"]
    return {**outside, "PATH": path, "SLURM_CONF": f"{_lab['place']}/etc/slurm.conf", **variables}


def command(*words, cwd=None, check=True, **variables):
    """What one of Slurm's commands printed."""
    done = subprocess.run(
        words,
        cwd=cwd,
        env=environ(**variables),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0 or not check, f"{' '.join(words)}: {done.stderr}"
    return done.stdout


# -- jobs ------------------------------------------------------------------------------------------------


def sbatch(script, *options, cwd, **variables):
    """Submits a script, a path or its text; the number of the job."""
    if "\n" in script:
        path = os.path.join(cwd, "job.sh")
        with open(path, "w", encoding="utf-8") as file:
            file.write(script)
        script = path
    return command("sbatch", "--parsable", *options, script, cwd=cwd, **variables).strip()


def record(job):
    """What `scontrol show job` says of a job, as a dict of its fields."""
    text = command("scontrol", "-o", "show", "job", job).splitlines()
    # For the number of an array come all of its tasks.
    line = next(line for line in text if "_" in job or line.startswith(f"JobId={job} "))
    return dict(re.findall(r"(\S+?)=(\S*)", line))


def state(job):
    return record(job)["JobState"]


def tasks(array):
    """The states of an array's tasks by their number; those that wait together are one entry, such as ``4-10%1``."""
    lines = command("scontrol", "-o", "show", "job", array).splitlines()
    found = [dict(re.findall(r"(\S+?)=(\S*)", line)) for line in lines if line]
    return {fields["ArrayTaskId"]: fields["JobState"] for fields in found}


def until(condition, what, patience=150):
    """Waits until `condition()` is true, and gives what it gave; fails when patience is at its end."""
    end = time.monotonic() + patience
    while not (result := condition()):
        if time.monotonic() > end:
            queue = command("squeue", "-a", check=False)
            pytest.fail(f"gave up waiting for {what}:\n{queue}", pytrace=False)
        time.sleep(0.2)
    return result


def wait_until(job, *states):
    """Waits until a job is in one of these states, by default until it has ended; which one it is."""
    wanted = frozenset(states) or ENDED
    return until(lambda: (found := state(job)) in wanted and found, f"{job} to be {' or '.join(wanted)}")


def wait_for_array(array):
    """Waits until all tasks of an array have ended; their states by number."""
    return until(lambda: (found := tasks(array)) and set(found.values()) <= ENDED and found, f"array {array}")


def wait_for_line(path, words):
    """Waits until a file has these words; its whole text."""

    def read():
        text = text_of(path)
        return text if words in text else ""

    return until(read, f"“{words}” in {path}")


def text_of(path):
    """What a file holds; nothing while there is none."""
    if not os.path.exists(path):
        return ""
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


def output_of(job):
    """What a job wrote, to its standard output and to its standard error."""
    fields = record(job)
    return "".join(text_of(path) for path in dict.fromkeys([fields["StdOut"], fields["StdErr"]]))


# -- what befalls them ---------------------------------------------------------------------------------


def cancel(job):
    command("scancel", job)


def signal(job, name):
    """Sends a signal as `--signal=B:NAME@60` does: to the batch script's first process."""
    # Of a task of an array Slurm says, when it has sent it, that it cannot be sent yet; after 5 seconds
    # scancel would send it again.
    command("timeout", "3", "scancel", f"--signal={name}", "--batch", job, check=False)


def requeue(job):
    """Ends a job and lets it start again, as an administrator does, or Slurm for another job."""
    command("scontrol", "requeue", job)


def end_limit(job):
    """Lets the time limit of a running job end in 5 seconds; Slurm looks at it twice a minute."""
    command("scontrol", "update", f"JobId={job}", "EndTime=now+5")


def preempt(job):
    """Submits a job of more weight that needs the whole node of a job in ``lowpri``; its number."""
    node = record(job)["NodeList"]
    options = (f"--nodelist={node}", "--partition=hipri", "--exclusive", "--output=/dev/null", "--time=5")
    return command("sbatch", "--parsable", *options, "--wrap=exec sleep 300", cwd="/").strip()


def fail_node(node):
    """A node breaks: its slurmd is gone, and the controller told; what ran there runs on, unseen."""
    with open(f"{_lab['place']}/pid/slurmd-{node}.pid", encoding="ascii") as file:
        os.kill(int(file.read()), 9)
    command("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=broken")


def mend_node(node):
    """The node comes back, empty."""
    for name in filter(str.isdecimal, os.listdir("/proc")):
        with_job = _environment(name)
        if with_job.get("SLURMD_NODENAME") == node and with_job["SLURM_CONF"].startswith(_lab["place"]):
            os.kill(int(name), 9)
    command("slurmd", "-N", node)
    until(lambda: "idle" in command("sinfo", "-h", "-n", node, "-o", "%T"), f"{node} to be idle")


def _environment(pid):
    try:
        with open(f"/proc/{pid}/environ", encoding="utf-8", errors="replace") as file:
            return dict(line.split("=", 1) for line in file.read().split("\0") if "=" in line)
    except OSError:
        return {}


def clear():
    """Ends all jobs at once."""
    if command("squeue", "-h"):
        command("scancel", "--signal=KILL", "--full", "--user", str(os.getuid()), check=False)
        command("scancel", "--user", str(os.getuid()), check=False)
        until(lambda: not command("squeue", "-h"), "the queue to be empty")


def stop_controller():
    """The controller is gone; jobs run on."""
    with open(f"{_lab['place']}/pid/slurmctld.pid", encoding="ascii") as file:
        pid = int(file.read())
    os.kill(pid, 15)
    # Not every init reaps at once, so that the process may stay as a zombie; its file goes in any case.
    until(lambda: not os.path.exists(f"{_lab['place']}/pid/slurmctld.pid"), "the controller to end")


def start_controller():
    """The controller comes back, with all that it knew."""
    command("slurmctld")
    until(lambda: "UP" in command("scontrol", "ping", check=False), "the controller to be up")
