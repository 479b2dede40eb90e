"""A checkpoint → a file that plain torch, or the safetensors library, opens without Holdfast."""

from __future__ import annotations

import importlib
import os
from typing import Any

import numpy as np

from holdfast import files, open_files, storage
from holdfast.checkpoint import Checkpoint, open_checkpoint
from holdfast.errors import FormatError, UsageError
from holdfast.exchange import keras_files, plain, tensorflow_files
from holdfast.format import dtypes
from holdfast.log import logger
from holdfast.state import tree
from holdfast.state.part import Plan, SavedPart
from holdfast.store import single, sources

_TORCH, _SAFETENSORS = (".pth", ".pt", ".ckpt", ".bin"), ".safetensors"
_KERAS = (".weights.h5", ".keras")
_STRUCTURE = "keras.json"
_MODELS = (
    *("torch.Module", "torch.Trainable", "mapping", "keras.Model"),
    *(keras_files.WEIGHTS, keras_files.LEGACY, tensorflow_files.WEIGHTS),
)


def export_file(
    reference: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    part: str | None = None,
    overwrite: bool = False,
    like: Any = None,
) -> None:
    """Writes a checkpoint as a file of torch (``.pth``, ``.pt``, ``.ckpt``, ``.bin``), safetensors or Keras.

    A torch file holds ``{"epoch", "step", "metrics", "state_dict", "optimizer", …}``: the part
    `model` as `state_dict`, other parts and `state` under their names, optimizers indexed by
    number as torch does; ``torch.load(…, weights_only=True)`` opens it. With `part` it holds that
    part alone. A safetensors file holds the tensors of one part, by default the model's. A
    ``.weights.h5`` or ``.keras`` file holds a Keras model's weights, and the state of the optimizer
    that `like` was compiled with.

    The file appears whole or not at all, and is durable when this returns.

    Args:
        reference: a checkpoint, a run, ``RUN@best``, …
        target: the new file; its suffix decides the format.
        part: the only part to export.
        overwrite: True replaces an existing file.
        like: for Keras' files, a model of the same structure, or a ``.keras`` file of one: it says what is
            stored where, and gets the weights. Not needed where the checkpoint holds an entire model.

    Raises:
        UsageError: the suffix is unknown, the file exists, or the part has no such form.
        NotFoundError, DamagedError, FormatError: about the checkpoint; nothing was written.
        StorageError: the file could not be written; nothing is left of it.

    """
    path = sources.local(target, "an export", "export into a file here, and copy that")
    suffix = next((own for own in _KERAS if path.endswith(own)), os.path.splitext(path)[1].lower())
    if suffix not in (_SAFETENSORS, *_TORCH, *_KERAS):
        raise UsageError(
            f"{path}: the suffix decides the format, and {suffix or 'none'} is not known. "
            f"Next: name it *.pth (or {', '.join(_TORCH[1:])}), *{_SAFETENSORS}, *.weights.h5 or *.keras.",
            path=path,
            found=suffix,
        )
    _check_target(path, overwrite=overwrite)
    checkpoint = open_checkpoint(reference)
    chosen = _choose(checkpoint, part, needed=suffix == _SAFETENSORS or suffix in _KERAS)
    if suffix in _KERAS:
        _export_keras(checkpoint, str(chosen), path, like, overwrite=overwrite)
    elif suffix == _SAFETENSORS:
        _export_safetensors(checkpoint, str(chosen), path, overwrite=overwrite)
    else:
        _export_torch(checkpoint, chosen, path, overwrite=overwrite)
    logger.info("Exported %s to %s.", checkpoint.path, path)


def _check_target(path: str, *, overwrite: bool) -> None:
    if os.path.isdir(path):
        raise UsageError(f"{path} is a directory; the target is a file. Next: name a file in it.", path=path)
    if os.path.lexists(path) and not overwrite:
        raise UsageError(
            f"{path} exists already; it was left alone. Next: choose another name, or say overwrite=True (--overwrite).",
            path=path,
        )
    if not os.path.isdir(os.path.dirname(path)):
        raise UsageError(f"There is no directory {os.path.dirname(path)}. Next: make it.", path=path)


def _choose(checkpoint: Checkpoint, part: str | None, *, needed: bool) -> str | None:
    """The one part to export: the named one, or, where one is needed, the model."""
    parts = checkpoint.arrays().parts
    if part is not None:
        checkpoint.saved(part)  # raises NotFoundError with the nearest name
        return part
    if not needed:
        return None
    models = [name for name, saved in parts.items() if saved.kind in _MODELS]
    if "model" in models or len(models) == 1:
        return "model" if "model" in models else models[0]
    raise UsageError(
        f"{checkpoint.path} has {'no model' if not models else 'several models'}; a safetensors file holds one part. "
        f"Next: say which: part={(models or list(parts) or ['NAME'])[0]!r}. "
        f"It has: {', '.join(parts)}.",
        path=checkpoint.path,
        found=models,
    )


# -- safetensors -----------------------------------------------------------------------------


def _export_safetensors(checkpoint: Checkpoint, part: str, path: str, *, overwrite: bool) -> None:
    from holdfast.payload import layout, writer

    arrays = _read_arrays(checkpoint, part)
    planned = layout.plan({"part": arrays}, {"part": "pt"})
    if len(planned.files) != 1:
        raise UsageError(
            f"{checkpoint.path}: the part {part!r} {'has no arrays' if not planned.files else 'needs several files'}; "
            f"it cannot be one safetensors file.",
            path=path,
        )
    with single.beside(path) as writing:
        storage.check_space(writing, planned.total_bytes)
        save = writer.Save(planned, writing)
        save.start()
        save.wait()
        _publish(os.path.join(writing, planned.files[0].name), path, overwrite=overwrite)


def _read_arrays(checkpoint: Checkpoint, part: str) -> dict[str, Any]:
    """The arrays of a flat part, read and checked; arrays that were one are written once each."""
    from holdfast.payload.array import HostArray

    saved = checkpoint.saved(part)
    names = [name for name in saved.entries if not name.startswith("/")]
    foreign = [name for name in names if saved.entry(name).dtype not in dtypes.NATIVE]
    if foreign or not names or saved.kind not in _MODELS:
        what = (
            f"{foreign[0]} has the dtype {saved.entry(foreign[0]).dtype}, which safetensors files do not have"
            if foreign
            else "it is no flat mapping of names to arrays"
        )
        raise UsageError(
            f"{checkpoint.path}: the part {part!r} cannot be a safetensors file: {what}. "
            f"Next: export it as *.pth.",
            path=checkpoint.path,
            found=part,
        )
    _warn_partial(saved)
    if len(names) < len(saved.entries) or saved.flat is None:
        logger.warning(
            "%s: the extra state of part %r has no place in a safetensors file.", checkpoint.path, part
        )
    plan, found = Plan(), {}
    for name in names:
        entry = saved.entry(name)
        buffer = np.empty(dtypes.byte_count(entry.dtype, entry.shape), np.uint8)
        plan.read(saved, name, buffer)
        found[name] = HostArray(entry.dtype, tuple(entry.shape), buffer)
    checkpoint.read(plan)
    return found


def _warn_partial(saved: SavedPart) -> None:
    if saved.kind == "torch.Trainable":
        logger.warning(
            "%s: the part %r holds only what trains; the frozen parameters are not in the export.",
            saved.where,
            saved.name,
        )


# -- torch ---------------------------------------------------------------------------------------


def _export_torch(checkpoint: Checkpoint, part: str | None, path: str, *, overwrite: bool) -> None:
    import torch

    content = _content(checkpoint) if part is None else _value(checkpoint, part)
    with single.beside(path) as writing:
        file = os.path.join(writing, os.path.basename(path))
        _write(torch, content, file)
        _check_readable(torch, file, path)
        _publish(file, path, overwrite=overwrite)


def _content(checkpoint: Checkpoint) -> dict[str, Any]:
    parts = checkpoint.arrays().parts
    names = [name for name in parts if name not in ("random", "grads", "probe")]
    models = [name for name in names if parts[name].kind in ("torch.Module", "torch.Trainable")]
    model = "model" if "model" in names else models[0] if len(models) == 1 else None
    progress = checkpoint.progress
    content: dict[str, Any] = {"epoch": progress.epoch, "step": progress.step}
    if progress.batch:
        content["batch"] = progress.batch
        logger.warning(
            "%s was taken %d batches into an epoch: a plain script that starts at 'epoch' repeats them. "
            "An export of REF@epoch=%d has no such rest.",
            checkpoint.path,
            progress.batch,
            progress.epoch,
        )
    content["metrics"] = plain.keep_plain(checkpoint.metrics, "metrics")
    values = checkpoint.load(names, "torch")
    for name in names:
        key = "state_dict" if name == model else name
        if key == "state_dict" and key != name and "state_dict" in names:
            raise UsageError(
                f"{checkpoint.path} has a part 'state_dict' beside {name!r}, which a torch file keeps under that name. "
                f"Next: export them one by one with part={name!r}.",
                path=checkpoint.path,
            )
        content[key] = _converted(checkpoint.saved(name), values[name])
    return content


def _value(checkpoint: Checkpoint, part: str) -> Any:
    return _converted(checkpoint.saved(part), checkpoint.load([part], "torch")[part])


def _converted(saved: SavedPart, value: Any) -> Any:
    _warn_partial(saved)
    if saved.kind == "torch.Optimizer":
        try:
            value = plain.by_number(value)
        except tree.WRONG_CONTENT as error:
            raise FormatError(
                f"{saved.where}: the part {saved.name!r} is not the state of an optimizer "
                f"({type(error).__name__}: {error}). Nothing was written.",
                path=saved.where,
            ) from error
    return plain.keep_plain(value, saved.name)


def _write(torch: Any, content: Any, file: str) -> None:
    stream = open_files.StreamFile(file)
    try:
        try:
            torch.save(content, stream)
        except Exception:
            if stream.failure is None:
                raise
        stream.finish()
    finally:
        stream.close()


def _check_readable(torch: Any, file: str, path: str) -> None:
    """What was written is opened as a careful reader would, before it gets its name."""
    import pickle

    try:
        torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise FormatError(
            f"{path}: torch {torch.__version__} cannot read the export with weights_only=True: {error}. Nothing was "
            f"written. Next: export single parts with part=….",
            path=path,
        ) from error


# -- Keras -----------------------------------------------------------------------------------------


def _export_keras(checkpoint: Checkpoint, part: str, path: str, like: Any, *, overwrite: bool) -> None:
    with single.beside(path) as writing:
        file = os.path.join(writing, os.path.basename(path))
        if like is not None or _STRUCTURE in checkpoint.manifest.files:
            # The edge lies above, since it imports Keras.
            importlib.import_module("holdfast.keras.exporting").write(checkpoint, part, file, like, path)
        elif path.endswith(".weights.h5") and checkpoint.saved(part).kind == keras_files.WEIGHTS:
            _write_weights(checkpoint, part, file)
        else:
            raise UsageError(
                f"{path}: where Keras keeps which weight is told by the model itself, whose structure {checkpoint.path} does "
                f"not hold. Next: --like FILE.keras (like=…), a file that model.save wrote of such a model, or in Python "
                f"like=model; Callback(run, entire=True) saves the structure as well.",
                path=path,
            )
        files.sync_file(file)
        _publish(file, path, overwrite=overwrite)


def _write_weights(checkpoint: Checkpoint, part: str, file: str) -> None:
    """Arrays that came from such a file, and have their places as names."""
    wanted = [part]
    if checkpoint.arrays().parts.get("optimizer") is not None and part == "model":
        wanted += ["optimizer"] if checkpoint.saved("optimizer").kind == keras_files.OPTIMIZER else []
    plan = Plan()
    found: list[tuple[str, str, tuple[int, ...], Any]] = []
    for name in wanted:
        saved = checkpoint.saved(name)
        for place in saved.entries:
            entry = saved.entry(place)
            buffer = np.empty(dtypes.byte_count(entry.dtype, entry.shape), np.uint8)
            plan.read(saved, place, buffer)
            found.append((place, entry.dtype, tuple(entry.shape), buffer))
    checkpoint.read(plan)
    keras_files.write(
        file, [(place, dtype, plain.as_numpy(dtype, shape, data)) for place, dtype, shape, data in found]
    )


def _publish(file: str, path: str, *, overwrite: bool) -> None:
    _check_target(path, overwrite=overwrite)
    single.publish_file(file, path)
