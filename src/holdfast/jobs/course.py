"""How fast a training gets on, and what its metrics did: read from its history, by pure functions."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from holdfast.format import card
from holdfast.format.names import parse_checkpoint_name
from holdfast.jobs.launches import Event, moment, whole

_SEGMENTS = 20
_INTERVALS = 5


@dataclasses.dataclass(frozen=True)
class Place:
    """Completed epochs, all steps, and batches of the epoch after them."""

    epoch: int
    step: int
    batch: int = 0

    @property
    def epoch_steps(self) -> float | None:
        """Steps in one epoch, on average; None where it cannot be told."""
        return (self.step - self.batch) / self.epoch if self.epoch and self.step > self.batch else None

    def fraction(self, goal: tuple[str, int]) -> float:
        """How much of a goal is done, from 0 to 1."""
        kind, value = goal
        done = float(self.step)
        if kind == "epochs":
            steps = self.epoch_steps
            done = self.epoch + (min(self.batch / steps, 1.0) if steps else 0.0)
        return 1.0 if value <= 0 else min(1.0, done / value)


@dataclasses.dataclass(frozen=True)
class Pace:
    """Of the last saves: how fast, while it ran. None where it cannot be told.

    Attributes:
        steps: a second.
        epochs: a second.
        interval: seconds between two saves, typically.

    """

    steps: float | None
    epochs: float | None
    interval: float | None

    def seconds_to(self, goal: tuple[str, int], place: Place) -> float | None:
        """Seconds of training from a place to a goal."""
        kind, value = goal
        if kind == "steps":
            return max(0, value - place.step) / self.steps if self.steps else None
        each = place.epoch_steps
        if each and self.steps:
            return max(0.0, (value - place.epoch) * each - place.batch) / self.steps
        return max(0, value - place.epoch) / self.epochs if self.epochs else None


def pace(events: Sequence[Event]) -> Pace | None:
    """The pace of the last saves; None before there are two moments to compare.

    Only time in which the training ran counts: from a resume or a save to the next save of that launch.
    """
    segments: list[tuple[float, int, int]] = []
    intervals: list[float] = []
    last: tuple[float, int, int, bool] | None = None
    for event in events:
        kind, when = event.get("event"), moment(event.get("time"))
        if when is None:
            continue
        if kind == "start":
            last = (when, 0, 0, False)
        elif kind == "resume":
            epoch, step = whole(event.get("epoch")), whole(event.get("step"))
            last = None if epoch is None or step is None else (when, epoch, step, False)
        elif kind in ("launch", "end", "rewind"):
            last = None
        elif kind == "save":
            name = parse_checkpoint_name(str(event.get("name")))
            if name is None:
                continue
            if last is not None and when > last[0]:
                segments.append((when - last[0], name.step - last[2], name.epoch - last[1]))
                if last[3]:
                    intervals.append(when - last[0])
            last = (when, name.epoch, name.step, True)
    segments = [segment for segment in segments[-_SEGMENTS:] if segment[1] >= 0 and segment[2] >= 0]
    passed = sum(segment[0] for segment in segments)
    if passed <= 0:
        return None
    steps, epochs = sum(segment[1] for segment in segments), sum(segment[2] for segment in segments)
    return Pace(
        steps / passed if steps else None,
        epochs / passed if epochs else None,
        statistics.median(intervals[-_INTERVALS:]) if intervals else None,
    )


@dataclasses.dataclass(frozen=True)
class Series:
    """One metric's course; `points` are (epoch, step, value), with None for what is not finite."""

    name: str
    points: list[tuple[int, int, float | None]]

    @property
    def values(self) -> list[float | None]:
        return [point[2] for point in self.points]

    def best(self, mode: str | None) -> tuple[int, int, float] | None:
        finite = [(epoch, step, value) for epoch, step, value in self.points if value is not None]
        if not finite or mode is None:
            return None
        return (max if mode == "max" else min)(finite, key=lambda point: point[2])


def rows_of(events: Sequence[Event]) -> list[tuple[int, int, Mapping[str, Any]]]:
    """The metrics of a history; what was taken back, by a resume from an older place, is left out."""
    rows: list[tuple[int, int, Mapping[str, Any]]] = []
    for event in events:
        if event.get("event") != "metrics":
            continue
        epoch, step, metrics = whole(event.get("epoch")), whole(event.get("step")), event.get("metrics")
        if epoch is None or step is None or not isinstance(metrics, dict):
            continue
        while rows and (rows[-1][0], rows[-1][1]) >= (epoch, step):
            rows.pop()
        rows.append((epoch, step, metrics))
    return rows


def series(rows: Sequence[tuple[int, int, Mapping[str, Any]]], metric: str | None) -> list[Series]:
    """The course of the metric that decides, and of the loss."""
    names = list(dict.fromkeys(name for _, _, metrics in rows for name in metrics))
    wanted = [metric] if metric in names and metric is not None else []
    losses = sorted((name for name in names if "loss" in name.lower()), key=lambda name: (len(name), name))
    wanted += [name for name in losses[:1] if name not in wanted]
    if not wanted:
        wanted = names[:1]
    return [
        Series(
            name,
            [(epoch, step, _finite(metrics[name])) for epoch, step, metrics in rows if name in metrics],
        )
        for name in wanted
    ]


def _finite(value: Any) -> float | None:
    value = card.plain(value)
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
