"""The process's own threads: they outlive the main thread just long enough to finish their work.

`concurrent.futures` refuses work once the interpreter is ending, which is when the last save is
written. These threads are not daemons: the interpreter joins them, before `atexit`. So they have
to end by themselves: a watcher waits for the main thread's end and tells the others, who finish
what is queued and return.

A Ctrl-C may hit the main thread anywhere in here. `threading.Condition` and `Event` are written in
Python and can be left locked by it, which would hang everyone else; so what the main thread
touches are plain locks and `SimpleQueue`, which are not interrupted half-way.

There are five crews: "blocks" copies, digests and reads; "disk" writes blocks and nothing else (a
thread that copies between two writes keeps the disk waiting: a sixth slower, with the same work);
"publish" has one thread, whose tasks may wait for tasks of the others. Nothing else waits for a task.
"mirrors" has one thread, which copies what was published to other places, and needs none of the others.
"network" reads from far away: its threads wait rather than work, so there are more of them.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Literal

from holdfast.errors import UsageError

Crew = Literal["blocks", "disk", "publish", "mirrors", "network"]
Task = Callable[[], object]
_SLICE = 0.5  # seconds that the main thread waits at a time
_DISTANT = 6  # requests under way at once; each holds a block in memory


class Ticket:
    """The receipt for a task: whether it is done, and the error it ended with, if any."""

    __slots__ = ("_done", "_error", "_pid", "_waiters")

    def __init__(self) -> None:
        self._done = False
        self._error: BaseException | None = None
        self._pid = os.getpid()
        self._waiters: list[threading.Lock] = []

    @property
    def done(self) -> bool:
        return self._done

    @property
    def error(self) -> BaseException | None:
        """What the task ended with; None while it runs and when it succeeded."""
        return self._error if self._done else None

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until the task is done and raises what it raised; Ctrl-C interrupts the wait.

        Returns:
            False when `timeout` seconds passed first.

        """
        if not self.join(timeout):
            return False
        if self._error is not None:
            raise self._error
        return True

    def join(self, timeout: float | None = None) -> bool:
        """Waits as `wait` does, and leaves the task's error for somebody else."""
        if self.done:
            return True
        if self._pid != os.getpid():
            raise UsageError(
                f"This work belongs to process {self._pid}; process {os.getpid()} was forked from it and does not "
                f"see its end. Wait for it where it was started."
            )
        # A lock of one's own, released once: an interrupted waiter leaves nothing behind that
        # another could hang on. `finish` sets the flag first, so one of the two sees the other.
        waiter = threading.Lock()
        waiter.acquire()
        self._waiters.append(waiter)
        if self._done:
            return True
        if timeout is not None:
            return waiter.acquire(timeout=max(0, timeout))
        if threading.current_thread() is threading.main_thread():
            # A signal that comes just before the thread falls asleep would not wake it (tried).
            while not waiter.acquire(timeout=_SLICE):
                pass
            return True
        return waiter.acquire()

    def finish(self, error: BaseException | None = None) -> None:
        """Marks the task as done; only the first call counts."""
        if self._done:
            return
        self._error = error
        self._done = True
        for waiter in self._waiters:
            waiter.release()


class _Team:
    """Threads with one queue. They are started at the first task and end after the main thread."""

    def __init__(self, name: str, size: int) -> None:
        self.name, self.size = name, size
        self.lock = threading.Lock()
        self.queue: SimpleQueue[tuple[Task, Ticket] | None] = SimpleQueue()
        self.threads: list[threading.Thread] = []
        self.ended = False

    def put(self, task: Task, ticket: Ticket) -> bool:
        """Queues a task; False when no thread will come for it any more."""
        with self.lock:
            if self.ended or not (self.threads or self._start()):
                return False
            self.queue.put((task, ticket))
            return True

    def _start(self) -> bool:
        for number in range(self.size):
            thread = threading.Thread(target=self._work, name=f"holdfast-{self.name}-{number}", daemon=False)
            if not _started(thread):
                break
            self.threads.append(thread)
        return bool(self.threads)

    def end(self) -> None:
        """Lets the threads finish what is queued, and waits for them."""
        with self.lock:
            self.ended = True
            self.queue.put(None)
        for thread in self.threads:
            thread.join()

    def _work(self) -> None:
        while True:
            item = self.queue.get()
            if item is None:
                self.queue.put(None)  # for the next of the team
                return
            _run(*item)
            # An idle thread must not keep the last task's arrays alive.
            del item


def _started(thread: threading.Thread) -> bool:
    """Starts a thread; False after the main thread's end, or when the system has no more."""
    if not threading.main_thread().is_alive():
        return False
    try:
        thread.start()
    except RuntimeError:
        return False
    return True


def _run(task: Task, ticket: Ticket) -> None:
    try:
        task()
    except BaseException as error:
        ticket.finish(error)
    else:
        ticket.finish()


class _Process:
    """All that belongs to one process; a forked child gets a new one."""

    def __init__(self) -> None:
        count = min(4, max(2, os.cpu_count() or 1))
        sizes: dict[Crew, int] = {
            "blocks": count, "disk": count, "publish": 1, "mirrors": 1, "network": _DISTANT,
        }  # fmt: skip
        self.teams = {name: _Team(name, size) for name, size in sizes.items()}
        self.lock = threading.Lock()
        self.watched = False

    def watch(self) -> bool:
        """Starts the watcher, once, before any other thread; False when it is too late for that."""
        with self.lock:
            if not self.watched:
                thread = threading.Thread(target=self._await_end, name="holdfast-watch", daemon=False)
                self.watched = _started(thread)
            return self.watched

    def _await_end(self) -> None:
        threading.main_thread().join()
        # In this order: what is being published may still need the other crews.
        self.teams["publish"].end()
        self.teams["mirrors"].end()
        self.teams["network"].end()
        self.teams["blocks"].end()
        self.teams["disk"].end()


_process = _Process()


def _after_fork() -> None:
    # The threads stayed in the parent, and so did the locks that they may have held.
    global _process
    _process = _Process()


os.register_at_fork(after_in_child=_after_fork)


def size(crew: Crew) -> int:
    """How many threads a crew has."""
    return _process.teams[crew].size


def submit(crew: Crew, task: Task) -> Ticket:
    """Gives a task to a crew; its error, whatever it is, waits in the ticket.

    Tasks start in the order in which they came. After the main thread's end no thread is
    started: if the crew has none, or has gone home, the task runs here and is done when this
    returns.
    """
    ticket = Ticket()
    process = _process
    if not (process.watch() and process.teams[crew].put(task, ticket)):
        _run(task, ticket)
    return ticket
