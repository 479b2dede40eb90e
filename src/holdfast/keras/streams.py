"""Keras' own random stream: the seed generator that everything without a seed of its own draws from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
from keras.src.backend.common import global_state  # it is reached by no public name

_GENERATOR, _SEED = "global_seed_generator", "global_random_seed"


def capture() -> dict[str, Any]:
    """The seed that was set, if one was, and the state of the generator, if it was used."""
    generator = global_state.get_global_attribute(_GENERATOR)
    state = None
    if generator is not None:
        state = [int(word) for word in keras.ops.convert_to_numpy(generator.state)]
    return {"seed": global_state.get_global_attribute(_SEED), "generator": state}


def restore(value: Mapping[str, Any]) -> None:
    """Sets what `capture` gave; draws from no other stream."""
    if value["seed"] is not None:
        global_state.set_global_attribute(_SEED, int(value["seed"]))
    state = value["generator"]
    if state is None:
        global_state.set_global_attribute(_GENERATOR, None)
        return
    generator = global_state.get_global_attribute(_GENERATOR)
    if generator is None:
        # A seed of its own: without one it would draw from Python's stream.
        generator = keras.random.SeedGenerator(seed=0)
        global_state.set_global_attribute(_GENERATOR, generator)
    generator.state.assign(keras.ops.convert_to_tensor(state, dtype=generator.state.dtype))


def seed(number: int) -> None:
    """As `keras.utils.set_random_seed`, without the streams of the others, which are seeded by themselves."""
    global_state.set_global_attribute(_SEED, number)
    global_state.set_global_attribute(_GENERATOR, None)
