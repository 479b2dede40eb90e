"""Copying a run's checkpoints to another place, by hand.

It takes no lease: a checkpoint does not change once it is published, and what is written lies elsewhere. Nothing is
ever deleted there.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import uuid
from collections.abc import Callable, Iterator, Sequence

from holdfast import files, storage
from holdfast.errors import (
    DamagedError,
    FormatError,
    HoldfastError,
    LeaseError,
    NotFoundError,
    StorageError,
    UsageError,
)
from holdfast.format.manifest import CHECKPOINT_FILE, READ_LIMIT_CHECKPOINT
from holdfast.mirrors import choice, copying, folder
from holdfast.mirrors.crew import Crew
from holdfast.mirrors.folder import Folder
from holdfast.mirrors.places import place_of
from holdfast.mirrors.state import other_run
from holdfast.mirrors.transfer import JOBS, Item, Transfer, ask
from holdfast.objects import urls
from holdfast.payload.source import FolderSource
from holdfast.store import book, catalog
from holdfast.store.entry import Entry
from holdfast.store.lease import living_holder


class Push:
    """What is to be copied from a run to a place; `go` does it.

    Args:
        run: the run's directory.
        url: a directory, or `s3://…`, `gs://…`, `az://…`.
        only: which checkpoints, as `choice.WORDS` says; by default all that are whole and not abandoned.

    Attributes:
        items: the checkpoints, oldest first; those that are not "waiting" need no copy, or cannot have one.

    Raises:
        UsageError: there is no run, or the place is of another run, or something else.
        NotFoundError: there is no such checkpoint.
        LeaseError: a living training keeps this place up to date itself.
        StorageError: something cannot be read.

    """

    def __init__(self, run: str, url: str, only: Sequence[str] = ()) -> None:
        self.run = run_at(run, url)
        self.url = choice.apart(url, self.run)
        self._own = book.read_run(self.run)
        self._refuse_living()
        self.place = place_of(self.url, folder.writer_here(uuid.uuid4().hex))
        self._found = self.place.book()
        if self._found is not None and self._found.id != self._own.id:
            raise other_run(self.run, self._own.id, self.url, self._found.id)
        there = {entry.folder: entry for entry in self.place.entries()} if self._found is not None else {}
        self._highest = max((entry.sequence for entry in there.values()), default=0)
        entries = catalog.scan(self.run)
        keep = catalog.keep_of(self._own, self.run)
        self._entries = (
            choice.choose(entries, keep, only, self.run)
            if only
            else [entry for entry in entries if not entry.abandoned]
        )
        self.abandoned = 0 if only else len(entries) - len(self._entries)
        """Checkpoints that a rewind left behind, which only go along where they are named."""
        self.items = [Item(entry.folder, entry.size) for entry in self._entries]
        with self.place.steady():
            looks = [
                functools.partial(self._look, item, entry, there.get(entry.folder))
                for item, entry in zip(self.items, self._entries, strict=True)
            ]
            ask(looks, self.url)

    @property
    def waiting(self) -> list[Item]:
        """What is to be copied, in the order in which it is: the newest first."""
        return [item for item in reversed(self.items) if item.status == "waiting"]

    def _refuse_living(self) -> None:
        here = {_real(entry.get("url")) for entry in self._own.mirrors or ()}
        holder = living_holder(self.run) if _real(self.url) in here else None
        if holder is not None:
            raise LeaseError(
                f"{self.url} is a mirror of {self.run}, which is being trained by {holder.describe()}; that process "
                f"copies each checkpoint there itself. Nothing was written. Next: wait for it, or push to another place.",
                holder=holder,
            )

    def _look(self, item: Item, entry: Entry, there: Entry | None) -> None:
        """Whether a checkpoint can be copied, and has to be."""
        if entry.foreign:
            item.status, item.problem = "foreign", entry.problem
        elif entry.problem is not None:
            _fail(item, entry.path, entry.problem)
        elif there is not None:
            if isinstance(self.place, Folder):
                folder.check_sizes(there)
            if there.whole:
                self._compare(item, entry)

    def _compare(self, item: Item, entry: Entry) -> None:
        """Whether what is there is the same: its manifest holds the digests of all its files."""
        try:
            own = FolderSource(entry.path).small(CHECKPOINT_FILE, READ_LIMIT_CHECKPOINT)
        except HoldfastError as error:
            _fail(item, entry.path, error)
            return
        try:
            other = self.place.source(item.name).small(CHECKPOINT_FILE, READ_LIMIT_CHECKPOINT)
        except NotFoundError:  # deleted there meanwhile
            return
        if other == own:
            item.status = "there"
            return
        item.status = "other"
        item.problem = FormatError(
            f"{self.url} has another checkpoint {item.name}, with other digests; it was left as it is. Next: holdfast "
            f"diff {entry.path} {self.url}/{item.name}",
            path=f"{self.url}/{item.name}",
        )

    def go(
        self,
        jobs: int = JOBS,
        progress: Callable[[int], None] = lambda _: None,
        ended: Callable[[Item], None] = lambda _: None,
    ) -> None:
        """Copies what is waiting, the newest first; each item's `status` tells what became of it.

        Killed at any instant, the next push of the same goes on from there: in a directory at the block, in an object
        store at the file.

        Raises:
            StorageError: the place cannot be written, or has no room; what was copied stays.

        """
        transfer = Transfer(jobs, progress, ended)
        with self.place.steady(), self._telling_loss():
            if isinstance(self.place, Folder):
                self._check_room(self.place)
            self.place.heed(transfer.check)
            if self.items:
                self.place.enter(self._run_json())
            transfer.bring(self.waiting, lambda item, crew: self._carry(item, crew, transfer))
            self._mark()
            self.place.leave()

    def _run_json(self) -> bytes:
        """The run's own run.json, unless the place is further on than the run."""
        data = files.read_file(os.path.join(self.run, book.RUN_FILE), book.LIMIT)
        if (
            self._found is None
            or max((entry.sequence for entry in self._entries), default=0) >= self._highest
        ):
            return data
        return self.place.source("").small(book.RUN_FILE, book.LIMIT)

    def _check_room(self, place: Folder) -> None:
        waiting = self.waiting
        needed = sum(max(0, item.size - place.held(item.name)) for item in waiting)
        if waiting:
            storage.check_room(self.url, needed, "push")

    def _carry(self, item: Item, crew: Crew, transfer: Transfer) -> Callable[[], None] | None:
        path = os.path.join(self.run, item.name)
        try:
            copied = copying.copy(
                [FolderSource(path)],
                self.place.target(item.name),
                transfer.tell,
                crew=crew,
                passed=transfer.tell,
            )
        except (DamagedError, FormatError, NotFoundError) as error:
            if isinstance(error, NotFoundError) and os.path.isdir(path) and catalog.is_checkpoint(path):
                raise  # the place is what is gone
            self.place.forget(item.name)
            _fail(item, path, error)
            return None
        item.sent, item.found = copied.sent, copied.found

        def publish() -> None:
            self.place.publish(item.name)
            item.status = "copied"

        return publish

    def _mark(self) -> None:
        """What is pinned or abandoned in the run is so there."""
        there = {item.name for item in self.items if item.status in ("copied", "there")}
        for kind in (catalog.PINS, catalog.ABANDONED):
            marked = catalog.marks(self.run, kind) & there
            if marked:
                self.place.mark(kind, marked)

    @contextlib.contextmanager
    def _telling_loss(self) -> Iterator[None]:
        try:
            yield
        except StorageError as error:
            if isinstance(self.place, Folder) and error.errno == errno.ENOENT and self.place.lost():
                raise StorageError(
                    f"Another process has begun to copy to {self.url}, and goes on there; this push ended. Next: where a "
                    f"training keeps that mirror itself, nothing needs to be pushed; else the same command again.",
                    errno=errno.EBUSY,
                    path=self.url,
                    operation="write",
                ) from error
            raise


def run_at(run: str, url: str) -> str:
    """The absolute path of an existing run, where a push is from; `url` for a better message.

    Raises:
        UsageError: the two seem to be swapped.
        NotFoundError: there is no run.

    """
    if urls.is_url(run):
        raise UsageError(
            f"{urls.redacted(run)} is no directory; push copies from a run on this machine: holdfast push RUN URL. "
            f"From there to here: holdfast pull URL RUN.",
            found=urls.redacted(run),
        )
    path = os.path.abspath(os.path.expanduser(run))
    if catalog.is_run(path):
        return path
    swapped = ""
    if not urls.is_url(url) and catalog.is_run(os.path.abspath(os.path.expanduser(url))):
        swapped = f" {url} is one: are the two swapped? The run comes first: holdfast push RUN URL."
    there = os.path.lexists(path)
    said = f"{path} is not a run: it has no {book.RUN_FILE}." if there else f"There is nothing at {path}."
    raise NotFoundError(f"{said}{swapped}", path=path, candidates=[])


def _real(url: object) -> str:
    text = str(url)
    return text if urls.is_url(text) else os.path.realpath(text)


def _fail(item: Item, path: str, error: HoldfastError) -> None:
    """Notes why a checkpoint was not copied: it was deleted meanwhile, or is not whole."""
    if not os.path.lexists(path):
        item.status = "gone"
    elif isinstance(error, StorageError):
        raise error
    else:
        item.status, item.problem = "damaged", error
