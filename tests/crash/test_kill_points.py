"""P1, P3: killed at every call of the write protocol, and nothing is half-written, lost or left behind."""

import os
import signal
import sys
from importlib.util import find_spec

import pytest
from disk_faults import WRITES, Killing, Numbered, Zygote, child, files, prepared, succeed
from scenarios import SCENARIOS, TORCH

from holdfast.store import lease


@pytest.fixture(scope="module")
def zygote():
    zygote = Zygote("holdfast", "numpy", "holdfast.run", "holdfast.payload.writer", "holdfast.payload.reader")
    yield zygote
    zygote.close()


@pytest.fixture(scope="module")
def zygote_of_torch():
    pytest.importorskip("torch", reason="torch is not installed")
    zygote = Zygote(
        "torch", "holdfast.torch", "holdfast.exchange.importing", "safetensors.torch", "scenarios"
    )
    yield zygote
    zygote.close()


@pytest.fixture(scope="module")
def zygote_of_keras():
    pytest.importorskip("torch", reason="torch is not installed")
    if find_spec("keras") is None:
        pytest.skip("Keras is not installed")
    zygote = Zygote("torch", "keras_scenarios", "holdfast.keras.callback", "holdfast.keras.edge")
    yield zygote
    zygote.close()


@pytest.mark.parametrize("name", SCENARIOS)
def test_killed_anywhere(name, zygote, memory, tried):
    """Killed at any call, a run shows whole checkpoints, loses none that stay, resumes exactly and can be finished."""
    tried("kills", zygote.ask("test_kill_points:kill_everywhere", name=name, place=memory))


@pytest.mark.parametrize("name", TORCH)
def test_killed_anywhere_with_torch(name, zygote_of_torch, memory, tried):
    """The same for torch models and for files that other programs write and read."""
    tried("kills", zygote_of_torch.ask("test_kill_points:kill_everywhere", name=name, place=memory))


def test_killed_anywhere_in_fit(zygote_of_keras, memory, tried):
    """The same where Keras' `fit` is the loop, and the callback is what saves."""
    tried("kills", zygote_of_keras.ask("test_kill_points:kill_everywhere", name="Fitted", place=memory))


# -- in the zygote -----------------------------------------------------------------------------------


def kill_everywhere(name, place):
    """Kills a scenario after each of its calls, and in the middle of each write; gives how often."""
    own = {**SCENARIOS, **TORCH}
    # Keras is imported by its zygote alone, before it forks.
    kind = own[name] if name in own else sys.modules["keras_scenarios"].SCENARIOS[name]
    renew = prepared(kind, place)
    scenario = renew()
    calls = succeed(child(record, scenario))
    succeed(child(scenario.check_end, kind.STAGES[-1]))
    kills = 0
    writes = [call for call in calls if call[0] in WRITES]
    points = [(calls, 1, "before")]
    points += [(calls, number, "after") for number in range(1, len(calls) + 1)]
    points += [(writes, number, "middle") for number in range(1, len(writes) + 1)]
    for among, number, moment in points:
        renew()
        said = os.path.join(place, "said")
        answer = child(act, scenario, number, moment, said=said)
        what = "writes" if moment == "middle" else "calls"
        where = f"{name}: killed {moment} number {number} of {len(among)} {what}, {among[number - 1]}"
        assert answer["signal"] == signal.SIGKILL, f"{where}: it was not killed: {answer}"
        after = child(check, scenario, said=said)
        with open(said) as file:
            lines = file.read()[-3000:]
        try:
            succeed(after)
            nameless = (among[number - 1], moment) in NAMELESS
            assert nameless == (STALE in lines), "a dead holder was not taken over at once"
        except AssertionError as error:
            raise AssertionError(f"{where}\n{error}\nstderr was:\n{lines}") from None
        os.unlink(said)
        kills += 1
    return kills


def record(scenario):
    system = files.system = Numbered(scenario.place)
    system.exchanges = scenario.exchanges
    scenario.act()
    return system.trace


def act(scenario, number, moment):
    files.system = Killing(scenario.place, number, moment)
    files.system.exchanges = scenario.exchanges
    scenario.act()


# Between the creation of a lease file and the writing of its holder's name a kill leaves a nameless
# one. Nothing says who it was, so the next launch waits until it has seen no beat for some time.
NAMELESS = ((["open", "run/lease-G"], "after"), (["write", "run/lease-G"], "middle"))
STALE = "gave no sign of life"


def check(scenario):
    """What a reader sees, what the next launch resumes from, and whether it can be brought to its end."""
    lease.Lease.acquire.__func__.__kwdefaults__["stale_after"] = 0.1
    found = scenario.look()
    scenario.check(found)
    newest = scenario.newest(found)
    start = scenario.finish()
    assert start in (newest, None), f"resumed from {start}, the newest is {newest}"
    scenario.check_end(scenario.END)
