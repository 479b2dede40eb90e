"""Processes that contend for a run, each forked from the test, with a line to it in both directions."""

import contextlib
import json
import os
import signal
import threading
import time

import numpy as np

import holdfast
from holdfast import files, saving
from holdfast.errors import HoldfastError
from holdfast.payload import writer
from holdfast.state import environment
from holdfast.store import holder as holder_module
from holdfast.store.lease import Lease

_SHARED = saving, writer  # imported here, so that no fork has to
_SECONDS = 120  # a process that takes longer hangs: its alarm ends it


class Rival:
    """A process that does `work(rival, *args)`; what it raises is told, and its exit code tells it, too."""

    def __init__(self, work, *args):
        down, up = os.pipe(), os.pipe()
        self.pid = os.fork()
        self.code = None
        if self.pid:
            os.close(down[0])
            os.close(up[1])
            self._read, self._write = open(up[0]), open(down[1], "w")
            return
        os.close(down[1])
        os.close(up[0])
        self._read, self._write = open(down[0]), open(up[1], "w")
        self.ear = down[0]
        signal.alarm(_SECONDS)
        environment._git = lambda: None  # looking for a commit takes two processes
        code = 99
        try:
            work(self, *args)
            code = 0
        except HoldfastError as error:
            code = error.exit_code
            self.tell(error=str(error), kind=type(error).__name__)
        except BaseException as error:
            self.tell(error=f"{type(error).__name__}: {error}")
        finally:
            os._exit(code)

    # -- on both sides -------------------------------------------------------------------------------

    def tell(self, **facts):
        self._write.write(json.dumps(facts) + "\n")
        self._write.flush()

    def hear(self):
        """The next line of the other side; nothing once it has ended."""
        line = self._read.readline()
        return json.loads(line) if line else {}

    # -- on the test's side --------------------------------------------------------------------------

    def wait_until_stopped(self):
        """Whether it stopped itself; False when it ended."""
        status = os.waitpid(self.pid, os.WUNTRACED)[1]
        if os.WIFSTOPPED(status):
            return True
        self.code = os.waitstatus_to_exitcode(status)
        return False

    def wake(self):
        os.kill(self.pid, signal.SIGCONT)

    def end(self):
        """Waits for its end; its exit code."""
        if self.code is None:
            self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.code

    def kill(self):
        if self.code is None:
            os.kill(self.pid, signal.SIGKILL)
            self.end()


@contextlib.contextmanager
def rivals(*works):
    """A rival for each (work, *args); those that are left at the end are killed."""
    started = []
    try:
        for work, *args in works:
            started.append(Rival(work, *args))
        yield started
    finally:
        for rival in started:
            rival.kill()


class Stopping(files.System):
    """Stops its process right before one of its calls; the calls are counted from when it is told to."""

    def __init__(self, place, at):
        self.place, self.at, self.count, self.names = place, at, None, []
        self._lock = threading.Lock()

    def _turn(self, name):
        with self._lock:
            if self.count is None:
                return
            self.count += 1
            self.names.append(name)
            stop = self.count == self.at
        if stop:
            # To this very thread: another one might take it a few instructions later.
            signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)

    def __getattribute__(self, name):
        if name in _CALLS:
            self._turn(name)
        return super().__getattribute__(name)


_CALLS = {name for name in vars(files.System) if not name.startswith("_")}


def train(path, rival, steps, **options):
    """An own loop that saves each step durably."""
    run = holdfast.Run(path, **options)
    start = run.resume().step
    run.state.setdefault("weights", np.zeros(2000))
    for step in range(start, start + steps):
        run.state["weights"] += step
        run.save(step=step + 1, wait=True)
        rival.tell(saved=step + 1)
    return run


def take_from_elsewhere(path, monkeypatch, **options):
    """Acquires as a process of another machine would, which sees nothing but the beat."""
    with monkeypatch.context() as patch:
        patch.setattr(holder_module, "_boot_id", lambda: "another machine")
        return Lease.acquire(path, **{"stale_after": 0.05, "say": lambda line: None, **options})


def contents(path, *, without=("history.jsonl",)):
    """Every file below a directory with its bytes; a link's target; a directory's name with a slash."""
    found = {}
    for place, directories, names in os.walk(path):
        for name in directories + names:
            full = os.path.join(place, name)
            if os.path.islink(full):
                found[os.path.relpath(full, path)] = os.readlink(full)
            elif os.path.isdir(full):
                found[os.path.relpath(full, path) + "/"] = None
            elif name not in without:
                with open(full, "rb") as file:
                    found[os.path.relpath(full, path)] = file.read()
    return found


def wait_for(condition):
    """Waits until something is so; the timeout of the test ends it otherwise."""
    while not condition():
        time.sleep(0.005)
