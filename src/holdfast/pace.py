"""What saves cost a training, measured while it goes on; `policy.every` makes an interval of it.

The cost of one save is the time during which it held the training thread, and the time by which the
steps were slower while it was being written. The latter is what those steps took, less what as many
typical steps take: the mean of the last ones with no write beside them, where the longest few count as
the next longest. The mean, since steps of different lengths (gradients gathered over several batches,
sequences of any length) add up to it and not to a median; not the longest, since an evaluation in the
body is not what a step takes. And no write can delay a training by more than the time that it takes.
"""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from holdfast.policy.every import FIRST, Every, Interval

_STEPS = 101  # what a typical step takes
_SAVES = 5  # what a typical save costs
_LONGEST = 0.03  # of the steps


class Cost(NamedTuple):
    """What was measured of one save, or what is typical of several.

    Attributes:
        held: seconds during which the training thread stood still.
        slowdown: seconds by which the steps beside the write were longer, in all; None where no
            step could be compared.
        write: seconds from the beginning of the save until it was durable.

    """

    held: float
    slowdown: float | None
    write: float

    @property
    def total(self) -> float:
        """Seconds that the save cost the training."""
        return self.held + (self.slowdown or 0.0)


@dataclasses.dataclass(slots=True)
class _Flight:
    began: float
    went_on: float
    steps: int = 0
    seconds: float = 0.0


class Pace:
    """Measures steps and saves of one training. It is told where the loop is; all times are of one clock.

    Extra work: two looks at the clock for each step, and a sort of 101 numbers for each save.
    """

    def __init__(self, every: Every, clock: Callable[[], float]) -> None:
        self._every, self._clock = every, clock
        self._quiet: deque[float] = deque(maxlen=_STEPS)
        """Seconds of the last steps with no write beside them."""
        self._costs: deque[Cost] = deque(maxlen=_SAVES)
        self._only_first = True
        """Whether nothing but the first save is known, which costs more: memory for the copy is new."""
        self._began = 0.0
        self._flight: _Flight | None = None
        self._step: int | None = None
        self._follows = False
        """Whether the step that begins comes right after another one."""
        self._mark = 0.0
        self._interval = FIRST

    # -- steps ---------------------------------------------------------------------------------

    def enter(self) -> None:
        """A loop is entered: nothing is in flight, and its first step is like no other."""
        self._flight = None
        self._step, self._follows = None, False

    def reach(self, step: int | None) -> None:
        """The loop comes to a boundary: so many steps are done; None between two epochs.

        Steps are compared that come right after one another: not the first of an epoch, which may
        have workers to start, nor what is done between epochs.
        """
        comes_next = step is not None and self._step is not None and step == self._step + 1
        if comes_next and self._follows:
            seconds = self._clock() - self._mark
            if self._flight is None:
                self._quiet.append(seconds)
            else:
                self._flight.steps += 1
                self._flight.seconds += seconds
        self._step, self._follows = step, comes_next

    def go_on(self) -> None:
        """The boundary is over: the next step begins."""
        if self._follows:
            self._mark = self._clock()

    # -- saves ---------------------------------------------------------------------------------

    def begin_save(self) -> None:
        """The training thread stands still for a save from here on; none is in flight."""
        self._flight = None
        self._began = self._clock()

    def hand_over(self) -> None:
        """The training thread may go on: the save is written behind it."""
        self._flight = _Flight(self._began, self._clock())

    def land(self, durable: float) -> None:
        """The save in flight was durable at this time of the clock."""
        flight, self._flight = self._flight, None
        if flight is None:  # of a loop that was left meanwhile
            return
        slowdown = None
        if flight.steps and self._quiet:
            surplus = flight.seconds - flight.steps * _typical_step(self._quiet)
            slowdown = max(0.0, min(surplus, durable - flight.went_on))
        if self._costs and self._only_first:
            self._costs.clear()
            self._only_first = False
        self._costs.append(Cost(flight.went_on - flight.began, slowdown, durable - flight.began))
        cost = self.cost
        if cost is not None and self._every.paced:
            self._interval = self._every.interval(cost.total, cost.write)

    @property
    def cost(self) -> Cost | None:
        """What a save typically costs: medians of the last five, the first left out; None before one is durable."""
        return typical(self._costs)

    @property
    def slowest_write(self) -> float | None:
        """Seconds that the slowest of the last five saves took until it was durable; None before one is."""
        return max((cost.write for cost in self._costs), default=None)

    @property
    def interval(self) -> Interval | None:
        """What `overhead` and `mtbf` come to now; None without them, and while a save is in flight."""
        return self._interval if self._every.paced and self._flight is None else None

    def facts(self) -> dict[str, Any]:
        """What is known when a save is made, for the history."""
        found: dict[str, Any] = {}
        cost = self.cost
        if cost is not None:
            found |= {"cost_seconds": round(cost.total, 6), "write_seconds": round(cost.write, 6)}
            if cost.slowdown is not None:
                found["slowdown_seconds"] = round(cost.slowdown, 6)
        if self._every.paced:
            found |= {"overhead": self._every.overhead, "mtbf": self._every.mtbf}
            found |= {"interval_seconds": round(self._interval.seconds, 4), "term": self._interval.term}
        return found


def typical(costs: Iterable[Cost]) -> Cost | None:
    """Medians of what several saves cost; their sum is the median of the sums."""
    known = list(costs)
    if not known:
        return None
    total = _median(cost.total for cost in known)
    slowdowns = [cost.slowdown for cost in known if cost.slowdown is not None]
    slowdown = min(_median(slowdowns), total) if slowdowns else None
    return Cost(total - (slowdown or 0.0), slowdown, _median(cost.write for cost in known))


def _typical_step(seconds: Iterable[float]) -> float:
    """The mean of some durations; the longest 3 %, of three at least one, count as the next longest (winsorized)."""
    known = sorted(seconds)
    longest = math.ceil(_LONGEST * len(known)) if len(known) > 2 else 0
    rest = known[: len(known) - longest]
    return (math.fsum(rest) + longest * rest[-1]) / len(known)


def _median(values: Iterable[float]) -> float:
    known = sorted(values)
    middle = len(known) // 2
    return known[middle] if len(known) % 2 else (known[middle - 1] + known[middle]) / 2
