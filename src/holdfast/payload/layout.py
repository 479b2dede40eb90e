"""Where each array of each part lies: which file, which bytes, in which order."""

from __future__ import annotations

import json
from collections.abc import Container, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from holdfast.errors import UsageError
from holdfast.format import dtypes, safetensors
from holdfast.format.table import ArrayEntry, Chunk
from holdfast.payload import joining
from holdfast.payload.array import Array

HEADER_LIMIT = 90_000_000  # the ordinary library takes 100 MB


class Segment(NamedTuple):
    """Bytes `start` to `stop` of a file, where they come from, and whom to name if not finite.

    The bytes of an array, or of several small ones that are opened together. Those that are `late` may be
    copied behind the training, until `pending.settle` returns; `watch` is how numbers look that are not finite.
    """

    start: int
    stop: int
    array: Array
    part: str
    name: str
    checked: tuple[tuple[str, str], ...]
    late: bool
    watch: dtypes.NonFinite | None


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """A payload file to be: the header, then all segments without a hole; where these end once more by itself."""

    name: str
    size: int
    header: bytes
    segments: tuple[Segment, ...]
    stops: list[int]


@dataclass(frozen=True, slots=True)
class Layout:
    """All files of a save, and for each part where its arrays are: one entry for arrays that are stored once."""

    files: tuple[PlannedFile, ...]
    table: dict[str, dict[str, ArrayEntry]]

    @property
    def total_bytes(self) -> int:
        return sum(file.size for file in self.files)


class _Form(NamedTuple):
    """What follows from a dtype and a shape alone: looked up, since most arrays share a few."""

    rank: int  # the smallest comes first
    dtype: str
    shape: tuple[int, ...]
    nbytes: int

    @classmethod
    def of(cls, dtype: str, shape: tuple[int, ...]) -> _Form:
        return cls(
            -dtypes.alignment(dtype), *dtypes.stored(dtype, shape), nbytes=dtypes.byte_count(dtype, shape)
        )


# (rank, name, form, array): ordered as in the file. Names differ, so no more than these two are compared.
_Item = tuple[int, str, _Form, Array]
_Key = tuple[str, str]  # (part, name)


def plan(
    parts: Mapping[str, Mapping[str, Array]],
    formats: Mapping[str, str] | None = None,
    *,
    late: Container[tuple[str, str]] = (),
    header_limit: int = HEADER_LIMIT,
) -> Layout:
    """Places every array; reads none.

    One file per part that stores an array, several where its header would exceed the limit.
    Arrays are packed by descending alignment (the element size), then name. Arrays of equal
    identity, in one part or in several, are stored once, under the name that comes first.

    Args:
        parts: {part: {array name: array}}.
        formats: {part: text for the file's `__metadata__["format"]`}, "pt" for torch modules.
        late: (part, name) of the arrays that are copied late; of arrays that are stored once, of all.
        header_limit: bytes of header at which a part is split.

    """
    forms: dict[tuple[str, tuple[int, ...]], _Form] = {}
    first: dict[Hashable, _Key] = {}
    aliases: dict[_Key, _Key] = {}
    checked: dict[_Key, tuple[_Key, ...]] = {}
    own: dict[str, list[_Item]] = {}
    for part, arrays in parts.items():
        items = own[part] = []
        for name, array in arrays.items():
            key, kind = (part, name), (array.dtype, array.shape)
            form = forms.get(kind)
            if form is None:
                form = forms[kind] = _Form.of(*kind)
            if array.nbytes != form.nbytes or name == safetensors.METADATA:
                raise _refusal(part, name, array, form.nbytes)
            origin = key if array.identity is None else first.setdefault(array.identity, key)
            if array.check:
                checked[origin] = (*checked[origin], key) if origin in checked else (key,)
            if origin is key:
                items.append((form.rank, name, form, array))
            else:
                aliases[key] = origin
    files: list[PlannedFile] = []
    placed: dict[_Key, ArrayEntry] = {}
    for part, items in own.items():
        items.sort()
        metadata = {"format": (formats or {})[part]} if part in (formats or {}) else {}
        groups = _split(items, metadata, header_limit)
        for number, (group, header) in enumerate(groups, 1):
            file = (
                f"{part}.safetensors"
                if len(groups) == 1
                else f"{part}-{number:05}-of-{len(groups):05}.safetensors"
            )
            files.append(_place(file, part, group, header, checked=checked, placed=placed, late=late))
    return Layout(tuple(files), _table(parts, placed, aliases))


def _refusal(part: str, name: str, array: Array, expected: int) -> UsageError:
    if array.nbytes != expected:
        return UsageError(
            f"The array {part}/{name} brings {array.nbytes:,} bytes; {array.dtype} {list(array.shape)} has {expected:,}.",
            expected=expected,
            found=array.nbytes,
        )
    return UsageError(
        f"An array in the part {part!r} is called {name!r}, a name that the file format keeps for itself. Rename it.",
        found=name,
    )


def _offsets(items: Iterable[_Item], start: int) -> list[int]:
    """Where each item begins, and where the last one ends."""
    return list(accumulate((form.nbytes for _, _, form, _ in items), initial=start))


def _header(items: list[_Item], metadata: Mapping[str, str]) -> bytes:
    offsets = _offsets(items, 0)
    entries: Iterator[tuple[str, str, tuple[int, ...], int, int]] = (
        (name, form.dtype, form.shape, start, stop)
        for (_, name, form, _), start, stop in zip(items, offsets, offsets[1:], strict=False)
    )
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
        _, name, form, _ = item
        text = json.dumps({name: [form.dtype, form.shape]}, ensure_ascii=False)
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
    checked: Mapping[_Key, tuple[_Key, ...]],
    placed: dict[_Key, ArrayEntry],
    late: Container[_Key],
) -> PlannedFile:
    offsets = _offsets(items, len(header))
    for (_, name, _, array), start, stop in zip(items, offsets, offsets[1:], strict=False):
        placed[part, name] = ArrayEntry(array.dtype, array.shape, (Chunk(file, (start, stop)),))
    filled = [(item, start) for item, start in zip(items, offsets, strict=False) if item[2].nbytes]
    arrays = [array for (_, _, _, array), _ in filled]
    # Of a checked array it is told by its own name that it is not finite.
    names = [name for (_, name, _, _), _ in filled]
    alone = [(part, name) in checked for name in names]
    behind = [(part, name) in late for name in names]
    segments = []
    for first, last, array in joining.bundles(arrays, alone, behind):
        start, name = filled[first][1], names[first]
        if last > first + 1:
            name = f"{name} … {names[last - 1]}"
        whom = checked.get((part, name), ())
        watch = dtypes.nonfinite(array.dtype) if whom else None
        segments.append(Segment(start, start + array.nbytes, array, part, name, whom, behind[first], watch))
    return PlannedFile(file, offsets[-1], header, tuple(segments), [segment.stop for segment in segments])


def _table(
    parts: Mapping[str, Mapping[str, Array]],
    placed: Mapping[_Key, ArrayEntry],
    aliases: Mapping[_Key, _Key],
) -> dict[str, dict[str, ArrayEntry]]:
    return {
        part: {name: placed[aliases.get(key, key)] for name in arrays for key in ((part, name),)}
        for part, arrays in parts.items()
    }
