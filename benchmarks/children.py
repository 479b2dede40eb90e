"""Each measurement in a process of its own, forked from one that has imported the frameworks.

So every one begins with the same memory and the same warm modules, and leaves nothing behind.
"""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

# A peer that hangs must not hold up all the others.
_PATIENCE = 600
_PRELOADED = [
    "saving",
    "loading",
    "arrays",
    "stalling",
    "looping",
    "footprint",
    "runs",
    "partial",
    "scaling",
    "mirrors",
    "buckets",
]


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement: seconds (None: not possible here), bytes of extra memory, and what to check.

    A fact "note" is shown beside the row's name.
    """

    seconds: float | None
    extra: int | None = None
    facts: dict[str, Any] = field(default_factory=dict)


class Failed(Exception):  # noqa: N818 (an outcome of a measurement, not an error of this program)
    """A measurement ended with an error; the message is its traceback."""


def start() -> Any:
    """The context that starts measurements; its server imports everything before the first.

    OpenMP's threads sleep while they wait, in every row. As it comes they spin, until some library
    starts a second set of them, on which OpenMP gives the spinning up: a training on few cores then
    seemed to go faster with saves than without.
    """
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([f"benchmarks.{name}" for name in _PRELOADED])
    return context


def run(context: Any, task: Callable[..., Sample], *arguments: Any) -> Sample:
    """What `task(*arguments)` measured; `Failed` with its traceback when it raised or died."""
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(sender, task, arguments))
    process.start()
    sender.close()
    try:
        if not receiver.poll(_PATIENCE):
            process.kill()
            raise Failed(f"nothing came within {_PATIENCE} seconds")
        outcome = receiver.recv()
    except EOFError:
        process.join()
        raise Failed(f"the process ended with code {process.exitcode}") from None
    finally:
        receiver.close()
    process.join()
    if isinstance(outcome, str):
        raise Failed(outcome)
    return outcome  # type: ignore[no-any-return]


def nothing() -> Sample:
    """Starts the server of processes, so that its imports are no part of the first measurement."""
    return Sample(time.perf_counter())


def _work(sender: Any, task: Callable[..., Sample], arguments: tuple[Any, ...]) -> None:
    try:
        outcome: Sample | str = task(*arguments)
    except Exception:
        outcome = traceback.format_exc()
    sender.send(outcome)
    sender.close()
