"""The batch scripts on the pages do what the pages say, in a real Slurm."""

import re
from pathlib import Path

import pytest

import slurm

ROOT = Path(slurm.HERE).parents[1]
SCRIPT = re.compile(r"^```bash\n(#!/bin/bash\n.*?)^```$", re.M | re.S)
PAGES = [ROOT / "README.md", ROOT / "docs" / "slurm.md"]
SCRIPTS = [
    pytest.param(found[1], id=f"{page.stem}-{page.read_text().count(chr(10), 0, found.start()) + 1}")
    for page in PAGES
    for found in SCRIPT.finditer(page.read_text(encoding="utf-8"))
]
TRAIN = """
import sys
import holdfast

run = holdfast.Run("run")
for step in run.steps(int(sys.argv[1]) if len(sys.argv) > 1 else 40):
    run.state["done"] = step
"""


@pytest.mark.parametrize("text", SCRIPTS)
def test_a_script_of_a_page_trains(lab, tmp_path, text):
    """Each batch script that a page shows is taken by Slurm, and its tasks end well and leave one whole run."""
    for name in ("train.py", "steps.py"):
        (tmp_path / name).write_text(TRAIN)
    # Where there is no container to be started, a stand-in starts what would be in it.
    (tmp_path / "apptainer").write_text('#!/bin/sh\nexport "$3"\nshift 4\nexec "$@"\n')
    (tmp_path / "apptainer").chmod(0o755)
    job = slurm.sbatch(text, "--partition=gpu", cwd=tmp_path, PATH=f"{tmp_path}:{slurm.environ()['PATH']}")
    states = slurm.wait_for_array(job) if "--array" in text else {"": slurm.wait_until(job)}
    logs = "".join(path.read_text() for path in tmp_path.glob("*.out")) + "".join(
        path.read_text() for path in tmp_path.glob("*.err")
    )
    assert set(states.values()) == {"COMPLETED"}, logs
    assert "new run" in logs
    assert "warning" not in logs
    if len(states) > 1 and "SLURM_ARRAY_TASK_ID" not in text:
        assert logs.count("complete at") == len(states) - 1
