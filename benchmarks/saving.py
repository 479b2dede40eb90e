"""Blocking saves that are durable when they return."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks import states
from benchmarks.bench import Bench, state_text
from benchmarks.children import Failed, Sample
from benchmarks.contenders import SAVERS, Absent, role, warm_up
from benchmarks.memory import measured
from benchmarks.sizes import Size
from benchmarks.topic import Case, Rows, Target, Topic, ratio

OURS = "**Holdfast** (verified)"


def save(who: str, path: str, size: Size) -> Sample:
    """A durable save of a trained network and its optimizer."""
    net, optimizer = states.trained(size)
    try:
        warm_up(who, path)
    except Absent as absent:
        return Sample(None, facts={"note": str(absent)})
    seconds, extra = measured(lambda: SAVERS[who].save(path, net, optimizer))
    facts = {
        "fingerprint": states.fingerprint(net, optimizer),
        "nbytes": states.nbytes(net, optimizer),
        "note": SAVERS[who].note,
    }
    return Sample(seconds, extra, facts)


def topics(bench: Bench) -> Iterator[Topic]:
    nbytes = bench.cleared(save, "holdfast", bench.path("saved"), bench.size).facts["nbytes"]
    cases = bench.write_limits(nbytes)
    for who, contender in SAVERS.items():
        cases.append(
            Case(
                contender.name,
                role(who),
                lambda _, who=who: bench.cleared(save, who, bench.path("saved"), bench.size),  # type: ignore[misc]
                nbytes,
            )
        )
    yield Topic(
        "save",
        f"Durable blocking save, {state_text(bench.size, nbytes)}",
        cases,
        bench.size.repetitions,
        targets=[
            Target("at least 0.95x the rate of a raw write", lambda rows: ratio(rows.limit, rows.ours), 0.95, True),
            Target("at least 1.5x as fast as the fastest peer", lambda rows: ratio(rows.fastest_peer, rows.ours), 1.5, True),
            Target("at most 128 MB of extra memory", extra, 128e6, unit="MB"),
        ],
    )  # fmt: skip


def extra(rows: Rows) -> float | None:
    row = next((row for row in rows if row.role == "holdfast"), None)
    return row.extra if row else None


def check(found: object, wanted: object, who: str) -> None:
    if found != wanted:
        raise Failed(f"{who} loaded other values than were saved")
