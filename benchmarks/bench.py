"""The place where topics are measured: a directory of their own and processes of their own."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from typing import Any

from benchmarks import children, limits
from benchmarks.children import Sample
from benchmarks.limits import thread_counts
from benchmarks.sizes import QUICK, Size
from benchmarks.topic import Case


class Bench:
    """Makes measurements in a directory that is cleared away between them."""

    def __init__(self, place: str, size: Size) -> None:
        self.place, self.size = place, size
        self.kept = {"long-run", "loads"}  # take long to make, and are only looked into
        self.facts: dict[str, Any] = {}  # of what is kept
        self.figures: dict[str, Callable[[str], None]] = {}  # name → draws it at a path
        self.context = children.start()
        self.run(children.nothing)

    def run(self, task: Callable[..., Sample], *arguments: Any) -> Sample:
        return children.run(self.context, task, *arguments)

    def path(self, name: str) -> str:
        return os.path.join(self.place, name)

    def clear(self, keep: str = "") -> None:
        """Empties the directory, all but what is named, and lets the disk come to rest."""
        for name in os.listdir(self.place):
            path = self.path(name)
            if name == keep or name in self.kept:
                continue
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path)
            else:
                os.unlink(path)
        os.sync()

    def cleared(self, task: Callable[..., Sample], *arguments: Any, keep: str = "") -> Sample:
        """A measurement with nothing on the disk before and after."""
        try:
            return self.run(task, *arguments)
        finally:
            self.clear(keep)

    # -- limits that several topics stand beside -----------------------------------------------------

    def write_limits(self, nbytes: int, *, keep: str = "", few: bool = False) -> list[Case]:
        ways = limits.SOME_WAYS if few else limits.WAYS
        if self.size is QUICK:
            ways = limits.SOME_WAYS[:2]
        return [
            Case(
                "limit: raw write + fsync",
                "limit",
                lambda _, way=way: self.cleared(raw_write, self.path("raw"), nbytes, way, keep=keep),  # type: ignore[misc]
                nbytes,
            )
            for way in ways
        ]

    def copy_limits(self, nbytes: int) -> list[Case]:
        return [
            Case(
                "limit: memcpy of the state",
                "limit",
                lambda _, threads=threads: self.run(raw_copy, nbytes, threads),  # type: ignore[misc]
                nbytes,
            )
            for threads in thread_counts()
        ]

    def read_limits(self, file: str, nbytes: int) -> list[Case]:
        return [
            Case(
                "limit: read from the page cache",
                "limit",
                lambda _, threads=threads: self.run(raw_read, file, threads),  # type: ignore[misc]
                nbytes,
            )
            for threads in thread_counts()
        ]


def raw_write(path: str, size: int, way: limits.Way) -> Sample:
    return Sample(limits.write(path, size, way))


def raw_copy(size: int, threads: int) -> Sample:
    return Sample(limits.copy(size, threads))


def raw_read(path: str, threads: int) -> Sample:
    limits.warm(path)
    return Sample(limits.read(path, threads))


def state_text(size: Size, nbytes: int) -> str:
    return f"GPT-2 ({size.layers} layers, width {size.width}) with AdamW, {nbytes / 1e9:.2g} GB"
