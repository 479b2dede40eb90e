"""Loader workers that outlive the signals meant for the training, and that are ended by it.

A batch system sends SIGTERM or SIGUSR1, and a terminal SIGINT, to the whole process group. A
loader worker that dies of it takes the last save with it, so the workers are created while these
signals are blocked: a new process inherits the mask through fork and through exec. The price is
that a worker no longer ends by SIGTERM, which is how torch and multiprocessing end one that does
not answer; here it gets SIGKILL instead, also when the interpreter exits (which would otherwise
wait for ever). A program that a worker starts inherits the mask too: end it with `kill`, not with
`terminate`.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import multiprocessing
import os
import signal
import threading
import time
import weakref
from collections.abc import Iterator
from multiprocessing import forkserver, resource_tracker
from typing import Any

_log = logging.getLogger("holdfast")

SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2})

grace = 5.0
"""Seconds that the workers of one loader have, together, to end by themselves."""

_iterators: weakref.WeakSet[Any] = weakref.WeakSet()
_children: list[Any] = []
_owner = 0


@contextlib.contextmanager
def protected(loader: Any) -> Iterator[list[Any]]:
    """Worker processes that `loader` creates in the block, from this thread, ignore the signals.

    The list has them once the block was left; what still lives at exit gets SIGKILL.
    """
    _own()
    created: list[Any] = []
    method = (loader.multiprocessing_context or multiprocessing).get_start_method()
    before = {child.pid for child in multiprocessing.active_children()}
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    prepare = loader.worker_init_fn
    try:
        if method != "fork":
            # Starting the tracker unblocks SIGTERM and SIGINT behind our back, so it goes first.
            resource_tracker.ensure_running()
            signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        if method == "forkserver":
            _check_forkserver()
        else:
            loader.worker_init_fn = _Prepare(os.getpid(), prepare)
        yield created
    finally:
        loader.worker_init_fn = prepare
        now = multiprocessing.active_children()
        created += [child for child in now if child.daemon and child.pid not in before]
        _remember(created)
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


class _Prepare:
    """Runs the user's `worker_init_fn` in a new worker, unless the process that wants it is gone.

    torch's workers end when their parent changes, but take for their parent whoever it is when
    they are ready: one whose creator was killed before that would wait for ever.
    """

    def __init__(self, parent: int, inner: Any) -> None:
        self.parent, self.inner = parent, inner

    def __call__(self, number: int) -> None:
        if self.inner is not None:
            self.inner(number)
        if os.getppid() != self.parent:
            os._exit(1)


def adopt(iterator: Any) -> None:
    """From now on torch itself ends this iterator's workers in bounded time, with SIGKILL at last."""
    workers = getattr(iterator, "_workers", None)
    if not workers or not hasattr(workers[0], "kill"):
        return
    deadline = _Deadline()
    iterator._workers = [_Worker(worker, deadline) for worker in workers]
    _iterators.add(iterator)


def adopted(iterator: Any) -> bool:
    """Whether this iterator's workers were created here, not by somebody else or before a fork."""
    return _owner == os.getpid() and iterator in _iterators


def end(iterator: Any) -> None:
    """Ends an iterator's workers: first torch's own way, then SIGKILL. Returns when they are gone."""
    if hasattr(iterator, "_shutdown_workers"):
        iterator._shutdown_workers()
    kill(getattr(iterator, "_workers", ()))


def kill(workers: Any) -> None:
    """Ends those that live with SIGKILL and waits for them."""
    alive = [worker for worker in workers if worker.is_alive()]
    if not alive:
        return
    with _unreported():
        for worker in alive:
            worker.kill()
        for worker in alive:
            worker.join()


@contextlib.contextmanager
def _unreported() -> Iterator[None]:
    """In the block, torch's handler of SIGCHLD does not turn the death of a worker into an exception."""
    previous = signal.getsignal(signal.SIGCHLD)
    if previous is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, previous)


class _Deadline:
    """Starts to run when it is first asked."""

    def __init__(self) -> None:
        self._end: float | None = None

    def left(self) -> float:
        if self._end is None:
            self._end = time.monotonic() + grace
        return max(0.0, self._end - time.monotonic())


class _Worker:
    """A worker process to torch; waits for it are bounded in sum, and `terminate` does end it."""

    def __init__(self, process: Any, deadline: _Deadline) -> None:
        self._process, self._deadline = process, deadline

    def join(self, timeout: float | None = None) -> None:
        left = self._deadline.left()
        self._process.join(left if timeout is None else min(timeout, left))

    def terminate(self) -> None:
        self._process.kill()
        self._process.join()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._process, name)


def _own() -> None:
    """In a fork of the training, the training's workers are not ours to end."""
    global _owner
    if _owner != os.getpid():
        _children.clear()
        _iterators.clear()
        _owner = os.getpid()
        atexit.register(_end_all)


def _remember(created: list[Any]) -> None:
    for child in [child for child in _children if not child.is_alive()]:
        _children.remove(child)
    _children.extend(created)


def _end_all() -> None:
    """Runs before multiprocessing's own end, which waits without limit for what SIGTERM did not end."""
    if _owner == os.getpid():
        for iterator in list(_iterators):
            end(iterator)
        kill(_children)


def _check_forkserver() -> None:
    pid = getattr(forkserver._forkserver, "_forkserver_pid", None)
    if pid is None:
        return
    with (
        contextlib.suppress(OSError),
        open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as status,
    ):
        for line in status:
            name, _, value = line.partition(":")
            if name == "SigBlk" and not int(value, 16) >> (signal.SIGTERM - 1) & 1:
                _log.warning(
                    "The fork server of multiprocessing was started before this loop, so it and the loader "
                    "workers end at a SIGTERM to the process group, and the save on that signal may fail. Use "
                    "the loader first inside the loop, or multiprocessing_context='spawn'."
                )
