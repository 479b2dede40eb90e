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
        restart: how often Slurm has started it again.
        end: when its time is over, in seconds since the epoch. Slurm tells so from version 23.02 on.

    """

    id: str
    cluster: str = ""
    array: str = ""
    task: int | None = None
    restart: int = 0
    end: float | None = None

    @property
    def name(self) -> str:
        """What a user knows it by: ``4242``, or ``4240_3`` for a task of an array."""
        return f"{self.array}_{self.task}" if self.array and self.task is not None else self.id

    @property
    def address(self) -> str:
        """What Slurm's commands must be given to mean this job alone.

        The last task of an array has the number of the array itself, by which commands mean all tasks:
        `scontrol requeue` with it starts those again that had ended. Every other job is meant by its own
        number: what is queued from within a task inherits the variables of that task's array.
        """
        return self.name if self.array == self.id else self.id

    def __str__(self) -> str:
        """Words like ``Slurm job 4242``, or ``Slurm job 4240_3`` for a task of an array."""
        again = f", restart {self.restart}" if self.restart else ""
        return f"Slurm job {self.name}{again}"


def here(environ: Mapping[str, str] = os.environ) -> Job | None:
    """The job that this process is in; None outside of Slurm."""
    number = environ.get("SLURM_JOB_ID", "")
    if not number.isdecimal():
        return None
    return Job(
        id=number,
        cluster=environ.get("SLURM_CLUSTER_NAME", ""),
        array=environ.get("SLURM_ARRAY_JOB_ID", ""),
        task=_whole(environ.get("SLURM_ARRAY_TASK_ID")),
        restart=_whole(environ.get("SLURM_RESTART_COUNT")) or 0,
        end=_whole(environ.get("SLURM_JOB_END_TIME")),
    )


def output() -> str:
    """The file that this process's standard output goes to, where it goes to a file: the job's log."""
    try:
        path = os.readlink("/proc/self/fd/1")
        return path if os.path.isfile(path) else ""
    except OSError:
        return ""


def _whole(text: str | None) -> int | None:
    return int(text) if text and text.isdecimal() and len(text) < 12 else None
