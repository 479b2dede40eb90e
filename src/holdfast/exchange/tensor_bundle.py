"""TensorFlow's checkpoint files ("tensor bundles"), read without TensorFlow.

``PREFIX.index`` is a sorted table as LevelDB writes them: name → a protocol buffer with dtype, shape, and
where in which ``PREFIX.data-0000N-of-0000M`` the bytes lie, with their checksum. Described in TensorFlow's
tensor_bundle.proto and LevelDB's doc/table_format.md.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import NamedTuple

from holdfast import files
from holdfast.errors import DamagedError, FormatError, NotFoundError, UsageError
from holdfast.exchange.crc32c import masked
from holdfast.format import dtypes
from holdfast.payload.array import Array, Bytes, LazyArray

GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
_INDEX_LIMIT = 256 << 20
_MOST_ENTRIES = 1_000_000
_MOST_DIMENSIONS = 254  # TensorFlow's own limit
_MAGIC = 0xDB4775248B80FB57
_STRING = 7
_DTYPES = {
    1: "F32", 2: "F64", 3: "I32", 4: "U8", 5: "I16", 6: "I8", 8: "C64", 9: "I64", 10: "BOOL", 14: "BF16", 17: "U16",
    18: "C128", 19: "F16", 22: "U32", 23: "U64", 24: "F8_E5M2", 25: "F8_E4M3",
}  # fmt: skip


class _Entry(NamedTuple):
    dtype: int
    shape: tuple[int, ...]
    shard: int
    start: int
    size: int
    checksum: int
    sliced: bool


def find_prefix(path: str) -> str | None:
    """The prefix that a path means: itself, that of an index or data file, or the newest in a folder."""
    stem = re.sub(r"\.(index|data-\d{5}-of-\d{5})\Z", "", path)
    if os.path.isfile(f"{stem}.index"):
        return stem
    return newest(path) if os.path.isdir(path) else None


def newest(folder: str) -> str | None:
    """The prefix that TensorFlow's own file ``checkpoint`` in a folder names as the newest, if it is there."""
    try:
        text = files.read_file(os.path.join(folder, "checkpoint"), 1 << 20).decode("utf-8", "replace")
    except (NotFoundError, FormatError):
        return None
    found = re.search(r'^model_checkpoint_path: "((?:[^"\\]|\\.)*)"', text, re.MULTILINE)
    if found is None:
        return None
    name = re.sub(r"\\(.)", r"\1", found[1])
    # Such a folder is copied and moved: what matters is the file beside it.
    for place in (os.path.join(folder, name), os.path.join(folder, os.path.basename(name))):
        if os.path.isfile(f"{place}.index"):
            return place
    return None


def read(prefix: str) -> dict[str, Array]:
    """The arrays of a checkpoint by name, sorted; texts among them are left out.

    Raises:
        FormatError: it is no such file, or a variable is spread over several.
        DamagedError: a checksum is wrong, or a data file is missing or too short.

    """
    path = f"{prefix}.index"
    data = files.read_file(path, _INDEX_LIMIT)
    try:
        rows = list(_table(data, path))
        header = dict(_fields(rows[0][1])) if rows and rows[0][0] == b"" else None
        entries = {name.decode("utf-8"): _entry(value) for name, value in rows[1:]}
    except (IndexError, ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise _unreadable(path, f"{type(error).__name__}: {error}") from error
    if header is None:
        raise _unreadable(path, "it has no header")
    shards = header.get(1, 0)
    if not isinstance(shards, int) or not 1 <= shards <= 99_999 or header.get(2, 0) != 0:
        raise _unreadable(
            path, "its header claims no number of data files that can be, or another order of bytes"
        )
    sizes = _sizes(prefix, shards, {entry.shard for entry in entries.values()})
    return {
        name: _array(prefix, shards, name, entry, sizes)
        for name, entry in entries.items()
        if entry.dtype != _STRING
    }


def _sizes(prefix: str, shards: int, used: set[int]) -> dict[int, int]:
    found = {}
    for shard in sorted(used):
        place = _place(prefix, shard, shards)
        if not 0 <= shard < shards or not os.path.isfile(place):
            raise DamagedError(
                f"{prefix}.index names {os.path.basename(place)}, which is missing. Nothing was imported. Next: copy "
                f"all files of the checkpoint.",
                path=prefix,
                file=os.path.basename(place),
                block=None,
                arrays=[],
                expected=shards,
                found=None,
            )
        found[shard] = os.stat(place).st_size
    return found


def _place(prefix: str, shard: int, shards: int) -> str:
    return f"{prefix}.data-{shard:05d}-of-{shards:05d}"


def _array(prefix: str, shards: int, name: str, entry: _Entry, sizes: dict[int, int]) -> Array:
    path = f"{prefix}.index"
    if entry.sliced:
        raise UsageError(
            f"{path}: the variable {name!r} is stored in slices, as partitioned variables are; that is not read. Next: "
            f"save it again unpartitioned.",
            path=path,
            found=name,
        )
    dtype = _DTYPES.get(entry.dtype)
    if dtype is None:
        raise FormatError(
            f"{path}: {name!r} has TensorFlow's dtype {entry.dtype}, which is not known here.", path=path
        )
    if entry.size != dtypes.byte_count(dtype, entry.shape):
        raise _unreadable(path, f"{name!r} is {dtype} {list(entry.shape)} of {entry.size:,} bytes")
    place = _place(prefix, entry.shard, shards)
    if entry.start + entry.size > sizes[entry.shard]:
        raise _damaged(
            prefix, place, name, f"{os.path.basename(place)} is shorter than {path} says", entry.size, None
        )

    def read() -> Bytes:
        data = _bytes(prefix, place, name, entry)
        found = masked(data)
        if found != entry.checksum:
            raise _damaged(prefix, place, name, "its checksum is wrong", entry.checksum, found)
        return data

    return LazyArray(dtype, entry.shape, entry.size, read)


def _bytes(prefix: str, place: str, name: str, entry: _Entry) -> Bytes:
    import numpy as np

    data = np.empty(entry.size, np.uint8)
    with files.translated(place, "read"), open(files.open_for_reading(place), "rb") as file:
        file.seek(entry.start)
        if file.readinto(data.data) != entry.size:
            raise _damaged(prefix, place, name, "the file became shorter while it was read", entry.size, None)
    return data


def _damaged(
    prefix: str, place: str, name: str, what: str, expected: int | None, found: int | None
) -> DamagedError:
    return DamagedError(
        f"{prefix} is damaged: the array {name!r} in {os.path.basename(place)}: {what}. Nothing was imported. Next: copy it "
        f"again, or use an older one.",
        path=prefix,
        file=os.path.basename(place),
        block=None,
        arrays=[name],
        expected=expected,
        found=found,
    )


def _unreadable(path: str, what: str) -> FormatError:
    return FormatError(
        f"{path} is no index of a TensorFlow checkpoint that can be read: {what}. Next: copy it again.",
        path=path,
    )


# -- the table ---------------------------------------------------------------------------------


def _table(data: bytes, path: str) -> Iterator[tuple[bytes, bytes]]:
    """All rows of a sorted table; every block is compared with its checksum."""
    if len(data) < 48 or int.from_bytes(data[-8:], "little") != _MAGIC:
        raise _unreadable(path, "it does not end as such tables do, so it is something else or was cut")
    place = len(data) - 48
    for _ in range(2):
        _, place = _varint(data, place)
    start, place = _varint(data, place)
    size, place = _varint(data, place)
    count = 0
    for _, handle in _rows(_block(data, start, size, path)):
        start, place = _varint(handle, 0)
        size, _ = _varint(handle, place)
        for row in _rows(_block(data, start, size, path)):
            count += 1
            if count > _MOST_ENTRIES:
                raise _unreadable(path, f"it lists more than {_MOST_ENTRIES:,} arrays")
            yield row


def _block(data: bytes, start: int, size: int, path: str) -> memoryview:
    if start + size + 5 > len(data):
        raise _unreadable(path, f"a block at byte {start:,} reaches beyond its end")
    whole = memoryview(data)[start : start + size + 1]
    if masked(whole) != int.from_bytes(data[start + size + 1 : start + size + 5], "little"):
        raise DamagedError(
            f"{path} is damaged: the checksum of the block at byte {start:,} is wrong. Nothing was imported. Next: copy it "
            f"again, or use an older one.",
            path=path,
            file=os.path.basename(path),
            block=None,
            arrays=[],
            expected=None,
            found=None,
        )
    if whole[-1] != 0:
        raise _unreadable(path, "it is packed, which TensorFlow does not do")
    return whole[:-1]


def _rows(block: memoryview) -> Iterator[tuple[bytes, bytes]]:
    """The rows of a block: keys share what they begin with; a list of places to start at follows them."""
    restarts = int.from_bytes(block[-4:], "little")
    end = len(block) - 4 - 4 * restarts
    if end < 0:
        raise ValueError("more restarts than bytes")
    key, place = b"", 0
    while place < end:
        shared, place = _varint(block, place)
        unshared, place = _varint(block, place)
        length, place = _varint(block, place)
        if shared > len(key) or place + unshared + length > end:
            raise ValueError("a row reaches beyond its block")
        key = key[:shared] + bytes(block[place : place + unshared])
        place += unshared
        yield key, bytes(block[place : place + length])
        place += length


# -- protocol buffers ----------------------------------------------------------------------------


def _varint(data: bytes | memoryview, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, place
    raise ValueError("a number of more than 64 bits")


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Numbers and values of the fields of a message."""
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        kind, size = key & 7, 0
        if kind == 0:
            value, place = _varint(data, place)
            yield key >> 3, value
            continue
        if kind == 2:
            size, place = _varint(data, place)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"a field of kind {kind}")
        if place + size > len(data):
            raise ValueError("a field reaches beyond its message")
        piece = data[place : place + size]
        place += size
        yield key >> 3, piece if kind == 2 else int.from_bytes(piece, "little")


def _entry(data: bytes) -> _Entry:
    known: dict[int, int | bytes] = {}
    sliced = False
    for number, value in _fields(data):
        sliced = sliced or number == 7
        known[number] = value
    shape = _shape(known.get(2, b""))
    numbers = [known.get(number, 0) for number in (1, 3, 4, 5, 6)]
    if not all(isinstance(number, int) and number < 1 << 63 for number in numbers):
        raise ValueError("a number of an entry is none")
    dtype, shard, start, size, checksum = (int(number) for number in numbers)
    return _Entry(dtype, shape, shard, start, size, checksum, sliced)


def _shape(data: int | bytes) -> tuple[int, ...]:
    if isinstance(data, int):
        raise TypeError("a shape is a number")
    found = []
    for number, value in _fields(data):
        if number == 2 and isinstance(value, bytes):
            extent = dict(_fields(value)).get(1, 0)
            if not isinstance(extent, int) or extent >= 1 << 48:
                raise ValueError("an extent that cannot be")
            found.append(extent)
    if len(found) > _MOST_DIMENSIONS:
        raise ValueError(f"{len(found)} dimensions")
    return tuple(found)
