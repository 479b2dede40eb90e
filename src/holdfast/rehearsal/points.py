"""Where a training is interrupted: what the user asked for, and what that means in this training."""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

from holdfast.errors import UsageError
from holdfast.rehearsal.trails import Place, Shape

SIGNALS = ("KILL", "TERM", "USR1", "INT")
# Steps that are trained after the last save and lost with a process that is killed.
LOST = 2
# How many places after a resume are compared: 1, 2, 4, … steps on.
_MARKS = 20
_ENDS = 3

_POINT = re.compile(r"(?:(?P<word>random)|(?P<unit>step|epoch)=(?P<value>\d{1,15}))\Z", re.ASCII)


@dataclasses.dataclass(frozen=True)
class Point:
    """What `--kill-at` says: "step" or "epoch" with a number, "random", or "middle" when nothing is said."""

    unit: str
    value: int = 0

    def __str__(self) -> str:
        return self.unit if self.unit in ("random", "middle") else f"{self.unit}={self.value}"


def parse_point(text: str) -> Point:
    """``step=37``, ``epoch=2`` or ``random``."""
    found = _POINT.match(text)
    if found is None:
        raise UsageError(
            f"--kill-at {text}: expected step=N (after N steps), epoch=N (in the middle of the epoch that follows "
            f"N completed ones) or random.",
            found=text,
        )
    return Point("random") if found["word"] else Point(found["unit"], int(found["value"]))


@dataclasses.dataclass(frozen=True)
class Interruption:
    """One interruption of one run; see `holdfast.cue` for what the numbers mean.

    Attributes:
        run: the run's name in the rehearsal.
        unit: "step", "epoch" or "save".
        at: after so many steps or epochs, or at this call of `run.save`, counted over all launches.
        save: after so many a save is made that will be found; -1 for none.
        epoch: in which epoch the save is made, for "step".
        signal: KILL, TERM, USR1 or INT.

    """

    run: str
    unit: str
    at: int
    save: int
    epoch: int | None
    signal: str

    def plan(self, durable: int) -> dict[str, Any]:
        """As the launch is told it; `durable` calls of `run.save` have been done before it."""
        plan = dataclasses.asdict(self)
        if self.epoch is None:
            del plan["epoch"]
        if self.unit == "save":
            plan["at"] = self.at - durable
        return plan

    @property
    def base(self) -> int:
        """The step or epoch that the next launch goes on from."""
        return self.save if self.signal == "KILL" else self.at + 1

    def __str__(self) -> str:
        if self.unit == "save":
            return f"SIG{self.signal} at the call number {self.at} of run.save"
        if self.unit == "epoch":
            return f"SIG{self.signal} at the end of epoch {self.at}"
        inside = f" (epoch {self.epoch + 1})" if self.epoch is not None else ""
        return f"SIG{self.signal} in step {self.at + 1:,}{inside}"


def choose(
    shapes: Mapping[str, Shape], points: Sequence[Point], signal: str, seed: int
) -> list[Interruption]:
    """The interruptions in the order in which the training meets them, each place once.

    Raises:
        UsageError: the training never gets to one of the points.

    """
    trained = {name: shape for name, shape in shapes.items() if count(shape)}
    if not trained:
        raise UsageError(
            "The script trained nothing: no epoch, no step, and no run.save(). There is nothing to interrupt. "
            "Next: rehearse a command that trains at least two steps."
        )
    draw = random.Random(seed)  # noqa: S311 (not for secrets)
    found: dict[tuple[str, int], Interruption] = {}
    spread = [point for point in points if point.unit == "middle"]
    for point in points:
        if point.unit == "random":
            free = [
                (n, at)
                for n, s in trained.items()
                for at in range(first(s), first(s) + count(s))
                if (n, at) not in found
            ]
            name, at = draw.choice(free) if free else next(iter(found))
        elif point.unit == "middle":
            name = max(trained, key=lambda name: count(trained[name]))
            at = _spread(trained[name], spread.index(point), len(spread))
            spread[spread.index(point)] = Point("done")
        else:
            name, at = _find(trained, point)
        found[name, at] = _interruption(name, trained[name], at, signal)
    order = list(trained)
    return sorted(found.values(), key=lambda one: (order.index(one.run), one.at))


def count(shape: Shape) -> int:
    """At how many places a training can be interrupted."""
    if shape.kind == "own":
        return len(shape.saves)
    return shape.steps or len(shape.epochs)


def first(shape: Shape) -> int:
    """The number of the first of them."""
    return 0 if shape.kind != "own" and shape.steps else 1


def _spread(shape: Shape, index: int, total: int) -> int:
    """The middle of one of `total` epochs, or steps or saves, that lie evenly in the training."""
    if shape.batches and len(shape.epochs) > total:
        start, stop = shape.epochs[(index + 1) * len(shape.epochs) // (total + 1)]
        return min(start + (stop - start) // 2, max(start, stop - 1))
    return first(shape) + (index + 1) * count(shape) // (total + 1)


def _find(shapes: Mapping[str, Shape], point: Point) -> tuple[str, int]:
    for name, shape in shapes.items():
        at = _place(shape, point)
        if at is not None:
            return name, at
    had = "; ".join(f"{name}: {_size(shape)}" for name, shape in shapes.items())
    raise UsageError(
        f"--kill-at {point}: the straight training ended before that, or does not count in that unit ({had}). "
        f"Next: choose a place inside it, or leave --kill-at out.",
        found=str(point),
    )


def _place(shape: Shape, point: Point) -> int | None:
    if shape.kind == "own":
        calls = [i for i, place in enumerate(shape.saves, 1) if getattr(place, point.unit) > point.value]
        return calls[0] if calls else None
    if point.unit == "step":
        return point.value if point.value < shape.steps else None
    if point.value >= len(shape.epochs):
        return None
    if not shape.steps:
        return point.value + 1
    start, stop = shape.epochs[point.value]
    return min(start + (stop - start) // 2, max(start, stop - 1))


def _size(shape: Shape) -> str:
    if shape.kind == "own":
        return f"{len(shape.saves)} calls of run.save"
    epochs = f"{len(shape.epochs)} epochs" if shape.epochs else ""
    steps = f"{shape.steps:,} steps" if shape.steps else ""
    return ", ".join(filter(None, (epochs, steps)))


def _interruption(name: str, shape: Shape, at: int, signal: str) -> Interruption:
    killed = signal == "KILL"
    if shape.kind == "own":
        return Interruption(name, "save", at, -1, None, signal)
    if not shape.steps:
        return Interruption(name, "epoch", at, at - 1 if killed else -1, None, signal)
    epoch = next((i for i, (start, stop) in enumerate(shape.epochs) if start <= at < stop), None)
    start = shape.epochs[epoch][0] if epoch is not None else 0
    # Saved in the same epoch, after its first batch if there is room: only so a place inside an epoch
    # is resumed from.
    save = max(at - LOST, min(at, start + 1))
    return Interruption(name, "step", at, save if killed else -1, epoch, signal)


def marks(interruptions: Sequence[Interruption], shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """Where straight and interrupted trainings are saved besides, by run.

    At each resume, 1, 2, 4, … steps on, and at the ends of the epochs that come next, where metrics are.
    """
    found: dict[str, Any] = {}
    for one in interruptions:
        if one.unit == "save":
            continue
        last = shapes[one.run].steps if one.unit == "step" else len(shapes[one.run].epochs)
        places = {one.base, *(one.base + (1 << power) for power in range(_MARKS))}
        ends = [stop for _, stop in shapes[one.run].epochs if stop > one.base]
        places |= set(ends[:_ENDS]) if one.unit == "step" else set()
        entry = found.setdefault(one.run, {"unit": one.unit, "at": []})
        entry["at"] = sorted({*entry["at"], *(place for place in places if 0 < place < last)})
    return found


def told(place: Place | None) -> str:
    """Where a launch began, for people."""
    return "from the start" if place is None else f"from {place}"
