"""A mirror in an object store.

There is no rename there, and no directory: a checkpoint is there when its `checkpoint.json` is, which is
written last, where none is, and deleted first. What lies under a name without one is on its way in or out; no
reader takes it for a checkpoint, and who writes the mirror next goes on with it or removes it.

So a writer that was only asleep is not kept out by the storage, as it is from a directory: the look at the lease
before each of the two is all there is.
"""

from __future__ import annotations

import contextlib
import errno
import functools
from collections.abc import Callable, Collection, Mapping, Sequence

from holdfast.errors import DamagedError, NotFoundError, StorageError, UsageError
from holdfast.format import names as naming
from holdfast.format.manifest import CHECKPOINT_FILE, decode_manifest
from holdfast.format.summary import Reader
from holdfast.mirrors.place import Part, steadied, taken
from holdfast.objects import upload as uploading
from holdfast.objects import urls
from holdfast.objects.access import Objects
from holdfast.payload import damage
from holdfast.store import book, catalog
from holdfast.store.book import RUN_FILE, RunBook
from holdfast.store.distant import Ahead, DistantSource, Seen
from holdfast.store.entry import Entry

_Sizes = Mapping[str, int]


class _Held:
    """`checkpoint.json` on its way: it waits for `publish`."""

    def __init__(self, size: int, done: Callable[[bytes], None]) -> None:
        self._data, self._done = bytearray(size), done
        self.found = 0

    def read(self, into: memoryview, offset: int) -> bool:  # noqa: ARG002 (nothing was left)
        return False

    def write(self, data: memoryview, offset: int) -> None:
        self._data[offset : offset + len(data)] = data

    def finish(self) -> None:
        self._done(bytes(self._data))

    def close(self) -> None:
        """Nothing of it is anywhere else."""


class BucketTarget:
    """A checkpoint on its way into an object store. It has its final name, and no `checkpoint.json`.

    Args:
        objects: its files.
        there: bytes of those that lie there, as they were listed.
        done: gets the content of `checkpoint.json`.

    """

    def __init__(self, objects: Objects, there: _Sizes, done: Callable[[bytes], None]) -> None:
        self.path = objects.url
        self._objects, self._there, self._done = objects, dict(there), done
        self._digests: Mapping[str, str] = {}

    def begin(self, files: Mapping[str, str]) -> None:
        self._digests = files
        if CHECKPOINT_FILE in self._there:  # of a damaged one, which no reader takes
            self._objects.delete([CHECKPOINT_FILE])
            del self._there[CHECKPOINT_FILE]
        others = set(self._there) - set(files)
        self._objects.delete(sorted(others))

    def has(self, file: str, size: int) -> bool:
        if self._there.get(file) != size or not self._digests[file]:
            return False
        try:
            return self._objects.facts(file) == (size, self._digests[file])
        except NotFoundError:
            return False

    def part(self, file: str, size: int) -> Part:
        if file == CHECKPOINT_FILE:
            return _Held(size, self._done)
        if file in self._there:
            # A wrong one that stayed might be taken for what is sent now: where the answer to the completion of an
            # upload is lost, and where somebody else has ended that upload, the store says the same.
            self._objects.delete([file])
            del self._there[file]
        return uploading.upload(self._objects, file, size, self._digests[file])

    def finish(self) -> None:
        """Each file was durable when it was finished."""


class Bucket:
    """A mirror in an object store.

    Args:
        url: such as `s3://bucket/prefix`.

    """

    def __init__(self, url: str) -> None:
        self.url = urls.parse(url).url
        self._check: Callable[[], object] = lambda: None
        self._found: bytes | None = None
        """The run.json that lies there."""
        self._book: RunBook | None = None
        self._seen: Seen | None = None
        self._reader = Reader()
        self._known: dict[str, tuple[_Sizes, Entry]] = {}
        self._held: dict[str, bytes] = {}
        """Manifests of what is to be published, and of what was and has not been looked at yet."""
        self._begun: set[str] | None = None
        """Names that may have parts there of files that were not finished; None: any may."""

    @property
    def _objects(self) -> Objects:
        return Objects.at(self.url, self._look_up)

    def heed(self, check: Callable[[], object]) -> None:
        self._check = check

    def _look_up(self) -> None:
        self._check()

    # -- looking -----------------------------------------------------------------------------------

    def book(self) -> RunBook | None:
        try:
            data = self._objects.small(RUN_FILE, book.LIMIT)
        except NotFoundError:
            foreign = list(self._objects.names(most=1))
            if foreign:
                raise UsageError(
                    f"The mirror {self.url} is not a run and not empty (it holds {', '.join(foreign[:5])}); nothing "
                    f"was written there. Next: choose another prefix.",
                    path=self.url,
                    found=foreign[:100],
                ) from None
            self._found = self._book = None
            return None
        if data != self._found or self._book is None:
            self._found, self._book = None, book.decode_run(data, self.url)
            self._found = data
        return self._book

    def entries(self) -> list[Entry]:
        seen = self._look()
        owner = self._book or self.book()
        if owner is None:
            return []
        there = {
            name: (parsed, files)
            for name, files in seen.files.items()
            if CHECKPOINT_FILE in files and (parsed := naming.parse_checkpoint_name(name)) is not None
        }
        known = {name: entry for name, (_, files) in there.items() if (entry := self._as_it_was(name, files))}
        unread = sorted(there.keys() - known.keys(), key=lambda name: (there[name][0].sequence, name))
        ahead = Ahead(self._objects, unread)
        for name in unread:
            parsed, files = there[name]
            fetch = functools.partial(self._manifest, name, files, ahead)
            known[name] = Entry(
                f"{self.url}/{name}", name, parsed, source=(owner.id, self._reader), fetch=fetch
            )
        for name, entry in known.items():
            entry.pinned = name in seen.marks[catalog.PINS]
            entry.abandoned = name in seen.marks[catalog.ABANDONED]
        self._known = {name: (there[name][1], entry) for name, entry in known.items()}
        return sorted(known.values(), key=lambda entry: (entry.sequence, entry.folder))

    def _as_it_was(self, name: str, files: _Sizes) -> Entry | None:
        """A checkpoint that was seen before and is unchanged; a damaged one is read anew."""
        sizes, entry = self._known.get(name, ({}, None))
        return None if entry is None or sizes != files or (entry.was_read and not entry.whole) else entry

    def _manifest(self, name: str, sizes: _Sizes, ahead: Ahead, path: str, limit: int) -> bytes:
        """The manifest of a checkpoint; one that lacks a file, or the end of one, is damaged: it is copied once more."""
        data = self._held.pop(name, None) or ahead(path, limit)
        for file, listed in decode_manifest(data, path).files.items():
            size = sizes.get(file)
            if size is None:
                raise damage.damaged(f"{self.url}/{name}", file, "is missing")
            if size != listed.size:
                raise damage.wrong_size(f"{self.url}/{name}", file, listed.size, size)
        return data

    def _look(self) -> Seen:
        self._seen = Seen.of(self._objects.names())
        return self._seen

    def _last_seen(self) -> Seen:
        return self._seen or self._look()

    def source(self, name: str) -> DistantSource:
        sizes = self._seen.files.get(name) if self._seen is not None else None
        return DistantSource(self._objects.below(name), sizes)

    # -- changing ----------------------------------------------------------------------------------

    def enter(self, data: bytes) -> None:
        if data == self._found:
            return
        begun = self._found is None  # two runs that find a prefix empty do not both begin a mirror there
        if not self._objects.put(RUN_FILE, data, create=begun):
            self._refuse_other(data)
            self._objects.put(RUN_FILE, data)
        self._found = self._book = None

    def _refuse_other(self, data: bytes) -> None:
        with contextlib.suppress(DamagedError):
            own, found = book.decode_run(data, self.url), self.book()
            if found is not None and found.id != own.id:
                raise taken(self.url, own.id, found.id)

    def target(self, name: str) -> BucketTarget:
        def done(data: bytes) -> None:
            self._held[name] = data

        self._begun = {*(self._begun or ()), name}
        return BucketTarget(self._objects.below(name), self._last_seen().files.get(name, {}), done)

    def unfinished(self) -> Sequence[str]:
        begun = [name for name, files in self._last_seen().files.items() if CHECKPOINT_FILE not in files]
        if self._begun is None or self._begun:  # by whoever wrote here before, or by a copy that failed
            # Of a file that was not finished there are only parts, which no list of objects has.
            folders = {file.partition("/")[0] for file in uploading.begun(self._objects)}
            begun += sorted(name for name in folders.difference(begun) if naming.parse_checkpoint_name(name))
            self._begun = self._begun or set()
        return begun

    def forget(self, name: str) -> None:
        self._held.pop(name, None)
        there = self._objects.names(name)
        if f"{name}/{CHECKPOINT_FILE}" not in there:  # else somebody has published it
            self._objects.delete(list(there))
        uploading.forget(self._objects, name)
        self._begun = (self._begun or set()) - {name}

    def publish(self, name: str) -> None:
        self._known.pop(name, None)
        data = self._held.pop(name)
        if not self._objects.put(f"{name}/{CHECKPOINT_FILE}", data, create=True):
            raise StorageError(
                f"{self.url} has another checkpoint {name}, with another {CHECKPOINT_FILE}; it was left as it is. "
                f"Next: does another process copy to this mirror? Each run needs a mirror of its own.",
                errno=errno.EEXIST,
                path=f"{self.url}/{name}",
                operation="publish",
            )
        self._held[name] = data
        self._begun = (self._begun or set()) - {name}

    def delete(self, name: str) -> bool:
        with contextlib.suppress(NotFoundError):
            self._objects.size(f"{catalog.PINS}/{name}")
            return False
        self._objects.delete([f"{name}/{CHECKPOINT_FILE}"])
        # Only when this is answered: until then the checkpoint may be seen.
        files = self._last_seen().files.pop(name, {})
        self._objects.delete([f"{name}/{file}" for file in files if file != CHECKPOINT_FILE])
        return True

    def mark(self, kind: str, names: Collection[str], *, gone: Collection[str] = ()) -> None:
        there = self._last_seen().marks[kind]
        for name in sorted(set(names) - there):
            self._objects.put(f"{kind}/{name}", b"")
        self._objects.delete([f"{kind}/{name}" for name in sorted(set(gone) & there)])

    def leave(self) -> None:
        """What was begun stays for the next writer; nothing else is hidden there."""

    def steady(self) -> contextlib.AbstractContextManager[None]:
        return steadied(self.url)
