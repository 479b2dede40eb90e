"""The batch script of `holdfast submit`, run by bash: signals, exit codes, and what stops it before it begins."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest

from holdfast.jobs.script import HOPELESS, Plan, render
from holdfast.jobs.words import read_options

# Needs a moment after a signal, as a save does, and tells which ones came.
TRAINING = """
import signal, sys, time
came = []
for name in ("SIGTERM", "SIGUSR1", "SIGUSR2"):
    signal.signal(getattr(signal, name), lambda number, frame: came.append(signal.Signals(number).name))
print("begun", flush=True)
while not {"SIGTERM", "SIGUSR1"} & set(came):
    time.sleep(0.02)
time.sleep(0.5)
print(*sorted(set(came)), "saved", flush=True)
sys.exit(75)
"""


@pytest.fixture
def job(tmp_path):
    """Runs a script as Slurm would, with a gate that ends with the code in the environment."""
    gate = tmp_path / "gate"
    gate.write_text('#!/bin/sh\nexit "${GATE:-1}"\n')
    gate.chmod(0o755)
    run = tmp_path / "run"
    (run / "submitted" / "s").mkdir(parents=True)

    def start(command, *, mode="array", tasks=3, number=1, arguments=(), gate_code=1, **more):
        plan = Plan(
            submission="s",
            run=str(run),
            directory=more.pop("directory", str(tmp_path)),
            command=tuple(command),
            options=tuple(read_options(more.pop("options", []))),
            mode=mode,
            tasks=tasks,
            python=str(gate),
            written="now",
            **more,
        )
        script = tmp_path / "script.sh"
        script.write_bytes(os.fsencode(render(plan)))
        environ = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
        environ |= {"GATE": str(gate_code), "SLURM_JOB_ID": "77", "SLURM_JOB_END_TIME": "1"}
        if mode == "array":
            environ |= {
                "SLURM_ARRAY_JOB_ID": "70",
                "SLURM_ARRAY_TASK_ID": str(number),
                "SLURM_ARRAY_TASK_MAX": str(tasks),
            }
        return subprocess.Popen(
            ["bash", str(script), *arguments],
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    start.ended = run / "submitted" / "s" / "ended"
    return start


def code_of(process):
    said, errors = process.communicate(timeout=60)
    return process.returncode, said, errors


def python(code):
    return [sys.executable, "-c", code]


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_signal_to_the_shell_reaches_the_command(job, name):
    """SIGTERM and SIGUSR1 to the script reach the command, and the script lives until that has saved."""
    process = job(python(TRAINING))
    assert process.stdout.readline() == "begun\n"
    process.send_signal(getattr(signal, name))
    code, said, errors = code_of(process)
    assert said == f"{name} saved\n", errors
    assert code == 0
    assert re.fullmatch(r"1 77 0 \d+ \d+ 75 command\n", job.ended.read_text())


def test_a_second_signal_changes_nothing(job):
    """SIGUSR2, then SIGTERM twice during the save: all reach the command, and its own code is what counts."""
    process = job(python(TRAINING), number=3)
    assert process.stdout.readline() == "begun\n"
    for name in (signal.SIGUSR2, signal.SIGTERM, signal.SIGTERM):
        process.send_signal(name)
        time.sleep(0.1)
    code, said, _ = code_of(process)
    assert (code, said) == (75, "SIGTERM SIGUSR2 saved\n")


@pytest.mark.parametrize(
    ("ends", "settings", "expected"),
    [
        (0, {}, 0),
        (1, {}, 1),
        (75, {"number": 2}, 0),
        (75, {"number": 3}, 75),
        (75, {"mode": "chain", "arguments": ["2"]}, 0),
        (75, {"mode": "chain", "arguments": ["3"]}, 75),
        (75, {"mode": "chain"}, 0),
        (75, {"mode": "requeue", "tasks": 1}, 75),
        (9, {"mode": "requeue", "tasks": 1}, 9),
    ],
)
def test_exit_codes(job, ends, settings, expected):
    """The script ends with the command's code; 75 becomes 0 where another job continues, and only there."""
    code, _, errors = code_of(job(python(f"raise SystemExit({ends})"), **settings))
    assert code == expected, errors
    assert job.ended.read_text().split()[5:] == [str(ends), "command"]


def test_what_kills_the_command_is_told(job):
    """A command that is killed ends the script with 128 plus the signal's number, as a shell says it."""
    code, _, _ = code_of(job(python("import os; os.kill(os.getpid(), 9)")))
    assert code == 137


@pytest.mark.parametrize(("gate_code", "expected"), [(0, 0), (HOPELESS, 1)])
def test_the_gate_ends_the_job(job, gate_code, expected):
    """When there is nothing to do the job ends with 0, and where it is hopeless with 1, before the command runs."""
    code, said, _ = code_of(job(python("print('ran')"), gate_code=gate_code))
    assert (code, said) == (expected, "")
    assert job.ended.read_text().split()[5:] == [str(expected), "gate"]


@pytest.mark.parametrize("gate_code", [1, 2, 5, 13, 126, 127])
def test_a_gate_that_fails_keeps_nobody_out(job, gate_code):
    """Whatever else the gate ends with, the command runs."""
    assert code_of(job(python("print('ran')"), gate_code=gate_code))[:2] == (0, "ran\n")


def test_setup_comes_before_the_command(job, tmp_path):
    """Setup lines run in the submit directory, the command sees what they set, and a test in one of them may fail."""
    tools = 'module() { echo module "$@"; }'
    code, said, errors = code_of(
        job(
            python("import os; print(os.environ['FROM_SETUP'], os.getcwd())"),
            setup=(tools, "module load 'a b'", "export FROM_SETUP='x y'", "[ -f nowhere ] && echo never"),
        )
    )
    assert (code, said) == (0, f"module load a b\nx y {tmp_path}\n"), errors


def test_modules_and_conda_are_written_as_people_write_them(job, tmp_path):
    """--module and --conda become the lines that a person would write."""
    process = job(python(""), modules=("cuda/12", "a b"), conda="ml")
    code_of(process)
    text = (tmp_path / "script.sh").read_text()
    assert "\nmodule load cuda/12\nmodule load 'a b'\n" in text
    assert '\neval "$(conda shell.bash hook)"\nconda activate ml\n' in text


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"setup": ("false",)}, "false failed"), ({"directory": "/nowhere"}, "cd /nowhere failed")],
)
def test_what_fails_before_the_command_ends_the_job(job, settings, words):
    """A setup line that fails, or a directory that is gone, ends the job with a line that says so."""
    code, said, errors = code_of(job(python("print('ran')"), **settings))
    assert (code, said) == (1, "")
    assert f"holdfast: the job cannot begin: {words}" in errors
    assert job.ended.read_text().split()[5:] == ["1", "setup"]


def test_a_signal_before_the_command_ends_the_job(job):
    """SIGTERM during the setup ends the job with 75 without starting the command; SIGUSR2 does not."""
    run = python("print('ran')")
    assert code_of(job(run, setup=("echo begun", "kill -TERM $$"), number=3))[:2] == (75, "begun\n")
    assert code_of(job(run, setup=("kill -USR2 $$",)))[:2] == (0, "ran\n")


def test_the_environment_says_how_the_training_goes_on(job):
    """Only a job that requeues itself has HOLDFAST_CONTINUE; each has its submission's name."""
    show = python("import os; print(os.environ.get('HOLDFAST_CONTINUE'), os.environ['HOLDFAST_SUBMISSION'])")
    assert code_of(job(show, mode="requeue", tasks=1))[1] == "requeue s\n"
    os.environ["HOLDFAST_CONTINUE"] = "requeue"
    try:
        assert code_of(job(show))[1] == "None s\n"
    finally:
        del os.environ["HOLDFAST_CONTINUE"]


def test_the_end_of_the_job_is_asked_for(job, tmp_path, monkeypatch):
    """Where Slurm does not say when the job ends, squeue is asked for this task alone."""
    squeue = tmp_path / "squeue"
    squeue.write_text(
        f'#!/bin/sh\necho "$@" >{tmp_path}/asked\n[ "$SLURM_TIME_FORMAT" = %s ] && echo 1234567890\n'
    )
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    show = python("import os; print(os.environ.get('SLURM_JOB_END_TIME'))")
    process = job(show, setup=("unset SLURM_JOB_END_TIME",))
    code, said, _ = code_of(process)
    assert (code, said) == (0, "1234567890\n")
    assert "--jobs=70_1 " in (tmp_path / "asked").read_text()


def test_every_directive_comes_before_the_first_command(job, tmp_path):
    """sbatch reads options up to the first command, and nothing else in the script looks like one."""
    code_of(job(["true", "a\n#SBATCH --time=99"], options=["--mem=1G", "-p", "gpu"]))
    lines = (tmp_path / "script.sh").read_text().splitlines()
    assert lines[0] == "#!/bin/bash"
    assert (
        [line for line in lines if line.startswith("#SBATCH")]
        == lines[2:4]
        == ["#SBATCH --mem=1G", "#SBATCH -p gpu"]
    )


def test_bash_finds_no_fault_with_the_script(job, tmp_path):
    """bash finds nothing to complain of in a script with everything in it."""
    code_of(job(["true"], modules=("m",), conda="c", setup=("true",), mode="requeue", tasks=1))
    done = subprocess.run(
        ["bash", "-n", str(tmp_path / "script.sh")], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert shlex.quote(str(tmp_path / "run")) in (tmp_path / "script.sh").read_text()
