"""Foreign files → the first checkpoint of a run, from which a training continues under Holdfast."""

from __future__ import annotations

import os

from holdfast.checkpoint import Checkpoint
from holdfast.drafting import describe_parts
from holdfast.errors import CheckpointError, UsageError
from holdfast.exchange import reading
from holdfast.exchange.sorting import Sorted
from holdfast.format.manifest import Manifest, Progress
from holdfast.format.names import CheckpointName, parse_checkpoint_name
from holdfast.log import logger
from holdfast.policy.keep import Keep
from holdfast.saving import Saver
from holdfast.session import Session, check_place
from holdfast.state import adapters, capture, environment, tree
from holdfast.state.part import FLAT, PartState
from holdfast.store import book, catalog, sources
from holdfast.store.entry import Entry

_NOTE_LIMIT = 2000
_SAID = 100  # lines on what became what


def import_file(
    source: str | os.PathLike[str],
    run_path: str | os.PathLike[str],
    *,
    trust: bool = False,
    epoch: int | None = None,
) -> Checkpoint:
    """Makes a run whose first checkpoint is what a file of torch, safetensors, Keras or TensorFlow holds.

    A script that tracks the same parts under `run_path` then continues from there. What became
    what is said on stderr and in the checkpoint's note. The checkpoint declares no
    hyperparameters, so those in the file win over those of the script.

    Args:
        source: a bare state_dict, a dictionary like ``{"epoch", "state_dict", "optimizer"}``, or, with
            `trust`, an entire model. `epoch` is taken as the number of completed epochs. Or a .weights.h5,
            .keras or .h5 file of Keras, or the prefix of a TensorFlow checkpoint.
        run_path: a new run, or one without checkpoints.
        trust: True says that code which the file names may be run.
        epoch: the number of completed epochs, where the file does not say it, or says it wrong.

    Raises:
        UsageError: the run has checkpoints already; nothing was changed.
        FormatError, DamagedError, UntrustedError, MismatchError, NotFoundError: about the file;
            nothing was created.

    """
    path = sources.local(source, "an import", "copy the file here first")
    target = sources.local(run_path, "an import", "import into a directory, and push that")
    check_place(target)
    if catalog.is_run(target):
        _check_empty(target, catalog.scan(target))
    found = reading.read(path, trust=trust)
    if epoch is not None:
        found.epoch = _check_epoch(epoch)
    session = Session.open(target, wait=0, say=logger.warning)
    try:
        _check_empty(target, session.entries)
        name = _publish(session, found, path)
    finally:
        session.close()
    for line in _first(found.lines):
        logger.info("%s", line)
    for line in _first(found.left_out):
        logger.warning("Left out: %s", line)
    logger.info("Imported %s as %s.", path, os.path.join(target, name))
    return Checkpoint(os.path.join(target, name))


def _check_epoch(epoch: object) -> int:
    if type(epoch) is not int or not 0 <= epoch < 10**17:
        raise UsageError(f"epoch={epoch!r}: expected the number of completed epochs.", found=epoch)
    return epoch


def _first(lines: list[str]) -> list[str]:
    more = len(lines) - _SAID
    return [*lines[:_SAID], *([f"… and {more:,} more entries."] if more > 0 else [])]


def _check_empty(target: str, entries: list[Entry]) -> None:
    if entries:
        raise UsageError(
            f"{target} has {len(entries)} checkpoints already (the newest is {entries[-1].folder}); an import would bury "
            f"them. Next: import into a new directory.",
            path=target,
            found=[entry.folder for entry in entries],
        )


def _publish(session: Session, found: Sorted, path: str) -> str:
    now = book.now()
    progress = Progress(epoch=found.epoch, step=found.step)
    states = _capture(found)
    name = _name(session.next_sequence(), progress, now)
    note = f"Imported from {os.path.basename(path)}. " + " ".join([*found.lines, *_left_out(found)])
    manifest = Manifest(
        run=session.book.id,
        name=name,
        sequence=session.next_sequence(),
        created=now,
        progress=progress,
        note=note if len(note) <= _NOTE_LIMIT else note[: _NOTE_LIMIT - 1] + "…",
        init={part: {"reference": path, "run": None, "name": "a foreign file"} for part in found.parts},
        parts=describe_parts(states, {}, {}),
        environment=tree.encode(environment.gather(), "environment"),
    )
    if found.metrics:
        manifest.metrics = {key: tree.encode(value, key) for key, value in found.metrics.items()}
        manifest.history = [{"epoch": found.epoch, "step": found.step, **manifest.metrics}]
    saver = Saver(session, Keep(), on_nan="mark", staging=0)
    saver.save(states, manifest, "imported")
    saver.drain()
    book.note_event(session.path, "import", name=name, source=path, parts=list(found.parts))
    return name


def _name(sequence: int, progress: Progress, now: str) -> str:
    import datetime

    created = datetime.datetime.fromisoformat(now)
    name = str(CheckpointName(sequence, progress.epoch, progress.step, created))
    if parse_checkpoint_name(name) is None:
        raise CheckpointError(f"{name!r} is no checkpoint name: its epoch or step is out of range.")
    return name


def _left_out(found: Sorted) -> list[str]:
    return [f"Left out: {line}" for line in found.left_out]


def _capture(found: Sorted) -> dict[str, PartState]:
    states = {name: capture_part(name, value, found.kinds[name]) for name, value in found.parts.items()}
    if found.state:
        states["state"] = capture.capture_value("state", found.state, "value")
    return states


def capture_part(name: str, value: object, kind: str) -> PartState:
    """A part's state; a mapping of payload arrays is one already."""
    from holdfast.payload.array import Array

    if isinstance(value, dict) and value and all(isinstance(item, Array) for item in value.values()):
        home = "torch" if kind.startswith("torch.") else "numpy"
        part = PartState(kind, {"$": FLAT, "v": home}, value)
        if home == "numpy":
            _mark_weights(part)
            return part
    elif kind == "torch.Module" and isinstance(value, dict):
        part = _capture_module(name, value)
    elif capture.kind_of(value) is not None:
        return capture.capture(name, value, {})
    else:
        return capture.capture_value(name, value, kind)
    for key, array in part.arrays.items():
        # Which arrays are parameters is not written in a state_dict; these names say it.
        array.check = key.rpartition(".")[2] in ("weight", "bias")
    return part


def _mark_weights(part: PartState) -> None:
    """Has NaN looked for in weights, and not in what an optimizer keeps."""
    for array in part.arrays.values():
        array.check = part.kind.endswith("Weights") and array.dtype in ("F16", "BF16", "F32", "F64")


def _capture_module(name: str, value: dict[str, object]) -> PartState:
    """A state_dict as a module's part: tensors under their own names, extra state beside them."""
    tensors = {key: item for key, item in value.items() if adapters.array_framework(type(item)) is not None}
    extra = {key: item for key, item in value.items() if key not in tensors}
    part = capture.capture_value(name, tensors, "torch.Module")
    if not extra:
        return part
    inner: dict[str, object] = {}
    values = tree.encode(extra, name, inner)
    own = {key: {"$": "torch", "v": key} for key in tensors}
    described = {key: adapters.edge("torch").describe(item, f"{name}{key}") for key, item in inner.items()}
    return PartState("torch.Module", {**own, **values}, {**part.arrays, **described})
