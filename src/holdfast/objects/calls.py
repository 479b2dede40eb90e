"""Calls of clients that block: each runs in a thread of its own, so that whoever waits for one can be called away.

Who waits looks up ten times a second, and gives up in the end. Nothing waits for such a thread at the end of the
process.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from holdfast.errors import HoldfastError, StorageError
from holdfast.objects import stores
from holdfast.objects.access import Objects
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
        thread = threading.Thread(target=self._run, name="holdfast-call", daemon=True)
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


def begin(
    objects: Objects,
    work: Callable[[Body | None], _T],
    name: str,
    operation: str,
    data: memoryview | None = None,
    after: Callable[[], None] = lambda: None,
) -> Call[_T]:
    """Begins a call about an object: with more time where it has a body.

    Args:
        objects: where; their check calls away whoever waits.
        work: makes the call; gets its body, where there is one.
        name: the object.
        operation: what an error says was tried.
        data: the body.
        after: called when it has ended, and nobody reads the body any more; also where this raises.

    """
    address, server, bulk = objects.address, objects._stores.server, data is not None

    def attempt(going: Callable[[], None]) -> _T:
        return work(Body(data, going) if data is not None else None)

    return Call(
        attempt,
        stores.BULK_SECONDS if bulk else SILENT_SECONDS,
        stores.BULK_RETRIES if bulk else stores.QUICK_RETRIES,
        objects._check,
        lambda error: stores.heed(refusal(error, address, operation, name, server)),
        after,
    )
