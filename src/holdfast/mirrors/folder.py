"""A mirror that is a directory.

What is on its way lies in `.copying-<writer>/NAME/`, where no reader looks, and gets its name by one rename;
what goes is renamed into there first. Whoever writes a mirror next renames the directory of the writer before
it: that one, if it was only asleep, then publishes and deletes nothing there. So no clock and no lock is needed.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import os
from collections.abc import Callable, Collection, Iterable, Sequence

from holdfast import files, open_files
from holdfast.errors import (
    DamagedError,
    FormatError,
    HoldfastError,
    NotFoundError,
    StorageError,
    UsageError,
)
from holdfast.mirrors.listing import Listing
from holdfast.mirrors.place import steadied, taken
from holdfast.payload import damage
from holdfast.payload.source import FolderSource
from holdfast.store import book, catalog, retention
from holdfast.store.book import RunBook
from holdfast.store.entry import Entry
from holdfast.store.holder import judge, myself, signature, signed
from holdfast.store.lease import living_holder

COPYING = ".copying-"
_TRASH = ".trash"
_LIMIT = 4 << 20
_DIRECT_FROM = 1 << 20


class FolderTarget:
    """A checkpoint on its way into a directory."""

    def __init__(self, path: str) -> None:
        self.path = path

    def begin(self, names: Collection[str]) -> None:
        if os.path.islink(self.path) or os.path.isfile(self.path):
            files.remove_file(self.path)  # a stranger's; what it leads to is left alone
        try:
            files.make_new_directory(self.path)
        except StorageError as error:
            if error.errno != errno.EEXIST:
                raise
        with files.translated(self.path, "list"):
            there = os.listdir(self.path)
        for name in set(there) - set(names):
            files.remove_tree(os.path.join(self.path, name))

    def has(self, file: str, size: int) -> bool:  # noqa: ARG002 (what lies there is read block by block)
        return False

    def part(self, file: str, size: int) -> open_files.PartialFile:
        # Asked only when it matters: the first answer for a file system is tried out with a file.
        direct = size >= _DIRECT_FROM and open_files.direct_io_works(self.path)
        return open_files.PartialFile(os.path.join(self.path, file), size, direct=direct)

    def finish(self) -> None:
        files.sync_directory(self.path)


class Folder:
    """A mirror in a directory.

    Args:
        url: the directory, absolute.
        writer: what tells this writer from all others, such as the token of its lease.

    """

    def __init__(self, url: str, writer: str) -> None:
        self.url = url
        self._own = os.path.join(url, f"{COPYING}{writer}")
        self._listing = Listing(url, check_sizes)
        self._book: bytes | None = None

    def heed(self, check: Callable[[], object]) -> None:
        """A disk that hangs cannot be called away from."""

    # -- looking -----------------------------------------------------------------------------------

    def book(self) -> RunBook | None:
        path = self.url
        if not os.path.lexists(path):
            parent = os.path.dirname(path)
            if os.path.isdir(parent):
                return None
            raise StorageError(
                f"The mirror {path} cannot be reached: there is no directory {parent}. Next: is it mounted? A new "
                f"mirror's parent directory is made by hand.",
                errno=errno.ENOENT,
                path=path,
                operation="look at",
            )
        if catalog.is_run(path):
            return book.read_run(path)
        with files.translated(path, "list"):
            try:
                foreign = [name for name in os.listdir(path) if not name.startswith(COPYING)]
            except NotADirectoryError:
                raise UsageError(
                    f"The mirror {path} is a file; a mirror is a directory. Next: choose another path.",
                    path=path,
                ) from None
        if foreign:
            raise UsageError(
                f"The mirror {path} is not a run and not empty (it holds {', '.join(sorted(foreign)[:5])}); nothing "
                f"was written there. Next: choose a new directory.",
                path=path,
                found=foreign,
            )
        return None

    def entries(self) -> list[Entry]:
        return self._listing.scan()

    def source(self, name: str) -> FolderSource:
        return FolderSource(os.path.join(self.url, name))

    # -- changing ----------------------------------------------------------------------------------

    def enter(self, data: bytes) -> None:
        _refuse_written(self.url)
        files.make_directory(self.url)
        self._take_over()
        if data != self._book:
            self._write_book(data)
            self._book = data

    def _take_over(self) -> None:
        """Renames what other writers left; the first such directory becomes this writer's own."""
        with files.translated(self.url, "list"):
            names = sorted(name for name in os.listdir(self.url) if name.startswith(COPYING))
        links = [name for name in names if os.path.islink(os.path.join(self.url, name))]
        for name in links:  # a stranger's; what it leads to is left alone
            files.remove_file(os.path.join(self.url, name))
        names = [name for name in names if name not in links]
        _refuse_living(self.url, names)
        others = [path for name in names if (path := os.path.join(self.url, name)) != self._own]
        changed = False
        if not os.path.isdir(self._own):
            changed = True
            if others:
                with files.translated(others[0], "rename"):
                    files.rename(others[0], self._own)
                others = others[1:]
            else:
                files.make_new_directory(self._own)
            self._clear_trash()
        for path in others:  # more than one writer was here; what the others had begun is begun anew
            away = os.path.join(self._own, os.path.basename(path) + _TRASH)
            with files.translated(path, "rename"):
                files.rename(path, away)
            files.remove_tree(away)
            changed = True
        if changed:
            files.sync_directory(self.url)

    def _clear_trash(self) -> None:
        retention.bring_back(self.url, self._own)  # what was pinned while it was being deleted
        for name in self._inside():
            if name.endswith((_TRASH, ".gone")) or name == book.RUN_FILE:
                files.remove_tree(os.path.join(self._own, name))

    def _inside(self) -> list[str]:
        with files.translated(self._own, "list"):
            try:
                return sorted(os.listdir(self._own))
            except FileNotFoundError:
                return []

    def _write_book(self, data: bytes) -> None:
        path, scratch = os.path.join(self.url, book.RUN_FILE), os.path.join(self._own, book.RUN_FILE)
        with contextlib.suppress(NotFoundError, FormatError):
            if files.read_file(path, _LIMIT) == data:
                return
        # Looked at once more: from now on, who takes this place over makes the rename below fail.
        with contextlib.suppress(DamagedError, NotFoundError):
            own, found = book.decode_run(data, self.url), book.read_run(self.url)
            if found.id != own.id:
                raise taken(self.url, own.id, found.id)
        files.remove_file(scratch)
        files.create_file(scratch, data)
        with files.translated(path, "write"):
            files.rename(scratch, path)
        files.sync_directory(self.url)

    def target(self, name: str) -> FolderTarget:
        return FolderTarget(os.path.join(self._own, name))

    def unfinished(self) -> Sequence[str]:
        return [name for name in self._inside() if not name.endswith(_TRASH)]

    def forget(self, name: str) -> None:
        files.remove_tree(os.path.join(self._own, name))

    def held(self, name: str) -> int:
        """Bytes on the disk of a checkpoint that was begun, by whoever it was."""
        total = 0
        for place in glob.glob(os.path.join(glob.escape(self.url), f"{COPYING}*", name)):
            total += files.bytes_on_disk(place)
        return total

    def lost(self) -> bool:
        """Whether another writer has taken this place over."""
        return self._book is not None and not os.path.isdir(self._own)

    def publish(self, name: str) -> None:
        source, final = os.path.join(self._own, name), os.path.join(self.url, name)
        if os.path.lexists(final):  # a damaged one, which no reader takes
            self._throw_away(name)
            self._listing.forget(name)
        with files.translated(final, "publish"):
            files.rename(source, final)
        try:
            files.sync_directory(self.url)
        except HoldfastError:
            # What is not known to be durable must not count as being there.
            with contextlib.suppress(OSError):
                files.rename(final, source)
            raise

    def delete(self, name: str) -> bool:
        if name in catalog.marks(self.url, catalog.PINS):
            return False
        trash = self._throw_away(name)
        if name in catalog.marks(self.url, catalog.PINS):
            with files.translated(trash, "put back"):
                files.rename(trash, os.path.join(self.url, name))
            files.sync_directory(self.url)
            return False
        files.sync_directory(self.url)
        files.remove_tree(trash)
        return True

    def _throw_away(self, name: str) -> str:
        path, trash = os.path.join(self.url, name), os.path.join(self._own, f"{name}{_TRASH}")
        with files.translated(path, "delete"):
            files.remove_tree(trash)
            files.rename(path, trash)
        return trash

    def mark(self, kind: str, names: Collection[str], *, gone: Collection[str] = ()) -> None:
        there = catalog.marks(self.url, kind)
        for name in sorted(set(names) - there):
            retention.mark(self.url, kind, name)
        for name in sorted(set(gone) & there):
            retention.unmark(self.url, kind, name)

    def leave(self) -> None:
        with self.steady():
            self._clear_trash()
            # One that is not empty stays: the next writer goes on with what is in it.
            if not self._inside():
                files.remove_empty_directory(self._own)

    def steady(self) -> contextlib.AbstractContextManager[None]:
        return steadied(self.url)


def _refuse_written(path: str) -> None:
    """A mirror that some process writes as a run of its own is left alone."""
    holder = living_holder(path) if os.path.isdir(path) else None
    if holder is not None:
        raise StorageError(
            f"The mirror {path} is written as a run by {holder.describe()}; nothing is copied there meanwhile. "
            f"Next: end that training, or give this run another mirror.",
            path=path,
            operation="write",
            errno=errno.EBUSY,
        )


def writer_here(unique: str) -> str:
    """A writer that others can tell to be alive: one that copies by hand, and not under a run's lease."""
    return f"{signature()}_{unique}"


def _refuse_living(url: str, names: Iterable[str]) -> None:
    """What a living process of this machine copies by hand is left to it."""
    for name in names:
        maker = signed(name.removeprefix(COPYING).split("_")[:-1])
        if maker is not None and judge(maker, myself(0), ()) == "alive":
            raise StorageError(
                f"A push to {url} is under way, by pid {maker.pid} of this machine; nothing is copied there meanwhile. "
                f"Next: wait for it, or end it; what it has copied is gone on with.",
                path=url,
                operation="write",
                errno=errno.EBUSY,
            )


def check_sizes(entry: Entry) -> None:
    """A checkpoint that lacks a file, or the end of one, is damaged: it is copied once more."""
    if entry.problem is not None:
        return
    try:
        listed = catalog.read_manifest(entry.path).files
        for name, file in listed.items():
            size = os.lstat(os.path.join(entry.path, name)).st_size
            if size != file.size:
                raise damage.wrong_size(entry.path, name, file.size, size)
    except FileNotFoundError as error:
        entry.problem = damage.damaged(entry.path, os.path.basename(error.filename or ""), "is missing")
    except HoldfastError as error:
        entry.problem = error
