"""PyTorch's own verbs: entire models, and parts that store only what trains."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from holdfast.torch.model import load_model, save_model
    from holdfast.torch.partial import trainable

__all__ = ["load_model", "save_model", "trainable"]

_HOMES = {"trainable": "partial", "save_model": "model", "load_model": "model"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from holdfast.state import adapters

    return getattr(adapters.part_of("torch", _HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
