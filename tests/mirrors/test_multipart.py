"""Files on their way into a bucket: in parts, continued by part, checked, within bounds."""

import os
import threading
import time

import pytest
from servers.faultproxy import corrupt, delay, hang, lost_answer, reset, status

from holdfast import StorageError, UsageError
from holdfast.objects import amazon, amazon_parts, azure, buffers, calls, parts, stores
from holdfast.objects.access import Facts, Objects
from holdfast.objects.amazon import Amazon
from holdfast.objects.upload import begun, forget, upload

MB = 1 << 20
PART = 5 * MB  # the least that S3 takes


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(parts, "PART_SIZE", PART)


@pytest.fixture
def soon(monkeypatch):
    """All limits of time are short."""
    monkeypatch.setattr(stores, "BULK_SECONDS", 1.0)
    monkeypatch.setattr(stores, "BULK_RETRIES", 1.5)
    monkeypatch.setattr(stores, "QUICK_RETRIES", 1.5)
    monkeypatch.setattr(calls, "SILENT_SECONDS", 1.0)
    monkeypatch.setattr(calls, "_FIRST_PAUSE", 0.05)
    monkeypatch.setattr(amazon, "_clients", {})
    monkeypatch.setattr(azure, "_connections", {})


@pytest.fixture(params=["moto", "ceph", "azurite", "gs"])
def each(request):
    """A bucket on each server where uploads go on by part."""
    return request.getfixturevalue(f"{request.param}_store")


def objects_of(store, check=lambda: None):
    return Objects.at(f"{store.url}/run", check)


def send(objects, data, name="file", *, digest="d", upto=None, step=MB):
    """Writes a file in small pieces, or its beginning alone; gives the attempt."""
    attempt = upload(objects, name, len(data), digest)
    try:
        for start in range(0, upto if upto is not None else len(data), step):
            attempt.write(memoryview(data)[start : start + step], start)
        if upto is None:
            attempt.finish()
        else:
            attempt._await_room(0)
    finally:
        attempt.close()
    return attempt


@pytest.mark.parametrize("size", [PART + 1, 2 * PART, 13 * MB + 7])
def test_what_is_written_is_there(each, small_parts, size):
    """A file of several parts is there when it is finished, byte for byte, with its digest, and nothing beside it."""
    data = os.urandom(size)
    send(objects_of(each), data, step=3 * MB)
    assert each.read("run/file") == data
    assert objects_of(each).facts("file") == Facts(size, "d")
    assert each.keys() == ["run/file"]
    assert each.uploads() == []


def test_an_interrupted_file_goes_on_by_part(each, small_parts, proxied):
    """After an interruption the parts that lie there are not sent again, whoever began them; a wrong one is."""
    data = bytearray(os.urandom(23 * MB))
    send(objects_of(each), data, upto=15 * MB)
    assert each.keys() == []
    data[7 * MB] ^= 1  # in the second part: what lies there is not what shall be there
    proxy = proxied(each)
    attempt = send(objects_of(each), data)
    assert attempt.found == 2 * PART
    assert proxy.sent("PUT", each.part()) == 23 * MB - 2 * PART
    assert each.read("run/file") == data
    assert each.uploads() == []


def test_of_several_attempts_the_furthest_goes_on(ceph_store, small_parts):
    """Of several uploads of one file that with most parts is continued, and the others are ended."""
    client, data = ceph_store.server.client(), os.urandom(12 * MB)
    where = {"Bucket": ceph_store.name, "Key": "run/file"}
    send(objects_of(ceph_store), data, upto=PART)
    foreign = client.create_multipart_upload(**where)["UploadId"]  # with other parts
    client.upload_part(**where, UploadId=foreign, PartNumber=1, Body=data[: 6 * MB])
    client.create_multipart_upload(**where)
    further = client.create_multipart_upload(**where, Metadata={"holdfastdigest": "d"})["UploadId"]
    for number in (1, 2):
        client.upload_part(
            **where, UploadId=further, PartNumber=number, Body=data[(number - 1) * PART : number * PART]
        )
    assert send(objects_of(ceph_store), data).found == 2 * PART
    assert ceph_store.read("run/file") == data
    assert ceph_store.uploads() == []


def test_etags_that_are_no_digests(ceph_store, small_parts, monkeypatch):
    """Where etags are not made of MD5s, parts that lie there are sent again, and the whole is judged by size and digest."""
    data = os.urandom(12 * MB)
    send(objects_of(ceph_store), data, upto=2 * PART)
    monkeypatch.setattr(amazon_parts, "_md5", lambda data: "0" * 32)
    attempt = send(objects_of(ceph_store), data)
    assert attempt.found == 0
    assert ceph_store.read("run/file") == data


@pytest.mark.parametrize("kind", ["ceph", "gs"])
def test_a_part_that_lies_there_and_is_said_to_be_another_files(kind, request, small_parts):
    """A file whose begun upload was given another digest is taken away, and the next attempt makes it right."""
    store = request.getfixturevalue(f"{kind}_store")
    data = os.urandom(12 * MB)
    send(objects_of(store), data, digest="other", upto=PART)
    with pytest.raises(StorageError, match="is not what was written"):
        send(objects_of(store), data)
    assert store.keys() == []
    send(objects_of(store), data)
    assert objects_of(store).facts("file") == Facts(len(data), "d")


def test_leftovers_are_ended(each, small_parts):
    """Uploads below a prefix are found and ended, and those of others are not; nor is what is whole, or empty."""
    data = os.urandom(PART + 1)
    for place, name in [("run", "a/one"), ("run", "a/two"), ("run", "b/one"), ("run2", "a/one")]:
        send(Objects.at(f"{each.url}/{place}"), data, name, upto=PART)
    objects = objects_of(each)
    objects.put("a/empty", b"")
    assert begun(objects) == {"a/one", "a/two", "b/one"}
    forget(objects, "b")
    assert begun(objects) == {"a/one", "a/two"}
    forget(objects, "")
    assert [key for key, _ in each.uploads()] == ["run2/a/one"]
    assert each.keys() == ["run/a/empty"]


# -- faults --------------------------------------------------------------------------------------------

PASSING = [status(503), status(429, "Throttling"), reset(MB), lost_answer()]


@pytest.mark.parametrize("fault", PASSING, ids=lambda fault: f"{fault.kind}-{fault.value}")
def test_what_passes_is_waited_for(parted_store, small_parts, soon, proxied, fault):
    """A fault that passes, at each of an upload's requests once, is waited out; the file is there, and nothing is left."""
    proxy, data = proxied(parted_store), os.urandom(12 * MB)
    for method, path in [*parted_store.server.asking, ("PUT", parted_store.part(2)), ("HEAD", "")]:
        proxy.inject(fault, method=method, path=path)
    send(objects_of(parted_store), data)
    assert len([request for request in proxy.log if request.fault]) == 4
    assert parted_store.read("run/file") == data
    # Whoever asked S3 or Google for an upload and never heard its name finds it next time.
    assert len(parted_store.uploads()) == (fault.kind == "lost_answer" and parted_store.server.scheme != "az")
    forget(objects_of(parted_store), "")
    assert parted_store.uploads() == []


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (hang(), "did not answer in time"),
        (status(503), "is overloaded"),
        (reset(), "failed on its way"),
        (status(403, "AccessDenied"), "do not allow it"),
    ],
    ids=lambda value: getattr(value, "kind", None),
)
def test_what_does_not_pass_ends_in_bounded_time(light_store, small_parts, soon, proxied, fault, words):
    """A fault that stays becomes an error that says what it is, within the limits, and the file goes on afterwards."""
    proxy, data = proxied(light_store), os.urandom(26 * MB)
    proxy.inject(fault, path=light_store.part(*range(2, 10)), times=None)
    proxy.inject(delay(0.8), path=light_store.part(1))  # still on its way when the next one fails
    started = time.monotonic()
    with pytest.raises(StorageError, match=words) as caught:
        send(objects_of(light_store), data)
    assert time.monotonic() - started < 10, "the limits do not hold"
    assert light_store.url in str(caught.value)
    assert caught.value.__context__ is None, "the client's own error may quote what was signed"
    assert light_store.keys() == []
    proxy.heal()
    assert send(objects_of(light_store), data).found == PART
    assert light_store.read("run/file") == data


def test_a_bit_that_flips_on_the_way(parted_store, small_parts, soon, proxied):
    """The store refuses a part that is not what was sent, and gets it again."""
    proxy, data = proxied(parted_store), os.urandom(12 * MB)
    proxy.inject(corrupt(MB // 2), method="PUT", path=parted_store.part())
    send(objects_of(parted_store), data)
    assert parted_store.read("run/file") == data


def test_a_refusal_is_not_tried_again(light_store, small_parts, soon, proxied):
    """What will not pass by itself is asked once."""
    proxy = proxied(light_store)
    proxy.inject(status(403, "AccessDenied"), path=light_store.part(1), times=None)
    with pytest.raises(StorageError):
        send(objects_of(light_store), os.urandom(12 * MB))
    assert len(proxy.requests(path=light_store.part(1))) == 1


def test_whoever_waits_is_called_away(light_store, small_parts, proxied):
    """A wait for a part that hangs ends as soon as the check says so, and the process need not wait for the part."""
    proxy, asked = proxied(light_store), threading.Event()
    proxy.inject(hang(), path=light_store.part(), times=None)

    def check():
        if asked.is_set():
            raise InterruptedError

    threading.Timer(1.0, asked.set).start()
    started = time.monotonic()
    with pytest.raises(InterruptedError):
        send(objects_of(light_store, check), os.urandom(12 * MB))
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("kind", ["ceph", "gs"])
def test_credentials_that_may_not_list_uploads(kind, request, small_parts, proxied):
    """Where uploads may not be listed a file is sent from its beginning, and that is all."""
    store = request.getfixturevalue(f"{kind}_store")
    proxy, data = proxied(store), os.urandom(12 * MB)
    proxy.inject(status(403, "AccessDenied"), method="GET", path=r"\?uploads", times=None)
    send(objects_of(store), data, upto=PART)
    assert send(objects_of(store), data).found == 0
    assert begun(objects_of(store)) == set()
    assert store.read("run/file") == data


def test_wrong_credentials(ceph_store, small_parts, monkeypatch):
    """Wrong credentials are an error that says where they are looked for, and holds none of them."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-secret")
    with pytest.raises(StorageError, match="does not accept the credentials") as caught:
        send(objects_of(ceph_store), bytes(PART + 1))
    assert "AWS_PROFILE" in str(caught.value)
    assert "planted-secret" not in repr(caught.value)


# -- bounds --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["moto", "gs"])
def test_memory_is_bounded(kind, request, small_parts, proxied, monkeypatch):
    """However many files there are and however slow the server, no more parts are held than is stated, and none stays."""
    store = request.getfixturevalue(f"{kind}_store")
    proxy, data = proxied(store), os.urandom(21 * MB)
    proxy.inject(delay(0.2), path=store.part(), times=None)
    most, real = [], buffers.shared.take

    def take(*words, **more):
        taken = real(*words, **more)
        most.append(buffers.shared._out + len(buffers.shared._free))
        return taken

    monkeypatch.setattr(buffers.shared, "take", take)
    names = ["one", "two", "three", "four"]
    threads = [threading.Thread(target=send, args=(objects_of(store), data, name)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert parts.AT_ONCE + 1 < max(most) <= parts.HELD + len(names)
    assert (buffers.shared._out, buffers.shared._free) == (0, [])
    assert [store.read(f"run/{name}") == data for name in names] == [True] * 4


@pytest.mark.parametrize("end", ["failure", "called away"])
def test_memory_comes_back_from_what_failed(moto_store, small_parts, soon, proxied, end):
    """After a failed attempt, and one that was called away, all memory is given back once nobody reads it."""
    proxy = proxied(moto_store)
    proxy.inject(status(403) if end == "failure" else hang(), path=moto_store.part(), times=None)

    def check():
        if end != "failure" and proxy.requests(path=moto_store.part()):
            raise InterruptedError

    with pytest.raises((StorageError, InterruptedError)):
        send(objects_of(moto_store, check), os.urandom(31 * MB))
    limit = time.monotonic() + 30
    while buffers.shared._out and time.monotonic() < limit:
        time.sleep(0.05)
    assert (buffers.shared._out, buffers.shared._free) == (0, [])


def test_bytes_come_in_order(moto_store, small_parts):
    """Bytes that are not the next, too many or too few are refused."""
    attempt = upload(objects_of(moto_store), "file", PART + 10)
    attempt.write(memoryview(bytes(PART + 5)), 0)
    with pytest.raises(UsageError, match="expected byte 5242885, found 6"):
        attempt.write(memoryview(b"7"), 6)
    with pytest.raises(UsageError, match="expected 5242890 bytes, found 5242885"):
        attempt.finish()
    with pytest.raises(UsageError, match="more were written"):
        attempt.write(memoryview(b"1234567"), PART + 5)
    attempt.close()
    assert moto_store.keys() == []


def test_the_same_place_and_credentials_for_both_clients(ceph_store, small_parts, monkeypatch, tmp_path):
    """A profile in AWS's own files gives both clients its keys, region and endpoint; nothing else need be set."""
    import botocore.session

    profile = tmp_path / "config"
    profile.write_text(
        f"[profile team]\nregion = eu-central-1\nendpoint_url = {ceph_store.server.endpoint}\n"
        "aws_access_key_id = test\naws_secret_access_key = testsecret\n"
    )
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(profile))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_PROFILE", "team")
    assert botocore.session.get_session().get_config_variable("region") == "eu-central-1"
    objects = objects_of(ceph_store)
    objects.put("by-obstore", b"1")
    send(objects, bytes(PART + 1), "by-boto3")
    assert ceph_store.keys() == ["run/by-boto3", "run/by-obstore"]
    client = Amazon(objects)._client
    assert client.meta.region_name == "eu-central-1"
    assert client.meta.config.connect_timeout == stores.QUICK_SECONDS
