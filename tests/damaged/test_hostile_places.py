"""Links, pipes, devices and folders where files are expected: nothing outside is read, written or deleted.

Every folder under test lies beside a canary; what is not in the folder must be as it was.
"""

import os
import shutil
import socket

import hostile
import pytest
from hostile import check_use, command, forge, list_file, read
from hostile_cage import confined, snapshot

import holdfast
from holdfast.errors import FormatError, HoldfastError
from holdfast.format import sealed


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    hostile.warm_up()
    return hostile.save_template(tmp_path_factory.mktemp("hostile") / "ckpt")


@pytest.fixture
def ckpt(template, tmp_path):
    canary = tmp_path / "canary"
    canary.mkdir()
    (canary / "precious").write_text("do not touch")
    (canary / "copy").write_bytes((template / "model.safetensors").read_bytes())
    return shutil.copytree(template, tmp_path / "ckpt")


# -- in the place of a file ----------------------------------------------------------------------


def a_link(path):
    os.symlink("../canary/copy", path)


def a_dead_link(path):
    os.symlink("../canary/gone", path)


def a_circle(path):
    os.symlink(os.path.basename(path), path)


def an_endless_device(path):
    os.symlink("/dev/zero", path)


def a_password_file(path):
    os.symlink("/etc/passwd", path)


def a_pipe(path):
    os.mkfifo(path)


def a_socket(path):
    with socket.socket(socket.AF_UNIX) as made:
        here = os.getcwd()
        os.chdir(os.path.dirname(path))  # a socket's name has at most 107 bytes
        made.bind(os.path.basename(path))
        os.chdir(here)


def a_folder(path):
    os.mkdir(path)


def a_device(path):
    try:
        os.mknod(path, 0o20666, os.makedev(1, 5))  # /dev/zero
    except PermissionError:
        pytest.skip("needs root, to make a device file")


THINGS = [
    a_link,
    a_dead_link,
    a_circle,
    an_endless_device,
    a_password_file,
    a_pipe,
    a_socket,
    a_folder,
    a_device,
]


@pytest.mark.parametrize("name", ["checkpoint.json", "arrays.json", "model.safetensors", "README.md"])
@pytest.mark.parametrize("thing", THINGS, ids=lambda thing: thing.__name__.removeprefix("a_"))
def test_in_the_place_of_a_file(ckpt, template, thing, name, tried):
    """Whatever stands in a file's place is not followed, not waited for, and told by the file's name."""
    os.remove(ckpt / name)
    thing(ckpt / name)
    found = check_use(ckpt, template, only={"load", "restore", "verify", "show"})
    for act in ("load", "restore", "verify") if name != "README.md" else ("verify",):
        assert found[act][0] in ("DamagedError", "FormatError", "NotFoundError", "StorageError"), found[act]
    assert name in found["verify"][1] or "neither a run nor a checkpoint" in found["verify"][1]
    tried("hostile")


def test_a_link_after_the_check(ckpt, template, tried):
    """A file that is swapped for a link between two looks at it is not followed either."""
    true = os.lstat
    target = os.fspath(ckpt / "model.safetensors")

    def act():
        def swapping(path, **more):
            result = true(path, **more)
            if os.fspath(path) == target:
                os.rename(target, target + ".away")
                os.symlink(os.path.join(ckpt, "..", "canary", "copy"), target)
            return result

        os.lstat = swapping
        try:
            holdfast.open(ckpt).load()
        except HoldfastError as error:
            return [type(error).__name__, str(error)]
        finally:
            os.lstat = true
        return [None, ""]

    outcome = confined(act, ckpt, template)
    assert outcome.error is None, outcome.trace
    assert outcome.value[0] == "DamagedError"
    assert "no regular file" in outcome.value[1]
    assert outcome.outside == []
    tried("hostile")


@pytest.mark.parametrize("cut", [0, 1, 4096, 5000])
def test_a_file_that_shrinks_while_it_is_read(ckpt, cut, tried):
    """A payload file cut between its check and its reading is damage, never the end of the process."""

    def act():
        from holdfast.payload import reader

        true = reader._check_size

        def cutting(directory, file):
            true(directory, file)
            os.truncate(file.path, cut)

        reader._check_size = cutting
        try:
            holdfast.open(ckpt).load()
        except HoldfastError as error:
            return [type(error).__name__, str(error)]
        return [None, ""]

    outcome = confined(act, ckpt)
    assert outcome.error is None, outcome.trace
    assert outcome.value[0] == "DamagedError"
    assert "is shorter than it was written" in outcome.value[1] or "damaged in block" in outcome.value[1]
    tried("hostile")


@pytest.mark.parametrize(
    "name", ["../canary/copy", "/etc/passwd", "..", ".", "", "a/b", "a\0b", "C:\\x", "x" * 300]
)
def test_names_that_lead_outside(ckpt, template, name, tried):
    """A listed file whose name is a path is refused, in both JSON files, before anything is opened."""

    def rename(content):
        content["files"][name] = content["files"].pop("model.safetensors")
        for entry in content["parts"]["model"]["arrays"].values():
            entry["chunks"][0]["file"] = name

    forge(ckpt, arrays=rename)
    found = check_use(ckpt, template)
    assert found["load"][0] in ("FormatError", "DamagedError")
    manifest = read(ckpt, "checkpoint.json")
    list_file(manifest, name, b"")
    (ckpt / "checkpoint.json").write_bytes(sealed.encode(manifest))
    found = check_use(ckpt, template)
    assert found["look"][0] == "FormatError"
    assert "plain names inside its folder" in found["look"][1]
    tried("hostile", 2)


# -- runs ----------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path):
    canary = tmp_path / "canary"
    canary.mkdir()
    for name in ("precious", "000001_epoch-0001_step-00000000_20260101T000000Z"):
        (canary / name).write_text("do not touch")
    path = tmp_path / "run"
    with holdfast.Run(path) as made:
        for epoch in (1, 2):
            made.state["x"] = epoch
            made.save(epoch=epoch)
    return path


def everything(path):
    """All that a person does to a run; none of it may reach outside."""
    newest = sorted(name for name in os.listdir(path) if name[0] == "0")[-1]
    told = []
    for words in (
        ["ls"], ["ls", "--json"], ["show"], ["verify"], ["doctor"], ["pin"], ["unpin"], ["prune", "--keep-last", "1"],
        ["prune", "--keep-last", "1", "--yes"], ["rewind"],
    ):  # fmt: skip
        where = [os.path.join(path, newest)] if words[0] in ("pin", "unpin") else [path]
        code, out, err = command(words[0], *where, *(["@-1"] if words[0] == "rewind" else []), *words[1:])
        told.append([" ".join(words), code, (out + err)[-2000:]])
    run = holdfast.Run(path)
    try:
        run.resume()
        run.save(epoch=run.progress.epoch + 1, wait=True)
        told.append(["resume", 0, ""])
    except HoldfastError as error:
        told.append(["resume", error.exit_code, str(error)])
    finally:
        run.close()
    return told


def check_everything(path, tmp_path, **limits):
    before = snapshot(tmp_path / "canary")
    outcome = confined(lambda: everything(path), path, **limits)
    assert outcome.error is None, outcome.trace
    assert snapshot(tmp_path / "canary") == before, "something outside was changed"
    stray = [
        change for change in outcome.changed if not os.path.abspath(change[1]).startswith(f"{path}{os.sep}")
    ]
    assert [change for change in stray if not change[1].isdigit()] == [], (
        "something outside was to be changed"
    )
    away = (str(tmp_path / "canary"), "/etc/passwd")
    assert not [name for name in outcome.outside if name.startswith(away)], "something outside was read"
    assert all(code in range(12) and "Traceback" not in text for _, code, text in outcome.value), (
        outcome.value
    )
    return {words: (code, text) for words, code, text in outcome.value}


@pytest.mark.parametrize("name", ["pins", "abandoned"])
def test_marks_elsewhere(run, tmp_path, name, tried):
    """A folder of marks that is a link is refused: marks are made and removed there, and prune would empty it."""
    os.symlink("../canary", run / name)
    told = check_everything(run, tmp_path)
    assert told["prune --keep-last 1 --yes"][0] == 6
    assert "is a symbolic link" in told["prune --keep-last 1 --yes"][1]
    assert (tmp_path / "canary" / "precious").read_text() == "do not touch"
    tried("hostile")


@pytest.mark.parametrize(
    "thing",
    [
        lambda p: os.symlink("../canary/precious", p),
        a_dead_link,
        a_pipe,
        a_folder,
        an_endless_device,
        a_device,
    ],
    ids=["link", "dead_link", "pipe", "folder", "endless_device", "device"],
)
def test_history_elsewhere(run, tmp_path, thing, tried):
    """A history that is a link, a pipe or a device is neither followed nor waited for; the run goes on."""
    os.remove(run / "history.jsonl")
    thing(run / "history.jsonl")
    told = check_everything(run, tmp_path)
    assert told["resume"][0] == 0
    assert not (tmp_path / "canary" / "gone").exists()
    tried("hostile")


@pytest.mark.parametrize("name", ["latest", "best", ".direct-io", ".writing-000001", ".writing-000099"])
@pytest.mark.parametrize("target", ["../canary", "../canary/precious"])
def test_links_in_a_run(run, tmp_path, name, target, tried):
    """Links under names that a run writes, renames or sweeps are replaced or removed, never followed."""
    if os.path.lexists(run / name):
        os.remove(run / name)
    os.symlink(target, run / name)
    told = check_everything(run, tmp_path)
    assert told["resume"][0] == 0
    tried("hostile")


@pytest.mark.parametrize("thing", THINGS, ids=lambda thing: thing.__name__.removeprefix("a_"))
def test_in_the_place_of_run_json(run, tmp_path, thing, tried):
    """Without its own run.json a folder is no run, or one that is refused by name."""
    (tmp_path / "canary" / "copy").write_bytes((run / "run.json").read_bytes())
    os.remove(run / "run.json")
    thing(run / "run.json")
    told = check_everything(run, tmp_path)
    assert told["resume"][0] != 0
    tried("hostile")


def test_checkpoints_that_are_links(run, tmp_path, tried):
    """A checkpoint that is a link is deleted as a link; what it leads to stays."""
    newest = sorted(name for name in os.listdir(run) if name[0] == "0")[0]
    os.rename(run / newest, tmp_path / "canary" / newest)
    os.symlink(f"../canary/{newest}", run / newest)
    code, out, _ = command("prune", run, "--keep-last", "1", "--yes")
    assert code == 0
    assert newest not in os.listdir(run), out
    assert "checkpoint.json" in os.listdir(tmp_path / "canary" / newest)
    tried("hostile")


@pytest.mark.parametrize("name", ["../../canary/precious", "/etc/hostname", "..", "pins"])
@pytest.mark.parametrize("word", ["pin", "unpin"])
def test_a_checkpoint_that_calls_itself_a_path(run, tmp_path, name, word, tried):
    """Pins are made and removed under the folder's name, never under the one that its manifest claims."""
    newest = run / sorted(name for name in os.listdir(run) if name[0] == "0")[-1]
    forge(newest, manifest=lambda m: m.update(name=name))
    before = snapshot(tmp_path / "canary")
    with pytest.raises(FormatError, match="is foreign: its manifest calls it"):
        getattr(holdfast.open(newest), word)()
    assert command(word, newest)[0] == 6
    assert snapshot(tmp_path / "canary") == before
    assert not os.path.isdir(run / "pins") or os.listdir(run / "pins") == []
    tried("hostile")


def test_a_deep_tree_in_the_way(run, tmp_path, tried):
    """What a dead writer left, nested as deeply as a path can be, is swept away without recursion."""
    path = os.fspath(run / ".writing-000001")
    os.mkdir(path)
    for _ in range(1500):
        path += "/d"
        os.mkdir(path)
    told = check_everything(run, tmp_path)
    assert told["resume"][0] == 0
    assert not os.path.exists(run / ".writing-000001")
    tried("hostile")
