"""Google's store: tokens, found once for both clients and renewed, and words that are not Amazon's."""

import functools
import json
import os
import subprocess
import sys
import time

import pytest
from mirrored_runs import train
from servers.faultproxy import hang
from servers.issuer import Issuer
from servers.stores import HARMLESS

from holdfast import StorageError
from holdfast.objects import amazon, parts, stores, tokens
from holdfast.objects import upload as uploading
from holdfast.objects.access import Objects
from holdfast.objects.google import Google
from holdfast.objects.tokens import Token, Tokens
from holdfast.objects.upload import Upload, upload

MB = 1 << 20
PART = 5 * MB


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(parts, "PART_SIZE", PART)


@pytest.fixture
def issuer():
    with Issuer() as issuer:
        yield issuer


@functools.cache
def private_key():
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


@pytest.fixture
def account(issuer, tmp_path):
    """The file of an account whose tokens the issuer gives."""
    path = tmp_path / "account.json"
    path.write_text(
        json.dumps(
            {
                "type": "service_account",
                "client_email": "somebody@planted.iam.gserviceaccount.com",
                "private_key_id": "1",
                "private_key": private_key(),
                "token_uri": f"http://{issuer.host}/token",
            }
        )
    )
    return str(path)


@pytest.fixture
def shim(gs_store):
    return gs_store.server._shim


@pytest.fixture
def signed(gs_store, shim, account, monkeypatch):
    """The store takes one token alone, which is to be had for the account that the environment names."""
    monkeypatch.delenv("GOOGLE_BEARER_TOKEN")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", account)
    monkeypatch.setattr(shim, "valid", "token-1")
    monkeypatch.setattr(shim, "refused", 0)
    return gs_store


def send(store, data, name="file", *, between=lambda: None):
    attempt = upload(Objects.at(f"{store.url}/run"), name, len(data), "d")
    try:
        half = len(data) // 2
        attempt.write(memoryview(data)[:half], 0)
        between()
        attempt.write(memoryview(data)[half:], half)
        attempt.finish()
    finally:
        attempt.close()
    return attempt


# -- tokens --------------------------------------------------------------------------------------------


def test_one_token_for_both_clients(signed, issuer, small_parts):
    """What one client was let in with lets in the other: a token is asked for once."""
    Objects.at(signed.url).put("small", b"1")
    send(signed, os.urandom(12 * MB))
    assert signed.keys() == ["run/file", "small"]
    assert issuer.given == 1


def test_a_token_that_is_refused_is_renewed_once(signed, issuer, shim, small_parts, proxied, monkeypatch):
    """A token that the store takes no more is renewed in the middle of a file, once for all the parts on their way."""
    data, proxy = os.urandom(31 * MB), proxied(signed)
    monkeypatch.delenv("GOOGLE_BEARER_TOKEN")
    send(signed, data, between=lambda: setattr(shim, "valid", "token-2"))
    assert signed.read("run/file") == data
    assert len(proxy.requests("PUT", "partNumber")) == 7 + shim.refused > 7
    assert issuer.given == 2


def test_a_new_token_that_is_refused_too_is_an_error(signed, issuer, shim, small_parts, monkeypatch):
    """Where a new token is refused as well, the error says where credentials are looked for; nothing is tried for long."""
    monkeypatch.setattr(shim, "valid", "another")
    with pytest.raises(
        StorageError, match=r"does not accept the credentials .*GOOGLE_APPLICATION_CREDENTIALS"
    ) as caught:
        send(signed, bytes(PART + 1))
    assert shim.refused == 4, "what asks for uploads, and what begins one, are tried twice each"
    assert issuer.given == 3
    assert "token-" not in repr(caught.value)
    assert caught.value.__context__ is None


def test_what_was_set_is_not_renewed(gs_store, shim, small_parts, monkeypatch):
    """A token from the environment that is refused is asked with once: there is no other."""
    monkeypatch.setattr(shim, "valid", "another")
    monkeypatch.setattr(shim, "refused", 0)
    with pytest.raises(StorageError, match="does not accept the credentials"):
        send(gs_store, bytes(PART + 1))
    assert shim.refused == 2, "what asks for uploads, and what begins one"


def test_renewed_credentials_are_looked_for_anew(signed, issuer, shim, account, monkeypatch):
    """After a refusal the next attempt reads the file again."""
    monkeypatch.setattr(shim, "valid", "token-2")
    with pytest.raises(StorageError, match="does not accept"):
        Objects.at(signed.url).put("small", b"1")
    Objects.at(signed.url).put("small", b"1")
    assert issuer.given == 2


def test_an_account_elsewhere(signed, issuer, monkeypatch, tmp_path, recwarn):
    """Credentials that are exchanged for a token, as another cloud's machines have them, are taken as well."""
    (tmp_path / "subject").write_text("planted")
    path = tmp_path / "elsewhere.json"
    path.write_text(
        json.dumps(
            {
                "type": "external_account",
                "audience": "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/a/providers/b",
                "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
                "token_url": f"http://{issuer.host}/token",
                "credential_source": {"file": str(tmp_path / "subject")},
            }
        )
    )
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
    Objects.at(signed.url).put("small", b"1")
    assert signed.keys() == ["small"]
    assert not [one for one in recwarn if one.category is DeprecationWarning]


def test_before_its_end(monkeypatch):
    """A token is renewed six minutes before its end, at half of a short life; while it is valid a failure is no matter."""
    now, life, problem, asked = 1e9, 3600, None, []
    monkeypatch.setattr(tokens.time, "time", lambda: now)

    def fetch():
        asked.append(None)
        if problem is not None:
            raise problem
        return Token(f"t{len(asked)}", now + life)

    some = Tokens(fetch)
    assert [some.token().text, some.token().text] == ["t1", "t1"]
    assert some()["expires_at"].timestamp() == now + 3600
    now += 3600 - 361
    assert (some.token().text, some.fresh) == ("t1", True)
    now += 2
    assert not some.fresh
    problem = StorageError("none", errno=13)
    assert (some.token().text, len(asked)) == ("t1", 2)
    problem, life = None, 300
    assert (some.token().text, some.fresh) == ("t3", True), "it would be asked for with every request"
    now += 149
    assert some.fresh
    now += 2
    assert (some.token().text, some.fresh) == ("t4", True)
    problem = StorageError("none", errno=13)
    now += 299
    assert some.token().text == "t4"
    now += 2
    with pytest.raises(StorageError, match="none"):
        some.token()


def test_the_machines_account(signed, issuer, monkeypatch, small_parts):
    """On a machine of Google's its own account is asked with; a machine of another cloud has none."""
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS")
    monkeypatch.delenv("NO_GCE_CHECK")
    monkeypatch.setenv("GCE_METADATA_HOST", issuer.host)
    send(signed, os.urandom(12 * MB))
    assert signed.keys() == ["run/file"]
    assert issuer.given == 1
    issuer.flavor = "Other"
    monkeypatch.setattr(stores, "_refused", stores._refused + 1)
    with pytest.raises(StorageError, match="this is no machine of Google's"):
        Objects.at(signed.url).put("small", b"1")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"NO_GCE_CHECK": "true"}, "NO_GCE_CHECK is set"),
        ({"NO_GCE_CHECK": ""}, "this is no machine of Google's"),
        ({"GOOGLE_APPLICATION_CREDENTIALS": "/nowhere/planted.json"}, "is no credentials file .No such file"),
        ({"GOOGLE_APPLICATION_CREDENTIALS": os.devnull}, "is no credentials file"),
        ({"GOOGLE_SERVICE_ACCOUNT_KEY": '{"private_key": "PLANTED"}'}, "means nothing"),
        ({"GOOGLE_SERVICE_ACCOUNT_KEY": "{}", "GOOGLE_SERVICE_ACCOUNT": "x"}, "are both set"),
    ],
    ids=["nowhere", "no-machine", "no-file", "no-json", "no-key", "both"],
)
def test_no_credentials(gs_store, settings, words, monkeypatch):
    """Where there are no credentials, or none that mean anything, the error says which and what is looked for."""
    monkeypatch.delenv("GOOGLE_BEARER_TOKEN")
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StorageError, match=f"{words}.*Next: set GOOGLE_APPLICATION_CREDENTIALS") as caught:
        Objects.at(gs_store.url).put("small", b"1")
    assert "PLANTED" not in repr(caught.value)
    assert caught.value.__context__ is None


def test_the_server_for_tokens_refuses(signed, issuer, monkeypatch):
    """What passes there is waited for; a refusal is told by its word, without the rest of the answer."""
    monkeypatch.setattr(tokens, "_PAUSES", (0.0, 0.0))
    issuer.refusals += [(503, {})]
    Objects.at(signed.url).put("small", b"1")
    monkeypatch.setattr(stores, "_refused", stores._refused + 1)
    issuer.refusals += [(400, {"error": "invalid_grant", "error_description": "of planted"})]
    with pytest.raises(StorageError, match="gives none for the credentials: invalid_grant") as caught:
        Objects.at(signed.url).put("small", b"1")
    assert "planted" not in repr(caught.value)
    assert caught.value.__context__ is None


def test_the_server_for_tokens_is_not_there(signed, account, small_parts, monkeypatch):
    """A server for tokens that does not answer is told as that, and may answer later."""
    monkeypatch.setattr(tokens, "_PAUSES", (0.0, 0.0))
    monkeypatch.setattr(stores, "QUICK_RETRIES", 0.0)
    monkeypatch.setattr(stores, "_refused", stores._refused + 1)
    with open(account, "r+", encoding="utf-8") as file:
        info = {**json.load(file), "token_uri": "http://127.0.0.1:9/token"}
        file.seek(0)
        file.truncate()
        json.dump(info, file)
    for act in (Objects.names, uploading.begun):
        with pytest.raises(StorageError, match="server for them does not answer") as caught:
            act(Objects.at(signed.url))
        assert caught.value.facts["may_pass"]


def test_a_wait_for_a_token_is_broken_off(signed, issuer, small_parts):
    """Whoever waits for a token that does not come can be called away: the client's threads wait alone."""
    issuer.open.clear()

    def check():
        if looks:
            raise InterruptedError
        looks.append(None)

    for act in (Objects.names, uploading.begun):
        looks = []
        with pytest.raises(InterruptedError):
            act(Objects.at(signed.url, check))
    assert issuer.given == 0


_ENDING = """
import sys, threading, time
from holdfast.objects.access import Objects
objects = Objects.at(sys.argv[1])
def look():
    try:
        objects.names()
    except OSError:
        pass
threading.Thread(target=look, daemon=True).start()
sys.stdin.readline()
class Late:
    def __del__(self, sleep=time.sleep):
        sleep(0.7)  # the interpreter is being taken apart meanwhile
late = Late()
print("ending", flush=True)
sys.exit(3)
"""


def test_a_token_that_comes_when_the_process_ends(signed, issuer):
    """A token that arrives while the interpreter is taken apart does not bring the process down: its exit code is its own."""
    issuer.open.clear()
    with subprocess.Popen(
        [sys.executable, "-c", _ENDING, signed.url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as ending:
        while not issuer.asked.wait(0.1):
            assert ending.poll() is None, ending.stderr.read()
        ending.stdin.write("end\n")
        ending.stdin.flush()
        assert ending.stdout.readline() == "ending\n"
        time.sleep(0.4)
        issuer.open.set()
        _, errors = ending.communicate()
    assert ending.returncode == 3, errors
    assert issuer.given == 1


# -- libraries -----------------------------------------------------------------------------------------


def test_nothing_of_amazons_is_looked_at(gs_store, small_parts, monkeypatch, tmp_path):
    """Neither a profile that is not there nor settings for Amazon's store change what is sent to Google's."""
    wrong = tmp_path / "config"
    wrong.write_text("[default]\ns3 =\n  use_accelerate_endpoint = true\n  addressing_style = virtual\n")
    monkeypatch.setattr(amazon, "_clients", {})
    for name, value in {
        "AWS_PROFILE": "planted",
        "AWS_CONFIG_FILE": str(wrong),
        "AWS_USE_FIPS_ENDPOINT": "true",
        "AWS_USE_DUALSTACK_ENDPOINT": "true",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_supported",
    }.items():
        monkeypatch.setenv(name, value)
    data = os.urandom(12 * MB)
    send(gs_store, data)
    assert gs_store.read("run/file") == data
    monkeypatch.delenv("GOOGLE_BASE_URL")
    assert Google(Objects.at(gs_store.url))._client.meta.endpoint_url == "https://storage.googleapis.com"


@pytest.mark.parametrize("lacking", ["botocore", "google.auth.transport.requests"])
def test_without_the_libraries(signed, issuer, lacking, small_parts, monkeypatch):
    """Without the libraries for it a large file is sent by the other client, and nothing is looked for."""
    monkeypatch.setitem(sys.modules, lacking, None)
    objects = Objects.at(signed.url) if lacking == "botocore" else None
    if objects is None:
        assert tokens.find() is None
        monkeypatch.setenv(
            "GOOGLE_BEARER_TOKEN", "token-1"
        )  # its own way to Google's server is not for tests
        monkeypatch.setattr(tokens, "find", lambda: None)
        objects = Objects.at(signed.url)
    data = os.urandom(12 * MB)
    attempt = upload(objects, "file", len(data), "d")
    assert isinstance(attempt, Upload)
    attempt.write(memoryview(data), 0)
    attempt.finish()
    assert signed.read("file") == data
    assert uploading.begun(objects) == set()
    uploading.forget(objects, "")


def test_the_server_of_these_tests_is_no_s3(gs_store, moto_store, monkeypatch):
    """What speaks to Amazon's store is refused: a test cannot pass because both are alike behind the server."""
    client = moto_store.server.client(gs_store.server.endpoint)
    with pytest.raises(client.exceptions.ClientError, match="AuthenticationRequired"):
        client.put_object(Bucket=gs_store.name, Key="a", Body=b"1")

    def with_a_token(request, **_):
        request.headers["Authorization"] = "Bearer test"

    client.meta.events.register("before-send.s3", with_a_token)
    with pytest.raises(client.exceptions.ClientError, match="InvalidArgument"):
        client.put_object(Bucket=gs_store.name, Key="a", Body=b"1", Metadata={"a": "b"})
    monkeypatch.setattr(stores, "QUICK_RETRIES", 0.0)
    there = Google(Objects.at(gs_store.url))
    there.ask(
        "put_object",
        "a",
        "write",
        Key="a",
        Body=b"1",
        Metadata={"a": "b"},
        ContentMD5="xMpCOKC5I4INzFCab3WEmw==",
    )
    assert there.ask("head_object", "a", "look at", Key="a")["Metadata"] == {"a": "b"}
    with pytest.raises(StorageError, match="BadDigest"):
        there.ask("put_object", "a", "write", Key="a", Body=b"2", ContentMD5="xMpCOKC5I4INzFCab3WEmw==")


# -- a kill --------------------------------------------------------------------------------------------


def test_a_killed_push_sends_only_the_rest(gs_store, proxied, tmp_path):
    """`holdfast push`, killed with -9 on the way to gs://, sends only the parts that are not there, counted on the wire."""
    run, url = str(tmp_path / "run"), f"{gs_store.url}/first"
    train(run, 1, size=9 << 20)  # 36 MB: three parts
    proxy = proxied(gs_store)
    proxy.inject(hang(), path="partNumber=3", times=None)
    command = [sys.executable, "-m", "holdfast", "push", run, url]
    environment = {**os.environ, **HARMLESS}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as pushing:
        while not (proxy.requests(path="partNumber=3") and _answered(gs_store) == 2):
            assert pushing.poll() is None
            time.sleep(0.05)
        pushing.kill()
    assert not [key for key in gs_store.sizes() if key.endswith("state.safetensors")]
    proxy.heal()
    proxy.log.clear()
    assert subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=False).returncode == 0
    [key] = [key for key in gs_store.sizes() if key.endswith("state.safetensors")]
    assert proxy.sent("PUT", "partNumber") == gs_store.sizes()[key] - 2 * parts.PART_SIZE
    assert gs_store.uploads() == []


def _answered(store):
    """How many parts lie there of files that are not finished."""
    client = store.server._behind._beside
    found = [
        client.list_parts(Bucket=store.name, Key=key, UploadId=one).get("Parts", [])
        for key, one in store.uploads()
    ]
    return sum(map(len, found))


@pytest.mark.parametrize("text", ["secret\n", "sec ret", "secr\u0142t"])
def test_a_token_that_no_request_can_carry(gs_store, monkeypatch, text):
    """A token with a line break, as files end with one, is named at once, and not shown."""
    monkeypatch.setenv("GOOGLE_BEARER_TOKEN", text)
    with pytest.raises(StorageError, match="GOOGLE_BEARER_TOKEN has a space, a line break or") as caught:
        Objects.at(f"{gs_store.url}/run")
    assert "sec" not in str(caught.value)
