"""Fixtures of the tests that kill, fail and fill."""

import os
import shutil
import tempfile

import pytest


@pytest.fixture
def memory():
    """A folder in memory, where there is one: for what tries the protocol and not the disk."""
    place = tempfile.mkdtemp(prefix="holdfast-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
    yield os.path.realpath(place)
    shutil.rmtree(place)
