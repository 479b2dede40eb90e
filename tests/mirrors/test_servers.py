"""The servers that the tests of mirrors in object stores stand on: what they can, and that nothing else is asked."""

import os
import re
import shutil
import subprocess
import sys
import time

import pytest
from servers import stores
from servers.faultproxy import cut, delay, hang, lost_answer, reset, stall, status, throttle

obstore = pytest.importorskip("obstore")
pytest.importorskip("boto3")


def opened(store, **options):
    from obstore.store import from_url

    return from_url(store.url, **options)


def patient(**options):
    """A store's options for tests: it gives up soon."""
    import datetime

    return {
        "client_options": {
            "timeout": "2s",
            "connect_timeout": "1s",
            "read_timeout": "1s",
            "allow_http": True,
        },
        "retry_config": {
            "max_retries": 2,
            "retry_timeout": datetime.timedelta(seconds=3),
            "backoff": {"init_backoff": datetime.timedelta(milliseconds=1), "base": 2.0},
        },
        **options,
    }


def test_each_server_holds_what_is_put_there(store):
    """Every server takes objects, creates one once, gives ranges, lists and deletes, as a client sees it and beside it."""
    client = opened(store)
    client.put("a/one", b"0123456789", attributes={"holdfast": "x"})
    client.put("a/two", b"x", mode="create")
    with pytest.raises(obstore.exceptions.AlreadyExistsError):
        client.put("a/two", b"y", mode="create")
    assert bytes(client.get_range("a/one", start=2, end=5)) == b"234"
    assert client.get("a/one").attributes["holdfast"] == "x"
    with pytest.raises(FileNotFoundError):
        client.get("a/three")
    found = {item["path"]: item["size"] for batch in client.list("a") for item in batch}
    assert found == store.sizes() == {"a/one": 10, "a/two": 1}
    client.delete("a/two")
    assert store.keys() == ["a/one"]
    assert store.read("a/one") == b"0123456789"
    store.write("b", b"beside")
    assert bytes(client.get("b").bytes()) == b"beside"
    store.remove("b")
    assert store.keys() == ["a/one"]


def test_each_server_takes_an_object_in_parts(store):
    """Every server puts an object of 11 MiB together from its parts."""
    data = os.urandom(11 << 20)
    opened(store).put("large", data, chunk_size=5 << 20, use_multipart=True)
    assert store.read("large") == data
    assert store.uploads() == []


def test_wrong_keys_are_refused(ceph_store):
    """The real gateway looks at signatures: a wrong secret is refused."""
    with pytest.raises(obstore.exceptions.PermissionDeniedError):
        opened(ceph_store, secret_access_key="wrong").put("a", b"x")


def test_a_killed_gateway_comes_back(ceph_store):
    """A gateway that is killed comes back, with all that it held."""
    opened(ceph_store).put("a", b"x")
    ceph_store.server.kill()
    end = time.monotonic() + 60
    while True:
        try:
            assert ceph_store.read("a") == b"x"
            break
        except Exception:
            assert time.monotonic() < end, "it did not come back"


# -- the proxy -----------------------------------------------------------------------------------------


def test_a_proxy_without_faults_changes_nothing(store, proxied):
    """Through the proxy a client sees what it sees without."""
    proxy = proxied(store)
    data = os.urandom(3 << 20)
    opened(store).put("a", data)
    assert bytes(opened(store).get("a").bytes()) == data == store.read("a")
    assert proxy.sent(path="a") >= len(data)
    assert {request.fault for request in proxy.log} == {None}


@pytest.mark.parametrize(
    "fault",
    [status(503), status(429), status(500), hang(), reset(), reset(1000), lost_answer(), delay(0.1)],
    ids=lambda fault: f"{fault.kind}-{fault.value}",
)
def test_a_fault_strikes_as_often_as_it_should(moto_store, proxied, fault):
    """A put whose first request meets a fault comes through by the next one, and the server has it once."""
    proxy = proxied(moto_store)
    proxy.inject(fault, method="PUT")
    opened(moto_store, **patient()).put("a", b"x" * 5000)
    puts = proxy.requests("PUT")
    assert [request.fault for request in puts][:1] == [fault]
    assert len(puts) == (1 if fault.kind == "delay" else 2)
    assert moto_store.sizes() == {"a": 5000}


@pytest.mark.parametrize("fault", [cut(1000), stall(1000)], ids=lambda fault: fault.kind)
def test_an_answer_breaks_off(moto_store, proxied, fault):
    """Of an answer that breaks off, or stands still, the given number of bytes arrives."""
    from botocore.exceptions import HTTPClientError

    moto_store.write("a", b"x" * 5000)
    proxy = proxied(moto_store)
    proxy.inject(fault, times=None)
    client = moto_store.server.client(proxy.url, read_timeout=0.5, retries={"total_max_attempts": 1})
    body = client.get_object(Bucket=moto_store.name, Key="a")["Body"]
    assert body.read(1000 if fault.kind == "stall" else 1) in (b"x" * 1000, b"x")
    with pytest.raises(HTTPClientError, match="timeout" if fault.kind == "stall" else "Connection"):
        body.read()


def test_a_throttled_link_is_slow(moto_store, proxied):
    """A throttled link carries so many bytes per second, there and back."""
    proxy = proxied(moto_store)
    proxy.inject(throttle(200_000), times=None)
    started = time.monotonic()
    opened(moto_store).put("a", b"x" * 60_000)
    opened(moto_store).get("a").bytes()
    assert time.monotonic() - started >= 0.6


def test_a_dead_proxy_comes_back(moto_store, proxied):
    """A proxy that died refuses connections until it is revived, at the same port."""
    proxy = proxied(moto_store)
    client = opened(moto_store, **patient())
    client.put("a", b"x")
    proxy.die()
    with pytest.raises(obstore.exceptions.GenericError):
        client.put("b", b"x")
    proxy.revive()
    client.put("b", b"x")
    assert moto_store.keys() == ["a", "b"]


# -- nothing but loopback ------------------------------------------------------------------------------------

_ASK = """
import sys
from obstore.store import from_url
import boto3
from holdfast.objects.access import Objects
from holdfast.objects.upload import begun
for url in sys.argv[1:]:
    try:
        from_url(url, retry_config={"max_retries": 1}).put("key", b"x")
    except Exception as error:
        print(type(error).__name__)
    try:
        begun(Objects.at(url))
    except Exception as error:
        print(type(error).__name__)
try:
    boto3.client("s3").list_buckets()
except Exception as error:
    print(type(error).__name__)
print("asked")
"""


@pytest.mark.parametrize("known", [True, False], ids=["with-keys", "without-keys"])
def test_clients_ask_this_machine_alone(moto_store, known, tmp_path):
    """With the fixtures' environment, and even without keys in it, no client connects to anything but loopback."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("not installed: strace")
    google = stores.Google(moto_store.server)
    environ = {**os.environ, **google.environ(google.endpoint), "HOME": str(tmp_path)}
    if not known:
        environ = {name: value for name, value in environ.items() if not re.search("KEY|TOKEN", name)}
    log = tmp_path / "calls"
    traced = [strace, "-f", "-qq", "-e", "trace=connect,sendto,sendmsg,sendmmsg", "-o", str(log)]
    try:
        done = subprocess.run(
            [*traced, sys.executable, "-c", _ASK, moto_store.url, f"gs://{moto_store.name}"],
            env=environ,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    finally:
        google.stop()
    if "ptrace" in done.stderr.lower():
        pytest.skip(f"strace may not trace here: {done.stderr.strip()}")
    assert "asked" in done.stdout, done.stderr
    calls = log.read_text()
    assert ('"127.0.0.1"' in calls) and ("sin_port=htons" in calls)
    elsewhere = [
        line for line in calls.splitlines() if "sa_family=AF_INET" in line and '"127.0.0.1"' not in line
    ]
    assert elsewhere == []
    assert ("Error" in done.stdout) is not known, done.stdout
