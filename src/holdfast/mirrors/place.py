"""What a mirror must be able to do, whatever kind of storage it is."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Protocol

from holdfast.errors import HoldfastError, UsageError, storage_error
from holdfast.payload.source import Source
from holdfast.store.book import RunBook
from holdfast.store.entry import Entry


class Part(Protocol):
    """A file on its way into a place.

    Attributes:
        found: bytes that were written here and lay there already; they were not sent again.

    """

    found: int

    def read(self, into: memoryview, offset: int) -> bool:
        """Fills `into` with what an earlier attempt left there; False where there is nothing."""

    def write(self, data: memoryview, offset: int) -> None:
        """Takes bytes of the file."""

    def finish(self) -> None:
        """Returns when the file is durable; an attempt that fails is forgotten as a whole."""

    def close(self) -> None:
        """Ends the attempt; what was written may be found by the next one."""


class Target(Protocol):
    """A checkpoint on its way into a place: no reader sees it before it is published."""

    def begin(self, files: Mapping[str, str]) -> None:
        """Prepares for files of these names, and removes what an earlier attempt left under others.

        Args:
            files: the digest of each, as the manifest has it; "" where it has none.

        """

    def has(self, file: str, size: int) -> bool:
        """Whether the place is sure, without its being read, that the file lies there already as it should be."""

    def part(self, file: str, size: int) -> Part:
        """A file of that size."""

    def finish(self) -> None:
        """Returns when all of it is durable under its hidden name."""


class Place(Protocol):
    """A mirror. It has the layout of a run, without leases and links.

    Attributes:
        url: its name, for messages.

    """

    url: str

    def heed(self, check: Callable[[], object]) -> None:
        """Calls `check` again and again while an answer from far away is waited for; it may raise to end that."""

    def book(self) -> RunBook | None:
        """The content of its run.json; None where a mirror can be begun.

        Raises:
            UsageError: something else is there.
            StorageError: it is out of reach.

        """

    def entries(self) -> list[Entry]:
        """Its checkpoints, oldest first."""

    def source(self, name: str) -> Source:
        """One of its checkpoints."""

    def enter(self, data: bytes) -> None:
        """Takes over what earlier writers left unfinished, and brings run.json up to date.

        Raises:
            UsageError: another run was begun there since `book` was asked.

        """

    def target(self, name: str) -> Target:
        """A checkpoint that is to come; one that was begun before is continued."""

    def unfinished(self) -> Sequence[str]:
        """The names of checkpoints that were begun."""

    def forget(self, name: str) -> None:
        """Removes what was begun of a checkpoint."""

    def publish(self, name: str) -> None:
        """Makes a finished one visible under its name, in one step, and durable."""

    def delete(self, name: str) -> bool:
        """Takes a checkpoint away, in one step; False when it is pinned there."""

    def mark(self, kind: str, names: Collection[str], *, gone: Collection[str] = ()) -> None:
        """Marks names as pinned or abandoned, and takes the marks of others away."""

    def leave(self) -> None:
        """Removes the hidden names that are not needed to continue."""

    def steady(self) -> contextlib.AbstractContextManager[None]:
        """What the storage says in the block becomes errors that name this place."""


def taken(url: str, own: str, found: str) -> UsageError:
    """What is said of a mirror that another run began while this one was about to."""
    return UsageError(
        f"The mirror {url} holds another run, begun at this moment: its id is {found}, and that of this run is {own}. "
        f"Nothing was written. Next: give each run a mirror of its own.",
        path=url,
        expected=own,
        found=found,
    )


@contextlib.contextmanager
def steadied(url: str) -> Iterator[None]:
    """Errors of the system in the block become a `StorageError` that names a place."""
    try:
        yield
    except OSError as error:
        if isinstance(error, HoldfastError):
            raise
        raise storage_error(error, url, "use the mirror") from error
