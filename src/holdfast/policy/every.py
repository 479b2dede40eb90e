"""When an automatic save is due: a decision over counters, without a clock."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple, TypeGuard

from holdfast.errors import UsageError


class Since(NamedTuple):
    """What passed since the last save: completed epochs, steps, seconds since it was published."""

    epochs: int
    steps: int
    seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Every:
    """Saves after so many epochs, steps or minutes, whichever comes first.

    Any save starts all of them anew. A save waits for the next boundary of the loop.

    Attributes:
        epochs: completed epochs; due only where an epoch ends.
        steps: batches handed out by the loop.
        minutes: minutes, fractions allowed.

    Raises:
        UsageError: none is given, or one is not a positive number.

    """

    epochs: int | None = None
    steps: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        if self.epochs is None and self.steps is None and self.minutes is None:
            raise UsageError(
                "Every() says nothing: expected at least one of epochs, steps and minutes, such as "
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

    def due(self, since: Since, at_epoch_end: bool) -> str | None:
        """Why a save is due now, in words like ``every 500 steps``; None when it is not.

        Args:
            since: what passed since the last save.
            at_epoch_end: whether this boundary lies between two epochs.

        """
        if at_epoch_end and self.epochs is not None and since.epochs >= self.epochs:
            return f"every {_counted(self.epochs, 'epoch')}"
        if self.steps is not None and since.steps >= self.steps:
            return f"every {_counted(self.steps, 'step')}"
        if self.minutes is not None and since.seconds >= self.minutes * 60:
            return f"every {_counted(self.minutes, 'minute')}"
        return None


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


def _counted(number: float, word: str) -> str:
    return f"{number:.10g} {word}{'' if number == 1 else 's'}"


DEFAULT = Every(epochs=1, minutes=10)
