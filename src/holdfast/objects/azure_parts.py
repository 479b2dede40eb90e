"""Azure's blocks. One that lies there is recognised by its id, which is made of its number and a digest of its bytes.

Blocks of which no list was put are forgotten by the store after a week, or when a list is put without them.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from typing import Any

import xxhash

from holdfast.errors import StorageError
from holdfast.objects.access import DIGEST
from holdfast.objects.azure import Azure
from holdfast.objects.calls import Body, Call

_CANNOT = (400, 401, 403, 405, 409, 501)
"""Answers to a question that only helps: it is not allowed, or not known, as by accounts with folders."""
_ID = 32
"""All ids of a blob have one length; obstore's have this one, so that an upload by it is not in the way."""


class AzureParts:
    """The parts of an object in Azure: its blocks.

    Args:
        azure: whom to ask, and where.
        name: which object.
        size: its bytes.
        digest: what it is to say of its content.

    """

    def __init__(self, azure: Azure, name: str, size: int, digest: str | None = None) -> None:
        self._azure, self._name, self._size, self._digest = azure, name, size, digest or None
        self._left: dict[str, int] | None = None
        self._ids: dict[int, str] = {}

    def may(self) -> bool:
        """Whether the credentials, and the store, allow to ask which blocks lie there; asked once."""
        # Signed first: from when the store takes the signature for reading, it takes the one for writing.
        if not all(self._azure.blob(method, self._name) for method in ("PUT", "GET")):
            return False
        try:
            self.take_up()
        except StorageError as error:
            if error.facts.get("status") in _CANNOT:
                return False
            raise
        return True

    def take_up(self) -> None:
        """Finds the blocks that an earlier attempt left; those that are in the way of others are taken away."""
        if self._left is not None:
            return
        blob = self._azure.blob("GET", self._name)
        try:
            listed, others = self._azure.ask(lambda: blob.get_block_list("all"), self._name, "look at")
        except StorageError as error:
            if error.facts.get("code") != "BlobNotFound":
                raise
            listed, others = [], []
        if any(len(block.id) != _ID for block in (*listed, *others)):
            self._put_list([])
            others = []
        # Those of a whole blob are not taken: it is sent anew because it is not what it should be.
        self._left = {block.id: block.size for block in others}

    def lies(self, number: int, data: memoryview) -> bool:
        """Whether this part lies there, with these bytes."""
        self._ids[number] = _id(number, data)
        return self._left is not None and self._left.get(self._ids[number]) == len(data)

    def send(self, number: int, data: memoryview, after: Callable[[], None]) -> Call[Any]:
        """Begins to send a part."""
        blob, name = self._azure.blob("PUT", self._name), self._ids[number]

        def work(body: Body | None) -> None:
            # The store compares it; their client would read the body in pieces of 4 KiB to make it.
            md5 = base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
            blob.stage_block(name, body, length=len(data), headers={"Content-MD5": md5})

        return self._azure.begin(work, self._name, "write", data, after)

    def sent(self, number: int, answer: Any) -> None:
        """Its id is known already."""

    def complete(self) -> None:
        """Puts the list of blocks. Done a second time, after an answer that was lost, it changes nothing."""
        try:
            self._put_list([self._ids[number] for number in sorted(self._ids)])
        except StorageError as error:
            if error.facts.get("code") != "InvalidBlockList":
                raise
            shown = f"{self._azure.objects.url}/{self._name}"
            raise StorageError(
                f"Cannot write {shown}: the store has forgotten blocks of it. Next: does another process write "
                f"there? Else try again.",
                path=shown,
                operation="write",
                code="InvalidBlockList",
            ) from None

    def verify(self) -> None:
        """Looks at what lies there; what is not what was written is taken away, and is an error."""
        objects = self._azure.objects
        found = objects.facts(self._name)
        if found == (self._size, self._digest):
            return
        objects.delete([self._name])
        shown = f"{objects.url}/{self._name}"
        raise StorageError(
            f"{shown} is not what was written: expected {self._size} bytes, digest {self._digest}; found "
            f"{found.size}, {found.digest}. It was deleted. Next: try again.",
            path=shown,
            operation="write",
        )

    def _put_list(self, ids: list[str]) -> None:
        from azure.storage.blob import BlobBlock

        blob = self._azure.blob("PUT", self._name)
        blocks = [BlobBlock(name) for name in ids]  # each as it came last
        metadata = {DIGEST: self._digest} if self._digest is not None else None
        self._azure.ask(lambda: blob.commit_block_list(blocks, metadata=metadata), self._name, "write")


def begun(azure: Azure, prefix: str = "") -> set[str]:
    """The names of objects of which there are blocks, and no list.

    None where the credentials do not allow to ask, or the store does not know how to answer: they are a help.

    Args:
        azure: whom to ask, and where.
        prefix: an object, or a further prefix; "" for all.

    """
    container, address, key = azure.container(), azure.objects.address, azure.key(prefix)
    start = len(address.prefix) + 1 if address.prefix else 0
    found: set[str] = set()
    more: str | None = None
    while container is not None:

        def page(more: str | None = more) -> tuple[list[Any], str | None]:
            pages = container.list_blobs(name_starts_with=key, include=["uncommittedblobs"]).by_page(more)
            return list(next(pages, ())), pages.continuation_token

        try:
            blobs, more = azure.ask(page, prefix, "list")
        except StorageError as error:
            if error.facts.get("status") in _CANNOT:
                break
            raise
        found |= {
            blob.name[start:]
            for blob in blobs
            if not blob.size and (not key or blob.name == key or blob.name.startswith(f"{key}/"))
        }
        if not more:
            break
    # Nothing else tells them from objects that are empty.
    return found.difference(azure.objects.names(prefix)) if found else found


def abort(azure: Azure, prefix: str = "") -> list[str]:
    """Takes away blocks below a prefix that nobody will put a list of: an empty list, and it is deleted.

    Args:
        azure: whom to ask, and where.
        prefix: an object, or a further prefix; "" for all.

    Returns:
        The names of the objects.

    """
    gone = sorted(begun(azure, prefix))
    for name in gone:
        _clear(azure, name)
    return gone


def _clear(azure: Azure, name: str) -> None:
    from azure.core import MatchConditions

    put, delete = azure.blob("PUT", name), azure.blob("DELETE", name)
    if put is None or delete is None:
        return

    def empty() -> Any:
        return put.commit_block_list([], match_condition=MatchConditions.IfMissing)["etag"]

    try:
        # Only where nobody has finished it meanwhile, and only what was put here.
        etag = azure.ask(empty, name, "delete")
        same = {"etag": etag, "match_condition": MatchConditions.IfNotModified}
        azure.ask(lambda: delete.delete_blob(**same), name, "delete")
    except StorageError as error:
        if error.facts.get("status") not in (*_CANNOT, 404, 412):
            raise


def _id(number: int, data: memoryview) -> str:
    digest = base64.urlsafe_b64encode(xxhash.xxh3_128_digest(data)).decode().rstrip("=")
    return f"hf{number:07}-{digest}"
