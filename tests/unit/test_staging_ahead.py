"""Staging memory is grown beside the training, before the first save needs it."""

import torch

import holdfast
from holdfast import saving
from holdfast.payload import staging, threads


def train(path, seen, **options):
    net = torch.nn.Linear(64, 64)
    optimizer = torch.optim.Adam(net.parameters())
    run = holdfast.Run(path, every=holdfast.Every(steps=4), **options)
    run.track(model=net, optimizer=optimizer)
    for step in run.steps(8):
        if step == 2:
            threads.submit("publish", lambda: None).wait()
        seen.append(staging.pool.size)
        optimizer.zero_grad()
        net(torch.ones(2, 64)).sum().backward()
        optimizer.step()
    run.close()


def test_the_first_save_finds_its_memory_ready(tmp_path, monkeypatch):
    """After the first step of an optimizer the memory for a whole state is made, and the saves make no more."""
    monkeypatch.setattr(saving, "_FELT", 0)
    monkeypatch.setattr(staging, "pool", staging.Pool())
    seen = []
    train(tmp_path / "r", seen)
    assert seen[0] == 0
    assert seen[2] >= staging.BLOCK
    assert staging.pool.size == seen[2]


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
