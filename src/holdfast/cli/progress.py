"""Progress of long reads, on stderr: a bar on a terminal, a plain line now and then in a log."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

import click

from holdfast.cli import text

Progress = Callable[[int], None]

# Less than this is read before a bar could be looked at: from a disk, and from far away.
_WORTH_SHOWING, _DISTANT = 64 << 20, 4 << 20
_LINE_SECONDS = 5.0


@contextlib.contextmanager
def reading(label: str, total: int, *, distant: bool = False) -> Iterator[Progress]:
    """Gives a function that is told how many bytes were just read (one thread at a time).

    Args:
        label: what is read.
        total: its bytes.
        distant: whether they come from far away.

    """
    if total < (_DISTANT if distant else _WORTH_SHOWING):
        yield lambda _: None
    elif sys.stderr.isatty():
        with _bar(label, total) as tell:
            yield tell
    else:
        yield _lines(label, total)


def _lines(label: str, total: int) -> Progress:
    done, said = 0, time.monotonic()

    def tell(count: int) -> None:
        nonlocal done, said
        done = min(done + count, total)  # a block that two reads share is counted twice
        now = time.monotonic()
        if now - said >= _LINE_SECONDS:
            said = now
            click.echo(f"holdfast: {label}: {text.size(done)} of {text.size(total)}", err=True)

    return tell


@contextlib.contextmanager
def _bar(label: str, total: int) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    # Lines printed meanwhile go above the bar, unless they go into a file or a pipe.
    redirect = sys.stdout.isatty()
    with Bar(*columns, console=Console(stderr=True), transient=True, redirect_stdout=redirect) as bar:
        task = bar.add_task(text.shorten_middle(text.line_of(label), 20), total=total)
        yield lambda count: bar.advance(task, count)
