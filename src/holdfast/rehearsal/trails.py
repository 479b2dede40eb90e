"""What the launches of a series noted: their runs, epochs, checkpoints, variables, warnings, signals."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from holdfast import stage

_TAIL = 1 << 14

Event = Mapping[str, Any]


class Place(NamedTuple):
    """A place in a training, in the order in which it gets there."""

    epoch: int
    step: int
    batch: int
    entered: bool = False

    def __str__(self) -> str:
        inside = f", batch {self.batch} of epoch {self.epoch + 1}" if self.batch else ""
        done = f"{self.epoch} epoch{'s' if self.epoch > 1 else ''} done"
        epoch = f", {done}" if self.epoch and not inside else ""
        return (
            f"step {self.step:,}{inside or epoch}" if self.step or not self.epoch else f"epoch {self.epoch}"
        )


def place_of(event: Event) -> Place:
    return Place(event["epoch"], event["step"], event["batch"], bool(event.get("entered")))


@dataclasses.dataclass(frozen=True)
class Shape:
    """What a straight training of one run looked like.

    Attributes:
        kind: "epochs", "steps" or "own".
        epochs: for each epoch the steps done before and after it.
        steps: in all.
        saves: for each `run.save` of a loop of the user's own, the place it was called at.

    """

    kind: str
    epochs: list[tuple[int, int]]
    steps: int
    saves: list[Place]

    @property
    def batches(self) -> bool:
        """Whether its epochs have batches."""
        return self.kind == "epochs" and self.steps > 0


@dataclasses.dataclass(frozen=True)
class Trail:
    """The lines of a series, in order."""

    home: str
    events: Sequence[Event]

    @classmethod
    def read(cls, home: str) -> Trail:
        """Reads what is there; a line that a signal cut short is left out."""
        path = os.path.join(home, stage.TRAIL)
        if not os.path.exists(path):
            return cls(home, [])
        with open(path, "rb") as file:
            return cls(home, _parse(file.read()))

    def of(self, event: str, run: str | None = None, launch: int | None = None) -> list[Event]:
        """The lines of one kind, of one run, of one launch."""
        return [
            line
            for line in self.events
            if line["event"] == event
            and (run is None or line["run"] == run)
            and (launch is None or line["launch"] == launch)
        ]

    def runs(self, launch: int | None = None) -> dict[str, str]:
        """Name here → the path that the script named, in the order in which they were made."""
        return {line["run"]: line["path"] for line in self.of("run", launch=launch)}

    def pids(self) -> list[int]:
        """The processes of the newest launch that made a run."""
        last = self.events[-1]["launch"] if self.events else 0
        return list(dict.fromkeys(line["pid"] for line in self.of("run", launch=last)))

    def signal_of(self, launch: int) -> Event | None:
        found = self.of("signal", launch=launch)
        return found[-1] if found else None

    def warnings(self, launch: int) -> list[str]:
        """What the library warned of in a launch."""
        return [str(line["text"]) for line in self.of("warning", launch=launch)]

    def checkpoints(self, run: str, launch: int | None = None) -> dict[Place, Event]:
        """The checkpoints of a run; of several at one place the last."""
        return {place_of(line): line for line in self.of("checkpoint", run, launch)}

    def variables(self, run: str) -> dict[Place, Mapping[str, Any]]:
        """The script's variables at each save; of several at one place the last."""
        return {place_of(line): line["found"] for line in self.of("variables", run)}

    def resumed_at(self, run: str, launch: int) -> Place | None:
        """Where a launch took the run up; None when it began anew or never entered its loop."""
        found = self.of("loop", run, launch)
        return place_of(found[0]) if found and found[0]["resumed"] is not None else None

    def shape(self, run: str) -> Shape:
        """What the training of this run looked like; meant for a straight one."""
        loops = self.of("loop", run)
        kind = str(loops[0]["kind"]) if loops else "own"
        ends = [int(line["step"]) for line in self.of("epoch", run)]
        epochs = list(zip([0, *ends], ends, strict=False))
        steps = max([place_of(line).step for line in self.of("end", run)] + ends, default=0)
        return Shape(kind, epochs, steps, [place_of(line) for line in self.of("own", run)])


def latest(home: str) -> Place | None:
    """The last place that the trail speaks of, read from its end alone: for a line of progress."""
    path = os.path.join(home, stage.TRAIL)
    if not os.path.exists(path):
        return None
    with open(path, "rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - _TAIL))
        lines = [line for line in _parse(file.read()) if "step" in line]
    return place_of(lines[-1]) if lines else None


def _parse(data: bytes) -> list[Event]:
    events: list[Event] = []
    for line in data.splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and "event" in event:
            events.append(event)
    return events
