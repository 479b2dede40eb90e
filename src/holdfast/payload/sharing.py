"""Work that the calling thread shares with the crew, and does alone when the crew is busy."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from holdfast.payload import threads

Job = TypeVar("Job")


def share(
    jobs: Iterable[Job],
    work: Callable[[Job], None],
    crew: threads.Crew = "blocks",
    abandon: Callable[[], None] = lambda: None,
) -> None:
    """Calls `work` for every job, in order of start, from this thread and those of a crew.

    A crew that is busy with a save is not waited for. After the first error no further job is
    begun; it is raised here when no thread works on these jobs any more. An interrupt ends it
    the same way. A single job is done here. `abandon` is called after an error, so that those who are at
    work can be called away from what they wait for.
    """
    _Shared(deque(jobs), work, crew, abandon).run()


class _Shared(Generic[Job]):
    def __init__(
        self, jobs: deque[Job], work: Callable[[Job], None], crew: threads.Crew, abandon: Callable[[], None]
    ) -> None:
        self.jobs, self.work, self.crew, self.abandon = jobs, work, crew, abandon
        self.helpers: list[threads.Ticket] = []  # one for each thread that came to help
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            for _ in range(min(threads.size(self.crew), len(self.jobs)) - 1):
                threads.submit(self.crew, self._help)
            self._drain()
        except BaseException as error:
            self._stop(error)
        # No job is left, so a helper that comes from here on finds nothing. Those at work write to
        # the caller's memory: an interrupt must not let it go before they have finished.
        while not self._alone():
            pass
        if self.error is not None:
            raise self.error

    def _alone(self) -> bool:
        try:
            for ticket in self.helpers:
                ticket.join()
        except BaseException as error:
            self._stop(error)
            return False
        return True

    def _help(self) -> None:
        ticket = threads.Ticket()
        self.helpers.append(ticket)  # before it takes a job
        try:
            self._drain()
        except BaseException as error:
            self._stop(error)
        ticket.finish()

    def _drain(self) -> None:
        while True:
            try:
                job = self.jobs.popleft()
            except IndexError:
                return
            self.work(job)

    def _stop(self, error: BaseException) -> None:
        self.jobs.clear()
        if self.error is None:
            self.error = error
        self.abandon()
