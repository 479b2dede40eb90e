"""Keras' edge: the verbs listed in `holdfast.state.adapters`. The arrays are those of its backend."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import keras

from holdfast.errors import UsageError
from holdfast.keras import describing, foreign, optimizers, variables
from holdfast.keras import streams as own_streams
from holdfast.keras.measures import Measures
from holdfast.keras.memories import Memories
from holdfast.state import adapters, idle
from holdfast.state.part import PartState, Plan, SavedPart

plan_variable = variables.plan_variable


def serves(thing: Any) -> str | None:
    """The kind of a thing that this edge captures itself."""
    if isinstance(thing, keras.layers.Layer):
        return "keras.Model"
    if isinstance(thing, keras.optimizers.Optimizer):
        return "keras.Optimizer"
    if isinstance(thing, keras.metrics.Metric):
        return "keras.Metric"
    if isinstance(thing, keras.random.SeedGenerator):
        return "keras.SeedGenerator"
    if isinstance(thing, Measures):
        return "keras.Metrics"
    if isinstance(thing, Memories):
        return "keras.States"
    return "keras.Variable" if isinstance(thing, keras.Variable) else None


def named_variables(thing: Any) -> variables.Named:
    """The variables of anything that this edge serves; those of an optimizer with numbered parameters."""
    if isinstance(thing, keras.layers.Layer):
        return variables.of_layer(thing)
    if isinstance(thing, keras.optimizers.Optimizer):
        return optimizers.named(thing, {})
    if isinstance(thing, keras.metrics.Metric):
        return variables.of_metrics([thing])
    if isinstance(thing, Measures | Memories):
        return thing.named()
    if isinstance(thing, keras.random.SeedGenerator):
        return {"state": thing.state}
    return {"value": thing} if isinstance(thing, keras.Variable) else {}


def capture(thing: Any, kind: str, where: str, peers: Mapping[str, Any]) -> PartState:
    """A tracked thing's variables; `peers` are all tracked things, for parameter names."""
    if kind == "keras.Optimizer":
        return optimizers.capture(thing, where, peers)
    if kind == "keras.Metrics" and not thing.inside():
        return variables.capture({}, kind, where)
    if kind != "keras.Model":
        return variables.capture(named_variables(thing), kind, where)
    settle(thing)
    trains = bool(thing.trainable_variables)
    return variables.capture(variables.of_layer(thing), kind, where, watch=trains)


def settle(model: Any) -> None:
    """Lets a model have its own values again: within `fit`, JAX keeps them apart from it."""
    sync = getattr(model, "jax_state_sync", None)
    if sync is not None:
        sync()


def plan_restore(
    thing: Any,
    kind: str,
    part: SavedPart,
    plan: Plan,
    peers: Mapping[str, Any],
    *,
    keep: tuple[str, ...] = (),
) -> None:
    """Plans the restore of a saved part into a live thing."""
    if kind == "keras.Model":
        settle(thing)
        check_built(thing, part)
    if part.kind in foreign.KINDS:
        foreign.plan_restore(thing, part, plan, peers, keep=keep)
    elif kind == "keras.Optimizer":
        optimizers.plan_restore(thing, part, plan, peers, keep=keep)
    elif kind != "keras.Metrics" or part.entries:
        variables.plan_restore(named_variables(thing), part, plan, f"keras {type(thing).__name__}")
    if kind == "keras.Model":
        plan.after(lambda: _finalize(thing))


def _finalize(model: Any) -> None:
    """Lets layers that compute from their variables when they are loaded do so now."""
    for _, layer in variables.layers(model):
        if isinstance(layer, keras.layers.Normalization) and layer.built:
            layer.finalize_state()


def check_built(model: Any, part: SavedPart) -> None:
    """Refuses a model that has no variables yet, where some were saved."""
    if part.entries and not model.built and not model.variables:
        raise UsageError(
            f"{part.where}: the {type(model).__name__} for the part {part.name!r} is not built: it has no variables yet that "
            f"could be restored. Next: model.build(input_shape), or call it once on a batch, before that.",
            path=part.where,
            found=part.name,
        )


def plan_restore_options(
    thing: Any, part: SavedPart, plan: Plan, peers: Mapping[str, Any], *, keep: tuple[str, ...] = ()
) -> None:
    """Plans the restore of what is small in an optimizer."""
    optimizers.plan_restore_options(thing, part, plan, peers, keep=keep)


# An optimizer that gathers gradients has variables for them; none tells of its steps.
gradients, set_gradients = idle.gradients, idle.set_gradients
on_step, late, before_step = idle.on_step, idle.late, idle.before_step
sight_of = idle.sight_of
special, revive = idle.special, idle.revive

streams = own_streams.capture
set_streams = own_streams.restore
seed = own_streams.seed


def flags(thing: Any) -> dict[str, bool]:
    """Which layers of a model train."""
    if not isinstance(thing, keras.layers.Layer):
        return {}
    return {f"trainable:{name}": bool(layer.trainable) for name, layer in variables.layers(thing)}


def set_flags(thing: Any, values: Mapping[str, bool]) -> None:
    """Freezes or unfreezes the layers that are named; names that it does not have are left out."""
    if not isinstance(thing, keras.layers.Layer):
        return
    for name, layer in variables.layers(thing):  # from the top: to set a layer sets those in it
        wanted = values.get(f"trainable:{name}")
        if wanted is not None and wanted != layer.trainable:
            layer.trainable = wanted


def declared(thing: Any) -> dict[str, Any] | None:
    """The settings of an optimizer; None for other things."""
    return optimizers.declared(thing) if isinstance(thing, keras.optimizers.Optimizer) else None


outline = describing.outline
environment = describing.environment


def source(loader: Any, *, shuffle: bool) -> Any:
    """The resumable source of a PyDataset; None when the thing is none."""
    from holdfast.keras import pydatasets

    return (
        pydatasets.PyDatasetSource(loader, shuffle=shuffle)
        if isinstance(loader, keras.utils.PyDataset)
        else None
    )


def batches(loop: Any, find: Any) -> Any:
    """A run's batches that `fit` takes as data, too."""
    from holdfast.keras import feeding

    return feeding.Feed(loop, find)


def process_group_size() -> int:
    """How many processes this one trains with: its backend knows."""
    return 1


@contextlib.contextmanager
def probing(model: Any) -> Iterator[None]:
    """Evaluation mode without gradients; streams and variables that only count draws are as before afterwards."""
    settle(model)
    if variables.framework() == "torch":
        with adapters.edge("torch").probing(model):
            yield
    else:
        yield
