"""The lease among real processes: killed, stopped, and started at the same instant."""

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

from holdfast import files
from holdfast.errors import LeaseError
from holdfast.store import holder as holder_module
from holdfast.store.lease import Lease, holder_of

HOLD = """
import errno, json, os, sys
from holdfast.errors import LeaseError
from holdfast.store.lease import Lease

def tell(**facts):
    print(json.dumps(facts), flush=True)

def attempt(source, target):
    try:
        os.rename(source, target)
        return 0
    except OSError as error:
        return error.errno

lease = Lease.acquire(sys.argv[1])
draft = os.path.join(lease.writing, "000002_draft")
os.mkdir(draft)
tell(generation=lease.generation, writing=lease.writing)
sys.stdin.readline()
published = attempt(draft, os.path.join(lease.run, "000002_published"))
deleted = attempt(os.path.join(lease.run, "000001_old"), os.path.join(lease.writing, "000001_old"))
try:
    lease.check()
    refused = ""
except LeaseError as error:
    refused = str(error)
lease.release()
tell(published=published, deleted=deleted, refused=refused)
"""


class Child:
    """A process of its own that holds a run's lease and tells what happens to it."""

    def __init__(self, run):
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLD, run], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.first = self.read()

    def read(self):
        return json.loads(self.process.stdout.readline())

    def go_on(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.read()

    def end(self):
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def run(tmp_path):
    (tmp_path / "000001_old").mkdir()
    return str(tmp_path)


@pytest.fixture
def child(run):
    child = Child(run)
    yield child
    child.end()


def test_killed_holder_is_taken_over_at_once(run, child):
    """After SIGKILL the next start takes over without waiting and clears what was half-written."""
    with pytest.raises(LeaseError, match=f"pid {child.process.pid} "):
        Lease.acquire(run)
    child.process.kill()
    child.process.wait()
    lease = Lease.acquire(run, sleep=lambda seconds: pytest.fail("it waited"))
    assert lease.generation == 2
    assert sorted(os.listdir(run)) == [".writing-000002", "000001_old", "lease-000002"]
    assert os.listdir(lease.writing) == []
    lease.release()


def test_stopped_holder_that_wakes_publishes_and_deletes_nothing(run, child, monkeypatch):
    """A holder that slept through a take-over can neither publish nor delete, and is told so."""
    child.process.send_signal(signal.SIGSTOP)
    with monkeypatch.context() as patch:
        # Seen from another machine, so only the beat counts; and it stands still.
        patch.setattr(holder_module, "_boot_id", lambda: "another machine")
        said = []
        lease = Lease.acquire(run, stale_after=0.2, say=said.append)
    assert lease.generation == 2
    assert any("taking over" in line for line in said)
    child.process.send_signal(signal.SIGCONT)
    told = child.go_on()
    assert told["published"] == errno.ENOENT
    assert told["deleted"] == errno.ENOENT
    assert f"taken over by pid {os.getpid()} " in told["refused"]
    assert child.process.wait() == 0
    lease.check()
    assert sorted(os.listdir(run)) == [".writing-000002", "000001_old", "lease-000002"]
    assert not holder_of(run).released
    lease.release()


def test_stopped_holder_on_this_machine_is_alive(run, child):
    """A stopped process still holds: the same machine sees that it lives."""
    child.process.send_signal(signal.SIGSTOP)
    with pytest.raises(LeaseError):
        Lease.acquire(run, stale_after=0.01)
    child.process.send_signal(signal.SIGCONT)
    assert child.go_on() == {"published": 0, "deleted": 0, "refused": ""}


def contend(run, start, done, results, how):
    start.wait()
    try:
        lease = Lease.acquire(run)
    except LeaseError:
        lease = None
    results.put(lease.generation if lease else 0)
    done.wait()
    if lease is not None:
        lease.check()
        if how == "released":
            lease.release()
    os._exit(0)


def test_one_of_eight_wins(run):
    """Of eight processes started at once exactly one gets the lease, after a release as after a death."""
    context = multiprocessing.get_context("fork")
    for turn in range(12):
        start, done, results = context.Barrier(8), context.Barrier(8), context.SimpleQueue()
        how = "released" if turn % 2 else "died"
        contenders = [
            context.Process(target=contend, args=(run, start, done, results, how)) for _ in range(8)
        ]
        for one in contenders:
            one.start()
        generations = [results.get() for _ in contenders]
        for one in contenders:
            one.join()
        assert [one.exitcode for one in contenders] == [0] * 8
        assert sorted(generations)[:-1] == [0] * 7
        assert max(generations) > turn
        assert max(generations) == holder_of(run).generation
        assert holder_of(run).released == (how == "released")


def take_a_turn(run, start):
    start.wait()
    for _ in range(3):
        lease = Lease.acquire(
            run, wait=60, say=lambda line: None, sleep=lambda seconds: time.sleep(min(seconds, 0.002))
        )
        # Fails with EEXIST if anybody else is inside.
        files.create_file(os.path.join(run, "inside"), b"", sync=False)
        lease.check()
        files.append(os.path.join(run, "turns"), f"{lease.generation}\n".encode())
        files.remove_file(os.path.join(run, "inside"))
        lease.release()


def test_waiting_processes_take_turns(run):
    """Processes that wait for one another all get their turn, never two at once, with rising numbers."""
    context = multiprocessing.get_context("fork")
    start = context.Barrier(4)
    waiting = [context.Process(target=take_a_turn, args=(run, start)) for _ in range(4)]
    for one in waiting:
        one.start()
    for one in waiting:
        one.join()
    assert [one.exitcode for one in waiting] == [0] * 4
    with open(os.path.join(run, "turns"), encoding="ascii") as turns:
        generations = [int(line) for line in turns]
    assert len(generations) == 12
    assert generations == sorted(set(generations))
