"""Keras' own verbs: the callback that makes `fit` resumable, and entire models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from holdfast.keras.callback import Callback
    from holdfast.keras.model import load_model, save_model

__all__ = ["Callback", "load_model", "save_model"]

_HOMES = {"Callback": "callback", "load_model": "model", "save_model": "model"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
