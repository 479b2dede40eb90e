"""Where a callback is called from: the list of callbacks, and the `fit` that runs them.

A callback is told its model and nothing else. Who is called beside it, and which data are trained on,
stands in the frames that called it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

import keras


class Surroundings:
    """What is around a callback while `fit` calls it.

    Attributes:
        callbacks: the list that holds it, or None.
        iterator: what hands out the batches of an epoch, or None.
        arguments: what `fit` was given besides the data, as far as it stands there: ``y``, ``sample_weight``, ``class_weight``.
        validation_data: what it validates on, as it was given, or None.

    """

    def __init__(self, callback: Any, model: Any) -> None:
        self.callbacks: Any = None
        self.iterator: Any = None
        self.arguments: dict[str, Any] = {}
        self.validation_data: Any = None
        self._code: CodeType | None = None
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and self.iterator is None:
            owner = frame.f_locals.get("self")
            if self.callbacks is None:
                if isinstance(owner, keras.callbacks.CallbackList) and _holds(owner, callback):
                    self.callbacks = owner
            elif owner is model and "epoch_iterator" in frame.f_locals:
                self.iterator, self._code = frame.f_locals["epoch_iterator"], frame.f_code
                self.arguments = {name: frame.f_locals.get(name) for name in _BESIDE}
                self.validation_data = frame.f_locals.get("validation_data")
            frame = frame.f_back

    @property
    def inside(self) -> Callable[[FrameType | None], bool] | None:
        """Tells of a frame whether that `fit` still runs there; None where that cannot be told."""
        code = self._code
        if code is None:
            return None

        def inside(frame: FrameType | None) -> bool:
            while frame is not None and frame.f_code is not code:
                frame = frame.f_back
            return frame is not None

        return inside


_BESIDE = ("y", "sample_weight", "class_weight")


def builds() -> bool:
    """Whether Keras looks at a first batch from here, to build a model, and trains on nothing."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name in ("_symbolic_build", "_maybe_symbolic_build"):
            return True
        frame = frame.f_back
    return False


def caller() -> Any:
    """The object whose method has called the method that asks this."""
    return sys._getframe(2).f_locals.get("self")


def _holds(callbacks: Any, callback: Any) -> bool:
    return any(one is callback for one in callbacks.callbacks)
