"""Payload files to arrays: every block is read once, checked in that pass, and never trusted before.

A block goes straight into its destinations (`preadv`); what lies between them goes to scratch
memory. Where a block holds many small requests, or two that overlap, all of it goes to scratch
memory and is copied after its digest was found right.
"""

from __future__ import annotations

import contextlib
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from operator import le
from typing import NamedTuple

import numpy as np

from holdfast.errors import DamagedError, FormatError, HoldfastError, NotFoundError, UsageError
from holdfast.format.safetensors import BLOCK, LENGTH_LIMIT
from holdfast.payload import damage, pending
from holdfast.payload.array import Bytes
from holdfast.payload.blocks import Batch, Checker, FileRecord, Job, Names, OpenFile, Piece, Progress, Run
from holdfast.payload.sharing import share
from holdfast.payload.source import Readable

__all__ = ["Batch", "FileRecord", "Request", "read", "verify"]

_MOST = 10_000  # damaged blocks that are told


class Request(NamedTuple):
    """Bytes `start` to `stop` of a file, and where they shall go.

    Attributes:
        file: name of the file.
        start: first byte, counted from byte 0 of the file.
        stop: one past the last.
        into: one-dimensional uint8, writable, contiguous, `stop - start` bytes.
        array: "part/name", for messages.

    """

    file: str
    start: int
    stop: int
    into: Bytes
    array: str


def read(
    source: Readable,
    files: Mapping[str, FileRecord],
    requests: Iterable[Request],
    *,
    batches: Sequence[Batch] = (),
    names: Names | None = None,
    progress: Progress | None = None,
    block_size: int = BLOCK,
) -> None:
    """Fills every request, or raises.

    Only blocks that a request touches, and those that hold the header of such a file, are read
    and checked. Before any destination is written to, every such file is opened and its size
    compared.

    Args:
        source: the checkpoint.
        files: records of at least the requested files.
        requests: in any order; two may ask for the same bytes.
        batches: small arrays, taken out of each block when it was found right.
        names: the arrays that overlap bytes `start` to `stop` of a file, for messages; without
            it only the requested ones are named.
        progress: told how many bytes were just read; never called by two threads at once.
        block_size: bytes per block, as recorded in the checkpoint.

    Raises:
        DamagedError: a file is missing, has another size, or has a block that is not what was
            written. `target_changed` tells whether destinations were written to before.
        StorageError: the system could not read.
        NotFoundError: the checkpoint was deleted meanwhile.
        FormatError: a request lies outside its file, or a record does not fit its size.

    """
    own = list(requests)
    wanted = _wanted(source.path, files, own, batches, block_size)
    astride = [found for batch in batches for found in _astride(batch, block_size)]
    own += [request for request, _, _ in astride]
    own.sort(key=lambda request: (request.file, request.start, request.stop))
    checker = Checker(source, block_size, names, progress)
    try:
        with contextlib.ExitStack() as stack:
            opened = {name: _open(source, record, stack) for name, record in wanted.items()}
            for file in opened.values():
                _check_size(source.path, file)
            jobs = _plan(source, own, batches, opened, block_size)
            pending.settle_for_reading()  # a save may still be copying what is written to now
            share(jobs, checker.take, source.crew, lambda: _abandon(opened.values()))
            for request, batch, index in astride:
                batch.place(index, index + 1, request.into, request.start)
    except HoldfastError as error:
        if checker.changed:
            raise damage.after_change(error) from error
        raise


def verify(
    source: Readable,
    files: Mapping[str, FileRecord],
    *,
    names: Names | None = None,
    progress: Progress | None = None,
    block_size: int = BLOCK,
) -> list[DamagedError]:
    """Reads every byte and returns all damage, by file and block; an empty list means whole.

    A block that the device cannot read counts as damaged. After 10,000 damaged blocks no more is read.

    Raises:
        NotFoundError: the checkpoint was deleted meanwhile.
        StorageError: a file could not be opened (permissions).

    """
    found: list[tuple[str, int, DamagedError]] = []
    jobs: list[Job] = []
    checker = Checker(source, block_size, names, progress, unreadable_is_damage=True)

    def look(job: Job) -> None:
        if len(found) >= _MOST:
            return
        try:
            checker.take(job)
        except DamagedError as error:
            found.append((job.file.record.name, job.number, error))

    with contextlib.ExitStack() as stack:
        for name, record in files.items():
            _check_record(record, block_size)
            try:
                file = _open(source, record, stack)
            except DamagedError as error:
                found.append((name, -1, error))
                continue
            present = file.opened.size()
            if present != record.size:
                found.append((name, -1, damage.wrong_size(source.path, name, record.size, present)))
            jobs.extend(
                Job(file, number, [])
                for number in range(len(record.blocks))
                if min((number + 1) * block_size, record.size) <= present
            )
        share(jobs, look, source.crew, lambda: _abandon(job.file for job in jobs))
    return [error for _, _, error in sorted(found, key=lambda item: item[:2])]


def _abandon(files: Iterable[OpenFile]) -> None:
    for file in files:
        file.opened.abandon()


# -- before the first byte ----------------------------------------------------------------------


def _wanted(
    directory: str,
    files: Mapping[str, FileRecord],
    requests: list[Request],
    batches: Sequence[Batch],
    block_size: int,
) -> dict[str, FileRecord]:
    """The records of the requested files; everything that can be wrong without looking at them."""
    wanted: dict[str, FileRecord] = {}

    def record_of(file: str, array: str) -> FileRecord:
        record = files.get(file)
        if record is None:
            raise FormatError(
                f"{directory}: the array {array} is said to be in {file!r}, which is not among its files: "
                f"{', '.join(sorted(files)) or 'none'}.",
                path=directory,
                found=file,
            )
        _check_record(record, block_size)
        wanted[file] = record
        return record

    def outside(record: FileRecord, array: str, start: int, stop: int) -> FormatError:
        return FormatError(
            f"{directory}: the array {array} is said to be in bytes {start:,} to {stop:,} of {record.name}, "
            f"which has {record.size:,}.",
            path=directory,
            expected=record.size,
            found=[start, stop],
        )

    for file, starts, stops, _, label in batches:
        if not starts:
            continue
        record = wanted.get(file) or record_of(file, label(0))
        # All at once; which one it is, is looked for when it is known that there is one.
        if starts[0] < 0 or max(stops) > record.size or not all(map(le, starts, stops)):
            spans = zip(starts, stops, strict=True)
            index = next(i for i, (a, b) in enumerate(spans) if not 0 <= a <= b <= record.size)
            raise outside(record, label(index), starts[index], stops[index])
    for request in requests:
        record = wanted.get(request.file) or record_of(request.file, request.array)
        if not 0 <= request.start <= request.stop <= record.size:
            raise outside(record, request.array, request.start, request.stop)
        into = request.into
        fits = into.shape == (request.stop - request.start,) and into.dtype == np.uint8
        if not fits or not into.flags.c_contiguous or not into.flags.writeable:
            raise UsageError(
                f"The destination of {request.array} is {into.dtype} {list(into.shape)}; needed are "
                f"{request.stop - request.start:,} writable uint8 in one dimension.",
                array=request.array,
            )
    return wanted


def _check_record(record: FileRecord, block_size: int) -> None:
    expected = -(-record.size // block_size)
    if len(record.blocks) != expected:
        raise FormatError(
            f"{record.name} is recorded with {record.size:,} bytes and {len(record.blocks)} block digests; that many "
            f"bytes have {expected}.",
            file=record.name,
            expected=expected,
            found=len(record.blocks),
        )


def _open(source: Readable, record: FileRecord, stack: contextlib.ExitStack) -> OpenFile:
    try:
        opened = source.open(record.name)
    except NotFoundError as error:
        raise damage.missing(source, record.name, record.size) from error
    except FormatError as error:
        what = "was replaced by something that is no regular file"
        raise damage.damaged(source.path, record.name, what, expected=record.size) from error
    stack.callback(opened.close)
    return OpenFile(record, opened)


def _check_size(directory: str, file: OpenFile) -> None:
    size = file.opened.size()
    if size != file.record.size:
        raise damage.wrong_size(directory, file.record.name, file.record.size, size)


def _astride(batch: Batch, block_size: int) -> list[tuple[Request, Batch, int]]:
    """The arrays of a batch that lie in more than one block: read aside, handed over at the end."""
    return [
        (Request(batch.file, start, stop, np.empty(stop - start, np.uint8), batch.label(index)), batch, index)
        for index, (start, stop) in enumerate(zip(batch.starts, batch.stops, strict=True))
        if start // block_size != (stop - 1) // block_size and start < stop
    ]


def _runs(batch: Batch, block_size: int) -> Iterator[tuple[int, Run]]:
    """(block, run) for all else in a batch, by ascending start."""
    starts, stops, count = batch.starts, batch.stops, len(batch.starts)
    index = 0
    while index < count:
        number = starts[index] // block_size
        base, end = number * block_size, (number + 1) * block_size
        last = bisect_left(starts, end, index)
        # Where one does not follow the other, and around each that does not end in this block.
        cuts = {index, last}
        cuts.update(i for i in range(index + 1, last) if starts[i] != stops[i - 1])
        for i in range(index, last):
            if stops[i] > end:
                cuts.update((i, i + 1))
        for first, after in pairwise(sorted(cuts)):
            if stops[first] <= end:
                yield number, Run(starts[first] - base, stops[after - 1] - base, batch, first, after)
        index = last


def _plan(
    source: Readable,
    requests: list[Request],
    batches: Sequence[Batch],
    opened: Mapping[str, OpenFile],
    block_size: int,
) -> list[Job]:
    """One job per block, in the order of the files; the blocks of each header are always there."""
    pieces: dict[tuple[str, int], list[Piece]] = {}
    for name, file in opened.items():
        for number in range(-(-_header_bytes(source, file.record) // block_size)):
            pieces[name, number] = []
    for request in requests:
        offset = request.start
        while offset < request.stop:
            number = offset // block_size
            base = number * block_size
            stop = min(request.stop, base + block_size)
            into = request.into[offset - request.start : stop - request.start]
            pieces.setdefault((request.file, number), []).append(
                Piece(offset - base, stop - base, into, request.array)
            )
            offset = stop
    runs: dict[tuple[str, int], list[Run]] = {}
    for batch in batches:
        for number, run in _runs(batch, block_size):
            pieces.setdefault((batch.file, number), [])
            runs.setdefault((batch.file, number), []).append(run)
    return [
        Job(opened[name], number, found, sorted(runs.get((name, number), ()), key=lambda run: run.start))
        for (name, number), found in sorted(pieces.items(), key=lambda p: p[0])
    ]


def _header_bytes(source: Readable, record: FileRecord) -> int:
    """Bytes that the header takes. They are not trusted: block 0, which holds the figure, is checked too."""
    if len(record.blocks) < 2:
        return record.size  # whatever it says, there is no other block
    prefix = bytearray(8)
    source.read(record.name, memoryview(prefix), 0)
    length = int.from_bytes(prefix, "little")
    return min(8 + (length if length <= LENGTH_LIMIT else 0), record.size)
