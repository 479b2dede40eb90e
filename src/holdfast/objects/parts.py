"""How a large file is divided on its way into a bucket."""

from __future__ import annotations

import math

PART_SIZE = 16 << 20
MOST_PARTS = 10_000
AT_ONCE = 4
"""Parts of one file that are on their way at the same time; each is held in memory."""
HELD = 8
"""The same for all files of a process together, where they go to S3."""


def part_size(size: int) -> int:
    """Bytes of each part of a file of `size` bytes: 16 MiB, or more MiB where 10,000 of them would not do."""
    return max(PART_SIZE, math.ceil(size / MOST_PARTS / (1 << 20)) << 20)
