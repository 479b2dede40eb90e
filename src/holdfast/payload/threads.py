"""The process's own threads: they outlive the main thread just long enough to finish their work.

`concurrent.futures` refuses work once the interpreter is ending, which is when the last save is
written. These threads are not daemons: the interpreter joins them, before `atexit`. So they have
to end by themselves: a watcher waits for the main thread's end and tells the others, who finish
what is queued and return.

There are two crews: "blocks" copies, digests, reads and writes; "publish" has one thread, whose
tasks may wait for tasks of the other. A task of "blocks" must not wait for another of "blocks".
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Literal

from holdfast.errors import UsageError

Crew = Literal["blocks", "publish"]
Task = Callable[[], object]


class Ticket:
    """The receipt for a task: whether it is done, and the error it ended with, if any."""

    __slots__ = ("_done", "_error", "_pid")

    def __init__(self) -> None:
        self._done = threading.Event()
        self._error: BaseException | None = None
        self._pid = os.getpid()

    @property
    def done(self) -> bool:
        return self._done.is_set()

    @property
    def error(self) -> BaseException | None:
        """What the task ended with; None while it runs and when it succeeded."""
        return self._error if self.done else None

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
        if not self.done and self._pid != os.getpid():
            raise UsageError(
                f"This work belongs to process {self._pid}; process {os.getpid()} was forked from it and does not "
                f"see its end. Wait for it where it was started."
            )
        return self._done.wait(timeout)

    def finish(self, error: BaseException | None = None) -> None:
        """Marks the task as done; only the first call counts."""
        if not self.done:
            self._error = error
            self._done.set()


class _Team:
    """Threads with one queue. They are started at the first task and end after the main thread."""

    def __init__(self, name: str, size: int) -> None:
        self.name, self.size = name, size
        self.changed = threading.Condition(threading.Lock())
        self.queue: deque[tuple[Task, Ticket]] = deque()
        self.alive = 0
        self.ending = False

    def put(self, task: Task, ticket: Ticket) -> bool:
        """Queues a task; False when no thread will come for it any more."""
        with self.changed:
            if not self.alive and not self._start():
                return False
            self.queue.append((task, ticket))
            self.changed.notify()
            return True

    def _start(self) -> bool:
        if self.ending or not threading.main_thread().is_alive():
            return False
        for number in range(self.size):
            thread = threading.Thread(target=self._work, name=f"holdfast-{self.name}-{number}", daemon=False)
            try:
                thread.start()
            except RuntimeError:  # the system's limit of threads, or the interpreter began to end
                break
            self.alive += 1
        return self.alive > 0

    def end(self) -> None:
        with self.changed:
            self.ending = True
            self.changed.notify_all()

    def _work(self) -> None:
        while True:
            with self.changed:
                while not self.queue and not self.ending:
                    self.changed.wait()
                if not self.queue:
                    self.alive -= 1
                    return
                task, ticket = self.queue.popleft()
            _run(task, ticket)
            # An idle thread must not keep the last task's arrays alive.
            del task, ticket


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
        self.teams: dict[Crew, _Team] = {"blocks": _Team("blocks", count), "publish": _Team("publish", 1)}
        self.lock = threading.Lock()
        self.watched = False

    def watch(self) -> bool:
        """Starts the watcher, once, before any other thread; False when it is too late for that."""
        with self.lock:
            if not self.watched and threading.main_thread().is_alive():
                try:
                    threading.Thread(target=self._await_end, name="holdfast-watch", daemon=False).start()
                except RuntimeError:
                    return False
                self.watched = True
            return self.watched

    def _await_end(self) -> None:
        threading.main_thread().join()
        for team in self.teams.values():
            team.end()


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
    started: if the crew has none, the task runs here and is done when this returns.
    """
    ticket = Ticket()
    process = _process
    if not (process.watch() and process.teams[crew].put(task, ticket)):
        _run(task, ticket)
    return ticket
