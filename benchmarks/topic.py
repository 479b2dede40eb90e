"""A topic: cases that are measured in turn, and the rows that they become."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from benchmarks.children import Sample


@dataclass(frozen=True, slots=True)
class Case:
    """Something to measure several times.

    Attributes:
        who: the row; cases of the same `who` are variants, of which the fastest is shown.
        role: "limit", "holdfast" or "peer".
        measure: takes the number of the repetition.
        nbytes: what is moved, for a rate; 0 where a rate says nothing.

    """

    who: str
    role: str
    measure: Callable[[int], Sample]
    nbytes: int = 0


@dataclass(slots=True)
class Row:
    """All samples of one case, or why there are none.

    `dropped`: a slower variant of the same thing, not measured to the end.
    """

    who: str
    role: str
    nbytes: int = 0
    samples: list[Sample] = field(default_factory=list)
    failure: str | None = None
    dropped: bool = False

    @property
    def times(self) -> list[float]:
        return [sample.seconds for sample in self.samples if sample.seconds is not None]

    @property
    def seconds(self) -> float | None:
        return statistics.median(self.times) if self.times else None

    @property
    def extra(self) -> int | None:
        """Median of the extra memory, in bytes."""
        known = [sample.extra for sample in self.samples if sample.extra is not None]
        return round(statistics.median(known)) if known else None

    def fact(self, name: str) -> float | None:
        """Median of a fact that is a number."""
        known = [sample.facts[name] for sample in self.samples if sample.facts.get(name) is not None]
        return statistics.median(known) if known else None

    @property
    def label(self) -> str:
        """The name and what a measurement has to say about how it was made."""
        notes = [sample.facts["note"] for sample in self.samples if sample.facts.get("note")]
        return f"{self.who} ({notes[0]})" if notes else self.who


class Rows(list[Row]):
    """The rows that are shown, by name."""

    def of(self, who: str) -> Row | None:
        return next((row for row in self if row.who == who), None)

    def seconds(self, who: str) -> float | None:
        row = self.of(who)
        return row.seconds if row else None

    @property
    def limit(self) -> float | None:
        return next((row.seconds for row in self if row.role == "limit"), None)

    @property
    def ours(self) -> float | None:
        return next((row.seconds for row in self if row.role == "holdfast"), None)

    @property
    def fastest_peer(self) -> float | None:
        return min((row.seconds for row in self if row.role == "peer" and row.seconds), default=None)


@dataclass(frozen=True, slots=True)
class Column:
    """A heading, and the text under it for one row among the others."""

    heading: str
    show: Callable[[Row, Rows], str]


@dataclass(frozen=True, slots=True)
class Target:
    """What is aimed at, as a number that the rows give; None where they could not be measured.

    Attributes:
        text: the claim, bound included.
        value: the number from the rows that are shown.
        bound: with `at_least`, the least that is good; otherwise the most.
        unit: how the number is told: "x", "s", "MB", "%" or "".

    """

    text: str
    value: Callable[[Rows], float | None]
    bound: float
    at_least: bool = False
    unit: str = "x"

    def met(self, value: float) -> bool:
        return value >= self.bound if self.at_least else value <= self.bound


@dataclass(frozen=True, slots=True)
class Topic:
    """Attributes:
    columns: other headings than those of the table of times; None for these.
    notes: lines under the table.
    close: called when everything is measured, with the rows that would be shown.
    hidden: its rows are shown only by what `close` makes of them.

    """

    key: str
    title: str
    cases: Sequence[Case]
    repetitions: int
    columns: tuple[Column, ...] | None = None
    targets: Sequence[Target] = ()
    notes: Sequence[str] = ()
    close: Callable[[Rows], None] | None = None
    hidden: bool = False


def shown(rows: Sequence[Row]) -> Rows:
    """Of the variants of one thing (threads, ways to write) the one with the lowest median."""
    best: dict[str, Row] = {}
    for row in rows:
        known = best.get(row.who)
        if known is None or _rank(row) < _rank(known):
            best[row.who] = row
    return Rows(best.values())


def _rank(row: Row) -> tuple[bool, float]:
    return row.dropped, float("inf") if row.seconds is None else row.seconds


def drop_slow_variants(rows: Sequence[Row], keep: int = 3) -> None:
    """Leaves the few fastest variants of each thing; the others are not measured again."""
    names = {row.who for row in rows}
    for who in names:
        variants = [row for row in rows if row.who == who and not row.dropped]
        for row in sorted(variants, key=_rank)[keep:]:
            row.dropped = True


def ratio(one: float | None, other: float | None) -> float | None:
    return one / other if one is not None and other else None
