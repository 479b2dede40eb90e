"""P1, P3, P7: any call may fail; the caller is told, nothing half-written is seen, and the next launch goes on."""

import errno
import logging
import os
import sys
import threading

import pytest
from disk_faults import (
    FAULTS,
    FOR_GOOD,
    ONCE,
    SHORT,
    WRITES,
    Failing,
    FailingReads,
    Numbered,
    Zygote,
    child,
    files,
    prepared,
    succeed,
)
from scenarios import SCENARIOS

from holdfast.errors import HoldfastError, StorageError
from holdfast.format.names import parse_checkpoint_name
from holdfast.store import lease
from holdfast.store.lease import holder_of

# What may fail without an error: the checkpoint is safe, and a warning tells. P7 lists these.
QUIET = {
    ("open", "run/history.jsonl"),
    ("write", "run/history.jsonl"),
    # links for people
    ("unlink", "run/.writing-G/latest.link"),
    ("symlink", "run/.writing-G/latest.link"),
    ("rename", "run/latest"),
    ("unlink", "run/.writing-G/best.link"),
    ("symlink", "run/.writing-G/best.link"),
    ("rename", "run/best"),
    # deletions by policy
    ("rename", "run/.writing-G/CHECKPOINT.trash"),
    ("fsync", "run, after a deletion"),
    ("unlink", "run/.writing-G/CHECKPOINT.trash/*"),
    ("rmdir", "run/.writing-G/CHECKPOINT.trash"),
    # what earlier launches left: the rename that puts it out of use is none of them
    ("unlink", "run/lease-G"),
    ("rename", "run/.writing-G.swept-G/*"),
    ("unlink", "run/.writing-G.swept-G/*"),
    ("rmdir", "run/.writing-G.swept-G/*"),
    ("rmdir", "run/.writing-G.swept-G"),
}
# What is no failure at all: trying whether the disk takes direct I/O, and syncing folders above the
# run that belong to others.
DIRECT = "run/.writing-G/CHECKPOINT/.direct-io"
SILENT = {
    **{(name, DIRECT): set(errno.errorcode) for name in ("open", "pwrite")},
    ("unlink", DIRECT + ", before it is made"): set(errno.errorcode),
    **{("fsync", above): {errno.EACCES, errno.EROFS} for above in (".", "..", "../..")},
}


@pytest.fixture(scope="module")
def zygote():
    zygote = Zygote("holdfast", "numpy")
    yield zygote
    zygote.close()


# Every day each call fails in three ways, which take turns from call to call; `make prove` tries all
# of them at every call. These make the calls of another scenario again: one way is enough for them.
ALIKE = {"FirstSaveBehind", "LastOne", "Managed", "Epochs", "Release", "Tracked"}
READING = (
    "FurtherSave",
    "BestAndPinned",
    "ManagedBehind",
    "Damaged",
    "TakeOver",
    "Rewound",
    "Pinned",
    "Pruned",
)
READ_CODES = ("EIO", "ESTALE", "EACCES", "ENOENT")


def pytest_generate_tests(metafunc):
    thorough = metafunc.config.getoption("--thorough")
    if "faults" in metafunc.fixturenames:
        ways = [[fault] for fault in FAULTS] if thorough else [sorted(ONCE), [*FOR_GOOD], sorted(SHORT)]
        cases = [
            (name, way)
            for name in SCENARIOS
            for way in ways
            if thorough or name not in ALIKE or way is ways[0]
        ]
        metafunc.parametrize("name, faults", cases, ids=[f"{name}-{','.join(way)}" for name, way in cases])
    if "codes" in metafunc.fixturenames:
        ways = [[code, lasting] for code in READ_CODES for lasting in (False, True)]
        ways = [[way] for way in ways] if thorough else [ways]
        cases = [(name, way) for name in READING for way in ways]
        names = [f"{name}-{way[0][0] + '-lasting' * way[0][1] if thorough else 'all'}" for name, way in cases]
        metafunc.parametrize("name, codes", cases, ids=names)


def test_any_call_fails(name, faults, zygote, memory, tried):
    """A call that fails is told, leaves the old or the new state whole and nothing open, and the next launch goes on."""
    tried("errors", zygote.ask("test_failing_calls:fail_everywhere", name=name, place=memory, faults=faults))


def test_any_look_fails(name, codes, zygote, memory, tried):
    """A disk that cannot be read is an error or an older checkpoint, said loudly: never a run that begins anew."""
    tried(
        "errors",
        zygote.ask("test_failing_calls:fail_to_read_everywhere", name=name, place=memory, codes=codes),
    )


def test_exit_without_close(zygote, memory, tried):
    """A script that ends without closing its run ends with the code of the error that its last save met."""
    answer = zygote.ask("test_failing_calls:leave_everywhere", place=memory)
    tried("errors", answer["faults"])
    assert answer["codes"] == [0, StorageError.exit_code]


# -- in the zygote -----------------------------------------------------------------------------------


def fail_everywhere(name, place, faults):
    """Makes each call of a scenario fail, the ways taking turns; gives how many."""
    kind = SCENARIOS[name]
    renew = prepared(kind, place)
    scenario = renew()
    calls = succeed(child(record, scenario))
    said, problems = os.path.join(place, "said"), []
    if set(faults) <= SHORT:
        calls = [call for call in calls if call[0] in WRITES]
    for number, (call, path) in enumerate(calls, 1):
        fault = faults[number % len(faults)]
        renew()
        where = f"{name}: {fault} at call {number} of {len(calls)}, {call} {path}"
        try:
            told = succeed(child(act, scenario, number, fault, number % 2 == 0, said=said))
            check_told(told, fault)
            succeed(child(check_later, scenario, number % 2 == 0, said=said))
        except AssertionError as error:
            with open(said) as file:
                problems.append(f"{where}\n{error}\nstderr was:\n{file.read()[-3000:]}")
            if os.environ.get("ALL") is None:
                raise AssertionError(problems[0]) from None
        os.unlink(said)
    assert not problems, "\n\n=====".join(problems)
    return len(calls)


def leave_everywhere(place):
    """Makes each call of a script fail that forgets to close its run; gives how many, and the exit codes."""
    renew = prepared(SCENARIOS["FurtherSave"], place)
    scenario = renew()

    def closing():
        files.system = Numbered(scenario.place)
        forgetful(scenario).close()
        return files.system.trace

    calls, codes, faults = succeed(child(closing)), set(), 0
    said = os.path.join(place, "said")
    for number, (call, path) in enumerate(calls, 1):
        renew()
        answer = child(forget, scenario, number, said=said, leave=True)
        succeed(child(check_goes_on, scenario))
        if "value" not in answer:
            continue  # the script itself met the error
        faults += 1
        codes.add(answer["code"])
        quiet = (call, path) in QUIET
        assert answer["code"] == (0 if quiet else StorageError.exit_code), (
            f"call {number}, {call} {path}: {answer}"
        )
        with open(said) as file:
            assert "Input/output error" in file.read(), f"call {number}, {call} {path}: nothing was said"
        os.unlink(said)
    return {"faults": faults, "codes": sorted(codes)}


def forget(scenario, number):
    files.system = Failing(scenario.place, number, "EIO")
    forgetful(scenario)


def forgetful(scenario):
    """A run with a save under way."""
    run = scenario.open(staging=None)
    scenario.resumed(run, run.resume())
    scenario.step(run, 3)
    run.save(step=3)
    return run


def record(scenario):
    system = files.system = Numbered(scenario.place)
    system.exchanges = scenario.exchanges
    scenario.act()
    return system.trace


class Warned(logging.Handler):
    """What is said as a warning or worse, or, by a command, of something left behind."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        if record.levelno >= logging.WARNING or "left for the next start" in record.getMessage():
            self.lines.append(record.getMessage())


def act(scenario, number, fault, here):
    """Tries it; what is open afterwards was open before. With `here`, the same process goes on when the disk is well."""
    system = files.system = Failing(scenario.place, number, fault)
    system.exchanges = scenario.exchanges
    warned, error = Warned(), None
    logging.getLogger("holdfast").addHandler(warned)
    before, earlier = descriptors(), visible(scenario.run)
    try:
        scenario.act()
    except HoldfastError as caught:
        error = caught
    assert system.struck is not None, "the call never came"
    struck = place_of(system)
    told = {
        "struck": struck,
        "error": error and [type(error).__name__, getattr(error, "errno", None), str(error)],
        "storage": isinstance(error, StorageError) and {"path": error.facts.get("path")},
        "warned": list(warned.lines),
    }
    del error
    system.healed = True
    assert not system.again, f"synced again after a failed sync: {system.again}"
    if told["error"] is None and fault in SHORT and struck[1] == "run/lease-G":
        assert holder_of(scenario.run).released, "the release was not written in full"
    if fault in ONCE and struck == ("fsync", "run, after a publication"):
        number = max(earlier, default=0) + system.trace[: system.struck].count(("rename", "run/CHECKPOINT"))
        assert number not in visible(scenario.run), "a save that failed is there all the same"
    if fault in ONCE and struck == ("fsync", "., after a publication"):
        scenario.check_undone()
    kept = lost_files(scenario.place, system.lost, marks=fault in ONCE)
    assert not kept, f"not synced, and yet visible: {kept}"
    check_nothing_open(before)
    if here:
        check_goes_on(scenario)
    return told


def visible(run):
    """The numbers of the checkpoints that are there."""
    found = map(parse_checkpoint_name, os.listdir(run) if os.path.isdir(run) else ())
    return {name.sequence for name in found if name}


def place_of(system):
    name, path = system.trace[system.struck - 1]
    earlier = system.trace[system.struck - 2]
    if (name, path) == ("fsync", "run") and earlier == ("rename", "run/.writing-G/CHECKPOINT.trash"):
        return name, "run, after a deletion"
    if (name, path) == ("fsync", "run") and earlier == ("rename", "run/CHECKPOINT"):
        return name, "run, after a publication"
    if (name, path) == ("fsync", ".") and earlier[0] in ("rename", "exchange"):
        return name, "., after a publication"
    if (name, path) == ("unlink", DIRECT) and earlier != ("pwrite", DIRECT):
        return name, DIRECT + ", before it is made"
    for folder in ("run/.writing-G/CHECKPOINT.trash/", "run/.writing-G.swept-G/"):
        if path.startswith(folder):
            return name, folder + "*"
    return name, path


def descriptors():
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:  # the one of the listing itself
            continue
    return found


def lost_files(place, inodes, *, marks):
    """Files of visible checkpoints, and `marks`, whose sync had failed."""
    found = []
    for folder, _, names in os.walk(place):
        for name in names:
            path = os.path.join(folder, name)
            status = os.lstat(path)
            if not marks and os.path.basename(folder) in ("pins", "abandoned"):
                continue  # a disk that fails for good takes no mark back
            if ".writing-" not in path and "lease-" not in name and (status.st_dev, status.st_ino) in inodes:
                found.append(path)
    return found


def check_nothing_open(before):
    """No thread of a lease, no descriptor, no buffer and no lease is left."""
    for thread in threading.enumerate():
        if thread.name == "holdfast-lease":
            thread.join(10)
            assert not thread.is_alive(), "the lease goes on beating"
    names = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    assert all(
        name.startswith(("holdfast-blocks", "holdfast-disk", "holdfast-publish", "holdfast-watch"))
        for name in names
    ), names
    assert descriptors() == before, f"open are {descriptors()}, and were {before}"
    staging = sys.modules.get("holdfast.payload.staging")
    assert staging is None or staging.pool.free == staging.pool.size, "staging buffers are not given back"
    assert not lease._held, "a lease counts as held"
    assert not sys.modules["holdfast.run"]._open_runs, "a run counts as open"


def check_told(told, fault):
    """An error of the storage with its number and path, or a warning where that is enough."""
    struck = tuple(told["struck"])
    if fault in SHORT - {"nothing"}:
        assert told["error"] is None, f"falling short is no failure: {told['error']}"
        return
    code = getattr(errno, "EIO" if fault == "nothing" else FOR_GOOD.get(fault, fault))
    if told["error"] is None:
        if code not in SILENT.get(struck, ()):
            assert struck in QUIET, f"{struck} may not fail without an error"
            assert told["warned"], f"nobody was told of {struck}"
        return
    kind, number, text = told["error"]
    assert kind == "StorageError", f"{kind}: {text}"
    assert number == code, f"errno {number}: {text}"
    assert told["storage"]["path"], text
    assert told["storage"]["path"] in text, text


def check_later(scenario, ended):
    """What a later process finds; where the first one did not, it brings the work to its end."""
    if ended:
        scenario.settle()
    else:
        check_goes_on(scenario)
    scenario.check_end(scenario.END)


def check_goes_on(scenario):
    lease.Lease.acquire.__func__.__kwdefaults__["stale_after"] = 0.1
    found = scenario.look()
    scenario.check(found)
    newest = scenario.newest(found)
    start = scenario.finish()
    assert start in (newest, None), f"resumed from {start}, the newest is {newest}"


# -- reading -----------------------------------------------------------------------------------------

# Where a name is said to be gone, that may be believed, up to a point.
ERRORS = {
    "EIO": {"StorageError"},
    "EACCES": {"StorageError"},
    "ESTALE": {"StorageError", "NotFoundError"},
    "ENOENT": {"StorageError", "NotFoundError", "DamagedError", "LeaseError", "UsageError"},
}


def fail_to_read_everywhere(name, place, codes):
    """Makes each look of a scenario fail, once or from then on, the ways taking turns; gives how many."""
    kind = SCENARIOS[name]
    renew = prepared(kind, place)
    scenario = renew()
    looks = succeed(child(record_looks, scenario))
    said, problems = os.path.join(place, "said"), []
    for number, (call, path) in enumerate(looks, 1):
        code, lasting = codes[number % len(codes)]
        renew()
        where = f"{name}: {code} at look {number} of {len(looks)}, {call} {path}{', and later' * lasting}"
        try:
            succeed(child(look_badly, scenario, number, code, lasting, said=said))
            succeed(child(check_readable, scenario, said=said))
        except AssertionError as error:
            with open(said) as file:
                problems.append(f"{where}\n{error}\nstderr was:\n{file.read()[-3000:]}")
            if os.environ.get("ALL") is None:
                raise AssertionError(problems[0]) from None
        os.unlink(said)
    assert not problems, "\n\n=====".join(problems)
    return len(looks)


def record_looks(scenario):
    with FailingReads(scenario.place) as reads:
        scenario.act()
    return reads.trace


def look_badly(scenario, number, code, lasting):
    """Tries it; what it resumed from is the newest, or an older one and a warning, or nothing and an error."""
    warned, error = Warned(), None
    logging.getLogger("holdfast").addHandler(warned)
    before = descriptors()
    newest = scenario.newest(scenario.look())
    with FailingReads(scenario.place, number, getattr(errno, code), lasting) as reads:
        try:
            scenario.act()
        except HoldfastError as caught:
            error = type(caught).__name__, str(caught)
        except SystemExit as ended:  # a command
            error = "SystemExit", str(ended)
    assert reads.struck is not None, "the look never came"
    if error is not None:
        # Where the others are damaged, one that cannot be read leaves none; and to `verify`, which a
        # rewind begins with, what cannot be read is damaged.
        harmed = type(scenario).__name__ in ("Damaged", "Rewound")
        allowed = ERRORS[code] | ({"DamagedError"} if harmed else set())
        assert error[0] in allowed, f"{error[0]}: {error[1]}"
    if scenario.start not in (None, newest):
        assert scenario.start, "it began anew"
        assert any(line.startswith("Passed over") for line in warned.lines), (
            f"from {scenario.start}, in silence"
        )
    check_nothing_open(before)


def check_readable(scenario):
    """Nothing is lost or half-written, and the next launch goes on from the newest."""
    found = scenario.look()
    protected = set.intersection(*scenario.STAGES)
    assert protected <= found, f"of {protected} only {found} are left"
    newest = scenario.newest(found)
    start = scenario.finish()
    assert start in (None, newest), f"resumed from {start}, of {found}"
