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
from holdfast.payload.source import Distant, FolderFile, Readable

# Read and digested together, so that the digest finds the bytes in the cache.
_STRETCH = 1 << 20
_VECTORS = 512  # of preadv; Linux takes 1024
_SCATTERED = 64  # more pieces than this in one block are copied from scratch memory
_ASIDE = 1 << 20  # so are batches, unless there is little of them between large arrays
_REQUEST = 16 << 20  # bytes that are asked for at once where a block is larger than ours are

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
    opened: FolderFile | Distant

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
        opened = job.file.opened
        if opened.distant:
            self._hand_out(job, self._fetch(job, opened, start, size), start)
            return
        [buffer] = staging.pool.take(1)
        try:
            if not job.pieces and not job.runs:
                self._digest(job, opened, start, size, _discarded(0, size, buffer.bytes))
            elif _scatterable(job):
                asides = [Piece(r.start, r.stop, np.empty(r.stop - r.start, np.uint8), "") for r in job.runs]
                pieces = sorted([*job.pieces, *asides], key=_start_of) if asides else job.pieces
                self.changed = True
                self._digest(job, opened, start, size, _scattered(pieces, size, buffer.bytes))
                for run, aside in zip(job.runs, asides, strict=True):
                    run.batch.place(run.first, run.last, aside.into, start + run.start)
            else:
                whole = buffer.bytes[:size] if size <= len(buffer.bytes) else np.empty(size, np.uint8)
                self._digest(job, opened, start, size, [whole])
                self._hand_out(job, whole, start)
        finally:
            staging.pool.give([buffer])

    def _hand_out(self, job: Job, whole: Bytes, start: int) -> None:
        """Copies a block that was found right to where it is wanted."""
        if job.pieces or job.runs:
            self.changed = True
        for piece in job.pieces:
            piece.into[:] = whole[piece.start : piece.stop]
        for run in job.runs:
            run.batch.place(run.first, run.last, whole, start)

    def _fetch(self, job: Job, opened: Distant, start: int, size: int) -> Bytes:
        """A block from far away, found right; empty where nobody wants it."""
        for last in (False, True):
            digest, pieces = xxhash.xxh3_128(), []
            for offset in range(start, start + size, _REQUEST):
                length = min(_REQUEST, start + size - offset)
                data = opened.fetch(offset, length)
                if len(data) < length:
                    found = opened.size()
                    raise damage.wrong_size(
                        self._directory, job.file.record.name, job.file.record.size, found
                    )
                digest.update(data)
                if job.runs:  # whoever takes a batch out of it may ask for memory that can be written to
                    pieces.append(np.array(data, np.uint8))
                elif job.pieces:
                    pieces.append(np.frombuffer(data, np.uint8))
            if last or digest.digest() == job.file.record.blocks[job.number]:  # else the way may be at fault
                self._compare(job, start, size, digest.digest())
                break
        return pieces[0] if len(pieces) == 1 else np.concatenate([np.empty(0, np.uint8), *pieces])

    def _digest(
        self, job: Job, opened: FolderFile, start: int, size: int, places: Iterator[Bytes] | list[Bytes]
    ) -> None:
        """Reads the block into the places and compares its digest."""
        digest = xxhash.xxh3_128()
        offset = start
        for batch in _batches(places):
            self._read(job, opened, batch, offset)
            for view in batch:
                digest.update(view)
                offset += len(view)
        self._compare(job, start, size, digest.digest())

    def _compare(self, job: Job, start: int, size: int, found: bytes) -> None:
        expected = job.file.record.blocks[job.number]
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

    def _read(self, job: Job, opened: FolderFile, views: list[memoryview], offset: int) -> None:
        while views:
            count = opened.read(views, offset)
            if count == 0:
                found = opened.size()
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


def _scattered(pieces: Sequence[Piece], size: int, scratch: Bytes) -> Iterator[Bytes]:
    """The destinations in the order of the block, with scratch memory for what lies between."""
    at = 0
    for piece in pieces:
        yield from _discarded(at, piece.start, scratch)
        yield piece.into
        at = piece.stop
    yield from _discarded(at, size, scratch)


def _discarded(start: int, stop: int, scratch: Bytes) -> Iterator[Bytes]:
    """Places for bytes that nobody wants: the same stretch of memory again and again.

    Their address follows from their place in the block, so that no two of one batch, which is
    one stretch of the block at most, share any: each is digested only after all were read.
    """
    while start < stop:
        low = start % _STRETCH
        high = min(low + stop - start, _STRETCH)
        yield scratch[low:high]
        start += high - low


def _batches(places: Iterator[Bytes] | list[Bytes]) -> Iterator[list[memoryview]]:
    """The places, cut and gathered into what one call reads."""
    batch: list[memoryview] = []
    room = _STRETCH
    for place in places:
        view: memoryview = place.data
        while view:
            batch.append(view[:room])
            room -= len(batch[-1])
            view = view[len(batch[-1]) :]
            if not room or len(batch) == _VECTORS:
                yield batch
                batch, room = [], _STRETCH
    if batch:
        yield batch
