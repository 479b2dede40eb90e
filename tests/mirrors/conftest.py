"""The tools of the crash tests, and what the logger said."""

import logging
import os
import shutil
import sys
import tempfile

import pytest
from servers.fixtures import _stop_servers, alone, bucket, ceph_bucket, proxied, small_bucket  # noqa: F401

HERE = os.path.dirname(os.path.abspath(__file__))
CRASH = os.path.join(os.path.dirname(HERE), "crash")
sys.path.insert(0, CRASH)


@pytest.fixture
def memory():
    """A folder in memory, where there is one: for what tries the protocol and not the disk."""
    place = tempfile.mkdtemp(prefix="holdfast-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
    yield os.path.realpath(place)
    shutil.rmtree(place)


@pytest.fixture
def said(caplog, monkeypatch):
    """What the logger said."""
    monkeypatch.setattr(logging.getLogger("holdfast"), "propagate", True)
    caplog.set_level(logging.INFO, "holdfast")
    return caplog


@pytest.fixture(scope="module")
def zygote():
    """Forks the processes in which faults are tried."""
    from disk_faults import Zygote

    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([HERE, *([before] if before else [])])
    try:
        zygote = Zygote(
            "holdfast", "numpy", "holdfast.run", "holdfast.payload.writer", "holdfast.payload.reader"
        )
    finally:
        del os.environ["PYTHONPATH"]
        if before is not None:
            os.environ["PYTHONPATH"] = before
    yield zygote
    zygote.close()
