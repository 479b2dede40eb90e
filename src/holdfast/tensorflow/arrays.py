"""Tensors and variables of TensorFlow as dtypes, shapes and bytes, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from holdfast.errors import UsageError
from holdfast.payload.array import Array, LazyArray
from holdfast.state import extended
from holdfast.state.arrays import Allocation
from holdfast.state.part import Plan, SavedPart

BATCHED: frozenset[str] = frozenset()  # each tensor is made by a call of its own


def describe(leaf: Any, where: str, *, check: bool = False) -> Array:
    """A tensor as the payload layer takes it: no copy in CPU memory.

    Tensors never change, and a variable copies its memory before it writes into what somebody reads.
    """
    dtype = leaf.dtype
    code = None if dtype in _WITHOUT_NUMBERS else extended.code_of(dtype.as_numpy_dtype)
    if code is None:
        raise UsageError(
            f"{where} is a TensorFlow tensor of {dtype.name}, which a checkpoint cannot hold: store numbers, or for "
            f"texts a list of them. Nothing was saved.",
            path=where,
            type=f"tensorflow.{dtype.name}",
        )
    if "CPU:" in leaf.device or not leaf.device:
        return extended.describe(leaf.numpy(), where, check=check)
    shape = tuple(leaf.shape)
    size = int(np.prod(shape, dtype=np.int64)) * dtype.size
    return LazyArray(code, shape, size, lambda: _bytes(leaf.numpy()), None, check)


def _bytes(host: np.ndarray[Any, Any]) -> Any:
    return np.ascontiguousarray(host).reshape(-1).view(np.uint8)


_WITHOUT_NUMBERS = {tf.string, tf.variant, tf.resource}


def allocate(dtype: str, shape: tuple[int, ...]) -> Allocation:
    """Host memory to read into; the finished tensor lies where TensorFlow puts new ones."""
    allocation = extended.allocate(dtype, shape)
    host = allocation.finish()
    return Allocation(allocation.bytes, lambda: tf.convert_to_tensor(host))


def plan_assign(variable: Any, name: str, part: SavedPart, plan: Plan) -> None:
    """Plans the restore of a saved array into a variable of its dtype and shape."""
    entry = part.entry(name)
    shape = tuple(variable.shape)
    code = extended.code_of(variable.dtype.as_numpy_dtype)
    if entry.shape != shape or entry.dtype != code:
        plan.differ(part.name, name, f"{entry.dtype} {list(entry.shape)}", f"{code} {list(shape)}")
        return
    target = extended.allocate(entry.dtype, shape)
    plan.read(part, name, target.bytes)
    plan.after(lambda: variable.assign(target.finish()))
