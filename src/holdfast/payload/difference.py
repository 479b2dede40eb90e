"""Two arrays of one dtype and shape: how many elements differ in their bits, and by how much."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from holdfast.format import dtypes
from holdfast.payload.array import Bytes

# Elements looked at in one go: what is needed beside the arrays is a few times so much.
_SLICE = 1 << 20

_FLOAT8 = {  # exponent bits, mantissa bits, bias, whether infinities exist, whether NaN is only 0x80
    "F8_E4M3": (4, 3, 7, False, False),
    "F8_E5M2": (5, 2, 15, True, False),
    "F8_E4M3FNUZ": (4, 3, 8, False, True),
    "F8_E5M2FNUZ": (5, 2, 16, False, True),
}


class Measure(NamedTuple):
    """How much two arrays differ.

    Attributes:
        elements: how many there are.
        differing: how many differ in their bits.
        max_abs: largest absolute difference of two finite elements; None when there is none.
        max_rel: largest difference relative to the larger magnitude of the two; likewise.
        nonfinite: differing pairs with a NaN or an infinity.

    """

    elements: int
    differing: int
    max_abs: float | None
    max_rel: float | None
    nonfinite: int


def measure(a: Any, b: Any, dtype: str) -> Measure | None:
    """None when the two are equal, bit for bit.

    Args:
        a, b: contiguous NumPy arrays of equal shape, as `state.arrays.allocate` makes them.
        dtype: the name of their dtype in the format.

    """
    item = dtypes.item_size(dtype)
    if a.size == 0 or item == 0:
        return None
    left, right = (np.asarray(side).reshape(-1).view(np.uint8).reshape(-1, item) for side in (a, b))
    differing = nonfinite = 0
    max_abs: float | None = None
    max_rel: float | None = None
    for start in range(0, len(left), _SLICE):
        x, y = left[start : start + _SLICE], right[start : start + _SLICE]
        places = np.flatnonzero(_differ(x, y, item))
        if not len(places):
            continue
        differing += len(places)
        numbers = _numbers(x[places], dtype), _numbers(y[places], dtype)
        if numbers[0] is None or numbers[1] is None:
            continue
        absolute, relative, without = _distances(numbers[0], numbers[1])
        nonfinite += without
        if len(absolute):
            max_abs = max(max_abs or 0.0, float(absolute.max()))
            max_rel = max(max_rel or 0.0, float(relative.max()))
    return Measure(len(left), differing, max_abs, max_rel, nonfinite) if differing else None


def _differ(x: Bytes, y: Bytes, item: int) -> Any:
    width = next(width for width in (8, 4, 2, 1) if item % width == 0)
    kind = np.dtype(f"u{width}")
    unequal = x.view(kind) != y.view(kind)
    return unequal.any(axis=1)


def _distances(x: Any, y: Any) -> tuple[Any, Any, int]:
    """Absolute and relative distances of the finite pairs, and how many are not finite."""
    if x.dtype.kind in "iu":
        # Modulo 2**64 the difference is exact, also where a signed one would overflow.
        high, low = np.maximum(x, y), np.minimum(x, y)
        absolute = (high.astype(np.uint64) - low.astype(np.uint64)).astype(np.float64)
        x, y = x.astype(np.float64), y.astype(np.float64)
        finite = np.ones(len(x), bool)
    else:
        finite = np.isfinite(x) & np.isfinite(y)
        x, y = x[finite], y[finite]
        with np.errstate(over="ignore", invalid="ignore"):
            absolute = np.abs(x - y)
    largest = np.maximum(np.abs(x), np.abs(y))
    with np.errstate(over="ignore", invalid="ignore"):
        relative = np.divide(absolute, largest, out=np.zeros_like(absolute), where=largest > 0)
    return absolute, relative, int(len(finite) - finite.sum())


def _numbers(rows: Bytes, dtype: str) -> Any:
    """Elements as 64-bit numbers (whole, floating or complex); None where they are no numbers."""
    with np.errstate(over="ignore", invalid="ignore"):  # a signalling NaN becomes a quiet one
        return _widened(rows, dtype)


def _widened(rows: Bytes, dtype: str) -> Any:
    flat = np.ascontiguousarray(rows).reshape(-1)
    if dtype in _FLOAT8:
        return _float8(dtype)[flat]
    if dtype == "F8_E8M0":
        return np.where(flat == 255, np.nan, np.ldexp(1.0, flat.astype(np.int64) - 127))
    if dtype == "BF16":
        return (flat.view(np.uint16).astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    if dtype == "C32":
        pairs = flat.view(np.float16).astype(np.float64)
        return pairs[0::2] + 1j * pairs[1::2]
    # A flag is compared as the byte it is.
    kind = np.dtype("|u1" if dtype == "BOOL" else dtypes.numpy_name(dtype))
    if kind.kind not in "iufc":
        return None
    wide = {"i": np.int64, "u": np.uint64, "f": np.float64, "c": np.complex128}[kind.kind]
    return flat.view(kind).astype(wide)


@functools.cache
def _float8(dtype: str) -> Any:
    """The value of each of the 256 bytes."""
    exponents, mantissas, bias, infinities, only_80 = _FLOAT8[dtype]
    values = np.empty(256)
    top = (1 << exponents) - 1
    for byte in range(256):
        sign = -1.0 if byte & 0x80 else 1.0
        exponent, mantissa = (byte & 0x7F) >> mantissas, byte & ((1 << mantissas) - 1)
        fraction = mantissa / (1 << mantissas)
        # Without an exponent there is no hidden one either.
        value = (fraction + (exponent > 0)) * 2.0 ** (max(exponent, 1) - bias)
        if only_80:
            value = np.nan if byte == 0x80 else value
        elif infinities and exponent == top:
            value = np.nan if mantissa else np.inf
        elif not infinities and byte & 0x7F == 0x7F:
            value = np.nan
        values[byte] = sign * value
    return values
