"""A large file on its way into S3, in parts; one that was interrupted goes on by part.

A part that an earlier attempt left is recognised by its size and its etag, the MD5 of its bytes, and not sent
again. Where etags are something else, as with SSE-KMS, all parts are. Memory: `HELD` parts for all files of the
process together, 128 MiB for files up to 156 GiB, of which one file has `AT_ONCE` + 1 at most.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import zlib
from typing import Any, NamedTuple

from holdfast.errors import StorageError, UsageError
from holdfast.objects import buffers
from holdfast.objects.access import DIGEST, Objects
from holdfast.objects.amazon import Amazon, Call
from holdfast.objects.parts import AT_ONCE, part_size

_MAY_NOT = (401, 403, 405, 501)


class _Left(NamedTuple):
    """A part that lies there."""

    size: int
    etag: str


class _Sending(NamedTuple):
    number: int
    md5: str | None
    crc32: str
    call: Call[Any]


class Multipart:
    """An object that appears, whole, when it is finished, and not at all before.

    Args:
        objects: where, in S3.
        name: which.
        size: its bytes, more than one part has.
        digest: what it is to say of its content.

    """

    def __init__(self, objects: Objects, name: str, size: int, digest: str | None = None) -> None:
        self._objects, self._name, self._size, self._digest = objects, name, size, digest or None
        self._key, self._step = objects.address.key(name), part_size(size)
        self._amazon = Amazon(objects)
        self._done = self._filled = 0
        self._buffer: bytearray | None = None
        self._sending: list[_Sending] = []
        self._upload: str | None = None
        self._left: dict[int, _Left] = {}
        self._checked = False
        self._parts: dict[int, dict[str, Any]] = {}
        self._md5 = True
        """Whether etags are MD5s, as far as was seen."""
        self.found = 0
        """Bytes that an earlier attempt had brought, and that were not sent again."""

    def read(self, into: memoryview, offset: int) -> bool:  # noqa: ARG002 (as files on disk are continued)
        """False: parts cannot be read back; they are recognised when their bytes are written."""
        return False

    def write(self, data: memoryview, offset: int) -> None:
        """Takes the next bytes, and returns when at most `AT_ONCE` parts are on their way.

        Raises:
            UsageError: they are not the next.
            StorageError: an earlier part could not be written, or this one.

        """
        if offset != self._done:
            raise UsageError(
                f"{self._objects.url}/{self._name} is written in order: expected byte {self._done}, found {offset}."
            )
        while len(data):
            if self._buffer is None:
                self._buffer, self._filled = self._take_buffer(), 0
            length = min(self._step, self._size - (self._done - self._filled))
            count = min(len(data), length - self._filled)
            if not count:
                raise UsageError(
                    f"{self._objects.url}/{self._name} has {self._size} bytes; more were written."
                )
            self._buffer[self._filled : self._filled + count] = data[:count]
            data = data[count:]
            self._filled += count
            self._done += count
            if self._filled == length:
                buffer, self._buffer = self._buffer, None
                self._pass_on(buffer, length)

    def finish(self) -> None:
        """Returns when the object is there, and is what was written."""
        if self._done != self._size:
            raise UsageError(
                f"{self._objects.url}/{self._name} is not complete: expected {self._size} bytes, found {self._done}."
            )
        self._await_room(0)
        self._complete()
        self._verify()

    def close(self) -> None:
        """Ends the attempt; the parts that lie there are found by the next one."""
        for sending in self._sending:
            sending.call.cancel()
        self._sending.clear()
        if self._buffer is not None:
            buffers.shared.give(self._buffer)
            self._buffer = None

    # -- parts -------------------------------------------------------------------------------------

    def _take_buffer(self) -> bytearray:
        self._await_room(AT_ONCE)
        return buffers.shared.take(self._step, self._objects._check, first=not self._sending)

    def _await_room(self, most: int) -> None:
        """Waits until at most so many parts are on their way.

        Raises:
            StorageError: one failed; the others have ended by then, so that the next attempt finds them.

        """
        failure: StorageError | None = None
        while self._sending:
            over = len(self._sending) > most or failure is not None
            if not over and not any(sending.call.done for sending in self._sending):
                break
            # One that is done, else the one that was begun first.
            sending = next((one for one in self._sending if one.call.done), self._sending[0])
            try:
                answer = sending.call.wait()
            except StorageError as error:
                failure = failure or error
                answer = None
            self._sending.remove(sending)
            if answer is not None:
                etag = answer["ETag"].strip('"')
                self._md5 = self._md5 and sending.md5 in (None, etag)
                self._note(sending.number, etag, sending.crc32)
        if failure is not None:
            raise failure

    def _note(self, number: int, etag: str, crc32: str) -> None:
        self._parts[number] = {"PartNumber": number, "ETag": etag}
        if self._checked:
            self._parts[number]["ChecksumCRC32"] = crc32

    def _pass_on(self, buffer: bytearray, length: int) -> None:
        """Sends a part on its way, unless it lies there; the buffer is given back in any case."""
        if self._upload is None:
            try:
                self._take_up()
            except BaseException:
                buffers.shared.give(buffer)
                raise
        number = (self._done - 1) // self._step + 1
        data = memoryview(buffer)[:length]
        left, crc32 = self._left.get(number), _crc32(data)
        md5 = _md5(data) if left is not None or number == 1 else None
        if left is not None and left == (length, md5):
            buffers.shared.give(buffer)
            self.found += length
            self._note(number, left.etag, crc32)
            return
        words = {"Key": self._key, "UploadId": self._upload, "PartNumber": number}
        if self._checked:
            words["ChecksumCRC32"] = crc32
        give_back = functools.partial(buffers.shared.give, buffer)
        call = self._amazon.begin("upload_part", self._name, "write", data, give_back, **words)
        self._sending.append(_Sending(number, md5, crc32, call))

    # -- the upload --------------------------------------------------------------------------------

    def _take_up(self) -> None:
        """Goes on with the upload that has most of the parts, and ends all others for this object; else begins one."""
        begun: list[tuple[dict[int, _Left], bool, str]] = []
        others: list[str] = []
        for name, upload in uploads(self._objects, self._name):
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
                ChecksumAlgorithm="CRC32",
            )
            # A server that does not say so knows nothing of it.
            self._upload, self._checked = answer["UploadId"], answer.get("ChecksumAlgorithm") == "CRC32"
        for upload in others:
            if upload != self._upload:
                _abort(self._amazon, self._name, upload)

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

    def _complete(self) -> None:
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

    def _verify(self) -> None:
        """Looks at what lies there; what is not what was written is taken away, and is an error."""
        found = self._amazon.ask("head_object", self._name, "look at", Key=self._key)
        size, etag = found["ContentLength"], found["ETag"].strip('"')
        digest = {key.lower(): value for key, value in found["Metadata"].items()}.get(DIGEST)
        whole = self._whole_etag()
        if size == self._size and digest == self._digest and (whole is None or etag == whole):
            return
        self._amazon.ask("delete_object", self._name, "delete", Key=self._key)
        raise StorageError(
            f"{self._objects.url}/{self._name} is not what was written: expected {self._size} bytes, digest "
            f"{self._digest}, etag {whole}; found {size}, {digest}, {etag}. It was deleted. Next: try again.",
            path=f"{self._objects.url}/{self._name}",
            operation="write",
        )

    def _whole_etag(self) -> str | None:
        """The etag that an object of these parts has; None where etags are not made of MD5s."""
        if not self._md5:
            return None
        parts = b"".join(bytes.fromhex(self._parts[number]["ETag"]) for number in sorted(self._parts))
        return f"{_md5(memoryview(parts))}-{len(self._parts)}"


def uploads(objects: Objects, prefix: str = "") -> list[tuple[str, str]]:
    """The uploads that were begun and not ended: the object's name and the upload's id.

    None where the credentials do not allow to ask, or the server does not know how to answer: they are a help.

    Args:
        objects: where, in S3.
        prefix: an object, or a further prefix; "" for all.

    """
    amazon, key = Amazon(objects), objects.address.key(prefix)
    start = len(objects.address.prefix) + 1 if objects.address.prefix else 0
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


def abort(objects: Objects, prefix: str = "") -> list[str]:
    """Ends the uploads below a prefix that nobody will continue, whose parts would be paid for as long as they lie.

    Args:
        objects: where, in S3.
        prefix: an object, or a further prefix; "" for all.

    Returns:
        The names of the objects.

    """
    gone = uploads(objects, prefix)
    for name, upload in gone:
        _abort(Amazon(objects), name, upload)
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
