"""Why a managed loop leaves before its goal: a signal asks for it, or the time of its Slurm job is over."""

from __future__ import annotations

import math
import shlex
import signal
from collections.abc import Callable, Mapping
from typing import Any

from holdfast import continuation, cost, stage
from holdfast.limit import SPARE, TimeLimit, Where
from holdfast.log import logger
from holdfast.pace import Pace
from holdfast.signals import Signals
from holdfast.slurm import job as slurm_job
from holdfast.slurm import shell
from holdfast.slurm.job import Job
from holdfast.store import book

TIME_LIMIT = "time limit"
CTRL_C = "Ctrl-C"
_RECENT = 64 << 10  # bytes of the history, in which the last saves are
_NOWHERE = 2  # launches without progress, from which on that is told
_SIGNALLED_EARLIER = 60
"""Seconds by which Slurm may send a warning early, by its manual."""

Key = tuple[int, int, int]
"""(epoch, step, batch): where a training stands."""


class Departure:
    """Asked at each boundary whether to leave there; outside of Slurm only signals ask for it."""

    def __init__(self, signals: Signals, pace: Pace, closing: Callable[[Mapping[str, float]], float]) -> None:
        """`closing` gives the seconds that mirrors take after a save, from those of earlier launches by URL."""
        self._signals, self._pace, self._closing = signals, pace, closing
        # What is rehearsed ends with its rehearsal, whatever job that runs in.
        job = slurm_job.here() if stage.current() is None else None
        self._limit = TimeLimit(job, self._slowest_write, self._slowest_copies) if job is not None else None
        self._earlier: float | None = None
        """Seconds of the slowest of the last saves of earlier launches."""
        self._copies: dict[str, float] = {}
        """Of the same launches, and the slowest copies to mirrors."""
        self._entered_at: Key | None = None

    def enter(self, run: str, position: Key, launches: int) -> None:
        """A loop is entered: what its job asks for is looked at from now on.

        Args:
            run: the run's path.
            position: where the training stands.
            launches: how many launches before this one began there, too.

        Raises:
            UsageError: the environment asks for a continuation that there is not.

        """
        self._entered_at = position
        if self._limit is None:
            return
        continuation.check_environment(run)
        if launches >= _NOWHERE:
            logger.warning(
                "%s: the last %d launches began where this one does, and got no further. Next: read their logs (holdfast "
                "status %s names them); if it was the time limit that ended them, a longer --time, or boundaries and saves "
                "that come sooner (run.batches(…), Every(steps=…)).",
                self._limit.job,
                launches,
                shlex.quote(run),
            )
        events = book.read_events(run, _RECENT)
        self._earlier, self._copies = cost.slowest_write(events), cost.slowest_copies(events)
        self._limit.enter(_tell_of_shell(self._limit.job))

    def _slowest_write(self) -> float | None:
        here = self._pace.slowest_write
        return self._earlier if here is None else here

    def _slowest_copies(self) -> float:
        return self._closing(self._copies)

    def leave(self) -> None:
        """The loop is over."""
        if self._limit is not None:
            self._limit.leave()

    # -- at a boundary -------------------------------------------------------------------------

    def reach(self, where: Where) -> None:
        """The loop comes to a boundary of this kind."""
        if self._limit is not None:
            self._limit.reach(where)

    def go_on(self) -> None:
        """The loop goes on from there."""
        if self._limit is not None:
            self._limit.go_on()

    @property
    def signal(self) -> str | None:
        """The name of the signal that asked for the end."""
        return self._signals.asked.name if self._signals.asked is not None else None

    def reason(self, position: Key) -> str | None:
        """The signal that asked for the end; or the time limit, where this is the last boundary before it."""
        # A launch that has done nothing yet would be followed by one that does nothing, either.
        if self.signal is None and self._limit is not None and position != self._entered_at:
            return TIME_LIMIT if self._limit.is_last_chance else None
        return self.signal

    def due(self, position: Key) -> str | None:
        """Why the job's end asks for a save here, with which the training does not end."""
        return self._limit.due() if self._limit is not None and position != self._entered_at else None

    def has_time_for_a_save(self, reason: str) -> bool:
        """Whether a save may be begun before Slurm ends this process; says so where it may not."""
        limit = self._limit
        if limit is None or reason == "SIGINT":
            return True
        left = limit.left(self._signals.asked_at if reason == "SIGTERM" else None)
        if not limit.fits(left) and reason == "SIGTERM" and limit.runs_on():
            left = limit.left(None)  # it was a warning (--signal=B:TERM@120)
        if limit.fits(left):
            return True
        logger.warning(
            "%s: a save takes up to %.1f s, and %.1f s are left before Slurm ends this job, so none is begun. Next: signal "
            "earlier (--signal=USR1@120, say), or save more often.",
            reason,
            self._slowest_write() or 0.0,
            left or 0.0,
        )
        return False

    # -- afterwards ----------------------------------------------------------------------------

    def requeue(self, saved: Key | None, launches: int, bring_mirrors: Callable[[float], None]) -> bool:
        """Lets Slurm start the job again where that is how it goes on; whether it will.

        Args:
            saved: the progress of the newest checkpoint.
            launches: how many launches before this one began where it began.
            bring_mirrors: waits for mirrors, at most so many seconds.

        """
        limit = self._limit
        if limit is None:
            return False
        left = limit.left(self._signals.asked_at if self.signal == "SIGTERM" else None)
        patience = math.inf if left is None else max(0.0, left - SPARE)
        return continuation.requeue(
            limit,
            lambda: bring_mirrors(patience),
            moved=saved not in (None, self._entered_at),
            launches=launches,
        )


def _tell_of_shell(job: Job) -> float:
    """Says which signals will not get through; returns by how many seconds the shell's end comes before the job's."""
    found = shell.find()
    if found is None:
        return 0.0
    remedy = "Next: write `exec python …` or `srun python …` in the batch script, and `exec` in each script that it calls."
    if found.warned is not None and found.dies_early:
        name, seconds = found.warned
        logger.warning(
            "%s: its script asks for --signal=B:%s@%d, which only the shell gets and which ends it, and this training with "
            "it. So a save is planned before that. %s",
            job,
            name,
            seconds,
            remedy,
        )
        return float(seconds + _SIGNALLED_EARLIER)
    if signal.SIGTERM not in found.catches:
        logger.warning(
            "%s: a shell stands between Slurm and this process, and passes no signal on: scancel, requeue, preemption and a "
            "warning that sbatch was asked for (--signal=B:…) end the training without a save. The time limit is planned "
            "for. %s",
            job,
            remedy,
        )
    return 0.0


def facts() -> dict[str, Any]:
    """Which job this is, and where its output goes, as the history tells it."""
    job = slurm_job.here()
    if job is None:
        return {}
    known = {
        "job": job.id,
        "cluster": job.cluster,
        "array": job.array,
        "task": job.task,
        "restart": job.restart,
        "ends": job.end,
        "output": slurm_job.output(),
    }
    return {"slurm": {name: value for name, value in known.items() if value not in ("", None)}}


def goal_key() -> tuple[str, str]:
    """Under which name this process's goal is noted, and which submission it belongs to."""
    job = slurm_job.here()
    task = "local" if job is None else str(job.id if job.task is None else job.task)
    return task, continuation.submission(job)
