"""Trainings killed by SIGKILL or left by `os._exit`, continued in other processes, bit by bit."""

# ruff: noqa: E402

import json
import os
import random

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import trainings as t
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, WeightedRandomSampler

ME = "test_exact_kills"


class Noisy(torch.utils.data.Dataset):
    """Augments in the training's process, from all global streams."""

    def __len__(self):
        return 22

    def __getitem__(self, index):
        x, y = t.data()[index]
        return x + torch.rand(6) * random.random() + np.random.rand(), y


def everything(launch):
    """All that a training may hold at once: 5 batches an epoch, 4 epochs."""
    run = launch.run(seed=0, keep={"best": 1, "metric": "loss", "mode": "min"})
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 1))
    opt = torch.optim.AdamW(net.parameters(), lr=0.01, amsgrad=True)
    sched = torch.optim.lr_scheduler.OneCycleLR(opt, max_lr=0.05, total_steps=25)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(opt, patience=0)
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0, growth_interval=3)
    ema = AveragedModel(net, use_buffers=True)
    order = torch.Generator().manual_seed(8)
    loader = DataLoader(Noisy(), 5, sampler=WeightedRandomSampler(torch.arange(1.0, 23), 22, generator=order))
    rng = np.random.default_rng(4)
    launch.track(model=net, optimizer=opt, scheduler=sched, plateau=plateau, scaler=scaler, ema=ema, rng=rng)
    run.track(probe=t.holdfast.Probe(net, torch.ones(2, 6)))
    for epoch in run.epochs(4):
        shift = torch.rand(6) + rng.random()
        run.state["loss"] = 0.0
        launch.alive("top")
        for number, (x, y) in run.batches(loader).numbered():
            with torch.autocast("cpu", torch.bfloat16):
                loss = t.loss_of(net, (x + shift, y)) / 2
            scaler.scale(loss).backward()
            run.state["loss"] += loss.item() * rng.random()
            launch.alive()
            if number % 2:
                scaler.step(opt)
                scaler.update()
                opt.zero_grad()
                ema.update_parameters(net)
            sched.step()
        launch.alive("tail")
        net.eval()
        run.log(loss=t.loss_of(net, t.data()[:4]).item(), epoch=epoch)
        net.train()
        plateau.step(run.state["loss"])
    return run


STEPS = {"every": {"epochs": 1, "steps": 2}}
EPOCHS = {"every": {"epochs": 1}}

# What kills each launch of a run, one after the other, and how the run saves.
LIVES = {
    "in the first batch": ([0], STEPS),
    "in the first epoch, before any save": ([3], EPOCHS),
    "at the first batch of an epoch": ([5], EPOCHS),
    "in the middle of an epoch": ([13], EPOCHS),
    "in the middle, saves in flight": ([7], {"every": {"steps": 1}}),
    "at the last batch of an epoch": ([9], STEPS),
    "after the last batch": ([[10, "tail"]], STEPS),
    "between epochs, before the first batch": ([[10, "top"]], STEPS),
    "twice in one epoch": ([11, 13], STEPS),
    "again and again": ([2, [5, "tail"], 8, [10, "top"], 12, 18], STEPS),
    "in the last batch of all": ([19], STEPS),
    "in the last tail": ([[20, "tail"]], STEPS),
}


def test_killed(place, in_processes):
    """A training killed by SIGKILL anywhere, continued by new processes, ends as one that was not."""
    orders = [{"training": f"{ME}:everything", "path": f"{place}/straight", "number": 0}]
    orders[0]["end"] = f"{place}/straight.json"
    expected = [0]
    for name, (deaths, options) in LIVES.items():
        for number, death in enumerate([*deaths, None]):
            order = {"training": f"{ME}:everything", "path": f"{place}/{name}", "number": number}
            how = "kill" if len(name) % 3 else "exit"
            order["options"] = {**options, "die_at": death, "how": how}
            order["end"] = f"{place}/{name}.json"
            orders.append(order)
            expected.append(0 if death is None else (-9 if how == "kill" else 9))
    codes, said = in_processes(orders)
    assert codes == expected, said
    ends = {}
    for name in ["straight", *LIVES]:
        with open(f"{place}/{name}.json", encoding="utf-8") as file:
            ends[name] = json.load(file)
    assert {name: t.differences(ends["straight"], ends[name]) for name in LIVES} == {
        name: [] for name in LIVES
    }


def test_other_process(place, in_processes):
    """A training that began in this process goes on in a new one, whose hashes are others, bit by bit."""
    straight = t.launch(everything, f"{place}/straight")
    every = t.Every(steps=3)
    assert t.launch(everything, f"{place}/moved", die_at=11, every=every) is None
    t.holdfast.run._open_runs[f"{place}/moved"].close()
    order = {"training": f"{ME}:everything", "path": f"{place}/moved", "number": 1, "end": f"{place}/end"}
    codes, said = in_processes([order], PYTHONHASHSEED="77")
    assert codes == [0], said
    with open(f"{place}/end", encoding="utf-8") as file:
        assert t.differences(straight, json.load(file)) == []


def test_straight_runs_are_equal(place):
    """Two straight runs equal one another: the condition of the promise, without which nothing is shown."""
    ends = [t.launch(everything, os.path.join(place, name)) for name in "ab"]
    assert t.differences(*ends) == []
