"""What a launch takes from the mirrors of its run: newer checkpoints, and blocks in the place of damaged ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from holdfast.errors import (
    DamagedError,
    HoldfastError,
    LeaseError,
    NotFoundError,
    StorageError,
    UsageError,
)
from holdfast.log import logger
from holdfast.mirrors import fetching, repairing
from holdfast.mirrors.mirror import Mirror
from holdfast.mirrors.mirroring import Mirroring
from holdfast.mirrors.place import Place
from holdfast.mirrors.places import place_of
from holdfast.mirrors.state import other_run
from holdfast.policy.keep import Keep
from holdfast.session import Session
from holdfast.store import book, catalog
from holdfast.store.entry import Entry

_RECENT = 1 << 20  # bytes of the history


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
    logger.warning(
        "%s is damaged, and is repaired from a mirror: %s", entry.folder, getattr(error, "brief", error)
    )
    try:
        with session.telling_loss():
            done = repairing.repair(session.path, entry.folder, session.writing, sources, session.lease.check)
    except LeaseError:
        raise
    except HoldfastError as failure:
        logger.warning("%s could not be repaired: %s", entry.folder, failure)
        return False
    _note(session.path, entry.folder, done)
    logger.info("Repaired %s: %s (%d bytes fetched).", entry.folder, ", ".join(done.files), done.fetched)
    _scan(session)
    return bool(done.files)


def names_in_mirrors(run: str) -> set[str]:
    """The checkpoints that some mirror has, as far as the recent history tells: for people, no mirror is asked."""
    held: dict[str, set[str]] = {}
    for event in book.read_events(run, _RECENT):
        url, name, deleted = (event.get(key) for key in ("url", "name", "deleted"))
        if event.get("event") not in ("mirror", "fetch") or not isinstance(url, str) or "problem" in event:
            continue
        if isinstance(name, str):
            held.setdefault(url, set()).add(name)
        if isinstance(deleted, str):
            held.get(url, set()).discard(deleted)
    return {name for names in held.values() for name in names}


def repair_run(
    run: str, broken: Sequence[str], mirrors: Sequence[str], say: Callable[[str], None]
) -> dict[str, repairing.Repaired | HoldfastError]:
    """Makes damaged checkpoints of a run whole; gives for each what was done, or why it could not be.

    Args:
        run: the run's directory.
        broken: the names of the checkpoints.
        mirrors: directories and URLs to take from; those that run.json names are taken as well.
        say: gets a line on what is waited for.

    Raises:
        LeaseError: a living process holds the run.
        UsageError: no mirror is known, or one is of another run.

    """
    session = Session.open(run, wait=0, say=say)
    try:
        known = [entry["url"] for entry in session.book.mirrors or () if isinstance(entry.get("url"), str)]
        urls = list(dict.fromkeys([*(Mirror(url).path for url in mirrors), *known]))
        if not urls:
            raise UsageError(
                f"{run} has no mirror to be repaired from. Next: holdfast verify {run} --repair --mirror DIR",
                path=run,
            )
        places: list[tuple[Place, set[str]]] = []
        for url in urls:
            place = place_of(url, session.lease.token)
            try:
                found = place.book()
                there = {entry.folder for entry in place.entries()} if found is not None else set()
            except StorageError as error:
                if url not in known:
                    raise
                say(f"The mirror {url} cannot be read: {error}")
                continue
            if found is None:
                say(f"There is no mirror in {url}.")
            elif found.id != session.book.id:
                raise other_run(run, session.book.id, url, found.id)
            else:
                places.append((place, there))
        done: dict[str, repairing.Repaired | HoldfastError] = {}
        for name in broken:
            sources = [place.source(name) for place, there in places if name in there]
            if not sources:
                done[name] = NotFoundError(f"No mirror has {name}.", path=run, candidates=[])
                continue
            try:
                repaired = repairing.repair(run, name, session.writing, sources, session.lease.check)
            except LeaseError:
                raise
            except HoldfastError as error:
                done[name] = error
                continue
            done[name] = repaired
            _note(run, name, repaired)
        return done
    finally:
        session.close()


def _note(run: str, name: str, done: repairing.Repaired) -> None:
    book.note_event(run, "repair", name=name, files=done.files, bytes=done.fetched)


def _scan(session: Session) -> None:
    """Reads the list of checkpoints again; the list itself stays the same object."""
    session.entries[:] = catalog.scan(session.path)
    session.touch()
