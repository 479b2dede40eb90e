"""Requests run on a loop in a thread of their own, so that whoever waits for one can be called away.

A call into the client library is not ended by Ctrl-C, nor by the end of the main thread; one that hangs would
hold up either. So nothing calls it directly: the waiting thread looks up every tenth of a second, and a request
that nobody waits for any more is cancelled.

The library's threads do not survive `fork`: a child of a process that has used it is told so, where the library
would hang.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import contextvars
import functools
import os
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

from holdfast.errors import StorageError, UsageError
from holdfast.lastly import lastly
from holdfast.payload.threads import Ticket

_STEP = 0.1
_END_SECONDS = 1.0
_LAST_STEPS = 0.02  # for a thread that left the loop, and has still to let go of the interpreter
_T = TypeVar("_T")


class Request(Generic[_T]):
    """Work on its way.

    Args:
        work: makes the coroutine; its errors are those of `wait`.
        seconds: after so many it is cancelled, and ends with a `TimeoutError`.
        check: called again and again by whoever waits; may raise, to be called away.

    """

    def __init__(
        self, work: Callable[[], Coroutine[Any, Any, _T]], seconds: float, check: Callable[[], object]
    ) -> None:
        self._ticket, self._work, self._seconds, self._check = Ticket(), work, seconds, check
        self._value: list[_T] = []
        self._task: asyncio.Task[None] | None = None
        self._cancelled = False
        self._loop = _running_loop()
        self._loop.call_soon_threadsafe(self._start)

    def wait(self) -> _T:
        """What it gives, once it is there; raises its error. A wait that is broken off cancels it."""
        try:
            while not self._ticket.join(_STEP):
                self._check()
        except BaseException:
            self.cancel()
            raise
        if self._ticket.error is not None:
            raise self._ticket.error
        return self._value[0]

    @property
    def done(self) -> bool:
        return self._ticket.done

    def cancel(self) -> None:
        """Ends it where it is; what it asked for may have been done all the same."""
        self._cancelled = True
        with contextlib.suppress(RuntimeError):  # the loop has ended, and all of its work
            self._loop.call_soon_threadsafe(self._stop)

    def _start(self) -> None:
        self._task = self._loop.create_task(self._run())

    def _stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        try:
            if self._cancelled:
                raise asyncio.CancelledError
            async with asyncio.timeout(self._seconds):
                self._value.append(await self._work())
        except asyncio.CancelledError:
            self._ticket.finish(StorageError("The request was given up.", operation="wait for"))
        except BaseException as error:
            self._ticket.finish(error)
        else:
            self._ticket.finish()


async def aside(work: Callable[[], object]) -> None:
    """Does what blocks in a thread of its own, which nobody waits for at the end of the process; raises its error."""
    loop = asyncio.get_running_loop()
    done = loop.create_future()

    def tell(error: BaseException | None) -> None:
        if done.done():
            return  # whoever waited was called away
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    def run() -> None:
        failure: BaseException | None = None
        try:
            work()
        except BaseException as error:
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(tell, failure)

    threading.Thread(target=run, name="holdfast-aside", daemon=True).start()
    await done


# -- the loop ------------------------------------------------------------------------------------------


class _Loop(asyncio.SelectorEventLoop):
    """A loop that knows how many threads are bringing it something.

    The library's threads do, and are aborted, with the process, if the interpreter is gone when they want to go on.
    """

    def __init__(self) -> None:
        super().__init__()
        self.inside: collections.deque[None] = collections.deque()

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        self.inside.append(None)
        try:
            return super().call_soon_threadsafe(callback, *args, context=context)
        finally:
            self.inside.pop()


_lock = threading.Lock()
_loop: _Loop | None = None
_forked = _ended = False


def _running_loop() -> asyncio.AbstractEventLoop:
    global _loop
    if _forked:
        raise UsageError(
            f"Process {os.getpid()} was forked from one that had used an object store, and cannot use it. "
            f"Next: start it by 'spawn' or 'forkserver', as multiprocessing.get_context('spawn') does."
        )
    with _lock:
        if _ended:
            raise StorageError(
                "No request to an object store can be begun any more: the process is ending.", operation="ask"
            )
        if _loop is None:
            loop = _Loop()
            thread = threading.Thread(target=loop.run_forever, name="holdfast-objects", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # the interpreter is ending
                loop.close()
                raise StorageError(
                    f"No request to an object store can be begun any more: {error}.", operation="ask"
                ) from None
            _loop = loop
            lastly(functools.partial(_end, loop, thread))
        return _loop


def _end(loop: _Loop, thread: threading.Thread) -> None:
    """Nothing may come back into an interpreter that is being taken apart."""
    global _ended
    if loop is not _loop:
        return  # this process was forked
    with _lock:
        _ended = True

    def stop() -> None:
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        loop.call_later(0.05 if tasks else 0, loop.stop)

    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(stop)
    end = time.monotonic() + _END_SECONDS
    thread.join(_END_SECONDS)
    while loop.inside and time.monotonic() < end:
        time.sleep(0.002)
    time.sleep(_LAST_STEPS)


def _after_fork() -> None:
    global _loop, _forked, _lock
    _forked = _forked or _loop is not None
    _loop, _lock = None, threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
