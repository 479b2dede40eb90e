"""Which kind of place a mirror's URL means."""

from __future__ import annotations

from holdfast.mirrors.folder import Folder
from holdfast.mirrors.place import Place
from holdfast.objects import urls


def place_of(url: str, writer: str) -> Place:
    """The mirror at a URL, or in a directory.

    Args:
        url: as `Mirror.path` gives it.
        writer: what tells this writer from all others, such as the token of its lease.

    """
    if urls.is_url(url):
        from holdfast.mirrors.bucket import Bucket

        return Bucket(url)
    return Folder(url, writer)
