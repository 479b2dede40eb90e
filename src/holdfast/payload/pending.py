"""Saves of this process that copy behind the training: what must be waited for before arrays are written to.

A save with late arrays is known here from its start until their last byte is copied. The torch
optimizers' hook, the loops and every read into live memory wait here; there is one list for the whole
process, since an optimizer does not know whose parameters it moves.
"""

from __future__ import annotations

import os
from typing import Protocol


class Copying(Protocol):
    """A save that copies behind the training."""

    def join_copied(self) -> None:
        """Returns when nothing is left to copy; its failure is left for those who wait for the save."""

    def spoil(self) -> None:
        """What is still to be copied may be written to from now on: the save must fail."""


_under_way: dict[Copying, None] = {}
_written = 0


def add(save: Copying) -> None:
    _under_way[save] = None


def remove(save: Copying) -> None:
    _under_way.pop(save, None)


def settle() -> None:
    """Returns when every array of this process may be written to. An interrupt leaves all as it was."""
    while _under_way:
        for save in list(_under_way):
            save.join_copied()
            remove(save)


def settle_for_reading() -> None:
    """Settles because arrays are about to be read from a checkpoint, and counts it."""
    global _written
    settle()
    _written += 1


def written() -> int:
    """How often arrays were read from a checkpoint: those that change there change by our own doing."""
    return _written


def spoil() -> None:
    """Makes the saves fail that could not be waited for."""
    for save in list(_under_way):
        save.spoil()


# The threads that copy have stayed in the parent.
os.register_at_fork(after_in_child=_under_way.clear)
