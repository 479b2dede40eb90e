"""The variables of a TensorFlow module, by the attributes that lead to them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import tensorflow as tf

from holdfast.errors import UsageError
from holdfast.state import adapters
from holdfast.state.part import FLAT, PartState, Plan, SavedPart
from holdfast.tensorflow import arrays


def named_variables(module: Any) -> dict[str, Any]:
    """Attribute path → variable, each once: that of a list's items has their number, of a mapping's its key.

    Keras layers are followed, and generators, whose state is a variable.
    """
    found: dict[str, Any] = {}
    seen: set[int] = set()
    for path, variable in _walk(module, (), set()):
        if id(variable) not in seen:
            seen.add(id(variable))
            found["/".join(path)] = variable
    return found


def _walk(thing: Any, path: tuple[str, ...], above: set[int]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if id(thing) in above:
        return
    if isinstance(thing, tf.Variable):
        yield (path or ("value",)), thing
        return
    if isinstance(thing, tf.random.Generator):
        yield (*path, "state"), thing.state
        return
    inside = above | {id(thing)}
    if adapters.home_framework(type(thing)) == "keras":
        for name, variable in adapters.edge("keras").named_variables(thing).items():
            yield (*path, name), variable
    elif isinstance(thing, tf.Module):
        for name in sorted(vars(thing)):
            if name not in _OWN:
                yield from _walk(vars(thing)[name], (*path, name), inside)
    elif isinstance(thing, Mapping):
        for key in sorted(thing, key=str):
            yield from _walk(thing[key], (*path, str(key)), inside)
    elif isinstance(thing, list | tuple):
        for number, item in enumerate(thing):
            yield from _walk(item, (*path, str(number)), inside)


# What tf.Module and its bases keep for themselves.
_OWN = set(vars(tf.Module())) | set(tf.Module._TF_MODULE_IGNORED_PROPERTIES)


def value_of(variable: Any) -> Any:
    """The value of TensorFlow's variable, or of Keras', as a tensor that does not change any more."""
    inner = variable if isinstance(variable, tf.Variable) else variable.value
    return inner.read_value() if isinstance(inner, tf.Variable) else inner


def capture(module: Any, kind: str, where: str) -> PartState:
    """A module's variables, or the one of a variable."""
    found = {}
    trains = False
    for name, variable in named_variables(module).items():
        value = value_of(variable)
        trained = bool(variable.trainable)
        trains = trains or trained
        found[name] = arrays.describe(value, f"{where}/{name}", check=trained and value.dtype.is_floating)
    return PartState(kind, {"$": FLAT, "v": "tensorflow"}, found, watch=trains)


def plan_restore(module: Any, part: SavedPart, plan: Plan) -> None:
    """Reads a saved mapping of names to arrays into the variables of those names."""
    if part.flat is None:
        raise UsageError(
            f"{part.where}: the part {part.name!r} is a {part.kind}, no mapping of names to arrays: a "
            f"{type(module).__name__} cannot take it. Next: load(parts=[{part.name!r}]) returns its value.",
            expected="tensorflow.Module",
            found=part.kind,
        )
    live = named_variables(module)
    for name, variable in live.items():
        if name not in part.entries:
            plan.lack(part.name, name)
        elif isinstance(variable, tf.Variable):
            arrays.plan_assign(variable, name, part, plan)
        else:
            adapters.edge("keras").plan_variable(variable, name, part, plan)
    for name in part.entries:
        if name not in live:
            plan.surplus(part.name, name)
