"""Signals during a managed loop: they set a flag, and the next boundary acts on it.

Saving inside a handler would see half-updated state and can dead-lock, so a handler only notes
what was asked. Handlers exist between the first `next` and the end of a loop, in the main thread.
"""

from __future__ import annotations

import atexit
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable
from types import FrameType
from typing import Any

from holdfast.log import logger

PREEMPT = (signal.SIGTERM, signal.SIGUSR1)
_WATCHED = (*PREEMPT, signal.SIGUSR2, signal.SIGINT)
_REPEATED = (*PREEMPT, signal.SIGUSR2)
GRACE_SECONDS = 60.0


class Signals:
    """The signals that arrived since `install`; at most one stays asked for."""

    def __init__(self) -> None:
        self._previous: dict[int, Any] = {}
        self._pid = os.getpid()
        self.asked: signal.Signals | None = None
        self.asked_at = 0.0
        """When that signal came, by the monotonic clock."""
        self.snapshot_asked = False
        self.impatient = False
        """True once a second Ctrl-C has asked to stop at once."""
        self.inside: Callable[[FrameType | None], bool] | None = None
        """Tells of the frame that a signal interrupts whether the loop still runs there, where that is not sure."""

    def install(self) -> None:
        """Takes the signals over; does nothing outside the main thread, where Python allows none."""
        if threading.current_thread() is not threading.main_thread() or self._previous:
            return
        self.asked, self.snapshot_asked, self.impatient = None, False, False
        for number in _WATCHED:
            previous = signal.signal(number, self._note)
            self._previous[number] = signal.SIG_DFL if previous is _pass_over else previous
        _installed.add(self)

    def restore(self, *, ending: bool = False) -> None:
        """Puts back the handlers that were there before, unless somebody replaced ours meanwhile.

        With `ending`, since a signal has ended the training, its repeats change nothing while the
        process ends: the default would end it by that signal, and hide the exit code that says that
        the place is saved. Handlers of the user's own come back all the same, and a process that goes
        on living has the defaults after a minute.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        if ending:
            _ended[:] = [time.monotonic()]
        for number, previous in self._previous.items():
            if signal.getsignal(number) == self._note:
                after = previous if previous is not None else signal.SIG_DFL
                repeated = ending and number in _REPEATED and after is signal.SIG_DFL
                signal.signal(number, _pass_over if repeated else after)
        self._previous.clear()
        _installed.discard(self)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.inside is not None and not self.inside(frame):
            self.restore()  # an exception has ended the loop, and nobody told us
            os.kill(os.getpid(), number)
            return
        if number == signal.SIGINT:
            if self.asked is signal.SIGINT:
                self.impatient = True
                self.restore()
                raise KeyboardInterrupt
            if self.asked is None:
                self.asked, self.asked_at = signal.SIGINT, time.monotonic()
                logger.info("Ctrl-C: saving at the next boundary; press it again to stop at once.")
        elif number in PREEMPT:
            if self.asked is None or self.asked is signal.SIGINT:
                self.asked, self.asked_at = signal.Signals(number), time.monotonic()
        else:
            self.snapshot_asked = True
        previous = self._previous.get(number)
        if callable(previous) and previous is not signal.default_int_handler:
            previous(number, frame)


# -- after the end -----------------------------------------------------------------------------

_ended: list[float] = []  # when a signal ended a loop of this process, by the monotonic clock


def _pass_over(number: int, _frame: FrameType | None) -> None:
    if time.monotonic() - _ended[0] >= GRACE_SECONDS:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def _ignore_at_exit() -> None:
    # The interpreter puts the defaults back while it ends, where a handler stood; "ignored" it leaves.
    _replace_by(signal.SIG_IGN)


def _replace_by(action: signal.Handlers) -> None:
    if threading.current_thread() is not threading.main_thread():
        return
    for number in _REPEATED:
        if signal.getsignal(number) is _pass_over:
            signal.signal(number, action)


atexit.register(_ignore_at_exit)

# -- in a forked child -------------------------------------------------------------------------

_installed: weakref.WeakSet[Signals] = weakref.WeakSet()


def _leave_child() -> None:
    # A forked child is no training: it gets the handlers that its parent had before the loop.
    for signals in list(_installed):
        signals.restore()
    _replace_by(signal.SIG_DFL)


os.register_at_fork(after_in_child=_leave_child)
