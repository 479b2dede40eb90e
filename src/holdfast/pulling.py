"""Taking a run's checkpoints from another place, by hand: into a new run, or into one that lacks some."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence

from holdfast import storage
from holdfast.errors import (
    DamagedError,
    FormatError,
    HoldfastError,
    NotFoundError,
    UsageError,
)
from holdfast.format.manifest import CHECKPOINT_FILE
from holdfast.log import logger
from holdfast.mirrors import arrivals, choice, fetching
from holdfast.mirrors.arrivals import Arrivals
from holdfast.mirrors.crew import Crew
from holdfast.mirrors.places import place_of
from holdfast.mirrors.transfer import JOBS, Item, Transfer, ask
from holdfast.objects import urls
from holdfast.session import Session, check_place
from holdfast.store import book, catalog, retention
from holdfast.store.book import RunBook
from holdfast.store.entry import Entry
from holdfast.store.lease import Lease


class Pull:
    """What is to be taken from a place into a run; `go` does it.

    Args:
        url: a directory, or `s3://…`, `gs://…`, `az://…`.
        run: the run's directory, which may be new.
        only: which checkpoints, as `choice.WORDS` says; by default all that are whole and not abandoned.

    Attributes:
        items: the checkpoints, oldest first; those that are not "waiting" need no copy, or cannot have one.

    Raises:
        UsageError: the run's directory is of another run, or something else.
        NotFoundError: there is no run in that place, or no such checkpoint.
        StorageError: something cannot be read.

    """

    def __init__(self, url: str, run: str, only: Sequence[str] = ()) -> None:
        if urls.is_url(run):
            raise UsageError(
                f"{urls.redacted(run)} is no directory; pull brings checkpoints to this machine: holdfast pull URL RUN. "
                f"From here to there: holdfast push RUN URL.",
                found=urls.redacted(run),
            )
        self.run = os.path.abspath(os.path.expanduser(run))
        self.url = choice.apart(url, self.run)
        self.place = place_of(self.url, "")
        self._found = self._look()
        check_place(self.run)
        self.new = not catalog.is_run(self.run)
        self._own = None if self.new else book.read_run(self.run)
        self._compare(self._own)
        self._there = self.place.entries()
        own = {} if self.new else {entry.folder: entry for entry in catalog.scan(self.run)}
        with self.place.steady():
            ask([entry.read for entry in self._there], self.url)
            left = self._left_behind(own)
            self._entries = (
                choice.choose(self._there, catalog.keep_of(self._found, self.url), only, self.url)
                if only
                else [entry for entry in self._there if entry.folder not in left]
            )
            self._abandoned = left & {entry.folder for entry in self._entries}
            self.abandoned = 0 if only else len(left)
            """Checkpoints that a rewind left behind, which only come along where they are named."""
            self.items = [_item(entry, own.get(entry.folder)) for entry in self._entries]

    def _look(self) -> RunBook:
        if not urls.is_url(self.url) and not catalog.is_run(self.url):
            raise self._no_run(checkpoint=catalog.is_checkpoint(self.url))
        try:
            found = self.place.book()
        except UsageError as error:  # something else is there
            there = error.facts.get("found", ())
            raise self._no_run(checkpoint=CHECKPOINT_FILE in there) from None
        if found is None:
            raise NotFoundError(f"There is no run in {self.url}.", path=self.url, candidates=[])
        return found

    def _no_run(self, *, checkpoint: bool) -> NotFoundError:
        what = "a checkpoint, and no run" if checkpoint else "no run"
        swapped = (
            f" {self.run} is one: are the two swapped? The place comes first: holdfast pull URL RUN."
            if catalog.is_run(self.run)
            else ""
        )
        there = urls.is_url(self.url) or os.path.lexists(self.url)
        said = (
            f"{self.url} is {what}: it has no {book.RUN_FILE}."
            if there
            else f"There is nothing at {self.url}."
        )
        return NotFoundError(f"{said}{swapped}", path=self.url, candidates=[])

    def _left_behind(self, own: Mapping[str, Entry]) -> set[str]:
        """What a rewind left behind, here or there; what the run did not know of is told by its time."""
        marked = catalog.marks(self.run, catalog.ABANDONED) if own else set()
        highest = max((entry.sequence for entry in own.values()), default=0)
        rewound = self._own.rewound if self._own is not None and own else None
        if rewound is not None and rewound <= (self._found.rewound or ""):
            rewound = None  # the place knows of it, and has marked what it left behind
        left = {entry.folder for entry in self._there if entry.abandoned or entry.folder in marked}
        if rewound is not None:
            for entry in self._there:
                if entry.folder not in own and entry.sequence > highest:
                    created = entry.summary.created if entry.summary is not None else ""
                    left |= {entry.folder} if created <= rewound else set()
        return left

    def _compare(self, own: RunBook | None) -> None:
        if own is not None and own.id != self._found.id:
            raise UsageError(
                f"{self.run} is another run than that in {self.url}: its id is {own.id}, and that one's is "
                f"{self._found.id}. Nothing was written. Next: pull into a new directory.",
                path=self.run,
                expected=self._found.id,
                found=own.id,
            )

    @property
    def waiting(self) -> list[Item]:
        """What is to be fetched, in the order in which it is: what a launch resumes from, the best, then the newer first."""
        ranked = [entry.folder for entry in catalog.newest(self._entries)][:1]
        keep = catalog.keep_of(self._found, self.url)
        best = retention.best_record(keep, self._entries) if keep is not None and keep.metric else None
        ranked += [best.name] if best is not None else []
        waiting = [item for item in reversed(self.items) if item.status == "waiting"]
        place = {name: number for number, name in reversed(list(enumerate(ranked)))}
        return sorted(waiting, key=lambda item: place.get(item.name, len(ranked)))

    def go(
        self,
        jobs: int = JOBS,
        progress: Callable[[int], None] = lambda _: None,
        ended: Callable[[Item], None] = lambda _: None,
        wait: float = 0,
    ) -> None:
        """Fetches what is waiting; each item's `status` tells what became of it.

        Killed at any instant, the next pull of the same goes on at the block. Each checkpoint becomes visible when it is
        whole and durable.

        Raises:
            LeaseError: a living process holds the run.
            StorageError: there is no room, or something cannot be read or written; what was fetched stays.

        """
        if self.new and not self.waiting:
            return
        self._check_room()
        session = Session.open(self.run, wait=wait, say=logger.warning, identify=self._adopt)
        try:
            with session.telling_loss(), self.place.steady():
                self._fetch(session, jobs, progress, ended)
        finally:
            session.close()

    def _adopt(self, lease: Lease, own: RunBook | None) -> RunBook | None:
        self._compare(own)
        # Before run.json: a launch that comes after a kill sees that something was being fetched.
        if self.waiting or arrivals.left_in(self.run):
            Arrivals(self.run, lease.writing).enter()
        highest = max((entry.sequence for entry in self._there), default=0)
        mine = own or self._found
        if own is None or own.used < highest:
            mine.used = max(highest, mine.used)
            return mine
        return None

    def _fetch(
        self,
        session: Session,
        jobs: int,
        progress: Callable[[int], None],
        ended: Callable[[Item], None],
    ) -> None:
        area = Arrivals(self.run, session.writing)
        waiting = self.waiting
        transfer = Transfer(jobs, progress, ended)
        self.place.heed(transfer.check)
        pinned = {entry.folder for entry in self._entries if entry.pinned}

        def carry(item: Item, crew: Crew) -> Callable[[], None] | None:
            started = time.monotonic()
            try:
                copied = fetching.bring(
                    [self.place.source(item.name)], area, item.name, item.size, transfer.tell, crew=crew
                )
            except (DamagedError, FormatError, NotFoundError) as error:
                if isinstance(error, NotFoundError) and not os.path.isdir(area.path):
                    raise
                area.forget(item.name)
                self._note_failure(item, error)
                return None
            item.sent, item.found = copied.sent, copied.found

            def publish() -> None:
                session.lease.check()
                if item.name in self._abandoned:
                    retention.abandon(self.run, item.name)
                area.publish(item.name)
                if item.name in pinned:
                    retention.mark(self.run, catalog.PINS, item.name)
                item.status = "copied"
                fetching.note(self.run, item.name, self.url, copied, started)

            return publish

        transfer.bring(waiting, carry)
        if os.path.isdir(area.path):
            area.leave()
        self._point_links(session)

    def _note_failure(self, item: Item, error: HoldfastError) -> None:
        there = {entry.folder for entry in self.place.entries()}
        item.status, item.problem = ("damaged", error) if item.name in there else ("gone", None)

    def _check_room(self) -> None:
        waiting = self.waiting
        needed = sum(max(0, item.size - arrivals.held_in(self.run, item.name)) for item in waiting)
        if waiting:
            storage.check_room(self.run, needed, "pull")

    def _point_links(self, session: Session) -> None:
        entries = catalog.scan(self.run)
        keep = catalog.run_keep(self.run)
        best = retention.best_record(keep, entries) if keep is not None and keep.metric else None
        latest = next((entry.folder for entry in reversed(entries) if entry.usable), None)
        retention.point_links(self.run, session.writing, latest, best.name if best else None)


def _item(entry: Entry, own: Entry | None) -> Item:
    item = Item(entry.folder, entry.size)
    if own is not None and own.whole:
        item.status = "there"
    elif own is not None:
        item.status = "damaged"
        item.problem = DamagedError(
            f"{own.path} is here, and damaged: {own.problem} Next: holdfast verify {os.path.dirname(own.path)} --repair "
            f"--mirror {os.path.dirname(entry.path)}",
            path=own.path,
        )
    elif entry.foreign:
        item.status, item.problem = "foreign", entry.problem
    elif entry.problem is not None:
        item.status, item.problem = "damaged", entry.problem
    return item
