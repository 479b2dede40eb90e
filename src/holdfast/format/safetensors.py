"""The header of a payload file: the safetensors format, written and read as bytes.

Eight bytes of length (little-endian), that many bytes of JSON, then the data of all arrays
without a hole. We pad the JSON with spaces, so that the data starts at a multiple of 4096.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import msgspec

from holdfast.errors import FormatError, UsageError
from holdfast.format import dtypes

BLOCK = 16 << 20  # the unit of reading, writing, checking and repairing a payload file
ALIGNMENT = 4096
LENGTH_LIMIT = 100_000_000  # the limit of the ordinary safetensors library
METADATA = "__metadata__"
_MAX_SIZE = 2**63 - 1


class Entry(NamedTuple):
    """An array in a file: native dtype, shape, and its bytes counted from byte 0 of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


class _Described(msgspec.Struct, gc=False):
    """How the JSON describes an array; quicker to make and to write than a dict."""

    dtype: str
    shape: Sequence[int]
    data_offsets: tuple[int, int]


def build_header(
    entries: Iterable[tuple[str, str, Sequence[int], int, int]],
    metadata: Mapping[str, str] | None = None,
) -> bytes:
    """The length, the JSON and the padding; a multiple of 4096 bytes.

    Args:
        entries: (name, native dtype, shape, start, stop), in the order of the data; start and
            stop count from the first byte of the data.
        metadata: texts for `__metadata__`.

    """
    content: dict[str, Any] = {METADATA: dict(metadata)} if metadata else {}
    for name, dtype, shape, start, stop in entries:
        content[name] = _Described(dtype, shape, (start, stop))
    try:
        text = msgspec.json.encode(content)
    except UnicodeEncodeError as error:
        broken = next(name for name in content if not _encodable(name))
        raise UsageError(
            f"The array name {broken!r} cannot be stored: it is no valid Unicode text. Rename it.",
            found=broken,
        ) from error
    length = -(-(8 + len(text)) // ALIGNMENT) * ALIGNMENT - 8
    return length.to_bytes(8, "little") + text.ljust(length)


def _encodable(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def header_size(prefix: bytes, file_size: int, path: str) -> int:
    """Bytes from the start of the file to its data, from the file's first eight bytes."""
    if len(prefix) < 8 or file_size < 8:
        _refuse(
            path, f"has {min(file_size, len(prefix))} bytes; a safetensors file begins with 8 bytes of length"
        )
    length = int.from_bytes(prefix[:8], "little")
    if length > LENGTH_LIMIT:
        _refuse(
            path,
            f"announces a header of {length:,} bytes; the limit is {LENGTH_LIMIT:,}",
            length,
            LENGTH_LIMIT,
        )
    if length > file_size - 8:
        _refuse(
            path,
            f"announces a header of {length:,} bytes, but only {file_size - 8:,} follow",
            length,
            file_size - 8,
        )
    return 8 + length


def parse_header(data: bytes, file_size: int, path: str) -> dict[str, Entry]:
    """The arrays of a file, in the order of the data; everything in the header is doubted.

    Args:
        data: the file's first bytes, at least `header_size` of them.
        file_size: bytes of the whole file.
        path: for messages.

    """
    start = header_size(data[:8], file_size, path)
    if len(data) < start:
        _refuse(
            path,
            f"has a header of {start - 8:,} bytes, of which {len(data) - 8:,} could be read",
            len(data),
            start,
        )
    content = _load(data[8:start], path)
    metadata = content.pop(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        _refuse(path, f"has a {METADATA} that is no mapping of texts")
    entries = [(name, _entry(name, value, start, path)) for name, value in content.items()]
    entries.sort(key=lambda item: (item[1].start, item[1].stop))
    expected = start
    for name, entry in entries:
        if entry.stop > file_size:
            _refuse(
                path,
                f"has {file_size:,} bytes; its array {name!r} would end at byte {entry.stop:,}",
                entry.stop,
                file_size,
            )
        if entry.start != expected:
            what = "overlaps the array before it" if entry.start < expected else "leaves a hole before it"
            _refuse(
                path,
                f"is not packed: its array {name!r} {what}, at byte {entry.start:,}",
                entry.start,
                expected,
            )
        expected = entry.stop
    if expected != file_size:
        _refuse(
            path, f"has {file_size:,} bytes, but its arrays end at byte {expected:,}", file_size, expected
        )
    return dict(entries)


def _load(text: bytes, path: str) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) != len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            _refuse(path, f"has a header with the key {twice!r} twice", twice)
        return content

    if not text.startswith(b"{"):
        _refuse(path, "has a header that does not begin with '{'")
    try:
        content = json.loads(text.decode(), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} has a header that is no JSON: {error}.", path=path) from error
    if not isinstance(content, dict):
        _refuse(path, "has a header that is no JSON object")
    return content


def _entry(name: str, value: Any, base: int, path: str) -> Entry:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        _refuse(path, f"describes its array {name!r} otherwise than by dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or not (dtype in dtypes.NATIVE or dtype in dtypes.FOREIGN):
        _refuse(path, f"gives its array {name!r} the dtype {dtype!r}, which is not known", dtype)
    if not _counts(shape) or len(shape) > 64:
        _refuse(
            path, f"gives its array {name!r} a shape that is no list of at most 64 sizes below 2^63", shape
        )
    if not _counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        _refuse(
            path, f"gives its array {name!r} the data_offsets {offsets!r}; expected is [start, stop]", offsets
        )
    size = dtypes.byte_count(dtype, shape)
    if size != offsets[1] - offsets[0]:
        _refuse(
            path,
            f"gives its array {name!r} {offsets[1] - offsets[0]:,} bytes; {dtype} {shape} has {size:,}",
            offsets[1] - offsets[0],
            size,
        )
    reach = dtypes.item_size(dtype) * math.prod(extent for extent in shape if extent)
    if reach > _MAX_SIZE:  # [0, 2^62] has no bytes, and is still no array that anybody could make
        _refuse(path, f"gives its array {name!r} the shape {shape}, which would have {reach:,} bytes", shape)
    return Entry(dtype, tuple(shape), base + offsets[0], base + offsets[1])


def _counts(values: Any) -> bool:
    # `type` and not `isinstance`: true and false are integers to Python.
    return isinstance(values, list) and all(
        type(value) is int and 0 <= value <= _MAX_SIZE for value in values
    )


def _refuse(path: str, what: str, found: Any = None, expected: Any = None) -> NoReturn:
    raise FormatError(
        f"{path} {what}. It is no safetensors file, or it was cut.", path=path, found=found, expected=expected
    )
