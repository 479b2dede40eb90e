"""Signals to the whole process group, loader workers included: the place is saved and the end is equal."""

# ruff: noqa: E402

import json
import os
import signal

import pytest

torch = pytest.importorskip("torch")

import trainings as t
from torch.utils.data import DataLoader

import holdfast

ME = "test_exact_signals"


def train(launch, **options):
    """5 batches an epoch, 3 epochs."""
    run = launch.run(seed=0)
    net = t.net(dropout=0.3)
    opt = torch.optim.Adam(net.parameters(), lr=0.01)
    sched = torch.optim.lr_scheduler.StepLR(opt, 1)
    loader = DataLoader(t.data(), 5, shuffle=True, **options)
    launch.track(model=net, optimizer=opt, scheduler=sched)
    for _ in run.epochs(3):
        run.state["loss"] = 0.0
        for batch in run.batches(loader):
            run.state["loss"] += t.step(net, opt, batch)
            launch.alive()
        launch.alive("tail")
        sched.step()
        run.log(loss=run.state["loss"])
    return run


def forked(launch):
    return train(launch, num_workers=2, multiprocessing_context="fork")


def persistent(launch):
    return train(launch, num_workers=2, multiprocessing_context="fork", persistent_workers=True)


def spawned(launch):
    return train(launch, num_workers=1, multiprocessing_context="spawn")


def steps(launch):
    """No loader, no framework's step: a loop of steps."""
    run = launch.run(seed=0)
    run.state["sum"] = torch.zeros(3)
    for _ in run.steps(15):
        run.state["sum"] += torch.rand(3)
        launch.alive()
    return run


# (training, signals by step, exit code, steps that must have been saved when it had ended)
CASES = {
    "term, forked workers": (forked, {"7": ["SIGTERM"]}, 75, 8),
    "term, persistent workers": (persistent, {"7": ["SIGTERM"]}, 75, 8),
    "term, spawned worker": (spawned, {"1": ["SIGTERM"]}, 75, 2),
    "usr1, forked workers": (forked, {"2": ["SIGUSR1"]}, 75, 3),
    "usr1, spawned worker": (spawned, {"2": ["SIGUSR1"]}, 75, 3),
    "term three times": (train, {"7": ["SIGTERM", "SIGUSR1", "SIGTERM"]}, 75, 8),
    "at the last batch of an epoch": (forked, {"9": ["SIGTERM"]}, 75, 10),
    "at the first batch": (forked, {"0": ["SIGTERM"]}, 75, 1),
    "at the last batch of all": (train, {"14": ["SIGTERM"]}, 75, 15),
    "in the last tail": (train, {"15": ["SIGTERM"]}, 75, 15),
    "in the tail": (train, {"10": ["SIGTERM"]}, 75, 10),
    "usr2 goes on": (forked, {"3": ["SIGUSR2"], "8": ["SIGUSR2"]}, 0, 15),
    "usr2, then term": (forked, {"3": ["SIGUSR2", "SIGTERM"]}, 75, 4),
    "one Ctrl-C": (forked, {"7": ["SIGINT"]}, 130, 8),
    "two Ctrl-C": (forked, {"3": ["SIGUSR2"], "7": ["SIGINT", "SIGINT"]}, 130, 4),
    "term after Ctrl-C": (train, {"7": ["SIGINT", "SIGTERM"]}, 75, 8),
    "in a loop of steps": (steps, {"4": ["SIGTERM"]}, 75, 5),
}


def test_signals(place, in_processes):
    """After any signal the place is on disk, the exit code tells, and the resumed end is equal."""
    orders, expected, pairs = [], [], []
    for training in (train, steps):
        path = f"{place}/straight-{training.__name__}"
        orders.append(
            {"training": f"{ME}:{training.__name__}", "path": path, "number": 0, "end": f"{path}.json"}
        )
        expected.append(0)
    for name, (training, signals, code, _) in CASES.items():
        order = {"training": f"{ME}:{training.__name__}", "path": f"{place}/{name}", "number": 0}
        orders.append({**order, "options": {"signals": signals}, "copy": f"{place}/{name}, stopped"})
        if training is spawned:
            order["training"] = f"{ME}:train"  # starting workers of this kind again takes seconds
        orders.append({**order, "number": 1, "end": f"{place}/{name}.json"})
        expected += [code, 0]
        pairs.append((name, "steps" if training is steps else "train"))
    codes, said = in_processes(orders)
    assert codes == expected, said

    def end(name):
        with open(f"{place}/{name}.json", encoding="utf-8") as file:
            return json.load(file)

    for name, straight in pairs:
        saved = [p.step for p in t.places(f"{place}/{name}, stopped").values()]
        assert max(saved) == CASES[name][3], name
        assert t.differences(end(f"straight-{straight}"), end(name)) == [], name
        if CASES[name][2] == 75:
            assert (
                f"{holdfast.open(f'{place}/{name}, stopped').name} is saved; ending with exit code 75" in said
            )
    usr2 = [p.step for p in t.places(f"{place}/usr2 goes on, stopped").values()]
    assert usr2 == [4, 9, 15], "USR2 saves at the next boundary and goes on"


def test_handlers(place):
    """The signals' handlers are the script's own again when the loop has ended, however it ended."""

    def mine(number, frame):
        seen.append(number)

    seen = []
    previous = signal.signal(signal.SIGUSR2, mine)
    try:
        run = holdfast.Run(place)
        for number in run.steps(4):
            assert signal.getsignal(signal.SIGUSR2) is not mine
            if number == 1:
                os.kill(os.getpid(), signal.SIGUSR2)
        assert signal.getsignal(signal.SIGUSR2) is mine
        assert seen == [signal.SIGUSR2], "a handler that the user installed is called as well"
        run.close()
        again = holdfast.Run(place)
        for _ in again.steps(8):
            break
        assert signal.getsignal(signal.SIGUSR2) is mine
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        again.close()
    finally:
        signal.signal(signal.SIGUSR2, previous)


def test_preempted(place):
    """Preempted is a SystemExit with code 75 that names the checkpoint."""
    run = holdfast.Run(place)
    with pytest.raises(holdfast.Preempted) as caught:
        for _ in run.steps(4):
            os.kill(os.getpid(), signal.SIGTERM)
    assert isinstance(caught.value, SystemExit)
    assert caught.value.code == 75
    assert str(caught.value) == f"SIGTERM: {run.latest.name} is saved"
    run.close()
