"""The Slurm job that a process is in, read off its environment."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One job as its processes see it. What the environment does not tell is empty or None.

    Attributes:
        id: its own number; each task of an array has one.
        cluster: the name of the cluster.
        array: the number of the job array that it is a task of.
        task: which task of the array it is.
        last_task: the highest task number of the array.
        restart: how often Slurm has started it again.
        step: the step of `srun` that the process is in; empty in the batch script itself.
        end: when its time is over, in seconds since the epoch. Slurm tells so from version 23.02 on.

    """

    id: str
    cluster: str = ""
    array: str = ""
    task: int | None = None
    last_task: int | None = None
    restart: int = 0
    step: str = ""
    end: float | None = None

    @property
    def address(self) -> str:
        """What Slurm's commands must be given to mean this job alone.

        The last task of an array has the number of the array itself, by which commands mean all tasks:
        `scontrol requeue` with it starts those again that had ended.
        """
        return f"{self.array}_{self.task}" if self.array and self.task is not None else self.id

    def __str__(self) -> str:
        """Words like ``Slurm job 4242``, or ``Slurm job 4240_3`` for a task of an array."""
        again = f", restart {self.restart}" if self.restart else ""
        return f"Slurm job {self.address}{again}"

    @property
    def more_to_come(self) -> bool:
        """Whether the array has tasks with a higher number."""
        return self.task is not None and self.last_task is not None and self.task < self.last_task


def here(environ: Mapping[str, str] = os.environ) -> Job | None:
    """The job that this process is in; None outside of Slurm."""
    number = environ.get("SLURM_JOB_ID", "")
    if not number.isdecimal():
        return None
    step = environ.get("SLURM_STEP_ID", "")
    return Job(
        id=number,
        cluster=environ.get("SLURM_CLUSTER_NAME", ""),
        array=environ.get("SLURM_ARRAY_JOB_ID", ""),
        task=_whole(environ.get("SLURM_ARRAY_TASK_ID")),
        last_task=_whole(environ.get("SLURM_ARRAY_TASK_MAX")),
        restart=_whole(environ.get("SLURM_RESTART_COUNT")) or 0,
        # The batch script is a step to Slurm, too, by a number that no srun has.
        step=step if step.isdecimal() and int(step) < _SPECIAL_STEPS else "",
        end=_whole(environ.get("SLURM_JOB_END_TIME")),
    )


def output() -> str:
    """The file that this process's standard output goes to, where it goes to a file: the job's log."""
    try:
        path = os.readlink("/proc/self/fd/1")
        return path if os.path.isfile(path) else ""
    except OSError:
        return ""


_SPECIAL_STEPS = 0xFFFFFFF0


def _whole(text: str | None) -> int | None:
    return int(text) if text and text.isdecimal() and len(text) < 12 else None
