"""Progress of what takes long, on stderr: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import collections
import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from holdfast import figures

Progress = Callable[[int], None]

# Less than this is done before a bar could be looked at: here, and over a network.
WORTH_SHOWING, WORTH_SHOWING_DISTANT = 64 << 20, 4 << 20
LINE_SECONDS = 5.0
_WINDOW_SECONDS = 20.0


@contextlib.contextmanager
def measuring(
    label: str, total: int, say: Callable[[str], None], worth: int = WORTH_SHOWING
) -> Iterator[Progress]:
    """Gives a function that is told how many bytes were just done (one thread at a time).

    Args:
        label: what is done.
        total: bytes in all.
        say: gets a line now and then, where stderr is no terminal.
        worth: less in all is not shown.

    """
    if total < worth:
        yield lambda _: None
    elif sys.stderr.isatty():
        with _bar(label, total) as tell:
            yield tell
    else:
        yield _Lines(label, total, say).tell


class _Lines:
    def __init__(self, label: str, total: int, say: Callable[[str], None]) -> None:
        self._label, self._total, self._say = label, total, say
        self._done, self._said = 0, time.monotonic()
        self._seen = collections.deque([(self._said, 0)])

    def tell(self, count: int) -> None:
        self._done = min(self._done + count, self._total)  # a block that two reads share is counted twice
        now = time.monotonic()
        if now - self._said >= LINE_SECONDS:
            self._said = now
            self._say(f"{self._label}: {self._line(now)}")

    def _line(self, now: float) -> str:
        done, total = self._done, self._total
        text = f"{100 * done // total}% ({figures.size(done)} of {figures.size(total)})"
        self._seen.append((now, done))
        while len(self._seen) > 2 and self._seen[1][0] <= now - _WINDOW_SECONDS:
            self._seen.popleft()
        since, before = self._seen[0]
        if done == before or now <= since:
            return text
        rate = (done - before) / (now - since)
        left = f", {figures.seconds((total - done) / rate)} left" if done < total else ""
        return f"{text}, {figures.size(rate)}/s{left}"


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
        task = bar.add_task(label, total=total)
        yield lambda count: bar.advance(task, count)
