"""Which variable of a live Keras model an imported array belongs to.

Files of other origin name their arrays by layers as they were called, or by the attributes that led to
them, in Keras 2 or 3; a live model of the same structure has other names. So what is found by name is
found by name, and the rest by order, layer by layer, as Keras itself loads old files. Shapes must fit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from holdfast.errors import UsageError
from holdfast.exchange import keras_files, plain, tensorflow_files
from holdfast.format import dtypes
from holdfast.keras.pairing import Pairing, Shapes, checked, follow
from holdfast.keras.slots import pair_optimizer
from holdfast.state.part import Plan, SavedPart

KINDS = frozenset(
    {
        keras_files.WEIGHTS,
        keras_files.LEGACY,
        keras_files.OPTIMIZER,
        keras_files.LEGACY_OPTIMIZER,
        tensorflow_files.WEIGHTS,
        tensorflow_files.OPTIMIZER,
    }
)


def pair_weights(kind: str, shapes: Shapes, model: Any) -> Pairing:
    """Pairs the weights of a model with the arrays of an imported part of that kind."""
    if kind == keras_files.WEIGHTS:
        return _pair_paths(shapes, paths_of(model))
    if kind == keras_files.LEGACY:
        return _pair_layers(shapes, model)
    return _pair_attributes(shapes, model)


# -- Keras 3: by the place in the model --------------------------------------------------------------


def paths_of(model: Any) -> dict[str, Any]:
    """Where Keras keeps each variable in a .weights.h5 file: ``layers/dense/vars/0`` → the variable."""
    from keras.src.saving import saving_lib

    class Paths(saving_lib.H5IOStore):  # type: ignore[misc]
        """Takes what a file would, and notes where."""

        def __init__(self) -> None:
            self.found: dict[str, Any] = {}
            self.place = ""

        def __bool__(self) -> bool:
            return True

        def make(self, path: str, metadata: Any = None) -> Any:  # noqa: ARG002
            self.place = f"{path}/vars" if path else "vars"
            return self

        def __setitem__(self, key: str, value: Any) -> None:
            self.found[f"{self.place}/{key}"] = value

    store = Paths()
    saving_lib._save_state(model, store, None, "", set())
    return store.found


def has_own_ways(model: Any) -> bool:
    """Whether a layer of the model saves something else than its variables, which only its own code can load."""
    return not all(hasattr(value, "assign") for value in _weights_only(paths_of(model)).values())


def _weights_only(live: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in live.items() if not name.startswith("optimizer/")}


def _pair_paths(shapes: Shapes, live: Mapping[str, Any]) -> Pairing:
    own = {name: value for name, value in _weights_only(live).items() if hasattr(value, "assign")}
    pairs = [(own[name], name) for name in shapes if name in own]
    return checked(
        pairs,
        shapes,
        missing=[name for name in own if name not in shapes],
        unexpected=[name for name in shapes if name not in own],
    )


# -- Keras 2 in HDF5: layers in the model's order -----------------------------------------------------


def _pair_layers(shapes: Shapes, model: Any) -> Pairing:
    saved: dict[str, list[str]] = {}
    for name in shapes:
        saved.setdefault(name.partition("/")[0], []).append(name)
    top = saved.pop(keras_files.TOP, [])
    live = [(layer.name, weights) for layer in model.layers if (weights := _ordered(layer))]
    if top:
        own = [*model._trainable_variables, *model._non_trainable_variables]
        saved[keras_files.TOP] = top
        live.append(
            (keras_files.TOP, [variable for variable in own if any(variable is w for w in model.weights)])
        )
    pairs, missing, unexpected = [], [], []
    groups = list(saved.values())
    for index in range(max(len(groups), len(live))):
        names = groups[index] if index < len(groups) else []
        layer, weights = live[index] if index < len(live) else ("", [])
        count = min(len(names), len(weights))
        pairs += list(zip(weights[:count], names[:count], strict=True))
        missing += [f"{layer}/{variable.name}" for variable in weights[count:]]
        unexpected += names[count:]
    return checked(pairs, shapes, missing, unexpected)


def _ordered(layer: Any) -> list[Any]:
    """The weights of a layer in the order of old files: those that train first."""
    return [*layer.trainable_weights, *layer.non_trainable_weights]


# -- TensorFlow: by attributes ---------------------------------------------------------------------------


def _pair_attributes(shapes: Shapes, model: Any) -> Pairing:
    pairs, unexpected, taken = [], [], set()
    for name in shapes:
        variable = None if tensorflow_files.SLOT in name else follow(model, name.split("/"))
        if variable is None or id(variable) in taken:
            if tensorflow_files.SLOT not in name:
                unexpected.append(name)
            continue
        taken.add(id(variable))
        pairs.append((variable, name))
    left = [variable for variable in model.weights if id(variable) not in taken]
    return checked(pairs, shapes, [variable.path for variable in left], unexpected)


# -- a restore ------------------------------------------------------------------------------------------------


def plan_restore(
    thing: Any, part: SavedPart, plan: Plan, peers: Mapping[str, Any], *, keep: tuple[str, ...] = ()
) -> None:
    """Reads an imported part into a live model, or into an optimizer beside it."""
    shapes = {name: tuple(entry.shape) for name, entry in part.entries.items()}
    if isinstance(thing, keras.optimizers.Optimizer):
        model = _model_of(thing, part, peers)
        if not thing.built:
            thing.build(model.trainable_variables)
        pairing = pair_optimizer(part.kind, shapes, thing, model)
    else:
        pairing = pair_weights(part.kind, shapes, thing)
    for name in pairing.missing:
        plan.lack(part.name, name)
    for name in pairing.unexpected:
        plan.surplus(part.name, name)
    for name, saved, live in pairing.different:
        plan.differ(part.name, name, str(list(saved)), str(list(live)))
    for variable, name in pairing.pairs:
        if variable.name not in keep:
            _plan_variable(variable, name, part, plan)


def _model_of(optimizer: Any, part: SavedPart, peers: Mapping[str, Any]) -> Any:
    models = [peer for peer in peers.values() if isinstance(peer, keras.layers.Layer)]
    own = [model for model in models if getattr(model, "optimizer", None) is optimizer] or models
    if len(own) != 1:
        raise UsageError(
            f"{part.where}: the imported optimizer {part.name!r} names its state by the weights of a model, and "
            f"{'several models are' if own else 'no model is'} restored beside it. Next: restore or track the one that it "
            f"trains together with it.",
            path=part.where,
            found=part.name,
        )
    return own[0]


def _plan_variable(variable: Any, name: str, part: SavedPart, plan: Plan) -> None:
    import numpy as np

    entry = part.entry(name)
    data = np.empty(dtypes.byte_count(entry.dtype, entry.shape), np.uint8)
    plan.read(part, name, data)
    # Counters of 64 bits go into the 32 that JAX and torch have, as Keras itself would assign them.
    plan.after(lambda: variable.assign(plain.as_numpy(entry.dtype, entry.shape, data)))
