"""Iterators over data sets: their place, by TensorFlow's own means.

An iterator's state is what TensorFlow would write into a checkpoint of its own: positions, the seeds of
shuffles, and what is in their buffers. It fits an iterator over the same data set, made with the same
global seed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from holdfast.errors import FormatError, MismatchError, UsageError
from holdfast.state import arrays
from holdfast.state.part import FLAT, PartState, Plan, SavedPart

_STATE = "state"


def is_iterator(thing: Any) -> bool:
    """Whether a thing is an iterator over a data set that can be asked for its place."""
    return isinstance(thing, tf.data.Iterator) and hasattr(thing, "_serialize_to_tensors")


def serialize(iterator: Any, where: str) -> bytes:
    """The place of an iterator. Good for iterators over data sets of the same elements, made with the same seeds."""
    try:
        state = next(iter(iterator._serialize_to_tensors().values()))
        found: bytes = tf.io.serialize_tensor(state).numpy()
    except tf.errors.OpError as error:
        reason = (error.message or str(error)).rpartition("}}")[2].split("[Op:")[0].strip()
        raise UsageError(
            f"{where}: TensorFlow cannot tell the place of this iterator: {reason} Nothing was saved. "
            f"Next: a pipeline without Python functions and without random operations that keep a state "
            f"(tf.random.stateless_uniform instead of tf.random.uniform); or leave the iterator out.",
            path=where,
            found=reason,
        ) from error
    return found


def deserialize(iterator: Any, state: bytes, where: str) -> None:
    """Brings an iterator to a place that `serialize` gave."""
    try:
        tensor = tf.io.parse_tensor(state, tf.variant)
        iterator._restore_from_tensors({"_STATE": tensor})
    except tf.errors.OpError as error:
        raise MismatchError(
            f"{where}: the saved place does not fit this iterator: {error.message}. Next: build the data set as at the "
            f"save, or leave the iterator out with fresh=[…].",
            missing=[],
            unexpected=[],
            different=[where],
            target_changed=True,
        ) from error


def capture(iterator: Any, where: str) -> PartState:
    state = np.frombuffer(serialize(iterator, where), np.uint8)
    return PartState(
        "tensorflow.Iterator", {"$": FLAT, "v": "numpy"}, {_STATE: arrays.describe(state, where)}
    )


def plan_restore(iterator: Any, part: SavedPart, plan: Plan) -> None:
    if part.kind != "tensorflow.Iterator" or set(part.entries) != {_STATE}:
        raise UsageError(
            f"{part.where}: the part {part.name!r} is a {part.kind}; an iterator over a data set cannot take it.",
            expected="tensorflow.Iterator",
            found=part.kind,
        )
    entry = part.entry(_STATE)
    if entry.dtype != "U8" or len(entry.shape) != 1:
        raise FormatError(
            f"{part.where}: the part {part.name!r} holds no place of an iterator.", path=part.where
        )
    target = arrays.allocate(entry.dtype, entry.shape)
    plan.read(part, _STATE, target.bytes)
    where = f"{part.where}: part {part.name!r}"
    plan.after(lambda: deserialize(iterator, target.finish().tobytes(), where))
