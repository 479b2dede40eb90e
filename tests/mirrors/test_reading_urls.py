"""Runs and checkpoints read straight from an object store, and a mirror there made whole."""

import json
import os
import shutil
import signal
import threading
import time

import boto3
import numpy as np
import pytest
from between import Between
from click.testing import CliRunner
from mirrored_runs import content, flip, names, train
from servers.contents import key_of, url_of

import holdfast
from holdfast import Every, Keep
from holdfast.cli.main import main
from holdfast.errors import DamagedError, LeaseError, NotFoundError, StorageError, UsageError
from holdfast.store import catalog

BLOCK = 16 << 20
BIG = np.arange((BLOCK // 4) * 5 // 4, dtype=np.float32)  # 20 MiB: two blocks with its header


class Box:
    """Something with a state."""

    def __init__(self, **arrays):
        self.arrays = arrays

    def state_dict(self):
        return dict(self.arrays)

    def load_state_dict(self, state):
        self.arrays = dict(state)


def trained(path, size):
    """A run of three checkpoints, the second of which is the best."""
    big, small = Box(x=BIG[:size]), Box(**{f"w{number}": np.zeros(100, "f4") for number in range(50)})
    keep = Keep(last=5, best=1, metric="acc", mode="max")
    with holdfast.Run(path, note="tried", keep=keep, every=Every(steps=1)) as run:
        run.track(big=big, small=small)
        run.resume()
        for step in (1, 2, 3):
            small.arrays["w7"] = np.full(100, step, "f4")
            run.state.update(step=step)
            run.save(step=step, metrics={"acc": -abs(step - 2.0)}, wait=True)
    return path


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    return trained(str(tmp_path_factory.mktemp("read") / "run"), len(BIG))


@pytest.fixture(scope="module")
def light(tmp_path_factory):
    """The same with little in it."""
    return trained(str(tmp_path_factory.mktemp("light") / "run"), 1000)


@pytest.fixture
def between(moto, s3, monkeypatch):
    server = Between(moto)
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
    yield server
    server.close()


def put(client, bucket, run, prefix):
    """Copies what a mirror has of a run, by the store's own client."""
    for folder, _, found in os.walk(run):
        for file in found:
            path = os.path.join(folder, file)
            name = os.path.relpath(path, run)
            if name == "run.json" or "/" in name:
                with open(path, "rb") as opened:
                    client.put_object(Bucket=bucket, Key=f"{prefix}/{name}", Body=opened.read())


@pytest.fixture(scope="module")
def heavy(moto, local):
    """A bucket that holds the run; who changes it puts it back."""
    client = boto3.client(
        "s3",
        endpoint_url=moto,
        region_name="us-east-1",
        aws_access_key_id="AKIAPLANTEDKEY",
        aws_secret_access_key="planted+secret/key",
    )
    client.create_bucket(Bucket="heavy")
    put(client, "heavy", local, "exp/digits")
    return "s3://heavy/exp/digits"


@pytest.fixture
def url(heavy, between):
    return heavy


@pytest.fixture
def little(s3, bucket, light, between):
    """The light run in a bucket of the test's own."""
    put(s3, bucket, light, "exp/digits")
    return f"s3://{bucket}/exp/digits"


def call(*words):
    done = CliRunner().invoke(main, [*map(str, words)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr


def harm(s3, url, at=5000):
    """Flips a bit of an object, behind everybody's back."""
    bucket, _, key = url.partition("://")[2].partition("/")
    found = s3.get_object(Bucket=bucket, Key=key)
    data = bytearray(found["Body"].read())
    data[at] ^= 4
    s3.put_object(Bucket=bucket, Key=key, Body=bytes(data), Metadata=found["Metadata"])


# -- the same as here ----------------------------------------------------------------------------------


@pytest.mark.parametrize("selector", ["", "@best", "@latest", "@-2", "@step=1", "@seq=3"])
def test_a_reference_means_the_same(url, local, selector):
    """A URL in the place of the path: the same checkpoint, its facts and its values, to the bit."""
    here, there = holdfast.open(local + selector), holdfast.open(url + selector)
    assert there.path == f"{url}/{here.name}"
    assert (there.name, there.metrics, there.note, there.parts) == (
        here.name, here.metrics, "tried", here.parts,
    )  # fmt: skip
    mine, theirs = here.load(arrays="numpy"), there.load(arrays="numpy")
    assert theirs["state"] == mine["state"]
    assert np.array_equal(theirs["big"]["x"], BIG)
    assert all(np.array_equal(theirs["small"][name], value) for name, value in mine["small"].items())


def test_restoring_in_place(url, local):
    """`restore` fills what is there, and a checkpoint has a URL of its own."""
    target = {"x": np.zeros_like(BIG)}
    name = names(local)[1]
    values = holdfast.restore(f"{url}/{name}", {"big": target}, strict=False)
    assert np.array_equal(target["x"], BIG)
    assert values["state"] == {"step": 2}


def test_only_what_is_asked_for_is_fetched(url, between):
    """A part costs its own blocks, once each, and the JSON files; of the others not a byte is given."""
    checkpoint = holdfast.open(f"{url}@best")
    assert checkpoint.load(parts=["small"], arrays="numpy")["small"]["w7"][0] == 2
    size = checkpoint.manifest.files["small.safetensors"].size
    assert between.bytes_of("/small.safetensors") == size
    assert between.bytes_of("/big.safetensors") == 0
    assert between.bytes_of("/arrays.json") == checkpoint.manifest.files["arrays.json"].size
    rest = sum(count for method, _, count in between.given if method == "GET") - size
    assert rest < 100_000  # checkpoint.json, arrays.json, run.json, and one list
    between.given.clear()
    checkpoint.load(parts=["big"], arrays="numpy")
    ranges = [count for _, path, count in between.given if path.endswith("/big.safetensors")]
    size = checkpoint.manifest.files["big.safetensors"].size
    assert sorted(ranges) == [8, size - BLOCK, BLOCK]


def test_the_commands_say_the_same(url, local):
    """`ls` and `show` look as they do for a directory; `diff` finds the two equal, `export` writes the same file."""
    assert [line.split() for line in call("ls", url)[1].splitlines()[1:]] == [
        line.split() for line in call("ls", local)[1].splitlines()[1:]
    ]
    listed = json.loads(call("ls", url, "--json")[1])
    assert [row["path"] for row in listed["checkpoints"]] == [f"{url}/{name}" for name in names(local)]
    here, there = (call("show", f"{place}@best")[1] for place in (local, url))
    assert there == here.replace(local, url)
    assert "Equal, bit for bit" in call("diff", f"{url}@best", f"{local}@best")[1]
    assert "DIFFERENT" in call("diff", f"{url}@best", f"{url}@latest")[1]
    code, out, _ = call("verify", url)
    assert (code, out.count("whole    0000"), "3 checkpoints" in out) == (0, 3, True)
    code, out, _ = call("ls", "s3://heavy")
    assert (code, "exp/digits" in out) == (0, True)


def test_export_from_a_url(little, light, tmp_path):
    """A checkpoint far away is exported as one here is."""
    for place, target in ((light, "here.pth"), (little, "there.pth")):
        assert call("export", f"{place}@best", tmp_path / target, "--part", "small")[0] == 0
    here, there = (tmp_path / name for name in ("here.pth", "there.pth"))
    assert here.stat().st_size == there.stat().st_size > 20_000


def test_a_run_begins_from_a_checkpoint_far_away(little, tmp_path):
    """`init` takes a URL."""
    small = Box(**{f"w{number}": np.zeros(100, "f4") for number in range(50)})
    with holdfast.Run(tmp_path / "run", init={"small": f"{little}@best"}) as run:
        run.track(small=small)
        run.resume()
    assert small.arrays["w7"][0] == 2


# -- what is not there ---------------------------------------------------------------------------------


def test_nothing_there(little, bucket):
    """What is there instead is named: a near name, the runs below."""
    code, _, err = call("show", f"s3://{bucket}/exp/digit@best")
    assert (code, f"did you mean '{little}'" in err.lower()) == (4, True)
    code, _, err = call("ls", f"s3://{bucket}/none/there")
    assert (code, "There is no run or checkpoint" in err) == (4, True)
    with pytest.raises(NotFoundError, match="has no checkpoint for @step=99"):
        holdfast.open(f"{little}@step=99")
    with pytest.raises(UsageError, match="is a checkpoint, not a run"):
        holdfast.open(f"{holdfast.open(little).path}@best")
    code, _, err = call("ls", "s3://no-such-bucket/x")
    assert (code, "there is no bucket no-such-bucket" in err) == (10, True)


def test_what_is_on_its_way_is_no_checkpoint(little, s3, bucket, light):
    """Without its checkpoint.json it is not seen, by no reference."""
    name = names(light)[-1]
    s3.delete_object(Bucket=bucket, Key=f"exp/digits/{name}/checkpoint.json")
    assert holdfast.open(little).name == names(light)[1]
    assert name not in call("ls", little, "--json")[1]
    with pytest.raises(NotFoundError):
        holdfast.open(f"{little}/{name}")


@pytest.mark.parametrize("words", [
    ["prune", "URL"], ["rewind", "URL", "@-2"], ["doctor", "URL"], ["status", "URL"],
    ["import", "x.pth", "URL"], ["import", "URL", "run"], ["export", "local@best", "URL/x.pth"],
    ["submit", "--print", "--run", "URL", "--", "python", "x.py"],
], ids=lambda words: words[0])  # fmt: skip
def test_what_needs_a_directory_refuses_a_url(words, tmp_path, monkeypatch):
    """It says so, without asking any server, and makes nothing; nor does a password get out."""
    monkeypatch.chdir(tmp_path)
    for url in ("s3://bucket/run", "s3://user:PASSWORD@bucket/run?token=PASSWORD"):
        code, out, err = call(*[word.replace("URL", url) for word in words])
        assert code == 2, (out, err)
        assert "is a URL" in err
        assert "Next:" in err
        assert "PASSWORD" not in out + err
        assert os.listdir(tmp_path) == []


def test_a_save_and_a_run_refuse_a_url(tmp_path, monkeypatch):
    """What is written is written here."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="needs a directory"):
        holdfast.save("s3://bucket/first", {"x": np.zeros(3)})
    with pytest.raises(UsageError):
        holdfast.Run("s3://bucket/first")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("command", ["ls", "show", "verify", "pin"])
def test_a_url_with_a_password_is_refused(command):
    """It would get into logs; nothing of it is shown."""
    code, out, err = call(command, "s3://user:PASSWORD@bucket/run@best?sig=PASSWORD")
    assert code == 2
    assert "brings credentials" in err
    assert "PASSWORD" not in out + err


# -- what goes wrong -------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["small.safetensors", "arrays.json", "checkpoint.json"])
@pytest.mark.parametrize("fault", ["cut", "refuse", "spoil"])
def test_a_fault_that_passes_is_not_noticed(little, between, file, fault):
    """An answer that breaks off, fails or arrives damaged is asked for once more."""
    getattr(between, fault)[f"/{file}"] = 1
    values = holdfast.open(little).load(arrays="numpy")
    assert np.array_equal(values["big"]["x"], BIG[:1000])
    assert values["state"] == {"step": 3}
    assert not any(getattr(between, fault).values())


def test_damage_that_stays_names_file_block_and_arrays(little, s3, bucket):
    """As here; and what was to be filled is as it was."""
    checkpoint = holdfast.open(little)
    harm(s3, f"{checkpoint.path}/small.safetensors")
    target = Box(**{f"w{number}": np.full(100, 5, "f4") for number in range(50)})
    with pytest.raises(DamagedError) as caught:
        checkpoint.restore({"small": target.arrays})
    error = caught.value
    assert (error.file, error.block, error.path) == ("small.safetensors", 0, checkpoint.path)
    assert "small/w7" in error.arrays
    assert not error.target_changed
    assert all((array == 5).all() for array in target.arrays.values())


def test_a_damaged_checkpoint_in_no_run(s3, bucket, between, light):
    """It has no mirror to be repaired from, and nobody says so."""
    for name in os.listdir(os.path.join(light, names(light)[0])):
        s3.upload_file(os.path.join(light, names(light)[0], name), bucket, f"alone/{name}")
    assert call("verify", f"s3://{bucket}/alone")[0] == 0
    harm(s3, f"s3://{bucket}/alone/small.safetensors")
    code, out, _ = call("verify", f"s3://{bucket}/alone")
    assert (code, out.splitlines()[-1]) == (
        5, "Next: put a copy of it in its place, or use an older checkpoint.",
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["missing", "short", "long"])
def test_a_file_of_another_size_is_damage(little, s3, bucket, kind):
    """It is found before a byte is written to what is restored."""
    checkpoint = holdfast.open(little)
    place = {"Bucket": bucket, "Key": f"exp/digits/{checkpoint.name}/small.safetensors"}
    if kind == "missing":
        s3.delete_object(**place)
    else:
        data = s3.get_object(**place)["Body"].read()
        s3.put_object(**place, Body=data[:-1] if kind == "short" else data + b"x")
    with pytest.raises(DamagedError) as caught:
        checkpoint.load(parts=["small"])
    assert caught.value.file == "small.safetensors"
    code, out, _ = call("verify", checkpoint.path)
    assert (code, "small.safetensors" in out) == (5, True)


def test_a_checkpoint_deleted_while_it_is_read(little, s3, bucket, between, light):
    """By reference, the one that it means now is read; by its own URL it is gone, which is no damage."""
    reference, own = holdfast.open(little), holdfast.open(holdfast.open(little).path)
    name = reference.name

    def delete(method, path):
        if path.endswith("/big.safetensors") and name in path:
            for file in ("checkpoint.json", "big.safetensors"):
                s3.delete_object(Bucket=bucket, Key=f"exp/digits/{name}/{file}")

    between.before = delete
    assert reference.load(arrays="numpy")["state"] == {"step": 2}
    assert reference.name == names(light)[1]
    with pytest.raises(NotFoundError):
        own.load()


def test_a_store_that_does_not_answer_is_no_reason_to_take_an_older_one(
    little, s3, bucket, light, monkeypatch
):
    """The newest cannot be read: an error, not the one before it."""
    from holdfast.objects.access import Objects

    newest, small = names(light)[-1], Objects.small

    def failing(objects, name, limit):
        if newest in f"{objects.url}/{name}":
            raise StorageError("no answer", path=name, operation="read")
        return small(objects, name, limit)

    monkeypatch.setattr(Objects, "small", failing)
    with pytest.raises(StorageError):
        holdfast.open(little)


def test_ctrl_c_ends_a_read_that_hangs(little, between):
    """Neither the request of the main thread nor those of the others are waited for."""
    checkpoint = holdfast.open(little)
    checkpoint.arrays()
    held = threading.Event()

    def hold(method, path):
        if path.endswith(".safetensors"):
            threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start() if not began else None
            began.append(path)
            held.wait(60)

    began = []
    between.before = hold
    started = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            checkpoint.load(["small", "big"])
    finally:
        held.set()
    assert began
    assert time.monotonic() - started < 30  # a hang would be 3 minutes


# -- verify ------------------------------------------------------------------------------------------------


def test_verify_names_every_damaged_block(url, s3, between, local):
    """Each block, as for a directory; in bounded memory; and what to do next."""
    name = names(local)[1]
    for at in (5000, BLOCK + 7):
        harm(s3, f"{url}/{name}/big.safetensors", at)
    between.given.clear()
    code, out, _ = call("verify", url)
    assert code == 5
    assert "damaged in block 0 of 2" in out
    assert "damaged in block 1 of 2" in out
    assert out.count("whole    0000") == 2
    assert out.splitlines()[-1].startswith(f"Next: holdfast verify {url} --repair --mirror RUN")
    assert out.count("Next:") == 1
    assert max(count for _, _, count in between.given) <= BLOCK
    assert between.most <= 7
    content = json.loads(call("verify", url, "--json")[1])
    assert [
        (problem["file"], problem["block"]) for row in content["checkpoints"] for problem in row["problems"]
    ] == [("big.safetensors", 0), ("big.safetensors", 1)]
    for at in (5000, BLOCK + 7):
        harm(s3, f"{url}/{name}/big.safetensors", at)


def test_pins(little, light):
    """A pin far away is one for the mirror's own Keep, and for everybody who lists it."""
    assert call("pin", f"{little}@step=1")[0] == 0
    assert [entry.pinned for entry in catalog.scan(little)] == [True, False, False]
    assert "pinned" in call("ls", little)[1]
    assert call("unpin", f"{little}@step=1")[0] == 0
    assert not any(entry.pinned for entry in catalog.scan(little))
    with pytest.raises(NotFoundError, match="was not pinned"):
        from holdfast.store import distant

        distant.pin(little, names(light)[0].replace("000001", "000009"))
    assert not any(entry.pinned for entry in catalog.scan(little))


# -- a mirror made whole -----------------------------------------------------------------------------------


@pytest.fixture
def mirrored(s3, bucket, between, tmp_path):
    """A run of two checkpoints with a mirror in a bucket: (run, url)."""
    run, url = str(tmp_path / "run"), f"s3://{bucket}/exp/first"
    train(run, 2, [url])
    return run, url


@pytest.mark.parametrize("file", ["state.safetensors", "checkpoint.json"])
def test_a_damaged_mirror_is_found_and_repaired_from_the_run(mirrored, s3, bucket, file):
    """Whatever is damaged there; also an object that still says that it is what was written."""
    run, url = mirrored
    harm(s3, f"{url}/{names(run)[0]}/{file}", at=40)
    code, out, _ = call("verify", url)
    assert (code, out.count("damaged  0000")) == (5, 1)
    code, out, err = call("verify", url, "--repair", "--mirror", run)
    assert code == 0, out + err
    assert f"repaired {names(run)[0]}: " in out
    assert call("verify", url)[0] == 0
    assert holdfast.open(f"{url}@step=1").load()["state"]["step"] == 1


def test_a_mirror_is_not_repaired_beside_its_training(mirrored, s3, bucket):
    """The lease of the run is held: a living training is named, and nothing is changed."""
    run, url = mirrored
    harm(s3, f"{url}/{names(run)[0]}/state.safetensors")
    with holdfast.Run(run, mirrors=[url]) as living:
        living.resume()
        from holdfast import mending

        with pytest.raises(LeaseError):
            mending.repair_mirror(url, {names(run)[0]: {"state.safetensors"}}, [run], print)
    assert call("verify", url)[0] == 5


def test_a_mirror_is_not_repaired_from_what_is_damaged(mirrored, s3, bucket, tmp_path):
    """Nothing is touched there before what is sent was read in full; another mirror helps."""
    run, url = mirrored
    name = names(run)[0]
    harm(s3, f"{url}/{name}/README.md", at=40)
    shutil.copytree(run, tmp_path / "arch", symlinks=True)
    flip(run, 1)
    code, out, _ = call("verify", url, "--repair", "--mirror", run)
    assert (code, f"not repaired: {name}" in out) == (5, True)
    assert name in [entry.folder for entry in catalog.scan(url)]
    code, out, err = call("verify", url, "--repair", "--mirror", run, "--mirror", tmp_path / "arch")
    assert code == 0, out + err


def test_what_a_mirror_is_not_repaired_from(mirrored, s3, bucket, tmp_path, between):
    """Without a run, or from another one, it is refused; the former before anything is read."""
    run, url = mirrored
    harm(s3, f"{url}/{names(run)[0]}/state.safetensors")
    between.given.clear()
    for words in ([], ["--mirror", f"s3://{bucket}/exp/other"], ["--mirror", tmp_path]):
        code, _, err = call("verify", url, "--repair", *words)
        assert (code, "--repair --mirror RUN" in err) == (2, True)
    assert between.bytes_of(".safetensors") == 0
    other = str(tmp_path / "other")
    train(other, 1)
    code, _, err = call("verify", url, "--repair", "--mirror", other)
    assert (code, "holds another run" in err) == (2, True)


def test_a_damaged_run_is_told_of_its_mirror(mirrored):
    """After damage in a run with a mirror, the next command is named, and helps."""
    run, _ = mirrored
    flip(run, 1)
    code, out, _ = call("verify", run)
    assert code == 5
    assert out.splitlines()[-1].startswith(f"Next: holdfast verify {run} --repair, which takes")
    assert call("verify", run, "--repair")[0] == 0


def test_reading_and_repairing_on_each_server(store, tmp_path):
    """On every kind of server: listed, opened, read in parts, checked, pinned; damage is found and repaired."""
    run, url = str(tmp_path / "run"), url_of(store)
    train(run, 3, [url], size=500_000)
    here, there = holdfast.open(run).load(arrays="numpy"), holdfast.open(url).load(arrays="numpy")
    assert np.array_equal(here["state"]["w"], there["state"]["w"])
    assert [entry.folder for entry in catalog.scan(url)] == names(run)
    assert call("verify", url)[0] == 0
    code, out, _ = call("ls", url.rpartition("/")[0])
    assert (code, url.rpartition("/")[2] in out) == (0, True)
    assert call("pin", f"{url}@seq=2")[0] == 0
    assert [entry.pinned for entry in catalog.scan(url)] == [True, False]
    assert call("unpin", f"{url}@seq=2")[0] == 0
    at = key_of(store, 2, "state.safetensors")
    data = store.read(at)
    store.write(at, data[:-1] + bytes([data[-1] ^ 1]))
    code, out, _ = call("verify", url)
    assert (code, out.count("damaged in block 0 of 1")) == (5, 1)
    assert call("verify", url, "--repair", "--mirror", run)[0] == 0
    assert np.array_equal(
        holdfast.open(f"{url}@seq=2").load(arrays="numpy")["state"]["w"], content(2, 500_000)["w"]
    )
    with pytest.raises(NotFoundError, match="no run or checkpoint"):
        holdfast.open(f"{url}-none")


@pytest.mark.parametrize("file", ["state.safetensors", "arrays.json"])
def test_what_arrives_damaged_is_fetched_once_more(mirrored, between, file):
    """When a lost run comes back from its mirror, damage on the way is no reason to take an older checkpoint."""
    run, url = mirrored
    shutil.rmtree(run)
    between.spoil[f"/{file}"] = 1
    assert train(run, 0, [url]) == 2
    assert not any(between.spoil.values())


# -- how often a store is asked ----------------------------------------------------------------------------


class Asked:
    """Objects that note what they are asked for."""

    url = "s3://bucket/run"

    def __init__(self):
        self.names = []

    def small(self, name, limit):
        self.names.append(name.partition("/")[0])
        return name.encode()


@pytest.mark.parametrize("way", ["forwards", "backwards", "one"])
def test_manifests_are_fetched_ahead_and_once(way):
    """A list fetches each once, several at a time; whoever wants the newest alone fetches no other."""
    from holdfast.store.distant import Ahead

    objects = Asked()
    folders = [f"{number:06d}" for number in range(200)]
    ahead = Ahead(objects, folders)
    wanted = {"forwards": folders, "backwards": folders[::-1], "one": folders[-1:]}[way]
    for number, folder in enumerate(wanted, 1):
        file = f"{folder}/checkpoint.json"
        assert ahead(f"{objects.url}/{file}", 1000) == file.encode()
        assert len(objects.names) <= 2 * number or way == "forwards"
    assert sorted(objects.names) == sorted(wanted)


def test_a_look_at_a_run_asks_little(little, between):
    """Opening the newest takes a handful of requests, and a second part only its own."""
    checkpoint = holdfast.open(little)
    assert len(between.given) <= 6
    between.given.clear()
    checkpoint.load(parts=["state"])
    checkpoint.load(parts=["small"])
    asked = [path.rpartition("/")[2] for method, path, _ in between.given if method == "GET"]
    assert sorted(name for name in asked if "." in name) == [
        "arrays.json", "small.safetensors",
    ]  # fmt: skip
