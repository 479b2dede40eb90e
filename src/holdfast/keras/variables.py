"""Keras' variables: names that are the same at each launch and on each backend, their capture, their restore.

A variable's name leads from the tracked thing to it: for each layer on the way the attribute that holds
it, else the name that the script gave it, else its class and a number among its siblings. Keras' own
paths count the layers and the nameless variables that a process has made (`dense_7`, `variable_3`), so
a model built twice would not fit itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import keras

from holdfast.errors import UsageError
from holdfast.keras import buffers
from holdfast.state import adapters, extended
from holdfast.state.part import FLAT, PartState, Plan, SavedPart

Named = dict[str, Any]
"""Name → keras.Variable, each variable once."""


def of_layer(layer: Any) -> Named:
    """The variables of a layer or model: weights, and the states of its seed generators; no metrics."""
    found = _Names()
    _walk(layer, "", found, set())
    for variable in layer.variables:  # a class that keeps some in its own way
        found.add(variable.path, variable)
    return found.names


class _Names:
    def __init__(self) -> None:
        self.names: Named = {}
        self._seen: set[int] = set()

    def add(self, name: str, variable: Any) -> None:
        if id(variable) not in self._seen:
            self._seen.add(id(variable))
            self.names[_unused(name, self.names)] = variable


def _unused(name: str, taken: Iterable[str]) -> str:
    number, found = 1, name
    while found in taken:
        found, number = f"{name}_{number}", number + 1
    return found


def _walk(layer: Any, prefix: str, found: _Names, done: set[int]) -> None:
    if id(layer) in done:
        return
    done.add(id(layer))
    held = _attributes(layer)
    for variable in (*layer._trainable_variables, *layer._non_trainable_variables):
        name = str(variable.name)
        if _COUNTED.fullmatch(name):  # it was given none
            name = held.get(id(variable), "variable")
        found.add(f"{prefix}{name}", variable)
    for generator in layer._seed_generators:
        found.add(f"{prefix}{generator.state.name}", generator.state)
    for buffer in buffers.held_by(layer):
        found.add(f"{prefix}{buffer.name}", buffer)
    for label, child in children(layer):
        _walk(child, f"{prefix}{label}/", found, done)


_COUNTED = re.compile(
    r"variable(_\d+)?"
)  # what Keras calls those without a name, by their number in the process


def children(layer: Any) -> Iterator[tuple[str, Any]]:
    """The layers that a layer holds, with the labels that its names are made of."""
    held = _attributes(layer)
    taken: set[str] = set()
    for child in layer._layers:
        label = _unused(held.get(id(child)) or _own_label(child), taken)
        taken.add(label)
        yield label, child


def layers(layer: Any, name: str = "", seen: set[int] | None = None) -> Iterator[tuple[str, Any]]:
    """A layer and all that it holds, each once, by name; a layer comes before those in it."""
    seen = set() if seen is None else seen
    if id(layer) in seen:
        return
    seen.add(id(layer))
    yield name, layer
    for label, child in children(layer):
        yield from layers(child, f"{name}/{label}" if name else label, seen)


def _attributes(layer: Any) -> dict[int, str]:
    """Id of a layer or a variable → the attribute that holds it; a list's items have their numbers."""
    found: dict[int, str] = {}
    attributes = dict(vars(layer))
    attributes.update(attributes.get("_modules") or {})  # where torch puts them
    for name, value in attributes.items():
        if name.startswith("_"):
            continue
        if isinstance(value, keras.layers.Layer | keras.Variable):
            found.setdefault(id(value), name)
        elif isinstance(value, Mapping):
            for key, item in value.items():
                found.setdefault(id(item), f"{name}/{key}")
        elif isinstance(value, list | tuple):
            for number, item in enumerate(value):
                found.setdefault(id(item), f"{name}/{number}")
    return found


def _own_label(layer: Any) -> str:
    plain = _snake(type(layer).__name__)
    return plain if re.fullmatch(rf"{re.escape(plain)}(_\d+)?", layer.name) else str(layer.name)


def _snake(name: str) -> str:
    text = re.sub(r"\W+", "", name)
    text = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", text)
    return re.sub("([a-z])([A-Z])", r"\1_\2", text).lower()


def of_metrics(metrics: Iterable[Any]) -> Named:
    """The variables of several metrics, by the metric's name."""
    found = _Names()
    for metric in metrics:
        for variable in metric.variables:
            found.add(f"{metric.name}/{variable.name}", variable)
    return found.names


# -- capture -----------------------------------------------------------------------------------


def framework() -> str:
    """Whose arrays the values are."""
    return str(keras.backend.backend())


def value_of(variable: Any) -> Any:
    """A variable's value as an array of its backend."""
    value = variable.value
    return value.read_value() if hasattr(value, "read_value") else value


def capture(named: Named, kind: str, where: str, *, watch: bool = False) -> PartState:
    """Named variables as they are now; not-a-number is looked for in those that train."""
    home = framework()
    edge = adapters.edge(home)
    found = {
        name: edge.describe(value_of(variable), f"{where}/{name}", check=watch and _trains(variable))
        for name, variable in named.items()
    }
    return PartState(kind, {"$": FLAT, "v": home}, found, watch=watch)


def _trains(variable: Any) -> bool:
    return bool(variable.trainable) and "float" in str(variable.dtype)


# -- restore -----------------------------------------------------------------------------------


def plan_restore(named: Named, part: SavedPart, plan: Plan, target: str, keep: Iterable[str] = ()) -> None:
    """Reads a saved mapping of names to arrays into the variables of those names.

    Args:
        named: the live variables.
        target: what they belong to, for the error when the part is no such mapping.
        keep: names that keep their live values.

    """
    if part.flat is None:
        raise UsageError(
            f"{part.where}: the part {part.name!r} is a {part.kind}, no mapping of names to arrays: a {target} "
            f"cannot take it. Next: load(parts=[{part.name!r}]) returns its value.",
            expected=target,
            found=part.kind,
        )
    for name in part.entries:
        if name not in named:
            plan.surplus(part.name, name)
    fitting: Named = {}
    for name, variable in named.items():
        if name not in part.entries:
            plan.lack(part.name, name)
        elif name not in keep:
            fitting[name] = variable
    if framework() == "torch":  # memory that can be read into
        same = {
            name: variable.value
            for name, variable in fitting.items()
            if not _counts_otherwise(variable, part.entry(name).dtype)
        }
        adapters.edge("torch").plan_arrays(same, part, plan)
        fitting = {name: variable for name, variable in fitting.items() if name not in same}
    for name, variable in fitting.items():
        plan_variable(variable, name, part, plan)


def plan_variable(variable: Any, name: str, part: SavedPart, plan: Plan) -> None:
    """Plans the restore of one array into one variable."""
    entry = part.entry(name)
    shape, code = tuple(variable.shape), code_of(variable)
    if entry.shape != shape or (entry.dtype != code and not _counts_otherwise(variable, entry.dtype)):
        plan.differ(part.name, name, f"{entry.dtype} {list(entry.shape)}", f"{code} {list(shape)}")
        return
    target = extended.allocate(entry.dtype, shape)
    plan.read(part, name, target.bytes)

    def assign() -> None:
        value = target.finish()
        if entry.dtype != code:
            value = value.astype(keras.backend.standardize_dtype(variable.dtype))
        variable.assign(value)

    plan.after(assign)


def _counts_otherwise(variable: Any, dtype: str) -> bool:
    """Whether both are whole numbers, of different widths: iterations and seeds, which each backend counts in its own."""
    code = code_of(variable)
    return code != dtype and {code, dtype} <= _WHOLE


_WHOLE = {"I32", "U32", "I64", "U64"}


def code_of(variable: Any) -> str | None:
    """The format's name of a variable's dtype."""
    name = keras.backend.standardize_dtype(variable.dtype)
    if name == "bfloat16" or name.startswith("float8"):
        import ml_dtypes

        return extended.code_of(getattr(ml_dtypes, name, None) or ml_dtypes.bfloat16)
    return extended.code_of(name)
