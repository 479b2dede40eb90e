"""Where an interrupted training left the way of the straight one, as far as both were saved at one place."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from holdfast.comparison import ValueDifference, same, walk
from holdfast.rehearsal.ends import (
    METRIC,
    Ends,
    Odd,
    Variable,
    differing_variables,
    odd_variables,
    unused_streams,
)
from holdfast.rehearsal.trails import Place, Trail


@dataclasses.dataclass(frozen=True)
class Parting:
    """Where an interrupted training left the way of the straight one.

    Attributes:
        run: the run's name in the rehearsal.
        before: the last place at which the two were equal; None when there is none.
        at: the first at which they differ.
        launch: the launch of the interrupted series that got there.
        resumed: where that launch took the training up; None from the start.
        differences: what differs there, encoded as in the trail.
        variables: the script's variables that differ there; or, if some differed at `before` already, those.

    """

    run: str
    before: Place | None
    at: Place
    launch: int
    resumed: Place | None
    differences: list[ValueDifference]
    variables: list[Variable]


def odd_of(first: Trail, second: Trail, again: Ends) -> Odd:
    """What two straight trainings that end equal do not agree on."""
    metrics = again.odd_metrics() or set()
    names = {
        difference.name
        for run in first.runs()
        for _, _, differences in _differing([first], second, run, Odd(metrics))
        for difference in differences
    }
    return Odd(metrics, odd_variables(first, second), names)


def part(straight: list[Trail], other: Trail, run: str, odd: Odd) -> Parting | None:
    """The first place at which the trails of a run differ; None when they never do.

    Args:
        straight: trails that agree with one another; the last has the most places.
        other: the trail that left their way.
        run: the run's name.
        odd: what is left out.

    """
    before = None
    found = other.checkpoints(run)
    for place, source, differences in _differing(straight, other, run, odd):
        if differences:
            launch = found[place]["launch"]
            # What differed before the state did is no consequence of it.
            places = [p for p in (before, place) if p is not None and found[p]["launch"] == launch]
            variables = [
                [v for v in differing_variables(source, other, run, p, p) if v.key not in odd.variables]
                for p in places
            ]
            return Parting(
                run,
                before,
                place,
                launch,
                other.resumed_at(run, launch),
                differences,
                next(filter(None, variables), []),
            )
        before = place
    return None


def _differing(
    straight: list[Trail], other: Trail, run: str, odd: Odd
) -> Iterator[tuple[Place, Trail, list[ValueDifference]]]:
    """Each place at which both were saved, in order: the trail that knows it, and what differs there."""
    known: dict[Place, Any] = {}
    sources: dict[Place, Trail] = {}
    unused = unused_streams(other, run)
    for trail in straight:
        unused &= unused_streams(trail, run)
        for place, line in trail.checkpoints(run).items():
            known[place], sources[place] = line, trail
    for place, line in sorted(other.checkpoints(run).items()):
        if place in known:
            differences = _line_differences(known[place], line)
            yield place, sources[place], [d for d in differences if _counts(d.name, unused, odd)]


def _line_differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[ValueDifference]:
    found = []
    for path, x, y in walk(a["metrics"], b["metrics"], "metrics"):
        if not same(x, y):
            found.append(ValueDifference(path, x, y))
    for part in [*a["parts"], *(part for part in b["parts"] if part not in a["parts"])]:
        one, other = (side["parts"].get(part, {"values": None, "arrays": {}}) for side in (a, b))
        for path, x, y in (
            *walk(one["values"], other["values"], part),
            *walk(one["arrays"], other["arrays"], part),
        ):
            if not same(x, y):
                found.append(ValueDifference(path, x, y))
    return found


def _counts(name: str, unused: Collection[str], odd: Odd) -> bool:
    if name in odd.names:
        return False
    if name.startswith("random/"):
        # Beside the streams there is what a resume inside an epoch needs; a straight training may know
        # more or less of it.
        stream = re.match(r"random/streams/(\w+)", name)
        return stream is not None and stream[1] not in unused
    metric = METRIC.match(name)
    return metric is None or metric[1] not in odd.metrics
