"""Letting a run continue from an older checkpoint. The newer ones are marked, not deleted.

A mark is an empty file `abandoned/<name>`. Whoever deletes it undoes the rewind of that
checkpoint; to rewind to an abandoned checkpoint takes its own mark away.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence

from holdfast.checkpoint import Checkpoint
from holdfast.errors import NotFoundError, UsageError
from holdfast.format import names
from holdfast.format.manifest import Manifest
from holdfast.log import logger
from holdfast.session import Session
from holdfast.store import book, catalog, retention, sources
from holdfast.store.entry import Entry


@dataclasses.dataclass(frozen=True)
class Rewound:
    """What a rewind did.

    Attributes:
        run: the run's absolute path.
        target: the name of the checkpoint that the next launch resumes from.
        path: its directory.
        abandoned: names that were marked now, oldest first.
        revived: whether the target itself was abandoned before.
        goal_cleared: whether the run was complete and is no longer.

    """

    run: str
    target: str
    path: str
    abandoned: list[str]
    revived: bool
    goal_cleared: bool


def rewind(
    run: str | os.PathLike[str],
    reference: str,
    *,
    wait: float = 0,
    progress: Callable[[int], None] | None = None,
    say: Callable[[str], None] = logger.info,
) -> Rewound:
    """Makes an older checkpoint the one that the next launch resumes from.

    The target is read and checked first, every byte of it. Then, under the lease, all newer
    ones are marked abandoned, the newest first: stopped half-way, the run is as if rewound
    less far, and the same call finishes it.

    Args:
        run: the run's directory.
        reference: ``@epoch=3``, ``@-2`` and the like, a checkpoint's name or path, or ``RUN@…``.
        wait: seconds to wait for a living holder of the lease.
        progress: told how many bytes of the target were just read.
        say: gets a line on what is waited for.

    Raises:
        NotFoundError: no such run or checkpoint.
        UsageError: the checkpoint is of another run, or a launch would not resume from it.
        DamagedError: the target is damaged; nothing was changed.
        LeaseError: a living process holds the run; nothing was changed.

    """
    place = sources.local(run, "a rewind")
    if not catalog.is_run(place):
        raise NotFoundError(
            f"{place} is not a run: it has no {book.RUN_FILE}. Next: holdfast ls {os.path.dirname(place)}",
            path=place,
            candidates=[],
        )
    target = find_in(place, catalog.scan(place), reference)
    _check_target(target, catalog.scan(place), progress)
    session = Session.open(place, wait=wait, say=say)
    try:
        return _rewind(session, target.path)
    finally:
        session.close()


def find_in(run: str, entries: Sequence[Entry], reference: str) -> Entry:
    """The checkpoint of this run that a reference means; a bare selector or name will do."""
    by_name = {entry.folder: entry for entry in entries}
    if reference in by_name:
        return by_name[reference]
    parsed = names.parse_reference(f"{run}{reference}" if reference.startswith("@") else reference)
    place = sources.local(parsed.place, "a rewind", "a checkpoint of the run itself")
    if os.path.realpath(place) == os.path.realpath(run):
        return catalog.find(run, entries, parsed)
    inside = os.path.realpath(os.path.dirname(place)) == os.path.realpath(run)
    # `latest` and `best` are links for people: what they point to is meant.
    name = os.path.basename(os.path.realpath(place) if os.path.islink(place) else place)
    if inside and name in by_name:
        return by_name[name]
    if os.path.exists(place):
        raise UsageError(
            f"{place} is not a checkpoint of the run {run}. Next: holdfast ls {run}", path=place, expected=run
        )
    listed = ", ".join(list(by_name)[-10:]) or "none yet"
    raise NotFoundError(
        f"The run {run} has no checkpoint {reference!r}. Name one of its checkpoints, or use "
        f"{names.SELECTORS}. It has: {listed}.",
        path=run,
        candidates=list(by_name),
    )


def _check_target(target: Entry, entries: Sequence[Entry], progress: Callable[[int], None] | None) -> None:
    """Refuses what a launch would not resume from."""
    if target.problem is not None:
        raise target.problem
    if target.nan:
        older = next((e for e in reversed(entries) if e.sequence < target.sequence and e.clean), None)
        if older is not None:
            raise UsageError(
                f"{target.path} is marked NaN ({', '.join(target.nan[:3])}); a launch would pass it over "
                f"for {older.folder}. Nothing was changed. Next: holdfast rewind RUN @seq={older.sequence}",
                path=target.path,
                found=target.nan,
            )
    problems = Checkpoint(target.path).verify(progress)
    if problems:
        raise problems[0]


def _rewind(session: Session, path: str) -> Rewound:
    run, entries = session.path, session.entries
    target = next((entry for entry in entries if entry.path == path), None)
    if target is not None and target.problem is not None:
        raise target.problem
    if target is None:
        raise NotFoundError(
            f"{path} was deleted meanwhile; nothing was changed. Next: holdfast ls {run}",
            path=path,
            candidates=[entry.folder for entry in entries],
        )
    # Other places may have newer ones than this run knows of: they do not undo the rewind.
    session.book.rewound = book.now()
    session.write_book()
    revived = target.abandoned
    if revived:  # first: stopped after the newer ones, the run would stand at an older one, or at none
        session.lease.check()
        retention.unmark(run, catalog.ABANDONED, target.folder)
        target.abandoned = False
    newer = [entry for entry in entries if entry.sequence > target.sequence and not entry.abandoned]
    for entry in reversed(newer):
        session.lease.check()
        retention.abandon(run, entry.folder)
        entry.abandoned = True
    cleared = session.book.reached is not None and not _complete(catalog.read_manifest(path))
    if cleared:
        session.book.reached = None
        session.write_book()
    best = None
    keep = catalog.run_keep(run)
    if keep is not None and keep.metric is not None:
        record = retention.best_record(keep, entries)
        best = record.name if record else None
    retention.point_links(run, session.writing, target.folder, best)
    abandoned = [entry.folder for entry in newer]
    book.note_event(run, "rewind", name=target.folder, abandoned=abandoned)
    return Rewound(run, target.folder, target.path, abandoned, revived, cleared)


def _complete(manifest: Manifest) -> bool:
    goal = manifest.goal
    if goal is None:
        return False
    done = manifest.progress.epoch if goal.kind == "epochs" else manifest.progress.step
    return manifest.stopped or done >= goal.value
