"""The ends of two series of launches, compared bit by bit: runs, checkpoints saved by name, variables.

Compared is what `holdfast diff` compares, and besides: metrics, the history of metrics, the goal, NaN
marks. Left out is what no training decides: times, host, names of checkpoints, random streams that
nobody seeded and nobody drew from, and metrics that two straight trainings do not agree on.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Collection, Mapping
from typing import Any

from holdfast import stage
from holdfast.checkpoint import Checkpoint, open_checkpoint
from holdfast.comparison import Comparison, ValueDifference, compare, same, walk
from holdfast.errors import NotFoundError
from holdfast.rehearsal.trails import Place, Trail

_STREAM = re.compile(r"(?:random/(?:(?:order|top)/)?)?streams/(\w+)")
METRIC = re.compile(r"(?:history/\d+|metrics)/(.+)")


@dataclasses.dataclass(frozen=True)
class Variable:
    """A variable of the script that is not the same in two series, at the same place of the training.

    Attributes:
        key: ``train.py:main:total``.
        left, right: what was noted of it (`holdfast.witness`).

    """

    key: str
    left: Mapping[str, Any]
    right: Mapping[str, Any]

    @property
    def trackable(self) -> bool:
        """Whether it is a thing that `run.track` takes."""
        return bool(self.left.get("trackable"))

    @property
    def name(self) -> str:
        return self.key.rpartition(":")[2]

    def __str__(self) -> str:
        file, function, name = self.key.split(":", 2)
        where = f"{file}, in {function}" if function else file
        kind = str(self.left["kind"]).rpartition(".")[2]
        return f"{name} ({where})" if kind.endswith(("number", "numbers")) else f"{name} ({kind}; {where})"


@dataclasses.dataclass
class End:
    """The end of one run, or of one checkpoint that the script saved by name.

    Attributes:
        name, path: as it is called in the rehearsal, and as the script named it.
        found: what `holdfast diff` finds, without what is left out.
        records: metrics, history, goal and marks that differ.
        untracked: things of the script that could be tracked, are not, and differ.
        left_out: random streams and metrics that were not compared.

    """

    name: str
    path: str
    found: Comparison
    records: list[ValueDifference] = dataclasses.field(default_factory=list)
    untracked: list[Variable] = dataclasses.field(default_factory=list)
    left_out: list[str] = dataclasses.field(default_factory=list)

    @property
    def equal(self) -> bool:
        return self.found.equal and not self.records and not self.untracked


@dataclasses.dataclass
class Ends:
    """All ends of two series.

    Attributes:
        ends: those that both have.
        only_left, only_right: paths of runs and saves, as the script named them, of one series.

    """

    ends: list[End]
    only_left: list[str]
    only_right: list[str]

    @property
    def equal(self) -> bool:
        return all(end.equal for end in self.ends) and not self.only_left and not self.only_right

    def odd_metrics(self) -> set[str] | None:
        """The metrics that differ, if nothing else does; None otherwise."""
        names = set()
        for end in self.ends:
            if not end.found.equal or end.untracked:
                return None
            for difference in end.records:
                metric = METRIC.match(difference.name)
                if metric is None:
                    return None
                names.add(metric[1])
        return None if self.only_left or self.only_right else names


@dataclasses.dataclass(frozen=True)
class Odd:
    """That in which two straight trainings differ already, although their states agree at the end.

    Attributes:
        metrics: names of metrics: durations, for example.
        variables: keys of the script's variables.
        names: values of the state that differ on the way, and no longer at the end.

    """

    metrics: Collection[str] = ()
    variables: Collection[str] = ()
    names: Collection[str] = ()


def compare_series(left: Trail, right: Trail, odd: Odd) -> Ends:
    """Compares the newest checkpoints of all runs and of all saves of two series.

    Args:
        left, right: their trails.
        odd: what is left out.

    Raises:
        DamagedError: a byte is not as written.

    """
    ends, only_left, only_right = [], [], []
    for kind in (stage.RUNS, stage.SAVES):
        mine, theirs = _checkpoints(left, kind), _checkpoints(right, kind)
        only_left += [path for path in mine if path not in theirs]
        only_right += [path for path in theirs if path not in mine]
        for path, a in mine.items():
            if path not in theirs:
                continue
            b = theirs[path]
            name = os.path.basename(os.path.dirname(a.path) if kind == stage.RUNS else a.path)
            end = End(name, path, compare(a, b), _records(a, b))
            if kind == stage.RUNS:
                variables = differing_variables(left, right, name, _place(a), _place(b))
                end.untracked = [v for v in variables if v.trackable and v.key not in odd.variables]
                _leave_out(end, unused_streams(left, name) & unused_streams(right, name), set(odd.metrics))
            ends.append(end)
    return Ends(ends, only_left, only_right)


def _place(checkpoint: Checkpoint) -> Place:
    progress = checkpoint.progress
    return Place(progress.epoch, progress.step, progress.batch, progress.entered)


def _checkpoints(trail: Trail, kind: str) -> dict[str, Checkpoint]:
    """Path as the script named it → the newest checkpoint there."""
    links = os.path.join(trail.home, "places" if kind == stage.RUNS else "saved")
    if kind == stage.RUNS:
        named = trail.runs()
    else:
        named = {name: os.readlink(os.path.join(links, name)) for name in sorted(os.listdir(links))}
    found = {}
    for name, path in named.items():
        try:
            found[path] = open_checkpoint(os.path.join(trail.home, kind, name))
        except NotFoundError:  # a run that was made and never saved
            continue
    return found


def _records(a: Checkpoint, b: Checkpoint) -> list[ValueDifference]:
    """What `compare` calls metadata, and a training decides; and the history of metrics."""
    one, other = _plain(a), _plain(b)
    return [
        ValueDifference(name, x, y)
        for field in one
        for name, x, y in walk(one[field], other[field], field)
        if not same(x, y)
    ]


def _plain(checkpoint: Checkpoint) -> dict[str, Any]:
    import msgspec

    manifest: dict[str, Any] = msgspec.to_builtins(checkpoint.manifest)
    return {name: manifest[name] for name in ("metrics", "history", "goal", "stopped", "nan")}


def _leave_out(end: End, streams: set[str], metrics: set[str]) -> None:
    found = end.found

    def stream(difference: ValueDifference) -> str:
        match = _STREAM.match(difference.name)
        return match[1] if match and match[1] in streams else ""

    def metric(difference: ValueDifference) -> str:
        match = METRIC.match(difference.name)
        return match[1] if match and match[1] in metrics else ""

    names = {stream(d) for d in found.value_differences} | {metric(d) for d in end.records}
    end.left_out = sorted(names - {""})
    found.value_differences = [d for d in found.value_differences if not stream(d)]
    end.records = [d for d in end.records if not metric(d)]


def unused_streams(trail: Trail, run: str) -> set[str]:
    """The random streams that nobody drew from while the run was trained, in any launch."""
    first: dict[tuple[int, str], Any] = {}
    used, known = set(), set()
    for line in trail.events:
        if line.get("run") != run:
            continue
        if line["event"] == "loop":
            streams = line["streams"]
        elif line["event"] == "checkpoint":
            streams = line["parts"].get("random", {}).get("values", {}).get("streams", {})
        else:
            continue
        for name, value in streams.items():
            known.add(name)
            if not same(first.setdefault((line["launch"], name), value), value):
                used.add(name)
    return known - used


def differing_variables(left: Trail, right: Trail, run: str, at: Place, there: Place) -> list[Variable]:
    """The variables that both series had at a save, and that differ."""
    mine, theirs = left.variables(run).get(at, {}), right.variables(run).get(there, {})
    return [
        Variable(key, fact, theirs[key])
        for key, fact in mine.items()
        if key in theirs and fact.get("value") != theirs[key].get("value")
    ]


def odd_variables(left: Trail, right: Trail) -> set[str]:
    """The variables that differ anywhere between two straight series: times and the like."""
    return {
        variable.key
        for run in left.runs()
        for place in left.variables(run)
        for variable in differing_variables(left, right, run, place, place)
    }
