"""What would write a run at the same time as jobs that are being submitted: earlier jobs, or a training that runs."""

from __future__ import annotations

from collections.abc import Sequence

from holdfast.errors import SlurmError, StorageError
from holdfast.jobs import record
from holdfast.jobs.record import Submission
from holdfast.slurm import commands
from holdfast.slurm.commands import ENDED, Record
from holdfast.store.holder import Holder, judge, myself
from holdfast.store.queue import ask_slurm
from holdfast.store.watch import holder_of

_SUBMISSIONS, _JOBS = 3, 20
"""So many of the last ones, and of each so many jobs, are asked for."""


def warnings(run: str) -> list[str]:
    """Words on jobs that would meet those being submitted; empty where there are none, or Slurm does not tell."""
    jobs = queued(run)
    said = []
    if jobs:
        numbers = list(dict.fromkeys(job.array or job.id for job in jobs))
        said.append(
            f"{run}: jobs of an earlier submission are still queued ({', '.join(job.shown for job in jobs)}). Of two at "
            f"a time the second is refused. Next: scancel {' '.join(numbers)}, or let the new ones wait: "
            f"--dependency=afterany:{':'.join(numbers)}."
        )
    holder = _living_holder(run)
    if holder is not None and not any(holder.slurm_job == job.id for job in jobs):
        said.append(
            f"{run} is held by {holder.describe()}: jobs that begin before that has ended are refused. Next: end it, or let "
            f"the training wait for it (Run(…, wait=SECONDS))."
        )
    return said


def queued(run: str) -> Sequence[Record]:
    """The jobs of the last submissions that Slurm still has to end."""
    asked: list[tuple[Submission, commands.Question]] = []
    try:
        for submission in record.submissions(run)[-_SUBMISSIONS:]:
            for number in submission.jobs[-_JOBS:]:
                asked.append((submission, commands.ask_for_job(number)))  # noqa: PERF401 (those begun must be ended)
        return [
            job
            for submission, question in asked
            for job in commands.read_jobs(question)
            if submission.owns(job) and job.state not in ENDED
        ]
    except SlurmError:
        return []
    finally:
        for _, question in asked:
            question.give_up()


def _living_holder(run: str) -> Holder | None:
    try:
        holder = holder_of(run)
    except StorageError:
        return None
    if holder is None:
        return None
    life = judge(holder, myself(0), {holder.token})
    if life in ("alive", "ours") or (life == "unknown" and ask_slurm(holder, myself(0)) == "running"):
        return holder
    return None
