"""A run's directory while this process holds it: the lease, the book, the checkpoints."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING

from holdfast import files, stage, storage
from holdfast.errors import LeaseError, StorageError, UsageError
from holdfast.format.names import LAST_SEQUENCE
from holdfast.policy.keep import Keep, Record, rank
from holdfast.store import book, catalog
from holdfast.store.book import RunBook
from holdfast.store.entry import Entry
from holdfast.store.lease import Lease

if TYPE_CHECKING:
    from holdfast.payload.threads import Ticket

# What may lie in a directory that becomes a run: debris of a launch that died before run.json.
_OWN = ("lease-", ".writing-", ".fetching-")
# And what was written there when its first job was submitted.
_OWN_NAMES = (catalog.SUBMITTED,)
_FEW = 100  # manifests, read in an instant


class Session:
    """Holds the lease from `open` to `close`.

    Attributes:
        path: the run's absolute path.
        book: the content of run.json.
        entries: the checkpoints, oldest first, kept up to date by the saver.

    """

    def __init__(self, path: str, lease: Lease) -> None:
        self.path, self.lease = path, lease
        self.book = book.new_run()
        self.entries: list[Entry] = []
        self.last_sequence = 0
        """The highest number that a save of this session has used, whatever became of it."""
        self._ranking: list[Record] | None = None
        self._ahead: Ticket | None = None
        self._closed = False

    @classmethod
    def open(
        cls,
        path: str,
        *,
        wait: float,
        say: Callable[[str], None],
        identify: Callable[[Lease, RunBook | None], RunBook | None] | None = None,
    ) -> Session:
        """Creates the run if there is none, takes the lease, then reads what is there.

        `identify` is asked under the lease with the run's book (None for a new run); the book that it gives,
        if any, is that of the run which an empty directory takes up.

        Raises:
            UsageError: the directory holds something else.
            LeaseError: another process holds the run.
            StorageError: it cannot be created or written.

        """
        rehearsed = stage.current()
        if rehearsed is not None and not rehearsed.owns(path):
            raise UsageError(
                f"{path} would be written, and this is a rehearsal, which writes no run but its own. "
                f"Next: rehearse the training alone.",
                path=path,
            )
        storage.refuse_object_store(path)
        check_place(path)
        files.make_directory(path)
        lease = Lease.acquire(path, wait=wait, say=say)
        try:
            session = cls(path, lease)
            own = book.read_run(path) if catalog.is_run(path) else None
            if own is None:
                # Under the lease: were there anything, this would bury it.
                _refuse_foreign(path)
            adopted = identify(lease, own) if identify is not None else None
            session.book = adopted or own or session.book
            session.last_sequence = session.book.used
            if own is None or adopted is not None:
                session.write_book()
            session.entries = catalog.scan(path)
        except BaseException:
            with contextlib.suppress(StorageError):  # the failure on its way is the one to tell
                lease.release()
            raise
        return session

    @property
    def writing(self) -> str:
        """The directory that only the holder of this lease has: drafts and trash."""
        return self.lease.writing

    def next_sequence(self) -> int:
        """A number that no checkpoint of this run has had, those that failed to be saved included."""
        newest = self.entries[-1] if self.entries else None
        last = max(newest.sequence if newest is not None else 0, self.last_sequence)
        if last >= LAST_SEQUENCE:  # the next would have a name that no reader knows
            where = f" {newest.path}" if newest is not None else ""
            raise UsageError(
                f"{self.path} can take no more checkpoints: the last number there is, {LAST_SEQUENCE}, is in use:{where}. "
                f"Nothing was saved. Next: move that one out of the run.",
                path=self.path,
                found=last,
            )
        return last + 1

    def read_ahead(self) -> None:
        """Reads in the background what a ranking and retention need, so that no boundary waits for thousands of files."""
        unread = [entry for entry in self.entries if not entry.was_read]
        if len(unread) > _FEW:
            from holdfast.payload import threads

            self._ahead = threads.submit("publish", lambda: self._read(unread))

    def _read(self, entries: list[Entry]) -> None:
        for entry in entries:
            if self._closed:
                return
            entry.read()

    def add(self, entry: Entry, keep: Keep) -> None:
        """Takes in the newest checkpoint."""
        ranking, self._ranking = self._ranking, None  # Ctrl-C may come between these lines
        self.entries.append(entry)
        if ranking is not None:
            self._ranking = rank(keep, [*ranking, entry.record()])[: keep.best]

    def remove(self, gone: Collection[str]) -> None:
        """Takes checkpoints out, by the names of their directories."""
        if gone:
            self.entries[:] = [entry for entry in self.entries if entry.folder not in gone]
            if any(record.name in gone for record in self._ranking or ()):
                self._ranking = None

    def touch(self, entry: Entry | None = None) -> None:
        """Says that something became known of a checkpoint, or of any, that may cost it its place in the ranking."""
        if entry is None or (
            not entry.clean and any(record.name == entry.folder for record in self._ranking or ())
        ):
            self._ranking = None

    def ranking(self, keep: Keep) -> list[Record]:
        """The checkpoints that count as best, the first being the best of all.

        Asked for once, it is kept up to date; the manifests that it needs are those of all checkpoints.
        """
        if self._ranking is None:
            if self._ahead is not None:
                self._ahead.wait()
                self._ahead = None
            self._ranking = rank(keep, [entry.record() for entry in self.entries])[: keep.best]
        return self._ranking

    def write_book(self) -> None:
        with self.telling_loss():
            book.write_run(self.path, self.book, self.writing)

    @contextlib.contextmanager
    def telling_loss(self) -> Iterator[None]:
        """Where a lost lease made something fail, a `LeaseError` says so, and who holds the run now."""
        try:
            yield
        except (LeaseError, StorageError):
            with contextlib.suppress(StorageError):  # the failure on its way is the one to tell
                self.lease.check()
            raise

    def close(self) -> None:
        self._closed = True
        self.lease.release()


def check_place(path: str) -> None:
    """A run goes into a new or empty directory, or one that is a run already."""
    if not os.path.lexists(path) or catalog.is_run(path):
        return
    if not os.path.isdir(path):
        raise UsageError(f"{path} is a file; a run is a directory. Next: choose another path.", path=path)
    if catalog.is_checkpoint(path):
        raise UsageError(
            f"{path} is a checkpoint, not a run. Next: choose another path for the run, and start from this "
            f'checkpoint with init={{"model": {path!r}}}.',
            path=path,
        )
    try:
        _refuse_foreign(path)
    except UsageError:
        # What is there may be a run that another process began between the two looks: its lease decides.
        if not catalog.is_run(path):
            raise


def _refuse_foreign(path: str) -> None:
    with files.translated(path, "list"):
        foreign = [name for name in os.listdir(path) if not name.startswith(_OWN) and name not in _OWN_NAMES]
    if foreign:
        raise UsageError(
            f"{path} is not a run and not empty (it holds {', '.join(sorted(foreign)[:5])}); nothing was written. "
            f"Next: choose a new directory for the run.",
            path=path,
            found=foreign,
        )
