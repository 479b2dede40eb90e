"""Where the files of a checkpoint are read from: a directory here, or whatever else can be asked for bytes."""

from __future__ import annotations

import os
from typing import Literal, Protocol

from holdfast import files, open_files
from holdfast.payload.threads import Crew


class Distant(Protocol):
    """A file that is far away: each question takes long, and what is answered may have suffered on its way.

    Attributes:
        path: for messages.

    """

    path: str

    @property
    def distant(self) -> Literal[True]:
        """What tells it from a `FolderFile`."""

    def size(self) -> int:
        """How many bytes it has."""

    def fetch(self, offset: int, length: int) -> memoryview:
        """Bytes from `offset` on, in one request; fewer where the file ends before."""

    def abandon(self) -> None:
        """Breaks off all that is waited for here; several threads may be doing so."""

    def close(self) -> None:
        """Ends the reading."""


class FolderFile:
    """A file in a directory."""

    distant: Literal[False] = False

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd = files.open_for_reading(path)

    def size(self) -> int:
        with files.translated(self.path, "look at"):
            return os.fstat(self._fd).st_size

    def read(self, views: list[memoryview], offset: int) -> int:
        """Fills the views, one after the other, from byte `offset` on; gives how many bytes it were.

        They may be fewer than there is room for; none at all is the end of the file. The error is the system's own.
        """
        return os.preadv(self._fd, views, offset)

    def fill(self, into: memoryview, offset: int) -> int:
        """Fills `into` from byte `offset` on; gives how many bytes there were."""
        with files.translated(self.path, "read"):
            return open_files.read_into(self._fd, into, offset)

    def abandon(self) -> None:
        """A disk is not waited for."""

    def close(self) -> None:
        os.close(self._fd)


class Source(Protocol):
    """A checkpoint that can be read from, bytes by bytes; nothing of it is trusted before it is checked.

    Each call raises `NotFoundError` for what is not there, `FormatError` for what is no file, and `StorageError`
    for what cannot be read.

    Attributes:
        path: its directory or URL, for messages.
        distant: whether what it gives may have suffered on its way: what is not right is asked for once more.

    """

    path: str
    distant: bool

    def small(self, file: str, limit: int) -> bytes:
        """The bytes of a file; more than `limit` are a `FormatError`."""

    def read(self, file: str, into: memoryview, offset: int) -> int:
        """Fills `into` from byte `offset` of a file; gives how many bytes there were."""


class Readable(Source, Protocol):
    """A source from which arrays are read, by several threads at once.

    Attributes:
        crew: the threads that read blocks of it.

    """

    crew: Crew

    def exists(self) -> bool:
        """Whether there is a checkpoint at all, whole or not."""

    def names(self) -> list[str]:
        """The names of all that lies in it."""

    def size(self, file: str) -> int:
        """How many bytes a file has, before anything else of it is looked at."""

    def small(self, file: str, limit: int, *, text: bool = False) -> bytes:
        """As above; with `text`, a zero byte is a `FormatError` too."""

    def open(self, file: str) -> FolderFile | Distant:
        """A file, for many reads by several threads at once."""


class FolderSource:
    """A checkpoint in a directory."""

    crew: Crew = "blocks"
    distant = False

    def __init__(self, path: str) -> None:
        self.path = path

    def exists(self) -> bool:
        return os.path.isdir(self.path)

    def names(self) -> list[str]:
        with files.translated(self.path, "list"):
            return os.listdir(self.path)

    def size(self, file: str) -> int:
        path = os.path.join(self.path, file)
        with files.translated(path, "look at"):
            return os.lstat(path).st_size

    def small(self, file: str, limit: int, *, text: bool = False) -> bytes:
        return files.read_file(os.path.join(self.path, file), limit, text=text)

    def read(self, file: str, into: memoryview, offset: int) -> int:
        opened = self.open(file)
        try:
            return opened.fill(into, offset)
        finally:
            opened.close()

    def open(self, file: str) -> FolderFile:
        return FolderFile(os.path.join(self.path, file))
