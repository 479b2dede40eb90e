"""Work that the calling thread shares with the crew, and does alone when the crew is busy."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from holdfast.payload import threads

Job = TypeVar("Job")


def share(jobs: Iterable[Job], work: Callable[[Job], None]) -> None:
    """Calls `work` for every job, in order of start, from this thread and those of "blocks".

    A crew that is busy with a save is not waited for. After the first error no further job is
    begun; it is raised here when no thread works on these jobs any more. An interrupt ends it
    the same way. A single job is done here.
    """
    _Shared(deque(jobs), work).run()


class _Shared(Generic[Job]):
    def __init__(self, jobs: deque[Job], work: Callable[[Job], None]) -> None:
        self.jobs, self.work = jobs, work
        self.changed = threading.Condition()
        self.helping = 0
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            for _ in range(min(threads.size("blocks"), len(self.jobs)) - 1):
                threads.submit("blocks", self._help)
            self._drain()
        except BaseException as error:
            self._stop(error)
        # No job is left, so a helper that comes from here on does nothing. Those at work write to
        # the caller's memory: an interrupt must not let it go before they have finished.
        while not self._alone():
            pass
        if self.error is not None:
            raise self.error

    def _alone(self) -> bool:
        try:
            with self.changed:
                while self.helping:
                    self.changed.wait()
        except BaseException as error:
            self._stop(error)
            return False
        return True

    def _help(self) -> None:
        with self.changed:
            self.helping += 1
        try:
            self._drain()
        except BaseException as error:
            self._stop(error)
        finally:
            with self.changed:
                self.helping -= 1
                self.changed.notify_all()

    def _drain(self) -> None:
        while True:
            with self.changed:
                if not self.jobs:
                    return
                job = self.jobs.popleft()
            self.work(job)

    def _stop(self, error: BaseException) -> None:
        with self.changed:
            self.jobs.clear()
            if self.error is None:
                self.error = error
