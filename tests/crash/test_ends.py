"""How a training's process ends: what is on disk then, what stderr says, and the exit code."""

import ctypes
import os
import signal
import subprocess
import sys
import time

import pytest

import holdfast

START = """
import errno, os, signal, sys, threading
import numpy as np
import holdfast
from holdfast import Every, files

class Failing(files.System):
    "Writes nothing more of payload files, once it is told to."
    on = False

    def pwrite(self, fd, data, offset):
        if self.on and len(data) >= 4096:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().pwrite(fd, data, offset)

files.system = Failing()
run = holdfast.Run(sys.argv[1], every=Every(steps=1))
run.state["weights"] = np.zeros(100_000)

def train(number):
    "Trains for longer than a save takes, so that each boundary's save is made."
    saver = run._training.saver
    if saver is not None and saver._flight is not None:
        saver._flight.ticket.join()
    run.state["weights"] += number
"""


def script(path, body, *, before="", **options):
    """Runs `before`, START and `body` in a process; gives what `subprocess.run` gives."""
    return subprocess.run(
        [sys.executable, "-c", before + START + body, str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **options,
    )


def newest(path):
    """The step of the newest checkpoint, every byte of which is checked."""
    ckpt = holdfast.open(str(path))
    assert ckpt.load()["state"]["weights"][0] == sum(range(ckpt.progress.step))
    return ckpt.progress.step


def released(path):
    """Whether another launch may take the run at once."""
    run = holdfast.Run(str(path))
    run.resume()
    run.close()
    return True


def test_background_failure_at_the_next_touch(tmp_path):
    """A save that fails in the background raises at the next boundary, and what was saved before stays."""
    done = script(
        tmp_path / "run",
        """
for number in run.steps(6):
    train(number)
    files.system.on = number >= 2
    print("step", number, flush=True)
""",
    )
    assert done.stdout.split() == ["step", "0", "step", "1", "step", "2", "step", "3"]
    assert done.returncode == 1
    assert "StorageError: Cannot write" in done.stderr
    assert "No space left on device" in done.stderr
    assert "Traceback" in done.stderr
    assert newest(tmp_path / "run") == 2
    assert released(tmp_path / "run")
    assert os.listdir(tmp_path) == ["run"]


def test_failure_once(tmp_path):
    """A failure is raised once; a training that goes on with its own handling saves again."""
    done = script(
        tmp_path / "run",
        """
run.resume()
for number in range(6):
    train(number)
    files.system.on = number == 2
    try:
        run.save(step=number + 1, wait=True)
    except holdfast.StorageError as error:
        print("failed", number, error.exit_code, error.errno == errno.ENOSPC)
run.close()
""",
    )
    assert (done.returncode, done.stdout.split()) == (0, ["failed", "2", "10", "True"]), done.stderr
    assert newest(tmp_path / "run") == 6
    steps = [checkpoint.progress.step for checkpoint in holdfast.Run(str(tmp_path / "run")).checkpoints]
    assert steps == [4, 5, 6]


def test_forgotten_close(tmp_path):
    """A script that forgets close() gets its last save, and ends with 0."""
    done = script(
        tmp_path / "run",
        """
run.resume()
for number in range(5):
    train(number)
    run.save(step=number + 1)
""",
    )
    assert done.returncode == 0, done.stderr
    assert newest(tmp_path / "run") == 5
    assert released(tmp_path / "run")


def test_background_failure_at_exit(tmp_path):
    """A failure that nobody could see before the end gives a message and the error's exit code."""
    done = script(
        tmp_path / "run",
        """
run.resume()
for number in range(3):
    train(number)
    run.save(step=number + 1, wait=True)
files.system.on = True
train(3)
run.save(step=4)
print("the end")
""",
    )
    assert done.stdout == "the end\n", "what was printed is not lost"
    assert done.returncode == holdfast.StorageError.exit_code
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    assert newest(tmp_path / "run") == 3
    assert released(tmp_path / "run")


BODY_FAILS = """
for number in run.steps(6):
    if number == 4:
        raise ValueError("mine")
    train(number)
"""


def test_exception_in_the_body(tmp_path):
    """An exception of the body comes through, with its traceback, and stderr says what is newest."""
    done = script(tmp_path / "run", BODY_FAILS)
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith("ValueError: mine")
    assert "Traceback" in done.stderr
    assert f"Newest: {holdfast.open(str(tmp_path / 'run')).name}" in done.stderr
    assert newest(tmp_path / "run") == 4, "the save in flight was finished, the torn state not saved"
    assert released(tmp_path / "run")


def test_exception_and_failure(tmp_path):
    """An exception of the body is not replaced by a save that fails at the same time; both are told."""
    done = script(tmp_path / "run", BODY_FAILS + "    files.system.on = number == 3")
    assert done.returncode != 0
    assert "ValueError: mine" in done.stderr
    assert "No space left on device" in done.stderr
    assert newest(tmp_path / "run") == 3
    assert released(tmp_path / "run")


def test_failure_while_an_exception_leaves(tmp_path):
    """When a save in flight fails while an exception leaves the loop, the exception is the one that is raised."""
    done = script(
        tmp_path / "run",
        """
try:
    for number in run.steps(6):
        if number == 4:
            raise ValueError("mine")
        train(number)
        files.system.on = number == 3
except ValueError as error:
    print("caught", error)
try:
    run.close()
except holdfast.StorageError:
    print("and the failure")
""",
    )
    assert (done.returncode, done.stdout) == (0, "caught mine\nand the failure\n"), done.stderr
    assert "The save in flight failed" in done.stderr


def test_with_block(tmp_path):
    """`with Run(...)` closes the run, and an exception that leaves it is not replaced."""
    done = script(
        tmp_path / "run",
        """
with run:
    run.resume()
    files.system.on = True
    train(0)
    run.save(step=1)
    raise ValueError("mine")
""",
    )
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith("ValueError: mine")
    assert "No space left on device" in done.stderr


@pytest.mark.parametrize(("leave", "code"), [("break", 0), ("sys.exit(3)", 3), ("os._exit(4)", 4)])
def test_left(leave, code, tmp_path):
    """Leaving the loop saves nothing of the step in hand, and the script's exit code is its own."""
    body = f"""
for number in run.steps(6):
    train(number)
    if number == 3:
        {leave}
"""
    done = script(tmp_path / "run", body)
    assert done.returncode == code, done.stderr
    assert newest(tmp_path / "run") == 3
    if code == 0:
        assert "The loop was left before its goal; nothing more was saved." in done.stderr
    assert script(tmp_path / "run", "for number in run.steps(6): train(number)").returncode == 0
    assert newest(tmp_path / "run") == 6


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_preempted(name, tmp_path):
    """A signal that asks for the end gives exit code 75, no traceback, and a line that names the checkpoint."""
    body = f"""
for number in run.steps(6):
    train(number)
    if number == 3:
        os.kill(os.getpid(), signal.{name})
"""
    done = script(tmp_path / "run", body)
    assert done.returncode == 75, done.stderr
    assert "Traceback" not in done.stderr
    assert (
        f"{name}: {holdfast.open(str(tmp_path / 'run')).name} is saved; ending with exit code 75."
        in done.stderr
    )
    assert newest(tmp_path / "run") == 4
    assert released(tmp_path / "run")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGUSR2"])
def test_repeats_while_the_process_ends(name, tmp_path):
    """Signals that come again while the process ends, to the very last, leave its exit code alone."""
    before = f"""
import atexit, os, signal
def again():
    os.kill(os.getpid(), signal.{name})
atexit.register(again)  # what is registered first is called last
class Late:
    "Goes when the modules are taken down, after the interpreter has put signals back."
    def __del__(self, kill=os.kill, pid=os.getpid(), number=signal.{name}):
        kill(pid, number)
late = Late()
"""
    body = """
atexit.register(again)
try:
    for number in run.steps(6):
        train(number)
        if number == 3:
            os.kill(os.getpid(), signal.SIGTERM)
finally:
    again()
"""
    done = script(tmp_path / "run", body, before=before)
    assert done.returncode == 75, done.stderr
    assert newest(tmp_path / "run") == 4


@pytest.mark.parametrize("grace", [60, 0])
def test_a_process_that_goes_on_after_a_signal(grace, tmp_path):
    """Who catches `Preempted` and lives on can be ended by the same signal, once the repeats must be over."""
    body = f"""
import contextlib, holdfast.signals
holdfast.signals.GRACE_SECONDS = {grace}
with contextlib.suppress(holdfast.Preempted):
    for number in run.steps(6):
        train(number)
        if number == 3:
            os.kill(os.getpid(), signal.SIGTERM)
os.kill(os.getpid(), signal.SIGTERM)
print("alive")
"""
    done = script(tmp_path / "run", body)
    assert done.returncode == (0 if grace else -signal.SIGTERM), done.stderr
    assert ("alive" in done.stdout) == bool(grace)


def test_preempted_and_failed(tmp_path):
    """Where the save that a signal asked for fails, the exit code is not that of a place that is safe."""
    done = script(
        tmp_path / "run",
        """
for number in run.steps(6):
    train(number)
    if number == 3:
        files.system.on = True
        os.kill(os.getpid(), signal.SIGTERM)
""",
    )
    assert done.returncode not in (0, 75)
    assert "No space left on device" in done.stderr
    assert newest(tmp_path / "run") == 3


def test_interrupted(tmp_path):
    """One Ctrl-C saves at the boundary and ends as Python ends by one."""
    done = script(
        tmp_path / "run",
        """
for number in run.steps(6):
    train(number)
    if number == 3:
        os.kill(os.getpid(), signal.SIGINT)
""",
    )
    assert done.returncode == -signal.SIGINT
    assert "KeyboardInterrupt" in done.stderr
    assert newest(tmp_path / "run") == 4


def test_last_save_in_a_thread_that_ends_late(tmp_path):
    """A save that is still being written when the main thread ends is finished before the process ends."""
    done = script(
        tmp_path / "run",
        """
import time

class Slow(Failing):
    def fsync(self, fd):
        time.sleep(0.1)
        super().fsync(fd)

run.resume()
files.system = Slow()
train(0)
run.save(step=1)
""",
    )
    assert done.returncode == 0, done.stderr
    assert newest(tmp_path / "run") == 1


def test_forked_child(tmp_path):
    """A child that the body forks neither saves nor releases anything, however it ends."""
    done = script(
        tmp_path / "run",
        """
for number in run.steps(4):
    train(number)
    child = os.fork()
    if not child:
        if number == 0:
            sys.exit(0)
        if number == 1:
            raise ValueError("in the child")
        if number == 2:
            try:
                run.save()
            except holdfast.UsageError:
                os._exit(5)
        break
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
""",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["0", "1", "5", "0"], done.stderr
    assert newest(tmp_path / "run") == 4
    assert "ValueError: in the child" in done.stderr


# -- a file system that is full --------------------------------------------------------------------


@pytest.fixture
def small(tmp_path):
    """A file system of 6 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "mount") or libc.mount(b"none", bytes(place), b"tmpfs", 0, b"size=6m") != 0:
        pytest.skip(f"no tmpfs can be mounted here: {os.strerror(ctypes.get_errno())}")
    yield place
    for _ in range(50):
        if libc.umount2(bytes(place), 0) == 0:
            return
        time.sleep(0.1)
    libc.umount2(bytes(place), 2)


def test_full_disk(small):
    """A disk that fills up during the training: the error names it, the good checkpoint stays, and resumes."""
    body = """
for number in run.steps(4):
    train(number)
    if number == 1:
        with open(f"{sys.argv[1]}/../ballast", "wb") as file:
            room = os.statvfs(sys.argv[1])
            file.write(bytes(room.f_bavail * room.f_frsize - (400 << 10)))
"""
    done = script(small / "run", body)
    assert done.returncode == 1
    assert "StorageError" in done.stderr
    assert "space" in done.stderr
    assert newest(small / "run") == 1
    assert not [name for name in os.listdir(small / "run") if name.startswith(".writing")]
    os.unlink(small / "ballast")
    done = script(small / "run", "for number in run.steps(4): train(number)")
    assert done.returncode == 0, done.stderr
    assert newest(small / "run") == 4
