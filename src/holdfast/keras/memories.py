"""The states of recurrent layers that hand them on from batch to batch, as one thing to track."""

from __future__ import annotations

from typing import Any

import keras

from holdfast.keras import variables


class Memories:
    """The states of a model's recurrent layers that hand them on from batch to batch (`stateful=True`).

    They belong to the training, and not to the weights: the same model is evaluated with batches of another size.
    """

    MAY_BE_MISSING = True  # from what was imported: they begin as they are

    def __init__(self, model: Any) -> None:
        self.model = model

    def named(self) -> variables.Named:
        """Name → variable; empty where no layer keeps a state."""
        found: variables.Named = {}
        for name, layer in variables.layers(self.model):
            if isinstance(layer, keras.layers.RNN) and layer.stateful and layer.states is not None:
                for number, state in enumerate(keras.tree.flatten(layer.states)):
                    found[f"{name}/{number}"] = state
        return found
