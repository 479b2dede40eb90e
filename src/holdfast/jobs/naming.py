"""Slurm's notations: which tasks an array has, what the log of one is called, how long a time limit is."""

from __future__ import annotations

import math
import re

_MOST = 1_000_000


def task_numbers(spec: str) -> list[int]:
    """The numbers that ``--array`` means: ``1-10%1``, ``1,3,5-9:2%1``; empty when it is not understood."""
    found: list[int] = []
    for piece in spec.partition("%")[0].split(","):
        match = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9})(?::(\d{1,9}))?)?", piece.strip(), re.ASCII)
        if match is None:
            return []
        first, last, step = int(match[1]), int(match[2] or match[1]), int(match[3] or 1)
        if step < 1 or last - first > _MOST or len(found) > _MOST:
            return []
        found += range(first, last + 1, step)
    return found


def fill(form: str, *, job: str = "", array: str = "", task: int | None = None, name: str = "") -> str:
    """A log's name with numbers and the job's name in it; empty when something in it is known to Slurm alone."""
    known = {"j": job, "A": array or job, "a": "" if task is None else str(task), "x": name}
    complete = True

    def put(found: re.Match[str]) -> str:
        nonlocal complete
        if found[0] == "%%":
            return "%"
        value = known.get(found[2] or "", "")
        complete = complete and bool(value)
        return value.zfill(min(int(found[1] or 0), 10)) if value.isdecimal() else value

    filled = re.sub(r"%%|%(\d*)([a-zA-Z]?)", put, form)
    return filled if complete else ""


def tells_apart(form: str) -> bool:
    """Whether each task of an array has a log of its own by this name."""
    return re.search(r"%\d*[aj]", form.replace("%%", "")) is not None


_LIMIT = re.compile(r"(?:(?P<days>\d+)-)?(?P<first>\d+)(?::(?P<second>\d+))?(?::(?P<third>\d+))?", re.ASCII)


def limit_seconds(text: str) -> float | None:
    """Seconds of a time limit as Slurm writes it: ``90`` (minutes), ``90:00``, ``1:30:00``, ``1-12``, ``1-12:00:00``.

    Infinite where it stands for none (``UNLIMITED``, ``0``); None when it is not understood.
    """
    if text.upper() in ("UNLIMITED", "INFINITE", "-1"):
        return math.inf
    found = _LIMIT.fullmatch(text.strip())
    if found is None:
        return None
    numbers = [int(found[name] or 0) for name in ("first", "second", "third")]
    if found["days"] is None and found["third"] is None:  # minutes, and seconds
        numbers = [0, *numbers[:2]]
    hours, minutes, seconds = numbers
    return ((int(found["days"] or 0) * 24 + hours) * 60 + minutes) * 60 + seconds or math.inf
