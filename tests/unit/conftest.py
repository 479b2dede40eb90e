"""What several unit tests share."""

import os
import stat
import textwrap

import pytest


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
