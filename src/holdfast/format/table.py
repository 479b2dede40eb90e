"""`arrays.json`: which arrays a checkpoint holds, where their bytes lie, and what makes that acceptable."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from typing import Any

import msgspec

from holdfast.errors import FormatError, UsageError
from holdfast.format import dtypes, names, sealed
from holdfast.format.fields import MAX_SIZE, VERSION, check_digests, check_sizes, check_version, convert

ARRAYS_FILE = "arrays.json"
# What a reader takes: larger is refused before it is read into memory.
READ_LIMIT_ARRAYS = 1 << 30

_MAX_AXES = 64
_BLOCK_SIZES = (4096, 1 << 30)  # smaller ones would make a file of damage an endless list
_MAX_DIVIDED = 8  # axes along which an array is cut into chunks
_MAX_CORNERS = 1 << 18


# Chunks and entries come in tens of thousands and cannot form cycles: the collector skips them.
class Chunk(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """Where a piece of an array lies: bytes [start, stop) of a file, and its place in the array.

    Without `offset` and `shape` the piece is the whole array.
    """

    file: str
    bytes: tuple[int, int]
    offset: tuple[int, ...] | None = None
    shape: tuple[int, ...] | None = None


class ArrayEntry(msgspec.Struct, frozen=True, gc=False):
    dtype: str
    shape: tuple[int, ...]
    chunks: tuple[Chunk, ...]


class Part(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A tracked thing: its kind, the frameworks of its arrays, its skeleton, its arrays by name."""

    kind: str
    skeleton: Any = None
    arrays: dict[str, ArrayEntry] = {}


class PayloadRecord(msgspec.Struct, frozen=True):
    """A payload file: its size in bytes and one xxh3-128 (hex) per 16 MiB block."""

    size: int
    blocks: tuple[str, ...]


class Arrays(msgspec.Struct, kw_only=True):
    """The content of `arrays.json`."""

    format: str = "holdfast-arrays"
    version: tuple[int, int] = VERSION
    block_size: int
    files: dict[str, PayloadRecord] = {}
    overlaps: list[list[str]] = []
    parts: dict[str, Part] = {}


def encode_arrays(arrays: Arrays) -> bytes:
    """The bytes of `arrays.json`; the tables, by far the most of it, are written by msgspec where that is safe."""
    content = {field: getattr(arrays, field) for field in arrays.__struct_fields__}
    content["files"] = msgspec.to_builtins(arrays.files)
    content["parts"] = _encode_parts(arrays.parts)
    data = sealed.encode(content)
    if len(data) > READ_LIMIT_ARRAYS:
        raise UsageError(
            f"{ARRAYS_FILE} would have {len(data):,} bytes; a reader takes {READ_LIMIT_ARRAYS:,}. Nothing was saved. "
            f"Next: keep many small numbers in a few arrays.",
            expected=READ_LIMIT_ARRAYS,
            found=len(data),
        )
    return data


def _encode_parts(parts: dict[str, Part]) -> Any:
    # msgspec writes NaN as null and does not escape: so skeletons are not given to it, and what
    # it made of a name outside ASCII is dropped.
    quick = {
        name: part
        if part.skeleton is None
        else msgspec.structs.replace(part, skeleton=msgspec.Raw(sealed.dump(part.skeleton)))
        for name, part in parts.items()
    }
    try:
        data = msgspec.json.encode(quick)
    except UnicodeEncodeError:
        data = b"\xff"
    return msgspec.Raw(data) if data.isascii() else msgspec.to_builtins(parts, str_keys=True)


def decode_arrays(data: bytes, path: str) -> Arrays:
    """Checks digest, version, every field, and that each chunk lies inside a listed file."""
    sealed.check_digest(data, path)
    arrays = _decode_own(data, path)
    if arrays is None:
        content = sealed.decode(data, path)
        check_version(content, "holdfast-arrays", path)
        arrays = convert(content, Arrays, path)
    if not _BLOCK_SIZES[0] <= arrays.block_size <= _BLOCK_SIZES[1]:
        raise FormatError(f"{path} gives a block size of {arrays.block_size:,} bytes.", path=path)
    for name, record in arrays.files.items():
        names.check_file_name(name, path)
        check_sizes([record.size], path)
        check_digests(record.blocks, path)
        expected = -(-record.size // arrays.block_size)
        if len(record.blocks) != expected:
            raise FormatError(
                f"{path} lists {len(record.blocks)} block digests for {name}; "
                f"{record.size:,} bytes have {expected}.",
                path=path,
                expected=expected,
                found=len(record.blocks),
            )
    claimed = sum(_check_part(name, part, arrays, path) for name, part in arrays.parts.items())
    _check_claims(arrays, claimed, path)
    return arrays


def _check_part(part_name: str, part: Part, arrays: Arrays, path: str) -> int:
    """Checks the entries of a part; returns their bytes."""
    ends = {name: record.size for name, record in arrays.files.items()}
    wholes: dict[tuple[str, tuple[int, ...]], int] = {}
    claimed = 0
    for name, entry in part.arrays.items():
        # An array in one piece of the right size is right: the usual case, at a glance.
        whole = wholes.get((entry.dtype, entry.shape))
        if whole is not None and len(entry.chunks) == 1:
            [chunk] = entry.chunks
            start, stop = chunk.bytes
            if (
                stop - start == whole
                and start >= 0
                and stop <= ends.get(chunk.file, -1)
                and chunk.offset is chunk.shape is None
            ):
                claimed += whole
                continue
        whole = _check_entry(entry, arrays, f"{part_name}/{name}", path)
        wholes[entry.dtype, entry.shape] = whole
        claimed += whole
    return claimed


def _check_claims(arrays: Arrays, claimed: int, path: str) -> None:
    """Refuses arrays that take more memory than their files have: the same bytes, read again and again."""
    held = sum(record.size for record in arrays.files.values())
    if claimed > held:  # aliases are one array; who has none is spared the look at each
        entries = {entry for part in arrays.parts.values() for entry in part.arrays.values()}
        claimed = sum(_reach(entry.dtype, entry.shape)[1] for entry in entries)
    if claimed > held:
        raise FormatError(
            f"{path}: its arrays have {claimed:,} bytes, and its files {held:,}: different arrays share their bytes.",
            path=path,
            expected=held,
            found=claimed,
        )


def _decode_own(data: bytes, path: str) -> Arrays | None:
    """Several times faster, for what this version wrote; None leaves the judgement to the general way.

    Every key is followed by `":` here. What is required, and what is not at its default, must have
    been there: when these are all, then no key occurs twice and none is unknown.
    """
    try:
        own = _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    if (own.format, own.version) != ("holdfast-arrays", VERSION) or sealed.is_spaced(data):
        return None
    skeletons = {name: {"": part.skeleton} for name, part in own.parts.items()}
    keys = sealed.check_depth({"parts": skeletons}, path) - len(skeletons) - 1
    keys += len(_Written.__struct_fields__) + 3 * len(own.files)
    for part in own.parts.values():
        keys += 1 + (part.skeleton is not None) + bool(part.arrays) + 4 * len(part.arrays)
        for entry in part.arrays.values():
            for chunk in entry.chunks:
                keys += 2 + (chunk.offset is not None) + (chunk.shape is not None)
    if data.count(b'":') != keys:
        return None
    return Arrays(block_size=own.block_size, files=own.files, overlaps=own.overlaps, parts=own.parts)


class _Written(msgspec.Struct):
    """The keys of `arrays.json`, all of which this version writes."""

    format: str
    version: tuple[int, int]
    block_size: int
    files: dict[str, PayloadRecord]
    overlaps: list[list[str]]
    parts: dict[str, Part]
    digest: str = msgspec.field(name="xxh3-128")


_decoder = msgspec.json.Decoder(_Written)


def _check_entry(entry: ArrayEntry, arrays: Arrays, label: str, path: str) -> int:
    """Checks that an array can be what is said of it; returns its bytes."""
    whole, covered = _array_bytes(entry.dtype, entry.shape, label, path), 0
    for chunk in entry.chunks:
        record = arrays.files.get(chunk.file)
        start, stop = chunk.bytes
        if record is None or not 0 <= start <= stop <= record.size:
            raise FormatError(
                f"{path}: the array {label} points to bytes {start:,} to {stop:,} of {chunk.file!r}, which "
                f"{'is not listed' if record is None else f'has {record.size:,} bytes'}.",
                path=path,
                found=[chunk.file, start, stop],
            )
        size = whole if chunk.shape is None else _array_bytes(entry.dtype, chunk.shape, label, path)
        if size != stop - start:
            raise FormatError(
                f"{path}: the array {label} has a chunk of {stop - start:,} bytes; "
                f"{entry.dtype} {list(chunk.shape or entry.shape)} needs {size:,}.",
                path=path,
                expected=size,
                found=stop - start,
            )
        covered += size
        if (chunk.offset is not None or chunk.shape is not None) and not _inside(chunk, entry.shape):
            raise FormatError(f"{path}: a chunk of the array {label} does not lie inside it.", path=path)
    if covered != whole:  # found out here, before memory for the whole is asked for
        raise FormatError(
            f"{path}: the chunks of the array {label} hold {covered:,} of its {whole:,} bytes.",
            path=path,
            expected=whole,
            found=covered,
        )
    if len(entry.chunks) > 1 and not _covers(entry.chunks, entry.shape):
        raise FormatError(
            f"{path}: the chunks of the array {label} overlap, and leave a part of it out.", path=path
        )
    return whole


def _covers(chunks: Sequence[Chunk], whole: Sequence[int]) -> bool:
    """Whether chunks that lie inside an array, and are together as large, cover all of it.

    They do if their corners, those that come twice struck out, are the corners of the array: every
    element then lies in an odd number of chunks, so in one at least, and so in no more than one.
    """
    pieces = [(chunk.offset, chunk.shape) for chunk in chunks if chunk.bytes[0] < chunk.bytes[1]]
    boxes = [(offset, shape) for offset, shape in pieces if offset is not None and shape is not None]
    if len(pieces) < 2 or len(boxes) < len(pieces):
        return len(pieces) < 2
    axes = [axis for axis, extent in enumerate(whole) if any(shape[axis] != extent for _, shape in boxes)]
    if len(axes) > _MAX_DIVIDED or len(boxes) << len(axes) > max(_MAX_CORNERS, 8 * len(boxes)):
        return False
    corners: set[tuple[int, ...]] = set()
    for offset, shape in [*boxes, ((0,) * len(whole), tuple(whole))]:
        corners ^= set(product(*((offset[axis], offset[axis] + shape[axis]) for axis in axes)))
    return not corners


def _inside(chunk: Chunk, whole: Sequence[int]) -> bool:
    if chunk.offset is None or chunk.shape is None:
        return False
    if len(chunk.offset) != len(whole) or len(chunk.shape) != len(whole):
        return False
    return all(o >= 0 and o + s <= g for o, s, g in zip(chunk.offset, chunk.shape, whole, strict=True))


def _array_bytes(dtype: str, shape: tuple[int, ...], label: str, path: str) -> int:
    try:
        reach, size = _reach(dtype, shape)
    except FormatError as error:  # no such dtype
        raise FormatError(f"{path}: the array {label}: {error}", path=path, found=dtype) from error
    if reach < 0:
        raise FormatError(
            f"{path}: the array {label} has the shape {list(shape)[:_MAX_AXES]}; a shape is at most {_MAX_AXES} sizes "
            f"of 0 or more.",
            path=path,
            found=list(shape),
        )
    if reach > MAX_SIZE:
        raise FormatError(
            f"{path}: the array {label} of shape {list(shape)} would have {reach:,} bytes.", path=path
        )
    return size


@lru_cache(maxsize=1024)
def _reach(dtype: str, shape: tuple[int, ...]) -> tuple[int, int]:
    """Bytes without and with the zeros of a shape; a reach of -1 for what is no shape."""
    item = dtypes.item_size(dtype)
    if len(shape) > _MAX_AXES or any(extent < 0 for extent in shape):
        return -1, 0
    # Without the zeros: [0, 2^62] has no bytes, and is still no array that anybody could make.
    reach = (item or 1) * math.prod(extent for extent in shape if extent)
    return reach, 0 if 0 in shape else item * math.prod(shape)
