"""Writing results into a page, between two markers; nothing there is typed by hand."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

BEGIN, END = (
    "<!-- results: begin; written by `python -m benchmarks --write`, not by hand -->",
    "<!-- results: end -->",
)


class MarkersError(ValueError):
    """The page has no place for results."""


def markers(topics: Sequence[str]) -> tuple[str, str]:
    """The lines between which the results of all topics stand, or those of some that were measured alone."""
    if not topics:
        return BEGIN, END
    only = " ".join(f"--only {topic}" for topic in topics)
    return BEGIN.replace("--write", f"{only} --write"), END.replace("results", f"results {only}")


def insert(page: str, results: str, topics: Sequence[str] = ()) -> None:
    """Replaces what stands between the markers of `page`, in one step.

    Args:
        page: a path.
        results: the new text.
        topics: those that were measured, where not all were: they have markers of their own.

    """
    own_begin, own_end = markers(topics)
    with open(page, encoding="utf-8") as file:
        text = file.read()
    before, begin, rest = text.partition(own_begin)
    _, end, after = rest.partition(own_end)
    if not begin or not end:
        raise MarkersError(
            f"{page} lacks the lines\n  {own_begin}\n  {own_end}\nbetween which results are written."
        )
    scratch = f"{page}.new"
    with open(scratch, "w", encoding="utf-8") as file:
        file.write(f"{before}{own_begin}\n\n{results}\n\n{own_end}{after}")
    os.replace(scratch, page)


def draw(page: str, name: str, make: Callable[[str], None]) -> None:
    """A figure beside the page; without what draws it the old one stays, and that is said."""
    try:
        make(os.path.join(os.path.dirname(os.path.abspath(page)), name))
    except ImportError as error:
        print(f"{name} was not drawn: {error}", file=sys.stderr)
