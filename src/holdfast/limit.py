"""The time limit of the Slurm job that a training is in, and the last save before it.

A job is told of its end shortly before it is killed, if at all, and a training can save only at its
next boundary. So the last save is planned: at each boundary it is asked whether the next one, and a
save after it, would still come in time. Both are known by measuring: how long saves took, and how far
boundaries of this kind lay apart.

The end is asked of the controller, beside the training: when a loop is entered, each time that half of
what was then left has passed (a limit may be changed while the job runs), and before it is acted on.
"""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Callable
from typing import Literal

from holdfast.durations import exact
from holdfast.errors import SlurmError
from holdfast.log import logger
from holdfast.slurm import commands
from holdfast.slurm.commands import Question, Record
from holdfast.slurm.job import Job

FACTOR = 1.5
"""By what the slowest of the last saves is multiplied: the next may be slower."""
SPARE = 5.0
"""Seconds that are left for the process to end."""
UNMEASURED = 30.0
"""Seconds that a save may last while none was measured; before less is left, one is made."""
LEAST = 10.0
"""Seconds that are left for a save while none was measured, however that came."""
FITS = 0.7
"""The share of what is left that a save may take, to be begun at all."""
KILL_WAIT = 30.0
"""Seconds between SIGTERM and SIGKILL, by Slurm's default."""
_FRESH = 15.0  # seconds for which an answer counts as new
_SOON = 60.0  # seconds: no more often than that is the end asked for beside the training
_STEPS, _OTHERS = 100, 2

Where = Literal["between", "start", "end", "epoch"]
"""A boundary: between two batches or steps, before the first or after the last batch of an epoch, after an epoch."""


class TimeLimit:
    """When a job ends, and whether there is time for another save after the next boundary.

    Args:
        job: the job that this process is in.
        measured: seconds of the slowest of the last saves, None while there is none.
        after: seconds that mirrors take after a save.
        clock: monotonic seconds.
        wall: seconds since the epoch.

    Attributes:
        end: when the job's time is over, on the clock; None without a limit, or while it is not known.
        record: what the controller said last of the job; None before, or if it cannot be asked.
        kill_wait: seconds between SIGTERM and SIGKILL.

    """

    def __init__(
        self,
        job: Job,
        measured: Callable[[], float | None],
        after: Callable[[], float],
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.job, self._measured, self._after, self._clock, self._wall = job, measured, after, clock, wall
        self.end: float | None = None
        self._early = 0.0
        self.record: Record | None = None
        self.kill_wait = KILL_WAIT
        self._questions: dict[str, Question] = {}
        self._answered = self._unknown = False
        self._looked = self._next_look = 0.0
        self._told_plan = self._measuring = self._warned = False
        self._mark: tuple[float, Where] | None = None
        self._apart: dict[Where, deque[float]] = {
            where: deque(maxlen=_STEPS if where == "between" else _OTHERS)
            for where in ("between", "start", "end", "epoch")
        }
        """Seconds from a boundary to the next, by what kind the first of the two is."""

    # -- asking --------------------------------------------------------------------------------

    def enter(self, early: float = 0.0) -> None:
        """A loop is entered: asks for the end of the job, and waits for no answer.

        Args:
            early: seconds before the job's end at which a signal ends this process.

        """
        # What follows is what follows an epoch: the top of a body, or a whole one.
        self._mark, self._early = (self._clock(), "epoch"), early
        self._measuring = self._warned = False
        if self.job.end is not None:
            self.end = self._on_clock(self.job.end)
        self._ask("job")
        if "job" in self._questions:
            self._ask("settings")
        else:
            self._conclude()

    def _ask(self, what: str) -> None:
        words = ("job", self.job.address) if what == "job" else ("config",)
        try:
            self._questions[what] = Question(("scontrol", "show", *words))
        except SlurmError:
            self._questions.pop(what, None)

    def look(self, *, wait: bool = False) -> None:
        """Takes note of answers that have come, or waits for them."""
        for what in [what for what, question in self._questions.items() if wait or question.ready]:
            question = self._questions.pop(what)
            try:
                if what == "job":
                    self._take(commands.read_job(question, self.job.id))
                else:
                    words = commands.read_settings(question.answer()).get("KillWait", "").split()
                    self.kill_wait = float(words[0]) if words and words[0].isdecimal() else KILL_WAIT
            except SlurmError:
                pass  # what was known before stays
            if what == "job":
                self._conclude()

    def _take(self, record: Record | None) -> None:
        self._unknown = record is None
        if record is None:
            return
        self.record = record
        if not record.array:  # its variables were inherited, where the environment names one
            self.job = dataclasses.replace(self.job, array="", task=None)
        end = record.end if record.state not in commands.ENDED else None
        self.end = None if end is None else self._on_clock(end)

    def _conclude(self) -> None:
        """The controller has answered, or cannot be asked."""
        now = self._clock()
        self._looked = now
        if not self._answered:
            self._answered = True
            if self.end is not None:
                left = self.end - now
                ends = time.strftime("%H:%M:%S", time.localtime(self._wall() + left))
                logger.info("%s: its time is over at %s, in %s.", self.job, ends, exact(left))
            elif self.record is None:
                why = "Slurm does not know this job" if self._unknown else "scontrol does not answer here"
                logger.warning(
                    "%s: its time limit is not known, since %s, so no save is planned before it. Next: export "
                    "SLURM_JOB_END_TIME (seconds since the epoch) in the batch script; in a container, pass it on.",
                    self.job,
                    why,
                )
            elif self.record.state in commands.ENDED:
                logger.warning(
                    "%s has ended (%s), so this process is in no job, and no save is planned before a time limit. Next: unset "
                    "SLURM_JOB_ID, which is left over here.",
                    self.job,
                    self.record.state.lower(),
                )
        self._next_look = now + max(_SOON, (self.end - now) / 2) if self.end is not None else float("inf")

    def _on_clock(self, moment: float) -> float:
        return self._clock() + (moment - self._wall())

    def ask_again(self) -> Record | None:
        """What the controller says now; waits for it. None if it does not know the job, or does not answer."""
        try:
            record = commands.read_job(commands.ask_for_job(self.job.address), self.job.id)
        except SlurmError:
            return None
        self._take(record)
        self._looked = self._clock()
        return record

    def leave(self) -> None:
        """The loop is over: nobody waits for what was asked."""
        while self._questions:
            self._questions.popitem()[1].give_up()

    # -- planning ------------------------------------------------------------------------------

    def reach(self, where: Where) -> None:
        """The loop comes to a boundary. What comes after it may be a batch, an evaluation, or a whole epoch."""
        now = self._clock()
        if self._mark is not None:
            began, before = self._mark
            self._apart[before].append(now - began)
        self._mark = (now, where)
        if self._questions:
            self.look()
        elif now >= self._next_look and self._answered:
            self._next_look = float("inf")
            self._ask("job")

    def go_on(self) -> None:
        """The boundary is over: the loop's body runs again."""
        if self._mark is not None:
            self._mark = (self._clock(), self._mark[1])
        measured = self._measured()
        if self.end is not None and measured is not None and not self._told_plan:
            self._told_plan = True
            after = self._after()
            longest = max((max(apart, default=0.0) for apart in self._apart.values()), default=0.0)
            logger.info(
                "%s: the last save is planned %s before its end: saves take up to %s%s (times %.1f, and %.0f s for the process "
                "to end), and the next boundary may be %s away.",
                self.job,
                exact(self._margin(LEAST) + longest),
                exact(measured),
                f", and {exact(after)} until its mirrors have it" if after else "",
                FACTOR,
                SPARE,
                exact(longest),
            )

    def _margin(self, unmeasured: float) -> float:
        """Seconds before the end at which a save must be begun; a save that was never measured takes `unmeasured`."""
        measured = self._measured()
        return ((unmeasured if measured is None else measured) + self._after()) * FACTOR + SPARE

    def due(self) -> str | None:
        """Why a save is made here from which the training goes on; None where none is. Each reason comes once."""
        if not self._measuring and self._measured() is None and self._comes_too_late(UNMEASURED):
            self._measuring = True
            return "to measure it before the time limit"
        if self._early and not self._warned and self._comes_too_late(UNMEASURED, self._early):
            self._warned = True
            return "before a signal ends the shell"
        return None

    @property
    def is_last_chance(self) -> bool:
        """Whether a save after the next boundary might come too late. Asks again before it says so."""
        if not self._comes_too_late(LEAST):
            return False
        if self._clock() - self._looked > _FRESH:
            self.ask_again()
        return self._comes_too_late(LEAST)

    def _comes_too_late(self, unmeasured: float, early: float = 0.0) -> bool:
        if self.end is None or self._mark is None:
            return False
        longest = max(self._apart[self._mark[1]], default=0.0)
        return self._clock() + longest + self._margin(unmeasured) >= self.end - early

    def left(self, terminated: float | None) -> float | None:
        """Seconds until Slurm kills this process; None where that is not known.

        Args:
            terminated: when SIGTERM came, on the clock; None without one.

        """
        if terminated is not None:
            return max(0.0, terminated + self.kill_wait - self._clock())
        return None if self.end is None else max(0.0, self.end - self._clock())

    def runs_on(self) -> bool:
        """Whether the job goes on after a SIGTERM; asks again, and waits for the answer."""
        record = self.ask_again()
        return record is not None and record.state in commands.RUNNING and record.preempt is None

    def fits(self, left: float | None) -> bool:
        """Whether a save may be begun with so many seconds left: one that was measured to fit, or was never measured."""
        measured = self._measured()
        return left is None or measured is None or measured <= FITS * left
