"""The monitored quantity: in which direction it is better, by Keras' rules, and whether a value is the best."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import keras

from holdfast.errors import UsageError


def direction(model: Any, monitor: str, mode: str) -> str:
    """Whether "min" or "max" of it is best; with "auto" as Keras 3 decides: less of a loss, a metric says it itself.

    Ask once the model's metrics are there: at the end of a batch, not before.

    Raises:
        UsageError: Keras cannot tell either.

    """
    if mode in ("min", "max"):
        return mode
    name = monitor.removeprefix("val_")
    found = "min" if name == "loss" else None
    for metric in _metrics(getattr(model, "metrics", None) or []):
        if metric.name == name and hasattr(metric, "_direction"):
            found = "max" if metric._direction == "up" else "min"
    if found is None:
        raise UsageError(
            f"monitor={monitor!r}: whether more or less of it is better is not known here, since it is no loss and no "
            f"metric that says so. Next: pass mode='max' or mode='min'.",
            found=monitor,
        )
    return found


def _metrics(metrics: Any) -> Iterator[Any]:
    """Metrics, with those inside of what `compile` bundles."""
    for metric in metrics:
        yield metric
        inner = getattr(metric, "metrics", None)
        if isinstance(inner, (list, tuple)):
            yield from inner


def is_better(value: Any, best: Any, way: str) -> bool:
    """Whether a value improves on the best so far (None: there is none), compared as Keras does, in its precision."""
    if best is None:
        return True
    compare = keras.ops.less if way == "min" else keras.ops.greater
    return bool(compare(value, best))


def is_number(value: Any) -> bool:
    """Whether something that was stored can be a best: neither NaN nor anything but a number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)
