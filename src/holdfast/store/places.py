"""Where a path leads: a directory here."""

from __future__ import annotations

from holdfast.payload.source import FolderSource, Readable


def source(path: str) -> Readable:
    """The files of the checkpoint at a path."""
    return FolderSource(path)
