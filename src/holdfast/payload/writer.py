"""Arrays to payload files: one mechanism for saves that block and saves in the background.

A block passes three phases: it is *filled* (the arrays' bytes are copied into a staging buffer), its
*digest* is taken, and it is *written*. One crew fills and digests, another writes. With a handful of
buffers the save streams in bounded memory, each block looked at for NaN and digested while it is in the
cache still; with one buffer per block everything is copied before the first block is looked at, and the
training goes on. Nothing else differs between the two.

Arrays that the layout says are late are filled last, after `wait_early` has let the training go on. A block
that holds late and other arrays is filled in two turns, while it keeps its buffer; where there are too
few buffers for that, it is filled at once.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import xxhash

from holdfast import open_files
from holdfast.errors import UsageError, storage_error
from holdfast.format.safetensors import ALIGNMENT, BLOCK
from holdfast.payload import pending, threads
from holdfast.payload import staging as staging_
from holdfast.payload.filling import Filling, Turn
from holdfast.payload.layout import Layout, PlannedFile
from holdfast.payload.staging import Buffer
from holdfast.storage import NO_ROOM, Room

# Below this, the page cache takes a file at once, and direct I/O waits for the device per call.
DIRECT_FROM = 1 << 20
# What a save streams through: one for each thread and one between them, but never more than 112 MiB.
_SPARE_BUFFERS = 1
_MOST_TO_STREAM = 7


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """A finished file: its size, the xxh3-128 of each block, and that of these digests (hex)."""

    size: int
    blocks: list[bytes]
    digest: str


@dataclass(frozen=True, slots=True)
class Written:
    """What a save wrote, and the (part, name) of checked arrays that hold a NaN or an infinity."""

    files: dict[str, WrittenFile]
    nonfinite: list[tuple[str, str]]


class _File:
    """A file in the making: how many of its blocks are still to be written."""

    __slots__ = ("digests", "disk", "left", "plan")

    def __init__(self, plan: PlannedFile, disk: open_files.PayloadFile, blocks: int) -> None:
        self.plan, self.disk, self.left = plan, disk, blocks
        self.digests = [b""] * blocks


class Save:
    """One save of a layout into a directory, from `start` to `wait`.

    Args:
        layout: what `layout.plan` made.
        directory: where the files are created; they must not exist yet.
        staging: bytes of memory to copy into ahead of the disk; None or 0 streams.
        block_size: bytes of a block, a multiple of 4096, at most 16 MiB (smaller ones in tests).
        confirm: called by a worker thread once all is copied, before `wait_copied` returns; what it
            raises fails the save.
        room: makes room where the disk is full in the middle of it.

    The arrays must not change between `start` and the return of `wait_early`, late ones not before that
    of `wait_copied`, for which `pending.settle` waits. All `wait…` may be called from any thread. The files' names are durable only after the
    caller has synced the directory; after a failure they are left for the caller to remove.

    """

    def __init__(
        self,
        layout: Layout,
        directory: str,
        *,
        staging: int | None = None,
        block_size: int = BLOCK,
        confirm: Callable[[], None] | None = None,
        room: Room = NO_ROOM,
    ) -> None:
        if block_size % ALIGNMENT or not 0 < block_size <= BLOCK:
            raise UsageError(
                f"A block of {block_size:,} bytes is not possible: a multiple of {ALIGNMENT} up to {BLOCK:,} is."
            )
        self._layout, self._directory, self._block = layout, os.fspath(directory), block_size
        self._staging, self._confirm, self._room = staging or 0, confirm, room
        self._filling = Filling(layout, block_size)
        self._lock = threading.Lock()
        self._files: list[_File] = []
        self._to_fill: deque[tuple[int, int, Turn]] = deque()  # (file, number of the block, when)
        self._to_complete: deque[tuple[int, int, Buffer]] = deque()  # filled but for late arrays
        self._to_digest: deque[tuple[int, int, Buffer]] = deque()
        self._to_write: deque[tuple[int, int, Buffer]] = deque()
        self._free: list[Buffer] = []
        self._held: list[Buffer] = []  # all buffers that are not given back yet
        self._unfilled = self._early = 0  # blocks to fill, and those of them that are not all late
        self._streams = False
        self._most: dict[threads.Crew, int] = {"blocks": 0, "disk": 0}  # threads that this save asks for
        self._at_work: dict[threads.Crew, int] = {"blocks": 0, "disk": 0}
        self._started = self._closed = False
        self._error: BaseException | None = None
        self._early_copied, self._copied, self._done = threads.Ticket(), threads.Ticket(), threads.Ticket()
        self.waited = 0.0
        """Seconds for which somebody waited in `join_copied`."""
        self.overlapped = False
        """Whether there are late arrays; known once it is started."""

    def start(self) -> None:
        """Creates the files and begins; returns at once. `StorageError` if one cannot be created."""
        self._started = True
        late: list[tuple[int, int, Turn]] = []
        try:
            # Asked only when it matters: the first answer for a file system is tried out with a file.
            big = any(file.size > DIRECT_FROM for file in self._layout.files)
            direct = big and open_files.direct_io_works(self._directory)
            for index, plan in enumerate(self._layout.files):
                count = -(-plan.size // self._block)
                path = os.path.join(self._directory, plan.name)
                disk = open_files.PayloadFile(path, plan.size, direct=direct and plan.size > DIRECT_FROM)
                self._files.append(_File(plan, disk, count))
                for number, turn in enumerate(self._filling.turns(index)):
                    (late if turn == "late" else self._to_fill).append((index, number, turn))
            self._early = len(self._to_fill)
            self.overlapped = bool(late) or any(turn == "mixed" for _, _, turn in self._to_fill)
            self._to_fill.extend(late)
            self._unfilled = len(self._to_fill)
            self._most = {crew: min(threads.size(crew), self._unfilled) for crew in self._most}
            wanted = min(sum(self._most.values()) + _SPARE_BUFFERS, _MOST_TO_STREAM)
            self._free = staging_.pool.take(min(max(wanted, self._staging // self._block), self._unfilled))
            self._streams = len(self._free) < self._unfilled
            # Where everything is copied first, the training waits for the copy alone.
            self._filling.looks = self._streams
        except BaseException as error:
            self._close(error)
            raise
        self._held = list(self._free)
        if not self._unfilled:
            self._close(None)
        elif self.overlapped:
            pending.add(self)
            if not self._early:  # and nothing to wait for
                self._early_copied.finish()
        # One by one, so that an interrupt between two leaves a save that still ends.
        while self._call("blocks"):
            pass

    def wait_early(self) -> None:
        """Returns when the bytes of every array but the late ones are copied; raises what stopped the save before that."""
        self._check_started()
        self._early_copied.wait()

    def wait_copied(self) -> None:
        """Returns when every array's bytes are copied; raises what stopped the save before that."""
        self._check_started()
        self._copied.wait()

    def join_copied(self) -> None:
        """Returns when nothing more is copied, whatever became of the save."""
        started = time.monotonic()
        self._copied.join()
        self.waited += time.monotonic() - started

    def spoil(self) -> None:
        """Makes the save fail unless everything is copied: late arrays may be written to from now on."""
        with self._lock:
            copied = not self._unfilled
        if not copied:
            self._fail(
                UsageError(
                    "The save was given up: its arrays were still being copied when an interrupt ended the wait for that. "
                    "Next: nothing; the checkpoints before it are whole."
                )
            )

    def wait(self) -> Written:
        """Returns when all data is durable; else raises the first failure, all files closed."""
        self._check_started()
        self._done.wait()
        written = {
            file.plan.name: WrittenFile(
                file.plan.size, file.digests, xxhash.xxh3_128_hexdigest(b"".join(file.digests))
            )
            for file in self._files
        }
        return Written(written, self._filling.nonfinite())

    def _check_started(self) -> None:
        if not self._started:
            raise UsageError("This save was not started: call start() before waiting for it.")

    def cancel(self) -> None:
        """Stops after the blocks in hand and returns when nothing of this save runs any more."""
        error = UsageError("The save was cancelled before it was complete. Save again.")
        self._fail(error)
        with self._lock:
            idle = not any(self._at_work.values())
        if idle:
            self._close(error)
        self._done.join()

    # -- in the worker threads ----------------------------------------------------------------

    def _call(self, crew: threads.Crew) -> bool:
        """Asks for one more thread of a crew, if there is work for it."""
        with self._lock:
            needed = self._error is None and self._at_work[crew] < self._most[crew] and self._has_work(crew)
            if needed:
                self._at_work[crew] += 1
        if needed:
            threads.submit(crew, lambda: self._work(crew))
        return needed

    def _has_work(self, crew: threads.Crew) -> bool:
        if crew == "disk":
            return bool(self._to_write)
        return bool(self._to_fill and self._free) or bool(self._to_complete) or bool(self._to_digest)

    def _work(self, crew: threads.Crew) -> None:
        try:
            while self._step(crew):
                pass
        except BaseException as error:
            self._fail(error)
            self._leave(crew)

    def _leave(self, crew: threads.Crew) -> None:
        with self._lock:
            self._at_work[crew] -= 1
            last = not any(self._at_work.values())
        if last:
            self._close(self._error)

    def _step(self, crew: threads.Crew) -> bool:
        """Takes one block through its next phase. False: there is none for this thread, which has left.

        It may leave although the save goes on: whoever has a block in hand calls for the crew that
        is to have it next.
        """
        phases = {"early": self._fill, "mixed": self._fill_early, "late": self._fill_late}
        with self._lock:
            phase: Callable[[int, int, Buffer], None] | None = None
            if self._error is None:
                if crew == "disk":
                    if self._to_write:
                        (index, number, buffer), phase = self._to_write.popleft(), self._write
                elif self._to_fill and self._free:
                    index, number, turn = self._to_fill.popleft()
                    buffer, phase = self._free.pop(), phases[turn]
                elif self._to_complete:
                    (index, number, buffer), phase = self._to_complete.popleft(), self._fill_late
                elif self._to_digest:
                    (index, number, buffer), phase = self._to_digest.popleft(), self._digest
            if phase is None:
                # In the same breath as the look, so that who brings work sees that this one is gone.
                self._at_work[crew] -= 1
                last = not any(self._at_work.values())
        if phase is None:
            if last:
                self._close(self._error)
            return False
        phase(index, number, buffer)
        self._call("disk" if crew == "blocks" else "blocks")
        return True

    def _fill(self, index: int, number: int, buffer: Buffer) -> None:
        self._filling.fill(index, number, buffer.bytes)
        self._end_early()
        self._end_fill(index, number, buffer)

    def _fill_early(self, index: int, number: int, buffer: Buffer) -> None:
        if self._streams:  # each buffer is needed again for the blocks to come
            self._fill(index, number, buffer)
            return
        self._filling.fill(index, number, buffer.bytes, late=False)
        with self._lock:
            self._to_complete.append((index, number, buffer))
        self._end_early()

    def _fill_late(self, index: int, number: int, buffer: Buffer) -> None:
        self._filling.fill(index, number, buffer.bytes, late=True)
        self._end_fill(index, number, buffer)

    def _end_early(self) -> None:
        with self._lock:
            self._early -= 1
            copied = not self._early
        if copied:
            self._early_copied.finish()

    def _end_fill(self, index: int, number: int, buffer: Buffer) -> None:
        with self._lock:
            if not self._streams:
                self._to_digest.append((index, number, buffer))
            self._unfilled -= 1
            copied = not self._unfilled
        if copied:
            self._filling.release()
            if self._confirm is not None:
                self._confirm()
            self._copied.finish()
            pending.remove(self)
        if self._streams:
            self._digest(index, number, buffer)

    def _digest(self, index: int, number: int, buffer: Buffer) -> None:
        file = self._files[index]
        size = min(self._block, file.plan.size - number * self._block)
        if not self._streams:
            self._filling.look(index, number, buffer.bytes)
        file.digests[number] = xxhash.xxh3_128_digest(buffer.view[:size])
        with self._lock:
            self._to_write.append((index, number, buffer))

    def _write(self, index: int, number: int, buffer: Buffer) -> None:
        file = self._files[index]
        start = number * self._block
        size = min(self._block, file.plan.size - start)
        if file.disk.direct and size % ALIGNMENT:
            # What the buffer holds after the end goes along; `finish` cuts it off.
            size = -(-size // ALIGNMENT) * ALIGNMENT
        self._room.write(lambda: file.disk.write(buffer.view[:size], start))
        with self._lock:
            file.left -= 1
            finished = not file.left
            if self._to_fill:
                self._free.append(buffer)
                buffers = []
            else:
                # Nothing is left to fill: another save may have these.
                buffers = [buffer, *self._free]
                self._free = []
                for one in buffers:
                    self._held.remove(one)
        staging_.pool.give(buffers)
        if finished:
            file.disk.finish()
            file.disk.close()

    # -- the end ------------------------------------------------------------------------------

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            if self._error is None:
                self._error = error

    def _close(self, error: BaseException | None) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
        for file in self._files:
            try:
                file.disk.close()
            except OSError as late:
                error = error or storage_error(late, file.disk.path, "close")
        staging_.pool.give(self._held)
        self._held, self._free = [], []
        self._to_fill.clear()
        self._to_complete.clear()
        self._to_digest.clear()
        self._to_write.clear()
        self._filling.release()
        self._early_copied.finish(error)
        self._copied.finish(error)
        pending.remove(self)
        self._done.finish(error)
