"""Bringing a run's mirrors up to date behind the training.

One thread per process copies; the training only says that there is something new. A mirror that fails is told
at the next touch of the run and in the history, and is tried again at a later checkpoint: it never stops the
training.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import errno
import math
import os
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from holdfast import files
from holdfast.errors import DamagedError, FormatError, HoldfastError, LeaseError, NotFoundError, StorageError
from holdfast.log import logger
from holdfast.mirrors import copying, fetching, plan
from holdfast.mirrors.listing import Listing
from holdfast.mirrors.plan import Throttle
from holdfast.mirrors.state import State, other_run
from holdfast.payload import threads
from holdfast.payload.source import FolderSource, Source
from holdfast.policy.keep import Record
from holdfast.store import book, catalog
from holdfast.store.entry import Entry
from holdfast.store.lease import Lease

CLOSE_SECONDS = 30.0
"""How long a closing run waits for mirrors; for a required one: without any progress there."""
SIGNAL_SECONDS = 5.0
"""The same after a signal that asked the process to end."""
_COPIES = 5  # so many are remembered, for how long the next may take
_STEP = 0.1
_LAST_BLOCK_SECONDS = 5.0
_BOOK_LIMIT = 4 << 20


class _Stopped(Exception):  # noqa: N818 (no error: the copy goes on in the next launch)
    """The copy is given up where it is."""


class Mirroring:
    """The mirrors of one run, from its opening to its closing.

    Args:
        run: the run's directory.
        lease: looked at again before anything becomes visible or goes in a mirror.
        states: the mirrors.

    """

    def __init__(self, run: str, lease: Lease, states: Sequence[State]) -> None:
        self._run, self._lease, self.states = run, lease, list(states)
        for state in self.states:
            state.place.heed(self._check_going)
        self._turn = threading.Lock()
        self._ticket: threads.Ticket | None = None
        self._wanted = self._running = False
        self._lost = False
        self._asked = 0
        self._stopped = False
        self._stop_at: float | None = None
        self._moved = 0.0
        """When a byte was last on its way, on the monotonic clock."""
        self._said: collections.deque[str] = collections.deque(maxlen=20)
        self._local = Listing(run)

    # -- from the other threads ------------------------------------------------------------------

    def hand_over(self, *, at_once: bool = False) -> None:
        """There is something new, or may be; costs nothing. `at_once` forgets how often a mirror failed."""
        if not self.states:
            return
        if at_once:
            for state in self.states:
                state.retry_at = 0.0
        with self._turn:
            self._wanted = True
            self._asked += 1
            if self._running:
                return
            self._running = True
        self._ticket = threads.submit("mirrors", self._work)  # after the main thread's end it runs here

    @property
    def highest(self) -> int:
        """The highest number of a checkpoint in any mirror, as it was when the run was opened."""
        return fetching.highest(self.states)

    @property
    def holds_some(self) -> bool:
        """Whether some mirror has a checkpoint."""
        return any(state.standing.names for state in self.states)

    def sources(self, name: str) -> list[Source]:
        """A checkpoint in each of the mirrors that has it."""
        return [state.place.source(name) for state in self.states if name in state.standing.names]

    def records(self) -> list[dict[str, Any]]:
        """What run.json says of the mirrors."""
        return [state.record() for state in self.states]

    def report(self) -> None:
        """Warns of what went wrong since the last call."""
        while self._said:
            logger.warning("%s", self._said.popleft())

    def held_back(self, doomed: Sequence[Record]) -> set[str]:
        """The names of these that stay in the run until mirrors have them, or newer ones."""
        return plan.held_back(doomed, [state.standing for state in self.states])

    def close(self, seconds: float = CLOSE_SECONDS) -> None:
        """Waits until the mirrors are up to date, for a bounded time, and says what is not there.

        Args:
            seconds: how long; for a required mirror how long nothing may move.

        Raises:
            StorageError: a required mirror is not up to date.

        """
        if not self.states:
            return
        try:
            self.wait(seconds)
        finally:
            self.stop()
        self.report()
        if not self._lost:  # else whoever holds the run now goes on with its mirrors
            self._tell_missing()

    def wait(self, seconds: float, at_most: float = math.inf) -> None:
        """Waits until the mirrors are up to date, as `close` does; in all no longer than `at_most` seconds."""
        self.hand_over(at_once=True)
        started = self._moved = time.monotonic()
        told = False
        while not self._idle():
            now = time.monotonic()
            required = any(state.mirror.required and not self._done(state) for state in self.states)
            if now - (self._moved if required else started) >= seconds or now - started >= at_most:
                break
            if not told and now - started > 1.0:
                told = True
                logger.info("Waiting for the mirrors of %s, at most %.0f s.", self._run, seconds)
            if self._ticket is not None:
                self._ticket.join(_STEP)

    def closing_seconds(self, earlier: Mapping[str, float]) -> float:
        """Seconds that `close` may take after a signal: what the slowest of the last copies took, of required mirrors all of it.

        Args:
            earlier: the same of earlier launches, by the mirror's URL; used until one was made here.

        """
        took = [
            (state.mirror.required, max(state.took, default=earlier.get(state.place.url, 0.0)))
            for state in self.states
        ]
        others = sum(seconds for required, seconds in took if not required)
        return sum(seconds for required, seconds in took if required) + min(others, SIGNAL_SECONDS)

    def stop(self) -> None:
        """Ends what is on its way, at the next block; what was copied of it is used by the next launch."""
        self._stopped = True
        if self._ticket is not None and os.getpid() == self._ticket._pid:
            self._ticket.join(_LAST_BLOCK_SECONDS)

    def _done(self, state: State) -> bool:
        return state.brought == self._asked and state.problem is None

    def _idle(self) -> bool:
        with self._turn:
            return not self._running

    def _tell_missing(self) -> None:
        required = []
        local = [entry.record() for entry in catalog.scan(self._run)]
        for state in self.states:
            if self._done(state):
                continue
            wanted = plan.lacking(state.keep, local, [])
            text = state.missing([name for name in wanted if name not in state.standing.names])
            if state.mirror.required:
                required.append(text)
            else:
                logger.warning("%s", text)
        if required:
            raise StorageError(" ".join(required), path=self._run, operation="mirror")

    # -- behind the training -----------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            with self._turn:
                if not self._wanted or self._stopped:
                    self._wanted = self._running = False
                    return
                self._wanted, asked = False, self._asked
            for state in self.states:
                try:
                    if self._bring(state):
                        state.brought = asked
                except _Stopped:
                    break
                except LeaseError as error:
                    self._stopped = self._lost = True
                    state.problem = str(error)
                    break

    def _bring(self, state: State) -> bool:
        """Brings one mirror up to date, or notes why not."""
        if state.retry_at > time.monotonic():
            return False
        try:
            self._lease.check()
            try:
                with state.place.steady():
                    self._update(state)
            except HoldfastError:
                self._lease.check()  # a lost lease makes all kinds of things fail
                raise
        except (_Stopped, LeaseError):
            raise
        except Exception as error:
            state.failures += 1
            wait = plan.pause(state.failures)
            state.retry_at = time.monotonic() + wait
            text = str(error) if isinstance(error, HoldfastError) else f"{type(error).__name__}: {error}"
            if text != state.problem:
                self._say(
                    f"The mirror {state.place.url} was not brought up to date: {text} The training goes on; it is "
                    f"tried again at a later checkpoint."
                )
                self._note(state, problem=text)
            state.problem = text
            return False
        else:
            if state.problem is not None and state.failures:
                self._say(f"The mirror {state.place.url} can be written again, and is up to date.")
            state.failures, state.retry_at, state.problem = 0, 0.0, None
            return True

    def _update(self, state: State) -> None:
        place = state.place
        own = book.read_run(self._run)
        try:
            found = place.book()
        except DamagedError:
            if not state.reached:
                raise
            found = own  # it was this run's; its run.json is written anew
        if found is not None and found.id != own.id:
            raise other_run(self._run, own.id, place.url, found.id)
        if found is None and state.reached:
            raise StorageError(
                f"There is no run in {place.url} any more, where a mirror of this run was. Is it mounted? Nothing is "
                f"written there meanwhile. Next: mount it; or, to begin it anew, start once without this mirror.",
                path=place.url,
                operation="look at",
            )
        self._lease.check()
        place.enter(files.read_file(os.path.join(self._run, book.RUN_FILE), _BOOK_LIMIT))
        state.reached = True
        throttle = Throttle(state.mirror.limit_bytes)
        first = True
        while True:
            local, there = self._local.scan(), place.entries()
            state.saw(there)
            self._lease.check()
            self._mark(state, local, there, own.rewound)
            offered = [entry.record() for entry in local if entry.folder not in state.damaged]
            lacking = plan.lacking(state.keep, offered, [e.record() for e in there if e.whole])
            state.standing = dataclasses.replace(state.standing, lacking=frozenset(lacking))
            if first:
                first = False
                for name in set(place.unfinished()) - set(lacking):
                    self._lease.check()
                    place.forget(name)
            if not lacking:
                break
            self._send(state, lacking[0], throttle)
        leaving = plan.leaving(state.keep, [entry.record() for entry in there])
        for name in leaving:
            self._lease.check()
            if place.delete(name):
                self._note(state, deleted=name)
        if leaving:
            state.saw(place.entries())

    def _send(self, state: State, name: str, throttle: Throttle) -> None:
        """Copies one checkpoint and publishes it; one that is damaged here is told, and left out."""
        place, started = state.place, time.monotonic()
        state.standing = dataclasses.replace(state.standing, copying=name)

        def tell(count: int) -> None:
            self._moved = time.monotonic()
            until = self._moved + throttle.delay(count, self._moved)
            while True:
                self._check_going()
                self._moved = time.monotonic()  # what waits for its limit is on its way
                left = until - self._moved
                if left <= 0:
                    return
                time.sleep(min(_STEP, left))

        path = os.path.join(self._run, name)
        try:
            self._lease.check()  # what lies there of a damaged one is deleted
            copied = copying.copy([FolderSource(path)], place.target(name), tell)
            self._lease.check()
            place.publish(name)
        except (DamagedError, FormatError, NotFoundError) as error:
            if not catalog.is_checkpoint(path):  # deleted meanwhile
                place.forget(name)
                return
            if isinstance(error, NotFoundError) and not os.path.isdir(path):
                raise
            state.damaged[name] = str(error)
            place.forget(name)
            self._say(
                f"{name} was not copied to the mirror {place.url}, since it is not whole here: {error} "
                f"Next: holdfast verify {path}"
            )
            self._note(state, name=name, problem=str(error))
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):  # what was copied only fills what is left
                with contextlib.suppress(OSError):
                    place.forget(name)
            raise
        else:
            seconds = round(time.monotonic() - started, 4)
            state.took = (*state.took, seconds)[-_COPIES:]
            self._note(state, name=name, bytes=copied.sent, found=copied.found, seconds=seconds)
        finally:
            state.standing = dataclasses.replace(state.standing, copying=None)

    def _check_going(self) -> None:
        """Ends the copy where nobody waits for it any more: after `close`, or after the main thread's end."""
        if self._stopped:
            raise _Stopped
        if not threading.main_thread().is_alive():
            now = time.monotonic()
            if self._stop_at is None:
                self._stop_at = now + CLOSE_SECONDS
            if now >= self._stop_at:
                raise _Stopped

    def _mark(self, state: State, local: list[Entry], there: list[Entry], rewound: str | None) -> None:
        """Brings the marks in a mirror up to date."""
        abandoned = catalog.marks(self._run, catalog.ABANDONED)
        marks = plan.marks(
            [entry.record() for entry in local],
            abandoned,
            rewound,
            [(entry.record(), entry.summary.created if entry.summary else None) for entry in there],
        )
        state.place.mark(catalog.PINS, marks.pinned)
        state.place.mark(catalog.ABANDONED, marks.abandoned, gone=marks.revived)
        for entry in there:
            entry.pinned = entry.pinned or entry.folder in marks.pinned
            entry.abandoned = entry.folder in marks.abandoned or (
                entry.abandoned and entry.folder not in marks.revived
            )

    # -- telling -------------------------------------------------------------------------------------

    def _say(self, text: str) -> None:
        self._said.append(text)

    def _note(self, state: State, **facts: object) -> None:
        book.note_event(self._run, "mirror", url=state.place.url, **facts)

    def leave(self) -> None:
        """Removes what this process needs no more in the mirrors."""
        for state in self.states:
            if (
                self._lost
                or state.failures
                or not state.reached
                or self._ticket is None
                or not self._ticket.done
            ):
                continue
            try:
                self._lease.check()
                state.place.leave()
            except HoldfastError as error:
                logger.warning("The mirror %s: %s", state.place.url, error)
