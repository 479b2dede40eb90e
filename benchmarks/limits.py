"""What the machine itself can do with the same bytes: raw write and fsync, memcpy, a warm read."""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np

_BLOCK = 16 << 20
_CONTENT = 256 << 20


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def thread_counts() -> list[int]:
    """Threads to copy and read with: more than there are cores do not help there."""
    return sorted({1, 2, min(4, cores()), min(8, cores())})


def writer_counts() -> list[int]:
    """Threads to write with: they wait for the disk, so more than there are cores can help."""
    return sorted({1, 2, 4, min(8, cores())})


def side_by_side(threads: int, count: int, act: Callable[[int], object]) -> None:
    """`act(0)` to `act(count - 1)`, shared out among threads; the first error is raised."""
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


def write(path: str, size: int, threads: int, *, direct: bool) -> float | None:
    """Seconds to write `size` random bytes and sync file and directory; None where direct I/O fails."""
    with mmap.mmap(-1, min(_CONTENT, -(-size // _BLOCK) * _BLOCK)) as content:
        np.frombuffer(content, np.uint64)[:] = np.random.default_rng(0).integers(
            0, 2**63, len(content) // 8, np.uint64
        )
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | (getattr(os, "O_DIRECT", 0) if direct else 0)
        view = memoryview(content)

        def act(number: int) -> None:
            start = number * _BLOCK
            at = start % len(content)
            length = -(-min(_BLOCK, size - start) // 4096) * 4096
            piece = view[at : at + length]
            while piece:
                done = os.pwrite(fd, piece, start)
                start, piece = start + done, piece[done:]

        try:
            started = time.perf_counter()
            try:
                fd = os.open(path, flags)
            except OSError:
                return None
            with contextlib.ExitStack() as stack:
                stack.callback(os.close, fd)
                side_by_side(threads, -(-size // _BLOCK), act)
                os.ftruncate(fd, size)
                os.fsync(fd)
                directory = os.open(os.path.dirname(path), os.O_RDONLY)
                stack.callback(os.close, directory)
                os.fsync(directory)
            return time.perf_counter() - started
        finally:
            view.release()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)


def copy(size: int, threads: int) -> float:
    """Seconds to copy `size` bytes of memory into memory that is there already."""
    source, target = np.ones(size, np.uint8), np.zeros(size, np.uint8)

    def act(number: int) -> None:
        place = slice(number * _BLOCK, (number + 1) * _BLOCK)
        np.copyto(target[place], source[place])

    started = time.perf_counter()
    side_by_side(threads, -(-size // _BLOCK), act)
    return time.perf_counter() - started


def read(path: str, threads: int) -> float:
    """Seconds to read a file that is in the page cache into memory that is there already."""
    size = os.path.getsize(path)
    target = np.ones(size, np.uint8)
    fd = os.open(path, os.O_RDONLY)

    def act(number: int) -> None:
        start = number * _BLOCK
        views = [target[start : start + _BLOCK].data]
        while views[0]:
            done = os.preadv(fd, views, start)
            start, views = start + done, [views[0][done:]]

    try:
        started = time.perf_counter()
        side_by_side(threads, -(-size // _BLOCK), act)
        return time.perf_counter() - started
    finally:
        os.close(fd)


def warm(path: str) -> None:
    """Brings a file, or the files of a directory, into the page cache."""
    for each in _files(path):
        with open(each, "rb", buffering=0) as file:
            while file.read(_BLOCK):
                pass


def _files(path: str) -> Iterator[str]:
    if os.path.isdir(path):
        for name in os.listdir(path):
            yield from _files(os.path.join(path, name))
    else:
        yield path
