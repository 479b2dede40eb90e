"""Large files in Azure: what lies there in blocks, who may ask for them, and what becomes of it otherwise."""

import logging
import os
import signal
import subprocess
import sys
import time
from urllib.parse import parse_qs, unquote

import pytest
from mirrored_runs import train
from servers.contents import held, key_of, url_of
from servers.faultproxy import hang, status
from servers.tokens import TOKEN, TokenShim

from holdfast import StorageError
from holdfast.objects import azure, parts
from holdfast.objects.access import Facts, Objects
from holdfast.objects.azure_parts import _id
from holdfast.objects.multipart import Multipart
from holdfast.objects.upload import Upload, begun, forget, upload

MB = 1 << 20
DATA = os.urandom(5 * MB + 7)  # six parts of the size that is set here


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(parts, "PART_SIZE", MB)
    monkeypatch.setattr(azure, "_connections", {})


def objects_of(store):
    return Objects.at(f"{store.url}/run")


def write(attempt, data, start, end):
    for at in range(start, end, MB):
        attempt.write(memoryview(data)[at : min(at + MB, end)], at)


def send(store, data=DATA, *, upto=None, digest="d"):
    """Writes a file, or its beginning alone; gives the attempt."""
    attempt = upload(objects_of(store), "file", len(data), digest)
    try:
        write(attempt, data, 0, len(data) if upto is None else upto)
        if upto is None:
            attempt.finish()
        elif isinstance(attempt, Multipart):
            attempt._await_room(0)
    finally:
        attempt.close()
    return attempt


def blocks(store):
    return store.server.blocks(store.name, "run/file")


def blob_of(store):
    return store.server._beside.get_blob_client(store.name, "run/file")


# -- what lies there -----------------------------------------------------------------------------------


def test_a_block_that_is_not_the_files_is_not_taken(azurite_store):
    """Blocks of another tool, and those of other bytes, are no part of the file, and are gone when it is there."""
    send(azurite_store, upto=2 * MB)
    ours = blocks(azurite_store)
    assert sorted(ours) == [_id(1, memoryview(DATA)[:MB]), _id(2, memoryview(DATA)[MB : 2 * MB])]
    blob_of(azurite_store).stage_block(
        _id(3, memoryview(DATA)[:MB]), DATA[:MB]
    )  # as another file's third one
    cut = _id(4, memoryview(DATA)[3 * MB : 4 * MB])
    blob_of(azurite_store).stage_block(cut, DATA[:100])  # under its name, of another size
    assert send(azurite_store).found == 2 * MB
    assert azurite_store.read("run/file") == DATA
    assert blocks(azurite_store) == {}


def test_blocks_that_are_in_the_way(azurite_store):
    """Blocks with ids of another length, beside which the store takes none of ours, are taken away."""
    from azure.storage.blob import BlobBlock

    blob_of(azurite_store).stage_block("foreign", b"of another tool")
    with pytest.raises(Exception, match="InvalidBlobOrBlock"):
        blob_of(azurite_store).stage_block(_id(1, memoryview(DATA)[:MB]), DATA[:MB])
    assert send(azurite_store).found == 0
    assert azurite_store.read("run/file") == DATA
    # So may those be that a whole file has.
    blob_of(azurite_store).stage_block("another", b"of another tool")
    blob_of(azurite_store).commit_block_list([BlobBlock("another")])
    assert send(azurite_store).found == 0
    assert azurite_store.read("run/file") == DATA


def test_a_whole_file_is_sent_anew(azurite_store, proxied):
    """What is sent although it lies there is sent to heal it: none of its blocks is taken from what lies there."""
    send(azurite_store)
    proxy = proxied(azurite_store)
    assert send(azurite_store).found == 0
    assert proxy.sent("PUT", azurite_store.part()) == len(DATA)


def test_a_file_that_says_something_else(azurite_store, proxied, monkeypatch):
    """What lies there in the end and is not what was written is taken away, and is an error."""
    attempt = upload(objects_of(azurite_store), "file", len(DATA), "d")
    write(attempt, DATA, 0, len(DATA))
    attempt._await_room(0)
    attempt._parts.complete()
    azurite_store.write("run/file", b"of another writer")
    with pytest.raises(
        StorageError, match="is not what was written: expected 5242887 bytes, digest d; found 17, None"
    ):
        attempt._parts.verify()
    assert azurite_store.keys() == []


# -- two at once -------------------------------------------------------------------------------------


def test_two_that_send_the_same(azurite_store):
    """Two attempts at one file at the same time, whichever ends first, are both successful; the file is whole."""
    one, other = (upload(objects_of(azurite_store), "file", len(DATA), "d") for _ in range(2))
    write(one, DATA, 0, 2 * MB)
    write(other, DATA, 0, 4 * MB)
    other._await_room(0)
    write(one, DATA, 2 * MB, len(DATA))
    one.finish()
    write(other, DATA, 4 * MB, len(DATA))
    other.finish()
    assert azurite_store.read("run/file") == DATA
    assert objects_of(azurite_store).facts("file") == Facts(len(DATA), "d")
    assert blocks(azurite_store) == {}


def test_two_that_send_something_else(azurite_store):
    """Of two different files under one name one is there, whole; the other one is an error, and never a mixture."""
    others = bytes(len(DATA))
    one, other = (
        upload(objects_of(azurite_store), "file", len(DATA), "d"),
        upload(objects_of(azurite_store), "file", len(DATA), "e"),
    )
    write(other, others, 0, 4 * MB)
    other._await_room(0)
    write(one, DATA, 0, len(DATA))
    one.finish()
    write(other, others, 4 * MB, len(DATA))
    with pytest.raises(
        StorageError, match="has forgotten blocks of it. Next: does another process write there"
    ):
        other.finish()
    assert azurite_store.read("run/file") == DATA
    assert send(azurite_store, others, digest="e").found == MB + 7  # the last two, which came later
    assert azurite_store.read("run/file") == others


@pytest.mark.parametrize("moment", [0, 1])
def test_what_is_finished_meanwhile_is_not_forgotten(azurite_store, monkeypatch, moment):
    """Blocks that became a file after they were seen as leftovers stay a file, at any moment."""
    send(azurite_store, upto=2 * MB)
    real, asked = azure.Azure.ask, []

    def ask(self, work, name, operation):
        if operation == "delete":
            if len(asked) == moment:
                send(azurite_store)
            asked.append(name)
        return real(self, work, name, operation)

    monkeypatch.setattr(azure.Azure, "ask", ask)
    forget(objects_of(azurite_store), "")
    assert len(asked) == moment + 1
    assert azurite_store.read("run/file") == DATA


# -- who asks --------------------------------------------------------------------------------------


def alone_with(monkeypatch, store, endpoint, **variables):
    """The environment has this credential alone."""
    for name, value in store.environ(endpoint).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_KEY")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("encoded", [True, False])
def test_a_signature_that_somebody_gave(azurite_store, proxied, monkeypatch, encoded):
    """With a signature in the place of a key files go on by block as well, however it was written down."""
    signatures = (azurite_store.server.signature(days=days) for days in range(1, 100))
    signature = next(signature for signature in signatures if "%2B" in signature)
    given = f"?{signature if encoded else unquote(signature)}"
    assert parse_qs(azure._query(given)) == parse_qs(signature)
    alone_with(
        monkeypatch,
        azurite_store,
        proxied(azurite_store).url,
        AZURE_STORAGE_SAS_TOKEN=given,
    )
    send(azurite_store, upto=2 * MB)
    assert begun(objects_of(azurite_store)) == {"file"}
    assert send(azurite_store).found == 2 * MB
    assert azurite_store.read("run/file") == DATA


def test_a_token(azurite_store, monkeypatch):
    """With a token, from wherever obstore has it, blocks are asked for and sent by URLs that it signs, a blob each."""
    with TokenShim(azurite_store.server) as shim:
        alone_with(monkeypatch, azurite_store, shim.url, AZURE_STORAGE_TOKEN=TOKEN)
        send(azurite_store, upto=2 * MB)
        assert send(azurite_store).found == 2 * MB
        assert azurite_store.read("run/file") == DATA
        assert set(shim.seen) == {("GET", "signature"), ("PUT", "signature"), ("HEAD", "token")}
        # A signature for one blob does not allow to list: they go by themselves.
        assert begun(objects_of(azurite_store)) == set()
        forget(objects_of(azurite_store), "")


def test_a_token_with_a_line_break(azurite_store, monkeypatch):
    """A token that no request can carry is named before it is used, and not shown."""
    alone_with(monkeypatch, azurite_store, azurite_store.server.endpoint, AZURE_STORAGE_TOKEN="secret\n")
    with pytest.raises(StorageError, match="AZURE_STORAGE_TOKEN has a space or a line break in it") as caught:
        objects_of(azurite_store)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("lacks", ["library", "key to sign with", "right to read", "answer"])
def test_without_what_it_takes(azurite_store, proxied, monkeypatch, lacks):
    """Where blocks cannot be asked for, a file is sent from its beginning, as a whole, and nothing else changes."""
    server = azurite_store.server
    send(azurite_store, upto=2 * MB)  # and what lies there in blocks is not in the way
    with TokenShim(server, gives=False) as shim:
        if lacks == "library":
            monkeypatch.setitem(sys.modules, "azure.storage.blob", None)
            monkeypatch.setattr(azure, "_connections", {})
        elif lacks == "key to sign with":
            alone_with(monkeypatch, azurite_store, shim.url, AZURE_STORAGE_TOKEN=TOKEN)
        elif lacks == "answer":
            proxy = proxied(azurite_store)
            proxy.inject(status(409, "BlobOperationNotSupported"), path="comp=blocklist.*=all", times=None)
            proxy.inject(status(400, "UnsupportedQueryParameter"), path="uncommitted", times=None)
        else:
            signature = server.signature("wdl")
            alone_with(monkeypatch, azurite_store, server.endpoint, AZURE_STORAGE_SAS_TOKEN=signature)
        assert isinstance(send(azurite_store), Upload)
        assert begun(objects_of(azurite_store)) == set()
        forget(objects_of(azurite_store), "")
    assert azurite_store.read("run/file") == DATA


def test_an_endpoint_however_it_is_written():
    """Capitals and a standard port do not make another place of an endpoint."""
    assert azure._below("https://account.blob/c/run/x?sig=1", "https://Account.blob:443/c/")
    assert not azure._below("https://account.blob/c/run/x?sig=1", "https://other.blob/c/")
    assert not azure._below("https://account.blob/c/run/x?sig=1", "https://account.blob/d/")


def test_the_emulator_by_its_switch(azurite_store, monkeypatch):
    """`AZURE_STORAGE_USE_EMULATOR` alone leads both clients to the emulator."""
    monkeypatch.setenv("AZURE_STORAGE_USE_EMULATOR", "true")
    monkeypatch.setenv("AZURITE_BLOB_STORAGE_URL", azurite_store.server.endpoint.rpartition("/")[0])
    for name in ("AZURE_STORAGE_ENDPOINT", "AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT_KEY"):
        monkeypatch.delenv(name)
    assert isinstance(send(azurite_store), Multipart)
    assert azurite_store.read("run/file") == DATA


def test_no_secret_is_shown(azurite_store, proxied, monkeypatch, caplog):
    """Neither a log at its finest nor an error quotes a key, a token or a signature."""
    signature = azurite_store.server.signature()
    secret = dict(pair.split("=") for pair in signature.split("&"))["sig"]
    caplog.set_level(logging.DEBUG)
    proxy = proxied(azurite_store)
    alone_with(monkeypatch, azurite_store, proxy.url, AZURE_STORAGE_SAS_TOKEN=signature)
    send(azurite_store, upto=MB)
    proxy.inject(status(403, "AuthenticationFailed"), path=azurite_store.part(2), times=None)
    with pytest.raises(StorageError, match="does not accept the credentials") as caught:
        send(azurite_store)
    assert caught.value.__context__ is None
    assert secret not in repr(caught.value)
    assert "comp=block" in caplog.text, "nothing was logged"
    assert secret not in caplog.text
    assert not [
        record for record in caplog.records if record.name.startswith("azure") and record.levelno > 10
    ]


def test_other_passwords_stay_out(azurite_store, monkeypatch, tmp_path):
    """What ~/.netrc says of the server is for other tools: requests are signed as the store wants them."""
    (tmp_path / "netrc").write_text("default login somebody password else\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert isinstance(send(azurite_store), Multipart)
    monkeypatch.delenv("NETRC")
    assert azurite_store.read("run/file") == DATA


def test_a_redirect_is_not_followed(azurite_store, proxied, monkeypatch):
    """The account's address alone is asked: an answer that leads elsewhere is an error."""
    from servers import faultproxy

    real = faultproxy._answer
    elsewhere = proxied(azurite_store)  # what would hear it
    proxy = proxied(azurite_store)

    def answer(number, code, *, body):
        return real(number, code, body=body).replace(
            b"\r\n", f"\r\nLocation: {elsewhere.url}\r\n".encode(), 1
        )

    monkeypatch.setattr(faultproxy, "_answer", answer)
    proxy.inject(status(307, "TemporaryRedirect"), path="comp=blocklist", times=None)
    with pytest.raises(StorageError):
        send(azurite_store)
    assert elsewhere.log == []


# -- a kill --------------------------------------------------------------------------------------------


def test_a_push_that_is_killed(azurite_store, tmp_path, proxied, monkeypatch):
    """`holdfast push` that is killed in the middle of a large file sends what is missing when it is given again."""
    monkeypatch.undo()
    run, url = str(tmp_path / "run"), url_of(azurite_store)
    train(run, 1, size=18 << 20)  # 72 MiB, five parts
    with pytest.MonkeyPatch.context() as patch:
        proxy = proxied(azurite_store)
        for name, value in azurite_store.environ(proxy.url).items():
            patch.setenv(name, value)
        proxy.inject(hang(), path=azurite_store.part(4, 5), times=None)
        push = [sys.executable, "-m", "holdfast", "push", run, url]
        with subprocess.Popen(push, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
            while len([1 for one in proxy.requests("PUT", azurite_store.part()) if one.fault]) < 2:
                assert process.poll() is None, process.stderr.read()
                time.sleep(0.05)
            limit = time.monotonic() + 60
            while len(there(azurite_store)) < 3 and time.monotonic() < limit:
                time.sleep(0.05)
            process.send_signal(signal.SIGKILL)
        assert len(there(azurite_store)) == 3
        assert held(azurite_store) == []
        proxy.heal()
        proxy.log.clear()
        done = subprocess.run(push, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert held(azurite_store) == [1]
        whole = azurite_store.sizes()[key_of(azurite_store, 1, "state.safetensors")]
        assert proxy.sent("PUT", azurite_store.part()) == whole - 3 * (16 << 20)


def there(store):
    """Sizes of the blocks of the one file that was begun."""
    return [size for key, _ in store.uploads() for size in store.server.blocks(store.name, key).values()]
