"""Progress of long reads and copies, on stderr."""

from __future__ import annotations

import contextlib

import click

from holdfast import meter
from holdfast.cli import text
from holdfast.meter import Progress

__all__ = ["Progress", "reading"]


def reading(label: str, total: int, *, distant: bool = False) -> contextlib.AbstractContextManager[Progress]:
    """Gives a function that is told how many bytes were just read (one thread at a time).

    Args:
        label: what is read.
        total: its bytes.
        distant: whether they come from far away.

    """
    short = text.shorten_middle(text.line_of(label), 20)
    worth = meter.WORTH_SHOWING_DISTANT if distant else meter.WORTH_SHOWING
    return meter.measuring(short, total, lambda line: click.echo(f"holdfast: {line}", err=True), worth)
