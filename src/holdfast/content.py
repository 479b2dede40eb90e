"""What lies in one checkpoint: its small files and its arrays, each checked as it is read."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from holdfast.errors import DamagedError, FormatError, HoldfastError, NotFoundError, nearest
from holdfast.format import sealed
from holdfast.format.manifest import CHECKPOINT_FILE, Manifest
from holdfast.format.table import ARRAYS_FILE, READ_LIMIT_ARRAYS, Arrays, PayloadRecord, decode_arrays
from holdfast.payload.source import Readable
from holdfast.state.part import Plan, SavedPart
from holdfast.store import catalog
from holdfast.store.sources import source_of

_MOST_LOOKS = 20_000_000  # at arrays, to name those in damaged blocks


class Content:
    """The files of a checkpoint whose `checkpoint.json` is known.

    Args:
        source: where they are read from.
        manifest: what `checkpoint.json` says; all else is compared with it.

    """

    def __init__(self, source: Readable, manifest: Manifest) -> None:
        self.source, self.path, self.manifest = source, source.path, manifest
        self._arrays: Arrays | None = None
        self._looks = 0

    def arrays(self) -> Arrays:
        """The content of `arrays.json`, checked against `checkpoint.json`."""
        if self._arrays is None:
            path = os.path.join(self.path, ARRAYS_FILE)
            listed = self.manifest.files.get(ARRAYS_FILE)
            if listed is None:
                raise FormatError(
                    f"{self.path}: {CHECKPOINT_FILE} does not list {ARRAYS_FILE}.", path=self.path
                )
            data = self.small(ARRAYS_FILE, READ_LIMIT_ARRAYS, text=True)
            arrays = decode_arrays(data, path)
            unlisted = {name for name in self.manifest.files if name.endswith(".safetensors")} - set(
                arrays.files
            )
            for name in [*arrays.files, *sorted(unlisted)]:
                own, record = self.manifest.files.get(name), arrays.files.get(name)
                digest = _digest_of(record) if record is not None else None
                if own is None or record is None or own.size != record.size or own.digest != digest:
                    raise DamagedError(
                        f"{self.path}: {CHECKPOINT_FILE} and {ARRAYS_FILE} disagree about {name}: they do not belong "
                        f"together. Next: holdfast verify {self.path}",
                        path=self.path,
                        file=name,
                        block=None,
                        arrays=[],
                        expected=own.digest if own else None,
                        found=digest,
                    )
            self._arrays = arrays
        return self._arrays

    # -- small files -----------------------------------------------------------------------------

    def small(self, name: str, limit: int, *, text: bool = False) -> bytes:
        """The bytes of a file that the manifest lists; at most `limit` of them."""
        listed = self.manifest.files[name]
        with self._expecting(name):
            data = self.source.small(name, min(limit, listed.size), text=text)
            if self.source.distant and sealed.digest(data) != listed.digest:  # the way may be at fault
                data = self.source.small(name, min(limit, listed.size), text=text)
        self._compare(name, len(data), sealed.digest(data))
        return data

    def check_small(self, name: str) -> None:
        """Reads a file piece by piece, so that its size costs no memory."""
        listed = self.manifest.files[name]
        with self._expecting(name):
            size, digest = _digest_file(self.source, name, listed.size)
            if self.source.distant and digest != listed.digest:
                size, digest = _digest_file(self.source, name, listed.size)
        self._compare(name, size, digest)

    @contextlib.contextmanager
    def _expecting(self, name: str) -> Iterator[None]:
        """Turns what is wrong with the file of that name as a whole into damage."""
        expected = self.manifest.files[name].digest
        try:
            yield
        except NotFoundError:
            if not self.source.exists():
                raise
            raise damaged(self.path, name, f"{name} is missing", expected, None) from None
        except FormatError as error:  # longer than it was written, or no regular file
            text = f"{name} is not the file that was written: {error}"
            raise damaged(self.path, name, text, expected, None) from error

    def _compare(self, name: str, size: int, found: str) -> None:
        listed = self.manifest.files[name]
        if found != listed.digest:
            text = f"{name} has {size:,} bytes with digest {found}; {listed.size:,} with {listed.digest} were written"
            raise damaged(self.path, name, text, listed.digest, found)

    # -- arrays ------------------------------------------------------------------------------------

    def saved(self, name: str) -> SavedPart:
        """A part as `arrays.json` describes it; `NotFoundError` names the nearest."""
        parts = self.arrays().parts
        if name not in parts:
            near = nearest(name, parts)
            raise NotFoundError(
                f"{self.path} has no part {name!r}{f'; {near}' if near else '.'} It has: {', '.join(parts)}.",
                path=self.path,
                candidates=list(parts),
            )
        outline = self.manifest.parts.get(name, {}).get("outline")
        made_by = outline.get("class") if isinstance(outline, dict) else None
        return SavedPart.of(name, parts[name], self.path, made_by if isinstance(made_by, str) else "")

    def read(self, plan: Plan, progress: Callable[[int], None] | None = None) -> None:
        """Reads and checks what a plan asks for, then finishes it."""
        batches = plan.small.sealed()
        if plan.requests or batches:
            from holdfast.payload import reader

            reader.read(
                self.source,
                self._records(),
                plan.requests,
                batches=batches,
                names=self._names_in,
                progress=progress,
                block_size=self.arrays().block_size,
            )
        plan.finish()

    def check_sizes(self, parts: Iterable[str]) -> None:
        """Compares the sizes of the files that some parts lie in, before memory is taken for what they hold."""
        from holdfast.payload import damage

        used = {
            chunk.file
            for name in parts
            for entry in self.saved(name).entries.values()
            for chunk in entry.chunks
            if chunk.bytes[0] < chunk.bytes[1]
        }
        for file, record in self.arrays().files.items():
            with contextlib.suppress(OSError):  # what is missing, or no file, is the reader's to tell
                size = self.source.size(file)
                if file in used and size != record.size:
                    raise damage.wrong_size(self.path, file, record.size, size)

    def verify(self, progress: Callable[[int], None] | None = None) -> list[HoldfastError]:
        """Reads every byte of every file but `checkpoint.json`; gives all damage."""
        problems: list[HoldfastError] = []
        for name in self.manifest.files:
            if name.endswith(".safetensors") or (name == ARRAYS_FILE and self._arrays is None):
                continue  # the latter is read below
            try:
                self.check_small(name)
            except HoldfastError as error:
                problems.append(error)
        surplus = set(self.source.names()) - set(self.manifest.files) - {CHECKPOINT_FILE}
        problems += [
            damaged(self.path, name, f"{name} does not belong to it", None, name) for name in sorted(surplus)
        ]
        try:
            for name in self.arrays().parts:
                self.saved(name).leaves()
            records = self._records()
        except HoldfastError as error:
            known = {problem.message for problem in problems}
            return problems if error.message in known else [*problems, error]
        from holdfast.payload import reader

        return problems + list(
            reader.verify(
                self.source,
                records,
                names=self._names_in,
                progress=progress,
                block_size=self.arrays().block_size,
            )
        )

    def _records(self) -> dict[str, Any]:
        from holdfast.payload import reader

        return {
            name: reader.FileRecord(name, record.size, [bytes.fromhex(block) for block in record.blocks])
            for name, record in self.arrays().files.items()
        }

    def _names_in(self, file: str, start: int, stop: int) -> list[str]:
        """The arrays in some bytes of a file; none any more once much time went into such questions."""
        if self._looks > _MOST_LOOKS:
            return []
        self._looks += sum(len(part.arrays) for part in self.arrays().parts.values())
        return [
            f"{part_name}/{name}"
            for part_name, part in self.arrays().parts.items()
            for name, entry in part.arrays.items()
            if any(c.file == file and c.bytes[0] < stop and start < c.bytes[1] for c in entry.chunks)
        ]


def look_again(path: str, known: Manifest | None) -> tuple[Manifest | None, list[HoldfastError]]:
    """The manifest that counts now, and what is the matter with `checkpoint.json` since it was read.

    Where it was replaced, the new one counts; where it cannot be read or is another's, the one that is known.
    """
    try:
        current = catalog.read_manifest(path)
    except NotFoundError:
        if not source_of(path).exists():
            raise
        return known, [damaged(path, CHECKPOINT_FILE, f"{CHECKPOINT_FILE} is missing", None, None)]
    except FormatError as error:
        text = f"{CHECKPOINT_FILE} is not the file that was written: {error}"
        return known, [damaged(path, CHECKPOINT_FILE, text, None, str(error))]
    except HoldfastError as error:
        return known, [error]
    own = known or current
    if (current.run, current.name, current.sequence) != (own.run, own.name, own.sequence):
        text = f"{CHECKPOINT_FILE} is that of another checkpoint, {current.name}"
        return own, [damaged(path, CHECKPOINT_FILE, text, own.name, current.name)]
    return own if current == own else current, []


def damaged(path: str, file: str, text: str, expected: str | None, found: str | None) -> DamagedError:
    """An error about one file of a checkpoint as a whole."""
    return DamagedError(
        f"{path} is damaged: {text}. Next: holdfast verify {path}, or use an older checkpoint.",
        path=path,
        file=file,
        block=None,
        arrays=[],
        expected=expected,
        found=found,
    )


def _digest_of(record: PayloadRecord) -> str:
    return sealed.digest(b"".join(bytes.fromhex(block) for block in record.blocks))


def _digest_file(source: Readable, file: str, size: int) -> tuple[int, str]:
    """How many bytes a file has, and their digest; stops after `size` of them and one more."""
    import xxhash

    digest = xxhash.xxh3_128()
    buffer = memoryview(bytearray(min(size + 1, 1 << 20)))
    done, count = 0, len(buffer)
    while done <= size and count == len(buffer):
        count = source.read(file, buffer, done)
        digest.update(buffer[:count])
        done += count
    return done, digest.hexdigest()
