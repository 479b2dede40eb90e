"""What lies below a prefix in a bucket: listed, read, written, deleted. Every wait is bounded and can be broken off."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import threading
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine
from typing import Any, NamedTuple, TypeVar

from holdfast.errors import FormatError, HoldfastError, NotFoundError, StorageError
from holdfast.objects import stores, urls
from holdfast.objects.refusals import Said, refusal
from holdfast.objects.stores import Stores
from holdfast.objects.urls import Address
from holdfast.objects.waiting import Request

DIGEST = "holdfastdigest"
"""Under this name an object says what its writer knew of its content. No hyphen: Azure takes none."""
_SMALL = 1 << 20
_QUICK = (stores.QUICK_SECONDS + stores.QUICK_RETRIES) * 1.25
BULK = stores.BULK_SECONDS + stores.BULK_RETRIES
"""Seconds after which whatever is large has succeeded or failed, all attempts together."""
_T = TypeVar("_T")
Check = Callable[[], object]


class Facts(NamedTuple):
    """What an object says of itself: bytes, and the digest that its writer gave."""

    size: int
    digest: str | None


class Objects:
    """The objects below a prefix. Names are relative to it; an object is seen whole or not at all.

    Every call may raise `StorageError`, with the facts `status` and `code` as the store gave them and `errno`:
    EACCES for credentials, ENOENT for a bucket that is not there, EHOSTUNREACH and ETIMEDOUT for the way to it.

    Attributes:
        address: where they are.
        url: the same, as it is shown.

    """

    def __init__(self, address: Address, connected: Stores, check: Check = lambda: None) -> None:
        self.address, self.url = address, address.url
        self._stores, self._check = connected, check

    @classmethod
    def at(cls, url: str, check: Check = lambda: None) -> Objects:
        """The objects at a URL, such as `s3://bucket/prefix`; the connection is kept for the next call.

        Args:
            url: where they are.
            check: called ten times a second while an answer is waited for, by the thread that waits; what it raises
                ends the wait, and the request.

        Raises:
            UsageError: the URL means no place, or the library for it is not installed.
            StorageError: there are no credentials.

        """
        address = urls.parse(url)
        key = (os.getpid(), stores.environment(), address.scheme, address.bucket)
        with _lock:
            connected = _connected.get(key)
        if connected is None:
            connected = stores.connect(address)  # may take seconds, where it asks for the machine's role
            with _lock:
                for other in [one for one in _connected if one[2:] == key[2:] and one != key]:
                    del _connected[other]  # nobody asks for it any more
                connected = _connected.setdefault(key, connected)
        return cls(address, connected, check)

    def below(self, prefix: str) -> Objects:
        """The objects below a further prefix."""
        return Objects(self.address._replace(prefix=self.address.key(prefix)), self._stores, self._check)

    def heeding(self, check: Check) -> Objects:
        """The same objects; whoever waits for them can be called away by another check as well."""
        own = self._check

        def both() -> None:
            own()
            check()

        return Objects(self.address, self._stores, both)

    # -- looking -----------------------------------------------------------------------------------

    def names(self, prefix: str = "", most: int | None = None) -> dict[str, int]:
        """The names of all objects, or of those below a further prefix, and their sizes in bytes.

        One request for each thousand, no further ones once there are `most`. A bucket that is not there is an error,
        a prefix that is not there is merely empty.
        """
        key = self.address.key(prefix)

        async def work() -> dict[str, int]:
            import obstore

            found: dict[str, int] = {}
            start = len(self.address.prefix) + 1 if self.address.prefix else 0
            stream = obstore.list(self._stores.quick, key or None, chunk_size=1000)
            async for chunk in stream:
                for item in chunk:
                    if len(item["path"]) > start:  # else what consoles make for a folder: the prefix itself
                        found[item["path"][start:]] = item["size"]
                if most is not None and len(found) >= most:
                    break
            found.pop("", None)  # the prefix itself, which consoles make and show as a folder
            return found

        return dict(sorted(self._run(work, "list", prefix, BULK).items()))

    def folders(self, prefix: str = "") -> list[str]:
        """The names up to the next slash, of all that have one: what lies one level below."""
        key = self.address.key(prefix)

        async def work() -> list[str]:
            import obstore

            start = len(self.address.prefix) + 1 if self.address.prefix else 0
            listed = await obstore.list_with_delimiter_async(self._stores.quick, key or None)
            return sorted(name[start:].rstrip("/") for name in listed["common_prefixes"])

        return self._run(work, "list", prefix, BULK)

    def small(self, name: str, limit: int) -> bytes:
        """The bytes of an object; more than `limit` are a `FormatError`, none there a `NotFoundError`."""

        async def work() -> bytes:
            import obstore

            found = await obstore.get_async(self._stores.quick, self.address.key(name))
            size = found.meta["size"]
            if size > limit:
                raise FormatError(
                    f"{self.url}/{name} has {size:,} bytes; such a file has at most {limit:,}.",
                    path=f"{self.url}/{name}",
                    expected=limit,
                    found=size,
                )
            return bytes(await found.bytes_async())

        return self._run(work, "read", name)

    def read(self, name: str, into: memoryview, offset: int) -> int:
        """Fills `into` from byte `offset` of an object; gives how many bytes there were."""
        data = self.piece(name, offset, len(into))
        into[: len(data)] = data
        return len(data)

    def piece(self, name: str, offset: int, length: int) -> memoryview:
        """The bytes of an object from `offset` on, in one request; fewer than `length` where it ends before.

        They lie in memory of their own: a request that nobody waits for any more writes nowhere else.
        """

        async def work() -> memoryview:
            import obstore

            if not length:
                return memoryview(b"")
            try:
                data = await obstore.get_range_async(
                    self._stores.bulk, self.address.key(name), start=offset, length=length
                )
            except Exception as error:
                if Said.of(error).status == 416:  # it ends before
                    return memoryview(b"")
                raise
            return memoryview(data)

        return self._begin(_again(work, stores.BULK_RETRIES), "read", name, BULK).wait()

    def size(self, name: str) -> int:
        """The bytes that an object has; `NotFoundError` where there is none."""
        return self.facts(name).size

    def facts(self, name: str) -> Facts:
        """What an object says of itself; `NotFoundError` where there is none."""

        async def work() -> Facts:
            import obstore

            found = await obstore.get_async(
                self._stores.quick, self.address.key(name), options={"head": True}
            )
            attributes: dict[str, str] = {key.lower(): value for key, value in found.attributes.items()}
            return Facts(found.meta["size"], attributes.get(DIGEST))

        return self._run(work, "look at", name)

    # -- changing ----------------------------------------------------------------------------------

    def put(self, name: str, data: bytes, *, create: bool = False, digest: str | None = None) -> bool:
        """Writes an object in one request.

        Args:
            name: which.
            data: its bytes, which fit into memory twice.
            create: only where there is none. A store that cannot do that is looked at first.
            digest: what it is to say of its content.

        Returns:
            False where `create` found another object there, with other bytes; nothing was written then.

        """
        if not create:
            try:
                self._put(name, data, digest, None)
            except _Exists:
                raise self._contested(name) from None
            return True
        end, pause = time.monotonic() + stores.QUICK_RETRIES, stores._FIRST_PAUSE
        while True:
            problem: StorageError
            try:
                self._put(name, data, digest, "create")
                return True
            except _Exists:
                problem = self._contested(name)
            except StorageError as error:
                if error.facts.get("status") == 501 or error.facts.get("code") in (
                    "NotImplemented",
                    "NotSupported",
                ):
                    return self._put_where_none_is(name, data, digest)
                problem = error
            # An acknowledgement that was lost looks like a failure, or, at a second attempt, like another's object.
            try:
                return self.small(name, len(data)) == data
            except FormatError:
                return False
            except HoldfastError as error:
                missing = isinstance(error, NotFoundError)
                if not missing or not problem.facts.get("may_pass") or time.monotonic() + pause > end:
                    raise problem from None
            # What is not there, and what may pass: the library asks only once where the answer counts.
            self._rest(pause)
            pause = min(2 * pause, stores._LONGEST_PAUSE)

    def _contested(self, name: str) -> StorageError:
        """What is said where the store speaks of another write and there is none to be found."""
        return StorageError(
            f"Cannot write {self.url}/{name}: the store says that this is in conflict with another request. Next: does "
            f"another process write there? Else try again later.",
            errno=errno.EBUSY,
            path=f"{self.url}/{name}",
            operation="write",
            may_pass=True,
        )

    def _rest(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._check()
            time.sleep(min(left, 0.1))

    def _put_where_none_is(self, name: str, data: bytes, digest: str | None) -> bool:
        with contextlib.suppress(NotFoundError):
            try:
                return self.small(name, len(data)) == data
            except FormatError:
                return False
        self._put(name, data, digest, None)
        return True

    def _put(self, name: str, data: bytes, digest: str | None, mode: Any) -> None:
        small = len(data) <= _SMALL

        async def work() -> None:
            import obstore

            attributes = {DIGEST: digest} if digest is not None else None
            await obstore.put_async(
                self._stores.quick if small else self._stores.bulk,
                self.address.key(name),
                data,
                mode=mode,
                attributes=attributes,
                use_multipart=False,
            )

        retries = stores.QUICK_RETRIES if small else stores.BULK_RETRIES
        often = _again(work, retries) if mode is None else work
        self._begin(often, "write", name, _QUICK if small else BULK).wait()

    def delete(self, names: Collection[str]) -> None:
        """Deletes objects, in no order; one that is not there is no error."""
        keys = [self.address.key(name) for name in names]

        async def work() -> None:
            import obstore

            try:
                await obstore.delete_async(self._stores.quick, keys)
            except FileNotFoundError as error:
                if Said.of(error).code == "NoSuchBucket":
                    raise
                for key in (
                    keys if len(keys) > 1 else ()
                ):  # to some stores the first that is missing is the end
                    with contextlib.suppress(FileNotFoundError):
                        await obstore.delete_async(self._stores.quick, [key])

        if keys:
            self._run(work, "delete", next(iter(names)) if len(keys) == 1 else "")

    # -- how ---------------------------------------------------------------------------------------

    def _run(
        self,
        work: Callable[[], Awaitable[_T]],
        operation: str,
        name: str,
        seconds: float = _QUICK,
    ) -> _T:
        return self._begin(_again(work, stores.QUICK_RETRIES), operation, name, seconds).wait()

    def _begin(
        self, work: Callable[[], Awaitable[_T]], operation: str, name: str, seconds: float
    ) -> Request[_T]:
        return Request(self._translated(work, operation, name), seconds, self._check)

    def _translated(
        self, work: Callable[[], Awaitable[_T]], operation: str, name: str
    ) -> Callable[[], Coroutine[Any, Any, _T]]:
        """The work, whose errors are Holdfast's and hold nothing of the library's."""

        async def translated() -> _T:
            failure: HoldfastError
            try:
                await self._stores.ready()
                return await work()
            except HoldfastError as error:
                stores.heed(error)
                raise
            except Exception as error:
                if type(error).__name__ in ("AlreadyExistsError", "PreconditionError"):
                    failure = _Exists(f"{self.url}/{name} is there already.", path=f"{self.url}/{name}")
                else:
                    failure = stores.heed(refusal(error, self.address, operation, name, self._stores.server))
            raise failure  # not in the except block: the library's error would be shown as its context

        return translated


def _again(work: Callable[[], Awaitable[_T]], retries: float) -> Callable[[], Awaitable[_T]]:
    """The same work, begun again after pauses where the library does not: when an answer breaks off, or is late.

    Args:
        work: asks for the same whenever it is called.
        retries: seconds after which it is not begun again; a second time in any case.

    """

    async def repeated() -> _T:
        end, pause, first = time.monotonic() + retries, stores._FIRST_PAUSE, True
        while True:
            try:
                return await work()
            except HoldfastError:
                raise
            except Exception as error:
                if not Said.of(error).broke_off or (time.monotonic() + pause > end and not first):
                    raise
            first = False
            await asyncio.sleep(pause)
            pause = min(2 * pause, stores._LONGEST_PAUSE)

    return repeated


class _Exists(StorageError):  # noqa: N818 (an answer, caught in this module)
    """There is an object where none was to be."""

    def __init__(self, message: str, **facts: Any) -> None:
        super().__init__(message, errno=errno.EEXIST, operation="write", **facts)


_lock = threading.Lock()
_connected: dict[tuple[int, int, str, str], Stores] = {}


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
