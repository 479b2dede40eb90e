"""What a measuring process does: one function for each kind of row."""

from __future__ import annotations

import os
import time
from typing import Any

import torch

import holdfast
from benchmarks import limits, states
from benchmarks.children import Sample
from benchmarks.contenders import LOADERS, SAVERS, sync
from benchmarks.memory import measured
from benchmarks.sizes import Size


def raw_write(path: str, size: int, threads: int, direct: bool) -> Sample:
    return Sample(limits.write(path, size, threads, direct=direct))


def raw_copy(size: int, threads: int) -> Sample:
    return Sample(limits.copy(size, threads))


def raw_read(path: str, threads: int) -> Sample:
    limits.warm(path)
    return Sample(limits.read(path, threads))


def save(who: str, path: str, size: Size) -> Sample:
    """A durable save of a trained network and its optimizer."""
    net, optimizer = states.trained(size)
    _warm_up(who, path)
    seconds, extra = measured(lambda: SAVERS[who].save(path, net, optimizer))
    facts = {"fingerprint": states.fingerprint(net, optimizer), "nbytes": states.nbytes(net, optimizer)}
    return Sample(seconds, extra, facts)


def restore(who: str, path: str, size: Size) -> Sample:
    """A warm load into a live network and its optimizer, until every page of them is there."""
    net, optimizer = states.fresh(size)
    _warm_up(who, path)
    limits.warm(path)

    def act() -> None:
        LOADERS[who].restore(path, net, optimizer)
        states.touch(net, optimizer)

    seconds, extra = measured(act)
    return Sample(seconds, extra, {"fingerprint": states.fingerprint(net, optimizer)})


def save_arrays(who: str, path: str, size: Size) -> Sample:
    arrays = states.small_arrays(size)
    _warm_up(who, path)
    return Sample(*measured(lambda: SAVERS[who].save_arrays(path, arrays)), {"nbytes": len(arrays) * 1024})


def load_arrays(who: str, path: str, size: Size) -> Sample:
    _warm_up(who, path)
    limits.warm(path)
    found: list[Any] = []
    seconds, extra = measured(lambda: found.append(LOADERS[who].load_arrays(path)))
    if not all(torch.equal(found[0][name], value) for name, value in states.small_arrays(size).items()):
        raise ValueError(f"{who} loaded other values than were saved")
    return Sample(seconds, extra)


def _warm_up(who: str, path: str) -> None:
    # What is imported, started or tried out once in a process is no part of a save or a load.
    contender, small = LOADERS[who], f"{path}-small-{os.getpid()}"
    contender.save_arrays(small, {"tensor": torch.zeros(1024)})
    contender.load_arrays(small)


def stall(path: str, size: Size, earlier: int) -> Sample:
    """How long `Run.save` holds the training: its first save, or one after `earlier` ones."""
    net, optimizer = states.trained(size)
    run = holdfast.Run(path, keep=holdfast.Keep(last=1))
    run.track(model=net, optimizer=optimizer)
    run.resume()
    for epoch in range(1, earlier + 1):
        run.save(epoch=epoch, wait=True)
    seconds, extra = measured(lambda: run.save(epoch=earlier + 1))
    run.close()
    return Sample(seconds, extra)


def stall_distributed(path: str, size: Size, earlier: int) -> Sample:
    """The same for `torch.distributed.checkpoint.async_save`."""
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp

    net, optimizer = states.trained(size)
    state = {"model": net.state_dict(), "optimizer": optimizer.state_dict()}
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        for number in range(earlier):
            dcp.async_save(state, checkpoint_id=f"{path}-{number}").result()
        futures: list[Any] = []
        seconds, extra = measured(lambda: futures.append(dcp.async_save(state, checkpoint_id=path)))
        futures[0].result()
        sync(path)
    finally:
        dist.destroy_process_group()
    return Sample(seconds, extra)


def begin_run(path: str) -> Sample:
    """A run with one small checkpoint, to be multiplied."""
    run, _ = _small_run(path)
    run.save(epoch=1, metrics={"loss": 1.0, "val_accuracy": 0.5}, wait=True)
    run.close()
    return Sample(0.0)


def resume(path: str) -> Sample:
    """Taking over a run and restoring its newest checkpoint."""
    run, net = _small_run(path)
    seconds, extra = measured(run.resume)
    if float(net.weight.detach().mean()) != 1.0:
        raise ValueError(f"{path} was not resumed")
    run.close()
    return Sample(seconds, extra, {"epoch": run.progress.epoch})


def scan(path: str) -> Sample:
    """What `holdfast ls` reads, without starting a process."""
    from holdfast.store import catalog

    seconds, extra = measured(lambda: catalog.scan(path))
    return Sample(seconds, extra)


def _small_run(path: str) -> tuple[holdfast.Run, Any]:
    net = torch.nn.Linear(64, 10)
    fresh = not os.path.exists(path)
    torch.nn.init.constant_(net.weight, 1.0 if fresh else 0.0)
    run = holdfast.Run(
        path,
        config={"lr": 0.1, "batch_size": 64},
        keep=holdfast.Keep(last=10_000, best=1, metric="val_accuracy", mode="max"),
    )
    run.track(model=net, optimizer=torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9))
    if fresh:
        run.resume()
    return run, net


def nothing() -> Sample:
    """Starts the server of processes, so that its imports are no part of the first measurement."""
    return Sample(time.perf_counter())


# torch imports much at the first optimizer; here, so that no measuring process has to.
states.adamw(torch.nn.Linear(1, 1))
