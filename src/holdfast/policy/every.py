"""When an automatic save is due: a decision over counters and measured costs, without a clock."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import NamedTuple, TypeGuard

from holdfast.errors import UsageError

LEAST = 1.0
"""Seconds. A state that costs next to nothing would otherwise be saved many times a second."""

_FOR_EVER = 1e18  # seconds: no float is lost on the way
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"\s*(\d{1,15}(?:\.\d{1,9})?)\s*([smhd])\s*", re.ASCII)


class Since(NamedTuple):
    """What passed since the last save.

    Attributes:
        epochs, steps: completed ones.
        seconds: since it was published.
        taken: seconds since the training went on after it.

    """

    epochs: int
    steps: int
    seconds: float
    taken: float = 0.0


class Interval(NamedTuple):
    """The time between two saves, and what decided it.

    Attributes:
        seconds: from the moment the training goes on after one save to the next.
        term: ``"overhead"``, ``"mtbf"``, ``"write"`` or ``"least"``; ``"first"`` before anything was measured.
        terms: what each term alone says, in seconds.

    """

    seconds: float
    term: str
    terms: dict[str, float]


FIRST = Interval(30.0, "first", {})
"""Until one save has been measured, a save is due after so long, or where an epoch ends before that."""


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Every:
    """Saves after so many epochs, steps or minutes, or as often as the cost allows; whichever comes first.

    Any save starts all of them anew. A save waits for the next boundary of the loop.

    Attributes:
        epochs: completed epochs; due only where an epoch ends.
        steps: batches handed out by the loop.
        minutes: minutes, fractions allowed.
        overhead: the share of its time that saving may cost the training, such as 0.01.
        mtbf: the mean time between failures, in seconds or like "24h", "90m", "7d", "30s": bounds the
            interval where that loses less time in all.
        paced: whether `overhead` or `mtbf` is given.

    Raises:
        UsageError: none is given, or one is not what it should be.

    """

    epochs: int | None = None
    steps: int | None = None
    minutes: float | None = None
    overhead: float | None = None
    mtbf: str | float | None = None

    def __post_init__(self) -> None:
        if all(getattr(self, field.name) is None for field in dataclasses.fields(self)):
            raise UsageError(
                "Every() says nothing: expected at least one of epochs, steps, minutes, overhead and mtbf, such as "
                "Every(epochs=1, minutes=10)."
            )
        _check_count("epochs", self.epochs)
        _check_count("steps", self.steps)
        minutes: object = self.minutes
        if minutes is not None and not (_is_number(minutes) and 0 < minutes < math.inf):
            raise UsageError(
                f"Every(minutes={minutes!r}): expected a positive number, such as minutes=10 or minutes=0.5.",
                argument="minutes",
                found=minutes,
            )
        overhead: object = self.overhead
        if overhead is not None and not (_is_number(overhead) and 0 < overhead < 1):
            raise UsageError(
                f"Every(overhead={overhead!r}): expected a share of the training's time between 0 and 1, such as "
                f"overhead=0.01 for 1 %.",
                argument="overhead",
                found=overhead,
            )
        if self.mtbf is not None:
            _seconds(self.mtbf)

    def __repr__(self) -> str:
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return (
            f"Every({', '.join(f'{name}={value!r}' for name, value in given.items() if value is not None)})"
        )

    @property
    def paced(self) -> bool:
        return self.overhead is not None or self.mtbf is not None

    def interval(self, cost: float, write_seconds: float) -> Interval:
        """The time between saves that `overhead` and `mtbf` ask for.

        The least of cost / overhead and √(2 · cost · mtbf), yet never less than a write takes, so that
        saves do not queue, nor than `LEAST`. The root is the first-order optimum of J. W. Young, "A first
        order approximation to the optimum checkpoint interval", Communications of the ACM 17 (9), 1974:
        longer intervals lose more work at a failure, shorter ones more time to saving.

        Args:
            cost: seconds by which one save slows the training down, in all.
            write_seconds: from the beginning of a save until it is durable.

        Raises:
            UsageError: neither `overhead` nor `mtbf` is given.

        """
        allowed = {}
        if self.overhead is not None:
            allowed["overhead"] = cost / self.overhead
        if self.mtbf is not None:
            allowed["mtbf"] = math.sqrt(2 * cost * _seconds(self.mtbf))
        if not allowed:
            raise UsageError(f"{self!r} has no interval of its own: it gives neither overhead nor mtbf.")
        chosen = min(allowed, key=allowed.__getitem__)
        bounds = {chosen: allowed[chosen], "write": write_seconds, "least": LEAST}
        term = max(bounds, key=bounds.__getitem__)
        return Interval(bounds[term], term, {**allowed, "write": write_seconds, "least": LEAST})

    def due(self, since: Since, at_epoch_end: bool, interval: Interval | None = None) -> str | None:
        """Why a save is due now, in words like ``every 500 steps``; None when it is not.

        Args:
            since: what passed since the last save.
            at_epoch_end: whether this boundary lies between two epochs.
            interval: what the measured cost comes to, or `FIRST`; None where it does not count.

        """
        if at_epoch_end and self.epochs is not None and since.epochs >= self.epochs:
            return f"every {_counted(self.epochs, 'epoch')}"
        if self.steps is not None and since.steps >= self.steps:
            return f"every {_counted(self.steps, 'step')}"
        if self.minutes is not None and since.seconds >= self.minutes * 60:
            return f"every {_counted(self.minutes, 'minute')}"
        if interval is None:
            return None
        if interval.term == "first" and (at_epoch_end or since.taken >= interval.seconds):
            return "to measure what a save costs"
        return f"every {self.explain(interval)}" if since.taken >= interval.seconds else None

    def explain(self, interval: Interval) -> str:
        """An interval and what decided it, in words like ``41 s (overhead 0.01)``."""
        why = {
            "overhead": f"overhead {self.overhead}",
            "mtbf": f"mtbf {self.mtbf}",
            "write": "a write takes as long",
        }.get(interval.term, "the least")
        seconds = interval.seconds
        return f"{seconds:.0f} s ({why})" if seconds >= 10 else f"{seconds:.2g} s ({why})"


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_count(argument: str, value: object) -> None:
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
        return
    raise UsageError(
        f"Every({argument}={value!r}): expected a positive whole number, such as {argument}=1.",
        argument=argument,
        found=value,
    )


def _seconds(mtbf: object) -> float:
    """A mean time between failures in seconds; `UsageError` for what is none."""
    if _is_number(mtbf) and 0 < mtbf < _FOR_EVER:
        return float(mtbf)
    found = _DURATION.fullmatch(mtbf) if isinstance(mtbf, str) else None
    if found is not None and float(found[1]) > 0:
        return float(found[1]) * _UNITS[found[2]]
    raise UsageError(
        f"Every(mtbf={mtbf!r}): expected the mean time between failures as a positive number of seconds, or a "
        f'number with one of the units s, m, h and d, such as mtbf="24h" or mtbf="90m".',
        argument="mtbf",
        found=mtbf,
    )


def _counted(number: float, word: str) -> str:
    return f"{number:.10g} {word}{'' if number == 1 else 's'}"


DEFAULT = Every(epochs=1, minutes=10)
