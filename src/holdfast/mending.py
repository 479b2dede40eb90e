"""A damaged mirror in an object store, made whole from the run that it mirrors.

A mirror in a directory is a run itself, and is repaired as one. In a bucket nothing is written by pieces: so a
damaged file is sent anew, whole, and a checkpoint is published again as it was at first, `checkpoint.json` last. The
lease of the run is held meanwhile, so that no training writes the same mirror.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence

from holdfast.errors import FormatError, HoldfastError, LeaseError, NotFoundError, StorageError, UsageError
from holdfast.mirrors import copying
from holdfast.mirrors.mirror import Mirror
from holdfast.mirrors.place import Part, Place, Target
from holdfast.mirrors.places import place_of
from holdfast.mirrors.repairing import Repaired
from holdfast.mirrors.state import other_run
from holdfast.objects import urls
from holdfast.payload.source import FolderSource, Source
from holdfast.session import Session
from holdfast.store import book, catalog


def repair_mirror(
    url: str,
    broken: Mapping[str, Collection[str]],
    places: Sequence[str],
    say: Callable[[str], None],
) -> dict[str, Repaired | HoldfastError]:
    """Makes damaged checkpoints of a mirror whole; gives for each what was done, or why it could not be.

    What is sent is read in full before anything in the mirror is touched: it is whole, or nothing is done.

    Args:
        url: the mirror.
        broken: the names of the checkpoints, and for each the files that are damaged; none where that is not known.
        places: where to take from; the first that is a directory is the run, whose lease is held. The other mirrors
            that it names are taken as well.
        say: gets a line on what is waited for.

    Raises:
        LeaseError: a living process holds the run.
        UsageError: no directory of a run is named, or it is another one.

    """
    run = run_among(places, url)
    session = Session.open(run, wait=0, say=say)
    try:
        place = place_of(url, session.lease.token)
        found = place.book()
        if found is None:
            raise NotFoundError(f"There is no mirror at {url} any more.", path=url, candidates=[])
        if found.id != session.book.id:
            raise other_run(run, session.book.id, url, found.id)
        place.entries()
        others = _others(session, place, [Mirror(other).path for other in places], say)
        done: dict[str, Repaired | HoldfastError] = {}
        for name, files in broken.items():
            try:
                done[name] = _mend(session, place, others, name, files)
            except LeaseError:
                raise
            except HoldfastError as error:
                done[name] = error
        return done
    finally:
        session.close()


def run_among(places: Sequence[str], url: str) -> str:
    """The directory of the run among some places.

    Raises:
        UsageError: there is none.

    """
    run = next((Mirror(place).path for place in places if not urls.is_url(place)), None)
    if run is None or not catalog.is_run(run):
        raise UsageError(
            f"{url} is repaired from the run that it mirrors{f', and {run} is no run' if run else ''}. "
            f"Next: holdfast verify {url} --repair --mirror RUN, where RUN is that run's directory.",
            path=url,
        )
    return run


def _others(
    session: Session, place: Place, named: Sequence[str], say: Callable[[str], None]
) -> list[tuple[Place, set[str]]]:
    """The other mirrors of the run, and the names of what each has."""
    known = [entry["url"] for entry in session.book.mirrors or () if isinstance(entry.get("url"), str)]
    found = []
    for url in dict.fromkeys([*named, *known]):
        if url in (place.url, session.path):
            continue
        other = place_of(url, session.lease.token)
        try:
            theirs = other.book()
            there = {entry.folder for entry in other.entries()} if theirs is not None else set()
        except StorageError as error:
            say(f"The mirror {url} cannot be read: {error}")
            continue
        if theirs is not None and theirs.id == session.book.id:
            found.append((other, there))
    return found


def _mend(
    session: Session,
    place: Place,
    others: Sequence[tuple[Place, set[str]]],
    name: str,
    files: Collection[str],
) -> Repaired:
    own = os.path.join(session.path, name)
    sources: list[Source] = [FolderSource(own)] if catalog.is_checkpoint(own) else []
    sources += [other.source(name) for other, there in others if name in there]
    if not sources:
        raise NotFoundError(
            f"{name} is no more in {session.path}, and in no other mirror that can be read.",
            path=session.path,
            candidates=[],
        )
    contents = copying.contents(sources)
    if (contents.manifest.run, contents.manifest.name) != (session.book.id, name):
        raise FormatError(f"{sources[0].path} is foreign: its manifest is another's.", path=sources[0].path)
    copying.copy(sources, _Nowhere(), lambda _: None, contents)
    target = _Anew(place.target(name), files)
    session.lease.check()
    copied = copying.copy(sources, target, lambda _: session.lease.check(), contents)
    session.lease.check()
    place.publish(name)
    book.note_event(session.path, "mirror", url=place.url, name=name, bytes=copied.sent, repaired=target.sent)
    return Repaired(target.sent, copied.sent)


class _Anew:
    """A target that is not believed what it says of damaged files.

    Args:
        target: where it goes.
        files: those that are damaged; none: any may be.

    """

    def __init__(self, target: Target, files: Collection[str]) -> None:
        self._target, self._files = target, files
        self.sent: list[str] = []

    def begin(self, files: Mapping[str, str]) -> None:
        self._target.begin(files)

    def has(self, file: str, size: int) -> bool:
        believed = bool(self._files) and file not in self._files
        return believed and self._target.has(file, size)

    def part(self, file: str, size: int) -> Part:
        self.sent.append(file)
        return self._target.part(file, size)

    def finish(self) -> None:
        self._target.finish()


class _Nowhere:
    """A target that keeps nothing: what a copy reads is only checked."""

    def begin(self, files: Mapping[str, str]) -> None:
        """Nothing is prepared."""

    def has(self, file: str, size: int) -> bool:  # noqa: ARG002 (nothing is here)
        return False

    def part(self, file: str, size: int) -> Part:  # noqa: ARG002 (of no size)
        return _NoPart()

    def finish(self) -> None:
        """Nothing is kept."""


class _NoPart:
    found = 0

    def read(self, into: memoryview, offset: int) -> bool:  # noqa: ARG002 (nothing was left)
        return False

    def write(self, data: memoryview, offset: int) -> None:
        """Keeps nothing of it."""

    def finish(self) -> None:
        """There is nothing to finish."""

    def close(self) -> None:
        """There is nothing to close."""
