"""`checkpoint.json` and `arrays.json`: what they hold, and what makes them acceptable."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import product
from typing import Any, TypeVar

import msgspec

from holdfast.errors import FormatError, UsageError
from holdfast.format import dtypes, names, sealed

CHECKPOINT_FILE = "checkpoint.json"
ARRAYS_FILE = "arrays.json"
CARD_FILE = "README.md"

VERSION = (1, 0)
CHECKPOINT_LIMIT = 64 * 1024
CONFIG_LIMIT = 32 * 1024
NOTE_LIMIT = 16 * 1024
HISTORY_ROWS = 100
MAX_MARKS = 100
# What a reader takes: larger is refused before it is read into memory.
READ_LIMIT_CHECKPOINT = 16 << 20
READ_LIMIT_ARRAYS = 1 << 30

_MAX_SIZE = 2**63 - 1
_MAX_AXES = 64
_BLOCK_SIZES = (4096, 1 << 30)  # smaller ones would make a file of damage an endless list
_MAX_DIVIDED = 8  # axes along which an array is cut into chunks
_MAX_CORNERS = 1 << 18
_DIGEST = re.compile(r"[0-9a-f]{32}\Z")


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """Where a training stands: completed epochs, steps and, in the current epoch, batches and samples.

    `epoch` is also the index of the next epoch. `entered` says whether the epoch's `batches` had
    been entered, `exhausted` whether they had all been handed out.
    """

    epoch: int = 0
    step: int = 0
    batch: int = 0
    samples: int = 0
    entered: bool = False
    exhausted: bool = False

    def key(self) -> tuple[int, int, int]:
        return (self.epoch, self.step, self.batch)


class SmallFile(msgspec.Struct, frozen=True):
    """Size in bytes and xxh3-128 of a file (for a payload file: of its block digests)."""

    size: int
    digest: str


class Goal(msgspec.Struct, frozen=True):
    """What a loop was asked for: `kind` is "epochs" or "steps"."""

    kind: str
    value: int


class Manifest(msgspec.Struct, kw_only=True):
    """The content of `checkpoint.json`; nested values are encoded by `holdfast.state.tree`."""

    format: str = "holdfast-checkpoint"
    version: tuple[int, int] = VERSION
    run: str | None = None
    name: str
    sequence: int
    created: str
    progress: Progress
    metrics: dict[str, Any] = {}
    best: dict[str, Any] | None = None
    goal: Goal | None = None
    stopped: bool = False
    nan: list[str] = []
    note: str = ""
    config: Any = None
    init: dict[str, dict[str, Any]] | None = None
    declared: dict[str, dict[str, Any]] | None = None
    fresh: dict[str, Any] = {}
    loader: dict[str, Any] | None = None
    parts: dict[str, dict[str, Any]] = {}
    probe: dict[str, Any] | None = None
    environment: dict[str, Any] = {}
    files: dict[str, SmallFile] = {}
    history: list[dict[str, Any]] = []


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


def encode_manifest(manifest: Manifest) -> bytes:
    """The bytes of `checkpoint.json`, at most 64 KiB: what only people read gives way.

    First the oldest rows of the history, then the layers of the outlines.
    """
    content = msgspec.to_builtins(manifest, str_keys=True)
    marks = content["nan"]
    if len(marks) > MAX_MARKS:
        content["nan"] = [*marks[:MAX_MARKS], f"… and {len(marks) - MAX_MARKS} more"]
    rows: list[Any] = content["history"][-HISTORY_ROWS:]
    while True:
        content["history"] = rows
        data = sealed.encode(content)
        if len(data) <= CHECKPOINT_LIMIT:
            return data
        if not rows:
            break
        rows = rows[max(1, len(rows) // 8) :]
    for part in content["parts"].values():
        outline = part.get("outline", {})
        outline["more_layers"] = outline.get("more_layers", 0) + len(outline.pop("layers", []))
    data = sealed.encode(content)
    if len(data) > READ_LIMIT_CHECKPOINT:
        sizes = {key: len(sealed.dump(value)) for key, value in content.items()}
        largest = max(sizes, key=sizes.__getitem__)
        raise UsageError(
            f"{CHECKPOINT_FILE} would have {len(data):,} bytes, {sizes[largest]:,} of them in {largest!r}; a reader takes "
            f"{READ_LIMIT_CHECKPOINT:,}. Nothing was saved. Next: keep what is large in run.state.",
            expected=READ_LIMIT_CHECKPOINT,
            found=len(data),
        )
    return data


def decode_manifest(data: bytes, path: str) -> Manifest:
    """Checks digest, format version and every field; `DamagedError` or `FormatError`."""
    content = sealed.decode(data, path)
    check_version(content, "holdfast-checkpoint", path)
    manifest = _convert(content, Manifest, path)
    for name in manifest.files:
        names.check_file_name(name, path)
    _check_sizes([file.size for file in manifest.files.values()], path)
    _check_digests((file.digest for file in manifest.files.values()), path)
    progress = manifest.progress
    _check_sizes([manifest.sequence, progress.epoch, progress.step, progress.batch, progress.samples], path)
    return manifest


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
        arrays = _convert(content, Arrays, path)
    if not _BLOCK_SIZES[0] <= arrays.block_size <= _BLOCK_SIZES[1]:
        raise FormatError(f"{path} gives a block size of {arrays.block_size:,} bytes.", path=path)
    for name, record in arrays.files.items():
        names.check_file_name(name, path)
        _check_sizes([record.size], path)
        _check_digests(record.blocks, path)
        expected = -(-record.size // arrays.block_size)
        if len(record.blocks) != expected:
            raise FormatError(
                f"{path} lists {len(record.blocks)} block digests for {name}; "
                f"{record.size:,} bytes have {expected}.",
                path=path,
                expected=expected,
                found=len(record.blocks),
            )
    claimed = 0
    for part_name, part in arrays.parts.items():
        for name, entry in part.arrays.items():
            claimed += _check_entry(entry, arrays, f"{part_name}/{name}", path)
    _check_claims(arrays, claimed, path)
    return arrays


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
    """Several times faster, for what this version wrote: encoding the result gives the same bytes.

    So no key occurs twice and none is unknown. None leaves the judgement to the general way.
    """
    try:
        arrays = _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    if (arrays.format, arrays.version) != ("holdfast-arrays", VERSION):
        return None
    sealed.check_depth({"parts": {name: {"": part.skeleton} for name, part in arrays.parts.items()}}, path)
    return arrays if encode_arrays(arrays) == data else None


_decoder = msgspec.json.Decoder(Arrays)


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
    if reach > _MAX_SIZE:
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


def check_version(content: dict[str, Any], kind: str, path: str) -> None:
    """Refuses what is not of this kind, or is of a newer major version."""
    found = content.get("format")
    if found != kind:
        raise FormatError(f"{path} is not a {kind} file: its format is {found!r}.", path=path, found=found)
    version = content.get("version")
    if (
        not isinstance(version, list)
        or len(version) != 2
        or not all(isinstance(number, int) and number >= 0 for number in version)
    ):
        raise FormatError(f"{path} has no format version.", path=path, found=version)
    if version[0] > VERSION[0]:
        raise FormatError(
            f"{path} has format {version[0]}.{version[1]}; this Holdfast reads up to {VERSION[0]}.x. "
            f"Upgrade with: pip install --upgrade holdfast",
            path=path,
            expected=list(VERSION),
            found=version,
            newer=True,
        )


_T = TypeVar("_T")


def _convert(content: dict[str, Any], kind: type[_T], path: str) -> _T:
    try:
        return msgspec.convert(content, kind, strict=True)
    except (msgspec.ValidationError, UnicodeEncodeError) as error:  # the latter of text with half a character
        raise FormatError(f"{path} is not as the format says: {error}.", path=path) from error


def _check_digests(digests: Iterable[str], path: str) -> None:
    for digest in digests:
        if not _DIGEST.match(digest):
            raise FormatError(
                f"{path} holds the digest {digest[:40]!r}; a digest is 32 lower-case hexadecimal digits.",
                path=path,
                found=digest,
            )


def _check_sizes(sizes: list[int], path: str) -> None:
    for size in sizes:
        if not 0 <= size <= _MAX_SIZE:
            raise FormatError(f"{path} holds the size {size:,}, which no file has.", path=path, found=size)
