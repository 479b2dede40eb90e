"""TensorFlow 2 checkpoints (`tf.train.Checkpoint`, `CheckpointManager`, `save_weights`): their arrays as parts.

A checkpoint of an object graph names each variable by the attributes that lead to it:
``model/layer_with_weights-0/kernel``, ``optimizer/iter``, and, for what an optimizer keeps of a
variable, ``model/layer_with_weights-0/kernel/.OPTIMIZER_SLOT/optimizer/m``.
"""

from __future__ import annotations

import re

from holdfast.errors import FormatError
from holdfast.exchange import plain, tensor_bundle
from holdfast.exchange.sorting import Sorted, part_name
from holdfast.payload.array import Array

WEIGHTS, OPTIMIZER = "tensorflow.Weights", "tensorflow.OptimizerState"
_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
SLOT = "/.OPTIMIZER_SLOT/"
_MARK = re.compile(r"(^|/)(_?iterations?|iter)\Z")
_COUNTERS = {"step": "step", "global_step": "step", "iteration": "step", "epoch": "epoch", "epochs": "epoch"}
_LIMIT = 10**17


def read(prefix: str) -> Sorted:
    """The parts of a checkpoint: the model, its optimizer, counters, and single variables as `state`.

    Raises:
        FormatError: it holds no variables of an object graph.
        DamagedError, UsageError, NotFoundError: as `tensor_bundle.read` says.

    """
    arrays = tensor_bundle.read(prefix)
    variables = {_plain(name): array for name, array in arrays.items() if name.endswith(_VALUE)}
    if not variables:
        older = [name for name in arrays if name != tensor_bundle.GRAPH]
        raise FormatError(
            f"{prefix} holds no variables of tf.train.Checkpoint or save_weights. Its arrays are: "
            f"{', '.join(older[:20]) or 'none'}. (tf.compat.v1.train.Saver named them by graph; that is not read.)",
            path=prefix,
            found=older[:20],
        )
    found = Sorted()
    optimizers = _optimizer_roots(variables)
    owners: dict[str, dict[str, Array]] = {}
    for name, array in variables.items():
        owners.setdefault(_owner(name, optimizers), {})[name] = array
    _add_parts(owners, optimizers, found)
    return found


def _plain(name: str) -> str:
    """The name without TensorFlow's own marks; a dot inside a name is written as two."""
    return re.sub(r"\.([.S])", lambda found: "." if found[1] == "." else "/", name.removesuffix(_VALUE))


def _optimizer_roots(variables: dict[str, Array]) -> list[str]:
    """Where optimizers lie: what counts iterations, and what slots are named after."""
    found = set()
    for name in variables:
        if SLOT in name:
            found.add(name.partition(SLOT)[2].rpartition("/")[0])
        elif (match := _MARK.search(name)) is not None:
            found.add(name[: match.start()])
    return sorted(found - {""}, key=len, reverse=True)


def _owner(name: str, optimizers: list[str]) -> str:
    """The path of the object that a variable is a part of: an optimizer, the first name, or the root ("")."""
    if SLOT in name:
        return name.partition(SLOT)[2].rpartition("/")[0]
    for root in optimizers:
        if name.startswith(f"{root}/"):
            return root
    return "" if re.match(r"layer(_with_weights)?-\d+/", name) else name.partition("/")[0]


def _add_parts(owners: dict[str, dict[str, Array]], optimizers: list[str], found: Sorted) -> None:
    models = {}
    for owner, arrays in owners.items():
        if owner in optimizers:
            continue
        if list(arrays) == [owner]:
            _keep_variable(owner, arrays[owner], found)
        else:
            models[owner] = arrays
    # save_weights stores the model itself: its layers stand beside one another at the root.
    if "" in models or (len(models) > 1 and not {"model", "net", "network"} & set(models)):
        merged = {name: array for arrays in models.values() for name, array in arrays.items()}
        models = {"": merged} if merged else {}
    _take_weights(owners, optimizers, models)
    for owner, arrays in models.items():
        start = f"{owner}/" if owner else ""
        own = {name.removeprefix(start): array for name, array in arrays.items()}
        part = "model" if len(models) == 1 or owner in ("", "model") else part_name(owner, found.parts)
        found.add(part, own, WEIGHTS, f"{owner or 'The model'} ({len(own)} arrays)")
    for owner in optimizers:
        start = f"{owner}/"
        own = {name.removeprefix(start): array for name, array in owners.get(owner, {}).items()}
        part = "optimizer" if len(optimizers) == 1 else part_name(owner, found.parts)
        found.add(part, own, OPTIMIZER, f"{owner} ({len(own)} arrays)")
    if len(optimizers) == 1:
        _note_steps(owners.get(optimizers[0], {}), found)


def _take_weights(
    owners: dict[str, dict[str, Array]], optimizers: list[str], models: dict[str, dict[str, Array]]
) -> None:
    """Moves weights to their model: Keras 3's optimizer lists those that train, and the shortest name is theirs."""
    if len(optimizers) != 1 or len(models) > 1:
        return
    start = f"{optimizers[0]}/_trainable_variables/"
    arrays = owners.get(optimizers[0], {})
    owner, own = next(iter(models.items()), ("", {}))
    for name in [name for name in arrays if name.startswith(start)]:
        place = f"trainable_variables/{name.removeprefix(start)}"
        own[f"{owner}/{place}" if owner else place] = arrays.pop(name)
    if own:
        models[owner] = own


def _keep_variable(name: str, array: Array, found: Sorted) -> None:
    """A single variable beside the model: a counter of the script, or a value of its own."""
    if name == "save_counter":
        return
    value = _number(array)
    if value is not None and name in _COUNTERS:
        setattr(found, _COUNTERS[name], value)
        what = "completed epochs" if _COUNTERS[name] == "epoch" else "steps done"
        found.lines.append(f"{name!r} = {value} was taken as the number of {what}.")
        return
    found.state[name] = plain.as_numpy(array.dtype, array.shape, array.open()) if value is None else value
    found.lines.append(f"{name!r} went into run.state[{name!r}].")


def _note_steps(arrays: dict[str, Array], found: Sorted) -> None:
    for name, array in arrays.items():
        steps = _number(array) if _MARK.search(name) else None
        if steps is not None and not found.step:
            found.step = steps
            found.lines.append(
                f"The optimizer made {steps} steps, which was taken as the number of steps done."
            )


def _number(array: Array) -> int | None:
    """A whole number that a variable holds, None where it is something else."""
    if array.dtype not in ("I32", "I64") or array.shape != ():
        return None
    value = int.from_bytes(array.open().tobytes(), "little", signed=True)
    return value if 0 <= value < _LIMIT else None
