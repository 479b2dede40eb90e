"""The tools of the crash tests, and what the logger said."""

import itertools
import logging
import os
import shutil
import sys
import tempfile

import pytest
from servers.fixtures import (  # noqa: F401
    _stop_servers,
    alone,
    azurite_store,
    ceph_store,
    gs_store,
    light_store,
    moto_store,
    parted_store,
    proxied,
    real_store,
    store,
)

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
            *("holdfast", "numpy", "holdfast.run", "holdfast.payload.writer", "holdfast.payload.reader"),
            *(
                "holdfast.mirrors.bucket",
                "holdfast.objects.upload",
                "obstore.store",
                "obstore.auth.boto3",
                "asyncio",
            ),
        )
    finally:
        del os.environ["PYTHONPATH"]
        if before is not None:
            os.environ["PYTHONPATH"] = before
    yield zygote
    zygote.close()


# -- an object store -----------------------------------------------------------------------------------

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def moto():
    """A server that speaks S3, in this process; gives its endpoint."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def s3(moto, monkeypatch):
    """A client of the server's own kind, which goes around Holdfast; the environment leads to that server alone."""
    import boto3

    for name in [name for name in os.environ if name.startswith(("AWS_", "GOOGLE_", "AZURE_", "GCE_"))]:
        monkeypatch.delenv(name)
    for name, value in {
        "AWS_ACCESS_KEY_ID": "AKIAPLANTEDKEY",
        "AWS_SECRET_ACCESS_KEY": "planted+secret/key",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": moto,
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
        "GCE_METADATA_HOST": "127.0.0.1:9",
    }.items():
        monkeypatch.setenv(name, value)
    return boto3.client("s3", endpoint_url=moto, region_name="us-east-1")


@pytest.fixture
def bucket(s3):
    """The name of a new bucket."""
    name = f"bucket-{next(_numbers)}"
    s3.create_bucket(Bucket=name)
    return name
