"""S3 by boto3's own client, for what obstore cannot ask: which parts of a file lie there already.

That client blocks: each of its calls runs in a thread of its own, and whoever waits for one looks up ten times a
second, can be called away, and gives up in the end. Nothing waits for such a thread at the end of the process.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from holdfast.errors import HoldfastError, StorageError
from holdfast.objects import stores
from holdfast.objects.access import Objects
from holdfast.objects.parts import AT_ONCE
from holdfast.objects.refusals import Said, refusal
from holdfast.payload.threads import Ticket

SILENT_SECONDS = 60.0
"""So long an answer may take to begin; large files are put together before it does."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 10.0
_STEP = 0.1
_PIECE = 256 << 10
_T = TypeVar("_T")


class Body:
    """The bytes of a request, read by the client as from a file.

    Args:
        data: the bytes.
        going: called before each piece; what it raises ends the request.

    """

    def __init__(self, data: memoryview, going: Callable[[], None]) -> None:
        self._data, self._going, self._at = data, going, 0

    def read(self, size: int = -1) -> memoryview:
        """The next bytes; more than were asked for, since http.client asks for 16 KiB at a time."""
        self._going()
        start = self._at
        self._at = len(self._data) if size < 0 else min(start + max(size, _PIECE), len(self._data))
        return self._data[start : self._at]

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, len(self._data))[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def __len__(self) -> int:
        return len(self._data)


class Call(Generic[_T]):
    """A call on its way: tried again, after pauses, as long as what stops it may pass.

    Args:
        work: makes the call; gets what a `Body` calls between pieces.
        seconds: how long one attempt may take.
        retries: seconds after which none is begun any more.
        check: called again and again by whoever waits; may raise, to be called away.
        translate: makes the error to raise of the client's.
        after: called when it has ended, whoever waits for it or not: nobody reads its bytes any more.

    """

    def __init__(
        self,
        work: Callable[[Callable[[], None]], _T],
        seconds: float,
        retries: float,
        check: Callable[[], object],
        translate: Callable[[BaseException], HoldfastError],
        after: Callable[[], None] = lambda: None,
    ) -> None:
        self._work, self._seconds, self._retries = work, seconds, retries
        self._check, self._translate, self._after = check, translate, after
        self._ticket, self._cancelled = Ticket(), threading.Event()
        self._value: list[_T] = []
        self._started = self._attempt = time.monotonic()
        thread = threading.Thread(target=self._run, name="holdfast-amazon", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # the interpreter is ending
            after()
            raise StorageError(
                f"No request to an object store can be begun any more: {error}.", operation="ask"
            ) from None

    @property
    def done(self) -> bool:
        return self._ticket.done

    def wait(self) -> _T:
        """What it gives; raises its error. A wait that is broken off ends it."""
        try:
            while not self._ticket.join(_STEP):
                self._check()
                if time.monotonic() - self._started > self._retries + self._seconds:
                    raise self._translate(TimeoutError())
        except BaseException:
            self.cancel()
            raise
        if self._ticket.error is not None:
            raise self._ticket.error
        return self._value[0]

    def cancel(self) -> None:
        """Ends it at the next piece; what it asked for may have been done all the same."""
        self._cancelled.set()

    def _going(self) -> None:
        if self._cancelled.is_set():
            raise InterruptedError
        if time.monotonic() - self._attempt > self._seconds:
            raise TimeoutError

    def _run(self) -> None:
        pause, failure, first = _FIRST_PAUSE, None, True
        while True:
            self._attempt = time.monotonic()
            try:
                self._value.append(self._work(self._going))
            except BaseException as error:
                # One that took all the time there is gets a second chance, which `wait` bounds.
                late = time.monotonic() + pause - self._started > self._retries and not first
                if late or not Said.of(error).may_pass or self._cancelled.wait(pause):
                    failure = self._translate(error)
                first = False
            if self._value or failure is not None:
                break
            pause = min(2 * pause, _LONGEST_PAUSE)
        self._after()
        # Outside of the except block: the client's error may quote what was signed.
        self._ticket.finish(failure)


class Amazon:
    """The bucket that some objects lie in, as boto3's client sees it: same place, same credentials, same limits.

    Args:
        objects: below which prefix; its check calls away whoever waits.

    """

    def __init__(self, objects: Objects) -> None:
        self.objects = objects
        self.bucket = objects.address.bucket
        self._client = _client(objects)

    def key(self, name: str) -> str:
        return self.objects.address.key(name)

    def begin(
        self,
        method: str,
        name: str,
        operation: str,
        data: memoryview | None = None,
        after: Callable[[], None] = lambda: None,
        **words: Any,
    ) -> Call[Any]:
        """Begins a call.

        Args:
            method: the client's, such as ``upload_part``.
            name: the object that it is about.
            operation: what an error says was tried.
            data: the body.
            after: called when it has ended, and nobody reads the body any more.
            words: the method's arguments, beside those for the bucket and the body.

        """
        bulk = data is not None
        address, server = self.objects.address, self.objects._stores.server

        def work(going: Callable[[], None]) -> Any:
            more = {"Body": Body(data, going)} if data is not None else {}
            return getattr(self._client, method)(Bucket=self.bucket, **words, **more)

        return Call(
            work,
            stores.BULK_SECONDS if bulk else SILENT_SECONDS,
            stores.BULK_RETRIES if bulk else stores.QUICK_RETRIES,
            self.objects._check,
            lambda error: stores.heed(refusal(error, address, operation, name, server)),
            after,
        )

    def ask(self, method: str, name: str, operation: str, **words: Any) -> Any:
        """The answer to a call without a body.

        Raises:
            StorageError: none came, or a refusal; its facts are `status` and `code`.

        """
        return self.begin(method, name, operation, **words).wait()


def _client(objects: Objects) -> Any:
    key = (os.getpid(), stores.environment())
    with _lock:
        client = _clients.get(key)
        if client is None:
            client = _connect(objects)
            _clients.clear()
            _clients[key] = client
    return client


def _connect(objects: Objects) -> Any:
    from botocore import UNSIGNED
    from botocore.config import Config

    found = stores.aws(objects.address)
    return found.session.create_client(
        "s3",
        region_name=found.region or "us-east-1",
        endpoint_url=found.endpoint or None,
        config=Config(
            # While a body is sent, this one bounds each piece.
            connect_timeout=stores.QUICK_SECONDS,
            read_timeout=SILENT_SECONDS,
            retries={"total_max_attempts": 1},
            max_pool_connections=2 * AT_ONCE,
            signature_version=UNSIGNED if found.anonymous else None,
            s3={"addressing_style": "path"} if found.endpoint else None,
            ignore_configured_endpoint_urls=True,
            # Checksums go along as headers; as trailers, which is the default, older servers do not know them.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            tcp_keepalive=True,
        ),
    )


_lock = threading.Lock()
_clients: dict[tuple[int, int], Any] = {}


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
