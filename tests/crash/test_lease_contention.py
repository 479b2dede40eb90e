"""The lease among real processes: killed, stopped, and started at the same instant."""

import dataclasses
import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from rivals import contents, rivals, train

import holdfast
from holdfast import Keep, files
from holdfast.errors import LeaseError
from holdfast.store import catalog, watch
from holdfast.store import holder as holder_module
from holdfast.store import lease as lease_module
from holdfast.store.holder import encode, myself
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


# -- trainings ---------------------------------------------------------------------------------


def train_and_hold(rival, path, barrier):
    barrier.wait()
    run = train(path, rival, 1)
    rival.tell(pid=os.getpid())
    rival.hear()
    run.close()


def test_sixteen_trainings_at_once(tmp_path, tried):
    """Of sixteen trainings one writes; each other is told its pid, host, since when, what to do, with exit code 11."""
    path = str(tmp_path / "run")
    barrier = multiprocessing.get_context("fork").Barrier(16)
    with rivals(*[(train_and_hold, path, barrier)] * 16) as started:
        told = [rival.hear() for rival in started]
        (winner,) = [rival for rival, fact in zip(started, told, strict=True) if "saved" in fact]
        holder = holder_of(path)
        assert winner.hear() == {"pid": winner.pid}
        assert holder.pid == winner.pid
        losers = [rival for rival in started if rival is not winner]
        assert [rival.end() for rival in losers] == [LeaseError.exit_code] * 15
        for fact in told:
            if "error" in fact:
                assert fact["kind"] == "LeaseError"
                since = holder.acquired.replace("T", " ").removesuffix("Z")
                assert f"pid {winner.pid} on {holder.host}, since {since} UTC" in fact["error"]
                assert "Wait for it (wait=SECONDS), end it, or give this training another" in fact["error"]
        winner.tell(go=True)
        assert winner.end() == 0
    assert leases_and_writing(path) == [f"lease-{holder.generation:06d}"]
    assert holdfast.open(path).verify() == []
    tried("schedules", 16)


def test_a_run_that_begins_between_two_looks_is_no_foreign_directory(tmp_path, monkeypatch):
    """Who looks at a directory while another process begins a run there is told of that process."""
    path, looks = str(tmp_path / "run"), []
    real = catalog.is_run
    monkeypatch.setattr(
        catalog, "is_run", lambda place: looks.append(place) or (len(looks) > 1 and real(place))
    )
    alone = multiprocessing.get_context("fork").Barrier(1)
    with rivals((train_and_hold, path, alone)) as (winner,):
        assert winner.hear() == {"saved": 1}
        looks.clear()
        with pytest.raises(LeaseError, match=f"pid {winner.pid} on "):
            holdfast.Run(path).resume()
        assert looks


def leases_and_writing(path):
    return sorted(name for name in os.listdir(path) if name.startswith(("lease-", ".writing-")))


def train_a_turn(rival, path, barrier):
    barrier.wait()
    train(path, rival, 2, wait=100, keep=Keep(last=None)).close()


def test_waiting_trainings_lose_nothing(tmp_path, monkeypatch, tried):
    """Trainings that wait for one another each continue where the one before ended; no step is lost or done twice."""
    monkeypatch.setattr(watch, "_POLL_SECONDS", 0.05)
    path = str(tmp_path / "run")
    barrier = multiprocessing.get_context("fork").Barrier(6)
    with rivals(*[(train_a_turn, path, barrier)] * 6) as started:
        assert [rival.end() for rival in started] == [0] * 6, [rival.hear() for rival in started]
        turns = sorted((rival.hear()["saved"], rival.hear()["saved"]) for rival in started)
    assert turns == [(step, step + 1) for step in range(1, 13, 2)]
    run = holdfast.Run(path)
    assert [(c.sequence, c.progress.step) for c in run.checkpoints] == [(n, n) for n in range(1, 13)]
    assert run.latest.load()["state"]["weights"][0] == sum(range(12))
    tried("schedules", 6)


def contend_from_a_place(rival, path, place, barrier):
    holder_module._boot_id = lambda: place
    lease_module.BEAT_SECONDS = 0.02
    barrier.wait()
    lease = Lease.acquire(path, stale_after=1.5, say=lambda line: None)
    rival.tell(generation=lease.generation)
    rival.hear()
    lease.check()


@pytest.mark.parametrize("turn", range(3))
def test_two_who_judge_it_stale(turn, tmp_path, tried):
    """Of contenders that all watched a silent holder for as long as it takes, one wins; the others see it beat."""
    path = str(tmp_path)
    forged = dataclasses.replace(myself(3), boot_id="far", host="node7", pid=4242)
    files.create_file(os.path.join(path, "lease-000003"), encode(forged))
    barrier = multiprocessing.get_context("fork").Barrier(4)
    with rivals(*[(contend_from_a_place, path, f"place{n}", barrier) for n in range(4)]) as started:
        told = [rival.hear() for rival in started]
        (winner,) = [rival for rival, fact in zip(started, told, strict=True) if "generation" in fact]
        assert [rival.end() for rival in started if rival is not winner] == [LeaseError.exit_code] * 3
        assert all(f"pid {winner.pid} on" in fact["error"] for fact in told if "error" in fact)
        winner.tell(go=True)
        assert winner.end() == 0, winner.hear()
    tried("schedules")


def test_deleted_lease_stops_the_next_save(tmp_path):
    """A training whose lease file somebody deleted saves nothing more."""
    run = holdfast.Run(tmp_path / "run")
    run.resume()
    run.state["x"] = 1
    run.save(step=1, wait=True)
    os.unlink(os.path.join(run.path, "lease-000001"))
    with pytest.raises(LeaseError, match="somebody deleted the file lease-000001"):
        run.save(step=2, wait=True)
    assert len(holdfast.Run(run.path).checkpoints) == 1
    run.close()


def test_child_of_a_holder_writes_nothing(tmp_path):
    """A forked child of a training neither saves, nor publishes, nor releases: the run is as it was."""
    path = str(tmp_path / "run")
    run = holdfast.Run(path)
    run.resume()
    run.state["x"] = np.zeros(1000)
    run.save(step=1, wait=True)
    before = contents(path)

    def child(rival):
        for act in (lambda: run.save(step=2, wait=True), run.close, run._training.session.lease.check):
            try:
                act()
                rival.tell(done=True)
            except holdfast.HoldfastError as error:
                rival.tell(refused=type(error).__name__)

    with rivals((child,)) as (one,):
        assert [one.hear() for _ in range(3)] == [
            {"refused": "UsageError"},
            {"done": True},  # close() in a child has nothing to do
            {"refused": "LeaseError"},
        ]
        assert one.end() == 0
    assert contents(path) == before
    run.save(step=2, wait=True)
    run.close()
    assert holdfast.open(path).progress.step == 2
