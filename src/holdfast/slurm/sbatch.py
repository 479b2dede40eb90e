"""Handing jobs to Slurm, and what its partitions say of time."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
from collections.abc import Collection, Mapping, Sequence

from holdfast.errors import SlurmError
from holdfast.slurm import commands

PATIENCE = 120.0
"""Seconds; sbatch itself tries for a while when the controller is busy, and a job may be queued meanwhile."""

# Variables that sbatch takes for options, where their names are not those of the options.
_OTHER_NAMES = {
    "SBATCH_ARRAY_INX": "array", "SBATCH_MEM_PER_NODE": "mem", "SBATCH_REQ_SWITCH": "switches",
    "SBATCH_TIMELIMIT": "time", "SBATCH_WAIT4SWITCH": "switches",
}  # fmt: skip
_ALWAYS_OURS = frozenset({"array", "requeue", "no-requeue", "wait"})
# What a job in which sbatch is called has, and the new one must not take for its own.
_OF_A_JOB = (
    "SLURM_JOB_END_TIME",
    "SLURM_JOB_START_TIME",
    "SLURM_ARRAY_",
    "SLURM_RESTART_COUNT",
    "HOLDFAST_SUBMISSION",
    "HOLDFAST_CONTINUE",
)
_OF_THE_CLUSTER = frozenset({"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT"})


@dataclasses.dataclass(frozen=True)
class Partition:
    """A partition; times as Slurm writes them, empty where it has none."""

    name: str
    default: bool
    default_time: str
    max_time: str


def partitions() -> list[Partition]:
    """All partitions of the cluster. Raises `SlurmError`."""
    return read_partitions(commands.run("scontrol", "show", "partition", "--oneliner"))


def read_partitions(text: str) -> list[Partition]:
    """The partitions in what ``scontrol show partition --oneliner`` prints."""
    found = []
    for line in text.splitlines():
        fields = dict(word.split("=", 1) for word in line.split() if "=" in word)
        if "PartitionName" in fields:
            found.append(
                Partition(
                    fields["PartitionName"],
                    fields.get("Default") == "YES",
                    _time(fields.get("DefaultTime")),
                    _time(fields.get("MaxTime")),
                )
            )
    return found


def _time(text: str | None) -> str:
    return "" if text in (None, "NONE", "UNLIMITED", "INFINITE") else str(text)


def available() -> bool:
    return shutil.which("sbatch") is not None


def environment(given: Collection[str], environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What sbatch gets to see: nothing that would win over the options `given` in the script, and no job around it."""
    taken = {*given, *_ALWAYS_OURS}
    inside = "SLURM_JOB_ID" in environ

    def is_kept(name: str) -> bool:
        if name.startswith("SBATCH_"):
            return _option_of(name) not in taken
        if name.startswith(_OF_A_JOB):
            return False
        # srun in the new job would take its tasks, memory and devices from there.
        return not (inside and name.startswith("SLURM_")) or name in _OF_THE_CLUSTER

    return {name: value for name, value in environ.items() if is_kept(name)}


def _option_of(variable: str) -> str:
    return _OTHER_NAMES.get(variable) or variable.removeprefix("SBATCH_").lower().replace("_", "-")


def submit(
    script: str, words: Sequence[str], *, environ: Mapping[str, str], arguments: Sequence[str] = ()
) -> str:
    """Queues a script; the number of the job, or of the array.

    Raises:
        SlurmError: with what sbatch says; or it said nothing that is a number.

    """
    # An output of its own form would not be a number.
    words = ("sbatch", "--parsable", *words, "--", script, *arguments)
    printed = commands.Question(words, environ=environ, patience=PATIENCE).answer()
    number = _number(printed)
    if not number:
        raise SlurmError(
            f"sbatch did not tell the number of the job, but: {printed.strip() or 'nothing'}. Next: look with squeue "
            f"--me whether it is there.",
            command="sbatch",
            said=printed.strip(),
        )
    return number


def _number(printed: str) -> str:
    """The job's number in what sbatch printed, and a site's own script around it; empty without one."""
    # Where there are several clusters: 4242;cluster.
    for form in (r"(\d+)(?:;\S*)?", r"Submitted batch job (\d+)\b.*"):
        for line in reversed(printed.splitlines()):
            if found := re.fullmatch(form, line.strip(), re.ASCII):
                return found[1]
    return ""


def cancel(numbers: Sequence[str]) -> None:
    """Takes jobs out of the queue. Raises `SlurmError`."""
    commands.run("scancel", *numbers)
