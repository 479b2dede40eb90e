"""Sparing the garbage collector what is no garbage.

The tables of a state with tens of thousands of arrays are many small objects that live until the
save or the load ends. They make the collector look through the whole process several times,
frameworks included, and it finds nothing: half of the time that such a save or load took.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def paused() -> Iterator[None]:
    """No automatic collection within the block; one that was switched off before stays off.

    It is one switch for all threads, so this is for the thread that called the library, which
    runs none of its own code meanwhile; never for a thread of ours beside a training.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
