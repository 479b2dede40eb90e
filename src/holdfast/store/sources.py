"""What a path or a URL leads to, and how its files are read. All that distinguishes the two begins here."""

from __future__ import annotations

import os

from holdfast.errors import UsageError
from holdfast.objects import urls
from holdfast.payload.source import FolderSource, Readable


def absolute(place: str | os.PathLike[str]) -> str:
    """A path, absolute; or a URL, as it is shown everywhere.

    Raises:
        UsageError: the URL is of no kind that is supported, or brings credentials along.

    """
    text = os.fspath(place)
    return urls.parse(text).url if urls.is_url(text) else os.path.abspath(os.path.expanduser(text))


def local(place: str | os.PathLike[str], what: str, remedy: str = "") -> str:
    """A path, absolute.

    Args:
        place: as the user gave it.
        what: what needs a directory, like "holdfast prune".
        remedy: what to do instead; by default to pull the run first.

    Raises:
        UsageError: it is a URL.

    """
    text = os.fspath(place)
    if urls.is_url(text):
        shown = urls.redacted(text)
        remedy = remedy or f"holdfast pull {shown} RUN, then the same with the directory RUN"
        raise UsageError(f"{shown} is a URL; {what} needs a directory. Next: {remedy}.", path=shown)
    return os.path.abspath(os.path.expanduser(text))


def source_of(path: str) -> Readable:
    """The files in a directory, or below a URL, absolute as `absolute` gives it."""
    if urls.is_url(path):
        from holdfast.objects.access import Objects
        from holdfast.store.distant import DistantSource

        return DistantSource(Objects.at(path))
    return FolderSource(path)
