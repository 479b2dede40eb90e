"""Weights and the optimizer's state of a live Keras model: into a checkpoint, and back from whatever holds some."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from typing import Any

from holdfast.checkpoint import Checkpoint, open_checkpoint
from holdfast.drafting import save_at
from holdfast.errors import MismatchError, NotFoundError, UsageError, nearest
from holdfast.exchange import keras_files, plain, reading, tensor_bundle, tensorflow_files
from holdfast.exchange.sorting import Sorted
from holdfast.format.manifest import Manifest, Progress
from holdfast.keras import edge, foreign, saves
from holdfast.keras.model import STRUCTURE, structure
from holdfast.keras.pairing import Pairing, check, difference
from holdfast.keras.slots import pair_optimizer
from holdfast.log import logger
from holdfast.payload.array import Array
from holdfast.state import capture, tree
from holdfast.state.part import Plan
from holdfast.store import catalog

_KERAS = (".weights.h5", ".keras", ".h5", ".hdf5")


class Loaded:
    """What `load_weights` did; scripts for TensorFlow chain a call of its status object."""

    def __init__(self, path: str) -> None:
        self.path = path

    def expect_partial(self) -> Loaded:
        """Returns itself: what was not needed is said when it is loaded."""
        return self

    def assert_consumed(self) -> Loaded:
        """Returns itself: weights that do not fit have raised."""
        return self

    assert_existing_objects_matched = assert_consumed


def save_weights(model: Any, filepath: str | os.PathLike[str], overwrite: bool = True) -> None:
    """Saves a model's weights and its optimizer's state, as ``model.save_weights`` of TensorFlow did.

    A name ending in ``.weights.h5`` is such a file; any other, like ``cp.ckpt``, is a Holdfast
    checkpoint (a folder). It is whole or not there, and durable when this returns.

    Raises:
        UsageError: the model has no weights yet, or with ``overwrite=False`` there is something.
        StorageError: the storage refused; what was there is as it was.

    """
    path = os.fspath(filepath)
    form = saves.form_of(path, weights_only=True)
    if not overwrite and os.path.lexists(saves.real_place(path)):
        raise UsageError(f"{path} exists already; it was left alone. Next: choose another name.", path=path)
    sequence = saves.Sequences().next_in(os.path.dirname(os.path.abspath(path)))
    saves.write(model, path, form, saves.Record(sequence))


def save_checkpoint(model: Any, target: str, record: saves.Record) -> None:
    """Saves weights and optimizer as a Holdfast checkpoint at `target`."""
    _check_built(model, "save")
    optimizer = built_optimizer(model)
    manifest = Manifest(
        name="",
        sequence=record.sequence,
        created="",
        progress=Progress(epoch=record.epoch, step=_steps(optimizer)),
        metrics={name: tree.encode(value, name) for name, value in record.metrics.items()},
        best=record.best,
    )
    parts = {"model": model} if optimizer is None else {"model": model, "optimizer": optimizer}
    extra = {}
    with contextlib.suppress(UsageError):  # a class that cannot be described has weights all the same
        extra[STRUCTURE] = structure(model)
    save_at(target, parts, manifest, extra=extra)


def built_optimizer(model: Any) -> Any | None:
    """The optimizer that a model was compiled with, with all its variables; None for one that was not compiled."""
    optimizer = getattr(model, "optimizer", None)
    if optimizer is not None and not optimizer.built:
        optimizer.build(model.trainable_variables)
    return optimizer


def _steps(optimizer: Any | None) -> int:
    return 0 if optimizer is None else int(optimizer.iterations)


def _check_built(model: Any, verb: str) -> None:
    if not getattr(model, "built", True):
        raise UsageError(
            f"The model {getattr(model, 'name', '')!r} has no weights yet, so there are none to {verb}. Next: give its first "
            f"layer a shape (keras.Input), or call model.build(…) or the model on a batch before.",
            found="not built",
        )


def load_weights(model: Any, filepath: str | os.PathLike[str]) -> Loaded:
    """Loads weights into a model, and the optimizer's state where the model is compiled and it fits.

    Args:
        model: a model of the same structure.
        filepath: a Holdfast checkpoint, or a run or ``RUN@best``; a ``.weights.h5``, ``.keras`` or
            ``.h5`` file; or the prefix of a TensorFlow checkpoint, like ``training_1/cp.ckpt``.

    Raises:
        NotFoundError: there is nothing of that name.
        MismatchError: it does not fit the model; nothing was changed.
        DamagedError, FormatError: about the file.

    """
    path = os.fspath(filepath)
    _check_built(model, "load into")
    place = saves.real_place(path)
    if os.path.isdir(place) and catalog.is_checkpoint(place):
        load_checkpoint(model, Checkpoint(place))
    elif os.path.isfile(place) and place.endswith(_KERAS):
        _load_file(model, place)
    elif (prefix := tensor_bundle.find_prefix(place)) is not None:
        _load_foreign(model, tensorflow_files.read(prefix), prefix)
    else:
        load_checkpoint(model, _open(path))
    return Loaded(path)


def _open(path: str) -> Checkpoint:
    try:
        return open_checkpoint(path)
    except NotFoundError as error:
        folder = os.path.dirname(os.path.abspath(path))
        there = sorted(os.path.basename(name) for name in saves.candidates(saves.real_folder(folder)))
        near = nearest(os.path.basename(path), there)
        raise NotFoundError(
            f"There are no weights {path}{f'; {near}' if near else '.'} {os.path.dirname(path) or '.'} holds: "
            f"{', '.join(there[:20]) or 'none'}.",
            path=path,
            candidates=there,
        ) from error


def load_checkpoint(model: Any, checkpoint: Checkpoint, part: str = "model") -> None:
    """Restores a checkpoint's model into a live one, and its optimizer where that fits."""
    targets = {part: model}
    if getattr(model, "optimizer", None) is not None and "optimizer" in checkpoint.parts:
        targets["optimizer"] = built_optimizer(model)
        plan = Plan()
        try:
            capture.plan_restore(targets["optimizer"], checkpoint.saved("optimizer"), plan, targets)
            plan.check_fit(checkpoint.path)
        except (MismatchError, UsageError) as error:
            del targets["optimizer"]
            _leave_out(checkpoint.path, error)
    checkpoint.restore(targets)


def _leave_out(path: str, reason: object) -> None:
    logger.warning(
        "%s: the optimizer's state was not loaded, since it does not fit that of this model; it begins anew. %s",
        path,
        reason,
    )


def _load_file(model: Any, path: str) -> None:
    """A file of Keras': read here, as carefully as an import; by Keras itself where a layer has its own way."""
    found = reading.read(path, trust=False)
    if found.kinds.get("model") != keras_files.WEIGHTS or not foreign.has_own_ways(model):
        _load_foreign(model, found, path)
        return
    try:
        model.load_weights(path)
    except (ValueError, KeyError, OSError, RuntimeError) as error:
        raise MismatchError(
            f"{path} does not fit this model; some weights may already be loaded: do not use it. Keras says: {error}",
            path=path,
            missing=[],
            unexpected=[],
            different=[],
            target_changed=True,
        ) from error


def _load_foreign(model: Any, found: Sorted, path: str) -> None:
    if "model" not in found.parts:
        raise NotFoundError(
            f"{path} holds no model; it holds {', '.join(found.parts)}. Next: holdfast import {path} RUN",
            path=path,
            candidates=list(found.parts),
        )
    weights = found.parts["model"]
    pairs = foreign.pair_weights(found.kinds["model"], shapes_of(weights), model)
    check(pairs, path)
    moves = _moves(pairs, weights)
    optimizer = built_optimizer(model)
    if optimizer is not None and "optimizer" in found.parts:
        state = found.parts["optimizer"]
        kind = found.kinds["optimizer"]
        own = pair_optimizer(kind, shapes_of(state), optimizer, model, pairs.names())
        if own.fits:
            moves += _moves(own, state)
        else:
            _leave_out(path, difference(own))
    for move in moves:  # all were read, and compared with their checksums, before the first is assigned
        move()
    edge._finalize(model)


def _moves(pairs: Pairing, arrays: Mapping[str, Array]) -> list[Callable[[], None]]:
    return [_assign(variable, _value(arrays[name])) for variable, name in pairs.pairs]


def _assign(variable: Any, value: Any) -> Callable[[], None]:
    return lambda: variable.assign(value)


def _value(array: Array) -> Any:
    return plain.as_numpy(array.dtype, array.shape, array.open())


def shapes_of(arrays: Mapping[str, Array]) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in arrays.items()}
