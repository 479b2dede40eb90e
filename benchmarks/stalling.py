"""What one save takes from the thread that trains."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import torch

from benchmarks import background, contenders, states
from benchmarks.background import Absent, opened
from benchmarks.bench import Bench, state_text
from benchmarks.children import Sample
from benchmarks.memory import Peak
from benchmarks.sizes import Size
from benchmarks.topic import Case, Rows, Target, Topic, ratio

# The first save finds no memory yet; of those after it the median is told.
_SAVES = 5
_LATER = "**Holdfast** background, every save after the first"
_BOUNDARY = "**Holdfast** overlap, every save after the first: held at the boundary"
_STEP = "**Holdfast** overlap: until the optimizer may step, with nothing between"


def stall(kind: Callable[..., Any], path: str, size: Size, device: str) -> Sample:
    """Saves, each begun when the one before is written.

    Facts: "first" and "later": seconds from the call to the next turn of the loop, of the first and the
    median of the others; "settled": the same of the others until the optimizer may write.
    """
    contenders.quietly()
    net, optimizer = states.trained(size, device=device)
    held: list[float] = []
    settled: list[float] = []
    peak = Peak()
    try:
        with opened(kind, path, net, optimizer) as saver:
            asked = None
            for turn in saver.steps(_SAVES + 1):
                if asked is not None:
                    _synchronize(device)
                    held.append(time.perf_counter() - asked)
                    saver.settle()
                    optimizer.step()  # no gradients: nothing is computed, but the hooks are called
                    settled.append(time.perf_counter() - asked)
                    saver.drain()
                if turn < _SAVES:
                    asked = time.perf_counter()
                    saver.save()
            note = saver.note
    except Absent as absent:
        return Sample(None, facts={"note": str(absent)})
    facts = {"first": held[0], "later": median(held[1:]), "settled": median(settled[1:]), "note": note}
    return Sample(held[0], peak.extra(), facts)


def _synchronize(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def device_copy(nbytes: int) -> Sample:
    """From the device into pinned memory that is there already."""
    source = torch.ones(nbytes, dtype=torch.uint8, device="cuda")
    target = torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)
    target.copy_(source)
    torch.cuda.synchronize()
    started = time.perf_counter()
    target.copy_(source, non_blocking=True)
    torch.cuda.synchronize()
    return Sample(time.perf_counter() - started)


def topics(bench: Bench) -> Iterator[Topic]:
    nbytes = states.expected_bytes(bench.size)
    title = f"What a save takes from the training thread, {state_text(bench.size, nbytes)}"
    has_cuda = torch.cuda.is_available()
    yield Topic(
        "stall",
        title,
        [*bench.copy_limits(nbytes), *_cases(bench, nbytes, "cpu")],
        bench.size.repetitions,
        targets=[
            Target("a later background save holds for at most 1.2x one memcpy", lambda rows: ratio(rows.seconds(_LATER), rows.limit), 1.2),
            Target("an overlapped one holds at the boundary for at most 5 ms", lambda rows: rows.seconds(_BOUNDARY), 0.005, unit="s"),
            Target("background: shorter than the shortest peer that copies before it returns", _against_default, 1.0, True),
        ],
        notes=[] if has_cuda else ["no CUDA device here, so nothing is said about one."],
    )  # fmt: skip
    if has_cuda:
        limit = Case(
            "limit: device to pinned memory", "limit", lambda _: bench.run(device_copy, nbytes), nbytes
        )
        yield Topic("stall", f"{title}, on a CUDA device", [limit, *_cases(bench, nbytes, "cuda")], bench.size.repetitions)  # fmt: skip


def _against_default(rows: Rows) -> float | None:
    return ratio(rows.seconds("torch DCP async_save, after the first"), rows.seconds(_LATER))


def _cases(bench: Bench, nbytes: int, device: str) -> list[Case]:
    def case(who: str, kind: Callable[..., Any], fact: str) -> Case:
        # One process for all the rows of a kind, each repetition anew.
        shared = together.setdefault(
            kind,
            functools.cache(
                lambda _: bench.cleared(stall, kind, bench.path("stall"), bench.size, device)
            ),
        )  # fmt: skip

        def measure(repetition: int) -> Sample:
            sample = shared(repetition)
            return (
                sample if sample.seconds is None else Sample(sample.facts[fact], sample.extra, sample.facts)
            )

        role = "holdfast" if "Holdfast" in who else "peer"
        return Case(who, role, measure, nbytes)

    together: dict[Any, Callable[[int], Sample]] = {}
    return [
        case(_LATER, background.Holdfast, "later"),
        case("**Holdfast** background, the first", background.Holdfast, "first"),
        case(_BOUNDARY, background.Overlapped, "later"),
        case(_STEP, background.Overlapped, "settled"),
        case("torch DCP async_save, after the first", background.Distributed, "later"),
        case("torch DCP async_save, staged in a thread: the call", background.StagedDistributed, "later"),
        case("torch DCP, staged in a thread: until the optimizer may step", background.StagedDistributed, "settled"),
        case("torch_checkpointing: the call", background.TorchCheckpointing, "later"),
        case("torch_checkpointing: until the optimizer may step", background.TorchCheckpointing, "settled"),
    ]  # fmt: skip
