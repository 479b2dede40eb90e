"""Payload files to arrays: every block is read once, checked in that pass, and never trusted before.

A block goes straight into its destinations (`preadv`); what lies between them goes to scratch
memory. Where a block holds many small requests, or two that overlap, all of it goes to scratch
memory and is copied after its digest was found right.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from holdfast import files as files_
from holdfast.errors import DamagedError, FormatError, HoldfastError, NotFoundError, UsageError, storage_error
from holdfast.format.safetensors import BLOCK, LENGTH_LIMIT
from holdfast.payload import damage
from holdfast.payload.array import Bytes
from holdfast.payload.blocks import Checker, FileRecord, Job, Names, OpenFile, Piece, Progress
from holdfast.payload.sharing import share

__all__ = ["FileRecord", "Request", "read", "verify"]

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
    directory: str | os.PathLike[str],
    files: Mapping[str, FileRecord],
    requests: Iterable[Request],
    *,
    names: Names | None = None,
    progress: Progress | None = None,
    block_size: int = BLOCK,
) -> None:
    """Fills every request, or raises.

    Only blocks that a request touches, and those that hold the header of such a file, are read
    and checked. Before any destination is written to, every such file is opened and its size
    compared.

    Args:
        directory: the checkpoint.
        files: records of at least the requested files.
        requests: in any order; two may ask for the same bytes.
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
    directory = os.fspath(directory)
    ordered = sorted(requests, key=lambda request: (request.file, request.start, request.stop))
    wanted = _wanted(directory, files, ordered, block_size)
    checker = Checker(directory, block_size, names, progress)
    try:
        with contextlib.ExitStack() as stack:
            opened = {name: _open(directory, record, stack) for name, record in wanted.items()}
            for file in opened.values():
                _check_size(directory, file)
            share(_plan(ordered, opened, block_size), checker.take)
    except HoldfastError as error:
        if checker.changed:
            raise damage.after_change(error) from error
        raise


def verify(
    directory: str | os.PathLike[str],
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
    directory = os.fspath(directory)
    found: list[tuple[str, int, DamagedError]] = []
    jobs: list[Job] = []
    checker = Checker(directory, block_size, names, progress, unreadable_is_damage=True)

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
                file = _open(directory, record, stack)
            except DamagedError as error:
                found.append((name, -1, error))
                continue
            present = _size(file)
            if present != record.size:
                found.append((name, -1, damage.wrong_size(directory, name, record.size, present)))
            jobs.extend(
                Job(file, number, [])
                for number in range(len(record.blocks))
                if min((number + 1) * block_size, record.size) <= present
            )
        share(jobs, look)
    return [error for _, _, error in sorted(found, key=lambda item: item[:2])]


# -- before the first byte ----------------------------------------------------------------------


def _wanted(
    directory: str, files: Mapping[str, FileRecord], requests: list[Request], block_size: int
) -> dict[str, FileRecord]:
    """The records of the requested files; everything that can be wrong without looking at them."""
    wanted: dict[str, FileRecord] = {}
    for request in requests:
        record = wanted.get(request.file)
        if record is None:
            record = files.get(request.file)
            if record is None:
                raise FormatError(
                    f"{directory}: the array {request.array} is said to be in {request.file!r}, which is not "
                    f"among its files: {', '.join(sorted(files)) or 'none'}.",
                    path=directory,
                    found=request.file,
                )
            _check_record(record, block_size)
            wanted[request.file] = record
        if not 0 <= request.start <= request.stop <= record.size:
            raise FormatError(
                f"{directory}: the array {request.array} is said to be in bytes {request.start:,} to "
                f"{request.stop:,} of {request.file}, which has {record.size:,}.",
                path=directory,
                expected=record.size,
                found=[request.start, request.stop],
            )
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


def _open(directory: str, record: FileRecord, stack: contextlib.ExitStack) -> OpenFile:
    path = os.path.join(directory, record.name)
    try:
        fd = files_.open_for_reading(path)
    except NotFoundError as error:
        if not os.path.isdir(directory):
            raise damage.gone(directory) from error
        raise damage.damaged(directory, record.name, "is missing", expected=record.size) from error
    except FormatError as error:
        what = "was replaced by something that is no regular file"
        raise damage.damaged(directory, record.name, what, expected=record.size) from error
    stack.callback(os.close, fd)
    return OpenFile(record, path, fd)


def _size(file: OpenFile) -> int:
    with files_.translated(file.path, "look at"):
        return os.fstat(file.fd).st_size


def _check_size(directory: str, file: OpenFile) -> None:
    size = _size(file)
    if size != file.record.size:
        raise damage.wrong_size(directory, file.record.name, file.record.size, size)


def _plan(requests: list[Request], opened: Mapping[str, OpenFile], block_size: int) -> list[Job]:
    """One job per block, in the order of the files; the blocks of each header are always there."""
    pieces: dict[tuple[str, int], list[Piece]] = {}
    for name, file in opened.items():
        for number in range(-(-_header_bytes(file) // block_size)):
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
    return [
        Job(opened[name], number, found)
        for (name, number), found in sorted(pieces.items(), key=lambda p: p[0])
    ]


def _header_bytes(file: OpenFile) -> int:
    """Bytes that the header takes. They are not trusted: block 0, which holds the figure, is checked too."""
    try:
        prefix = os.pread(file.fd, 8, 0)
    except OSError as error:
        raise storage_error(error, file.path, "read") from error
    length = int.from_bytes(prefix, "little")
    return min(8 + (length if length <= LENGTH_LIMIT else 0), file.record.size)
