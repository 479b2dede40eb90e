"""NumPy arrays with the dtypes that NumPy lacks, as JAX and TensorFlow show them: those of `ml_dtypes`."""

from __future__ import annotations

from typing import Any

import numpy as np

from holdfast.payload.array import Array, HostArray
from holdfast.state import arrays
from holdfast.state.arrays import Allocation

_CODES = {
    "bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e8m0fnu": "F8_E8M0",
    "float8_e4m3fnuz": "F8_E4M3FNUZ", "float8_e5m2fnuz": "F8_E5M2FNUZ",
}  # fmt: skip
_NAMES = {code: name for name, code in _CODES.items()}


def code_of(dtype: Any) -> str | None:
    """The format's name of a NumPy dtype, with those of `ml_dtypes`; None for what is none of both."""
    kind = np.dtype(dtype)
    return _CODES.get(kind.name) or arrays.code_of(kind)


def describe(host: np.ndarray[Any, Any], where: str, *, check: bool = False) -> Array:
    """Such an array as the payload layer takes it."""
    code = _CODES.get(host.dtype.name)
    if code is None:
        return arrays.describe(host, where, check=check)
    view = np.ascontiguousarray(host).reshape(-1).view(np.uint8)
    return HostArray(code, host.shape, view, None, check)


def allocate(dtype: str, shape: tuple[int, ...]) -> Allocation:
    """A new array of exactly that dtype."""
    if dtype not in _NAMES:
        return arrays.allocate(dtype, shape)
    host = np.empty(shape, _kind(dtype))
    return Allocation(host.reshape(-1).view(np.uint8), lambda: host)


def _kind(dtype: str) -> np.dtype[Any]:
    import ml_dtypes

    found: np.dtype[Any] = np.dtype(getattr(ml_dtypes, _NAMES[dtype]))
    return found
