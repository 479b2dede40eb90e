"""Threads that carry blocks from one place to another: several on their way at a time, each in a buffer of its own.

A block is read and checked by whichever thread is free; the blocks of one errand are written one after the
other, in their order, since a storage may take them in no other. So the next ones are read and checked while
one is written. Nothing here is in the way of a process that ends: the threads are daemons, and who waits for
them does so outside of them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import TYPE_CHECKING

from holdfast.format.safetensors import BLOCK

if TYPE_CHECKING:
    from holdfast.payload import staging

Room = Callable[[], memoryview]
"""Gives the thread's own buffer."""
Write = Callable[[], object]
Step = Callable[[Room], Write | None]
"""Reads a block and checks it; gives what writes it, or None where nothing is to be written."""

_SLICE = 0.2  # seconds that a thread waits at a time, so that a signal is seen
_PATIENCE = 5.0


class Errand:
    """Steps that belong together; after one that fails, none that come later are begun or written."""

    def __init__(self, count: int) -> None:
        self._turn = threading.Condition()
        self._next, self._left = 0, count
        self._failed: int | None = None
        self._error: BaseException | None = None
        self._ended = threading.Lock()  # a plain one: an interrupt cannot leave it half-way
        if count:
            self._ended.acquire()

    def wait(self) -> None:
        """Returns when all steps are done; raises the error of the first that failed."""
        while not self._ended.acquire(timeout=_SLICE):
            pass
        self._ended.release()
        if self._error is not None:
            raise self._error

    def stop(self, error: BaseException) -> bool:
        """Lets no further step begin; False where one is still at work after some seconds, in a read that hangs, say."""
        with self._turn:
            self._fail(self._next, error)
        ended = self._ended.acquire(timeout=_PATIENCE)
        if ended:
            self._ended.release()
        return ended

    def _fail(self, number: int, error: BaseException) -> None:
        if self._failed is None or number < self._failed:
            self._failed, self._error = number, error
        self._turn.notify_all()

    def take(self, number: int, step: Step, room: Room) -> None:
        """One step, in some thread. It returns in any case: the error waits for `wait`."""
        try:
            if not self._over(number):
                write = step(room)
                with self._turn:
                    self._turn.wait_for(lambda: self._next == number or self._over(number))
                if write is not None and not self._over(number):
                    write()
        except BaseException as error:
            with self._turn:
                self._fail(number, error)
        finally:
            with self._turn:
                self._next += self._next == number
                self._left -= 1
                last = not self._left
                self._turn.notify_all()
            if last:
                self._ended.release()

    def _over(self, number: int) -> bool:
        return self._failed is not None and number >= self._failed


class Crew:
    """So many threads, from the first errand that is worth one until `close`.

    Args:
        size: how many; 0 does everything in the calling thread.

    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._queue: SimpleQueue[tuple[Errand, int, Step] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] | None = None

    def start(self, steps: Sequence[Step], *, here: bool = False) -> Errand:
        """Begins an errand, behind those that were begun before it; returns when it is on its way.

        Args:
            steps: in the order in which they are written.
            here: does it in the calling thread, which is quicker where there is little to do.

        """
        errand = Errand(len(steps))
        if here or not self._has_threads():
            place = _Place()
            try:
                for number, step in enumerate(steps):
                    errand.take(number, step, place.buffer)
            finally:
                place.give_back()
            return errand
        for number, step in enumerate(steps):
            self._queue.put((errand, number, step))
        return errand

    def _has_threads(self) -> bool:
        with self._lock:
            if self._threads is None:
                self._threads = []
                for number in range(self.size):
                    thread = threading.Thread(target=self._work, name=f"holdfast-copy-{number}", daemon=True)
                    try:
                        thread.start()
                    except RuntimeError:  # the interpreter is ending, or the system has no more
                        break
                    self._threads.append(thread)
            return bool(self._threads)

    def _work(self) -> None:
        place = _Place()
        try:
            while (item := self._queue.get()) is not None:
                errand, number, step = item
                errand.take(number, step, place.buffer)
                del item, errand, step
        finally:
            place.give_back()

    def close(self) -> None:
        """Ends the threads once the errands are done; does not wait for that."""
        for _ in self._threads or ():
            self._queue.put(None)


class _Place:
    """A thread's buffer, taken when it is first needed."""

    def __init__(self) -> None:
        self._buffer: staging.Buffer | None = None

    def buffer(self) -> memoryview:
        if self._buffer is None:
            from holdfast.payload import staging  # which imports NumPy: a list of checkpoints needs neither

            [self._buffer] = staging.pool.take(1)
        return self._buffer.view

    def give_back(self) -> None:
        if self._buffer is not None:
            from holdfast.payload import staging

            staging.pool.give([self._buffer])
            self._buffer = None


def block_of(buffer: memoryview, size: int) -> memoryview:
    """The first `size` bytes of a buffer; memory of its own where a checkpoint has larger blocks than Holdfast's."""
    return buffer[:size] if size <= BLOCK else memoryview(bytearray(size))
