"""The launches of a training, read from its history. Nothing is decided from them; they are shown."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping, Sequence
from typing import Any

Event = Mapping[str, Any]


@dataclasses.dataclass(kw_only=True)
class Launch:
    """One entry into a loop. Times are seconds since the epoch; what a history does not tell is empty or None.

    Attributes:
        job, array, task, restart: of Slurm; empty outside.
        output: its log.
        goal: ``("epochs", 20)``.
        limit: when Slurm would end it.
        why: how it ended, as the history says it; empty while it has not.
        requeued: whether it asked to be started again.

    """

    began: float
    job: str = ""
    array: str = ""
    task: int | None = None
    restart: int = 0
    output: str = ""
    goal: tuple[str, int] | None = None
    limit: float | None = None
    ended: float | None = None
    why: str = ""
    requeued: bool = False


def launches(events: Sequence[Event]) -> list[Launch]:
    """All that the history tells of, oldest first."""
    found: list[Launch] = []
    open_ones: dict[tuple[str, Any], Launch] = {}
    for event in events:
        kind = event.get("event")
        if kind not in ("launch", "end"):
            continue
        when = moment(event.get("time"))
        if when is None:
            continue
        slurm = event.get("slurm")
        slurm = slurm if isinstance(slurm, dict) else {}
        key = ("job", str(slurm["job"])) if slurm.get("job") else ("local", None)
        if kind == "launch":
            open_ones[key] = launch = _launch(when, event, slurm)
            found.append(launch)
        elif key in open_ones:
            closed = open_ones.pop(key)
            closed.ended, closed.why = when, text_of(event.get("why"))
            closed.requeued = event.get("requeued") is True
    return found


def _launch(when: float, event: Event, slurm: Event) -> Launch:
    return Launch(
        began=when,
        job=text_of(slurm.get("job")),
        array=text_of(slurm.get("array")),
        task=whole(slurm.get("task")),
        restart=whole(slurm.get("restart")) or 0,
        output=text_of(slurm.get("output")),
        goal=goal_of(event.get("goal")),
        limit=number_of(slurm.get("ends", slurm.get("end"))),
    )


def goal_of(value: Any) -> tuple[str, int] | None:
    """A goal as run.json and the history write it: ``{"kind": "epochs", "value": 20}``."""
    if not isinstance(value, dict) or value.get("kind") not in ("epochs", "steps"):
        return None
    count = whole(value.get("value"))
    return None if count is None else (value["kind"], count)


def moment(value: Any) -> float | None:
    """A time of the history, in seconds since the epoch."""
    try:
        return datetime.datetime.fromisoformat(value).timestamp()
    except (TypeError, ValueError, OverflowError, OSError):
        return None


def text_of(value: Any) -> str:
    return str(value) if isinstance(value, (str, int)) and not isinstance(value, bool) else ""


def whole(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value < 10**15 else None


def number_of(value: Any) -> float | None:
    return float(value) if type(value) in (int, float) and 0 <= value < 1e12 else None
