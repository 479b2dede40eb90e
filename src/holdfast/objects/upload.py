"""A file of any size on its way into a bucket: in parts, a few at a time, so that memory is bounded."""

from __future__ import annotations

from typing import Any

from holdfast.objects import amazon_parts, azure_parts, google
from holdfast.objects.access import BULK, DIGEST, Objects
from holdfast.objects.amazon import Amazon
from holdfast.objects.amazon_parts import AmazonParts
from holdfast.objects.azure import Azure
from holdfast.objects.azure_parts import AzureParts
from holdfast.objects.google import Google
from holdfast.objects.google_parts import GoogleParts
from holdfast.objects.multipart import Multipart, Parts
from holdfast.objects.parts import AT_ONCE, PART_SIZE, Order, part_size


def upload(objects: Objects, name: str, size: int, digest: str | None = None) -> Upload | Multipart:
    """A file on its way, by the means that the kind of store has for it: a large one is continued by part."""
    parts = _parts(objects, name, size, digest) if size > part_size(size) else None
    return Upload(objects, name, size, digest) if parts is None else Multipart(objects, name, size, parts)


def _parts(objects: Objects, name: str, size: int, digest: str | None) -> Parts | None:
    """What a store is asked for the parts of a file; None where nothing can be continued there."""
    match objects.address.scheme:
        case "s3":
            return AmazonParts(Amazon(objects), name, size, digest)
        case "gs" if google.reachable(objects.address):
            return GoogleParts(Google(objects), name, size, digest)
        case "az":
            if (azure := Azure.of(objects)) is not None:
                blocks = AzureParts(azure, name, size, digest)
                return blocks if blocks.may() else None
    return None


def begun(objects: Objects) -> set[str]:
    """The names of files of which parts lie in a store that can say so, and that nobody has finished."""
    match objects.address.scheme:
        case "s3":
            return {name for name, _ in amazon_parts.uploads(Amazon(objects))}
        case "gs" if google.reachable(objects.address):
            return {name for name, _ in amazon_parts.uploads(Google(objects))}
        case "az":
            if (azure := Azure.of(objects)) is not None:
                return azure_parts.begun(azure)
    return set()


def forget(objects: Objects, prefix: str) -> None:
    """Removes the parts of files below a prefix; some stores do that by themselves, after a week."""
    match objects.address.scheme:
        case "s3":
            amazon_parts.abort(Amazon(objects), prefix)
        case "gs" if google.reachable(objects.address):
            amazon_parts.abort(Google(objects), prefix)
        case "az":
            if (azure := Azure.of(objects)) is not None:
                azure_parts.abort(azure, prefix)


class Upload:
    """An object that appears, whole, when it is finished, and not at all before.

    One that fits into a part is sent in one request, by `finish`.

    Args:
        objects: where.
        name: which.
        size: its bytes.
        digest: what it is to say of its content.

    """

    def __init__(self, objects: Objects, name: str, size: int, digest: str | None = None) -> None:
        self._objects, self._name, self._size = objects, name, size
        self._digest, self._order = digest, Order(f"{objects.url}/{name}", size)
        self._small: bytearray | None = bytearray() if size <= PART_SIZE else None
        self._writer: Any = None
        self.found = 0

    def read(self, into: memoryview, offset: int) -> bool:  # noqa: ARG002 (as files on disk are continued)
        """False: nothing of an earlier attempt can be read before it is finished."""
        return False

    def write(self, data: memoryview, offset: int) -> None:
        """Takes the next bytes, and returns when at most `AT_ONCE` parts are held in memory.

        Raises:
            UsageError: they are not the next.
            StorageError: an earlier part could not be written, or this one.

        """
        self._order.take(offset, len(data))
        if self._small is not None:
            self._small += data
            return
        # The library goes on reading what it was given after it has said that it took it (tried): so a copy.
        kept = bytes(data)

        async def work() -> None:
            await self._open().write(kept)

        self._objects._begin(work, "write", self._name, BULK).wait()

    def finish(self) -> None:
        """Returns when the object is there."""
        self._order.end()
        if self._small is not None:
            self._objects.put(self._name, bytes(self._small), digest=self._digest)
            return

        async def work() -> None:
            await self._open().close()

        self._objects._begin(work, "write", self._name, BULK).wait()
        self._writer = None

    def close(self) -> None:
        """Ends the attempt; what was not finished never appears."""
        self._writer = None

    def _open(self) -> Any:
        if self._writer is None:
            import obstore

            self._writer = obstore.open_writer_async(
                self._objects._stores.bulk,
                self._objects.address.key(self._name),
                attributes={DIGEST: self._digest} if self._digest is not None else None,
                buffer_size=part_size(self._size),
                max_concurrency=AT_ONCE,
            )
        return self._writer
