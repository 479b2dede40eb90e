"""Bringing a model's variables into being before its first batch, so that they can be restored."""

from __future__ import annotations

from typing import Any

from holdfast.errors import UsageError
from holdfast.keras import variables


def build(model: Any, iterator: Any) -> None:
    """Builds model, metrics and optimizer where they are not yet, without drawing a batch.

    Args:
        model: compiled.
        iterator: what hands out the batches of an epoch, or None where nobody knows.

    """
    spec = None
    if variables.framework() == "tensorflow":  # the other backends have done so before their callbacks
        spec = getattr(getattr(iterator, "_distributed_dataset", None), "element_spec", None)
        if spec is not None:
            model._symbolic_build(data_batch=spec)
    if not model.built:
        raise UsageError(
            f"{type(model).__name__} {model.name!r} is not built: it has no variables that could be restored. "
            f"Next: model.build(input_shape), or call it once on a batch, before fit.",
            found=model.name,
        )
    optimizer = getattr(model, "optimizer", None)
    if optimizer is not None and not optimizer.built:
        optimizer.build(model.trainable_variables)
