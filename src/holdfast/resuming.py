"""Bringing a training back to where its run stands: the newest checkpoint that is whole."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from holdfast import hyperparameters, mirrored, restoring
from holdfast.checkpoint import Checkpoint, open_checkpoint
from holdfast.errors import DamagedError, FormatError, HoldfastError, NotFoundError, StorageError, UsageError
from holdfast.format.manifest import Manifest
from holdfast.log import logger
from holdfast.position import Position
from holdfast.session import Session
from holdfast.state import capture
from holdfast.state.part import Plan
from holdfast.store import book, catalog
from holdfast.store.entry import Entry
from holdfast.training import Training

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
        return restoring.restore(training, entry.path)
    except DamagedError as error:
        if not mirrored.repair(training.open(), entry, training.mirroring, error):
            raise
    return restoring.restore(training, entry.path)


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
        capture.plan_restore(
            thing, checkpoint.saved(part), plan, training.things, keep=restoring.kept(part, fresh)
        )
        record[part] = {"reference": str(reference), "run": manifest.run, "name": checkpoint.name}
    for reference, plan in plans.items():
        plan.check_fit(opened[reference].path, "leave the part out of init")
    training.torn = bool(plans)  # until all are read
    for index, (reference, plan) in enumerate(plans.items()):
        try:
            restoring.read(opened[reference], plan)
        except DamagedError as error:
            raise error.changed_target() if index and not error.target_changed else error from None
    training.torn = False
    for part, reference in sources.items():
        logger.info("Part %r starts from %s.", part, opened[reference].path)
    return record
