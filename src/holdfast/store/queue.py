"""What Slurm says of a run's holder that cannot be seen from here: on another node, or in a container."""

from __future__ import annotations

from typing import Literal

from holdfast.errors import SlurmError
from holdfast.slurm import commands
from holdfast.store.holder import Holder

Word = Literal["dead", "running", "ending", "unknown"]


def ask_slurm(holder: Holder, me: Holder) -> Word:
    """Whether the holder's job still runs; ``unknown`` where that says nothing about the holder, or nobody answers.

    Slurm ends every process of a job before the job counts as ended; and one that outlives its job for
    all that (a node that was cut off) publishes nothing, since its lease is taken.

    Args:
        holder: who is named by the lease.
        me: the contender. Within one job, its running proves nothing.

    """
    if not holder.slurm_job or not holder.slurm_cluster or holder.slurm_job == me.slurm_job:
        return "unknown"
    try:
        # Numbers of jobs are those of one cluster.
        if holder.slurm_cluster != (me.slurm_cluster or commands.settings().get("ClusterName", "")):
            return "unknown"
        record = commands.job(holder.slurm_job)
    except SlurmError:
        return "unknown"
    if record is None:
        # What ran while its lease was written was known, and is forgotten some time after its end. But a cluster
        # may hide the jobs of others (PrivateData=jobs), and then says the same of them.
        return "dead" if holder.user == me.user else "unknown"
    if record.restarts > holder.slurm_restart or record.state in commands.ENDED | commands.WAITING:
        return "dead"
    if record.state in commands.ENDING:
        return "ending"
    return "running" if record.state in commands.RUNNING else "unknown"
