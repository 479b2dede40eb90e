"""What a run takes from its mirrors when it is opened: its identity, and checkpoints that it lacks."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from holdfast import meter, storage
from holdfast.errors import DamagedError, FormatError, HoldfastError, NotFoundError, StorageError
from holdfast.format.names import parse_checkpoint_name
from holdfast.log import logger
from holdfast.mirrors import arrivals, copying, plan
from holdfast.mirrors.arrivals import Arrivals
from holdfast.mirrors.copying import Copied
from holdfast.mirrors.mirror import Mirror
from holdfast.mirrors.plan import Offer
from holdfast.mirrors.state import State, other_run
from holdfast.objects import urls
from holdfast.payload.source import Source
from holdfast.policy.keep import Keep, Record, best_of
from holdfast.store import book, catalog, retention
from holdfast.store.book import RunBook
from holdfast.store.entry import Entry

_OVERHEAD = 1 << 20


def look(
    run: str, own: RunBook | None, writer: str, mirrors: Sequence[Mirror], keep: Keep
) -> tuple[list[State], RunBook | None]:
    """Looks at the mirrors of a run; gives their states, and the book of the run that an empty one takes up.

    Args:
        run: the run's directory.
        own: its book; None where it is new.
        writer: what tells this writer of the mirrors from all others.
        mirrors: as the user named them.
        keep: the run's own.

    Raises:
        UsageError: a mirror holds another run, or something else.
        StorageError: a mirror is out of reach, and the run is empty: it may well lie there.

    """
    empty = own is None or not catalog.scan(run)
    known = {
        entry.get("url")
        for entry in (own.mirrors if own is not None else None) or ()
        if entry.get("reached") is True
    }
    states = [State.of(mirror, keep, writer, mirror.path in known) for mirror in mirrors]
    adopted: RunBook | None = None
    for state in states:
        url = state.place.url
        try:
            with state.place.steady():
                state.found = state.place.book()
                entries = state.place.entries() if state.found is not None else []
                if state.found is not None:
                    state.saw(entries, read=False)
        except (StorageError, DamagedError) as error:
            if empty:
                raise _unreadable(run, error) from None  # it says all that the other one says
            state.problem = str(error)
            logger.warning("The mirror %s cannot be read: %s", url, error)
            continue
        if state.found is not None:
            fits = empty and (own is None or bool(entries and state.found.id != own.id))
            # Of several the one that knows of the last rewind.
            if fits and (adopted is None or (state.found.rewound or "") > (adopted.rewound or "")):
                adopted = state.found if adopted is None or adopted.id == state.found.id else adopted
            state.reached = True
    mine = adopted or own
    for state in states:
        if state.found is not None and mine is not None and state.found.id != mine.id:
            raise other_run(run, mine.id, state.place.url, state.found.id)
    return states, adopted


def highest(states: Sequence[State]) -> int:
    """The highest number that a checkpoint has in any mirror: a run that lost its own uses none of them again."""
    names = [parse_checkpoint_name(name) for state in states for name in state.standing.names]
    return max((name.sequence for name in names if name is not None), default=0)


def _entries(run: str, state: State, *, needed: bool) -> list[Entry]:
    """The checkpoints of a mirror. One that cannot be read is told; where it is needed, that is an error."""
    if state.found is None:
        return []
    try:
        return state.place.entries()
    except HoldfastError as error:
        if needed:
            raise _unreadable(run, error) from None
        logger.warning("The mirror %s cannot be read: %s", state.place.url, error)
        return []


def _unreadable(run: str, error: HoldfastError) -> HoldfastError:
    return type(error)(
        f"{run} has no checkpoint, and its mirror, which may have some, cannot be read: {error} "
        f"Nothing was begun. Next: make it readable; or start without this mirror, to begin anew.",
        **error.facts,
    )


def _left_behind(states: Sequence[State], there: Mapping[int, Sequence[Entry]]) -> set[str]:
    """What the last rewind of a lost run left behind, as the mirrors say that know of it; others may have missed it."""
    rewound = {
        number: state.found.rewound or "" for number, state in enumerate(states) if state.found is not None
    }
    last = max(rewound.values(), default="")
    return {
        entry.folder
        for number, time_of in rewound.items()
        if time_of == last
        for entry in there[number]
        if entry.abandoned
    }


def _newer(state: State, entries: Sequence[Entry], highest: int) -> list[tuple[Record, str]]:
    """The checkpoints in a mirror with a higher number, and when they were made.

    Raises:
        StorageError: one cannot be read. An older one must not be taken in its place.

    """
    with state.place.steady():
        return [(e.record(), e.summary.created if e.summary else "") for e in entries if e.sequence > highest]


def _damaged(listings: Iterable[Sequence[Entry]]) -> list[HoldfastError]:
    """What is the matter with checkpoints that mirrors hold, the newest first."""
    entries = [entry for entries in listings for entry in entries if not entry.abandoned]
    entries.sort(key=lambda entry: entry.sequence, reverse=True)
    return [entry.problem for entry in entries if isinstance(entry.problem, DamagedError)]


def catch_up(
    run: str,
    writing: str,
    local: Sequence[Entry],
    rewound: str | None,
    keep: Keep,
    states: Sequence[State],
    check: Callable[[], None],
) -> list[str]:
    """Fetches the newest checkpoint that mirrors have and the run has not; where the run is empty, the best as well.

    Args:
        run: the run's directory.
        writing: the directory that only the holder of its lease has.
        local: its checkpoints.
        rewound: when it was rewound last.
        keep: its own.
        states: its mirrors.
        check: raises when the lease is lost.

    Returns:
        The names that were fetched, the newest last.

    Raises:
        StorageError: there is no room for it, or it cannot be written; or the run is empty, and a mirror cannot be
            read.
        DamagedError: the run is empty, and no mirror has a whole one.

    """
    there = {number: _entries(run, state, needed=not local) for number, state in enumerate(states)}
    abandoned = catalog.marks(run, catalog.ABANDONED) | (set() if local else _left_behind(states, there))
    # By their names: a list may have thousands, and only newer ones are read.
    highest_here = max((entry.sequence for entry in local), default=0)
    newer = {number: _newer(states[number], entries, highest_here) for number, entries in there.items()}
    offered = plan.offers(highest_here, abandoned, rewound, newer)
    if not local and not offered:
        # Lost since it was rewound: what it was rewound to is older than that, and all that there is.
        offered = plan.offers(highest_here, abandoned, None, newer)
    area = Arrivals(run, writing)
    if offered or arrivals.left_in(run):
        area.enter()
    fetched: list[str] = []
    failures: list[HoldfastError] = []
    best = best_of(keep, [offer.record for offer in offered]) if not local else None
    # The best so far belongs to where the training stands, since later ones are compared with it. It comes
    # first: stopped after it, the run is behind, and the next launch fetches the newest.
    first = [offer for offer in offered if best is not None and offer.record.name == best.name]
    for offer in [*first, *offered]:
        if offer.record.name in fetched:
            break
        try:
            _fetch(run, area, offer, states, check)
        except (DamagedError, FormatError, NotFoundError) as error:
            failures.append(error)
            logger.warning("Passed over %s in the mirrors: %s", offer.record.name, error)
            continue
        fetched.append(offer.record.name)
        if offer not in first or offer is offered[0]:
            break
    if os.path.isdir(area.path):
        area.leave()
    if not local and not fetched:
        failures += _damaged(there.values())
        if failures:
            raise failures[0]
    if fetched:
        _tell(run, local, offered, fetched[-1], states)
    return fetched


def _tell(
    run: str, local: Sequence[Entry], offered: Sequence[Offer], name: str, states: Sequence[State]
) -> None:
    places = next(offer.places for offer in offered if offer.record.name == name)
    if local:
        logger.warning(
            "%s is behind its mirror %s: the training goes on from %s, which was fetched from there.",
            run,
            states[places[0]].place.url,
            name,
        )
    for number, state in enumerate(states):
        if number not in places and state.found is not None:
            logger.warning(
                "The mirror %s does not have %s, the newest one; it is brought up to date.",
                state.place.url,
                name,
            )


def _fetch(
    run: str, area: Arrivals, offer: Offer, states: Sequence[State], check: Callable[[], None]
) -> None:
    """Copies a checkpoint into the run, from all mirrors that have it, and publishes it."""
    name, started = offer.record.name, time.monotonic()
    sources = [states[number].place.source(name) for number in offer.places]
    url = states[offer.places[0]].place.url
    try:
        distant = any(urls.is_url(states[number].place.url) for number in offer.places)
        worth = meter.WORTH_SHOWING_DISTANT if distant else meter.WORTH_SHOWING
        with meter.measuring(f"fetching {name}", offer.record.size, logger.info, worth) as tell:
            copied = bring(sources, area, name, offer.record.size, tell)
    except (DamagedError, FormatError, NotFoundError):
        area.forget(name)
        raise
    check()
    area.publish(name)
    if offer.record.pinned:
        retention.mark(run, catalog.PINS, name)
    logger.info("Fetched %s from the mirror %s.", name, url)
    note(run, name, url, copied, started)


def bring(
    sources: Sequence[Source], area: Arrivals, name: str, size: int, tell: Callable[[int], None], **how: Any
) -> Copied:
    """Copies a checkpoint to where it waits to be published; what is there of it already is not read again.

    Args:
        sources: the checkpoint in the places that have it.
        area: where it goes.
        name: the checkpoint.
        size: bytes of all its files.
        tell: told of bytes that are there; may raise to end the copy.
        how: passed on to `copying.copy`.

    Raises:
        StorageError: there is no room; what was fetched so far stays for the next attempt.

    """
    needed = max(0, size - arrivals.held_in(area.run, name)) + _OVERHEAD
    storage.check_space(area.path, needed)
    try:
        return copying.copy(sources, area.target(name), tell, passed=tell, **how)
    except StorageError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        told = storage.explain(error, area.path, needed, out_of_files=storage.out_of_files(area.path))
        raise StorageError(
            f"{told} What was fetched of it stays in {area.path}, and the next attempt goes on with it; the run is as it "
            f"was.",
            **told.facts,
        ) from error


def note(run: str, name: str, url: str, copied: Copied, started: float) -> None:
    """Adds the fetch of a checkpoint to the run's history; `started` is on the monotonic clock."""
    seconds = round(time.monotonic() - started, 4)
    book.note_event(run, "fetch", name=name, url=url, bytes=copied.sent, found=copied.found, seconds=seconds)
