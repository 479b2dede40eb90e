"""One block of a payload file: read in one pass, digested on the way, handed out."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import xxhash

from holdfast.errors import HoldfastError, NotFoundError, storage_error
from holdfast.payload import damage, staging
from holdfast.payload.array import Bytes
from holdfast.payload.source import Opened, Readable

_VECTORS = 512  # of preadv; Linux takes 1024
_SCATTERED = 64  # more pieces than this in one block are copied from scratch memory
_ASIDE = 1 << 20  # so are batches, unless there is little of them between large arrays

Names = Callable[[str, int, int], list[str]]
Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class FileRecord:
    """What is known of a payload file: name, bytes, and the xxh3-128 (16 bytes) of each block."""

    name: str
    size: int
    blocks: Sequence[bytes]


class OpenFile(NamedTuple):
    """A record, and the file that is read."""

    record: FileRecord
    opened: Opened

    @property
    def path(self) -> str:
        return self.opened.path


class Piece(NamedTuple):
    """What one array wants of a block; start and stop count from the block's first byte."""

    start: int
    stop: int
    into: Bytes
    array: str


class Batch(NamedTuple):
    """Small arrays of one file, handed over together once the block that holds them was found right.

    So a reader of tens of thousands of them keeps no destination for each.

    Attributes:
        file: name of the file.
        starts: first byte of each, ascending, counted from byte 0 of the file.
        stops: one past the last byte of each.
        place: `place(first, last, data, base)` takes the arrays `first` to `last` (exclusive) out of
            `data`, the bytes of the file from byte `base` on, which are gone when it returns.
            Called by several threads at once, for each array once.
        label: "part/name" of an array, for messages.

    """

    file: str
    starts: Sequence[int]
    stops: Sequence[int]
    place: Callable[[int, int, Bytes, int], None]
    label: Callable[[int], str]


class Run(NamedTuple):
    """Arrays `first` to `last` (exclusive) of a batch, which follow one another inside one block.

    Start and stop count from the block's first byte.
    """

    start: int
    stop: int
    batch: Batch
    first: int
    last: int


class Job(NamedTuple):
    """A block to read, with its pieces and runs by ascending start; without any it is only checked."""

    file: OpenFile
    number: int
    pieces: Sequence[Piece]
    runs: Sequence[Run] = ()


class Checker:
    """Reads and checks blocks, each once, from several threads at once.

    Attributes:
        changed: whether a destination has been written to.

    """

    def __init__(
        self,
        source: Readable,
        block_size: int,
        names: Names | None,
        progress: Progress | None,
        *,
        unreadable_is_damage: bool = False,
    ) -> None:
        self.changed = False
        self._source, self._directory = source, source.path
        self._block, self._names, self._progress = block_size, names, progress
        self._unreadable_is_damage = unreadable_is_damage
        self._lock = threading.Lock()

    def take(self, job: Job) -> None:
        """Fills the pieces of a block; `DamagedError` if its digest is not the recorded one."""
        start = job.number * self._block
        size = min(self._block, job.file.record.size - start)
        try:
            self._take(job, start, size)
        except NotFoundError as error:
            raise damage.missing(self._source, job.file.record.name, job.file.record.size) from error
        except HoldfastError:
            raise
        except OSError as error:
            raise self._unreadable(job, start, size, error) from error
        if self._progress is not None:
            with self._lock:
                self._progress(size)

    def _take(self, job: Job, start: int, size: int) -> None:
        [buffer] = staging.pool.take(1)
        stretch = job.file.opened.stretch
        try:
            if not job.pieces and not job.runs:
                self._digest(job, start, size, _discarded(0, size, buffer.bytes, stretch))
            elif not job.file.opened.distant and _scatterable(job):
                asides = [Piece(r.start, r.stop, np.empty(r.stop - r.start, np.uint8), "") for r in job.runs]
                pieces = sorted([*job.pieces, *asides], key=_start_of) if asides else job.pieces
                self.changed = True
                self._digest(job, start, size, _scattered(pieces, size, buffer.bytes, stretch))
                for run, aside in zip(job.runs, asides, strict=True):
                    run.batch.place(run.first, run.last, aside.into, start + run.start)
            else:
                whole = buffer.bytes[:size] if size <= len(buffer.bytes) else np.empty(size, np.uint8)
                self._digest(job, start, size, [whole])
                self.changed = True
                for piece in job.pieces:
                    piece.into[:] = whole[piece.start : piece.stop]
                for run in job.runs:
                    run.batch.place(run.first, run.last, whole, start)
        finally:
            staging.pool.give([buffer])

    def _digest(self, job: Job, start: int, size: int, places: Iterator[Bytes] | list[Bytes]) -> None:
        """Reads the block into the places and compares its digest."""
        expected = job.file.record.blocks[job.number]
        if job.file.opened.distant:
            places = list(places)
            found = self._pass(job, start, places)
            if found != expected:  # the network may be at fault
                found = self._pass(job, start, places)
        else:
            found = self._pass(job, start, places)
        if found != expected:
            count = len(job.file.record.blocks)
            raise damage.damaged(
                self._directory,
                job.file.record.name,
                f"is damaged in block {job.number} of {count} (bytes {start:,} to {start + size:,}): expected xxh3-128 "
                f"{expected.hex()}, found {found.hex()}",
                block=job.number,
                arrays=self._arrays(job, start, size),
                expected=expected.hex(),
                found=found.hex(),
            )

    def _pass(self, job: Job, start: int, places: Iterator[Bytes] | list[Bytes]) -> bytes:
        """Reads the block into the places; gives its digest."""
        digest = xxhash.xxh3_128()
        offset = start
        for batch in _batches(places, job.file.opened.stretch):
            self._read(job, batch, offset)
            for view in batch:
                digest.update(view)
                offset += len(view)
        return digest.digest()

    def _read(self, job: Job, views: list[memoryview], offset: int) -> None:
        while views:
            count = job.file.opened.read(views, offset)
            if count == 0:
                found = job.file.opened.size()
                raise damage.wrong_size(self._directory, job.file.record.name, job.file.record.size, found)
            offset += count
            done = 0
            while done < len(views) and count >= len(views[done]):
                count -= len(views[done])
                done += 1
            views = views[done:]
            if views and count:
                views = [views[0][count:], *views[1:]]

    def _arrays(self, job: Job, start: int, size: int) -> list[str]:
        if self._names is not None:
            return self._names(job.file.record.name, start, start + size)
        batched = (run.batch.label(index) for run in job.runs for index in range(run.first, run.last))
        return list(dict.fromkeys([*(piece.array for piece in job.pieces), *batched]))

    def _unreadable(self, job: Job, start: int, size: int, error: OSError) -> HoldfastError:
        if error.errno in (errno.ENOENT, errno.ESTALE):
            return damage.gone(self._directory)
        if not self._unreadable_is_damage:
            return storage_error(error, job.file.path, "read")
        return damage.damaged(
            self._directory,
            job.file.record.name,
            f"cannot be read in block {job.number} of {len(job.file.record.blocks)}: {error.strerror or error}",
            block=job.number,
            arrays=self._arrays(job, start, size),
            expected=job.file.record.blocks[job.number].hex(),
        )


def _scatterable(job: Job) -> bool:
    """Whether the bytes can go where they belong as they are read, or all through scratch memory."""
    wanted: Sequence[Piece | Run] = job.pieces
    if job.runs:
        if sum(run.stop - run.start for run in job.runs) > _ASIDE:
            return False
        wanted = sorted([*job.pieces, *job.runs], key=_start_of)
    return len(wanted) <= _SCATTERED and not any(
        second.start < first.stop for first, second in pairwise(wanted)
    )


def _start_of(item: Piece | Run) -> int:
    return item.start


def _scattered(pieces: Sequence[Piece], size: int, scratch: Bytes, stretch: int) -> Iterator[Bytes]:
    """The destinations in the order of the block, with scratch memory for what lies between."""
    at = 0
    for piece in pieces:
        yield from _discarded(at, piece.start, scratch, stretch)
        yield piece.into
        at = piece.stop
    yield from _discarded(at, size, scratch, stretch)


def _discarded(start: int, stop: int, scratch: Bytes, stretch: int) -> Iterator[Bytes]:
    """Places for bytes that nobody wants: the same stretch of memory again and again.

    Their address follows from their place in the block, so that no two of one batch, which is
    one stretch of the block at most, share any: each is digested only after all were read.
    """
    while start < stop:
        low = start % stretch
        high = min(low + stop - start, stretch)
        yield scratch[low:high]
        start += high - low


def _batches(places: Iterator[Bytes] | list[Bytes], stretch: int) -> Iterator[list[memoryview]]:
    """The places, cut and gathered into what one call reads."""
    batch: list[memoryview] = []
    room = stretch
    for place in places:
        view: memoryview = place.data
        while view:
            batch.append(view[:room])
            room -= len(batch[-1])
            view = view[len(batch[-1]) :]
            if not room or len(batch) == _VECTORS:
                yield batch
                batch, room = [], stretch
    if batch:
        yield batch
