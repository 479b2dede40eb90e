"""Every safeguard is missed by a named test as soon as it is taken out of the code."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest
from safeguards import SAFEGUARDS

HOME = pathlib.Path(__file__).parents[2]
# Hypothesis' plugin imports all of it, which takes longer than most of these tests, few of which use it.
WITHOUT = ["-p", "no:cacheprovider", "-p", "no:hypothesispytest", "-p", "no:xdist"]


@pytest.mark.parametrize("safeguard", SAFEGUARDS, ids=lambda safeguard: safeguard.name.replace(" ", "-"))
def test_without_it_a_test_fails(safeguard, tmp_path, tried):
    """A copy of the code without the safeguard fails the test that stands for it."""
    shutil.copytree(HOME / "src" / "holdfast", tmp_path / "holdfast")
    file = tmp_path / "holdfast" / safeguard.file
    text = file.read_text("utf-8")
    assert text.count(safeguard.code) == 1, (
        f"{safeguard.file} has changed; say here what the safeguard is now"
    )
    file.write_text(text.replace(safeguard.code, safeguard.without), "utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-q", *WITHOUT, *safeguard.test.split()],
        cwd=HOME,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    found = "\n".join(done.stdout.splitlines()[-20:])
    assert done.returncode == 1, (
        f"{safeguard.test} did not fail without: {safeguard.name}\n{found}{done.stderr}"
    )
    assert " failed" in found, found
    tried("safeguards")


def test_the_page_lists_them_all():
    """The page on the promises names each safeguard, and the test that misses it."""
    page = (HOME / "docs" / "promises.md").read_text("utf-8")
    rows = [line for line in page.partition("## The safeguards")[2].splitlines() if line.startswith("| ")][1:]
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows] == [one.name for one in SAFEGUARDS]
    assert all(
        f"`{one.test.removeprefix('tests/')}`" in row for row, one in zip(rows, SAFEGUARDS, strict=True)
    )


def test_a_copy_is_what_is_tested(tmp_path):
    """The copy comes before the installed package, so that what is taken out there is gone."""
    shutil.copytree(HOME / "src" / "holdfast", tmp_path / "holdfast")
    asked = "import holdfast, sys; print(holdfast.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", asked],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip().startswith(str(tmp_path))
