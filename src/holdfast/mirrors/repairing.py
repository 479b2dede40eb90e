"""A damaged checkpoint made whole again: the blocks that are right stay, the others come from a mirror.

Nothing is written in place. Each damaged file is built anew beside the run's checkpoints, checked, made durable,
and takes the place of the old one by one rename.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

from holdfast import files
from holdfast.errors import DamagedError, FormatError, HoldfastError, NotFoundError
from holdfast.format.manifest import CHECKPOINT_FILE, READ_LIMIT_CHECKPOINT, decode_manifest
from holdfast.format.table import ARRAYS_FILE
from holdfast.mirrors import copying
from holdfast.mirrors.copying import Contents
from holdfast.mirrors.folder import FolderTarget
from holdfast.mirrors.place import Part
from holdfast.payload.source import FolderSource, Source
from holdfast.store import book


class Repaired(NamedTuple):
    """The files that were built anew, and how many bytes came from mirrors."""

    files: list[str]
    fetched: int


class _Counted:
    """A source that counts what is read from it."""

    def __init__(self, source: Source) -> None:
        self._source, self.path, self.distant = source, source.path, source.distant
        self.count = 0

    def small(self, file: str, limit: int) -> bytes:
        data = self._source.small(file, limit)
        self.count += len(data)
        return data

    def read(self, file: str, into: memoryview, offset: int) -> int:
        done = self._source.read(file, into, offset)
        self.count += done
        return done


def repair(
    run: str, name: str, writing: str, mirrors: Sequence[Source], check: Callable[[], None]
) -> Repaired:
    """Makes one checkpoint of a run whole.

    Args:
        run: the run's directory.
        name: the checkpoint.
        writing: the directory that only the holder of the run's lease has.
        mirrors: the same checkpoint in mirrors.
        check: raises when the lease is lost; asked before each rename.

    Raises:
        DamagedError: a block is right nowhere; what could be repaired is.
        NotFoundError: the checkpoint is gone.
        StorageError: something cannot be read or written.

    """
    path = os.path.join(run, name)
    own = FolderSource(path)
    others = [_Counted(source) for source in mirrors]
    found = _contents(run, name, own, others)
    draft = FolderTarget(os.path.join(writing, f"{name}.repair"))
    repaired: list[str] = []
    failure: HoldfastError | None = None
    try:
        draft.begin([])
        # checkpoint.json last: until then a checkpoint that lacked it is not taken for a whole one.
        for file in [*(name for name in found.manifest.files), CHECKPOINT_FILE]:
            if _is_whole(own, file, found):
                continue
            try:
                _build(draft, file, [own, *others], found)
            except (DamagedError, NotFoundError) as error:
                failure = failure or error
                continue
            check()
            with files.translated(os.path.join(path, file), "repair"):
                files.rename(os.path.join(draft.path, file), os.path.join(path, file))
            files.sync_directory(path)
            repaired.append(file)
    finally:
        with contextlib.suppress(OSError):
            files.remove_tree(draft.path)
    if failure is not None:
        raise failure
    return Repaired(repaired, sum(source.count for source in others))


def _contents(run: str, name: str, own: Source, others: Sequence[Source]) -> Contents:
    """What belongs into the checkpoint: its own word counts, and a mirror's where that cannot be read."""
    identity = book.read_run(run).id
    first: HoldfastError | None = None
    for source in (own, *others):
        rest = [one for one in (own, *others) if one is not source]
        try:
            data = source.small(CHECKPOINT_FILE, READ_LIMIT_CHECKPOINT)
            manifest = decode_manifest(data, os.path.join(source.path, CHECKPOINT_FILE))
            if (manifest.run, manifest.name) != (identity, name):
                raise FormatError(
                    f"{source.path} is foreign: its manifest says run {manifest.run}, name {manifest.name}.",
                    path=source.path,
                )
            return copying.contents([source, *rest])
        except HoldfastError as error:
            first = first or error
    raise first if first is not None else NotFoundError(f"There is no {name}.", path=own.path)


def _is_whole(own: Source, file: str, found: Contents) -> bool:
    if file == CHECKPOINT_FILE:
        return _same(own, file, found.checkpoint)
    if file == ARRAYS_FILE:
        return _same(own, file, found.arrays)
    listed = found.manifest.files[file]
    try:
        if own.read(file, memoryview(bytearray(1)), listed.size):
            return False  # longer than it was written
        return _digest(own, file, listed.size, found) == listed.digest
    except HoldfastError:  # one that the device cannot read is built anew, too
        return False


def _same(own: Source, file: str, data: bytes) -> bool:
    try:
        return own.small(file, len(data)) == data
    except HoldfastError:
        return False


def _digest(own: Source, file: str, size: int, found: Contents) -> str | None:
    """The digest of a file as the manifest counts it; None where it is too short."""
    import xxhash

    payload = file in found.table.files
    step = found.table.block_size if payload else 1 << 20
    whole = xxhash.xxh3_128()
    buffer = memoryview(bytearray(min(step, size)))
    for start in range(0, size, step):
        piece = buffer[: min(step, size - start)]
        if own.read(file, piece, start) < len(piece):
            return None
        whole.update(xxhash.xxh3_128_digest(piece) if payload else piece)
    return str(whole.hexdigest())


def _build(draft: FolderTarget, file: str, sources: Sequence[Source], found: Contents) -> None:
    known = {CHECKPOINT_FILE: found.checkpoint, ARRAYS_FILE: found.arrays}.get(file)
    size = len(known) if known is not None else found.manifest.files[file].size
    part: Part = draft.part(file, size)
    try:
        if known is not None:
            part.write(memoryview(known), 0)
        else:
            copying.put(sources, part, file, found)
        part.finish()
    finally:
        part.close()
