"""The private Slurm itself: what the other tests of this folder stand on."""

import os
import subprocess
import sys
import textwrap

import pytest

import slurm


def test_a_job_runs_with_this_python_and_a_pretended_gpu(lab, tmp_path):
    """A script's `python` is the one that runs the tests, and Slurm gives it the GPU that was asked for."""
    script = "#!/bin/bash\npython -c 'import sys; print(sys.prefix)'\necho GPU $CUDA_VISIBLE_DEVICES.\n"
    job = slurm.sbatch(script, "--partition=gpu", "--gres=gpu:1", "--output=%j.out", cwd=tmp_path)
    assert slurm.wait_until(job) == "COMPLETED"
    assert slurm.output_of(job) == f"{sys.prefix}\nGPU 0.\n"


def test_a_requeued_job_comes_back_under_its_number(lab, tmp_path):
    """A job that is requeued starts again, with its number and a restart count."""
    script = '#!/bin/bash\necho "restart ${SLURM_RESTART_COUNT:-0}"\n[ -n "$SLURM_RESTART_COUNT" ] || exec sleep 300\n'
    job = slurm.sbatch(script, "--output=%j.out", "--open-mode=append", cwd=tmp_path)
    slurm.wait_for_line(tmp_path / f"{job}.out", "restart 0")
    slurm.requeue(job)
    assert slurm.wait_until(job) == "COMPLETED"
    assert "restart 1\n" in slurm.output_of(job)
    assert slurm.record(job)["Restarts"] == "1"


def test_what_is_left_of_a_job_dies_with_its_first_process(lab, tmp_path):
    """A program that a shell started dies with the shell, as on clusters, and gets no time to save."""
    program = "import os, signal, time; signal.signal(signal.SIGTERM, lambda *_: None); print(os.getpid()); time.sleep(99)"
    job = slurm.sbatch(
        f'#!/bin/bash\npython -u -c "{program}"\necho after\n', "--output=%j.out", cwd=tmp_path
    )
    pid = int(slurm.wait_for_line(tmp_path / f"{job}.out", "\n"))
    slurm.cancel(job)
    assert slurm.wait_until(job) == "CANCELLED"
    slurm.until(lambda: not os.path.exists(f"/proc/{pid}"), "the program to be gone")
    assert "after" not in slurm.output_of(job)


@pytest.mark.parametrize("end", ["os._exit(1)", "os.kill(os.getpid(), 9)", "raise KeyboardInterrupt"])
def test_it_is_stopped_however_the_tests_end(lab, end):
    """Tests that are interrupted, killed or out of time leave no Slurm behind, and none of its jobs."""
    program = textwrap.dedent(f"""
        import os, slurm
        slurm.start()
        print(slurm._lab["place"], flush=True)
        job = slurm.command("sbatch", "--parsable", "--output=/dev/null", "--wrap=exec sleep 300").strip()
        slurm.wait_until(job, "RUNNING")
        {end}
    """)
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=slurm.HERE,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode
    place = done.stdout.strip()
    assert os.path.basename(place).startswith("holdfast-slurm-"), done.stderr
    slurm.until(lambda: not os.path.exists(place), "the folder to be gone")
    assert [
        pid for pid in os.listdir("/proc") if slurm._environment(pid).get("SLURM_CONF", "").startswith(place)
    ] == []
