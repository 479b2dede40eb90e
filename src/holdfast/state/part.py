"""A tracked thing on its way to disk and back: its captured state, its saved state, and the plan of a restore."""

from __future__ import annotations

import dataclasses
import errno
import math
from collections.abc import Callable, Mapping
from typing import Any

from holdfast.errors import FormatError, HoldfastError, MismatchError, StorageError, nearest
from holdfast.format import dtypes
from holdfast.format.table import ArrayEntry, Chunk, Part
from holdfast.state import adapters, tree
from holdfast.state.batches import Batches, Row

FLAT = "flat"
PARTIAL = "partial"


@dataclasses.dataclass(slots=True)
class PartState:
    """A captured part.

    Attributes:
        kind: what it is, such as "torch.Module"; decides how it is restored.
        skeleton: its state without the arrays (`holdfast.state.tree`); ``{"$":"flat","v":framework}``
            when it is one flat mapping of strings to arrays.
        arrays: name → `payload.array.Array`, in the part's own order.
        watch: True when training is expected to change some of its arrays.

    """

    kind: str
    skeleton: Any
    arrays: dict[str, Any]
    watch: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class SavedPart:
    """A part of a checkpoint, as `arrays.json` describes it."""

    name: str
    kind: str
    skeleton: Any
    entries: Mapping[str, ArrayEntry]
    where: str
    made_by: str = ""
    """The class of the thing it was captured from, where the checkpoint tells."""

    @classmethod
    def of(cls, name: str, part: Part, where: str, made_by: str = "") -> SavedPart:
        return cls(name, part.kind, part.skeleton, part.arrays, where, made_by)

    @property
    def content(self) -> Any:
        """The skeleton of the value itself, without what a partial part says about the rest."""
        if isinstance(self.skeleton, dict) and self.skeleton.get("$") == PARTIAL:
            return self.skeleton.get("v")
        return self.skeleton

    @property
    def flat(self) -> str | None:
        """The framework of a flat mapping's arrays, None when this part is no flat mapping."""
        content = self.content
        if isinstance(content, dict) and content.get("$") == FLAT:
            return str(content.get("v"))
        return None

    def value(self, leaf: tree.Leaf) -> Any:
        """The part's value, with its arrays from `leaf(framework, name)`."""
        framework = self.flat
        if framework is not None:
            return {name: leaf(framework, name) for name in self.entries}
        return tree.decode(self.content, leaf, f"{self.where}: part {self.name!r}")

    def leaves(self) -> list[tuple[str, str]]:
        framework = self.flat
        if framework is not None:
            return [(framework, name) for name in self.entries]
        return tree.leaves(self.content)

    def entry(self, name: str) -> ArrayEntry:
        try:
            return self.entries[name]
        except KeyError:
            raise FormatError(
                f"{self.where}: the skeleton of part {self.name!r} names the array {name!r}, "
                f"which the table does not list.",
                found=name,
            ) from None

    def nbytes(self) -> int:
        return sum(
            chunk.bytes[1] - chunk.bytes[0] for entry in self.entries.values() for chunk in entry.chunks
        )


class Plan:
    """What a restore will read and then do; nothing live is touched before `fits` has passed.

    Adapters add to it: `read` and `allocate` before the bytes are there, `after` for what needs
    them. Arrays that the live object lacks, has too many, or has in another shape are noted with
    `lack`, `surplus` and `differ`.

    Attributes:
        requests: what the reader reads, array by array.
        small: the arrays that it hands over together.

    """

    def __init__(self) -> None:
        from holdfast.payload.reader import Request

        self._new_request = Request
        self.requests: list[Request] = []
        self.missing: list[str] = []
        self.unexpected: list[str] = []
        self.different: list[str] = []
        self._first: dict[tuple[str, int, int], Any] = {}
        self._allocated: dict[tuple[Any, ...], Any] = {}
        self.small = Batches(_no_room_for_row)
        self._moves: list[Callable[[], None]] = []
        self._finishes: list[Callable[[], None]] = []

    # -- what adapters note --------------------------------------------------------------

    def lack(self, part: str, name: str) -> None:
        """The live object has an array that the checkpoint lacks."""
        self.missing.append(f"{part}/{name}")

    def surplus(self, part: str, name: str) -> None:
        """The checkpoint has an array that the live object lacks."""
        self.unexpected.append(f"{part}/{name}")

    def differ(self, part: str, name: str, saved: str, live: str) -> None:
        self.different.append(f"{part}/{name}: saved {saved}, here {live}")

    def read(self, part: SavedPart, name: str, into: Any) -> None:
        """Reads an array's bytes into a buffer: 1-D, uint8, writable, of exactly its size."""
        self._read(part, part.entry(name), f"{part.name}/{name}", into)

    def _read(self, part: SavedPart, entry: ArrayEntry, label: str, into: Any) -> None:
        covered = 0
        for chunk in entry.chunks:
            if chunk.shape is None or chunk.shape == entry.shape:
                self._request(chunk, into, label)
                covered = into.nbytes
            else:
                self._place(entry, chunk, into, label)
                covered += chunk.bytes[1] - chunk.bytes[0]
        if covered != into.nbytes:
            raise FormatError(
                f"{part.where}: the chunks of the array {label} hold {covered:,} of its {into.nbytes:,} bytes.",
                found=covered,
                expected=into.nbytes,
            )

    def _request(self, chunk: Chunk, into: Any, label: str) -> None:
        start, stop = chunk.bytes
        if start == stop:
            return
        key = (chunk.file, start, stop)
        first = self._first.get(key)
        if first is None:
            self._first[key] = into
            self.requests.append(self._new_request(chunk.file, start, stop, into, label))
        elif first is not into:

            def copy(source: Any = first, target: Any = into) -> None:
                target[:] = source

            self._moves.append(copy)

    def _place(self, entry: ArrayEntry, chunk: Chunk, into: Any, label: str) -> None:
        # One of several chunks of a sharded array: read aside, then put where it belongs.
        import numpy as np

        shape, offset = chunk.shape or (), chunk.offset or ()
        aside = np.empty(chunk.bytes[1] - chunk.bytes[0], np.uint8)
        self._request(chunk, aside, label)
        item = into.nbytes // max(1, math.prod(entry.shape))
        whole = into.reshape(*entry.shape, item)
        piece = aside.reshape(*shape, item)
        place = tuple(slice(o, o + s) for o, s in zip(offset, shape, strict=True))

        def move() -> None:
            whole[place] = piece

        self._moves.append(move)

    def allocate(self, part: SavedPart, framework: str, name: str) -> Callable[[], Any]:
        """A new array of `framework` to read into; the result gives it once the bytes are there.

        Arrays that were one (aliases) come back as one.
        """
        entry = part.entry(name)
        key = (framework, entry)
        found: Callable[[], Any] | None = self._allocated.get(key)
        if found is not None:
            return found
        try:
            allocation = adapters.edge(framework).allocate(entry.dtype, entry.shape)
        except (MemoryError, RuntimeError, ValueError) as error:
            if isinstance(error, HoldfastError):
                raise
            raise _no_room(part, name, framework, error) from error
        self._read(part, entry, f"{part.name}/{name}", allocation.bytes)
        finish: Callable[[], Any] = allocation.finish
        if allocation.bytes.nbytes:  # arrays without bytes share a place and are not one
            self._allocated[key] = finish
        return finish

    def value(self, part: SavedPart, arrays: str | None = None) -> Callable[[], Any]:
        """A part's whole value with new arrays; `arrays` replaces the saver's framework."""
        leaves = {name: framework for framework, name in part.leaves()}
        homes = {home: _available(arrays or home) for home in set(leaves.values())}
        found: dict[str, Any] = {}
        wanted = ((homes[framework], name) for name, framework in leaves.items())
        others = self.small.make(part, wanted, found)
        finishes = {name: self.allocate(part, framework, name) for framework, name in others}

        def finish() -> Any:
            found.update((name, made()) for name, made in finishes.items())
            return part.value(lambda _, name: found[name])

        return finish

    def after(self, step: Callable[[], None]) -> None:
        """Something to do once every byte has been read and checked."""
        self._finishes.append(step)

    # -- what the caller does --------------------------------------------------------------

    @property
    def nbytes(self) -> int:
        """Bytes that will be read into arrays."""
        return sum(request.stop - request.start for request in self.requests) + self.small.nbytes

    def check_fit(self, where: str, otherwise: str = "pass strict=False to load what fits") -> None:
        """Raises `MismatchError` when anything was noted that does not fit; `otherwise` is the second remedy."""
        if not (self.missing or self.unexpected or self.different):
            return
        lines = [f"{where} does not fit what it is restored into; nothing was changed."]
        saved = [name.partition("/")[2] for name in self.unexpected]
        if self.missing:
            lines.append("  Here, but not in the checkpoint:")
            for name in self.missing[:20]:
                hint = nearest(name.partition("/")[2], saved)
                lines.append(f"    {name}{f'  ({hint})' if hint else ''}")
            lines += _more(self.missing)
        if self.unexpected:
            lines.append("  In the checkpoint, but not here:")
            lines += [f"    {name}" for name in self.unexpected[:20]] + _more(self.unexpected)
        if self.different:
            lines.append("  Different:")
            lines += [f"    {text}" for text in self.different[:20]] + _more(self.different)
        lines.append(f"  Next: build the model as it was saved, or {otherwise}.")
        raise MismatchError(
            "\n".join(lines), missing=self.missing, unexpected=self.unexpected, different=self.different
        )

    def finish(self) -> None:
        """Does what had to wait for the bytes, in order."""
        self.small.finish()
        for move in self._moves:
            move()
        for step in self._finishes:
            step()


def _no_room_for_row(row: Row, framework: str, error: Exception) -> Exception:
    return error if isinstance(error, HoldfastError) else _no_room(row.part, row.name, framework, error)


def _no_room(part: SavedPart, name: str, framework: str, error: Exception) -> StorageError:
    entry = part.entry(name)
    size = dtypes.byte_count(entry.dtype, entry.shape)
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return StorageError(
        f"{part.where}: {framework} cannot make the array {part.name}/{name}, {entry.dtype} {list(entry.shape)}, of "
        f"{size:,} bytes: {reason}. Next: load fewer parts, or on a machine with more memory.",
        errno=errno.ENOMEM,
        path=part.where,
        operation="allocate",
        needed=size,
    )


def _available(framework: str) -> str:
    """The framework to make arrays of; NumPy where the saver's is not one that can be had here."""
    import importlib.util

    if framework == "numpy" or (framework in adapters.ARRAYS and importlib.util.find_spec(framework)):
        return framework
    return "numpy"


def _more(items: list[str]) -> list[str]:
    return [f"    … and {len(items) - 20} more"] if len(items) > 20 else []
