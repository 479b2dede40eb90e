"""Keras' optimizers: their variables by slot and parameter name, and what a script says of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import keras

from holdfast.errors import UsageError
from holdfast.keras import variables
from holdfast.state.part import PartState, Plan, SavedPart


def named(optimizer: Any, peers: Mapping[str, Any]) -> variables.Named:
    """``iterations``, ``learning_rate``, ``momentums/dense/kernel``, …: each variable of the optimizer.

    Parameters have the names of a tracked model; with several of them, its part goes before. Where no
    tracked thing has them they are numbered.
    """
    owners = _owners(peers)
    found = variables._Names()
    _walk(optimizer, "", owners, found)
    for variable in optimizer.variables:
        found.add(f"variables/{variable.name}", variable)
    return found.names


def _owners(peers: Mapping[str, Any]) -> dict[int, tuple[str, str]]:
    found: dict[int, tuple[str, str]] = {}
    for part, peer in peers.items():
        if isinstance(peer, keras.layers.Layer):
            for name, variable in variables.of_layer(peer).items():
                found.setdefault(id(variable), (part, name))
    return found


def _parameter_names(optimizer: Any, owners: Mapping[int, tuple[str, str]]) -> list[str]:
    known = [owners.get(id(variable)) for variable in optimizer._trainable_variables]
    parts = {owner[0] for owner in known if owner is not None}
    return [
        str(number) if owner is None else (owner[1] if len(parts) == 1 else "/".join(owner))
        for number, owner in enumerate(known)
    ]


def _walk(
    optimizer: Any, prefix: str, owners: Mapping[int, tuple[str, str]], found: variables._Names
) -> None:
    names = _parameter_names(optimizer, owners)
    for attribute, value in vars(optimizer).items():
        label = f"{prefix}{attribute.lstrip('_')}"
        if attribute in ("_variables", "_trainable_variables"):
            continue
        if isinstance(value, keras.Variable):
            found.add(label, value)
        elif isinstance(value, keras.optimizers.Optimizer):
            _walk(value, f"{label}/", owners, found)
        elif isinstance(value, list):
            for number, item in enumerate(value):
                if isinstance(item, keras.optimizers.Optimizer):
                    _walk(item, f"{label}/{number}/", owners, found)
                elif isinstance(item, keras.Variable):
                    name = names[number] if len(value) == len(names) else str(number)
                    found.add(f"{label}/{name}", item)


def capture(optimizer: Any, where: str, peers: Mapping[str, Any]) -> PartState:
    """All variables of an optimizer; before it is built it has only its own few."""
    # Not watched for standing still: `compile` makes one that a train_step of the user's may leave alone.
    return variables.capture(named(optimizer, peers), "keras.Optimizer", where)


def plan_restore(
    optimizer: Any, part: SavedPart, plan: Plan, peers: Mapping[str, Any], *, keep: tuple[str, ...] = ()
) -> None:
    """Reads a saved optimizer into the live one, which is built for it where it is not yet."""
    kind = f"{type(optimizer).__module__}.{type(optimizer).__qualname__}"
    if part.made_by and _algorithm(part.made_by) != _algorithm(
        kind
    ):  # another algorithm would take the state, and ignore it
        plan.differ(part.name, "class", part.made_by, kind)
        return
    if not (optimizer.built or set(part.entries) <= set(named(optimizer, peers))):
        build(optimizer, part, peers)
    variables.plan_restore(named(optimizer, peers), part, plan, "keras optimizer", _within(keep))


def _algorithm(kind: str) -> str:
    # Keras keeps some of its own twice, the second time for torch.
    return kind.rpartition(".")[2] if kind.startswith("keras.") else kind


def plan_restore_options(
    optimizer: Any, part: SavedPart, plan: Plan, peers: Mapping[str, Any], *, keep: tuple[str, ...] = ()
) -> None:
    """Reads only what is small: the counters and the learning rate."""
    small = {
        name: variable
        for name, variable in named(optimizer, peers).items()
        if variable.ndim == 0 and name in part.entries
    }
    some = {name: entry for name, entry in part.entries.items() if name in small}
    options = SavedPart(part.name, part.kind, part.skeleton, some, part.where, part.made_by)
    variables.plan_restore(small, options, plan, "keras optimizer", _within(keep))


def _within(names: tuple[str, ...]) -> tuple[str, ...]:
    # What scales the loss wraps the optimizer that the names speak of.
    return (*names, *(f"inner_optimizer/{name}" for name in names))


def build(optimizer: Any, part: SavedPart, peers: Mapping[str, Any]) -> None:
    """Gives an optimizer its variables, as its first step would: for those parameters that have saved slots."""
    slots = {name.removeprefix("inner_optimizer/").partition("/")[2] for name in part.entries}
    trained = [
        variable
        for model_part, peer in peers.items()
        if isinstance(peer, keras.layers.Layer)
        for name, variable in variables.of_layer(peer).items()
        if not {name, f"{model_part}/{name}"}.isdisjoint(slots)
    ]
    if not trained:
        raise UsageError(
            f"{part.where}: the optimizer {part.name!r} is not built yet, so the saved slots have no place to go to, and no "
            f"model that is built and has these parameters is tracked beside it. Next: "
            f"optimizer.build(model.trainable_variables) before the loop, as its first step would do.",
            path=part.where,
            found=part.name,
        )
    optimizer.build(trained)


# -- what a script says ----------------------------------------------------------------------------


def declared(optimizer: Any) -> dict[str, Any] | None:
    """The settings of an optimizer as they stand now: plain values; a schedule as its own settings."""
    found: dict[str, Any] = {}
    inner = getattr(optimizer, "inner_optimizer", None)
    if inner is not None:
        found.update(declared(inner) or {})
    try:
        settings = optimizer.get_config()
    except Exception:  # a class of the user's that does not say
        return found or None
    for name, value in _plain(settings):
        found.setdefault(name, value)
    return found


def _plain(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if name in ("name", "inner_optimizer"):
            continue
        try:
            yield name, json.loads(json.dumps(value))
        except (TypeError, ValueError):  # a function, say: code is not compared
            continue
