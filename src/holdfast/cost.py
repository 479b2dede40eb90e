"""What the saves of a run cost its training, read from its history, and what an `Every` comes to at that."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import statistics
from typing import Any

from holdfast.errors import UsageError
from holdfast.policy.every import Every

SUGGESTED = Every(overhead=0.01)
_CHOICES = (SUGGESTED, Every(overhead=0.001, mtbf="24h"), Every(mtbf="24h"))
_SAVES = 20  # of the last ones
_LIMIT = 1e18  # of seconds and bytes; no history of ours has more


@dataclasses.dataclass(frozen=True)
class SaveCost:
    """What the last saves of a run cost, from its history: medians, and the worst hold.

    Attributes:
        saves: how many were looked at.
        bytes, held_seconds, seconds: size, time for which arrays were copied, and until durable.
        cost_seconds: what one costs the training in all, as it was measured last: the time that it stands
            still, and `slowdown_seconds`, by which steps beside a write are longer (None: not known).
        write_seconds: until durable, as it was measured with them.

    """

    saves: int
    bytes: int
    held_seconds: float
    longest_held_seconds: float
    seconds: float
    cost_seconds: float
    slowdown_seconds: float | None
    write_seconds: float

    @property
    def stall_seconds(self) -> float:
        """The time for which the training stands still."""
        return self.cost_seconds - (self.slowdown_seconds or 0.0)


@dataclasses.dataclass(frozen=True)
class Choice:
    """What an `Every` comes to at a run's cost.

    Attributes:
        overhead, mtbf: its arguments.
        used: whether the run was last saved with it.
        seconds: between two saves.
        term: what decides: "overhead", "mtbf", "write" or "least".
        terms: what each says alone, in seconds.

    """

    overhead: float | None
    mtbf: str | float | None
    used: bool
    seconds: float
    term: str
    terms: dict[str, float]

    @property
    def every(self) -> Every:
        """As it is given to a Run."""
        return Every(overhead=self.overhead, mtbf=self.mtbf)


def save_cost(events: list[dict[str, Any]]) -> SaveCost | None:
    """Medians over the last saves in a run's history; None without any."""
    saves = [event for event in events if event.get("event") == "save"]
    rows = [row for row in (_numbers(event, "held_seconds", "seconds", "bytes") for event in saves) if row]
    rows = rows[-_SAVES:]
    if not rows:
        return None
    held, seconds, sizes = zip(*rows, strict=True)
    measured = [row for row in (_numbers(event, "cost_seconds", "write_seconds") for event in saves) if row]
    slowdowns = [
        row for row in (_numbers(event, "cost_seconds", "slowdown_seconds") for event in saves) if row
    ]
    # A history older than these, or with one save: the copy is all that is known to have cost something.
    cost, write = measured[-1] if measured else (statistics.median(held), statistics.median(seconds))
    slowdown = slowdowns[-1][1] if slowdowns and slowdowns[-1][0] == cost else None
    return SaveCost(
        saves=len(rows),
        bytes=int(statistics.median(sizes)),
        held_seconds=statistics.median(held),
        longest_held_seconds=max(held),
        seconds=statistics.median(seconds),
        cost_seconds=cost,
        slowdown_seconds=None if slowdown is None else min(slowdown, cost),
        write_seconds=write,
    )


def slowest_write(events: list[dict[str, Any]]) -> float | None:
    """Seconds that the slowest of a run's last saves took until it was durable; None without any."""
    saves = (event for event in events if event.get("event") == "save")
    return max(
        (row[0] for row in [_numbers(event, "seconds") for event in saves][-_SAVES:] if row), default=None
    )


def slowest_copies(events: list[dict[str, Any]]) -> dict[str, float]:
    """Seconds that the slowest of the last copies to each mirror took, by its URL."""
    took: dict[str, list[float]] = {}
    for event in events:
        if event.get("event") == "mirror" and isinstance(event.get("url"), str):
            took.setdefault(event["url"], []).extend(_numbers(event, "seconds") or ())
    return {url: max(seconds[-_SAVES:]) for url, seconds in took.items() if seconds}


def _numbers(event: dict[str, Any], *names: str) -> tuple[float, ...] | None:
    """Numbers of a line that anybody may have written; None if one is missing, negative, absurd or none."""
    with contextlib.suppress(KeyError, TypeError, ValueError, OverflowError):
        values = tuple(float(event[name]) for name in names)
        if all(0 <= value < _LIMIT for value in values):
            return values
    return None


def used_every(events: list[dict[str, Any]]) -> Every | None:
    """The `overhead` and `mtbf` that the last save of a run was made with; None without them."""
    last = next((event for event in reversed(events) if event.get("event") == "save"), None)
    if last is None:
        return None
    with contextlib.suppress(UsageError):
        return Every(overhead=last.get("overhead"), mtbf=last.get("mtbf"))
    return None


def choices(cost: SaveCost, used: Every | None) -> list[Choice]:
    """What a few `Every` come to at this cost, the one that the run uses first."""
    found = []
    for every in dict.fromkeys([*([used] if used else []), *_CHOICES]):
        seconds, term, terms = every.interval(cost.cost_seconds, cost.write_seconds)
        if seconds < math.inf:  # no overhead of a sensible run is that small
            found.append(Choice(every.overhead, every.mtbf, every == used, seconds, term, terms))
    return found


def suggested_interval(cost: SaveCost) -> float:
    """Seconds between saves that cost the training about 1 %, and leave each one time to be written."""
    return SUGGESTED.interval(cost.cost_seconds, cost.write_seconds).seconds
