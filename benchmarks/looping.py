"""A real training that saves often: what its steps and its whole take."""

from __future__ import annotations

import glob
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks import background, contenders, limits, memory, states, table
from benchmarks.background import Absent, opened
from benchmarks.bench import Bench
from benchmarks.children import Sample
from benchmarks.sizes import Size
from benchmarks.topic import Case, Column, Row, Rows, Target, Topic

_WARM_UP = 3
_ALONE = "no saves"
_OVERLAPPED = "**Holdfast** overlap"
_KINDS: dict[str, Callable[..., Any]] = {
    _ALONE: background.NoSaves,
    "**Holdfast** background": background.Holdfast,
    _OVERLAPPED: background.Overlapped,
    "torch.save": background.TorchSave,
    "torch.save + fsync": background.DurableTorchSave,
    "torch DCP async_save": background.Distributed,
    "torch DCP async_save, staged in a thread": background.StagedDistributed,
    "torch_checkpointing (nothing synced)": background.TorchCheckpointing,
}


def train(kind: Callable[..., Any], place: str, size: Size) -> Sample:
    """Trains, saving every few steps, until all is written; the seconds of the whole.

    A few steps and one save come before, so that what only the first ones need is not counted.
    Facts: "steps": seconds from the end of one optimizer step to that of the next, saves included;
    "written": bytes in the files of one save.
    """
    contenders.quietly()
    memory.keep_freed()
    torch.manual_seed(4)
    net = states.gpt2(size)
    optimizer = states.adamw(net, fused=True)
    tokens = torch.randint(0, size.vocabulary, (1, size.tokens))
    before, ends = _WARM_UP + 1, []
    due = range(before + size.loop_every // 2, before + size.loop_steps, size.loop_every)
    started = 0.0
    try:
        with opened(kind, place, net, optimizer) as saver:
            for turn in saver.steps(before + size.loop_steps):
                if turn == before:
                    # The save before has been made at this boundary, and its content proved by one step.
                    saver.drain()
                    started = time.perf_counter()
                optimizer.zero_grad()
                states.loss(net, tokens).backward()
                saver.settle()
                optimizer.step()
                ends.append(time.perf_counter())
                if turn == before - 2 or turn in due:
                    saver.save()
            saver.drain()
            seconds = time.perf_counter() - started
            note = saver.note
    except Absent as absent:
        return Sample(None, facts={"note": str(absent)})
    times = [end - start for start, end in zip([started, *ends[before:]], ends[before:], strict=False)]
    written = sum(limits.bytes_in(path) for path in glob.glob(f"{place}*"))
    facts = {"steps": times, "saves": len(due), "written": written / (len(due) + 1), "note": note}
    return Sample(seconds, facts=facts)


def topics(bench: Bench) -> Iterator[Topic]:
    size = bench.size.for_loop()
    nbytes = states.expected_bytes(size)
    cases = [
        Case(who, _role(who), lambda _, kind=kind: bench.cleared(train, kind, bench.path("loop"), size))  # type: ignore[misc]
        for who, kind in _KINDS.items()
    ]
    yield Topic(
        "loop",
        f"{size.loop_steps} steps of training a GPT with a state of {nbytes / 1e9:.2g} GB, a save every {size.loop_every}",
        cases,
        bench.size.repetitions,
        columns=COLUMNS,
        targets=[
            Target("the least slow-down of all: points above the least of the peers", _against_others, 0.0, unit="%"),
        ],
    )  # fmt: skip


def _role(who: str) -> str:
    if who == _ALONE:
        return "limit"
    return "holdfast" if "Holdfast" in who else "peer"


def _slowdown(row: Row, rows: Rows) -> float | None:
    """Percent by which the whole took longer than without saves: median over the repetitions."""
    alone = rows.of(_ALONE)
    if alone is None or not row.times:
        return None
    return statistics.median(
        [(own / other - 1) * 100 for own, other in zip(row.times, alone.times, strict=False)]
    )


def _against_others(rows: Rows) -> float | None:
    """Percentage points between the least slow-down of Holdfast and that of the others."""
    least: dict[str, float] = {}
    for row in rows:
        value = _slowdown(row, rows)
        if value is not None:
            least[row.role] = min(value, least.get(row.role, value))
    return least["holdfast"] - least["peer"] if {"holdfast", "peer"} <= least.keys() else None


def _steps(row: Row) -> list[float]:
    return sorted(step for sample in row.samples for step in sample.facts.get("steps", []))


def _quantile(share: float) -> Callable[[Row, Rows], str]:
    def show(row: Row, _: Rows) -> str:
        steps = _steps(row)
        return table.seconds(steps[min(len(steps) - 1, int(share * len(steps)))]) if steps else ""

    return show


def _slowdown_text(row: Row, rows: Rows) -> str:
    value = _slowdown(row, rows)
    return "" if value is None else f"{value:+.1f} %"


def _written_text(row: Row, _: Rows) -> str:
    written, saves = row.fact("written"), row.fact("saves")
    return f"{saves:.0f} x {table.megabytes(written)}" if written and saves else ""


COLUMNS = (
    Column("step: median", _quantile(0.5)),
    Column("99th percentile", _quantile(0.99)),
    Column("longest", _quantile(1)),
    Column("all, until written", table.spread),
    Column("slow-down", _slowdown_text),
    Column("written", _written_text),
)
