"""What became of each job of a training, from all that is known of it; no clock, no disk, no Slurm."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Sequence
from typing import Literal

from holdfast.jobs.launches import Launch
from holdfast.jobs.record import Ended
from holdfast.slurm.commands import ENDED, ENDING, RUNNING, WAITING, Record

State = Literal["done", "running", "waiting", "failed", "cancelled", "unknown"]

SAVED = "its place is saved"
_UNKNOWN_TO_SLURM = "Slurm does not know it any more"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """One job of a training. Times are seconds since the epoch, None where unknown.

    Attributes:
        number: in its array or chain, from 1 on; None for a job that stands alone.
        job: as Slurm's commands take it; empty when it is not known.
        state: one word.
        why: more of them, or empty.
        log: the file that its output goes to, or empty.
        ends: when its time will be over, of a running one.
        restarts: how often it was started again.

    """

    number: int | None
    job: str
    state: State
    why: str = ""
    log: str = ""
    began: float | None = None
    ended: float | None = None
    ends: float | None = None
    restarts: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Known:
    """What is known of one job.

    Attributes:
        record: of Slurm; None if it was not asked, or does not know the job.
        answered: whether it was asked and answered.
        ended: the line that the job's script wrote last.
        launch: the last launch of the training in it.
        alive: whether the run's lease is held by it, as far as can be seen.
        array_known: whether Slurm knows other tasks of its array.

    """

    number: int | None
    job: str
    log: str = ""
    record: Record | None = None
    answered: bool = False
    ended: Ended | None = None
    launch: Launch | None = None
    alive: bool = False
    array_known: bool = False


def judge(known: Known) -> Task:
    """What became of a job."""
    record, launch, ended = known.record, known.launch, known.ended
    if launch is not None and ended is not None and launch.began > ended.ended + 1:
        ended = None  # of an earlier start of the same job
    if launch is not None and ended is not None and launch.began < ended.began - 1:
        launch = None
    state, why = _judge(record, launch, ended, known)
    began = _first(
        record.start if record and record.state not in WAITING else None,
        ended.began if ended else None,
        launch.began if launch else None,
    )
    over = None
    if state not in ("running", "waiting"):
        over = _first(
            ended.ended if ended else None,
            record.end if record else None,
            launch.ended if launch else None,
        )
    return Task(
        number=known.number,
        job=known.job,
        state=state,
        why=why,
        log=known.log,
        began=began,
        ended=over,
        ends=_first(record.end if record else None, launch.limit if launch else None)
        if state == "running"
        else None,
        restarts=max(
            record.restarts if record else 0, ended.restart if ended else 0, launch.restart if launch else 0
        ),
    )


def _judge(
    record: Record | None, launch: Launch | None, ended: Ended | None, known: Known
) -> tuple[State, str]:
    if record is not None:
        if record.state in RUNNING:
            return "running", "" if record.state == "RUNNING" else record.state.lower()
        if record.state in ENDING:
            return "running", "ending"
        if record.state in WAITING:
            again = launch is not None or ended is not None or record.restarts
            return "waiting", "queued again" if again else _reason(record)
        if record.state in ENDED:
            return _after(record, launch, ended)
        return "unknown", record.state.lower()
    if ended is not None:
        return _by_code(launch, ended)
    if launch is not None:
        if launch.why:
            return _by_word(launch)
        if known.alive:
            return "running", ""
        return ("failed", "ended without a word") if known.answered else ("unknown", "Slurm was not asked")
    if known.answered and known.array_known:
        return "cancelled", "before it began"  # Slurm keeps nothing of such a task
    return ("unknown", _UNKNOWN_TO_SLURM) if known.answered else ("waiting", "")


def _after(record: Record, launch: Launch | None, ended: Ended | None) -> tuple[State, str]:
    """Of a job that Slurm says has ended."""
    saved = (ended is not None and ended.code == 75) or (launch is not None and launch.why in _PLACES)
    if record.state == "CANCELLED":
        return "cancelled", SAVED if saved else ""
    if record.state in ("TIMEOUT", "PREEMPTED", "DEADLINE") or (record.state == "NODE_FAIL" and saved):
        word = {"TIMEOUT": "time limit", "DEADLINE": "deadline"}.get(record.state, record.state.lower())
        return ("done", f"{word}, {SAVED}") if saved else ("failed", f"{word}, with nothing saved at the end")
    if record.state not in ("COMPLETED", "FAILED"):
        return "failed", record.state.lower().replace("_", " ")
    if ended is not None:
        return _by_code(launch, ended)
    if record.state == "COMPLETED":
        return _by_word(launch) if launch is not None and launch.why else ("done", "")
    if record.reason in _NOT_STARTED:
        return "failed", f"it could not be started ({record.reason}): {_NOT_STARTED[record.reason]}"
    code, _, number = record.exit_code.partition(":")
    if code == "75":
        return "done", f"interrupted, {SAVED}"
    return "failed", _code(128 + int(number) if number.isdecimal() and number != "0" else int(code or 0))


_NOT_STARTED = {
    "JobLaunchFailure": "look at the places of its log and its directory",
}
_PLACES = frozenset({"time limit", "SIGTERM", "SIGUSR1"})
_WORDS = {"goal reached": "complete", "stopped": "complete: it was stopped", "Ctrl-C": f"Ctrl-C, {SAVED}"}


def _by_word(launch: Launch) -> tuple[State, str]:
    """By what the training itself wrote down."""
    if launch.why == "left":
        return "failed", "left before its goal"
    if launch.why in _PLACES:
        return "done", f"{launch.why}, {SAVED}"
    return "done", _WORDS.get(launch.why, launch.why)


def _by_code(launch: Launch | None, ended: Ended) -> tuple[State, str]:
    """By the code that the job's script wrote down."""
    if ended.doing == "gate":
        return (
            ("done", "nothing to do")
            if ended.code == 0
            else ("failed", "not begun, as those before it failed")
        )
    if ended.code in (0, 75):
        if launch is not None and launch.why and launch.why != "left":
            return _by_word(launch)
        return "done", f"interrupted, {SAVED}" if ended.code else ""
    return "failed", _code(ended.code) + (", before the command began" if ended.doing == "setup" else "")


def _code(code: int) -> str:
    if code > 128:
        try:
            return f"killed by {signal.Signals(code - 128).name}"
        except ValueError:
            pass
    return f"exit code {code}"


def _reason(record: Record) -> str:
    words = {
        "JobArrayTaskLimit": "",
        "Dependency": "",
        "BeginTime": "queued again",
        "Resources": "waits for resources",
        "Priority": "waits behind others",
        "JobHeldUser": "held",
        "PartitionTimeLimit": "its --time is more than the partition allows",
        "DependencyNeverSatisfied": "waits for ever: what it depends on failed",
        "JobHeldAdmin": "held by an administrator",
    }
    return words.get(record.reason, record.reason)


def _first(*values: float | None) -> float | None:
    return next((value for value in values if value is not None), None)


def counts(tasks: Sequence[Task]) -> dict[str, int]:
    """State → how many, in a fixed order."""
    order: tuple[State, ...] = ("done", "failed", "cancelled", "running", "waiting", "unknown")
    found = {state: sum(task.state == state for task in tasks) for state in order}
    return {state: count for state, count in found.items() if count}
