"""Staging memory is grown beside the training, before the first save needs it."""

import torch

import holdfast
from holdfast import saving
from holdfast.payload import staging, threads


def train(path, seen, net=None, **options):
    net = net or torch.nn.Linear(64, 64)
    optimizer = torch.optim.Adam(net.parameters())
    run = holdfast.Run(path, every=holdfast.Every(steps=4), **options)
    run.track(model=net, optimizer=optimizer)
    for step in run.steps(8):
        if step == 2:
            threads.submit("publish", lambda: None).wait()
        seen.append(staging.pool.size)
        optimizer.zero_grad()
        net(torch.ones(2, next(net.parameters()).shape[1])).sum().backward()
        optimizer.step()
    run.close()


def test_the_first_save_finds_its_memory_ready(tmp_path, monkeypatch):
    """After the first step of an optimizer the memory for a whole state is made, and the saves make no more."""
    monkeypatch.setattr(saving, "_FELT", 0)
    monkeypatch.setattr(staging, "pool", staging.Pool())
    seen = []
    train(tmp_path / "r", seen)
    assert seen[0] == 0
    assert seen[2] == 2 * staging.BLOCK
    assert staging.pool.size == seen[2]


class Tied(torch.nn.Module):
    """Eight layers that share one weight of 4 MiB."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(1024, 1024, bias=False) for _ in range(8))
        for layer in self.layers:
            layer.weight = self.layers[0].weight

    def forward(self, x):
        return self.layers[0](x)


def test_no_more_is_made_than_saves_take(tmp_path, monkeypatch):
    """What is made ahead is what a save then takes: tied weights lie in the files once."""
    monkeypatch.setattr(saving, "_FELT", 0)
    monkeypatch.setattr(staging, "pool", staging.Pool())
    taken, take = [], staging.Pool.take
    monkeypatch.setattr(staging.Pool, "take", lambda self, count: taken.append(count) or take(self, count))
    seen = []
    train(tmp_path / "r", seen, net=Tied())
    assert 0 < seen[2] <= max(taken) * staging.BLOCK


def test_little_memory_is_not_made_ahead(tmp_path, monkeypatch):
    """A state that is copied in an instant is left to the first save, and so is one without staging."""
    monkeypatch.setattr(staging, "pool", staging.Pool())
    for options in ({}, {"staging": 0}):
        seen = []
        if options:
            monkeypatch.setattr(saving, "_FELT", -1)
        before = staging.pool.size
        train(tmp_path / f"r{len(options)}", seen, **options)
        assert seen[2] == before
