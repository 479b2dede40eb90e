"""How a large file is divided on its way into a bucket, and that it is written in order."""

from __future__ import annotations

import math

from holdfast.errors import UsageError

PART_SIZE = 16 << 20
MOST_PARTS = 10_000
AT_ONCE = 4
"""Parts of one file that are on their way at the same time; each is held in memory."""
HELD = 8
"""The same for all files of a process together, where they are continued by part."""


def part_size(size: int) -> int:
    """Bytes of each part of a file of `size` bytes: 16 MiB, or more MiB where 10,000 of them would not do."""
    return max(PART_SIZE, math.ceil(size / MOST_PARTS / (1 << 20)) << 20)


class Order:
    """The bytes of a file, as they come: each after the one before, and as many as it has.

    Args:
        shown: the file, in messages.
        size: its bytes.

    Attributes:
        done: the bytes that came.

    """

    def __init__(self, shown: str, size: int) -> None:
        self._shown, self._size, self.done = shown, size, 0

    def take(self, offset: int, count: int) -> None:
        """Counts the next bytes.

        Raises:
            UsageError: they are not the next, or too many; none was counted.

        """
        if offset != self.done:
            raise UsageError(
                f"{self._shown} is written in order: expected byte {self.done}, found {offset}.",
                expected=self.done,
                found=offset,
            )
        if offset + count > self._size:
            raise UsageError(
                f"{self._shown} has {self._size} bytes; more were written.",
                expected=self._size,
                found=offset + count,
            )
        self.done += count

    def end(self) -> None:
        """Raises `UsageError` where bytes are missing."""
        if self.done != self._size:
            raise UsageError(
                f"{self._shown} is not complete: expected {self._size} bytes, found {self.done}.",
                expected=self._size,
                found=self.done,
            )
