"""The statistics of a torch module that a Keras model wraps: Keras saves them, and lists them among no variables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras


class Buffer:
    """A tensor of a torch module, in the words of a `keras.Variable`."""

    trainable = False

    def __init__(self, name: str, value: Any) -> None:
        self.name = self.path = name
        self.value = value
        self.shape, self.dtype, self.ndim = tuple(value.shape), value.dtype, value.ndim

    def assign(self, value: Any) -> None:
        self.value.copy_(keras.ops.convert_to_tensor(value, dtype=self.dtype))


def held_by(layer: Any) -> Iterator[Buffer]:
    """What a wrapped torch module has in its `state_dict` that is no parameter: statistics and counters."""
    if isinstance(layer, keras.layers.TorchModuleWrapper):
        parameters = dict(layer.module.named_parameters(remove_duplicate=False))
        for name, value in layer.module.state_dict().items():
            if name not in parameters and hasattr(value, "copy_"):
                yield Buffer(name.replace(".", "/"), value)
