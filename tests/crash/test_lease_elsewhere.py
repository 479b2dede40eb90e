"""The lease across pid namespaces, without /proc, over reboots, and beside a thread that holds the GIL.

Processes in another namespace see other numbers for the same processes, or the same numbers for
others. There only the beat counts: a holder that beats is never taken over, a silent one is after
`stale_after`, which is 300 seconds and here a fraction of one.
"""

import ctypes
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from rivals import contents, rivals, take_from_elsewhere, train, wait_for

import holdfast
from holdfast.errors import LeaseError
from holdfast.store import lease as lease_module
from holdfast.store.holder import encode, myself, process_start
from holdfast.store.lease import Lease, holder_of

# Reads lines of Python and answers each with a line of JSON: what `answer` is then.
PROCESS = """
import json, os, signal, sys, time
from holdfast.errors import HoldfastError
from holdfast.store import holder, lease
from holdfast.store.lease import Lease, holder_of

lease.BEAT_SECONDS = 0.02
holds = []

def acquire(path, **options):
    said = []
    started = time.monotonic()
    try:
        got = Lease.acquire(path, say=said.append, **options)
    except HoldfastError as error:
        return {"error": str(error), "code": error.exit_code}
    holds.append(got)
    return {"generation": got.generation, "said": said, "waited": time.monotonic() - started}

def check():
    try:
        holds[0].check()
    except HoldfastError as error:
        return str(error)
    return ""

def fork(work, pid=0):
    if pid:
        with open("/proc/sys/kernel/ns_last_pid", "w") as last:
            last.write(str(pid - 1))
    child = os.fork()
    if not child:
        signal.alarm(100)
        try:
            work()
        finally:
            os._exit(0)
    return child

for line in sys.stdin:
    answer = None
    exec(line)
    print(json.dumps(answer), flush=True)
"""


class Place:
    """A Python process in namespaces of its own; it and all its children die with it."""

    def __init__(self, *unshare, before=""):
        command = [sys.executable, "-u", "-c", PROCESS]
        if unshare:
            inner = before + ' exec "$@"'
            command = ["unshare", "--fork", "--kill-child", *unshare, "sh", "-c", inner, "sh", *command]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )

    def run(self, line):
        self.process.stdin.write(line.replace("\n", " ") + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, f"it ended at: {line}"
        return json.loads(answer)

    def acquire(self, path, **options):
        return self.run(f"answer = acquire({str(path)!r}, **{options!r})")

    def kill(self):
        self.process.kill()
        self.process.wait()


def unshare_works(*options):
    if shutil.which("unshare") is None:
        return False
    return not subprocess.run(
        ["unshare", "--fork", *options, "true"], capture_output=True, check=False
    ).returncode


AS_ROOT = () if unshare_works("--pid", "--mount-proc") else ("--user", "--map-root-user")
NAMESPACE = (*AS_ROOT, "--pid", "--mount-proc")
BARE = (*AS_ROOT, "--pid")  # and the /proc of the namespace above
NO_PROC = (*AS_ROOT, "--pid", "--mount")
needs_namespaces = pytest.mark.skipif(
    not unshare_works(*NAMESPACE), reason="no pid namespace can be made: neither root nor user namespaces"
)


@pytest.fixture
def places():
    """Makes places, and ends them after the test."""
    made = []

    def make(*args, **options):
        made.append(Place(*args, **options))
        return made[-1]

    yield make
    for place in made:
        place.kill()


def can_choose_pids(place):
    return place.run("answer = os.access('/proc/sys/kernel/ns_last_pid', os.W_OK)")


IN_AND_OUT = [(NAMESPACE, ()), ((), NAMESPACE), (NAMESPACE, NAMESPACE)]
IDS = ["holder-inside", "contender-inside", "each-in-its-own"]


@needs_namespaces
@pytest.mark.parametrize(("there", "here"), IN_AND_OUT, ids=IDS)
def test_beating_holder_of_another_namespace(there, here, places, tmp_path, tried):
    """A holder that beats in another pid namespace is refused, never taken over, in both directions."""
    holder, contender = places(*there), places(*here)
    assert holder.acquire(tmp_path)["generation"] == 1
    before = holder_of(str(tmp_path))
    found = contender.acquire(tmp_path, stale_after=20.0)
    assert found["code"] == LeaseError.exit_code
    assert f"pid {before.pid} on" in found["error"]
    assert holder.run("answer = check()") == ""
    assert holder_of(str(tmp_path)).token == before.token
    tried("schedules")


@needs_namespaces
@pytest.mark.parametrize(("there", "here"), IN_AND_OUT, ids=IDS)
@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_silent_holder_of_another_namespace(there, here, how, places, tmp_path, tried):
    """A holder that is killed or stopped in another namespace is taken over after `stale_after`, and not before."""
    holder, contender = places(*there), places(*here)
    holder.acquire(tmp_path)
    if how == "killed":
        holder.kill()
    else:
        for pid in family(holder.process.pid):
            os.kill(pid, signal.SIGSTOP)
    found = contender.acquire(tmp_path, stale_after=0.5)
    assert found["generation"] == 2, found
    assert found["waited"] >= 0.5
    assert any("whether that lives cannot be seen from here" in line for line in found["said"])
    if how == "stopped":
        for pid in family(holder.process.pid):
            os.kill(pid, signal.SIGCONT)
        assert "taken over by" in holder.run("answer = check()")
    assert sorted(os.listdir(tmp_path)) == [".writing-000002", "lease-000002"]
    tried("schedules")


def family(pid):
    """A process and all below it."""
    found = [pid]
    with open(f"/proc/{pid}/task/{pid}/children") as children:
        for child in children.read().split():
            found += family(int(child))
    return found


@needs_namespaces
def test_pids_that_coincide(places, tmp_path, tried):
    """A living pid of the same number in the contender's own namespace says nothing about the holder, and vice versa."""
    inside, outside = places(*NAMESPACE), places()
    inside.acquire(tmp_path)
    holder = holder_of(str(tmp_path))
    assert holder.pid == 1
    assert process_start(1)
    found = outside.acquire(tmp_path, stale_after=20.0)
    assert found["code"] == LeaseError.exit_code
    other = places(*NAMESPACE)
    found = other.acquire(tmp_path, stale_after=20.0)
    assert found["code"] == LeaseError.exit_code
    assert found["error"].count("this very process") == 0
    inside.kill()
    found = other.acquire(tmp_path, stale_after=0.5)
    assert found["generation"] == 2, "neither its own pid 1 nor that of the machine is the holder"
    assert found["waited"] >= 0.5
    tried("schedules", 3)


@needs_namespaces
def test_pid_that_exists_only_here(places, tmp_path, tried):
    """A holder whose number is free in the contender's namespace is not dead: it beats elsewhere."""
    outside, inside = places(), places(*NAMESPACE)
    outside.acquire(tmp_path)
    pid = holder_of(str(tmp_path)).pid
    assert inside.run(f"answer = holder.process_start({pid})") is None
    assert inside.acquire(tmp_path, stale_after=20.0)["code"] == LeaseError.exit_code
    tried("schedules")


@needs_namespaces
def test_pid_that_was_given_to_another(places, tmp_path, tried):
    """A process that got the dead holder's number later is not the holder: the next takes over at once."""
    place = places(*NAMESPACE)
    if not can_choose_pids(place):
        pytest.skip("ns_last_pid cannot be written here, so no process gets a chosen pid")
    place.run(f"answer = fork(lambda: (acquire({str(tmp_path)!r}), time.sleep(100)), 300)")
    wait_for(lambda: (tmp_path / ".writing-000001").exists())
    holder = holder_of(str(tmp_path))
    assert holder.pid == 300
    assert place.acquire(tmp_path)["code"] == LeaseError.exit_code
    place.run("os.kill(300, 9); os.waitpid(300, 0); time.sleep(0.05)")
    assert place.run("answer = fork(lambda: time.sleep(100), 300)") == 300
    found = place.acquire(tmp_path)
    assert found["generation"] == 2
    assert found["said"] == []
    tried("schedules")


@needs_namespaces
def test_proc_of_another_namespace(places, tmp_path, tried):
    """Where /proc shows another namespace's processes, their ends and starts are not taken for the holder's."""
    place = places(*BARE)
    if not can_choose_pids(place):
        pytest.skip("ns_last_pid cannot be written here, so no process gets a chosen pid")
    # A process out here that has ended and was not waited for: to /proc that number is dead.
    ended = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
    assert process_start(ended.pid) is None
    number = place.run(f"answer = fork(lambda: (acquire({str(tmp_path)!r}), time.sleep(100)), {ended.pid})")
    assert number == ended.pid
    wait_for(lambda: (tmp_path / ".writing-000001").exists())
    found = place.acquire(tmp_path, stale_after=20.0)
    assert found.get("code") == LeaseError.exit_code, found
    place.run(f"os.kill({number}, 9); os.waitpid({number}, 0)")
    assert place.acquire(tmp_path, stale_after=20.0)["generation"] == 2
    ended.wait()
    tried("schedules")


@needs_namespaces
def test_without_proc(places, tmp_path, tried):
    """Without /proc no pid proves anything: a beating holder is refused, a silent one waited for."""
    place = places(*NO_PROC, before="mount -t tmpfs none /proc &&")
    assert place.run("answer = [holder._pid_namespace(), holder._boot_id()]") == [0, ""]
    holder = places()
    holder.acquire(tmp_path)
    assert place.acquire(tmp_path, stale_after=20.0)["code"] == LeaseError.exit_code
    holder.kill()
    found = place.acquire(tmp_path, stale_after=0.5)
    assert found["generation"] == 2
    assert found["waited"] >= 0.5
    other = places()
    found = other.acquire(tmp_path, stale_after=20.0)
    assert found["code"] == LeaseError.exit_code, (
        "its own lease, which names no place, is that of a living one"
    )
    tried("schedules", 3)


@needs_namespaces
def test_neither_has_proc(places, tmp_path, tried):
    """Where neither process can tell its place, a number that nobody has in one of them is not dead in the other."""
    place, other = (places(*NO_PROC, before="mount -t tmpfs none /proc &&") for _ in range(2))
    number = place.run(f"answer = fork(lambda: (acquire({str(tmp_path)!r}), time.sleep(100)))")
    wait_for(lambda: (tmp_path / ".writing-000001").exists())
    assert holder_of(str(tmp_path)).pid == number
    assert other.run(f"answer = holder.process_start({number})") is None
    assert other.acquire(tmp_path, stale_after=20.0)["code"] == LeaseError.exit_code
    tried("schedules")


# -- other machines, other boots -------------------------------------------------------------------


def forge(path, generation=1, **changes):
    with open(path / f"lease-{generation:06d}", "wb") as file:
        file.write(encode(dataclasses.replace(myself(generation), **changes)))


@pytest.mark.parametrize(
    "elsewhere",
    [
        {"boot_id": "before-the-reboot"},
        {"host": "node7", "boot_id": "of-node7"},
        {"host": "node7", "boot_id": "of-node7", "pid": 1},
        {"boot_id": ""},
        {"pid_namespace": 0},
        {"pid_namespace": 7},
    ],
    ids=["reboot", "host", "host-pid-1", "no-boot-id", "no-namespace", "namespace"],
)
@pytest.mark.parametrize("beats", [True, False], ids=["beats", "silent"])
def test_pid_of_another_place(elsewhere, beats, tmp_path, tried):
    """A pid of another machine, of the time before a reboot, or of an unknown place proves neither life nor death."""
    forge(tmp_path, **{"pid": 4_000_000, **elsewhere})
    (tmp_path / ".writing-000001" / "000001_draft").mkdir(parents=True)
    now, slept = [0.0], []

    def sleep(seconds):
        now[0] += seconds
        slept.append(seconds)
        if beats:
            forge(tmp_path, **{"pid": 4_000_000, **elsewhere}, beat=len(slept))

    options = {"clock": lambda: now[0], "sleep": sleep, "say": lambda line: None}
    if beats:
        with pytest.raises(LeaseError):
            Lease.acquire(str(tmp_path), **options)
        assert (tmp_path / ".writing-000001" / "000001_draft").exists()
    else:
        Lease.acquire(str(tmp_path), **options).release()
        assert now[0] >= 300
        assert not (tmp_path / ".writing-000001").exists()
    tried("schedules")


# -- a thread that holds the GIL -----------------------------------------------------------------


def hold_the_gil(rival, path):
    lease_module.BEAT_SECONDS = 0.02
    run = train(path, rival, 1)
    # PyDLL keeps the GIL for as long as the call takes: here, until the test says a word.
    read, buffer = ctypes.PyDLL(None).read, ctypes.create_string_buffer(1)
    rival.tell(holding=True)
    read(rival.ear, buffer, 1)
    run.state["weights"] += 1
    run.save(step=2, wait=True)
    run.close()


def test_gil_held_for_long_seen_from_here(tmp_path, tried):
    """Nobody on the same machine takes over a holder that cannot beat since one of its threads keeps the GIL."""
    path = str(tmp_path / "run")
    with rivals((hold_the_gil, path)) as (one,):
        assert one.hear() == {"saved": 1}
        assert one.hear() == {"holding": True}
        silent = wait_for_silence(path)
        with pytest.raises(LeaseError, match=f"pid {one.pid} "):
            Lease.acquire(path, stale_after=0.1)
        assert holder_of(path).token == silent.token
        one.tell(go=True)
        assert one.end() == 0, one.hear()
    assert holdfast.open(path).progress.step == 2
    tried("schedules")


def wait_for_silence(path):
    """The holder once its beat stands still."""
    before = holder_of(path)
    while True:
        time.sleep(0.5)
        now = holder_of(path)
        if now == before:
            return now
        before = now


def test_gil_held_for_long_seen_from_elsewhere(tmp_path, monkeypatch, tried):
    """From elsewhere a holder that cannot beat for `stale_after` is taken over, and then publishes and deletes nothing."""
    path = str(tmp_path / "run")
    with rivals((hold_the_gil, path)) as (one,):
        assert one.hear() == {"saved": 1}
        assert one.hear() == {"holding": True}
        wait_for_silence(path)
        lease = take_from_elsewhere(path, monkeypatch, stale_after=0.3)
        before = contents(path)
        one.tell(go=True)
        assert "taken over by" in one.hear()["error"]
        assert one.end() == LeaseError.exit_code
    assert contents(path) == before
    lease.check()
    lease.release()
    tried("schedules")
