"""What networks and busy servers do to mirrors: retried within limits, told, never in the training's way, never believed."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from mirrored_runs import LAST, content, steps, train
from servers.contents import folders, held, key_of, url_of
from servers.faultproxy import cut, delay, hang, lost_answer, reset, stall, status, throttle

import holdfast
from holdfast import Mirror, StorageError
from holdfast.mirrors import mirroring, plan
from holdfast.objects import access, amazon, calls, stores
from holdfast.store import book

LARGE = 9 << 20
"""Of 4 bytes each: 36 MiB, three parts."""


@pytest.fixture
def run(tmp_path):
    return str(tmp_path / "run")


@pytest.fixture
def brisk(monkeypatch):
    """Pauses between attempts are short; what is waited for is not."""
    monkeypatch.setattr(stores, "_FIRST_PAUSE", 0.02)
    monkeypatch.setattr(calls, "_FIRST_PAUSE", 0.02)
    monkeypatch.setattr(plan, "_FIRST_PAUSE", 0.1)


@pytest.fixture
def soon(brisk):
    """In `with soon():` all the stated limits are short: half a second for an attempt and for all that follow it."""

    @contextlib.contextmanager
    def limits():
        with pytest.MonkeyPatch.context() as patch:
            for name in ("QUICK_SECONDS", "BULK_SECONDS", "QUICK_RETRIES", "BULK_RETRIES", "CONNECT_SECONDS"):
                patch.setattr(stores, name, 0.5)
            patch.setattr(calls, "SILENT_SECONDS", 0.5)
            patch.setattr(mirroring, "CLOSE_SECONDS", 0.5)
            # What is connected keeps the limits that it was connected with.
            patch.setattr(amazon, "_clients", {})
            patch.setattr(access, "_connected", {})
            yield patch

    return limits


def events(run, kind="mirror"):
    return [event for event in book.read_events(run) if event["event"] == kind]


def problems(run):
    return [event["problem"] for event in events(run) if "problem" in event]


# -- what passes -----------------------------------------------------------------------------------------

PASSING = [status(503), status(500, "InternalError"), reset(100), lost_answer()]


@pytest.mark.parametrize("fault", PASSING, ids=lambda fault: f"{fault.kind}-{fault.value:.0f}")
def test_what_passes_is_not_even_told(moto_store, run, brisk, proxied, said, fault):
    """Every third request meets a fault that passes: all checkpoints arrive, without a word and without a rest."""
    proxy = proxied(moto_store)
    for number in range(2, 60, 3):
        proxy.inject(fault, number=number)
    train(run, 3, [url_of(moto_store)])
    assert len([request for request in proxy.log if request.fault]) >= 4
    assert held(moto_store) == folders(moto_store) == [2, 3]
    assert problems(run) == []
    assert "not brought up to date" not in said.text


@pytest.mark.parametrize("fault", [status(503), reset(), cut(0), cut(1000), stall(100)], ids=lambda f: f"{f.kind}-{f.value:.0f}")  # fmt: skip
def test_what_passes_while_a_lost_run_is_fetched(moto_store, run, brisk, proxied, monkeypatch, fault):
    """Answers that fail, break off or stand still once do not keep a lost run from coming back, whole."""
    train(run, 2, [url_of(moto_store)])
    shutil.rmtree(run)
    monkeypatch.setattr(stores, "QUICK_SECONDS", 1.0 if fault.kind == "stall" else 20.0)
    proxy = proxied(moto_store)
    for number in (1, 7) if fault.kind == "stall" else range(0, 30, 3):
        proxy.inject(fault, method="GET", number=number)
    assert train(run, 3, [url_of(moto_store)]) == 2
    assert [request for request in proxy.log if request.fault]
    assert steps(run) == [2, 3]


def test_a_lost_run_begins_nothing_when_its_mirror_fails_midway(moto_store, run, soon, proxied):
    """A mirror that could be looked at and then fails may hold the lost run: nothing is begun, as with one that is away."""
    train(run, 2, [url_of(moto_store)])
    shutil.rmtree(run)
    proxy = proxied(moto_store)
    proxy.inject(status(503), path="list-type", number=2, times=None)  # it has been listed once by then
    with soon(), pytest.raises(StorageError, match="Nothing was begun"):
        train(run, 3, [url_of(moto_store)])
    assert steps(run) == []
    proxy.heal()
    assert train(run, 3, [url_of(moto_store)]) == 2


def test_pauses_between_attempts_grow(moto_store, run, soon, proxied):
    """A store that asks for slowness is asked again after pauses that grow, not at once and not for ever."""
    train(run, 1)
    proxy = proxied(moto_store)
    proxy.inject(status(503), times=None)
    with soon() as patch:
        patch.setattr(stores, "_FIRST_PAUSE", 0.1)
        train(run, 0, [url_of(moto_store)])
    assert 2 <= len(proxy.log) <= 16, (
        "a first look, one behind the training and one at close, of a few attempts each"
    )


# -- what stays ------------------------------------------------------------------------------------------------

PAYLOAD, MANIFEST = r"state\.safetensors", r"checkpoint\.json"
STAYING = [
    (status(503), PAYLOAD, "is overloaded"),
    (status(403, "AccessDenied"), MANIFEST, "do not allow it"),
    (reset(), PAYLOAD, "failed on its way"),
    (hang(), MANIFEST, "did not answer in time"),
    (lost_answer(), PAYLOAD, "failed on its way"),
    (lost_answer(), MANIFEST, None),
    (status(301, "PermanentRedirect"), PAYLOAD, "lies in another region"),
    (status(409, "ConditionalRequestConflict"), MANIFEST, "in conflict with another"),
    (status(412, "PreconditionFailed"), PAYLOAD, "in conflict with another"),
]


@pytest.mark.parametrize(("fault", "path", "words"), STAYING, ids=lambda value: getattr(value, "kind", ""))
def test_what_stays_is_told_and_stops_nothing(
    moto_store, run, soon, proxied, said, monkeypatch, fault, words, path
):
    """A fault that stays is told at the next touch and in the history; every step is saved, nothing is half there."""  # fmt: skip
    proxy = proxied(moto_store)
    train(run, 1, [url_of(moto_store)])
    proxy.inject(fault, method="PUT", path=path, times=None)
    with soon(), holdfast.Run(run, mirrors=[url_of(moto_store)], keep=LAST) as opened:
        opened.resume()
        for step in range(2, 4):
            opened.state.update(content(step))
            opened.save(step=step, wait=True)
        until(lambda: problems(run) or held(moto_store)[-1] == 3)
        opened.state.update(content(4))
        opened.save(step=4, wait=True)
        touched = said.text
    assert steps(run)[-2:] == [3, 4]
    seen = held(moto_store)
    if words is None:
        assert seen[-1] == 4, "what is there although the answer was lost was not recognised"
    else:
        assert seen == [1], "something that did not arrive whole is seen"
        assert words in problems(run)[0]
        assert "was not brought up to date" in touched
        assert f"The mirror {url_of(moto_store)} is not up to date" in said.text
    proxy.heal()
    train(run, 0, [url_of(moto_store)])
    assert held(moto_store) == folders(moto_store)
    assert held(moto_store)[-1] == 4


def test_a_server_that_dies_and_comes_back(moto_store, run, soon, proxied, said):
    """A server that dies in the middle of a run is told, and when it is back the mirror catches up in the same launch."""
    proxy = proxied(moto_store)
    with soon() as patch:
        patch.setattr(mirroring, "CLOSE_SECONDS", 30.0)
        patch.setattr(stores, "QUICK_SECONDS", 20.0)
        opened = holdfast.Run(run, mirrors=[url_of(moto_store)], keep=LAST)
        opened.resume()
        opened.save(step=1, wait=True)
        until(lambda: held(moto_store) == [1])
        proxy.die()
        opened.save(step=2, wait=True)
        until(lambda: problems(run))
        proxy.revive()
        opened.save(step=3, wait=True)
        opened.close()
    assert "nothing answers at" in problems(run)[0]
    assert "can be written again, and is up to date" in said.text
    assert held(moto_store) == folders(moto_store) == [2, 3]


def test_a_gateway_killed_in_the_middle_of_a_file(ceph_store, run, proxied):
    """A real gateway that is killed while it takes parts comes back, and the file is whole, within one launch."""
    train(run, 1, size=LARGE)
    proxy = proxied(ceph_store)
    proxy.inject(delay(0.5), path="partNumber=3")
    strike = iter([ceph_store.server.kill])
    real = proxy._strike

    def kill_at_the_third_part(number, method, target):
        if "partNumber=3" in target:
            next(strike, lambda: None)()
        return real(number, method, target)

    proxy._strike = kill_at_the_third_part
    train(run, 0, [url_of(ceph_store)], size=LARGE)
    assert next(strike, None) is None, "nothing was killed"
    assert held(ceph_store) == [1]
    assert ceph_store.uploads() == []


def test_a_slow_link_holds_nothing_up(moto_store, run, proxied, said, monkeypatch):
    """Over a slow link steps are saved as fast as ever; close says what is not there yet, and the next launch goes on."""
    proxy = proxied(moto_store)
    train(run, 1, [url_of(moto_store)])
    proxy.inject(throttle(1_000_000), method="PUT", path="safetensors", times=None)
    with monkeypatch.context() as patch, holdfast.Run(run, mirrors=[url_of(moto_store)], keep=LAST) as opened:
        patch.setattr(mirroring, "CLOSE_SECONDS", 0.3)
        opened.resume()
        for step in range(2, 5):
            opened.state["w"] = np.full(3 << 20, step, np.float32)  # 12 seconds on this link
            opened.save(step=step, wait=True)
        assert held(moto_store) == [1]
        opened.close()
    assert steps(run)[-2:] == [3, 4]
    assert f"The mirror {url_of(moto_store)} is not up to date" in said.text
    assert held(moto_store) == [1]
    proxy.heal()
    with holdfast.Run(run, mirrors=[url_of(moto_store)], keep=LAST) as opened:
        assert opened.resume().step == 4
    assert held(moto_store)[-1] == 4


def test_what_lies_there_damaged_is_never_taken(moto_store, run):
    """A bit that flipped in the store is found before anything is published, and the next older one is fetched."""
    train(run, 2, [url_of(moto_store)])
    shutil.rmtree(run)
    key = key_of(moto_store, 2, "state.safetensors")
    data = bytearray(moto_store.read(key))
    data[5000] ^= 4
    moto_store.write(key, bytes(data))
    assert train(run, 0, [url_of(moto_store)]) == 1
    assert steps(run) == [1]


# -- credentials and places -----------------------------------------------------------------------------------


def test_wrong_credentials_and_missing_buckets(ceph_store, run, brisk, said, monkeypatch):
    """A real gateway's refusals are told with what to do, the training goes on, and a new run begins nothing."""
    train(run, 1)
    with monkeypatch.context() as patch:
        patch.setenv("AWS_SECRET_ACCESS_KEY", "planted-wrong-secret")
        assert train(run, 2, [url_of(ceph_store)]) == 1
        assert "does not accept the credentials (SignatureDoesNotMatch)" in said.text
        with pytest.raises(StorageError, match="Nothing was begun"):
            train(run + "-new", 1, [url_of(ceph_store)])
        patch.setenv("AWS_ACCESS_KEY_ID", "nobody")
        said.clear()
        assert train(run, 3, [url_of(ceph_store)]) == 2
        assert "does not accept the credentials (InvalidAccessKeyId)" in said.text
    said.clear()
    assert train(run, 4, [f"s3://no-such-{ceph_store.name}/x"]) == 3
    assert f"there is no bucket no-such-{ceph_store.name}" in said.text
    assert "planted-wrong-secret" not in said.text
    assert train(run, 5, [url_of(ceph_store)]) == 4
    assert held(ceph_store)[-1] == 5


def test_each_server_that_is_not_there(store, run, soon, said, monkeypatch):
    """Whatever kind of store it is: one that does not answer is told by its address, and the training goes on."""
    for name, value in store.environ(stores_nowhere(store)).items():
        monkeypatch.setenv(name, value)
    train(run, 1)
    with soon():
        assert train(run, 3, [url_of(store)]) == 1
    assert "nothing answers at http://127.0.0.1:9" in said.text
    assert steps(run)[-2:] == [2, 3]


def stores_nowhere(store):
    path = store.server.endpoint.partition("://")[2].partition("/")
    return "http://127.0.0.1:9" + path[1] + path[2]


# -- the end -----------------------------------------------------------------------------------------------------


def test_a_required_mirror_fails_in_bounded_time(moto_store, run, soon, proxied):
    """Close waits for a required mirror as long as something moves, and no longer; then it raises, and nothing is lost."""
    proxy = proxied(moto_store)
    proxy.inject(status(503), method="PUT", path="arrays", times=None)
    required = Mirror(url_of(moto_store), required=True)
    with soon() as patch, pytest.raises(StorageError, match="is not up to date.*is overloaded") as caught:
        patch.setattr(mirroring, "CLOSE_SECONDS", 10.0)
        patch.setattr(stores, "QUICK_SECONDS", 20.0)
        train(run, 4, [required])
    assert caught.value.exit_code == 10
    assert steps(run) == [1, 2, 3, 4], "something left the run that is nowhere else"
    proxy.heal()
    train(run, 0, [required])
    assert held(moto_store) == [3, 4]


SCRIPT = """
import sys
import holdfast
from holdfast import Every, Mirror
from holdfast.mirrors import mirroring
from holdfast.objects import stores
mirroring.CLOSE_SECONDS = float(sys.argv[3])
run = holdfast.Run(sys.argv[1], mirrors=[Mirror(sys.argv[2], required=sys.argv[4] == "required")], every=Every(steps=1))
for step in run.steps(1000):
    if step == 2:
        print("ready", flush=True)
    if step >= int(sys.argv[5]):
        import time
        time.sleep(0.05)
    if step == 5 and sys.argv[6] in ("stop", "close"):
        run.stop()
if sys.argv[6] == "close":
    run.close()
"""


@pytest.mark.parametrize(
    ("required", "end", "code"),
    [("required", "stop", 10), ("", "TERM", 75)],
)
def test_a_process_ends_in_bounded_time_and_tells(moto_store, run, proxied, required, end, code):
    """While its mirror hangs, a process ends by itself, by SIGTERM and by Ctrl-C within the limits, with a true exit code."""
    proxy = proxied(moto_store)
    train(run, 1, [url_of(moto_store)])
    proxy.inject(hang(), method="PUT", path="safetensors", times=None)
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, run, url_of(moto_store), "1.0", required, "3", end],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    if end != "stop":
        process.send_signal(getattr(signal, f"SIG{end}"))
    started = time.monotonic()
    _, errors = process.communicate(timeout=100)
    # The limits are a second, or five after a signal, and five for the last block.
    assert time.monotonic() - started < stores.QUICK_SECONDS, "it waited for the request"
    assert process.returncode == code, errors
    assert f"The mirror {url_of(moto_store)} is not up to date" in errors
    proxy.heal()
    assert held(moto_store) == [1]
    assert os.path.isdir(run)


def test_ctrl_c_while_close_waits(moto_store, run, proxied):
    """Ctrl-C ends the wait for a mirror that hangs, whatever the limit is."""
    proxy = proxied(moto_store)
    train(run, 1, [url_of(moto_store)])
    proxy.inject(hang(), method="PUT", path="safetensors", times=None)
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, run, url_of(moto_store), "600", "", "1000", "close"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stderr:
        if "Waiting for the mirrors" in line:
            break
    process.send_signal(signal.SIGINT)
    started = time.monotonic()
    process.communicate(timeout=100)
    assert time.monotonic() - started < stores.QUICK_SECONDS / 2
    assert process.returncode in (-2, 130)


def until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.05)
