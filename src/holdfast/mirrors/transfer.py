"""Several checkpoints from one place to another: side by side, and each published in its turn."""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Callable, Iterable, Sequence

from holdfast.errors import HoldfastError
from holdfast.mirrors.crew import Crew, Room, Write
from holdfast.objects import urls

JOBS = 4
"""Blocks that are on their way at the same time, unless somebody asks for more or fewer."""
_QUESTIONS = 16


@dataclasses.dataclass(slots=True)
class Item:
    """A checkpoint, and what becomes of it.

    Attributes:
        name: of the checkpoint.
        size: bytes of all its files; 0 where its manifest cannot be read.
        status: "waiting" before; then "copied", "there" (with the same digests), "gone" (deleted meanwhile),
            "damaged", "foreign" or "other" (another checkpoint of that name is there).
        sent: bytes that were sent.
        found: bytes that an earlier attempt had sent.
        problem: what is the matter with it.

    """

    name: str
    size: int
    status: str = "waiting"
    sent: int = 0
    found: int = 0
    problem: HoldfastError | None = None


def ask(questions: Iterable[Callable[[], object]], url: str) -> None:
    """Asks a place many things: side by side where each answer takes its time on the way, else one after the other."""
    crew = Crew(_QUESTIONS if urls.is_url(url) else 0)
    try:
        crew.start([functools.partial(_ask, question) for question in questions]).wait()
    finally:
        crew.close()


def _ask(question: Callable[[], object], _: Room) -> None:
    question()


class _Stopped(Exception):  # noqa: N818 (no error: the caller has one)
    """The others are given up."""


class Transfer:
    """Brings checkpoints, until all are there or one fails for a reason that holds for the others as well.

    Args:
        jobs: blocks, and checkpoints, on their way at the same time.
        progress: told of bytes that are there, by one thread at a time.
        ended: told of each item when it has come to its end.

    """

    def __init__(self, jobs: int, progress: Callable[[int], None], ended: Callable[[Item], None]) -> None:
        self._jobs, self._progress, self._ended = jobs, progress, ended
        self._lock = threading.Lock()
        self._stopped = False

    def check(self) -> None:
        """Raises where the transfer was given up."""
        if self._stopped:
            raise _Stopped

    def tell(self, count: int) -> None:
        """Counts bytes that are there, or about to be."""
        self.check()
        with self._lock:
            self._progress(count)

    def bring(self, items: Sequence[Item], carry: Callable[[Item, Crew], Callable[[], None] | None]) -> None:
        """Carries each item, several at a time, and publishes them in their order.

        Args:
            items: those that are to be brought.
            carry: copies one with a crew; gives what publishes it, or None where its `status` says why not.

        Raises:
            HoldfastError: whatever `carry`, or a publication, raised; what was published before stays.

        """
        crew, lanes = Crew(self._jobs), Crew(min(self._jobs, len(items)))

        def step(item: Item) -> Callable[[Room], Write]:
            def run(_: Room) -> Write:
                publish = carry(item, crew)

                def end() -> None:
                    if publish is not None:
                        publish()
                    self._ended(item)

                return end

            return run

        errand = lanes.start([step(item) for item in items])
        try:
            errand.wait()
        except BaseException as error:
            self._stopped = True
            errand.stop(error)
            raise
        finally:
            lanes.close()
            crew.close()
