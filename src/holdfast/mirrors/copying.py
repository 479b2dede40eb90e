"""One checkpoint from where it is to where it shall be: block by block, each checked on its way.

What is damaged is never spread: a block that is not what its digest says is taken from another source, or
the copy ends. Memory: one block.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

from holdfast.errors import DamagedError, FormatError, HoldfastError, NotFoundError
from holdfast.format import sealed
from holdfast.format.manifest import (
    CHECKPOINT_FILE,
    READ_LIMIT_CHECKPOINT,
    Manifest,
    SmallFile,
    decode_manifest,
)
from holdfast.format.table import ARRAYS_FILE, READ_LIMIT_ARRAYS, Arrays, decode_arrays
from holdfast.mirrors.place import Part, Target
from holdfast.payload import damage
from holdfast.payload.source import Source

_PIECE = 1 << 20
Tell = Callable[[int], None]
"""Told of bytes before they are written; may wait, and may raise to stop the copy."""


class Copied(NamedTuple):
    """What a copy did: bytes that were sent, and bytes that were there already."""

    sent: int
    found: int


class Contents(NamedTuple):
    """The files of a checkpoint, from its own JSON files."""

    manifest: Manifest
    checkpoint: bytes
    arrays: bytes
    table: Arrays

    def blocks(self, file: str) -> list[bytes]:
        return [bytes.fromhex(block) for block in self.table.files[file].blocks]


def contents(sources: Sequence[Source]) -> Contents:
    """What the first of some sources says that the checkpoint holds, checked as far as it can be by itself."""
    first = sources[0]
    file = os.path.join(first.path, CHECKPOINT_FILE)
    data = first.small(CHECKPOINT_FILE, READ_LIMIT_CHECKPOINT)
    manifest = decode_manifest(data, file)
    listed = manifest.files.get(ARRAYS_FILE)
    if listed is None:
        raise FormatError(f"{first.path}: {CHECKPOINT_FILE} does not list {ARRAYS_FILE}.", path=first.path)
    arrays = _whole_file(sources, ARRAYS_FILE, listed, READ_LIMIT_ARRAYS)
    table = decode_arrays(arrays, os.path.join(first.path, ARRAYS_FILE))
    for name in {*table.files, *(name for name in manifest.files if name.endswith(".safetensors"))}:
        own, record = manifest.files.get(name), table.files.get(name)
        joined = b"".join(bytes.fromhex(block) for block in record.blocks) if record is not None else b""
        if own is None or record is None or (own.size, own.digest) != (record.size, sealed.digest(joined)):
            raise damage.damaged(first.path, name, f"is not the file that {ARRAYS_FILE} speaks of")
        if len(record.blocks) != -(-record.size // table.block_size):
            raise damage.damaged(first.path, name, "has not as many blocks as its size asks for")
    return Contents(manifest, data, arrays, table)


def copy(sources: Sequence[Source], target: Target, tell: Tell, known: Contents | None = None) -> Copied:
    """Brings a checkpoint into a target; payload files first, `checkpoint.json` last. It is not published yet.

    What an earlier attempt left in the target is read, and sent again only where it is not right.

    Args:
        sources: where the checkpoint lies; a block that is damaged in one is taken from the next.
        target: where it goes.
        tell: told of bytes before they are sent.
        known: its contents, where they were read before.

    Raises:
        DamagedError: a block or file is right in none of the sources.
        NotFoundError: the checkpoint is gone.
        StorageError: something cannot be read or written.

    """
    found = known or contents(sources)
    manifest = found.manifest
    target.begin({**{name: listed.digest for name, listed in manifest.files.items()}, CHECKPOINT_FILE: ""})
    sent = total = 0
    last = {ARRAYS_FILE: found.arrays, CHECKPOINT_FILE: found.checkpoint}
    for name, listed in manifest.files.items():
        if name in last:
            continue
        total += listed.size
        if target.has(name, listed.size):
            tell(0)
            continue
        part = target.part(name, listed.size)
        try:
            sent += put(sources, part, name, found, tell)
            part.finish()
        finally:
            part.close()
    for name, data in last.items():
        total += len(data)
        if target.has(name, len(data)):
            continue
        tell(len(data))
        part = target.part(name, len(data))
        try:
            part.write(memoryview(data), 0)
            part.finish()
        finally:
            part.close()
        sent += len(data)
    target.finish()
    return Copied(sent, total - sent)


def put(sources: Sequence[Source], part: Part, file: str, found: Contents, tell: Tell) -> int:
    """Fills a file, from whichever source has it right; gives how many bytes were sent."""
    listed = found.manifest.files[file]
    if file in found.table.files:
        return _blocks(sources, part, file, listed.size, found, tell)
    return _small(sources, part, file, listed, tell)


def _blocks(sources: Sequence[Source], part: Part, file: str, size: int, found: Contents, tell: Tell) -> int:
    step, digests = found.table.block_size, found.blocks(file)
    buffer = memoryview(bytearray(min(step, size)))
    sent = 0
    for number, digest in enumerate(digests):
        start = number * step
        block = buffer[: min(step, size - start)]
        if part.read(block, start) and _is(block, digest):
            tell(0)
            continue
        _take(sources, file, number, block, start, found)
        tell(len(block))
        part.write(block, start)
        sent += len(block)
    return sent


def _take(
    sources: Sequence[Source], file: str, number: int, block: memoryview, start: int, found: Contents
) -> None:
    """Reads a block from the first source that has it right; the error of the first one otherwise."""
    digest, count = found.blocks(file)[number], len(found.table.files[file].blocks)
    first: HoldfastError | None = None
    for source in sources:
        try:
            present = source.read(file, block, start)
            if present == len(block) and _is(block, digest):
                return
            raise damage.damaged(
                source.path,
                file,
                f"is damaged in block {number} of {count} (bytes {start:,} to {start + len(block):,})",
                block=number,
                expected=digest.hex(),
            )
        except HoldfastError as error:
            first = first or error
    raise first if first is not None else NotFoundError(f"There is no source for {file}.", path=file)


def _is(data: memoryview, digest: bytes) -> bool:
    import xxhash

    return bool(xxhash.xxh3_128_digest(data) == digest)


def _whole_file(sources: Sequence[Source], file: str, listed: SmallFile, limit: int) -> bytes:
    first: HoldfastError | None = None
    for source in sources:
        try:
            data = source.small(file, min(limit, listed.size))
            if len(data) == listed.size and sealed.digest(data) == listed.digest:
                return data
            raise damage.damaged(source.path, file, "is not the file that was written")
        except FormatError as error:  # longer than it was written
            first = first or damage.damaged(source.path, file, f"is not the file that was written: {error}")
        except HoldfastError as error:
            first = first or error
    raise first if first is not None else NotFoundError(f"There is no source for {file}.", path=file)


def _small(sources: Sequence[Source], part: Part, file: str, listed: SmallFile, tell: Tell) -> int:
    """Any other file: its digest is known of the whole alone, so it is checked before the copy counts."""
    if _digest_of(part, listed.size) == listed.digest:
        tell(0)
        return 0
    first: HoldfastError | None = None
    for source in sources:
        try:
            _pass_on(source, part, file, listed, tell)
            return listed.size
        except (DamagedError, NotFoundError) as error:
            first = first or error
    raise first if first is not None else NotFoundError(f"There is no source for {file}.", path=file)


def _pass_on(source: Source, part: Part, file: str, listed: SmallFile, tell: Tell) -> None:
    import xxhash

    digest, done = xxhash.xxh3_128(), 0
    buffer = memoryview(bytearray(min(_PIECE, listed.size)))
    while done < listed.size:
        piece = buffer[: min(_PIECE, listed.size - done)]
        if source.read(file, piece, done) < len(piece):
            break
        digest.update(piece)
        tell(len(piece))
        part.write(piece, done)
        done += len(piece)
    if digest.hexdigest() != listed.digest or source.read(file, memoryview(bytearray(1)), listed.size):
        raise damage.damaged(source.path, file, "is not the file that was written", expected=listed.digest)


def _digest_of(part: Part, size: int) -> str | None:
    import xxhash

    digest = xxhash.xxh3_128()
    buffer = memoryview(bytearray(min(_PIECE, size)))
    for start in range(0, size, _PIECE):
        piece = buffer[: min(_PIECE, size - start)]
        if not part.read(piece, start):
            return None
        digest.update(piece)
    return str(digest.hexdigest())
