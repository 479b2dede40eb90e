"""How a training in Slurm goes on after this process: whether its job is to be started again.

In an array and in a chain of jobs the next one continues by itself. A job that goes on by being queued
again is queued by the training, after its last save. It says so in its environment,
``HOLDFAST_CONTINUE=requeue``, and only so: most clusters allow every job to be queued again, which says
nothing about what its user wants.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from holdfast.errors import SlurmError, UsageError
from holdfast.limit import TimeLimit
from holdfast.log import logger
from holdfast.slurm import commands
from holdfast.slurm.job import Job

CONTINUE = "HOLDFAST_CONTINUE"
SUBMISSION = "HOLDFAST_SUBMISSION"
SUBMITTED_RUN = "HOLDFAST_RUN"
MOST_RESTARTS = 3
"""So many times in a row a job is started again without having got any further."""


def check_environment(run: str, environ: Mapping[str, str] = os.environ) -> None:
    """Refuses a word that means nothing; tells of a job that was submitted for another run than it writes.

    Raises:
        UsageError: ``HOLDFAST_CONTINUE`` is not what it can be.

    """
    word = environ.get(CONTINUE, "")
    if word not in ("", "requeue"):
        raise UsageError(
            f"{CONTINUE}={word!r} in the environment: expected 'requeue', or nothing where the next task of an array or the "
            f"next job of a chain continues. Next: export {CONTINUE}=requeue, or unset it.",
            expected="requeue",
            found=word,
        )
    submitted = environ.get(SUBMITTED_RUN, "")
    if submitted and os.path.realpath(submitted) != os.path.realpath(run):
        logger.warning(
            "This job was submitted with --run %s, and this training writes %s: `holdfast status`, and what asks before each "
            "task whether it is complete, look at the former. Next: holdfast submit --run %s.",
            submitted,
            run,
            run,
        )


def submission(job: Job | None, environ: Mapping[str, str] = os.environ) -> str:
    """What tells the tasks that belong together: the submission's name, else the array's or the job's number."""
    return environ.get(SUBMISSION) or (job.array or job.id if job is not None else "")


def count_launch(before: Mapping[str, Any] | None, progress: Sequence[int]) -> dict[str, Any]:
    """The launches in a row that began at the same progress, this one included, as run.json holds them.

    Args:
        before: what run.json held.
        progress: (epoch, step, batch) where this launch begins.

    """
    begun = list(progress)
    same = before is not None and before.get("progress") == begun and isinstance(before.get("times"), int)
    return {"progress": begun, "times": (before["times"] + 1 if same and before is not None else 0)}


def requeue(
    limit: TimeLimit,
    before: Callable[[], None],
    *,
    moved: bool,
    launches: int,
    environ: Mapping[str, str] = os.environ,
) -> bool:
    """Lets Slurm start this job again, where that is how it goes on, and says so.

    Args:
        limit: of the job.
        before: called before Slurm is asked to, since it ends this process then.
        moved: whether this launch got any further.
        launches: how many launches before this one began where it began.
        environ: of this process.

    Returns:
        Whether Slurm will.

    """
    job = limit.job
    asked = environ.get(CONTINUE) == "requeue"
    record = limit.ask_again()
    if record is None:
        if asked:
            logger.error("%s cannot be queued again: scontrol does not answer. Next: sbatch once more.", job)
        return False
    if record.restarts > job.restart:
        logger.info("%s: Slurm has queued it again already.", job)
        return True
    preempted = record.requeue and record.preempt is not None
    running = record.state in commands.RUNNING
    # Of a job that is ending only the reason tells its limit from `scancel`, after which it must not come back.
    over = record.state in commands.ENDING and record.reason == "TimeLimit"
    if not (running or over if asked else running and preempted):
        return False
    if asked and not preempted and not moved and launches >= MOST_RESTARTS:
        logger.error(
            "%s is not queued again: it was started %d times in a row without getting any further. Next: a longer --time, or "
            "saves that come sooner (Every(steps=…), run.batches(…)); then sbatch once more.",
            job,
            launches + 1,
        )
        return False
    before()
    try:
        commands.requeue(job.address)
    except SlurmError as error:
        logger.error(
            "%s cannot be queued again: %s Next: #SBATCH --requeue, or sbatch once more.", job, error
        )
        return False
    why = "it was preempted" if preempted and not asked else f"{CONTINUE}=requeue"
    logger.info("%s: queued again (%s); Slurm ends this process and starts the job anew.", job, why)
    return True
