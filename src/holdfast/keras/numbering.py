"""The rest of an epoch that was interrupted: it has fewer batches, and they have the numbers that they had."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from holdfast.keras.surroundings import Surroundings

_CALLS = ("on_train_batch_begin", "on_train_batch_end", "on_batch_begin", "on_batch_end")


def begin_at(around: Surroundings, offset: int) -> None:
    """Lets Keras know of the batches that are left, and callbacks of their true numbers."""
    iterator, callbacks = around.iterator, around.callbacks
    if iterator.num_batches is not None:
        iterator._num_batches -= offset
    for name in _CALLS:
        setattr(callbacks, name, _shifted(getattr(callbacks, name), offset))


def begin_anew(around: Surroundings, offset: int) -> None:
    """The next epoch is whole again."""
    if around.iterator._num_batches is not None:
        around.iterator._num_batches += offset
    for name in _CALLS:
        delattr(around.callbacks, name)


def _shifted(call: Callable[..., None], offset: int) -> Callable[..., None]:
    def shifted(batch: int, logs: Any = None) -> None:
        call(batch + offset, logs)

    return shifted
