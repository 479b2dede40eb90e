"""The way to an object store: names and bytes, what is refused, what may wait, and what is shown of it."""

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from holdfast import NotFoundError, StorageError, UsageError
from holdfast.errors import FormatError
from holdfast.objects import stores, urls
from holdfast.objects.access import Facts, Objects
from holdfast.objects.parts import MOST_PARTS, PART_SIZE, part_size
from holdfast.objects.upload import Upload
from holdfast.store import catalog

SECRETS = ("planted+secret/key", "PASSWORD", "TOKEN")


@pytest.fixture
def objects(bucket):
    return Objects.at(f"s3://{bucket}/runs/first")


@pytest.fixture
def deaf():
    """A server that takes connections and never answers."""
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        opened.listen(20)
        yield f"http://127.0.0.1:{opened.getsockname()[1]}"


# -- names and bytes -----------------------------------------------------------------------------------


def test_names_and_bytes(objects, s3, bucket):
    """What is put is listed with its size, read whole or from a byte on, and gone when it is deleted."""
    objects.put("a b/ü", b"hello", digest="d1")
    objects.put("x", b"", digest=None)
    assert objects.names() == {"a b/ü": 5, "x": 0}
    assert objects.names("a b") == {"a b/ü": 5}
    assert objects.below("a b").names() == {"ü": 5}
    assert objects.names("none") == {}
    assert objects.small("a b/ü", 5) == b"hello"
    assert objects.facts("a b/ü") == Facts(5, "d1")
    assert objects.facts("x") == Facts(0, None)
    into = bytearray(3)
    assert objects.read("a b/ü", memoryview(into), 1) == 3
    assert into == b"ell"
    assert objects.read("a b/ü", memoryview(into), 4) == 1
    assert objects.read("a b/ü", memoryview(into), 5) == 0
    assert objects.read("x", memoryview(into), 0) == 0
    assert [item["Key"] for item in s3.list_objects_v2(Bucket=bucket)["Contents"]] == [
        "runs/first/a b/ü",
        "runs/first/x",
    ]
    objects.delete(["a b/ü", "x", "never there"])
    assert objects.names() == {}


def test_a_long_list(objects, s3, bucket):
    """A prefix with more than a thousand objects is listed whole; a neighbour whose name begins alike is not."""
    from moto.s3.models import s3_backends

    for number in range(1003):
        s3_backends["123456789012"]["aws"].put_object(bucket, f"runs/first/{number:04}", b"1")
    s3.put_object(Bucket=bucket, Key="runs/first-other/1", Body=b"1")
    assert len(objects.names()) == 1003
    assert len(objects.names(most=5)) == 1000


def test_what_is_not_there(objects):
    """An object that is not there is a NotFoundError that names it; one beyond its limit a FormatError."""
    for call in (
        lambda: objects.small("none", 9),
        lambda: objects.size("none"),
        lambda: objects.read("none", memoryview(bytearray(2)), 0),
    ):
        with pytest.raises(NotFoundError, match=r"There is no s3://bucket-\d+/runs/first/none"):
            call()
    objects.put("long", b"0123456789")
    with pytest.raises(FormatError, match="has 10 bytes; such a file has at most 9"):
        objects.small("long", 9)


def test_create(objects):
    """`create` writes where nothing is, is content with the same bytes, and leaves others alone."""
    assert objects.put("one", b"first", create=True)
    assert objects.put("one", b"first", create=True)
    assert not objects.put("one", b"other", create=True)
    assert not objects.put("one", b"longer than it", create=True)
    assert objects.small("one", 99) == b"first"


def test_a_file_in_parts(objects, s3, bucket):
    """A large file appears whole, in parts of 16 MiB, with its digest; one that was not finished never does."""
    size = 2 * PART_SIZE + 100
    data = os.urandom(1 << 20) * 40
    unfinished = Upload(objects, "unfinished", size)
    unfinished.write(memoryview(data)[: 2 * PART_SIZE], 0)
    unfinished.close()
    upload = Upload(objects, "large", size, "digest")
    for start in range(0, size, PART_SIZE):
        upload.write(memoryview(data)[start : min(start + PART_SIZE, size)], start)
    assert objects.names() == {}
    upload.finish()
    upload.close()
    assert objects.facts("large") == Facts(size, "digest")
    assert s3.get_object(Bucket=bucket, Key="runs/first/large")["Body"].read() == data[:size]
    with pytest.raises(UsageError, match="in order: expected byte 0, found 7"):
        Upload(objects, "other", size).write(memoryview(b"x"), 7)
    with pytest.raises(UsageError, match=f"expected {size} bytes, found 0"):
        Upload(objects, "other", size).finish()


def test_part_sizes():
    """A file of any size has at most 10,000 parts of whole MiB, and of 16 MiB where that does."""
    assert part_size(0) == part_size(MOST_PARTS * PART_SIZE) == PART_SIZE
    for size in (MOST_PARTS * PART_SIZE + 1, 5 << 40):
        assert part_size(size) % (1 << 20) == 0
        assert part_size(size) * MOST_PARTS >= size


# -- what is refused -------------------------------------------------------------------------------------


def test_urls():
    """A URL is bucket and prefix; what it cannot be is refused, and secrets in it are not repeated."""
    assert urls.parse("s3://b/p/q/") == ("s3", "b", "p/q")
    assert urls.parse("GS://b").url == "gs://b"
    assert urls.parse("az://b/p").key("x") == "p/x"
    for wrong in (
        "s3://key:PASSWORD@b/p",
        "s3://key:PASS/WORD@b/p",
        "s3://key:PASSWORD",
        "az://b/p?sig=TOKEN",
        "az://b/p#TOKEN",
    ):
        with pytest.raises(UsageError, match="brings credentials") as caught:
            urls.parse(wrong)
        assert not any(secret in str(caught.value) + repr(caught.value.facts) for secret in SECRETS)
    for wrong in ("ftp://b/p", "s3:///p", "s3://b/a//c", "s3://b/../c", "s3://b/a\nb"):
        with pytest.raises(UsageError, match="Expected"):
            urls.parse(wrong)
    assert urls.redacted("/a/path?x") == "/a/path?x"
    assert urls.redacted("http://u:PASSWORD@host:80/x?TOKEN") == "http://…@host:80/x?…"
    assert urls.redacted("http://127.0.0.1:80/x") == "http://127.0.0.1:80/x"


def test_a_missing_bucket(s3):
    """A bucket that is not there is told as such by every call, and never taken for an empty one."""
    objects = Objects.at("s3://no-such-bucket/p")
    for call in (
        objects.names,
        lambda: objects.small("x", 9),
        lambda: objects.put("x", b"1"),
        lambda: objects.put("x", b"1", create=True),
        lambda: objects.delete(["x"]),
        lambda: objects.delete(["x", "y"]),
    ):
        with pytest.raises(StorageError, match="there is no bucket no-such-bucket at http"):
            call()


def test_no_answer(s3, deaf, monkeypatch):
    """A server that is not there, and one that hangs, are told apart, with its name and without its password."""
    monkeypatch.setattr(stores, "QUICK_SECONDS", 0.5)
    monkeypatch.setattr(stores, "QUICK_RETRIES", 0.5)
    monkeypatch.setenv("AWS_ENDPOINT_URL", deaf.replace("//", "//user:PASSWORD@"))
    with pytest.raises(StorageError, match=r"http://…@127.0.0.1:\d+ did not answer in time"):
        Objects.at("s3://b/p").names()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StorageError, match=r"nothing answers at http://127.0.0.1:9\. Next"):
        Objects.at("s3://b/p").names()


def test_credentials(s3, monkeypatch):
    """Credentials that are missing or make no sense are told with what is looked for, and not shown."""
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(StorageError, match="no AWS credentials .*AWS_PROFILE"):
        Objects.at("s3://b/p")
    monkeypatch.setenv("AWS_PROFILE", "other")
    with pytest.raises(StorageError, match=r"profile \(other\) could not be found"):
        Objects.at("s3://b/p")
    with pytest.raises(StorageError, match="AZURE_STORAGE_ACCOUNT_NAME"):
        Objects.at("az://b/p")
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT_KEY", '{"private_key": "TOKEN"}')
    with pytest.raises(StorageError, match="GOOGLE_APPLICATION_CREDENTIALS") as caught:
        Objects.at("gs://b/p")
    assert "TOKEN" not in str(caught.value)
    assert caught.value.__context__ is None


def test_not_installed():
    """Without the libraries for it an object store is a UsageError that says what to install."""
    script = (
        "import sys; sys.modules['obstore'] = None; sys.modules['obstore.store'] = None\n"
        "from holdfast.objects.access import Objects\n"
        "try:\n    Objects.at('gs://b/p')\n"
        "except ValueError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "pip install 'holdfast[gs]'" in done.stdout


# -- waiting ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("called_away", ["check", "signal"])
def test_a_wait_is_broken_off(s3, deaf, monkeypatch, called_away):
    """A request that hangs ends as soon as its waiter is called away: by its own check, or by Ctrl-C."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", deaf)
    started = time.monotonic()

    def check():
        if time.monotonic() > started + 0.3:
            if called_away == "signal":
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.5)
            raise InterruptedError

    with pytest.raises(KeyboardInterrupt if called_away == "signal" else InterruptedError):
        Objects.at("s3://b/p", check).below("q").names()
    assert time.monotonic() - started < stores.QUICK_SECONDS / 2, "it waited for the request"


def test_a_request_that_hangs_does_not_hold_up_the_end(s3, deaf, monkeypatch):
    """A process whose other thread waits for an answer that never comes ends at once, with its own exit code."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", deaf)
    script = (
        "import threading, time\n"
        "from holdfast.objects.access import Objects\n"
        "objects = Objects.at('s3://b/p')\n"
        "threading.Thread(target=objects.names, daemon=True).start()\n"
        "time.sleep(0.5)\n"
        "raise SystemExit(7)"
    )
    started = time.monotonic()
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 7
    assert time.monotonic() - started < stores.QUICK_SECONDS / 2, "the end waited for the request"


def test_in_a_forked_child(objects):
    """After a fork the child is told that it cannot use the store, where the library would hang."""
    assert objects.names() == {}
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            objects.names()
        except UsageError as error:
            os.write(write, str(error).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    with os.fdopen(read) as said:
        assert "spawn" in said.read()


def test_several_threads(objects):
    """Threads that ask at the same time all get their answers."""
    objects.put("x", b"hello")
    got = []
    threads = [threading.Thread(target=lambda: got.append(objects.small("x", 9))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [b"hello"] * 8


def test_no_secret_is_logged(objects, caplog):
    """Neither Holdfast nor a library logs a credential, at any level."""
    caplog.set_level(logging.DEBUG)
    objects.put("x", b"1")
    assert not any(secret in caplog.text for secret in SECRETS)


def test_a_process_ends_while_the_library_still_speaks(bucket):
    """One of the library's threads that is still inside the interpreter when the process ends does not abort it."""
    script = """
import asyncio, threading, time
real = asyncio.SelectorEventLoop._write_to_self
def slow(loop):
    real(loop)
    if isinstance(threading.current_thread(), threading._DummyThread):
        time.sleep(0.3)  # as if it were not let on by the system
asyncio.SelectorEventLoop._write_to_self = slow
from holdfast.objects.access import Objects
print(Objects.at("s3://BUCKET/a").names())
""".replace("BUCKET", bucket)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "{}\n"), done.stderr


def test_what_is_asked_when_the_process_ends(bucket):
    """A request that comes after the loop was ended, from a handler of the script, is refused and does not wait."""
    script = """
import atexit
@atexit.register
def late():
    try:
        objects.names()
    except Exception as error:
        print(error)
from holdfast.objects.access import Objects
objects = Objects.at("s3://BUCKET/a")
objects.names()
""".replace("BUCKET", bucket)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=20, check=False
    )
    assert "can be begun any more" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("AWS_ENDPOINT_URL", "127.0.0.1:9000", "'127.0.0.1:9000' is no endpoint. Expected https://HOST:PORT"),
        ("AWS_ENDPOINT_URL", "::::", "is no endpoint"),
        ("AWS_ENDPOINT_URL_S3", "http://", "is no endpoint"),
        ("AWS_ACCESS_KEY_ID", "AKIAPLANTEDKEY\n", "AWS_ACCESS_KEY_ID has a space or a line break in it"),
        (
            "AWS_SECRET_ACCESS_KEY",
            "planted+secret/key\n",
            "AWS_SECRET_ACCESS_KEY has a space or a line break in it",
        ),
    ],
)
def test_settings_that_the_library_panics_at(name, value, said, bucket, monkeypatch, capfd):
    """They are refused in one sentence that names the variable; the library says nothing, and no value is shown."""
    monkeypatch.setenv(name, value)
    with pytest.raises(StorageError) as caught:
        Objects.at(f"s3://{bucket}/a").names()
    assert said in str(caught.value)
    assert "planted+secret" not in str(caught.value)
    assert not capfd.readouterr().err


def test_an_endpoint_with_an_address_of_version_6(bucket, monkeypatch):
    """It is shown as it is: nothing in it is a secret."""
    assert urls.redacted("http://[::1]:9000/path") == "http://[::1]:9000/path"
    assert "se+cret" not in urls.redacted("http://me:se+cret@[::1]:9000")


@pytest.mark.parametrize("end", ["", "sys.exit(3)", "raise ValueError"])
def test_a_script_that_ends_without_close(end, bucket, tmp_path):
    """Its mirror is brought up to date in time, without a word and with its own exit code: the way is still open then."""
    script = f"""
import sys, holdfast
run = holdfast.Run({str(tmp_path / "run")!r}, mirrors=["s3://{bucket}/a"], every=holdfast.Every(steps=1))
for step in run.steps(3):
    run.state["x"] = step
{end}
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == {"": 0, "sys.exit(3)": 3}.get(end, 1)
    assert "warning" not in done.stderr
    assert catalog.scan(f"s3://{bucket}/a")[-1].name.step == 3
