"""How a managed loop ends: by its goal, by break, by a signal, by close, in a child."""

import json
import os
import signal
import threading

import pytest
import torch

import holdfast
from holdfast import Every, Keep, Preempted, UsageError, files
from holdfast.payload import threads
from holdfast.saving import Saver

WATCHED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "r")


def checkpoints(path):
    """The names that a reader sees, oldest first."""
    return sorted(name for name in os.listdir(path) if name[0] == "0")


def leases(path):
    return sorted(name for name in os.listdir(path) if name.startswith("lease-"))


def reached(path):
    with open(os.path.join(path, "run.json")) as file:
        return json.load(file).get("reached")


class Gate:
    """Holds back the background's fsync while it is shut, and tells what the main thread waits for."""

    def __init__(self):
        self.open = threading.Event()
        self.open.set()
        self.waits = 0
        self.at_wait = None
        """Called when the main thread begins to wait for the save in flight."""


@pytest.fixture
def gate(monkeypatch):
    gate = Gate()
    fsync, wait = files.System.fsync, threads.Ticket.wait

    def held(self, fd):
        if threading.current_thread() is not threading.main_thread():
            gate.open.wait(20)
        return fsync(self, fd)

    def noticed(self, timeout=None):
        saving = isinstance(getattr(self, "saving", None), bool)
        if not saving and threading.current_thread() is threading.main_thread() and gate.at_wait is not None:
            gate.waits += 1
            gate.at_wait()
        return wait(self, timeout)

    collect = Saver._collect

    def collecting(self):
        # Only here: the main thread waits for copies of arrays as well.
        with monkeypatch.context() as inner:
            inner.setattr(threads.Ticket, "wait", noticed)
            return collect(self)

    monkeypatch.setattr(files.System, "fsync", held)
    monkeypatch.setattr(Saver, "_collect", collecting)
    yield gate
    gate.open.set()


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


# -- Ctrl-C ----------------------------------------------------------------------------------------


def test_ctrl_c_during_close_leaves_the_run_open(path, gate):
    """Ctrl-C while `close` waits leaves the run open, and a second close publishes the save in flight."""
    run = holdfast.Run(path)
    run.resume()
    run.save(epoch=1, wait=True)
    gate.open.clear()
    run.save(epoch=2)
    gate.at_wait = interrupt
    with pytest.raises(KeyboardInterrupt):
        run.close()
    gate.at_wait = None
    assert len(checkpoints(path)) == 1
    assert os.path.isdir(os.path.join(path, ".writing-000001"))
    gate.open.set()
    run.close()
    assert len(checkpoints(path)) == 2
    assert not os.path.exists(os.path.join(path, ".writing-000001"))
    run.close()
