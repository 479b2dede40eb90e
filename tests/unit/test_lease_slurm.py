"""A run's holder on another node: what Slurm says of its job decides, where it says anything."""

import dataclasses
import subprocess

import pytest
from lease_clock import Time

from holdfast.errors import LeaseError
from holdfast.store.holder import encode, myself, process_start

JOB = "JobId=41 JobName=digits\n   JobState={state} Reason=None\n   Requeue=1 Restarts={restarts} ExitCode=0:0\n"


@pytest.fixture
def slurm(scontrol, monkeypatch):
    """Makes this process a task of the cluster `lab`, whose controller says a state of job 41."""
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "lab")

    def say(state, restarts=0):
        scontrol(f"cat <<'END'\n{JOB.format(state=state, restarts=restarts)}END\n")

    return say


def put(run, **changes):
    """Writes the lease of job 41 on another node of the cluster."""
    values = {
        "boot_id": "another",
        "host": "node7",
        "slurm_cluster": "lab",
        "slurm_job": "41",
        "token": "his",
    }
    holder = dataclasses.replace(myself(3), **{**values, "acquired": "2026-11-23T08:31:07Z", **changes})
    (run / "lease-000003").write_bytes(encode(holder))


@pytest.mark.parametrize(
    "state", ["COMPLETED", "FAILED", "CANCELLED by 1000", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "PENDING"]
)
def test_a_dead_jobs_lease_is_taken_over_at_once(tmp_path, slurm, state):
    """A holder whose job has ended, or waits to be started again, is not waited for."""
    slurm(state)
    put(tmp_path)
    clock = Time()
    clock.acquire(tmp_path).release()
    assert clock.now == 1000.0


def test_a_job_that_was_started_again_is_no_longer_its_holder(tmp_path, slurm):
    """A running job with more restarts than the lease says is another life of that job."""
    slurm("RUNNING", restarts=2)
    put(tmp_path, slurm_restart=1)
    clock = Time()
    clock.acquire(tmp_path).release()
    assert clock.now == 1000.0


def test_a_job_that_slurm_has_forgotten_has_ended(tmp_path, slurm, scontrol):
    """A controller forgets only jobs that have ended."""
    scontrol("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    put(tmp_path)
    clock = Time()
    clock.acquire(tmp_path).release()
    assert clock.now == 1000.0


def test_a_job_of_somebody_else_may_only_be_hidden(tmp_path, slurm, scontrol):
    """Where a cluster hides others' jobs (PrivateData=jobs), a colleague's living job is as unknown as one that ended: its beat tells."""
    scontrol("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    put(tmp_path, user="another")
    clock = Time()
    clock.acquire(tmp_path, stale_after=120).release()
    assert clock.now >= 1120.0


def test_a_running_job_keeps_its_run(tmp_path, slurm):
    """A holder whose job runs is not taken over, however still it is: the error names the job."""
    slurm("RUNNING")
    put(tmp_path, slurm_task="7")
    clock = Time()
    with pytest.raises(
        LeaseError, match=r"Slurm job 41, array task 7\).* Slurm says that this job is running"
    ):
        clock.acquire(tmp_path)
    assert clock.now == 1000.0
    with pytest.raises(LeaseError):
        clock.acquire(tmp_path, wait=1000)
    assert clock.now == pytest.approx(2000, abs=2)


def test_a_holder_is_named_with_its_restart():
    """A job that was started again is told from its former self in every message."""
    holder = dataclasses.replace(myself(3), slurm_job="41", slurm_task="7", slurm_restart=2)
    assert "(Slurm job 41, array task 7, restart 2)" in holder.describe()


def test_a_job_that_is_just_ending_is_waited_for(tmp_path, slurm):
    """The next task of an array, which may start while the last one is still ending, does not fail over it."""
    slurm("COMPLETING")
    put(tmp_path)
    clock = Time()
    clock.events = [
        (1003, lambda: put(tmp_path, beat=1)),
        (1007, lambda: put(tmp_path, beat=2)),
        (1012, lambda: slurm("TIMEOUT")),
    ]
    clock.acquire(tmp_path).release()
    assert 1012 <= clock.now <= 1018
    assert "whose job is just ending" in clock.said[0]


@pytest.fixture
def neighbour():
    """What the lease of a process of job 41 says that lives on this very node."""
    process = subprocess.Popen(["sleep", "60"])
    here = myself(1)
    born = process_start(process.pid)
    yield process, {"boot_id": here.boot_id, "host": here.host, "pid": process.pid, "process_start": born}
    process.kill()
    process.wait()


@pytest.mark.parametrize("state", ["COMPLETING", "TIMEOUT", "CANCELLED"])
def test_a_process_that_outlives_its_job_for_a_moment_is_waited_for(tmp_path, slurm, neighbour, state):
    """On one node the next task starts while the last one is still saving: it waits until that is gone, not longer."""
    process, lease = neighbour
    slurm(state)
    put(tmp_path, **lease)
    clock = Time()
    clock.events = [(1007, process.kill), (1007, process.wait)]
    clock.acquire(tmp_path).release()
    assert 1007 <= clock.now <= 1009
    assert "just ending" in clock.said[0]


def test_a_process_that_stays_after_its_job_keeps_its_run(tmp_path, slurm, neighbour):
    """One that lives on long after its job is no longer waited for, and keeps its run: it may be training still."""
    slurm("COMPLETED")
    put(tmp_path, **neighbour[1])
    clock = Time()
    with pytest.raises(LeaseError, match="that is alive"):
        clock.acquire(tmp_path, stale_after=40)
    assert 1040 <= clock.now <= 1042


def test_a_living_process_of_a_running_job_is_refused_at_once(tmp_path, slurm, neighbour):
    """Where holder and job both live, nothing is waited for."""
    slurm("RUNNING")
    put(tmp_path, **neighbour[1])
    clock = Time()
    with pytest.raises(LeaseError, match="Slurm job 41"):
        clock.acquire(tmp_path)
    assert clock.now == 1000.0


@pytest.mark.parametrize(
    "changes",
    [{"slurm_cluster": "other"}, {"slurm_cluster": ""}, {"slurm_job": ""}, {"slurm_job": "42"}],
    ids=["other cluster", "unknown cluster", "no job", "own job"],
)
def test_what_slurm_says_of_others_proves_nothing(tmp_path, slurm, changes):
    """A job of another cluster, and the contender's own, say nothing about the holder: only its beat tells."""
    slurm("COMPLETED")
    put(tmp_path, **changes)
    clock = Time()
    clock.acquire(tmp_path, stale_after=40).release()
    assert clock.now >= 1040


def test_outside_of_a_job_the_controller_tells_its_cluster(tmp_path, scontrol, monkeypatch):
    """A contender on a login node is of the cluster that its controller names."""
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.delenv("SLURM_CLUSTER_NAME", raising=False)
    job = JOB.format(state="FAILED", restarts=0)
    scontrol(f"[ \"$2\" = config ] && echo 'ClusterName = lab' && exit\ncat <<'END'\n{job}END\n")
    put(tmp_path)
    clock = Time()
    clock.acquire(tmp_path).release()
    assert clock.now == 1000.0


def test_a_controller_that_does_not_answer_is_no_proof(tmp_path, slurm, scontrol):
    """Where Slurm fails to answer, a silent holder is taken over after its time, as without Slurm."""
    scontrol("exit 1")
    put(tmp_path)
    clock = Time()
    clock.acquire(tmp_path, stale_after=40).release()
    assert clock.now >= 1040
