"""Writing results into a page, between two markers; nothing there is typed by hand."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

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


def draw(page: str, name: str, make: Callable[[str], None]) -> None:
    """A figure beside the page; without what draws it the old one stays, and that is said."""
    try:
        make(os.path.join(os.path.dirname(os.path.abspath(page)), name))
    except ImportError as error:
        print(f"{name} was not drawn: {error}", file=sys.stderr)
