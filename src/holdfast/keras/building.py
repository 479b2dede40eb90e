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
    failure = None
    if variables.framework() == "tensorflow":  # the other backends have done so before their callbacks
        spec = getattr(getattr(iterator, "_distributed_dataset", None), "element_spec", None)
        if spec is not None:
            try:
                model._symbolic_build(data_batch=spec)
            except Exception as error:  # a model with a train_step of its own may never be called as a whole
                failure = error
    if not model.built and not model.variables:
        raise UsageError(
            f"{type(model).__name__} {model.name!r} is not built: it has no variables that could be restored. "
            f"Next: model.build(input_shape), or call it once on a batch, before fit.",
            found=model.name,
        ) from failure
    optimizer = getattr(model, "optimizer", None)
    if optimizer is not None and not optimizer.built:
        optimizer.build(model.trainable_variables)
