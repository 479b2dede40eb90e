"""Ways to save a training without stopping it, each with the same verbs.

    for _ in saver.steps(100):
        loss.backward()
        saver.settle()      # before the optimizer writes: waits where that is the library's rule
        optimizer.step()
        saver.save()        # a save of the state as it now is
    saver.drain()           # until everything is written

What a save takes from the training is the time from `save` to the next turn of the loop, and that
in `settle`; Holdfast saves at the boundary between two turns, and waits inside `optimizer.step()`.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import staging

import holdfast
from benchmarks import contenders
from benchmarks.contenders import Absent
from holdfast import Every, Keep

_NEVER = 10**9
_PATIENCE = 300


class NoSaves:
    """The training alone."""

    note = ""

    def __init__(self, path: str, net: Any, optimizer: Any) -> None:
        self.path, self.net, self.optimizer = path, net, optimizer
        self.count = 0

    def steps(self, count: int) -> Iterator[int]:
        yield from range(count)

    def save(self) -> None:
        return

    def settle(self) -> None:
        return

    def drain(self) -> None:
        return

    def close(self) -> None:
        return

    def state(self) -> dict[str, Any]:
        return {"model": self.net.state_dict(), "optimizer": self.optimizer.state_dict()}

    def next_path(self) -> str:
        self.count += 1
        return f"{self.path}-{self.count}"


class TorchSave(NoSaves):
    """`torch.save` in the training's own thread."""

    durable = False

    def save(self) -> None:
        path = self.next_path()
        torch.save(self.state(), path)
        if self.durable:
            contenders.sync(path)


class DurableTorchSave(TorchSave):
    durable = True


class Distributed(NoSaves):
    """`torch.distributed.checkpoint.async_save` as it comes: the copy is made before it returns."""

    def __init__(self, path: str, net: Any, optimizer: Any) -> None:
        super().__init__(path, net, optimizer)
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        self.written: Any = None

    def options(self) -> dict[str, Any]:
        return {}

    def save(self) -> None:
        self.drain()
        self.written = dcp.async_save(self.state(), checkpoint_id=self.next_path(), **self.options())

    def drain(self) -> None:
        if self.written is not None:
            self.written.result()

    def close(self) -> None:
        self.drain()
        dist.destroy_process_group()


class StagedDistributed(Distributed):
    """The same with a stager of its own that copies in a thread and keeps its memory from save to save."""

    def __init__(self, path: str, net: Any, optimizer: Any) -> None:
        super().__init__(path, net, optimizer)
        self.copied: Any = None
        cuda = torch.cuda.is_available()
        self.stager = staging.DefaultStager(
            staging.StagingOptions(
                use_pinned_memory=cuda,
                use_shared_memory=False,
                use_async_staging=True,
                use_non_blocking_copy=cuda,
            )
        )

    def options(self) -> dict[str, Any]:
        return {"async_stager": self.stager}

    def save(self) -> None:
        super().save()
        self.copied, self.written = self.written.staging_completion, self.written.upload_completion

    def settle(self) -> None:
        if self.copied is not None:
            self.copied.result()
            self.copied = None

    def close(self) -> None:
        super().close()
        self.stager.close()


class TorchCheckpointing(NoSaves):
    """torch_checkpointing: staged in a thread, written by a process of its own; nothing is synced."""

    def __init__(self, path: str, net: Any, optimizer: Any) -> None:
        super().__init__(path, net, optimizer)
        self.manager, self.note = contenders.torch_checkpointing(os.path.dirname(path), background=True)
        self.written: Any = None

    def save(self) -> None:
        self.drain()
        self.written = self.manager.save(self.next_path(), self.state())

    def settle(self) -> None:
        with self.manager.lock():
            pass

    def drain(self) -> None:
        if self.written is not None:
            self.written.result()

    def close(self) -> None:
        self.manager.close()


class Holdfast(NoSaves):
    """A managed loop whose saves go on in the background; each is durable."""

    options: dict[str, Any] = {}  # noqa: RUF012 (never changed)

    keep = 1000

    def __init__(self, path: str, net: Any, optimizer: Any) -> None:
        super().__init__(path, net, optimizer)
        known = inspect.signature(holdfast.Run).parameters
        lacking = [name for name in self.options if name not in known]
        if lacking:
            raise Absent(f"this Holdfast has no {lacking[0]}=")
        self.run = holdfast.Run(path, every=Every(steps=_NEVER), keep=Keep(last=self.keep), **self.options)
        self.run.track(model=net, optimizer=optimizer)

    def steps(self, count: int) -> Iterator[int]:
        for step in self.run.steps(_NEVER):
            # The turn after the last one: its boundary has made the save that the last one asked for.
            if step == count:
                return
            yield step

    def save(self) -> None:
        self.count += 1
        self.run.save()

    def drain(self) -> None:
        until(lambda: self._newest() >= self.count)

    def _newest(self) -> int:
        self.run.log()  # raises what a save in the background ended with
        newest = self.run.latest
        return newest.sequence if newest is not None else 0

    def close(self) -> None:
        self.run.close()


class Overlapped(Holdfast):
    options = {"overlap": True}  # noqa: RUF012


class Bounded(Holdfast):
    """Holdfast with 256 MB of memory for copies."""

    options = {"staging": 256_000_000}  # noqa: RUF012


class Sparing(Holdfast):
    """Holdfast that keeps few checkpoints, for very many saves."""

    keep = 2


def until(done: Callable[[], bool]) -> None:
    started = time.monotonic()
    while not done():
        if time.monotonic() - started > _PATIENCE:
            raise TimeoutError(f"a save was not published within {_PATIENCE} seconds")
        time.sleep(0.005)


@contextlib.contextmanager
def opened(kind: Callable[..., Any], path: str, net: Any, optimizer: Any) -> Iterator[Any]:
    """A saver, closed at the end; `Absent` where it is not to be had."""
    saver = kind(path, net, optimizer)
    try:
        yield saver
    finally:
        saver.close()
