"""Writing results into a page, between two markers; nothing there is typed by hand."""

from __future__ import annotations

import os

BEGIN = "<!-- results: begin; written by `python -m benchmarks --write`, not by hand -->"
END = "<!-- results: end -->"


class MarkersError(ValueError):
    """The page has no place for results."""


def insert(page: str, results: str) -> None:
    """Replaces what stands between the markers of `page`, in one step."""
    with open(page, encoding="utf-8") as file:
        text = file.read()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise MarkersError(f"{page} lacks the lines\n  {BEGIN}\n  {END}\nbetween which results are written.")
    scratch = f"{page}.new"
    with open(scratch, "w", encoding="utf-8") as file:
        file.write(f"{before}{BEGIN}\n\n{results}\n\n{END}{after}")
    os.replace(scratch, page)
