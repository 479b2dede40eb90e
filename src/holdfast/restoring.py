"""From a checkpoint into the live things of a training: all that fits, or nothing is changed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from holdfast import hyperparameters
from holdfast.checkpoint import Checkpoint
from holdfast.errors import DamagedError, FormatError, HoldfastError, UsageError
from holdfast.format.manifest import Manifest
from holdfast.log import logger
from holdfast.position import Position
from holdfast.state import adapters, capture, environment, garbage, streams, tree
from holdfast.state.part import Plan, SavedPart
from holdfast.training import Training

# Parts up to this size are restored a second time when an epoch is entered again; see `restore_again`.
SMALL_PART = 64 << 20


@garbage.paused()
def restore(training: Training, path: str) -> Manifest:
    """Restores everything from a checkpoint; gives its manifest.

    Raises:
        UsageError: config, hyperparameters or parts differ; nothing was restored.
        MismatchError: it does not fit; nothing was restored.
        DamagedError: a byte is not as written; the training is marked as torn where something was changed.

    """
    checkpoint = Checkpoint(path)
    manifest, options = checkpoint.manifest, training.options
    hyperparameters.check_config(manifest.config, options.config, options.changed, path)
    applying = hyperparameters.to_apply(options.fresh, training.declared, manifest.fresh)
    hyperparameters.check_declared(manifest.declared, training.declared, applying, path)
    saved = checkpoint.arrays().parts
    targets = _targets(training, saved, applying, path)
    plan = Plan()
    for name, thing in targets.items():
        capture.plan_restore(thing, checkpoint.saved(name), plan, training.things, keep=kept(name, applying))
    plan.check_fit(path, _anew(plan))
    values: dict[str, Any] = {
        name: plan.value(checkpoint.saved(name)) for name in ("state", "random", "grads") if name in saved
    }
    answer = None
    if training.probe is not None and "probe" in saved:
        answer = plan.value(checkpoint.saved("probe"))
    before, training.torn = training.torn, True  # until the last line below: whatever ends this earlier
    try:
        read(checkpoint, plan)
    except DamagedError as error:
        training.torn = before or error.target_changed
        raise
    training.state.clear()
    training.state.update(_mapping("state", values, path))
    training.restored_random = _random(values, manifest, path)
    training.restore_flags()
    _set_gradients(training, _mapping("grads", values, path))
    training.position = Position.at(manifest.progress)
    training.journal.history = list(manifest.history)
    training.applied = dict(manifest.fresh)
    training.init_record = manifest.init
    training.stopped = training.stopping = False
    training.origin = manifest
    training.note_saved()
    same = _compare_environment(training, checkpoint)
    if answer is not None and manifest.probe is not None and not applying:
        warning = training.probe.check(answer(), manifest.probe, same_environment=same)
        if warning:
            logger.warning("%s", warning)
    if training.restored_random:  # last: nothing after this may draw from a stream
        _restore_streams(training.restored_random, path)
    return manifest


def _anew(plan: Plan) -> str:
    parts = {name.partition("/")[0] for name in (*plan.missing, *plan.unexpected, *plan.different)}
    return f"begin with this launch's values of what differs: fresh={sorted(parts)!r}"


def _set_gradients(training: Training, gradients: Mapping[str, Any]) -> None:
    zeros = training.restored_random.get("zeros", {})
    for name, edge in adapters.loaded_edges():
        edge.set_gradients(training.things, gradients, zeros.get(name, False))


def _mapping(name: str, values: Mapping[str, Any], path: str) -> dict[Any, Any]:
    found = values[name]() if name in values else {}
    if not isinstance(found, dict):
        raise FormatError(f"{path}: its part {name!r} is a {type(found).__name__}, not a mapping.", path=path)
    return found


def _random(values: Mapping[str, Any], manifest: Manifest, path: str) -> dict[Any, Any]:
    """The part `random`, as far as the loop relies on its form."""
    found = _mapping("random", values, path)
    orders = [found[key] for key in ("order", "top") if key in found]
    inside = manifest.progress.entered or manifest.progress.batch > 0
    right = (
        all(isinstance(found[key], dict) for key in _INNER if key in found)
        and isinstance(found.get("first", {}), (dict, type(None)))
        and all(isinstance(order.get(key), dict) for order in orders for key in ("streams", "generators"))
        and all(
            isinstance(flags, dict) and all(type(flag) is bool for flag in flags.values())
            for flags in found.get("flags", {}).values()
        )
        and all(isinstance(zeros, (bool, list)) for zeros in found.get("zeros", {}).values())
        and (not inside or {"order", "generators"} <= set(found))
    )
    if not right:
        raise FormatError(
            f"{path}: its part 'random' is not as the format says, so the training cannot go on from it.",
            path=path,
        )
    return found


_INNER = ("streams", "generators", "order", "top", "touched", "zeros", "flags")


def _restore_streams(random: dict[str, Any], path: str) -> None:
    try:
        streams.restore(random["streams"])
    except (FormatError, KeyError) as error:
        raise FormatError(f"{path}: {error}", path=path) from error


def read(checkpoint: Checkpoint, plan: Plan) -> None:
    """Reads with a progress line for states that take long."""
    total = plan.nbytes
    started, shown = time.monotonic(), [time.monotonic()]
    done = [0]

    def progress(count: int) -> None:
        done[0] += count
        now = time.monotonic()
        if now - started > 5 and now - shown[0] > 5:
            shown[0] = now
            logger.info("reading %s: %d of %d MB", checkpoint.name, done[0] >> 20, total >> 20)

    checkpoint.read(plan, progress)


def _targets(training: Training, saved: Mapping[str, Any], applying: set[str], path: str) -> dict[str, Any]:
    missing = [
        name
        for name, thing in training.things.items()
        if name not in saved and name not in applying and not getattr(type(thing), "MAY_BE_MISSING", False)
    ]
    if missing:
        raise UsageError(
            f"{path} has no part {', '.join(map(repr, missing))}, which this launch tracks; nothing was restored. It has: "
            f"{', '.join(name for name in saved if name not in ('random', 'grads', 'probe'))}. "
            f"Next: if it is new, say so with fresh={missing!r}; else give it the name it had.",
            missing=missing,
        )
    for name in saved:
        if name not in training.things and name not in ("state", "random", "grads", "probe"):
            logger.warning(
                "%s has the part %r, which this launch does not track: it will be missing from later checkpoints.",
                path,
                name,
            )
    return {name: thing for name, thing in training.things.items() if name not in applying and name in saved}


def kept(name: str, applying: set[str]) -> tuple[str, ...]:
    """The options of a part that stay as this launch made them."""
    return tuple(item.partition(".")[2] for item in applying if item.startswith(f"{name}."))


def _compare_environment(training: Training, checkpoint: Checkpoint) -> bool:
    here = tree.decode(training.environment(), lambda *_: None)
    changes = environment.differences(checkpoint.environment, here)
    if changes:
        logger.warning(
            "Versions or devices changed since the save (%s): the training continues, but not to the bit.",
            "; ".join(changes),
        )
    return not changes


def restore_again(training: Training) -> None:
    """Restores what is small once more, when the interrupted epoch's batches are entered again.

    The top of the epoch's body has just run a second time (``run.state["loss"] = 0.0``); this
    undoes what it did. Restored are `run.state`, pending gradients (``opt.zero_grad()`` stands there,
    too), everything with a plain state_dict, the options of optimizers, and all other parts of up to
    64 MiB; the names in `fresh` are left alone. The random streams are the caller's, who sets them
    when the loader has been started.
    """
    manifest = training.origin
    checkpoint = Checkpoint(f"{training.open().path}/{manifest.name}")
    applying = hyperparameters.to_apply(training.options.fresh, training.declared, manifest.fresh)
    saved = checkpoint.arrays().parts
    plan = Plan()
    for name, thing in training.things.items():
        if name in applying or name not in saved:
            continue
        part = checkpoint.saved(name)
        _plan_again(training, thing, part, plan, kept(name, applying))
    values: dict[str, Any] = {
        name: plan.value(checkpoint.saved(name)) for name in ("state", "grads") if name in saved
    }
    plan.check_fit(checkpoint.path, _anew(plan))
    try:
        checkpoint.read(plan)
    except HoldfastError:
        training.torn = True
        raise
    training.state.clear()
    training.state.update(_mapping("state", values, checkpoint.path))
    training.restore_flags()
    _set_gradients(training, _mapping("grads", values, checkpoint.path))


def _plan_again(training: Training, thing: Any, part: SavedPart, plan: Plan, keep: tuple[str, ...]) -> None:
    kind = capture.kind_of(thing)
    if kind == "object" or part.nbytes() <= SMALL_PART:
        capture.plan_restore(thing, part, plan, training.things, keep=keep)
        return
    framework = adapters.home_framework(type(thing))
    if framework is not None and kind is not None and kind.endswith(".Optimizer"):
        adapters.edge(framework).plan_restore_options(thing, part, plan, training.things, keep=keep)
