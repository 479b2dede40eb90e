"""A run, or a checkpoint, below a URL: read without a copy of it. Nothing is changed there but pins.

It is laid out as docs/format.md says of a mirror. A checkpoint without its `checkpoint.json` is none: it is on its
way in, or out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple, TypeVar

from holdfast.errors import FormatError, HoldfastError, NotFoundError, StorageError
from holdfast.format import names as naming
from holdfast.format.manifest import CHECKPOINT_FILE
from holdfast.format.names import CheckpointName
from holdfast.format.summary import Reader
from holdfast.objects.access import Objects
from holdfast.payload.sharing import share
from holdfast.payload.threads import Crew
from holdfast.store import book
from holdfast.store.book import ABANDONED, PINS
from holdfast.store.entry import Entry

_MOST_AHEAD = 64
_One = TypeVar("_One")
_Answer = TypeVar("_Answer")


class DistantFile:
    """An object that is read in ranges.

    Args:
        objects: those of its checkpoint.
        file: its name.
        size: the bytes it had when they were listed.

    """

    distant: Literal[True] = True

    def __init__(self, objects: Objects, file: str, size: int) -> None:
        self.path = f"{objects.url}/{file}"
        self._objects, self._file, self._size = objects.heeding(self._check), file, size
        self._abandoned = self._short = False

    def size(self) -> int:
        # One that ended too early is not as long as it was listed.
        return self._objects.size(self._file) if self._short else self._size

    def fetch(self, offset: int, length: int) -> memoryview:
        data = self._objects.piece(self._file, offset, length)
        self._short = self._short or len(data) < length
        return data

    def abandon(self) -> None:
        self._abandoned = True

    def close(self) -> None:
        """Nothing is held."""

    def _check(self) -> None:
        if self._abandoned:
            raise StorageError("The request was given up.", path=self.path, operation="read")


class DistantSource:
    """The files directly below a URL.

    Args:
        objects: they.
        sizes: bytes of each, where they were listed before.

    """

    crew: Crew = "network"
    distant = True

    def __init__(self, objects: Objects, sizes: Mapping[str, int] | None = None) -> None:
        self.path = objects.url
        self._objects, self._listed = objects, sizes

    def exists(self) -> bool:
        return _has(self._objects, CHECKPOINT_FILE)

    def names(self) -> list[str]:
        self._listed = self._objects.names()
        return list(self._listed)

    def size(self, file: str) -> int:
        if self._listed is None:
            self.names()
        size = (self._listed or {}).get(file)
        if size is None:
            raise NotFoundError(f"There is no {self.path}/{file}.", path=f"{self.path}/{file}", candidates=[])
        return size

    def small(self, file: str, limit: int, *, text: bool = False) -> bytes:
        data = self._objects.small(file, limit)
        if text and b"\0" in data:
            raise FormatError(
                f"{self.path}/{file} is no text: byte {data.index(0):,} is zero.", path=f"{self.path}/{file}"
            )
        return data

    def read(self, file: str, into: memoryview, offset: int) -> int:
        if self._listed is not None and offset >= self._listed.get(file, offset + 1):
            return 0  # where a file ends needs no request
        return self._objects.read(file, into, offset)

    def open(self, file: str) -> DistantFile:
        return DistantFile(self._objects, file, self.size(file))


def holds(url: str, name: str) -> bool:
    """Whether there is an object of that name below a URL; `StorageError` when the store does not say."""
    return _has(Objects.at(url), name)


def _has(objects: Objects, name: str) -> bool:
    try:
        objects.size(name)
    except NotFoundError:
        return False
    return True


# -- a run -----------------------------------------------------------------------------------------------


class Seen(NamedTuple):
    """What lay below a run's URL at one moment: for each name the files with their sizes, and the marks."""

    files: dict[str, dict[str, int]]
    marks: dict[str, set[str]]

    @classmethod
    def of(cls, listed: Mapping[str, int]) -> Seen:
        """Sorts what `Objects.names` gave."""
        seen = cls({}, {PINS: set(), ABANDONED: set()})
        for text, size in listed.items():
            folder, _, file = text.partition("/")
            if folder in seen.marks and file:
                seen.marks[folder].add(file)
            elif file and "/" not in file and naming.parse_checkpoint_name(folder) is not None:
                seen.files.setdefault(folder, {})[file] = size
        return seen

    def checkpoints(self) -> list[tuple[str, CheckpointName]]:
        """Those that are published, oldest first: name, and what it says."""
        named = [
            (name, parsed)
            for name, files in self.files.items()
            if CHECKPOINT_FILE in files and (parsed := naming.parse_checkpoint_name(name)) is not None
        ]
        return sorted(named, key=lambda item: (item[1].sequence, item[0]))


def scan(url: str) -> list[Entry]:
    """All checkpoints of the run at a URL, oldest first; each is read when it is asked for more than its name says."""
    objects = Objects.at(url)
    source = (book.read_run(url).id, Reader())
    seen = Seen.of(objects.names())
    found = seen.checkpoints()
    fetch = Ahead(objects, [name for name, _ in found])
    return [
        Entry(
            f"{objects.url}/{name}",
            name,
            parsed,
            pinned=name in seen.marks[PINS],
            abandoned=name in seen.marks[ABANDONED],
            source=source,
            fetch=fetch,
        )
        for name, parsed in found
    ]


class Ahead:
    """Fetches manifests one by one, and more and more of the next ones together with each: they are asked for in order.

    Args:
        objects: those of the run.
        names: its checkpoints, in their order.

    """

    def __init__(self, objects: Objects, names: Sequence[str]) -> None:
        self._objects, self._names = objects, names
        self._place = {name: number for number, name in enumerate(names)}
        self._held: dict[str, bytes | HoldfastError] = {}
        self._given: set[str] = set()
        self._last, self._width = len(names) + 1, 1

    def __call__(self, file: str, limit: int) -> bytes:
        name = file[len(self._objects.url) + 1 : -len(CHECKPOINT_FILE) - 1]
        if name not in self._held:
            self._get(self._place[name], limit)
        self._last = self._place[name]
        found = self._held.pop(name)
        self._given.add(name)
        if isinstance(found, HoldfastError):
            raise found
        return found

    def _get(self, number: int, limit: int) -> None:
        if number == 0:  # who begins with the oldest wants all
            self._width = _MOST_AHEAD
        elif abs(number - self._last) == 1:
            self._width = min(2 * self._width, _MOST_AHEAD)
        else:
            self._width = 1
        if number == 0 or number > self._last:
            ahead = self._names[number : number + self._width]
        else:
            ahead = self._names[max(0, number - self._width + 1) : number + 1]
        asked = self._names[number]
        wanted = [
            name for name in ahead if name == asked or (name not in self._held and name not in self._given)
        ]

        def fetch(name: str) -> bytes | HoldfastError:
            try:
                return self._objects.small(f"{name}/{CHECKPOINT_FILE}", limit)
            except HoldfastError as error:
                return error

        self._held.update(zip(wanted, _each(wanted, fetch), strict=True))


# -- what is beside it -------------------------------------------------------------------------------------


def runs(url: str, depth: int) -> list[str]:
    """The URLs of the runs below a URL, so many levels deep; what lies in a run or a checkpoint is not looked at."""
    level, found = [Objects.at(url)], list[str]()
    for _ in range(depth):
        children = [child for listed in _each(level, _below) for child in listed]
        level = []
        for child, kind in zip(children, _each(children, _kind), strict=True):
            if kind == "run":
                found.append(child.url)
            elif kind is None:
                level.append(child)
    return sorted(found)


def _below(objects: Objects) -> list[Objects]:
    return [objects.below(folder) for folder in objects.folders()]


def _kind(objects: Objects) -> str | None:
    if _has(objects, book.RUN_FILE):
        return "run"
    return "checkpoint" if _has(objects, CHECKPOINT_FILE) else None


def _each(things: Sequence[_One], ask: Callable[[_One], _Answer]) -> list[_Answer]:
    """The answers about some things, in their order; asked for several at a time."""
    found: dict[int, _Answer] = {}

    def look(number: int) -> None:
        found[number] = ask(things[number])

    share(range(len(things)), look, "network")
    return [found[number] for number in range(len(things))]


def pin(url: str, name: str) -> None:
    """Keeps a checkpoint of the run at a URL; `NotFoundError` when it was deleted meanwhile."""
    objects = Objects.at(url)
    objects.put(f"{PINS}/{name}", b"")
    if not _has(objects, f"{name}/{CHECKPOINT_FILE}"):
        unpin(url, name)
        raise NotFoundError(
            f"{url}/{name} is gone, so it was not pinned: it was deleted meanwhile. Next: holdfast ls {url}",
            path=f"{url}/{name}",
            candidates=[],
        )


def unpin(url: str, name: str) -> None:
    """Hands a checkpoint back to the mirror's Keep."""
    Objects.at(url).delete([f"{PINS}/{name}"])
