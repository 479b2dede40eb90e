"""Where each array of each part lies: which file, which bytes, in which order."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from holdfast.errors import UsageError
from holdfast.format import dtypes, safetensors
from holdfast.payload.array import Array

HEADER_LIMIT = 90_000_000  # the ordinary library takes 100 MB


class Placement(NamedTuple):
    """An array's place: bytes `start` to `stop` of `file`, counted from byte 0 of the file.

    `alias_of` is the (part, name) under which these bytes are stored, if not under this one.
    """

    dtype: str
    shape: tuple[int, ...]
    file: str
    start: int
    stop: int
    alias_of: tuple[str, str] | None = None


class Segment(NamedTuple):
    """Bytes `start` to `stop` of a file, where they come from, and whom to name if not finite."""

    start: int
    stop: int
    array: Array
    part: str
    name: str
    checked: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """A payload file to be: the header, then all segments without a hole."""

    name: str
    size: int
    header: bytes
    segments: tuple[Segment, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """All files of a save, and for each part where its arrays are."""

    files: tuple[PlannedFile, ...]
    table: dict[str, dict[str, Placement]]

    @property
    def total_bytes(self) -> int:
        return sum(file.size for file in self.files)


class _Item(NamedTuple):
    name: str
    array: Array
    dtype: str
    shape: tuple[int, ...]


def plan(
    parts: Mapping[str, Mapping[str, Array]],
    formats: Mapping[str, str] | None = None,
    *,
    header_limit: int = HEADER_LIMIT,
) -> Layout:
    """Places every array; reads none.

    One file per part that stores an array, several where its header would exceed the limit.
    Arrays are packed by descending alignment (the element size), then name. Arrays of equal
    identity, in one part or in several, are stored once, under the name that comes first.

    Args:
        parts: {part: {array name: array}}.
        formats: {part: text for the file's `__metadata__["format"]`}, "pt" for torch modules.
        header_limit: bytes of header at which a part is split.

    """
    first: dict[Hashable, tuple[str, str]] = {}
    aliases: dict[tuple[str, str], tuple[str, str]] = {}
    checked: dict[tuple[str, str], list[tuple[str, str]]] = {}
    own: dict[str, list[_Item]] = {}
    for part, arrays in parts.items():
        items = own[part] = []
        for name, array in arrays.items():
            key = (part, name)
            stored, shape = dtypes.stored(array.dtype, array.shape)
            _check(part, name, array)
            origin = key if array.identity is None else first.setdefault(array.identity, key)
            if array.check:
                checked.setdefault(origin, []).append(key)
            if origin == key:
                items.append(_Item(name, array, stored, shape))
            else:
                aliases[key] = origin
    files: list[PlannedFile] = []
    placed: dict[tuple[str, str], Placement] = {}
    for part, items in own.items():
        items.sort(key=lambda item: (-dtypes.alignment(item.array.dtype), item.name))
        metadata = {"format": (formats or {})[part]} if part in (formats or {}) else {}
        groups = _split(items, metadata, header_limit)
        for number, (group, header) in enumerate(groups, 1):
            file = (
                f"{part}.safetensors"
                if len(groups) == 1
                else f"{part}-{number:05}-of-{len(groups):05}.safetensors"
            )
            files.append(_place(file, part, group, header, checked=checked, placed=placed))
    return Layout(tuple(files), _table(parts, placed, aliases))


def _check(part: str, name: str, array: Array) -> None:
    expected = dtypes.byte_count(array.dtype, array.shape)
    if array.nbytes != expected:
        raise UsageError(
            f"The array {part}/{name} brings {array.nbytes:,} bytes; {array.dtype} {list(array.shape)} has {expected:,}.",
            expected=expected,
            found=array.nbytes,
        )
    if name == safetensors.METADATA:
        raise UsageError(
            f"An array in the part {part!r} is called {name!r}, a name that the file format keeps for itself. Rename it.",
            found=name,
        )


def _header(items: list[_Item], metadata: Mapping[str, str]) -> bytes:
    entries, offset = [], 0
    for item in items:
        stop = offset + item.array.nbytes
        entries.append((item.name, item.dtype, item.shape, offset, stop))
        offset = stop
    return safetensors.build_header(entries, metadata)


def _split(items: list[_Item], metadata: Mapping[str, str], limit: int) -> list[tuple[list[_Item], bytes]]:
    """Groups of items whose headers stay under the limit, in order; with the headers."""
    if not items:
        return []
    header = _header(items, metadata)
    if len(header) <= limit:
        return [(items, header)]
    # An entry's own text, with room for the largest offsets.
    room = limit - safetensors.ALIGNMENT - 64
    groups: list[list[_Item]] = [[]]
    used = 0
    for item in items:
        text = json.dumps({item.name: [item.dtype, item.shape]}, ensure_ascii=False)
        size = len(text.encode()) + 80
        if groups[-1] and used + size > room:
            groups.append([])
            used = 0
        groups[-1].append(item)
        used += size
    return [(group, _header(group, metadata)) for group in groups]


def _place(
    file: str,
    part: str,
    items: list[_Item],
    header: bytes,
    *,
    checked: Mapping[tuple[str, str], list[tuple[str, str]]],
    placed: dict[tuple[str, str], Placement],
) -> PlannedFile:
    segments, offset = [], len(header)
    for item in items:
        array, key = item.array, (part, item.name)
        stop = offset + array.nbytes
        placed[key] = Placement(array.dtype, array.shape, file, offset, stop)
        if array.nbytes:
            segments.append(Segment(offset, stop, array, part, item.name, tuple(checked.get(key, ()))))
        offset = stop
    return PlannedFile(file, offset, header, tuple(segments))


def _table(
    parts: Mapping[str, Mapping[str, Array]],
    placed: Mapping[tuple[str, str], Placement],
    aliases: Mapping[tuple[str, str], tuple[str, str]],
) -> dict[str, dict[str, Placement]]:
    table: dict[str, dict[str, Placement]] = {}
    for part, arrays in parts.items():
        rows = table[part] = {}
        for name in arrays:
            key = (part, name)
            origin = aliases.get(key)
            rows[name] = placed[key] if origin is None else placed[origin]._replace(alias_of=origin)
    return table
