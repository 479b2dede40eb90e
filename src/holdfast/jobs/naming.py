"""Numbers and names of Slurm: which tasks an array has, and what the log of one is called."""

from __future__ import annotations

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


def fill(form: str, *, job: str = "", array: str = "", task: int | None = None) -> str:
    """A log's name with the numbers in it; empty when something in it is known to Slurm alone."""
    known = {"j": job, "A": array or job, "a": "" if task is None else str(task)}

    def put(found: re.Match[str]) -> str:
        value = known.get(found[2], "")
        return value.zfill(min(int(found[1] or 0), 10)) if value else found[0]

    name = re.sub(r"%(\d*)([a-zA-Z])", put, form)
    return "" if "%" in name else name
