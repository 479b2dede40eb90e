"""What a launch takes from the mirrors of its run: newer checkpoints, and blocks in the place of damaged ones."""

from __future__ import annotations

from holdfast.errors import DamagedError, HoldfastError, LeaseError
from holdfast.log import logger
from holdfast.mirrors import fetching, repairing
from holdfast.mirrors.mirroring import Mirroring
from holdfast.policy.keep import Keep
from holdfast.session import Session
from holdfast.store import book, catalog
from holdfast.store.entry import Entry


def catch_up(session: Session, keep: Keep, mirroring: Mirroring | None) -> None:
    """Fetches what mirrors have and the run has not, as far as it is needed to go on from there."""
    if mirroring is None:
        return
    with session.telling_loss():
        _repair_manifests(session, mirroring)
        fetched = fetching.catch_up(
            session.path,
            session.writing,
            session.entries,
            session.book.rewound,
            keep,
            mirroring.states,
            session.lease.check,
        )
    if fetched:
        _scan(session)


def _repair_manifests(session: Session, mirroring: Mirroring) -> None:
    """Checkpoints whose manifest is damaged are told from whole ones before any is tried."""
    whole = next(catalog.newest(session.entries), None)
    for entry in list(session.entries):
        newer = whole is None or entry.sequence > whole.sequence
        if newer and not entry.abandoned and isinstance(entry.problem, DamagedError):
            repair(session, entry, mirroring, entry.problem)


def repair(session: Session, entry: Entry, mirroring: Mirroring | None, error: HoldfastError) -> bool:
    """Makes a damaged checkpoint whole from the mirrors that have it; False where that cannot be done."""
    sources = mirroring.sources(entry.folder) if mirroring is not None else []
    if not sources:
        return False
    logger.warning("%s is damaged, and is repaired from a mirror: %s", entry.folder, error)
    try:
        with session.telling_loss():
            done = repairing.repair(session.path, entry.folder, session.writing, sources, session.lease.check)
    except LeaseError:
        raise
    except HoldfastError as failure:
        logger.warning("%s could not be repaired: %s", entry.folder, failure)
        return False
    note_repair(session.path, entry.folder, done)
    logger.info("Repaired %s: %s (%d bytes fetched).", entry.folder, ", ".join(done.files), done.fetched)
    _scan(session)
    return bool(done.files)


def note_repair(run: str, name: str, done: repairing.Repaired) -> None:
    book.note_event(run, "repair", name=name, files=done.files, bytes=done.fetched)


def _scan(session: Session) -> None:
    """Reads the list of checkpoints again; the list itself stays the same object."""
    session.entries[:] = catalog.scan(session.path)
    session.touch()
