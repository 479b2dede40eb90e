"""A shell between Slurm and a training: found through the system's list of processes, with its traps."""

import os
import signal

import pytest

from holdfast.slurm import shell

SCRIPT = "#!/bin/bash\n#SBATCH --time=10 {words}\npython train.py\n"


@pytest.fixture
def ancestors(tmp_path, monkeypatch):
    """Makes a list of processes: those above this one, the nearest first, as (name, signals caught, script)."""
    monkeypatch.setattr(os, "getppid", lambda: 101)

    def make(*processes):
        for number, (name, catches, script) in enumerate(processes, 101):
            folder = tmp_path / str(number)
            folder.mkdir()
            mask = sum(1 << (caught - 1) for caught in catches)
            parent = number + 1 if number - 100 < len(processes) else 1
            (folder / "status").write_text(f"Name:\t{name}\nPPid:\t{parent}\nSigCgt:\t{mask:016x}\n")
            if script is not None:
                (tmp_path / f"script{number}").write_text(script)
                (folder / "cmdline").write_bytes(f"/bin/bash\0{tmp_path}/script{number}\0".encode())
        return shell.find(str(tmp_path))

    return make


STARTER = ("slurmstepd", (), None)


def test_what_slurm_started_itself_gets_its_signals(ancestors):
    """A python that the batch shell was replaced by, and a task of srun, have no shell above them."""
    assert ancestors(STARTER) is None


def test_a_shell_is_found_at_any_distance(ancestors):
    """A program that was started by another program of the batch shell stands below that shell, too."""
    found = ancestors(("uv", (), None), ("slurm_script", (17,), SCRIPT.format(words="")), STARTER)
    assert found == shell.Shell(frozenset({17}), None)


def test_a_script_that_goes_by_its_own_name_is_a_shell(ancestors):
    """`./train.sh` is a process of that name; it is known by the shell that runs it."""
    found = ancestors(("train.sh", (17,), "#!/bin/bash\npython train.py\n"), STARTER)
    assert found == shell.Shell(frozenset({17}), None)


def test_of_several_shells_each_has_to_pass_a_signal_on(ancestors):
    """A script that has no trap, called by one that has, dies of what that passes on."""
    outer = ("slurm_script", (signal.SIGTERM, 17), SCRIPT.format(words="--signal=B:USR1@60"))
    found = ancestors(("train.sh", (17,), "python train.py\n"), outer, STARTER)
    assert found == shell.Shell(frozenset({17}), ("USR1", 60))


@pytest.mark.parametrize("processes", [[("bash", (), None), ("sshd", (), None)], []])
def test_without_slurm_above_there_is_nothing_to_say(ancestors, processes):
    """In a container or an interactive session Slurm's own process is not seen, and nothing is said."""
    assert ancestors(*processes) is None


@pytest.mark.parametrize(
    ("words", "warned"),
    [
        ("--signal=B:USR1@60", ("USR1", 60)),
        ("--signal B:SIGUSR1@120", ("USR1", 120)),
        ("--signal=RB:10@30", ("10", 30)),
        ("--signal=B:TERM", ("TERM", 60)),
        ("--signal=USR1@60", None),
        ("--signal=R:USR1@60", None),
        ("--comment=signal=B:USR1", None),
    ],
)
def test_a_warning_that_only_the_shell_gets(ancestors, words, warned):
    """`--signal=B:…` is read as Slurm reads it, off the script that the shell runs."""
    found = ancestors(("bash", (17,), SCRIPT.format(words=words)), STARTER)
    assert found is not None and found.warned == warned
    assert found.dies_early is (warned is not None)


def test_a_trap_catches(ancestors):
    """A shell that has a trap for a signal does not die of it."""
    caught = (signal.SIGUSR1, signal.SIGTERM, signal.SIGCHLD)
    found = ancestors(("bash", caught, SCRIPT.format(words="--signal=B:USR1@60")), STARTER)
    assert found is not None and signal.SIGTERM in found.catches
    assert not found.dies_early


def test_a_script_that_is_no_file_is_not_read(tmp_path, monkeypatch):
    """A shell that reads its script from a pipe keeps it: nothing is taken out of it, and nothing waited for."""
    monkeypatch.setattr(os, "getppid", lambda: 101)
    os.mkfifo(tmp_path / "script101")
    keep = os.open(tmp_path / "script101", os.O_RDWR)
    try:
        os.write(keep, b"#SBATCH --signal=B:USR1@60\n")
        folder = tmp_path / "101"
        folder.mkdir()
        (folder / "status").write_text("Name:\tbash\nPPid:\t102\nSigCgt:\t0000000000000000\n")
        (folder / "cmdline").write_bytes(f"/bin/bash\0{tmp_path}/script101\0".encode())
        (tmp_path / "102").mkdir()
        (tmp_path / "102" / "status").write_text("Name:\tslurmstepd\nPPid:\t1\nSigCgt:\t0000000000000000\n")
        assert shell.find(str(tmp_path)) == shell.Shell(frozenset(), None)
        assert os.read(keep, 100) == b"#SBATCH --signal=B:USR1@60\n"
    finally:
        os.close(keep)


def test_the_real_list_can_be_read():
    """The processes above this one are read without an error, whatever they are."""
    assert shell.find() is None or isinstance(shell.find(), shell.Shell)
