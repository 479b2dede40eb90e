"""S3's multipart uploads. A part that lies there is recognised by its size and its etag, the MD5 of its bytes.

Where etags are something else, as with SSE-KMS, all parts are sent again.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

from holdfast.errors import StorageError
from holdfast.objects.access import DIGEST
from holdfast.objects.amazon import Amazon
from holdfast.objects.calls import Call
from holdfast.objects.parts import part_size

_MAY_NOT = (401, 403, 405, 501)


class _Left(NamedTuple):
    """A part that lies there."""

    size: int
    etag: str


class AmazonParts:
    """The parts of an object in S3, or in what is spoken to like it.

    Args:
        amazon: whom to ask, and where.
        name: which object.
        size: its bytes.
        digest: what it is to say of its content.

    """

    whole_etags = True
    """Whether the etag of a whole object is made of those of its parts, where these are MD5s."""
    by_md5 = False
    """Whether each part goes along with its MD5, and not with its CRC32 where the store knows of these."""

    def __init__(self, amazon: Amazon, name: str, size: int, digest: str | None = None) -> None:
        self._amazon, self._name, self._size, self._digest = amazon, name, size, digest or None
        self._key, self._step = amazon.key(name), part_size(size)
        self._upload: str | None = None
        self._left: dict[int, _Left] = {}
        self._checked = False
        self._md5s: dict[int, str] = {}
        """Of parts on their way, where etags are to be compared with them."""
        self._crcs: dict[int, str] = {}
        self._parts: dict[int, dict[str, Any]] = {}
        self._md5 = True
        """Whether etags are MD5s, as far as was seen."""

    def take_up(self) -> None:
        """Goes on with the upload that has most of the parts, and ends all others for this object; else begins one."""
        begun: list[tuple[dict[int, _Left], bool, str]] = []
        others: list[str] = []
        for name, upload in uploads(self._amazon, self._name):
            if name != self._name:
                continue
            others.append(upload)
            with contextlib.suppress(StorageError):
                left, checked = self._parts_of(upload)
                if left and all(self._fits(number, part) for number, part in left.items()):
                    begun.append((left, checked, upload))
        if begun:
            self._left, self._checked, self._upload = max(begun, key=lambda one: len(one[0]))
        else:
            answer = self._amazon.ask(
                "create_multipart_upload",
                self._name,
                "write",
                Key=self._key,
                Metadata={DIGEST: self._digest} if self._digest is not None else {},
                **({} if self.by_md5 else {"ChecksumAlgorithm": "CRC32"}),
            )
            # A server that does not say so knows nothing of it.
            self._upload, self._checked = answer["UploadId"], answer.get("ChecksumAlgorithm") == "CRC32"
        for upload in others:
            if upload != self._upload:
                _abort(self._amazon, self._name, upload)

    def lies(self, number: int, data: memoryview) -> bool:
        """Whether this part lies there, with these bytes."""
        left = self._left.get(number)
        if not self.by_md5:
            self._crcs[number] = _crc32(data)
        if left is not None or number == 1 or self.by_md5:
            self._md5s[number] = _md5(data)
        if left is None or left != (len(data), self._md5s[number]):
            return False
        self._note(number, left.etag)
        return True

    def send(self, number: int, data: memoryview, after: Callable[[], None]) -> Call[Any]:
        """Begins to send a part."""
        words = {"Key": self._key, "UploadId": self._upload, "PartNumber": number}
        if self._checked:
            words["ChecksumCRC32"] = self._crcs[number]
        if self.by_md5:
            words["ContentMD5"] = base64.b64encode(bytes.fromhex(self._md5s[number])).decode()
        return self._amazon.begin("upload_part", self._name, "write", data, after, **words)

    def sent(self, number: int, answer: Any) -> None:
        """Notes a part that was sent, and whether its etag is the MD5 of its bytes."""
        etag = answer["ETag"].strip('"')
        self._md5 = self._md5 and self._md5s.pop(number, etag) == etag
        self._note(number, etag)

    def complete(self) -> None:
        """Makes the object of its parts."""
        try:
            self._amazon.ask(
                "complete_multipart_upload",
                self._name,
                "write",
                Key=self._key,
                UploadId=self._upload,
                MultipartUpload={"Parts": [self._parts[number] for number in sorted(self._parts)]},
            )
        except StorageError as error:
            # At a second attempt, after an answer that was lost, there is nothing to complete any more.
            if error.facts.get("code") != "NoSuchUpload":
                raise

    def verify(self) -> None:
        """Looks at what lies there; what is not what was written is taken away, and is an error."""
        found = self._amazon.ask("head_object", self._name, "look at", Key=self._key)
        size, etag = found["ContentLength"], found["ETag"].strip('"')
        digest = {key.lower(): value for key, value in found["Metadata"].items()}.get(DIGEST)
        whole = self._whole_etag()
        if size == self._size and digest == self._digest and (whole is None or etag == whole):
            return
        self._amazon.ask("delete_object", self._name, "delete", Key=self._key)
        shown = f"{self._amazon.objects.url}/{self._name}"
        raise StorageError(
            f"{shown} is not what was written: expected {self._size} bytes, digest {self._digest}, etag {whole}; "
            f"found {size}, {digest}, {etag}. It was deleted. Next: try again.",
            path=shown,
            operation="write",
        )

    # -- how ---------------------------------------------------------------------------------------

    def _note(self, number: int, etag: str) -> None:
        self._parts[number] = {"PartNumber": number, "ETag": etag}
        crc32 = self._crcs.pop(number, "")
        if self._checked:
            self._parts[number]["ChecksumCRC32"] = crc32

    def _fits(self, number: int, part: _Left) -> bool:
        start = (number - 1) * self._step
        return start < self._size and part.size == min(self._step, self._size - start)

    def _parts_of(self, upload: str) -> tuple[dict[int, _Left], bool]:
        found: dict[int, _Left] = {}
        checked = False
        more: dict[str, Any] = {}
        while True:
            answer = self._amazon.ask(
                "list_parts", self._name, "look at", Key=self._key, UploadId=upload, **more
            )
            checked = checked or answer.get("ChecksumAlgorithm") == "CRC32"
            for part in answer.get("Parts", ()):
                found[part["PartNumber"]] = _Left(part["Size"], part["ETag"].strip('"'))
            if not answer.get("IsTruncated"):
                return found, checked
            more = {"PartNumberMarker": answer["NextPartNumberMarker"]}

    def _whole_etag(self) -> str | None:
        """The etag that an object of these parts has; None where etags are not made of MD5s."""
        if not self._md5 or not self.whole_etags:
            return None
        parts = b"".join(bytes.fromhex(self._parts[number]["ETag"]) for number in sorted(self._parts))
        return f"{_md5(memoryview(parts))}-{len(self._parts)}"


def uploads(amazon: Amazon, prefix: str = "") -> list[tuple[str, str]]:
    """The uploads that were begun and not ended: the object's name and the upload's id.

    None where the credentials do not allow to ask, or the server does not know how to answer: they are a help.

    Args:
        amazon: whom to ask, and where.
        prefix: an object, or a further prefix; "" for all.

    """
    address, key = amazon.objects.address, amazon.key(prefix)
    start = len(address.prefix) + 1 if address.prefix else 0
    found: list[tuple[str, str]] = []
    more: dict[str, Any] = {}
    while True:
        try:
            answer = amazon.ask("list_multipart_uploads", prefix, "list", Prefix=key, **more)
        except StorageError as error:
            if error.facts.get("status") in _MAY_NOT:
                return found
            raise
        found += [
            (item["Key"][start:], item["UploadId"])
            for item in answer.get("Uploads", ())
            if not key or item["Key"] == key or item["Key"].startswith(f"{key}/")
        ]
        if not answer.get("IsTruncated"):
            return found
        more = {"KeyMarker": answer["NextKeyMarker"], "UploadIdMarker": answer["NextUploadIdMarker"]}


def abort(amazon: Amazon, prefix: str = "") -> list[str]:
    """Ends the uploads below a prefix that nobody will continue, whose parts would be paid for as long as they lie.

    Args:
        amazon: whom to ask, and where.
        prefix: an object, or a further prefix; "" for all.

    Returns:
        The names of the objects.

    """
    gone = uploads(amazon, prefix)
    for name, upload in gone:
        _abort(amazon, name, upload)
    return [name for name, _ in gone]


def _abort(amazon: Amazon, name: str, upload: str) -> None:
    try:
        amazon.ask("abort_multipart_upload", name, "delete", Key=amazon.key(name), UploadId=upload)
    except StorageError as error:
        if error.facts.get("code") != "NoSuchUpload" and error.facts.get("status") not in _MAY_NOT:
            raise


def _md5(data: memoryview) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _crc32(data: memoryview) -> str:
    return base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()
