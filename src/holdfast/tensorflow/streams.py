"""TensorFlow's random streams: the global seed, what it seeds single operations with, the global generator."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from holdfast.log import logger
from holdfast.state import arrays


def _context() -> Any:
    # TensorFlow sets its global seed by a public call and shows it by none.
    from tensorflow.python.eager import context

    return context.context()


def global_seed() -> int | None:
    """What `tf.random.set_seed` was called with last, if it was."""
    seed = getattr(_context(), "_seed", None)
    return seed if isinstance(seed, int) else None


def capture() -> dict[str, Any]:
    """The streams as plain values; without a global seed each operation draws a seed from the system."""
    found: dict[str, Any] = {"seed": global_seed()}
    inner = getattr(_context(), "_rng", None)
    if inner is not None:
        found["operations"] = arrays.python_state(inner)
    generator = _global_generator()
    if generator is not None:
        found["generator"] = state_of(generator)
    return found


def restore(value: Mapping[str, Any]) -> None:
    """Sets what `capture` gave. Data sets that were made before keep the seeds that they were made with."""
    if value["seed"] is not None:
        here = global_seed()
        if value["seed"] != here:
            logger.warning(
                "TensorFlow's global seed was %s when this was saved, and %s here: data sets that exist already shuffle "
                "otherwise. Next: tf.random.set_seed(%s), keras.utils.set_random_seed or Run(seed=…), before they are made.",
                value["seed"],
                "is not set" if here is None else f"is {here}",
                value["seed"],
            )
            tf.random.set_seed(value["seed"])
        inner = getattr(_context(), "_rng", None)
        if inner is not None and "operations" in value:
            arrays.set_python_state(value["operations"], inner)
    if "generator" in value:
        set_state(tf.random.get_global_generator(), value["generator"])


def _global_generator() -> Any:
    # Asking for it would make one.
    module = sys.modules.get("tensorflow.python.ops.stateful_random_ops")
    return getattr(module, "global_generator", None)


def state_of(generator: Any) -> list[int]:
    return [int(word) for word in generator.state.numpy().reshape(-1)]


def set_state(generator: Any, state: list[int]) -> None:
    generator.state.assign(tf.constant(state, generator.state.dtype))
