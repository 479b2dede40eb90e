"""TensorFlow's edge: the verbs listed in `holdfast.state.adapters`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from holdfast.errors import FormatError
from holdfast.state.part import PartState, Plan, SavedPart
from holdfast.tensorflow import arrays, datasets, iterators, modules
from holdfast.tensorflow import streams as own_streams

describe = arrays.describe
allocate = arrays.allocate
BATCHED = arrays.BATCHED


def serves(thing: Any) -> str | None:
    """The kind of a thing that this edge captures itself."""
    if isinstance(thing, tf.Variable):
        return "tensorflow.Variable"
    if isinstance(thing, tf.random.Generator):
        return "tensorflow.Generator"
    if isinstance(thing, tf.Module):
        return "tensorflow.Module"
    if iterators.is_iterator(thing):
        return "tensorflow.Iterator"
    return None


def capture(thing: Any, kind: str, where: str, _peers: Mapping[str, Any]) -> PartState:
    """A tracked thing's state."""
    if kind == "tensorflow.Generator":
        return PartState(kind, {"algorithm": int(thing.algorithm), "state": own_streams.state_of(thing)}, {})
    if kind == "tensorflow.Iterator":
        return iterators.capture(thing, where)
    return modules.capture(thing, kind, where)


def plan_restore(
    thing: Any,
    kind: str,
    part: SavedPart,
    plan: Plan,
    _peers: Mapping[str, Any],
    *,
    keep: tuple[str, ...] = (),  # noqa: ARG001 (what has no options keeps none)
) -> None:
    """Plans the restore of a saved part into a live thing."""
    if kind == "tensorflow.Generator":
        saved = part.skeleton
        if saved["algorithm"] != int(thing.algorithm) or len(saved["state"]) != thing.state.shape[0]:
            plan.differ(part.name, "algorithm", str(saved["algorithm"]), str(int(thing.algorithm)))
            return
        state = [int(word) for word in saved["state"]]
        plan.after(lambda: own_streams.set_state(thing, state))
    elif kind == "tensorflow.Iterator":
        iterators.plan_restore(thing, part, plan)
    else:
        modules.plan_restore(thing, part, plan)


def plan_arrays(tensors: dict[str, Any], part: SavedPart, plan: Plan) -> None:
    """Tensors never change, so nothing can be restored into one; a variable can."""
    for name, tensor in tensors.items():
        entry = part.entry(name)
        plan.differ(
            part.name,
            name,
            f"{entry.dtype} {list(entry.shape)}",
            f"a tensor {list(tensor.shape)} that cannot be written (a tf.Variable can)",
        )


def special(_value: Any) -> None:
    return None


def revive(tag: str, _value: Any) -> Any:
    raise FormatError(f"A value tagged {tag!r} is not known to this version of Holdfast.", found=tag)


streams = own_streams.capture
set_streams = own_streams.restore


def seed(number: int) -> None:
    tf.random.set_seed(number)


def generator_state(generator: Any) -> Any:
    return generator.drawn if isinstance(generator, datasets.Orders) else own_streams.state_of(generator)


def set_generator_state(generator: Any, state: Any) -> None:
    if isinstance(generator, datasets.Orders):
        generator.drawn = int(state)
    else:
        own_streams.set_state(generator, state)


def freshly_seeded(_generator: Any) -> bool:
    """Whether nothing was drawn from a generator since it was seeded: that cannot be told here."""
    return True


def gradients(_things: Mapping[str, Any], _stepped: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    return {}, False


def set_gradients(_things: Mapping[str, Any], _values: Mapping[str, Any], _zeros: Any) -> None:
    """TensorFlow's gradients are values."""


def flags(_thing: Any) -> dict[str, bool]:
    return {}


def set_flags(_thing: Any, _values: Mapping[str, bool]) -> None:
    """A variable is trainable or not for all of its life."""


def on_step(_thing: Any, _notify: Any) -> None:
    return None


def sight_of(_thing: Any, _kind: str, _where: str, _peers: Mapping[str, Any]) -> None:
    """Everything is captured anew at each save."""


def late(_things: Mapping[str, Any], _states: Mapping[str, Any], _known: Any) -> None:
    """A read variable is copied by TensorFlow before it is written; nothing has to wait."""


def before_step(_things: Mapping[str, Any], _notify: Any) -> None:
    return None


def declared(_thing: Any) -> None:
    return None


def outline(thing: Any) -> dict[str, Any] | None:
    """Class and numbers of parameters of a module."""
    if not isinstance(thing, tf.Module):
        return None
    found = modules.named_variables(thing)
    sizes = {name: int(tf.size(modules.value_of(variable))) for name, variable in found.items()}
    return {
        "class": f"{type(thing).__module__}.{type(thing).__qualname__}",
        "parameters": sum(sizes.values()),
        "trainable": sum(sizes[name] for name, variable in found.items() if variable.trainable),
        "layers": [],
        "more_layers": 0,
    }


def source(loader: Any, *, shuffle: bool) -> Any:  # noqa: ARG001 (a data set shuffles by itself)
    """The resumable source of a tf.data.Dataset; None when the thing is none."""
    return datasets.DatasetSource(loader) if isinstance(loader, tf.data.Dataset) else None


def process_group_size() -> int:
    """How many processes this one computes with."""
    resolver = getattr(tf.distribute.get_strategy(), "cluster_resolver", None)
    spec = resolver.cluster_spec() if resolver is not None else None
    return max(1, sum(spec.num_tasks(job) for job in spec.jobs)) if spec is not None else 1


def environment() -> dict[str, Any]:
    """TensorFlow's version, its global seed, and its devices."""
    found: dict[str, Any] = {"tensorflow": str(tf.__version__)}
    number = own_streams.global_seed()
    if number is not None:
        found["tensorflow_seed"] = number
    return found
