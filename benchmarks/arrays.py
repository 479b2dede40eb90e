"""Many small arrays: what counts there is Python objects, not bytes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from benchmarks import limits, states
from benchmarks.bench import Bench
from benchmarks.children import Sample
from benchmarks.contenders import LOADERS, SAVERS, Absent, role, warm_up
from benchmarks.memory import measured
from benchmarks.topic import Case, Rows, Target, Topic, ratio

# What has ten times as many objects finds fewer of them in the processor's caches.
_LINEAR = 1.25
_EACH = 1024


def save_arrays(who: str, path: str, count: int) -> Sample:
    arrays = states.small_arrays(count)
    try:
        warm_up(who, path)
    except Absent as absent:
        return Sample(None, facts={"note": str(absent)})
    return Sample(
        *measured(lambda: SAVERS[who].save_arrays(path, arrays)), {"count": count, "note": SAVERS[who].note}
    )


def load_arrays(who: str, path: str, count: int) -> Sample:
    try:
        warm_up(who, path)
    except Absent as absent:
        return Sample(None, facts={"note": str(absent)})
    limits.warm(path)
    found: list[Any] = []
    seconds, extra = measured(lambda: found.append(LOADERS[who].load_arrays(path)))
    if not all(torch.equal(found[0][name], value) for name, value in states.small_arrays(count).items()):
        raise ValueError(f"{who} loaded other values than were saved")
    return Sample(seconds, max(0, extra - _EACH * count), {"count": count})


def save_topics(bench: Bench) -> Iterator[Topic]:
    few: dict[str, float | None] = {}
    for count, who_saves, repetitions in _sizes(bench, SAVERS):
        nbytes = count * _EACH
        cases = bench.write_limits(nbytes, few=True)
        for who in who_saves:
            cases.append(
                Case(
                    SAVERS[who].name,
                    role(who),
                    lambda _, who=who, count=count: bench.cleared(save_arrays, who, bench.path("saved"), count),  # type: ignore[misc]
                    nbytes,
                )
            )  # fmt: skip
        yield _topic(
            "save-arrays", f"Durable save of {count:,} arrays of 1 KiB", cases, repetitions, count, bench, few
        )


def load_topics(bench: Bench) -> Iterator[Topic]:
    few: dict[str, float | None] = {}
    for count, who_loads, repetitions in _sizes(bench, LOADERS):
        nbytes = count * _EACH
        for who in {who.removesuffix("-mmap"): None for who in who_loads} | {"torch": None}:
            bench.run(save_arrays, who, bench.path(f"arrays-{who}"), count)
        cases = bench.read_limits(bench.path("arrays-torch"), nbytes)[:1]
        for who in who_loads:
            path = bench.path(f"arrays-{who.removesuffix('-mmap')}")
            cases.append(
                Case(
                    LOADERS[who].loading,
                    role(who),
                    lambda _, who=who, path=path, count=count: bench.run(load_arrays, who, path, count),  # type: ignore[misc]
                    nbytes,
                )
            )
        yield _topic(
            "load-arrays", f"Load of {count:,} arrays of 1 KiB", cases, repetitions, count, bench, few
        )


def _sizes(bench: Bench, everyone: dict[str, Any]) -> list[tuple[int, list[str], int]]:
    size = bench.size
    return [
        (size.arrays, list(everyone), size.repetitions),
        (size.many_arrays, ["holdfast"], size.repetitions),
    ]


def _topic(
    key: str, title: str, cases: list[Case], repetitions: int, count: int, bench: Bench, few: dict[str, Any]
) -> Topic:
    """The topic of one count; that of the smaller one leaves its time for the larger one's target."""
    if count == bench.size.arrays:
        return Topic(
            key, title, cases, repetitions,
            targets=[
                Target(f"{count:,} arrays in at most 0.2 s", lambda rows: rows.ours, 0.2, unit="s"),
                Target("faster than the fastest peer", lambda rows: ratio(rows.fastest_peer, rows.ours), 1.0, True),
            ],
            close=lambda rows: few.update(ours=rows.ours),
        )  # fmt: skip
    times = count / bench.size.arrays

    def growth(rows: Rows) -> float | None:
        times_as_long = ratio(rows.ours, few.get("ours"))
        return times_as_long / times if times_as_long is not None else None

    text = (
        f"{count:,} arrays: linear, for each at most {_LINEAR:g}x the time of one among {bench.size.arrays:,}"
    )
    return Topic(key, title, cases, repetitions, targets=[Target(text, growth, _LINEAR)])
