"""Loads into a live network and optimizer, from the page cache and from the disk."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from benchmarks import limits, states
from benchmarks.bench import Bench, state_text
from benchmarks.children import Sample
from benchmarks.contenders import LOADERS, SAVERS, Absent, role, warm_up
from benchmarks.limits import disk_thread_counts
from benchmarks.memory import measured
from benchmarks.saving import check, extra, save
from benchmarks.sizes import Size
from benchmarks.topic import Case, Target, Topic, ratio


def restore(who: str, path: str, size: Size, cold: bool) -> Sample:
    """A load into a live network and its optimizer, until every page of them is there.

    Extra memory is told without the arrays that the loaded state now consists of and that were
    not there before: a fresh optimizer gets its moments by being loaded.
    """
    net, optimizer = states.fresh(size)
    try:
        warm_up(who, path)
    except Absent as absent:
        return Sample(None, facts={"note": str(absent)})
    before = states.nbytes(net, optimizer)
    (limits.chill if cold else limits.warm)(path)

    def act() -> None:
        LOADERS[who].restore(path, net, optimizer)
        states.touch(net, optimizer)

    seconds, peak = measured(act)
    new = states.nbytes(net, optimizer) - before
    return Sample(seconds, max(0, peak - new), {"fingerprint": states.fingerprint(net, optimizer)})


def raw_cold_read(path: str, threads: int, direct: bool) -> Sample:
    limits.chill(path)
    return Sample(limits.read(path, threads, direct=direct))


def topics(bench: Bench) -> Iterator[Topic]:
    yield from _topic(bench, cold=False)


def cold_topics(bench: Bench) -> Iterator[Topic]:
    yield from _topic(bench, cold=True)


def _topic(bench: Bench, *, cold: bool) -> Iterator[Topic]:
    size = bench.size
    place, wanted = _prepared(bench)
    nbytes = wanted["holdfast"]["nbytes"]
    file = os.path.join(place, "torch")
    cases = _cold_limits(bench, file, nbytes) if cold else bench.read_limits(file, nbytes)
    for who, contender in LOADERS.items():
        source = who.removesuffix("-mmap")

        def measure(_: int, who: str = who, source: str = source) -> Sample:
            sample = bench.run(restore, who, os.path.join(place, source), size, cold)
            if sample.seconds is not None:
                check(sample.facts["fingerprint"], wanted[source]["fingerprint"], who)
            return sample

        cases.append(Case(contender.loading, role(who), measure, nbytes))
    # Warm, new memory for the moments takes longer to get than the bytes; cold, the disk decides.
    limit = Target(
        "at least 0.95x the rate of reading the disk", lambda rows: ratio(rows.limit, rows.ours), 0.95, True
    )
    against = [("torch", 3.0), ("torch-mmap", 1.5), ("dcp", 1.5)]
    yield Topic(
        "load-cold" if cold else "load",
        f"{'Cold' if cold else 'Warm'} load into a live network and optimizer, {state_text(size, nbytes)}",
        cases,
        size.repetitions,
        targets=[
            *([limit] if cold else [_faster(LOADERS[who].loading, least) for who, least in against]),
            Target("at most 64 MB of memory beside the state", extra, 64e6, unit="MB"),
        ],
    )  # fmt: skip


def _faster(peer: str, least: float) -> Target:
    return Target(
        f"at least {least:g}x as fast as {peer}",
        lambda rows: ratio(rows.seconds(peer), rows.ours),
        least,
        True,
    )


def _prepared(bench: Bench) -> tuple[str, dict[str, Any]]:
    """The directory with what everyone saved, and the facts of that; made once for warm and cold."""
    place = bench.path("loads")
    if "loads" not in bench.facts:
        os.mkdir(place)
        bench.facts["loads"] = {
            who: bench.run(save, who, os.path.join(place, who), bench.size).facts for who in SAVERS
        }
    return place, bench.facts["loads"]


def _cold_limits(bench: Bench, file: str, nbytes: int) -> list[Case]:
    return [
        Case(
            "limit: read from the disk",
            "limit",
            lambda _, threads=threads, direct=direct: bench.run(raw_cold_read, file, threads, direct),  # type: ignore[misc]
            nbytes,
        )
        for direct in (True, False)
        for threads in disk_thread_counts()
    ]
