"""Keras' own verbs: the callback that makes `fit` resumable, entire models, and TensorFlow 2's ways to save."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from holdfast.keras.callback import Callback
    from holdfast.keras.model import load_model, save_model
    from holdfast.keras.model_checkpoint import ModelCheckpoint
    from holdfast.keras.saves import latest_checkpoint
    from holdfast.keras.weights import load_weights, save_weights

__all__ = [
    "Callback",
    "ModelCheckpoint",
    "latest_checkpoint",
    "load_model",
    "load_weights",
    "save_model",
    "save_weights",
]

_HOMES = {
    "Callback": "callback",
    "ModelCheckpoint": "model_checkpoint",
    "latest_checkpoint": "saves",
    "load_model": "model",
    "load_weights": "weights",
    "save_model": "model",
    "save_weights": "weights",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from holdfast.state import adapters

    return getattr(adapters.part_of("keras", _HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
