"""Bringing a training back to where its run stands: the newest checkpoint that is whole."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from holdfast import hyperparameters, mirrored
from holdfast.checkpoint import Checkpoint, open_checkpoint
from holdfast.errors import DamagedError, FormatError, HoldfastError, NotFoundError, StorageError, UsageError
from holdfast.format.manifest import Manifest
from holdfast.log import logger
from holdfast.session import Session
from holdfast.state import adapters, capture, environment, garbage, streams, tree
from holdfast.state.part import Plan, SavedPart
from holdfast.store import book, catalog
from holdfast.store.entry import Entry
from holdfast.training import Position, Training

# Parts up to this size are restored a second time when an epoch is entered again; see `restore_again`.
SMALL_PART = 64 << 20
_TOLD = 20  # of the checkpoints that are passed over


def resume(training: Training, takes: Callable[[Manifest], bool] | None = None) -> Manifest | None:
    """Restores everything from the newest whole clean checkpoint; None on a fresh run.

    Args:
        training: what is restored.
        takes: says of a checkpoint whether this loop can go on from there; an older one is tried otherwise.

    A launch that is refused here releases the run again. A damaged checkpoint is passed over for the next older one, loudly.

    Raises:
        UsageError: config or hyperparameters differ; nothing was restored.
        MismatchError: the checkpoint does not fit; nothing was restored.
        DamagedError: nothing whole is left.

    """
    training.need_saver().drain()
    try:
        manifest = _resume(training, takes)
        training.record_launch()
        if training.mirroring is not None:
            training.mirroring.hand_over()  # what an earlier launch could not finish
        if training.cue is not None:
            training.cue.resumed(training, manifest)
    except BaseException:
        training.give_up()
        raise
    return manifest


def _resume(training: Training, takes: Callable[[Manifest], bool] | None) -> Manifest | None:
    session = training.open()
    mirrored.catch_up(session, training.options.keep, training.mirroring)
    hyperparameters.check_fresh(training.options.fresh, training.things, training.declared)
    broken: list[Entry] = []
    failures: list[DamagedError | FormatError] = []
    passed: Entry | None = None
    for entry in _candidates(session, broken):
        try:
            if takes is not None and not takes(Checkpoint(entry.path).manifest):
                passed = passed or entry
                continue
            manifest = _restore_or_repair(training, entry)
        except (DamagedError, FormatError, NotFoundError) as error:
            if isinstance(error, NotFoundError) and catalog.is_checkpoint(entry.path):
                raise
            failure = error if not isinstance(error, NotFoundError) else FormatError(str(error))
            failures.append(failure)
            entry.problem = failure  # it counts no more: neither as one of the last nor as the best
            session.touch(entry)
            logger.warning("Passed over %s: %s", entry.folder, getattr(error, "brief", error))
            book.note_event(session.path, "damaged", name=entry.folder, problem=str(error))
            continue
        training.torn = False
        if passed is not None:
            logger.warning(
                "%s stands in the middle of an epoch, and the data of this launch can only begin one anew: the training goes "
                "on from %s. Next: give the data through run.batches(…), as the launch that saved it did.",
                passed.folder,
                manifest.name,
            )
        book.note_event(session.path, "resume", name=manifest.name, **dataclasses.asdict(training.position))
        return manifest
    if failures:
        raise _nothing_left(session.path, failures, changed=training.torn)
    # Foreign ones among them: a run whose checkpoints were renamed, or whose run.json is another's, is not new.
    problems = [entry.problem for entry in broken]
    if problems:
        raise _nothing_left(session.path, problems, changed=False)
    if passed is not None:
        raise UsageError(
            f"{passed.path} stands in the middle of an epoch, and the data of this launch can only begin one anew; no "
            f"checkpoint of {session.path} stands between two epochs. Next: give the data through run.batches(…), as the "
            f"launch that saved it did; or another directory.",
            found=passed.folder,
        )
    if session.entries:
        raise UsageError(
            f"All {len(session.entries)} checkpoints of {session.path} are marked abandoned: the one that a rewind went "
            f"back to is gone. Next: holdfast rewind {session.path} @seq={session.entries[-1].sequence} takes the newest "
            f"of them up again; to begin anew, use another directory.",
            found=[entry.folder for entry in session.entries],
        )
    _start_fresh(training)
    return None


def _restore_or_repair(training: Training, entry: Entry) -> Manifest:
    """Restores; a damaged checkpoint once more, after its damaged blocks were fetched from a mirror."""
    try:
        return _restore(training, entry.path)
    except DamagedError as error:
        if not mirrored.repair(training.open(), entry, training.mirroring, error):
            raise
    return _restore(training, entry.path)


def _candidates(session: Session, broken: list[Entry]) -> Iterator[Entry]:
    """What may be resumed from, best first; before each, the broken ones that were met on the way to it are told.

    Older ones than that are not looked at.

    Args:
        session: the run.
        broken: takes the broken ones, newest first.

    """
    unseen, first = list(session.entries), None
    candidates = catalog.newest(session.entries)
    while True:
        candidate = next(candidates, None)
        if first is None:
            first = candidate.sequence if candidate is not None else 0
        # A marked one is a candidate once all others have been looked at.
        far = candidate.sequence if candidate is not None and candidate.clean else 0
        met = []
        while unseen and unseen[-1].sequence >= far:
            entry = unseen.pop()
            if not entry.abandoned and entry.problem is not None:
                met.append(entry)
        _tell(session, met, first)
        broken += met
        if candidate is None:
            return
        yield candidate


def _tell(session: Session, met: list[Entry], first: int) -> None:
    for entry in met:
        if entry.problem is not None and entry.problem.facts.get("newer") and entry.sequence > first:
            raise entry.problem  # an upgrade reads it; going on from an older one would lose it
    for number, entry in enumerate(reversed(met)):
        if number >= len(met) - _TOLD:
            logger.warning("Passed over %s: %s", entry.folder, entry.problem)
        if not entry.foreign:
            book.note_event(session.path, "damaged", name=entry.folder, problem=str(entry.problem))
    if len(met) > _TOLD:
        logger.warning("Passed over %d older ones as well: holdfast verify names them.", len(met) - _TOLD)


def _nothing_left(path: str, failures: list[Any], *, changed: bool) -> HoldfastError:
    first = failures[0]
    if isinstance(first, StorageError):  # permissions, a lost mount: nothing says that it is damaged
        return first
    text = (
        f"No checkpoint of {path} is whole: {len(failures)} were tried. The newest says: {first} "
        f"Next: holdfast verify {path}; to begin anew, use another directory."
    )
    facts = {key: value for key, value in first.facts.items() if key not in ("target_changed", "path")}
    error = DamagedError(text, **{"file": None, "block": None, "arrays": [], **facts, "path": path})
    return error.changed_target() if changed else error


def _start_fresh(training: Training) -> None:
    training.position = Position()
    training.origin = None
    training.journal.history, training.applied, training.restored_random = [], {}, {}
    training.note_saved()
    training._last_saved = None
    training.stopped = training.stopping = False
    book.note_event(training.open().path, "start")
    training.init_record = _start_from(training) or None


def _start_from(training: Training) -> dict[str, Any]:
    """Restores the parts named in `init`; all of them fit, or none is changed. Returns what is recorded.

    A part that `fresh` names whole stays as this launch made it.
    """
    for part in training.options.init:
        if part not in training.things:
            raise UsageError(
                f"init={{{part!r}: …}}: no part {part!r} is tracked. Tracked are: {', '.join(training.things) or 'none'}. "
                f"Next: run.track({part}=…) before the loop, or another name in init.",
                found=part,
            )
    fresh = set(training.options.fresh)
    sources = {part: where for part, where in training.options.init.items() if part not in fresh}
    opened = {reference: open_checkpoint(reference) for reference in set(sources.values())}
    plans = {reference: Plan() for reference in opened}
    record: dict[str, Any] = {}
    for part, reference in sources.items():
        checkpoint, plan = opened[reference], plans[reference]
        manifest, thing = checkpoint.manifest, training.things[part]
        own = {part: training.declared[part]} if part in training.declared else {}
        hyperparameters.check_declared(manifest.declared, own, fresh, checkpoint.path)
        capture.plan_restore(thing, checkpoint.saved(part), plan, training.things, keep=_kept(part, fresh))
        record[part] = {"reference": str(reference), "run": manifest.run, "name": checkpoint.name}
    for reference, plan in plans.items():
        plan.check_fit(opened[reference].path, "leave the part out of init")
    training.torn = bool(plans)  # until all are read
    for index, (reference, plan) in enumerate(plans.items()):
        try:
            _read(opened[reference], plan)
        except DamagedError as error:
            raise error.changed_target() if index and not error.target_changed else error from None
    training.torn = False
    for part, reference in sources.items():
        logger.info("Part %r starts from %s.", part, opened[reference].path)
    return record


@garbage.paused()
def _restore(training: Training, path: str) -> Manifest:
    checkpoint = Checkpoint(path)
    manifest, options = checkpoint.manifest, training.options
    hyperparameters.check_config(manifest.config, options.config, options.changed, path)
    applying = hyperparameters.to_apply(options.fresh, training.declared, manifest.fresh)
    hyperparameters.check_declared(manifest.declared, training.declared, applying, path)
    saved = checkpoint.arrays().parts
    targets = _targets(training, saved, applying, path)
    plan = Plan()
    for name, thing in targets.items():
        capture.plan_restore(thing, checkpoint.saved(name), plan, training.things, keep=_kept(name, applying))
    plan.check_fit(path, _anew(plan))
    values: dict[str, Any] = {
        name: plan.value(checkpoint.saved(name)) for name in ("state", "random", "grads") if name in saved
    }
    answer = None
    if training.probe is not None and "probe" in saved:
        answer = plan.value(checkpoint.saved("probe"))
    before, training.torn = training.torn, True  # until the last line below: whatever ends this earlier
    try:
        _read(checkpoint, plan)
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


def _read(checkpoint: Checkpoint, plan: Plan) -> None:
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


def _kept(name: str, applying: set[str]) -> tuple[str, ...]:
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
        _plan_again(training, thing, part, plan, _kept(name, applying))
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
