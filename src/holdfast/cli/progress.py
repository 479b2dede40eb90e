"""Progress of long reads and copies, on stderr."""

from __future__ import annotations

import contextlib

import click

from holdfast import meter
from holdfast.cli import text
from holdfast.meter import Progress

__all__ = ["Progress", "reading"]


def reading(label: str, total: int) -> contextlib.AbstractContextManager[Progress]:
    """Gives a function that is told how many bytes were just read (one thread at a time)."""
    short = text.shorten_middle(text.line_of(label), 20)
    return meter.measuring(short, total, lambda line: click.echo(f"holdfast: {line}", err=True))
