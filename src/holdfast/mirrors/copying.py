"""One checkpoint from where it is to where it shall be: block by block, each checked on its way.

What is damaged is never spread: a block that is not what its digest says is taken from another source, or
the copy ends. Memory: one block for each thread of the crew.
"""

from __future__ import annotations

import functools
import os
import threading
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
from holdfast.mirrors.crew import Crew, Errand, Room, Step, Write, block_of
from holdfast.mirrors.place import Part, Target
from holdfast.payload import damage
from holdfast.payload.source import Source

_PIECE = 1 << 20
_OWN_THREADS = 2
_WORTH_THREADS = 24 << 20  # bytes
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

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(file.size for file in self.manifest.files.values()) + len(self.checkpoint)


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


def copy(
    sources: Sequence[Source],
    target: Target,
    tell: Tell,
    known: Contents | None = None,
    *,
    crew: Crew | None = None,
    passed: Tell = lambda _: None,
) -> Copied:
    """Brings a checkpoint into a target; payload files first, `checkpoint.json` last. It is not published yet.

    What an earlier attempt left in the target is read, and sent again only where it is not right.

    Args:
        sources: where the checkpoint lies; a block that is damaged in one is taken from the next.
        target: where it goes.
        tell: told of bytes before they are sent.
        known: its contents, where they were read before.
        crew: the threads that carry it; by default two of its own.
        passed: told of bytes that were there.

    Raises:
        DamagedError: a block or file is right in none of the sources.
        NotFoundError: the checkpoint is gone.
        StorageError: something cannot be read or written.

    """
    if crew is None:
        crew = Crew(_OWN_THREADS)
        try:
            return copy(sources, target, tell, known, crew=crew, passed=passed)
        finally:
            crew.close()
    found = known or contents(sources)
    digests = {name: listed.digest for name, listed in found.manifest.files.items()}
    target.begin({**digests, CHECKPOINT_FILE: ""})
    load = _Load(sources, found, tell, passed)
    last = {ARRAYS_FILE: found.arrays, CHECKPOINT_FILE: found.checkpoint}
    files = [(name, file.size) for name, file in found.manifest.files.items() if name not in last]
    # What fits into a block or two is carried by the time that it is handed over.
    load.carry(target, files, crew, here=sum(size for _, size in files) <= _WORTH_THREADS)
    for name, data in last.items():
        if target.has(name, len(data)):
            load.passed(len(data))
            continue
        tell(len(data))
        part = target.part(name, len(data))
        try:
            part.write(memoryview(data), 0)
            part.finish()
        finally:
            part.close()
        load.count(len(data))
    target.finish()
    return Copied(load.sent, found.size - load.sent)


class _Load:
    """Files of a checkpoint on their way, carried by several threads; `tell` is called by one at a time."""

    def __init__(self, sources: Sequence[Source], found: Contents, tell: Tell, passed: Tell) -> None:
        self._sources, self._found = sources, found
        self._tell, self._passed = tell, passed
        self._lock = threading.Lock()
        self.sent = 0

    def count(self, sent: int) -> None:
        with self._lock:
            self.sent += sent

    def tell(self, count: int) -> None:
        with self._lock:
            self._tell(count)

    def passed(self, count: int) -> None:
        self.tell(0)
        with self._lock:
            self._passed(count)

    def carry(self, target: Target, files: Sequence[tuple[str, int]], crew: Crew, *, here: bool) -> None:
        """Brings files, all of them durable when this returns; a few at a time, as there are threads."""
        waiting: list[tuple[Errand, Part]] = []
        try:
            for name, size in files:
                if target.has(name, size):
                    self.passed(size)
                    continue
                while len(waiting) > crew.size:
                    self._end(waiting)
                part = target.part(name, size)
                steps: list[Step] = [*self.steps(part, name), functools.partial(_finish, part)]
                waiting.append((crew.start(steps, here=here), part))
            while waiting:
                self._end(waiting)
        except BaseException as error:
            for errand, part in waiting:
                if errand.stop(error):
                    part.close()
            raise

    def _end(self, waiting: list[tuple[Errand, Part]]) -> None:
        errand, part = waiting[0]
        errand.wait()
        self.count(-part.found)
        waiting.pop(0)
        part.close()

    def steps(self, part: Part, file: str) -> list[Step]:
        listed = self._found.manifest.files[file]
        if file not in self._found.table.files:
            return [lambda _: self.count(_small(self._sources, part, file, listed, self.tell, self.passed))]
        step = self._found.table.block_size
        return [
            functools.partial(self._block, part, file, number, min(step, listed.size - number * step), digest)
            for number, digest in enumerate(self._found.blocks(file))
        ]

    def _block(
        self, part: Part, file: str, number: int, size: int, digest: bytes, room: Room
    ) -> Write | None:
        start = number * self._found.table.block_size
        block = block_of(room(), size)
        if part.read(block, start) and _is(block, digest):
            self.passed(size)
            return None
        _take(self._sources, file, number, block, start, digest, len(self._found.table.files[file].blocks))

        def write() -> None:
            self.tell(size)
            part.write(block, start)
            self.count(size)

        return write


def _finish(part: Part, _: Room) -> Write:
    return part.finish


def put(sources: Sequence[Source], part: Part, file: str, found: Contents) -> None:
    """Fills a file, from whichever source has it right; it is not finished yet."""
    load = _Load(sources, found, lambda _: None, lambda _: None)
    Crew(0).start(load.steps(part, file)).wait()


def _take(
    sources: Sequence[Source],
    file: str,
    number: int,
    block: memoryview,
    start: int,
    digest: bytes,
    count: int,
    *,
    again: bool = True,
) -> None:
    """Reads block `number` of `count` from the first source that has it right; the error of the first one otherwise."""
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
    if again and (distant := _once_more(sources, first)):
        _take(distant, file, number, block, start, digest, count, again=False)
        return
    raise first if first is not None else NotFoundError(f"There is no source for {file}.", path=file)


def _once_more(sources: Sequence[Source], error: HoldfastError | None) -> Sequence[Source]:
    """Those that are far away, after damage: the way may be at fault."""
    return [source for source in sources if source.distant] if isinstance(error, DamagedError) else []


def _is(data: memoryview, digest: bytes) -> bool:
    import xxhash

    return bool(xxhash.xxh3_128_digest(data) == digest)


def _whole_file(
    sources: Sequence[Source], file: str, listed: SmallFile, limit: int, *, again: bool = True
) -> bytes:
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
    if again and (distant := _once_more(sources, first)):
        return _whole_file(distant, file, listed, limit, again=False)
    raise first if first is not None else NotFoundError(f"There is no source for {file}.", path=file)


def _small(
    sources: Sequence[Source], part: Part, file: str, listed: SmallFile, tell: Tell, passed: Tell
) -> int:
    """Any other file: its digest is known of the whole alone, so it is checked before the copy counts."""
    if _digest_of(part, listed.size) == listed.digest:
        passed(listed.size)
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
