"""What a card says about Keras' things, and which Keras it was."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras

from holdfast.keras import variables

MAX_LAYERS = 200


def outline(thing: Any) -> dict[str, Any] | None:
    """Class, layers with parameter counts, and totals of a model; class and size of an optimizer."""
    if isinstance(thing, keras.layers.Layer):
        layers = [
            [name, f"{type(layer).__name__}({_shape(layer)})", _count(_own(layer))]
            for name, layer in _leaves(thing)
        ]
        return {
            "class": class_of(thing),
            "parameters": _count(thing.weights),
            "trainable": _count(thing.trainable_weights),
            "layers": layers[:MAX_LAYERS],
            "more_layers": max(0, len(layers) - MAX_LAYERS),
        }
    if isinstance(thing, keras.optimizers.Optimizer):
        return {"class": class_of(thing), "tensors": len(thing.variables)}
    return None


def _leaves(layer: Any, prefix: str = "", seen: set[int] | None = None) -> Iterator[tuple[str, Any]]:
    seen = set() if seen is None else seen
    for label, child in variables.children(layer):
        if id(child) in seen or isinstance(child, keras.layers.InputLayer):
            continue
        seen.add(id(child))
        if not child._layers or _own(child):
            yield f"{prefix}{label}", child
        yield from _leaves(child, f"{prefix}{label}/", seen)


def _own(layer: Any) -> list[Any]:
    return [*layer._trainable_variables, *layer._non_trainable_variables]


def _shape(layer: Any) -> str:
    return ", ".join(str(tuple(variable.shape)) for variable in _own(layer)[:2])


def _count(found: list[Any]) -> int:
    total = 0
    for variable in found:
        size = 1
        for extent in variable.shape:
            size *= int(extent)
        total += size
    return total


def class_of(thing: Any) -> str:
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


def environment() -> dict[str, Any]:
    return {"keras": str(keras.__version__), "keras_backend": variables.framework()}
