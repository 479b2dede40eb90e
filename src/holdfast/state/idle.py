"""Verbs of an edge (`state.adapters` lists them) that have nothing to do: where gradients are values, where an optimizer
tells of no step, and where what is read is copied by the framework before it is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from holdfast.errors import FormatError


def special(_value: Any) -> tuple[str, Any] | None:
    """No small values of its own."""
    return None


def revive(tag: str, _value: Any) -> Any:
    raise FormatError(f"A value tagged {tag!r} is not known to this version of Holdfast.", found=tag)


def gradients(_things: Mapping[str, Any], _stepped: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    return {}, False


def set_gradients(_things: Mapping[str, Any], _values: Mapping[str, Any], _zeros: Any) -> None:
    """Nothing is pending between two steps."""


def flags(_thing: Any) -> dict[str, bool]:
    return {}


def set_flags(_thing: Any, _values: Mapping[str, bool]) -> None:
    """Whether something trains does not change."""


def on_step(_thing: Any, _notify: Any) -> None:
    return None


def sight_of(_thing: Any, _kind: str, _where: str, _peers: Mapping[str, Any]) -> None:
    """Everything is captured anew at each save."""


def late(_things: Mapping[str, Any], _states: Mapping[str, Any], _known: Any) -> None:
    """Nothing has to wait: everything is copied at once."""


def before_step(_things: Mapping[str, Any], _notify: Any) -> None:
    return None


def declared(_thing: Any) -> None:
    return None
