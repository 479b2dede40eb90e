"""The memory that background saves take, and whether anything is left behind by many."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from benchmarks import background, contenders, memory, states, table
from benchmarks.background import Absent, opened
from benchmarks.bench import Bench, state_text
from benchmarks.children import Sample
from benchmarks.sizes import Size
from benchmarks.topic import Case, Column, Row, Rows, Target, Topic

_SAVES = 2
_OURS = "**Holdfast** background"
_BOUNDED = "**Holdfast** background, staging=256 MB"
_KINDS: dict[str, Callable[..., Any]] = {
    _OURS: background.Holdfast,
    _BOUNDED: background.Bounded,
    "**Holdfast** overlap": background.Overlapped,
    "torch DCP async_save": background.Distributed,
    "torch DCP async_save, staged in a thread": background.StagedDistributed,
    "torch_checkpointing": background.TorchCheckpointing,
}


def peak(kind: Callable[..., Any], path: str, size: Size) -> Sample:
    """The most memory that a few saves take, each begun when the one before is written."""
    contenders.quietly()
    net, optimizer = states.trained(size)
    most = memory.Peak()
    try:
        with opened(kind, path, net, optimizer) as saver:
            for _ in saver.steps(_SAVES):
                saver.drain()
                saver.settle()
                optimizer.step()
                saver.save()
            saver.drain()
            note = saver.note
    except Absent as absent:
        return Sample(None, facts={"note": str(absent)})
    return Sample(0.0, most.extra(), {"nbytes": states.nbytes(net, optimizer), "note": note})


def growth(path: str, size: Size) -> Sample:
    """What a tenth of many saves left behind, against all of them: bytes, descriptors, threads."""
    contenders.quietly()
    net, optimizer = states.trained(size)
    found: list[dict[str, int]] = []
    with opened(background.Sparing, path, net, optimizer) as saver:
        for turn in saver.steps(size.saves + 1):
            saver.drain()
            if turn in (max(1, size.saves // 10), size.saves):
                found.append(memory.inventory())
            if turn < size.saves:
                saver.save()
    first, last = found
    return Sample(0.0, None, {name: last[name] - first[name] for name in first})


def topics(bench: Bench) -> Iterator[Topic]:
    nbytes = states.expected_bytes(bench.size)

    def extra(who: str, unit: float) -> Callable[[Rows], float | None]:
        def value(rows: Rows) -> float | None:
            row = rows.of(who)
            return row.extra / unit if row is not None and row.extra is not None else None

        return value

    yield Topic(
        "memory",
        f"Extra memory of background saves, {state_text(bench.size, nbytes)}",
        [
            Case(
                who,
                "holdfast" if "Holdfast" in who else "peer",
                lambda _, kind=kind: bench.cleared(peak, kind, bench.path("peak"), bench.size),  # type: ignore[misc]
                nbytes,
            )
            for who, kind in _KINDS.items()
        ],
        min(2, bench.size.repetitions),
        columns=_PEAKS,
        targets=[
            Target("a background save takes at most 1.05x the state", extra(_OURS, nbytes), 1.05),
            Target("with staging=256 MB at most 256 MB", extra(_BOUNDED, 1), 256e6, unit="MB"),
        ],
        notes=["of this process; the process in which torch_checkpointing writes comes on top."],
    )
    bench.clear()
    small = bench.size.for_growth()
    yield Topic(
        "memory",
        f"Left behind from save {max(1, small.saves // 10)} to save {small.saves} of {table.megabytes(states.expected_bytes(small))}",
        [Case(_OURS, "holdfast", lambda _: bench.cleared(growth, bench.path("growth"), small))],
        1,
        columns=_LEFT,
        targets=[
            Target("many saves leave at most 4 MB behind", lambda rows: rows[0].fact("memory"), 4e6, unit="MB"),
            Target("no descriptor", lambda rows: rows[0].fact("descriptors"), 0, unit=""),
            Target("no thread", lambda rows: rows[0].fact("threads"), 0, unit=""),
        ],
    )  # fmt: skip


def _of_state(row: Row, _: Rows) -> str:
    return f"{row.extra / row.nbytes:.2f}x" if row.extra is not None else row.failure or "not possible here"


def _count(name: str) -> Callable[[Row, Rows], str]:
    def show(row: Row, _: Rows) -> str:
        found = row.fact(name)
        return "" if found is None else f"{found:+g}"

    return show


def _left_memory(row: Row, _: Rows) -> str:
    found = row.fact("memory")
    return row.failure or "" if found is None else table.megabytes(found)


_PEAKS = (
    Column("of the state", _of_state),
    Column("extra memory", lambda row, _: table.megabytes(row.extra) if row.extra is not None else ""),
)
_LEFT = (
    Column("memory", _left_memory),
    Column("descriptors", _count("descriptors")),
    Column("threads", _count("threads")),
)
