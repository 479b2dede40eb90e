"""What loops may contain: accumulation, streams, sums, `steps`, a loop of one's own; resumed bit by bit."""

# ruff: noqa: E402

import random

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import trainings as t
from torch.utils.data import DataLoader


def shuffled(size=5):
    return DataLoader(t.data(), size, shuffle=True)


# -- sums and streams --------------------------------------------------------------------------


def test_sums_and_streams(assert_exact):
    """Sums that the top of the body resets, and all random streams used everywhere, are exact."""

    def train(launch):
        net = t.net(dropout=0.4)
        opt = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
        loader, rng, dice = shuffled(), np.random.default_rng(4), random.Random(5)
        run = launch.run(keep={"best": 1, "metric": "loss", "mode": "min"})
        launch.track(model=net, optimizer=opt, rng=rng, dice=dice)
        for epoch in run.epochs(3):
            mixing, factor = torch.randperm(6), rng.random() + dice.random()
            np.random.rand(), random.random()
            run.state["loss"], run.state["count"], run.state["seen"] = 0.0, 0, set()
            launch.top()
            for x, y in run.batches(loader):
                noise = random.gauss(0, 1) + np.random.randn() + rng.normal() + dice.gauss(0, 1)
                run.state["loss"] += t.step(net, opt, (x[:, mixing] * factor + noise, y))
                run.state["count"] += len(x)
                run.state["seen"].add(round(float(x[0, 0]), 6))
            run.state.setdefault("means", []).append(run.state["loss"] / run.state["count"])
            run.log(loss=run.state["loss"] + random.random(), epoch=epoch)
        return run

    assert_exact(train)


def test_own_permutation(assert_exact):
    """Batches cut by hand from a permutation that the top of the body draws are exact."""

    def train(launch):
        net = t.net()
        opt = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
        x, y = t.data().tensors
        run = launch.run()
        launch.track(model=net, optimizer=opt)
        for _ in run.epochs(3):
            order = torch.randperm(len(x))
            for start in run.batches(range(0, len(x), 5)):
                chosen = order[start : start + 5]
                t.step(net, opt, (x[chosen], y[chosen]))
        return run

    assert_exact(train, cuts=list)


# -- accumulation --------------------------------------------------------------------------------


def accumulating(*, every, top=False, at_end=False, epochs=3):
    def train(launch):
        net = t.net()
        opt = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
        loader = shuffled()
        run = launch.run()
        launch.track(model=net, optimizer=opt)
        for _ in run.epochs(epochs):
            if top:
                opt.zero_grad()
            launch.top()
            for number, batch in run.batches(loader).numbered():
                (t.loss_of(net, batch) / every).backward()
                if (run.progress.step if not top else number) % every == every - 1:
                    opt.step()
                    opt.zero_grad()
            if at_end:
                opt.step()
                opt.zero_grad()
        return run

    return train


@pytest.mark.parametrize("every", [2, 3])
def test_accumulation(every, assert_exact):
    """Gradients gathered over batches, and across the end of an epoch, are part of the state."""
    assert_exact(accumulating(every=every), cuts=list)


def test_accumulation_cleared_at_the_top(assert_exact):
    """`zero_grad()` at the top of the body, run once more by a resume, does not lose gathered gradients."""
    assert_exact(accumulating(every=3, top=True))


def test_accumulation_stepped_at_the_end(assert_exact):
    """A last step after the last batch, with what is left, is made once."""
    assert_exact(accumulating(every=2, top=True, at_end=True))


def test_accumulation_continued_later(place):
    """Gradients that are pending where a goal is reached are there when a larger goal continues."""
    straight = t.launch(accumulating(every=3), f"{place}/straight")
    for epochs in (1, 2, 3):
        end = t.launch(accumulating(every=3, epochs=epochs), f"{place}/parts", epochs - 1)
    assert t.differences(straight, end) == []


@pytest.mark.parametrize("to_none", [True, False])
def test_gradients_set_to_zero(to_none, assert_exact):
    """Parameters that are used only in some batches are exact, zeroed gradients or none."""

    def train(launch):
        net = torch.nn.ModuleList([torch.nn.Linear(6, 1), torch.nn.Linear(6, 1)])
        opt = torch.optim.AdamW(net.parameters(), lr=0.05, weight_decay=0.1)
        loader = shuffled()
        run = launch.run()
        launch.track(model=net, optimizer=opt)
        for _ in run.epochs(2):
            for x, y in run.batches(loader):
                opt.zero_grad(set_to_none=to_none)
                torch.nn.functional.mse_loss(net[run.progress.step % 3 == 1](x), y).backward()
                opt.step()
        return run

    assert_exact(train, cuts=list)


# -- other loops -----------------------------------------------------------------------------------


def test_steps(assert_exact):
    """A loop of steps with NumPy state and a generator in run.state, without a framework, is exact."""

    def train(launch):
        run = launch.run()
        rng = np.random.default_rng(launch.number)
        launch.track(rng=rng)
        run.state.update(weights=np.zeros((3, 2), np.float32), own=np.random.default_rng(1), trail=[])
        for number in run.steps(12):
            gradient = rng.normal(size=(3, 2)) + run.state["own"].random()
            run.state["weights"] -= (0.1 * gradient * np.random.rand()).astype(np.float32)
            run.state["trail"].append((number, np.float64(gradient.sum()), random.random()))
            if number % 4 == 3:
                run.log(size=np.abs(run.state["weights"]).sum())
        return run

    assert_exact(train, cuts=list)


def test_steps_with_torch(assert_exact):
    """Reinforcement learning in small: an environment in run.state, torch's stream, a policy."""

    def train(launch):
        net = torch.nn.Linear(2, 2)
        opt = torch.optim.Adam(net.parameters(), lr=0.05)
        run = launch.run(keep={"best": 2, "metric": "reward", "mode": "max"})
        launch.track(policy=net, optimizer=opt)
        run.state["place"], run.state["replay"] = torch.zeros(2), []
        for _ in run.steps(15):
            chances = torch.softmax(net(run.state["place"]), 0)
            action = int(torch.multinomial(chances, 1))
            run.state["place"] = run.state["place"] * 0.5 + torch.rand(2) + action
            reward = float(run.state["place"].sum())
            run.state["replay"] = [*run.state["replay"], (action, reward)][-4:]
            opt.zero_grad()
            (-torch.log(chances[action]) * reward).backward()
            opt.step()
            run.log(reward=reward)
        return run

    assert_exact(train)


def own_loop(launch):
    net = t.net(dropout=0.2)
    opt = torch.optim.Adam(net.parameters(), lr=0.02)
    sched = torch.optim.lr_scheduler.StepLR(opt, 2)
    loader = shuffled()
    run = launch.run(keep={"best": 1, "metric": "loss", "mode": "min", "last": t.ALL})
    launch.track(model=net, optimizer=opt, scheduler=sched)
    progress = run.resume()
    for epoch in range(progress.epoch, 4):
        total = 0.0
        for batch in loader:
            total += t.step(net, opt, batch) + random.random()
        sched.step()
        launch.alive()
        run.save(epoch=epoch + 1, step=run.progress.step + len(loader), metrics={"loss": total})
    return run


@pytest.mark.parametrize("wait", [1, 2, 3])
def test_own_loop(wait, place):
    """A loop of the user's own that calls resume() and save() is exact."""
    straight = t.launch(own_loop, f"{place}/straight")
    assert t.launch(own_loop, f"{place}/parts", 0, die_at=5 * wait) is None
    assert t.differences(straight, t.launch(own_loop, f"{place}/parts", 1)) == []
