"""Memory for parts on their way: bounded for all files of the process together."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from holdfast.objects.parts import HELD

_STEP = 0.1


class Buffers:
    """Buffers that are taken and given back.

    Args:
        most: how many are out at the same time. A file that has none gets one all the same: so each goes on.

    """

    def __init__(self, most: int) -> None:
        self._most, self._out = most, 0
        self._free: list[bytearray] = []
        self._turn = threading.Condition()

    def take(self, size: int, check: Callable[[], object], *, first: bool) -> bytearray:
        """A buffer of so many bytes.

        Args:
            size: bytes.
            check: called ten times a second while one is waited for; what it raises ends the wait.
            first: whether its file has none.

        """
        while True:
            with self._turn:
                if (
                    first
                    or self._out < self._most
                    or self._turn.wait_for(lambda: self._out < self._most, _STEP)
                ):
                    self._out += 1
                    fitting = [number for number, buffer in enumerate(self._free) if len(buffer) == size]
                    return self._free.pop(fitting[-1]) if fitting else bytearray(size)
            check()

    def give(self, buffer: bytearray) -> None:
        """Takes a buffer back; with the last one all memory goes."""
        with self._turn:
            self._out -= 1
            self._free.append(buffer)
            if not self._out or len(self._free) > self._most:
                self._free.clear()
            self._turn.notify()


shared = Buffers(HELD)


def _after_fork() -> None:
    global shared
    shared = Buffers(HELD)


os.register_at_fork(after_in_child=_after_fork)
