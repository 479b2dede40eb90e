"""What the machine itself can do with the same bytes: raw write and fsync, memcpy, warm and cold reads."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

_BLOCK = 16 << 20
_CONTENT = 96 << 20


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def thread_counts() -> list[int]:
    """Threads to copy and read with: more than there are cores do not help there."""
    return sorted({1, 2, min(4, cores()), min(8, cores())})


def disk_thread_counts() -> list[int]:
    """Threads to write and to read the disk with: they wait for it, so more than cores can help."""
    return sorted({1, 2, 4, min(8, cores())})


@dataclass(frozen=True, slots=True)
class Way:
    """How bytes are written: around the page cache or through it, and what else can make it faster.

    Attributes:
        direct: O_DIRECT.
        threads: that write at the same time, 16 MiB each.
        reserve: posix_fallocate before the first write.
        files: among which the bytes are shared out.
        huge: the memory that is written lies in huge pages.

    """

    direct: bool
    threads: int
    reserve: bool = False
    files: int = 1
    huge: bool = True


WAYS = [
    *(
        Way(True, threads, reserve)
        for threads in disk_thread_counts()
        for reserve in (False, True)
    ),
    Way(True, 4, files=4),
    Way(True, 2, reserve=True, files=4),
    Way(True, 4, huge=False),
    Way(False, 1),
    Way(False, 2, reserve=True),
]  # fmt: skip
# For what is repeated at many sizes: the ways that were fastest somewhere.
SOME_WAYS = [Way(True, 2), Way(True, 4), Way(True, 4, reserve=True), Way(False, 1)]


def side_by_side(threads: int, count: int, act: Callable[[int], object]) -> None:
    """`act(0)` to `act(count - 1)`, shared out among threads; the first error is raised."""
    if min(threads, count) <= 1:
        for number in range(count):
            act(number)
        return
    numbers = iter(range(count))
    lock = threading.Lock()
    errors: list[BaseException] = []

    def work() -> None:
        while not errors:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            try:
                act(number)
            except BaseException as error:
                errors.append(error)

    crew = [threading.Thread(target=work) for _ in range(threads)]
    for thread in crew:
        thread.start()
    for thread in crew:
        thread.join()
    if errors:
        raise errors[0]


def _aligned(size: int, *, huge: bool) -> mmap.mmap:
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if huge and hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them refuses the hint
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def write(path: str, size: int, way: Way) -> float | None:
    """Seconds to write `size` random bytes and sync files and directory; None where that way fails."""
    with _aligned(min(_CONTENT, -(-size // _BLOCK) * _BLOCK), huge=way.huge) as content:
        np.frombuffer(content, np.uint64)[:] = np.random.default_rng(0).integers(
            0, 2**63, len(content) // 8, np.uint64
        )
        blocks = -(-size // _BLOCK)
        share = -(-blocks // way.files) * _BLOCK
        paths = [f"{path}.{number}" for number in range(-(-size // share))]
        view = memoryview(content)
        try:
            with contextlib.ExitStack() as stack:
                return _write(stack, paths, view, size, share, way)
        except OSError:
            return None  # the file system has no direct I/O, or cannot reserve
        finally:
            view.release()
            for each in paths:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(each)


def _write(
    stack: contextlib.ExitStack, paths: list[str], view: memoryview, size: int, share: int, way: Way
) -> float:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | (getattr(os, "O_DIRECT", 0) if way.direct else 0)
    sizes = [min(share, size - number * share) for number in range(len(paths))]
    started = time.perf_counter()
    fds: list[int] = []
    for each, own in zip(paths, sizes, strict=True):
        fds.append(os.open(each, flags))
        stack.callback(os.close, fds[-1])
        if way.reserve:
            os.posix_fallocate(fds[-1], 0, own)

    def act(number: int) -> None:
        start = number * _BLOCK
        file, offset = divmod(start, share)
        length = -(-min(_BLOCK, size - start) // 4096) * 4096
        at = start % len(view)
        piece = view[at : at + length]
        while piece:
            done = os.pwrite(fds[file], piece, offset)
            offset, piece = offset + done, piece[done:]

    side_by_side(way.threads, -(-size // _BLOCK), act)
    for fd, own in zip(fds, sizes, strict=True):
        os.ftruncate(fd, own)
        os.fsync(fd)
    directory = os.open(os.path.dirname(paths[0]), os.O_RDONLY)
    stack.callback(os.close, directory)
    os.fsync(directory)
    return time.perf_counter() - started


def copy(size: int, threads: int) -> float:
    """Seconds to copy `size` bytes of memory into memory that is there already."""
    source, target = np.ones(size, np.uint8), np.zeros(size, np.uint8)
    target[:] = 1

    def act(number: int) -> None:
        place = slice(number * _BLOCK, (number + 1) * _BLOCK)
        np.copyto(target[place], source[place])

    started = time.perf_counter()
    side_by_side(threads, -(-size // _BLOCK), act)
    return time.perf_counter() - started


def read(path: str, threads: int, *, direct: bool = False) -> float | None:
    """Seconds to read a file into memory that is there already; None where direct I/O fails."""
    size = os.path.getsize(path)
    with _aligned(-(-size // _BLOCK) * _BLOCK, huge=False) as memory, memoryview(memory) as target:
        np.frombuffer(memory, np.uint8)[:] = 1
        try:
            fd = os.open(path, os.O_RDONLY | (getattr(os, "O_DIRECT", 0) if direct else 0))
        except OSError:
            return None

        def act(number: int) -> None:
            start = number * _BLOCK
            while start < min(size, (number + 1) * _BLOCK):
                with target[start : (number + 1) * _BLOCK] as rest:
                    start += os.preadv(fd, [rest], start)

        try:
            started = time.perf_counter()
            side_by_side(threads, -(-size // _BLOCK), act)
            return time.perf_counter() - started
        finally:
            os.close(fd)


# -- the page cache ------------------------------------------------------------------------------


def warm(path: str) -> None:
    """Brings a file, or the files of a directory, into the page cache."""
    for each in files_in(path):
        with open(each, "rb", buffering=0) as file:
            while file.read(_BLOCK):
                pass


class WarmError(RuntimeError):
    """The page cache keeps what it was asked to forget, so a cold read cannot be measured here."""


def chill(path: str) -> None:
    """Makes the page cache forget a file, or the files of a directory; `WarmError` when it does not."""
    for each in files_in(path):
        fd = os.open(each, os.O_RDONLY)
        try:
            os.fsync(fd)  # what is not on the disk yet cannot be forgotten
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            if resident(fd) > 0.01:
                raise WarmError(f"{each} stays in the page cache")
        finally:
            os.close(fd)


def resident(fd: int) -> float:
    """The share of a file's pages that are in the page cache."""
    size = os.fstat(fd).st_size
    if not size:
        return 0.0
    pages = -(-size // mmap.PAGESIZE)
    libc: Any = ctypes.CDLL(None, use_errno=True)
    found = (ctypes.c_ubyte * pages)()
    with mmap.mmap(fd, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE) as mapped:
        anchor = ctypes.c_char.from_buffer(mapped)
        code = libc.mincore(ctypes.c_void_p(ctypes.addressof(anchor)), ctypes.c_size_t(size), found)
        error = ctypes.get_errno()
        del anchor
    if code != 0:
        raise OSError(error, os.strerror(error))
    return float((np.frombuffer(found, np.uint8) & 1).sum()) / pages


def sync(path: str) -> None:
    """Makes a file durable that somebody else wrote."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def files_in(path: str) -> Iterator[str]:
    if os.path.islink(path):
        return  # what it leads to is counted where it is
    if os.path.isdir(path):
        for name in sorted(os.listdir(path)):
            yield from files_in(os.path.join(path, name))
    else:
        yield path


def bytes_in(path: str) -> int:
    """The sizes of a file, or of all files of a directory."""
    return sum(os.lstat(each).st_size for each in files_in(path))
