"""Fixtures: servers that start when a test first asks for them and stop with the process that runs the tests.

`store` is a new, empty bucket on each kind of server in turn; `moto_store` one on moto, `ceph_store` one on Ceph,
`azurite_store` a container on Azurite, `gs_store` a bucket on what answers like Google's.
With them the process's environment leads every client there and nowhere else. `proxied` puts faults between.
"""

import contextlib
import os
import shutil

import pytest

from servers import stores
from servers.faultproxy import FaultProxy

KINDS = ("moto", "ceph", "azurite", "gs")
_running = {}


def server(kind):
    """The server of this process of that kind; a test is skipped, with the reason, where it cannot be had."""
    reason = stores.lacking(kind)
    if reason:
        # `make packages` fetches it where it can: there, our own machines must not pass without these tests.
        tools = {"ceph": "apt-get", "azurite": "npm"}
        if os.environ.get("CI") and os.getuid() == 0 and shutil.which(tools[kind]):
            reason = f"{reason}; the network may have failed"
        pytest.skip(reason)
    if kind not in _running:
        match kind:
            case "moto":
                _running[kind] = stores.S3()
            case "ceph":
                _running[kind] = stores.Ceph()
            case "azurite":
                _running[kind] = stores.Azurite()
            case "gs":
                _running[kind] = stores.Google(server("moto"))
    return _running[kind]


@pytest.fixture(scope="session", autouse=True)
def _stop_servers():
    yield
    while _running:
        _running.popitem()[1].stop()


@pytest.fixture
def alone(monkeypatch):
    """No client finds credentials, endpoints or proxies of whoever runs the tests, nor asks the network for any."""
    for name in list(os.environ):
        if name.startswith(stores.REAL) or name.upper() in stores.PROXIES:
            monkeypatch.delenv(name)
    for name, value in stores.HARMLESS.items():
        monkeypatch.setenv(name, value)


def _new(kind, monkeypatch):
    made = stores.Bucket(server(kind))
    for name, value in made.environ().items():
        monkeypatch.setenv(name, value)
    return made


@pytest.fixture(params=KINDS)
def store(request, alone, monkeypatch):
    """A bucket on each kind of server in turn."""
    return _new(request.param, monkeypatch)


@pytest.fixture
def moto_store(alone, monkeypatch):
    """A bucket on moto, which is there wherever the tests run: for small objects."""
    return _new("moto", monkeypatch)


@pytest.fixture
def ceph_store(alone, monkeypatch):
    """A bucket on a real gateway: for large objects, signatures and digests."""
    return _new("ceph", monkeypatch)


@pytest.fixture
def azurite_store(alone, monkeypatch):
    """A container on Microsoft's emulator."""
    return _new("azurite", monkeypatch)


@pytest.fixture
def gs_store(alone, monkeypatch):
    """A bucket on what answers as Google Cloud Storage does."""
    return _new("gs", monkeypatch)


@pytest.fixture(params=["ceph", "azurite", "gs"])
def parted_store(request):
    """A bucket of each kind in which an upload that was interrupted goes on by part."""
    return request.getfixturevalue(f"{request.param}_store")


@pytest.fixture(params=["ceph", "azurite"])
def real_store(request):
    """A bucket on a server of each kind that looks at what it gets, and where uploads go on by part."""
    return request.getfixturevalue(f"{request.param}_store")


@pytest.fixture(params=["moto", "azurite"])
def light_store(request):
    """The same on those that are there soon."""
    return request.getfixturevalue(f"{request.param}_store")


@pytest.fixture
def proxied(monkeypatch):
    """Puts a proxy between clients and a store from now on: `proxy = proxied(store)`."""
    with contextlib.ExitStack() as stack:

        def put_between(store):
            proxy = stack.enter_context(FaultProxy(store.server.endpoint))
            for name, value in store.environ(proxy.url).items():
                monkeypatch.setenv(name, value)
            return proxy

        yield put_between
