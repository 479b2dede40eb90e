"""A large file on its way into a bucket, in parts; one that was interrupted goes on by part.

What the kinds of stores have in common: parts are filled in order, a few are on their way at a time, and memory is
bounded: `HELD` parts for all files of the process together, 128 MiB for files up to 156 GiB, of which one file has
`AT_ONCE` + 1 at most. What each of them says and is asked stands in a module of its own, such as `amazon_parts`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from holdfast.errors import StorageError
from holdfast.objects import buffers
from holdfast.objects.access import Objects
from holdfast.objects.calls import Call
from holdfast.objects.parts import AT_ONCE, Order, part_size


class Parts(Protocol):
    """The parts of one object as a kind of store has them. All calls come from one thread at a time."""

    def take_up(self) -> None:
        """Finds the parts that an earlier attempt left, or begins; called once, before all else."""

    def lies(self, number: int, data: memoryview) -> bool:
        """Whether this part lies there, with these bytes; it belongs to the object then.

        Args:
            number: of the part, from 1 on.
            data: its bytes.

        """

    def send(self, number: int, data: memoryview, after: Callable[[], None]) -> Call[Any]:
        """Begins to send a part.

        Args:
            number: of the part, from 1 on.
            data: its bytes.
            after: called when nobody reads them any more, also where this raises.

        """

    def sent(self, number: int, answer: Any) -> None:
        """Takes what the call gave that sent a part: it belongs to the object now."""

    def complete(self) -> None:
        """Makes the object of its parts: it appears, whole."""

    def verify(self) -> None:
        """Looks at what lies there; what is not what was written is taken away, and is a `StorageError`."""


class _Sending(NamedTuple):
    number: int
    call: Call[Any]


class Multipart:
    """An object that appears, whole, when it is finished, and not at all before.

    Args:
        objects: where.
        name: which.
        size: its bytes, more than one part has.
        parts: what the store is asked.

    """

    def __init__(self, objects: Objects, name: str, size: int, parts: Parts) -> None:
        self._objects, self._size, self._step, self._parts = objects, size, part_size(size), parts
        self._order, self._filled = Order(f"{objects.url}/{name}", size), 0
        self._buffer: bytearray | None = None
        self._sending: list[_Sending] = []
        self._taken_up = False
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
        self._order.take(offset, len(data))
        while len(data):
            if self._buffer is None:
                self._buffer, self._filled = self._take_buffer(), 0
            start = offset - self._filled
            length = min(self._step, self._size - start)
            count = min(len(data), length - self._filled)
            self._buffer[self._filled : self._filled + count] = data[:count]
            data, offset = data[count:], offset + count
            self._filled += count
            if self._filled == length:
                buffer, self._buffer = self._buffer, None
                self._pass_on(start // self._step + 1, buffer, length)

    def finish(self) -> None:
        """Returns when the object is there, and is what was written."""
        self._order.end()
        self._await_room(0)
        self._parts.complete()
        self._parts.verify()

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
            else:
                self._parts.sent(sending.number, answer)
            self._sending.remove(sending)
        if failure is not None:
            raise failure

    def _pass_on(self, number: int, buffer: bytearray, length: int) -> None:
        """Sends a part on its way, unless it lies there; the buffer is given back in any case."""
        data = memoryview(buffer)[:length]
        give_back = functools.partial(buffers.shared.give, buffer)
        try:
            if not self._taken_up:
                self._parts.take_up()
                self._taken_up = True
            lies = self._parts.lies(number, data)
        except BaseException:
            give_back()
            raise
        if lies:
            give_back()
            self.found += length
        else:
            self._sending.append(_Sending(number, self._parts.send(number, data, give_back)))
