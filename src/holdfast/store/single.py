"""How one file appears beside others: whole or not at all, and durable."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from holdfast import files
from holdfast.errors import HoldfastError
from holdfast.store import scratch


@contextlib.contextmanager
def beside(path: str) -> Iterator[str]:
    """A new directory beside `path`, which is gone after the block."""
    parent, base = os.path.split(path)
    scratch.sweep(parent, base)
    writing = os.path.join(parent, scratch.name_for(base))
    files.make_new_directory(writing)
    try:
        yield writing
    except BaseException:
        with contextlib.suppress(HoldfastError):  # the failure on its way is the one to tell
            files.remove_tree(writing)
        raise
    files.remove_tree(writing)


def publish_file(file: str, path: str) -> None:
    """Gives a finished, synced file its name, in the place of one that may have it, and makes the name durable."""
    new = not os.path.lexists(path)
    with files.translated(path, "publish"):
        files.rename(file, path)
    try:
        files.sync_directory(os.path.dirname(path))
    except HoldfastError:
        if new:  # what failed must not be found later
            with contextlib.suppress(HoldfastError):
                files.remove_file(path)
        raise
