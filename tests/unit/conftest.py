"""What several unit tests share."""

import os
import stat
import sys
import textwrap

import pytest
from submit_cluster import Cluster


@pytest.fixture
def scontrol(tmp_path, monkeypatch):
    """Puts a `scontrol` of these shell lines first into the search path."""

    def put(lines):
        folder = tmp_path / "commands"
        folder.mkdir(exist_ok=True)
        file = folder / "scontrol"
        file.write_text("#!/bin/sh\n" + textwrap.dedent(lines))
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    return put


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A cluster whose commands come first in the search path; the current directory is an empty one."""
    folder = tmp_path / "bin"
    folder.mkdir()
    home = tmp_path / "home"
    home.mkdir()
    (home / "train.py").write_text("")
    monkeypatch.chdir(home)
    # Not the system's own folders: a real Slurm may be installed there.
    os.symlink("/bin/sh", folder / "sh")
    monkeypatch.setenv("PATH", f"{folder}:{os.path.dirname(sys.executable)}")
    for name in list(os.environ):
        if name.startswith(("SLURM", "SBATCH", "HOLDFAST")):
            monkeypatch.delenv(name)
    return Cluster(folder)
