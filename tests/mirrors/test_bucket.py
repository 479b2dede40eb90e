"""Mirrors in object stores as a user meets them: copies, lost runs, what stays, what is refused, what fails."""

import logging
import os
import shutil
import socket
import subprocess
import sys
import time

import pytest
from bucket_runs import Requests, folders, held, refuse
from mirrored_runs import LAST, draws, flip, names, steps, train

import holdfast
from holdfast import DamagedError, Keep, Mirror, NotFoundError, StorageError, UsageError, rewinding
from holdfast.mirrors import mirroring
from holdfast.mirrors.bucket import Bucket
from holdfast.objects import stores, urls
from holdfast.objects.access import Objects
from holdfast.store import book, catalog
from holdfast.store.lease import Lease


@pytest.fixture
def run(tmp_path):
    return str(tmp_path / "run")


@pytest.fixture
def url(bucket):
    return f"s3://{bucket}/runs/first"


@pytest.fixture
def silent(monkeypatch):
    """Leads to a server that takes connections and never answers, from the call on."""
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        opened.listen(50)
        real = Objects._begin

        def begin():
            dead = f"http://127.0.0.1:{opened.getsockname()[1]}"
            monkeypatch.setenv("AWS_ENDPOINT_URL", dead)
            connected = stores.connect(urls.parse("s3://bucket"))

            def ask(objects, *more):
                objects._stores = connected
                return real(objects, *more)

            monkeypatch.setattr(Objects, "_begin", ask)

        yield begin


def events(run, kind):
    return [event for event in book.read_events(run) if event["event"] == kind]


def objects_of(url):
    return Objects.at(url)


def cut(url, name, file):
    """Leaves the first half of a file."""
    objects = objects_of(url)
    data = objects.small(f"{name}/{file}", 1 << 30)
    objects.put(f"{name}/{file}", data[: len(data) // 2])


# -- copies ------------------------------------------------------------------------------------------


def test_it_holds_what_the_run_holds(run, url):
    """After close a bucket has the same checkpoints, to the byte, and run.json, and nothing else."""
    train(run, 3, [url])
    assert held(url) == [2, 3]
    there, expected = objects_of(url), {"run.json"}
    for name in names(run):
        for file in os.listdir(os.path.join(run, name)):
            expected.add(f"{name}/{file}")
            with open(os.path.join(run, name, file), "rb") as here:
                assert there.small(f"{name}/{file}", 1 << 30) == here.read()
    assert set(there.names()) == expected
    assert book.decode_run(there.small("run.json", 1 << 20), url).id == book.read_run(run).id


def test_a_folder_and_a_bucket(run, url, tmp_path):
    """A directory and a bucket are mirrors side by side, each with a Keep of its own."""
    arch = str(tmp_path / "arch")
    train(run, 4, [arch, Mirror(url, keep=Keep(last=3), limit="50 MB")])
    assert steps(arch) == [3, 4]
    assert held(url) == [2, 3, 4]
    assert [record["url"] for record in book.read_run(run).mirrors] == [arch, url]


def test_a_bucket_of_its_own(run, bucket):
    """A mirror without a prefix takes the whole bucket."""
    train(run, 3, [f"s3://{bucket}/"])
    assert held(f"s3://{bucket}") == [2, 3]


def test_a_folder_made_by_hand(run, url, s3, bucket):
    """The empty objects that consoles show as folders are nothing: neither in the way nor taken for something."""
    s3.put_object(Bucket=bucket, Key="runs/first/", Body=b"")
    train(run, 2, [url])
    s3.put_object(Bucket=bucket, Key=f"runs/first/{folders(url)[0]}/", Body=b"")
    s3.put_object(Bucket=bucket, Key="runs/first/pins/", Body=b"")
    train(run, 3, [url])
    assert held(url) == [2, 3]
    shutil.rmtree(run)
    assert train(run, 0, [url]) == 3


def test_a_checkpoint_is_sent_once(run, url):
    """What a bucket has already is not sent again, in this launch or the next."""
    train(run, 2, [url])
    train(run, 3, [url])
    sent = [event["name"] for event in events(run, "mirror") if "name" in event]
    assert len(sent) == len(set(sent)) == 3


def test_an_interrupted_copy_goes_on_by_file(run, url, monkeypatch):
    """Files that an interrupted copy finished are not sent again; one of the same size with another content is."""
    train(run, 1)
    with monkeypatch.context() as patch:
        Requests(patch, "arrays.json", refuse)
        train(run, 0, [url])
    assert held(url) == []
    there = objects_of(url)
    [name] = folders(url)
    size = there.size(f"{name}/README.md")
    there.put(f"{name}/README.md", b"x" * size, digest="0" * 32)
    with monkeypatch.context() as patch:
        requests = Requests(patch)
        train(run, 0, [url])
    written = [file.rpartition("/")[2] for file in requests.of("write")]
    assert written == ["run.json", "README.md", "arrays.json", "checkpoint.json"]
    assert held(url) == [1]
    [event] = [event for event in events(run, "mirror") if "name" in event]
    assert event["found"] == there.size(f"{name}/state.safetensors")


def test_a_wrong_file_is_gone_before_it_is_sent_anew(run, url):
    """It cannot be taken for the one in its place, by a store that says the same of a lost answer and of a lost upload."""
    train(run, 1, [url])
    [name] = folders(url)
    mirror = Bucket(url)
    mirror.entries()
    target = mirror.target(name)
    target.begin({"README.md": "0" * 32, "arrays.json": ""})
    part = target.part("README.md", 5)
    part.close()
    with pytest.raises(NotFoundError):
        objects_of(url).facts(f"{name}/README.md")


def test_a_checkpoint_that_somebody_else_published_stays(run, url, monkeypatch, said):
    """A manifest that comes while a copy is on its way is not written over; the training goes on and is told."""
    from holdfast.mirrors.bucket import Bucket

    real, there = Bucket.publish, objects_of(url)

    def publish(self, name):
        there.put(f"{name}/checkpoint.json", b"another's")
        return real(self, name)

    monkeypatch.setattr(Bucket, "publish", publish)
    train(run, 1, [url])
    [name] = folders(url)
    assert there.small(f"{name}/checkpoint.json", 100) == b"another's"
    assert "has another checkpoint" in said.text


def test_large_files(run, url):
    """A file of several parts goes there and comes back to the bit."""
    size = 9 << 20  # 36 MB: three parts
    train(run, 1, [url], size=size)
    shutil.rmtree(run)
    assert train(run, 0, [url], size=size) == 1
    assert steps(run) == [1]


def test_damage_is_not_spread(run, url, said):
    """A local checkpoint that is damaged is found while it is copied, told, and never seen in the bucket."""
    train(run, 3)
    flip(run, 2)
    train(run, 0, [url])
    assert held(url) == [3]
    assert len(folders(url)) == 1
    assert "is damaged in block 0 of 1" in said.text


def test_what_was_cut_is_sent_again(run, url):
    """A checkpoint that lost a file, or the end of one, in the bucket is copied there once more."""
    train(run, 3, [url])
    first, second = folders(url)
    cut(url, first, "state.safetensors")
    objects_of(url).delete([f"{second}/arrays.json"])
    train(run, 0, [url])
    assert held(url) == [2, 3]


def test_a_damaged_manifest_is_sent_again(run, url):
    """A checkpoint whose manifest in the bucket is damaged is copied once more, and never resumed from."""
    train(run, 3, [url])
    cut(url, folders(url)[1], "checkpoint.json")
    train(run, 0, [url])
    assert held(url) == [2, 3]


# -- a run that is lost, or behind ---------------------------------------------------------------------


def test_a_lost_run_continues_to_the_bit(tmp_path, run, url):
    """A run whose directory is gone goes on from its bucket, and ends as one that was never interrupted."""
    straight = draws(str(tmp_path / "straight"), 9)
    draws(run, 5, [url])
    identity = book.read_run(run).id
    shutil.rmtree(run)
    assert draws(run, 9, [url]) == straight
    assert book.read_run(run).id == identity
    numbers = [int(name[:6]) for name in folders(url)]
    assert len(set(numbers)) == len(numbers), "a number was used twice"


def test_best_and_pins_come_back(run, url):
    """Best and pinned ones stay in the bucket; a lost run gets its best back beside the newest, and the pin."""
    keep = Keep(last=1, best=1, metric="m", mode="max")

    def go(goal):
        with holdfast.Run(run, mirrors=[url], keep=keep) as opened:
            start = opened.resume().step
            for step in range(start + 1, goal + 1):
                opened.save(step=step, metrics={"m": -abs(step - 2)}, wait=True)

    go(2)
    holdfast.open(f"{run}@best").pin()
    go(4)
    assert held(url) == [2, 4]
    assert [name for name in objects_of(url).names() if name.startswith("pins/")] == [
        f"pins/{folders(url)[0]}"
    ]
    shutil.rmtree(run)
    go(5)
    assert holdfast.open(f"{run}@best").progress.step == 2
    assert catalog.marks(run, "pins") == {name for name in names(run) if name.startswith("000002")}
    assert held(url) == [2, 5]


def test_a_rewind_is_not_undone(run, url):
    """What a rewind left behind is marked in the bucket, and not taken up again from there."""
    train(run, 3, [Mirror(url, keep=Keep(last=5))], keep=Keep(last=5))
    rewinding.rewind(run, f"{run}@step=2", wait=0)
    train(run, 2, [url], keep=Keep(last=5))
    [mark] = [name for name in objects_of(url).names() if name.startswith("abandoned/")]
    assert mark.partition("/")[2] == names(run)[2]
    shutil.rmtree(run)
    assert train(run, 0, [url]) == 2


def test_behind_a_bucket(run, url, tmp_path, said):
    """A run that is behind its bucket goes on from the newer one, and says so."""
    train(run, 2, [url])
    shutil.copytree(run, tmp_path / "old", symlinks=True)
    train(run, 4, [url])
    shutil.rmtree(run)
    os.rename(tmp_path / "old", run)
    assert train(run, 5, [url]) == 4
    assert f"{run} is behind its mirror {url}" in said.text


def test_what_cannot_be_read_is_not_passed_over(run, url, monkeypatch):
    """A newest checkpoint that the store does not give just now is no reason to go on from an older one."""
    train(run, 3, [url])
    shutil.rmtree(run)
    newest = folders(url)[1]
    with monkeypatch.context() as patch:
        Requests(patch, f"{newest}/checkpoint.json", refuse)
        with pytest.raises(StorageError, match="Nothing was begun"):
            train(run, 0, [url])
    assert train(run, 0, [url]) == 3


# -- repair ------------------------------------------------------------------------------------------------


def test_exactly_the_damaged_block_is_fetched(run, url, monkeypatch):
    """A launch makes a damaged block whole by one request for that block's bytes."""
    size = 9 << 20
    train(run, 1, [url], size=size)
    flip(run, 1, at=(16 << 20) + 99)
    asked, real = [], Objects.read

    def read(objects, name, into, offset):
        asked.append((name, offset, len(into)))
        return real(objects, name, into, offset)

    monkeypatch.setattr(Objects, "read", read)
    assert train(run, 0, [url], size=size) == 1
    assert asked == [("state.safetensors", 16 << 20, 16 << 20)]
    assert events(run, "repair")[0]["bytes"] == 16 << 20
    assert steps(run) == [1]


@pytest.mark.parametrize("named", ["by hand", "in run.json"])
def test_verify_repairs_from_a_bucket(run, url, named):
    """`holdfast verify --repair` takes a damaged block from a bucket: one that is named, or the run's own."""
    train(run, 2, [url] if named == "in run.json" else [])
    if named == "by hand":
        shutil.copytree(run, f"{run}.copy", symlinks=True)
        train(f"{run}.copy", 0, [url])
    flip(run, 2)
    words = ["--mirror", url] if named == "by hand" else []
    done = subprocess.run(
        [sys.executable, "-m", "holdfast", "verify", run, "--repair", *words],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "repaired 000002" in done.stdout
    assert steps(run) == [1, 2]


# -- what is refused ---------------------------------------------------------------------------------------


def test_another_run(run, url, tmp_path):
    """A bucket that holds another run is refused with both ids, and nothing is written there."""
    other = str(tmp_path / "other")
    train(other, 1, [url])
    train(run, 1)
    before = objects_of(url).names()
    with pytest.raises(UsageError, match=r"holds another run") as caught:
        train(run, 2, [url])
    assert book.read_run(other).id in str(caught.value)
    assert book.read_run(run).id in str(caught.value)
    assert objects_of(url).names() == before


def test_a_prefix_in_use(run, url):
    """A prefix that holds something else is refused, and nothing is written there."""
    objects_of(url).put("data/part-0001", b"x")
    with pytest.raises(UsageError, match=r"is not a run and not empty \(it holds data/part-0001\)"):
        train(run, 1, [url])
    assert objects_of(url).names() == {"data/part-0001": 1}


def test_a_run_does_not_train_in_a_bucket(url):
    """A URL in the place of the run's directory is refused with the remedy; no folder of that name is made."""
    with pytest.raises(UsageError, match=r"mirrors=\['s3://"):
        holdfast.Run(url)
    assert not os.path.exists("s3:")


def test_a_bucket_that_was_emptied_is_not_begun_anew(run, url, said):
    """Where a mirror was and nothing is any more, nothing is written: the bucket may be another one."""
    train(run, 2, [url])
    there = objects_of(url)
    there.delete(list(there.names()))
    train(run, 3, [url])
    assert there.names() == {}
    assert f"There is no run in {url} any more" in said.text


def test_a_lost_lease_changes_nothing(run, url, monkeypatch):
    """A holder that lost its lease publishes and deletes nothing in the bucket, whatever it has copied."""
    train(run, 2, [url])
    before = set(objects_of(url).names())
    real = Lease.check

    def check(lease):
        made = [name for operation, name in requests.made if operation == "write"]
        if any(name == "arrays.json" for name in made):
            raise holdfast.LeaseError("Taken over, for the test.", holder=None)
        real(lease)

    requests = Requests(monkeypatch)
    monkeypatch.setattr(Lease, "check", check)
    with holdfast.Run(run, mirrors=[url], keep=LAST) as opened:
        opened.resume()
        opened.save(step=3, wait=True)
        deadline = time.monotonic() + 20
        while "arrays.json" not in requests.of("write") and time.monotonic() < deadline:
            time.sleep(0.01)
    assert before <= set(objects_of(url).names())
    assert held(url) == [1, 2]


# -- when it fails -----------------------------------------------------------------------------------------


def test_a_store_that_hangs_never_stops_the_training(run, url, silent, monkeypatch, said):
    """A store that stops answering holds up neither the steps nor, beyond its limit, the end of the run."""
    monkeypatch.setattr(mirroring, "CLOSE_SECONDS", 0.5)
    opened = holdfast.Run(run, mirrors=[url], keep=LAST)
    opened.resume()
    opened.save(step=1, wait=True)
    silent()
    for step in range(2, 8):
        opened.save(step=step, wait=True)
        assert len(names(run)) <= 5
    started = time.monotonic()
    opened.close()
    assert time.monotonic() - started < stores.QUICK_SECONDS / 2, "close waited for the request"
    assert f"The mirror {url} is not up to date" in said.text
    assert steps(run)[-2:] == [6, 7]


def test_a_missing_bucket_is_told_and_the_training_goes_on(run, s3, said):
    """A bucket that does not exist is a warning that says so, at a start and behind the training."""
    train(run, 1)
    assert train(run, 3, ["s3://no-such-bucket/x"]) == 1
    assert "there is no bucket no-such-bucket" in said.text
    assert steps(run)[-2:] == [2, 3]


def test_a_required_bucket(run, bucket, url, monkeypatch):
    """A required bucket that fails holds back every deletion, and close raises; the next launch brings it all."""
    train(run, 1, [url])
    with monkeypatch.context() as patch:
        patch.setattr(mirroring, "CLOSE_SECONDS", 0.5)
        patch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        patch.setattr(stores, "QUICK_RETRIES", 0.1)
        with pytest.raises(StorageError, match=f"{url} is not up to date.*nothing answers"):
            train(run, 5, [Mirror(url, required=True)])
    assert steps(run) == [1, 2, 3, 4, 5]
    train(run, 0, [Mirror(url, required=True)])
    assert held(url) == [4, 5]


HANGING = """
import os, sys
import holdfast
from holdfast import Every
run = holdfast.Run(sys.argv[1], mirrors=[sys.argv[2]], every=Every(steps=1))
run.resume()
run.save(step=2, wait=True)
print("saved", flush=True)
if sys.argv[3] == "Ctrl-C":
    import time
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        sys.exit(9)
sys.exit(8)
"""


@pytest.mark.parametrize("end", ["exit", "Ctrl-C"])
def test_a_process_ends_while_a_request_hangs(run, url, moto, monkeypatch, end):
    """A process whose mirror hangs ends within the stated limit, with its own exit code."""
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        opened.listen(50)
        dead = f"http://127.0.0.1:{opened.getsockname()[1]}"
        script = HANGING.replace(
            "run.resume()",
            "run.resume()\n"
            "from holdfast.mirrors import mirroring\n"
            "from holdfast.objects import access, stores\n"
            "mirroring.CLOSE_SECONDS = 1.0\n"
            f"os.environ['AWS_ENDPOINT_URL'] = {dead!r}\n"
            "real = access.Objects._begin\n"
            "def begin(objects, *more):\n"
            "    objects._stores = stores.connect(objects.address)\n"
            "    return real(objects, *more)\n"
            "access.Objects._begin = begin",
        )
        process = subprocess.Popen(
            [sys.executable, "-c", script, run, url, end], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout.readline() == "saved\n"
        time.sleep(0.5)
        if end == "Ctrl-C":
            process.send_signal(2)
        started = time.monotonic()
        assert process.wait(60) == (9 if end == "Ctrl-C" else 8)
        assert time.monotonic() - started < stores.QUICK_SECONDS / 2, "the end waited for the request"
    with holdfast.Run(run, mirrors=[url]) as again:
        assert again.resume().step == 2
    assert held(url) == [2]


# -- secrets -------------------------------------------------------------------------------------------------


def test_no_credential_is_written_anywhere(run, url, monkeypatch, caplog, s3):
    """Credentials reach no file of the run or the mirror, no log, and no error."""
    monkeypatch.setattr(logging.getLogger("holdfast"), "propagate", True)
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.INFO, "botocore")  # below, it logs what it signs: the page on mirrors says so
    monkeypatch.setenv("AWS_SESSION_TOKEN", "planted-token")
    train(run, 2, [url], config={"lr": 0.1}, note="with secrets around")
    said = [caplog.text]
    monkeypatch.setattr(stores, "QUICK_RETRIES", 0.1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://user:planted-password@127.0.0.1:9/?key=planted-query")
    train(run, 3, [url], config={"lr": 0.1})
    shutil.copytree(run, f"{run}.kept")
    shutil.rmtree(run)
    with pytest.raises(StorageError) as caught:
        train(run, 3, [url], config={"lr": 0.1})
    error = caught.value
    while error is not None:
        said.append(f"{error} {error!r} {getattr(error, 'facts', '')}")
        error = error.__cause__ or error.__context__
    said.append(caplog.text)
    for folder, _, found in os.walk(f"{run}.kept"):
        for file in found:
            with open(os.path.join(folder, file), "rb") as opened:
                said.append(opened.read().decode("latin-1"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.meta.endpoint_url)
    there = objects_of(url)
    said += [there.small(name, size).decode("latin-1") for name, size in there.names().items()]
    for secret in ("planted", "AKIAPLANTEDKEY"):
        assert not any(secret in text for text in said), secret


# -- what it costs -------------------------------------------------------------------------------------------


def test_requests_per_checkpoint(run, url, monkeypatch):
    """A checkpoint of four files costs the requests that the page on mirrors states, as the server counts them."""
    from werkzeug.serving import WSGIRequestHandler

    made = []

    def note(handler, *_):
        path, what = handler.path, handler.command
        what = (
            "LIST" if "list-type" in path or "?uploads" in path else "DELETE" if "?delete" in path else what
        )
        made.append((what, path.rpartition("/")[2].partition("?")[0]))

    monkeypatch.setattr(WSGIRequestHandler, "log_request", note)
    train(run, 2, [url])
    del made[:]
    with holdfast.Run(run, mirrors=[url], keep=LAST) as opened:
        opened.resume()
        opening = [what for what, _ in made[:4]]
        _settle(opened)
        opened.save(step=3, wait=True)  # its first look reads the manifests that the bucket has
        _settle(opened)
        del made[:]
        opened.save(step=4, wait=True)
        _settle(opened)
        saving = sorted(what for what, _ in made)
    assert opening == ["GET", "LIST"] * 2
    assert saving == ["DELETE"] * 2 + ["GET"] + ["HEAD"] + ["LIST"] * 3 + ["PUT"] * 4


def _settle(opened):
    """Waits until the mirrors are up to date."""
    deadline = time.monotonic() + 20
    while not opened._training.mirroring._idle():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_foreign_checkpoint_in_a_bucket(run, url, tmp_path):
    """A checkpoint of another run under the mirror's prefix is never resumed from."""
    other = str(tmp_path / "other")
    train(run, 2, [url])
    train(other, 5)
    there, name = objects_of(url), names(other)[-1]
    for file in os.listdir(os.path.join(other, name)):
        with open(os.path.join(other, name, file), "rb") as opened:
            there.put(f"{name}/{file}", opened.read())
    shutil.rmtree(run)
    assert train(run, 0, [url]) == 2


def test_nothing_whole(run, url):
    """A lost run whose bucket has nothing whole does not begin anew."""
    train(run, 1, [url])
    cut(url, folders(url)[0], "state.safetensors")
    shutil.rmtree(run)
    with pytest.raises(DamagedError):
        train(run, 1, [url])
