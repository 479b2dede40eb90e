"""The metrics of a model, as one thing to track: what they have gathered in this epoch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from holdfast.keras import variables


class Measures:
    """Loss and metrics of a compiled model, which `fit` keeps beside it. Read and restored in place.

    Args:
        model: compiled and built.
        inside: whether an epoch is under way. Between two epochs nothing is kept: the next one begins them anew, and
            a launch may measure something else.

    """

    MAY_BE_MISSING = True  # from what was imported, or saved by another loop: they begin anew with each epoch

    def __init__(self, model: Any, inside: Callable[[], bool]) -> None:
        self.model, self.inside = model, inside

    def named(self) -> variables.Named:
        return variables.of_metrics(self.model.metrics)
