"""The metrics of a model, as one thing to track: what they have gathered in this epoch."""

from __future__ import annotations

from typing import Any

from holdfast.keras import variables


class Measures:
    """Loss and metrics of a compiled model, which `fit` keeps beside it. Read and restored in place."""

    MAY_BE_MISSING = True  # from what was imported, or saved by another loop: they begin anew with each epoch

    def __init__(self, model: Any) -> None:
        self.model = model

    def named(self) -> variables.Named:
        return variables.of_metrics(self.model.metrics)
