"""Measurements as one table: ratios first, absolute figures beside them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.children import Sample
from benchmarks.topics import Topic

HEADER = ("", "against the limit", "against Holdfast", "median (least to most)", "rate", "extra memory")


@dataclass(slots=True)
class Row:
    """All samples of one case, or why there are none."""

    who: str
    role: str
    nbytes: int
    samples: list[Sample] = field(default_factory=list)
    failure: str | None = None

    @property
    def times(self) -> list[float]:
        return [sample.seconds for sample in self.samples if sample.seconds is not None]

    @property
    def seconds(self) -> float | None:
        return statistics.median(self.times) if self.times else None

    @property
    def extra(self) -> int | None:
        known = [sample.extra for sample in self.samples if sample.extra is not None]
        return max(known) if known else None


def fastest(rows: Sequence[Row]) -> list[Row]:
    """Of the variants of one thing (thread counts, ways to write) the one with the lowest median."""
    best: dict[str, Row] = {}
    for row in rows:
        known = best.get(row.who)
        if known is None or (row.seconds or 1e9) < (known.seconds or 1e9):
            best[row.who] = row
    return list(best.values())


def lines(topic: Topic, rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """A topic's lines of the table: its title, then one for each row."""
    rows = fastest(rows)
    limit = next((row.seconds for row in rows if row.role == "limit"), None)
    ours = next((row.seconds for row in rows if row.role == "holdfast"), None)
    result: list[tuple[str, ...]] = [(f"**{topic.title}**", "", "", "", "", "")]
    for row in rows:
        if row.seconds is None:
            result.append((row.who, "", "", row.failure or "not possible here", "", ""))
            continue
        result.append(
            (
                row.who,
                f"{row.seconds / limit:.2f}x" if limit else "",
                f"{row.seconds / ours:.2f}x" if ours else "",
                f"{_seconds(row.seconds)} ({_seconds(min(row.times))} to {_seconds(max(row.times))})",
                f"{row.nbytes / row.seconds / 1e9:.2f} GB/s" if row.nbytes else "",
                f"{row.extra / 1e6:,.0f} MB" if row.extra is not None else "",
            )
        )
    return result


def _seconds(value: float) -> str:
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.2f} s"


def markdown(table: Sequence[tuple[str, ...]]) -> str:
    """The lines as a Markdown table that also reads well as plain text."""
    everything = [HEADER, *table]
    widths = [max(len(line[column]) for line in everything) for column in range(len(HEADER))]

    def show(line: Sequence[str]) -> str:
        cells = [line[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        return f"| {' | '.join(cells)} |"

    rule = (
        f"| :{'-' * (widths[0] - 1)} | " + " | ".join(f"{'-' * (width - 1)}:" for width in widths[1:]) + " |"
    )
    return "\n".join([show(HEADER), rule, *map(show, table)])
