"""P1, P3 in mirrors: killed, or failing, at every call that changes a mirror or takes something from one."""

import logging
import os
import signal

import pytest
from disk_faults import (
    FOR_GOOD,
    ONCE,
    SHORT,
    WRITES,
    Failing,
    Killing,
    Numbered,
    child,
    files,
    prepared,
    succeed,
)
from mirrored_runs import CASES

from holdfast.store import lease


@pytest.mark.parametrize("name", CASES)
def test_killed_anywhere(name, zygote, memory, tried):
    """Killed at any call, a mirror shows whole checkpoints alone, and the next launch finishes what was begun."""
    tried("kills", zygote.ask("test_faults:kill_everywhere", name=name, place=memory))


@pytest.mark.parametrize("faults", [sorted(ONCE), [*FOR_GOOD], sorted(SHORT)], ids=",".join)
@pytest.mark.parametrize("name", ["Copy", "Further"])
def test_any_call_fails(name, faults, zygote, memory, tried):
    """A mirror that fails at any call never stops the training, is told, and is brought up to date later."""
    tried("errors", zygote.ask("test_faults:fail_everywhere", name=name, place=memory, faults=faults))


# -- in the zygote -----------------------------------------------------------------------------------


def there(kind, only):
    """A system that counts the calls below one folder alone, which come from one thread."""

    class There(kind):
        def call(self, name, *args):
            target = args[1] if name in ("rename", "symlink", "exchange") else args[0]
            path = os.readlink(f"/proc/self/fd/{target}") if isinstance(target, int) else os.fspath(target)
            if path == only or path.startswith(only + "/"):
                return super().call(name, *args)
            return self.make(name, *args)

    return There


def place_of(scenario):
    return getattr(scenario, scenario.where)


def record(scenario):
    system = files.system = there(Numbered, place_of(scenario))(os.path.dirname(scenario.run))
    scenario.act()
    return system.trace


def kill(scenario, number, moment):
    files.system = there(Killing, place_of(scenario))(os.path.dirname(scenario.run), number, moment)
    scenario.act()


def check(scenario):
    lease.Lease.acquire.__func__.__kwdefaults__["stale_after"] = 0.1
    scenario.check()


def kill_everywhere(name, place):
    kind = CASES[name]
    renew = prepared(kind, place)
    scenario = renew()
    calls = succeed(child(record, scenario))
    writes = [call for call in calls if call[0] in WRITES]
    points = [(calls, 1, "before")]
    points += [(calls, number, "after") for number in range(1, len(calls) + 1)]
    points += [(writes, number, "middle") for number in range(1, len(writes) + 1)]
    for among, number, moment in points:
        renew()
        said = os.path.join(place, "said")
        answer = child(kill, scenario, number, moment, said=said)
        where = f"{name}: killed {moment} call {number} of {len(among)}, {among[number - 1]}"
        assert answer["signal"] == signal.SIGKILL, f"{where}: it was not killed: {answer}"
        try:
            succeed(child(check, scenario, said=said))
        except AssertionError as error:
            with open(said) as file:
                raise AssertionError(f"{where}\n{error}\nstderr was:\n{file.read()[-3000:]}") from None
        os.unlink(said)
    return len(points)


def act_failing(scenario, number, fault):
    """The launch succeeds whatever the mirror does; gives what was said, and whether the call came."""
    lines = []

    class Heard(logging.Handler):
        def emit(self, record):
            lines.append(record.getMessage())

    logging.getLogger("holdfast").addHandler(Heard())
    system = files.system = there(Failing, place_of(scenario))(os.path.dirname(scenario.run), number, fault)
    assert scenario.act() == scenario.NEWEST
    return {"struck": system.struck is not None, "again": system.again, "lines": lines}


def fail_everywhere(name, place, faults):
    renew = prepared(CASES[name], place)
    scenario = renew()
    calls = succeed(child(record, scenario))
    if set(faults) <= SHORT:
        calls = [call for call in calls if call[0] in WRITES]
    for number, call in enumerate(calls, 1):
        fault = faults[number % len(faults)]
        renew()
        said = os.path.join(place, "said")
        where = f"{name}: {fault} at call {number} of {len(calls)}, {call}"
        try:
            answer = succeed(child(act_failing, scenario, number, fault, said=said))
            assert answer["struck"], "the call did not come"
            assert not answer["again"], f"synced again: {answer['again']}"
            told = any("mirror" in line for line in answer["lines"])
            assert told or fault in SHORT or call[0] in QUIET, "nobody was told"
            succeed(child(check, scenario, said=said))
        except AssertionError as error:
            with open(said) as file:
                raise AssertionError(f"{where}\n{error}\nstderr was:\n{file.read()[-3000:]}") from None
        os.unlink(said)
    return len(calls)


QUIET = set()
