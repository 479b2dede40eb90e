"""Speed from small states to large ones, and with more or fewer threads."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch

import holdfast
from benchmarks import contenders, limits, plot
from benchmarks.bench import Bench, raw_read
from benchmarks.children import Failed, Sample
from benchmarks.contenders import warm_up
from benchmarks.memory import measured
from benchmarks.sizes import QUICK
from benchmarks.topic import Case, Column, Row, Rows, Topic, ratio

_PIECE = 16 << 20
_LARGE = 1 << 30  # from here on three repetitions are enough: the noise is smaller than at 1 MB
_THREADS = (1, 2, 4, 8)


class State(torch.nn.Module):
    """Parameters of 16 MiB (fewer bytes in a smaller state)."""

    def __init__(self, nbytes: int, *, fill: bool) -> None:
        super().__init__()
        piece = min(_PIECE, nbytes)
        content = torch.from_numpy(np.random.default_rng(0).random(piece // 4, np.float32))
        # Written once, so that the pages are there, with or without the content.
        values = (content + number if fill else torch.ones_like(content) for number in range(nbytes // piece))
        self.arrays = torch.nn.ParameterList(torch.nn.Parameter(each, requires_grad=False) for each in values)


def save(path: str, nbytes: int, threads: int | None) -> Sample:
    contenders.quietly()
    _set_threads(threads)
    state = State(nbytes, fill=True)
    warm_up("holdfast", path)
    return Sample(*measured(lambda: holdfast.save(path, {"model": state})))


def load(path: str, nbytes: int, threads: int | None) -> Sample:
    contenders.quietly()
    _set_threads(threads)
    state = State(nbytes, fill=False)
    warm_up("holdfast", path)
    limits.warm(path)
    return Sample(*measured(lambda: holdfast.restore(path, {"model": state})))


def _set_threads(count: int | None) -> None:
    """Before the first task, which starts them: a figure for this table, not an option."""
    from holdfast.payload import threads

    if count is not None:
        for crew in ("blocks", "disk"):
            threads._process.teams[crew].size = count


def topics(bench: Bench) -> Iterator[Topic]:
    sizes: dict[str, Rows] = {}
    for nbytes in bench.size.scales:
        repetitions = bench.size.repetitions if nbytes < _LARGE else min(3, bench.size.repetitions)
        cases = [*_saves(bench, nbytes), *_loads(bench, nbytes)]
        keep = functools.partial(sizes.__setitem__, _told(nbytes))
        yield Topic("scaling", _told(nbytes), cases, repetitions, close=keep, hidden=True)
        bench.clear()
    yield _summary("Speed by size of the state", sizes)
    crews: dict[str, Rows] = {}
    counts = _THREADS[:2] if bench.size is QUICK else _THREADS
    nbytes = min(_LARGE, bench.size.scales[-1])
    cases = _loads(bench, nbytes) + _saves(bench, nbytes)
    limits_of_both = [case for case in cases if case.role == "limit"]
    ours = [
        (str(threads), case)
        for threads in counts
        for case in (*_saves(bench, nbytes, threads), *_loads(bench, nbytes, threads, prepared=True))
        if case.role == "holdfast"
    ]
    # All in one topic, so that no crew has a quieter minute than another.
    every = [*limits_of_both, *(replace(case, who=f"{case.who}|{threads}") for threads, case in ours)]

    def share_out(rows: Rows) -> None:
        for threads in map(str, counts):
            own = [
                replace(row, who=row.who.partition("|")[0]) for row in rows if row.who.endswith(f"|{threads}")
            ]
            crews[threads] = Rows([*(row for row in rows if row.role == "limit"), *own])

    repetitions = min(3, bench.size.repetitions)
    yield Topic("scaling", "threads", every, repetitions, close=share_out, hidden=True)
    yield _summary(f"Speed by threads in each crew of Holdfast, {_told(nbytes)}", crews)
    bench.figures["scaling.svg"] = lambda path: plot.draw(path, _curves(sizes), _curves(crews))


def _summary(title: str, found: dict[str, Rows]) -> Topic:
    """One line for each size or crew, of what is measured already."""

    def case(key: str, rows: Rows) -> Case:
        rates = {row.who: row.nbytes / row.seconds for row in rows if row.seconds}
        failed = next((row.failure for row in rows if row.failure), None)

        def measure(_: int) -> Sample:
            if failed:
                raise Failed(failed)
            return Sample(0.0, facts=rates)

        return Case(key, "holdfast", measure)

    return Topic("scaling", title, [case(key, rows) for key, rows in found.items()], 1, columns=COLUMNS)


def _curves(found: dict[str, Rows]) -> dict[str, list[tuple[str, float]]]:
    """Row → (size or threads, bytes in a second)."""
    curves: dict[str, list[tuple[str, float]]] = {}
    for key, rows in found.items():
        for row in rows:
            if row.seconds:
                curves.setdefault(row.who, []).append((key, row.nbytes / row.seconds))
    return curves


def _told(nbytes: int) -> str:
    return f"{nbytes >> 30} GiB" if nbytes >= 1 << 30 else f"{nbytes >> 20} MiB"


def _saves(bench: Bench, nbytes: int, threads: int | None = None) -> list[Case]:
    # What is loaded lies beside what is written, and stays.
    return [
        *bench.write_limits(nbytes, few=True, keep="loaded"),
        Case(
            plot.SAVE,
            "holdfast",
            lambda _: bench.cleared(save, bench.path("saved"), nbytes, threads, keep="loaded"),
            nbytes,
        ),
    ]


def _loads(bench: Bench, nbytes: int, threads: int | None = None, *, prepared: bool = False) -> list[Case]:
    path = bench.path("loaded")
    if not prepared:
        bench.run(save, path, nbytes, None)
    [file] = [each for each in limits.files_in(path) if each.endswith(".safetensors")]
    return [
        *(
            Case(plot.READ, "limit", lambda _, n=n: bench.run(raw_read, file, n), nbytes)  # type: ignore[misc]
            for n in limits.thread_counts()
        ),
        Case(plot.LOAD, "holdfast", lambda _: bench.run(load, path, nbytes, threads), nbytes),
    ]


def _rate(who: str) -> Callable[[Row, Rows], str]:
    def show(row: Row, _: Rows) -> str:
        rate = row.fact(who)
        return row.failure or "" if rate is None else f"{rate / 1e9:.2f} GB/s"

    return show


def _against(who: str, limit: str) -> Callable[[Row, Rows], str]:
    def show(row: Row, _: Rows) -> str:
        share = ratio(row.fact(who), row.fact(limit))
        return "" if share is None else f"{share:.2f}x"

    return show


COLUMNS = (
    Column("durable save", _rate(plot.SAVE)),
    Column("raw write + fsync", _rate(plot.WRITE)),
    Column("share of it", _against(plot.SAVE, plot.WRITE)),
    Column("warm load", _rate(plot.LOAD)),
    Column("page cache read", _rate(plot.READ)),
    Column("its share", _against(plot.LOAD, plot.READ)),
)
