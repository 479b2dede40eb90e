"""Tests in a real Slurm, which is private to each process that runs tests and stops with it."""

import os
import shutil

import pytest

import slurm


@pytest.fixture(scope="session")
def _lab():
    lacking = slurm.lacking()
    if lacking:
        # `make packages` installs it where it can: there, our own machines must not pass without these tests.
        installable = os.getuid() == 0 and shutil.which("apt-get")
        if os.environ.get("CI") and installable:
            pytest.fail(f"tests/packages.sh should have installed Slurm: {lacking}", pytrace=False)
        pytest.skip(lacking)
    slurm.start()
    yield
    slurm.stop()


@pytest.fixture
def lab(_lab):
    """A Slurm without jobs, asked by the functions in `slurm.py`."""
    yield
    slurm.clear()
