"""Which variable of a built optimizer an imported array belongs to, in whatever way Keras 2 named it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from holdfast.exchange import keras_files, tensorflow_files
from holdfast.keras import optimizers, variables
from holdfast.keras.pairing import Pairing, Shapes, checked, find

# What Keras 3 keeps of each weight (the attribute that holds it), by its names in Keras 2.
_SLOTS = {
    "m": ("momentums", "m"), "v": ("velocities",), "vhat": ("velocity_hats",), "v_hat": ("velocity_hats",),
    "rms": ("velocities",), "mg": ("average_gradients",), "average_gradient": ("average_gradients",),
    "u": ("u",), "momentum": ("momentums",), "velocity": ("velocities",), "velocity_hat": ("velocity_hats",),
    "accumulator": ("accumulators",), "linear": ("linears",), "average": ("model_variables_moving_average",),
    "accum_grad": ("accumulated_grads",), "accum_var": ("accumulated_delta_vars",),
    "accumulated_grad": ("accumulated_grads",), "accumulated_delta_var": ("accumulated_delta_vars",),
    "norm": ("u",),
}  # fmt: skip
_COUNTERS = ("iteration", "iterations", "iter", "_iterations")
_RATES = ("learning_rate", "_learning_rate", "current_learning_rate", "_current_learning_rate")
# Numbers that Keras 2 kept beside the state, and Keras 3 keeps in the optimizer's own options.
_OPTIONS = ("beta_1", "beta_2", "decay", "rho", "momentum", "epsilon", *_RATES)


class _Live(NamedTuple):
    """What a built optimizer has.

    Attributes:
        single: its own numbers by name.
        slots: slot → the variables that it keeps, in the order of the weights that train.
        owners: slot → id of the weight → the variable.

    """

    single: dict[str, Any]
    slots: dict[str, list[Any]]
    owners: dict[str, dict[int, Any]]


def _look_at(optimizer: Any, model: Any) -> _Live:
    weights = variables.of_layer(model)
    found = _Live({}, {}, {})
    for name, variable in optimizers.named(optimizer, {"model": model}).items():
        slot, slash, weight = name.partition("/")
        if not slash or weight not in weights:
            found.single[name] = variable
        else:
            found.slots.setdefault(slot, []).append(variable)
            found.owners.setdefault(slot, {})[id(weights[weight])] = variable
    return found


def pair_optimizer(
    kind: str, shapes: Shapes, optimizer: Any, model: Any, weights: Mapping[str, Any] | None = None
) -> Pairing:
    """Pairs the variables of a built optimizer with the arrays of an imported part of that kind.

    Args:
        weights: for TensorFlow's slots, the live variable of each array of the model; where it is not known,
            it is looked for.

    """
    if kind == keras_files.OPTIMIZER:
        return _pair_numbers(shapes, optimizer)
    live = _look_at(optimizer, model)
    if any(tensorflow_files.SLOT in name for name in shapes):
        return _pair_slots(shapes, optimizer, live, model, weights or {})
    return _pair_in_order(shapes, optimizer, live)


def _pair_numbers(shapes: Shapes, optimizer: Any) -> Pairing:
    """Keras' own numbers; Keras 2 had no variable for the learning rate among them."""
    live = list(optimizer.variables)
    if len(shapes) == len(live) - 1:
        live = [variable for variable in live if variable.name not in _RATES]
    numbered = {f"optimizer/vars/{number}": variable for number, variable in enumerate(live)}
    return checked(
        [(numbered[name], name) for name in shapes if name in numbered],
        shapes,
        missing=[name for name in numbered if name not in shapes],
        unexpected=[name for name in shapes if name not in numbered],
    )


def _pair_slots(
    shapes: Shapes, optimizer: Any, live: _Live, model: Any, weights: Mapping[str, Any]
) -> Pairing:
    """TensorFlow's slots: each names its weight."""
    pairs, unexpected = [], []
    for name in shapes:
        path, mark, rest = name.partition(tensorflow_files.SLOT)
        if mark:
            weight = weights.get(path)
            weight = find(model, path) if weight is None else weight
            slot = _slot(rest.rpartition("/")[2], live)
            found = live.owners.get(slot or "", {}).get(id(weight))
        else:
            found = _single(name, live)
        if found is not None:
            pairs.append((found, name))
        elif mark or not _is_option(name):
            unexpected.append(name)
    return _with_missing(pairs, shapes, optimizer, unexpected)


def _slot(name: str, live: _Live) -> str | None:
    if name in live.slots:
        return name
    return next((slot for slot in _SLOTS.get(name, ()) if slot in live.slots), None)


def _single(name: str, live: _Live) -> Any | None:
    base = name.rpartition("/")[2].lower()
    if base in _COUNTERS:
        return live.single.get("iterations")
    return live.single.get("learning_rate") if base in _RATES else None


def _is_option(name: str) -> bool:
    return name.rpartition("/")[2] in _OPTIONS and name.count("/") <= 1


def _with_missing(
    pairs: list[tuple[Any, str]], shapes: Shapes, optimizer: Any, unexpected: list[str]
) -> Pairing:
    taken = {id(variable) for variable, _ in pairs}
    # A learning rate that the old optimizer computed, or kept as an option, stays the live one's.
    missing = [v.path for v in optimizer.variables if id(v) not in taken and v.name not in _RATES]
    return checked(pairs, shapes, missing, unexpected)


def _pair_in_order(shapes: Shapes, optimizer: Any, live: _Live) -> Pairing:
    """Old HDF5 files, and late optimizers of TensorFlow: in each slot the weights come in the same order."""
    pairs, unexpected = [], []
    groups: dict[str, list[str]] = {}
    numbered = all(
        re.fullmatch(r"_variables/\d+", name) or _single(name, live) is not None for name in shapes
    )
    for name in sorted(shapes, key=_number) if numbered else shapes:
        found = None if re.fullmatch(r"_variables/\d+", name) else _single(name, live)
        if found is not None:
            pairs.append((found, name))
        elif numbered or not _is_option(name):
            groups.setdefault(_slot_in(name, live) or "", []).append(name)
    if numbered:  # all of them, in the order in which they were made
        known = {id(variable) for variable, _ in pairs}
        wanted = {"": [variable for variable in optimizer.variables if id(variable) not in known]}
    else:
        wanted = live.slots
    for slot, names in groups.items():
        variables_ = wanted.get(slot, [])
        count = min(len(names), len(variables_))
        pairs += list(zip(variables_[:count], names[:count], strict=True))
        unexpected += names[count:]
    return _with_missing(pairs, shapes, optimizer, unexpected)


def _number(name: str) -> tuple[int, str]:
    found = re.search(r"\d+\Z", name)
    return (int(found[0]) if found else -1, name)


def _slot_in(name: str, live: _Live) -> str | None:
    """The slot in a name: ``Adam/m/dense/kernel``, ``Adam/dense/kernel/m``, ``adam/dense_kernel_momentum``."""
    pieces = name.split("/")
    for piece in (pieces[-1], *pieces[1:2]):
        if piece in _SLOTS and (slot := _slot(piece, live)) is not None:
            return slot
    ends = sorted((word for word in _SLOTS if pieces[-1].endswith(f"_{word}")), key=len, reverse=True)
    return next((slot for word in ends if (slot := _slot(word, live)) is not None), None)
