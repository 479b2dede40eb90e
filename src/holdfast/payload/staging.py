"""The buffers that blocks pass through: page-aligned, one pool per process, grown and reused."""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
from collections.abc import Iterator

import numpy as np

from holdfast.format.safetensors import BLOCK
from holdfast.payload.array import Bytes

# The first few buffers, through which every streamed save goes, get huge pages: direct I/O from them
# is a tenth faster. The many that a background save copies into do not: in a virtual machine that
# has to get such pages from its host, filling them for the first time took six times as long.
_HUGE = 8
SHARE_OF_FREE = 4  # background staging takes at most a quarter of what is free
_MADV_WIPEONFORK = 18  # Linux 4.14; Python has no name for it


class Buffer:
    """16 MiB of memory of its own, aligned to a page.

    Direct I/O beside `fork` can corrupt memory that parent and child share until one of them
    writes. So these pages are never shared with a child: it finds zeros in their place. (With
    MADV_DONTFORK, which serves where that is not known, it would find nothing at all there, and
    a child that drops the parent's buffers would unmap whatever has come to lie there since.)
    """

    __slots__ = ("bytes", "view")

    def __init__(self, *, huge: bool = False) -> None:
        memory = mmap.mmap(-1, BLOCK, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_DONTFORK"):
            try:
                memory.madvise(_MADV_WIPEONFORK)
            except OSError:
                memory.madvise(mmap.MADV_DONTFORK)
        if huge and hasattr(mmap, "MADV_HUGEPAGE"):
            with contextlib.suppress(OSError):  # a kernel without it refuses the hint
                memory.madvise(mmap.MADV_HUGEPAGE)
        self.view = memoryview(memory)
        self.bytes: Bytes = np.frombuffer(memory, np.uint8)


class Pool:
    """Buffers that are free. Thread-safe; nothing waits here."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free: list[Buffer] = []
        self._made = 0

    def take(self, count: int) -> list[Buffer]:
        """`count` buffers, made where none is free; a `MemoryError` takes none."""
        with self._lock:
            kept = max(0, len(self._free) - count)
            taken = self._free[kept:]
            del self._free[kept:]
        try:
            return taken + self._make(count - len(taken))
        except MemoryError:
            self.give(taken)
            raise

    def _make(self, count: int) -> list[Buffer]:
        with self._lock:
            before = self._made
            self._made += count
        try:
            return [Buffer(huge=before + number < _HUGE) for number in range(count)]
        except OSError as error:
            with self._lock:
                self._made -= count
            raise MemoryError(f"no memory for {count} more staging buffers of {BLOCK:,} bytes") from error

    def prepare(self, count: int) -> None:
        """Has at least `count` buffers made in all, each in memory already; does what it can.

        The system hands out memory page by page as it is first written to, which takes several
        times as long as copying into it. Done here, beside the training, it does not hold a save.
        """
        while self._made < count:
            try:
                [buffer] = self._make(1)
            except MemoryError:
                return  # the save that needs it will say so
            buffer.bytes[:: mmap.PAGESIZE] = 0
            self.give([buffer])

    def give(self, buffers: list[Buffer]) -> None:
        with self._lock:
            self._free += buffers

    @property
    def size(self) -> int:
        """Bytes of all buffers made so far."""
        return self._made * BLOCK

    @property
    def free(self) -> int:
        """Bytes of the buffers that nobody uses."""
        return len(self._free) * BLOCK


pool = Pool()


def _after_fork() -> None:
    global pool
    pool = Pool()


os.register_at_fork(after_in_child=_after_fork)


def limit(state: int, staging: int | None = None) -> int:
    """Bytes that a background save of `state` bytes may hold in memory.

    `staging` where given, less a block for what a save needs beside the copies (headers, tables,
    the stacks of its threads); else the state's size, but at most a quarter of the memory that is free
    under the cgroup's limit, counting the pool's idle buffers as free. Where these are enough, nothing is
    taken, and nobody asked.
    """
    if staging is not None:
        return max(0, staging - BLOCK)
    if pool.free >= state:
        return state
    return min(state, (free_memory() + pool.free) // SHARE_OF_FREE)


# -- how much is free -------------------------------------------------------------------------


def free_memory() -> int:
    """Bytes that this process can still use: the machine's, or fewer under a cgroup limit."""
    return max(0, min([_machine(), *_cgroups()]))


def _machine() -> int:
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    # No /proc (macOS): nothing tells cheaply what is in use, so half of all.
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _cgroups(membership: str = "/proc/self/cgroup", root: str = "/sys/fs/cgroup") -> Iterator[int]:
    """What each memory cgroup that this process is in has left, up to the root."""
    for line in _lines(membership):
        _, _, rest = line.partition(":")
        controllers, _, group = rest.strip().partition(":")
        if controllers == "":
            top, most, used, idle = root, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            top, most, used = f"{root}/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            idle = "total_inactive_file"
        else:
            continue
        # Inside a container the path may be the host's and not exist here: the walk ends at
        # the root, which then is the container's own group.
        while True:
            left = _left(top + group.rstrip("/"), most, used, idle)
            if left is not None:
                yield left
            if group in ("", "/"):
                break
            group = os.path.dirname(group)


def _left(group: str, most: str, used: str, idle: str) -> int | None:
    limits, uses = _lines(f"{group}/{most}"), _lines(f"{group}/{used}")
    if not limits or not uses or not limits[0].strip().isdigit():
        return None  # no such group, or "max"
    # File pages that nobody uses count as used, but go as soon as memory is wanted.
    reclaimable = 0
    for line in _lines(f"{group}/memory.stat"):
        key, _, value = line.partition(" ")
        if key == idle:
            reclaimable = int(value)
    return max(0, int(limits[0]) - int(uses[0]) + reclaimable)


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8") as file:
            return file.readlines()
    except OSError:
        return []  # not this kind of system
