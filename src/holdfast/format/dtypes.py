"""The names of dtypes: their size in bytes, how a payload file stores them, what is not finite.

A payload file knows the native dtypes of the safetensors format below. Any other is stored as
U8 with one more axis of the item size; its true name is kept in `arrays.json`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from holdfast.errors import FormatError

NATIVE = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip
# C32 is a complex number of two F16.
FOREIGN = {"F8_E8M0": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1, "C32": 4, "C64": 8, "C128": 16}

NUMPY_PREFIX = "numpy:"
# Kind letter, number, unit of a time; U counts characters of four bytes. Objects and
# structures are not here: their bytes mean nothing, or need names, on another machine.
_DESCR = re.compile(r"([<>|=])([biufcmMSUV])(\d{1,9})(\[[^\[\]]*\])?")

_NUMPY = {
    "BOOL": "|b1", "U8": "|u1", "I8": "|i1", "I16": "<i2", "U16": "<u2", "F16": "<f2", "I32": "<i4",
    "U32": "<u4", "F32": "<f4", "I64": "<i8", "U64": "<u8", "F64": "<f8", "C64": "<c8", "C128": "<c16",
}  # fmt: skip


@lru_cache(maxsize=1024)
def item_size(dtype: str) -> int:
    """Bytes of one element; an unknown name is a `FormatError`."""
    size = NATIVE.get(dtype) or FOREIGN.get(dtype)
    if size is not None:
        return size
    kind, number = _numpy_kind(dtype)
    return 4 * number if kind == "U" else number


def stored(dtype: str, shape: Sequence[int]) -> tuple[str, tuple[int, ...]]:
    """The native dtype and the shape under which a payload file holds such an array."""
    if dtype in NATIVE:
        return dtype, tuple(shape)
    return "U8", (*shape, item_size(dtype))


def byte_count(dtype: str, shape: Sequence[int]) -> int:
    """Bytes of an array."""
    count = item_size(dtype)
    for extent in shape:
        count *= extent
    return count


def alignment(dtype: str) -> int:
    """The largest power of two that divides the item size (0 for items of no bytes).

    Packed in descending order of this, every array starts at a multiple of its own and no
    number straddles two blocks. For all but texts and raw bytes it is the item size.
    """
    size = item_size(dtype)
    return size & -size


def numpy_name(dtype: str) -> str:
    """The NumPy dtype that carries it; what NumPy lacks comes as unsigned integers of its width."""
    if dtype in _NUMPY:
        return _NUMPY[dtype]
    size = item_size(dtype)
    if dtype.startswith(NUMPY_PREFIX):
        return dtype.removeprefix(NUMPY_PREFIX)
    return "|u1" if size == 1 else f"<u{size}"


class NonFinite(NamedTuple):
    """Which bit patterns, read as integers, are NaN or infinite.

    Attributes:
        width: bytes of such an integer (half an element for complex numbers).
        order: "<" or ">".
        signed: as a signed integer, this or more; None if no such pattern exists.
        unsigned: as an unsigned integer, this or more; None likewise.
        lowest: the lowest signed integer is the only one (the FNUZ formats have no negative zero).

    """

    width: int
    order: str
    signed: int | None
    unsigned: int | None
    lowest: bool = False


def _ieee(width: int, mantissa: int, order: str = "<") -> NonFinite:
    sign = 1 << (8 * width - 1)
    infinity = sign - (1 << mantissa)
    return NonFinite(width, order, infinity, infinity | sign)


_NONFINITE = {
    "F16": _ieee(2, 10), "BF16": _ieee(2, 7), "F32": _ieee(4, 23), "F64": _ieee(8, 52),
    "C32": _ieee(2, 10), "C64": _ieee(4, 23), "C128": _ieee(8, 52),
    "F8_E5M2": _ieee(1, 2),
    "F8_E4M3": NonFinite(1, "<", 0x7F, 0xFF),  # no infinities, two NaN
    "F8_E8M0": NonFinite(1, "<", None, 0xFF),  # no sign, one NaN
    "F8_E4M3FNUZ": NonFinite(1, "<", None, None, lowest=True),
    "F8_E5M2FNUZ": NonFinite(1, "<", None, None, lowest=True),
}  # fmt: skip
_NUMPY_FLOATS = {"f2": (2, 10), "f4": (4, 23), "f8": (8, 52), "c8": (4, 23), "c16": (8, 52)}


@lru_cache(maxsize=1024)
def nonfinite(dtype: str) -> NonFinite | None:
    """The patterns to look for, or None for a dtype that has none (or whose layout varies)."""
    if dtype in NATIVE or dtype in FOREIGN:
        return _NONFINITE.get(dtype)
    kind, number = _numpy_kind(dtype)
    known = _NUMPY_FLOATS.get(f"{kind}{number}")
    order = ">" if dtype.startswith(NUMPY_PREFIX + ">") else "<"
    return _ieee(*known, order) if known else None


def _numpy_kind(dtype: str) -> tuple[str, int]:
    match = _DESCR.fullmatch(dtype.removeprefix(NUMPY_PREFIX)) if dtype.startswith(NUMPY_PREFIX) else None
    if match is None or (match[4] is not None and match[2] not in "mM"):
        raise FormatError(
            f"{dtype!r} is no dtype that a checkpoint can hold; known are {', '.join([*NATIVE, *FOREIGN])} "
            f"and plain NumPy ones such as 'numpy:<M8[ns]'.",
            found=dtype,
        )
    return match[2], int(match[3])
