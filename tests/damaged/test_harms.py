"""Harms larger than a bit: cut, longer, zeroed, shifted, swapped, old, foreign; and what a run, a reader and the command do then.

Every harm ends in one of two ways: what was saved is given, all of it, or an error of ours names the file.
"""

import contextlib
import itertools
import json
import logging
import os
import random
import shutil
import socket

import numpy as np
import pytest
import torch
from harming import call, caught_by, check, reblock, table_of

import holdfast
from holdfast import CheckpointError, DamagedError, FormatError, HoldfastError, Keep, UsageError
from holdfast.format import sealed
from holdfast.store import book

KEEP = Keep(last=None, metric="score", mode="max")
SCORES = [0.1, 0.9, 0.4]
PAYLOAD = ["model.safetensors", "optimizer.safetensors", "state.safetensors"]
FILES = ["checkpoint.json", "arrays.json", "README.md", *PAYLOAD]
READ = ["arrays.json", *PAYLOAD]  # by load, once it is open
BLOCK = 4096


def training():
    net = torch.nn.Sequential(torch.nn.Linear(60, 50), torch.nn.Linear(50, 3))
    return net, torch.optim.Adam(net.parameters())


def fill(net, opt, value):
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(value)
            parameter.grad = torch.full_like(parameter, value)
        opt.step()
        for parameter in net.parameters():
            parameter.fill_(value)
            opt.state[parameter]["exp_avg"].fill_(value)
            parameter.grad = None


def checkpoints(path):
    return [path / name for name in sorted(os.listdir(path)) if "_epoch-" in name]


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A run of three checkpoints with the same files of the same sizes, in blocks of 4096 bytes; the second is the best."""
    path = tmp_path_factory.mktemp("template") / "digits"
    net, opt = training()
    with holdfast.Run(path, keep=KEEP) as run:
        run.track(model=net, optimizer=opt)
        for epoch in range(1, 4):
            fill(net, opt, epoch)
            run.state["x"] = np.arange(3000) * epoch
            run.save(epoch=epoch, metrics={"score": SCORES[epoch - 1]}, wait=True)
    for folder in checkpoints(path):
        reblock(folder, BLOCK)
        assert sorted(os.listdir(folder)) == sorted(FILES)
    sizes = {tuple(os.path.getsize(folder / name) for name in PAYLOAD) for folder in checkpoints(path)}
    assert len(sizes) == 1
    return path


@pytest.fixture
def run(template, tmp_path):
    return shutil.copytree(template, tmp_path / "digits", symlinks=True)


@pytest.fixture
def said(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("holdfast"), "propagate", True)
    caplog.set_level(logging.INFO, "holdfast")
    return caplog


def epoch_of(values):
    """Which epoch loaded values are of; all of them must be of the same."""
    epoch = values["state"]["x"][1]
    assert (values["state"]["x"] == np.arange(3000) * epoch).all()
    assert all((array == epoch).all() for array in values["model"].values())
    assert all((state["exp_avg"] == epoch).all() for state in values["optimizer"]["state"].values())
    return epoch


# -- every file, its content harmed ------------------------------------------------------------------


def contents(data, older, edges=()):
    """(what was done, the content then), for all that befalls a file; never the same content."""
    size = len(data)
    for cut in sorted({0, 1, *range(512, size, 512), size - 1, *edges}):
        if 0 <= cut < size:
            yield f"cut at {cut}", data[:cut]
    for name, tail in {
        "one zero": b"\0",
        "one letter": b"x",
        "a line feed": b"\n",
        "a sector of zeros": bytes(512),
        "a block of zeros": bytes(BLOCK),
        "its last block again": data[-BLOCK:],
        "all of it again": data,
    }.items():
        yield f"longer by {name}", data + tail
    for page in (512, BLOCK, 4 * BLOCK):
        for at in range(0, size, page):
            end = min(at + page, size)
            yield f"{page} zeros at {at}", data[:at] + bytes(end - at) + data[end:]
            yield f"{page} old bytes at {at}", data[:at] + older[at:end] + data[end:]
            if end + page <= size:
                swapped = data[end : end + page] + data[at:end]
                yield f"{page} bytes at {at} swapped with the next", data[:at] + swapped + data[end + page :]
    blocks = [data[at : at + BLOCK] for at in range(0, size, BLOCK)]
    for one, other in itertools.combinations(range(len(blocks)), 2):
        moved = list(blocks)
        moved[one], moved[other] = moved[other], moved[one]
        yield f"blocks {one} and {other} swapped", b"".join(moved)
        moved[other] = blocks[other]
        yield f"block {other} in the place of {one} too", b"".join(moved)
    for at in (0, 1, 8, size // 3, size // 2, size - 2):
        yield f"a byte put in at {at}, the last one lost", (data[:at] + b"\0" + data[at:])[:size]
        yield f"a byte put in at {at}", data[:at] + b"\0" + data[at:]
        yield f"a byte lost at {at}, a zero at the end", data[:at] + data[at + 1 :] + b"\0"
        yield f"a byte lost at {at}", data[:at] + data[at + 1 :]
    yield "an older one", older
    yield "copied as text", data.replace(b"\n", b"\r\n")
    yield "with a byte order mark", b"\xef\xbb\xbf" + data
    yield "as UTF-16", data.decode("latin-1").encode("utf-16")
    yield "backwards", data[::-1]
    yield "all ones", b"\xff" * size
    yield "its last line feed gone", data.removesuffix(b"\n")


@contextlib.contextmanager
def content(path, data):
    """The file has other content within the block."""
    before = path.read_bytes()
    path.write_bytes(data)
    try:
        yield
    finally:
        path.write_bytes(before)


@pytest.mark.parametrize("name", FILES)
def test_every_content_harm_to_every_file(run, name, tried):
    """Cut, longer, zeroed, shifted, swapped inside or partly old: `verify` and load find it and name the file."""
    [_, older, newest] = checkpoints(run)
    known, edges = holdfast.open(newest), [2, 8, 9, BLOCK - 1, BLOCK, BLOCK + 1]
    path, right, other = newest / name, (newest / name).read_bytes(), (older / name).read_bytes()
    count = 0
    for what, data in contents(right, other, edges):
        if data == right:
            continue
        count += 1
        try:
            with content(path, data):
                problems = known.verify()
                assert problems
                for problem in problems:
                    check_file(problem, newest, name)
                if name == "checkpoint.json" and data == other:
                    pass  # whole, and another's: see the mixtures below
                elif name == "checkpoint.json":
                    check_file(caught_by(lambda: holdfast.open(newest)), newest, name)
                elif name in READ:
                    check_file(caught_by(holdfast.open(newest).load), newest, name)
                else:
                    assert epoch_of(known.load()) == 3
        except BaseException as error:
            error.add_note(f"with {path}: {what}")
            raise
    assert known.verify() == []
    assert count > 30
    tried("harms", count)


def check_file(error, checkpoint, name):
    if error.block is None:
        check(error, checkpoint, name)
    else:
        check(error, checkpoint, name, error.block, error.arrays)


@pytest.mark.parametrize("name", PAYLOAD)
def test_swapped_blocks_are_both_named(run, name, tried):
    """Two blocks of a payload that changed places are two damages, each with its number."""
    newest = checkpoints(run)[-1]
    data = (newest / name).read_bytes()
    blocks = [data[at : at + BLOCK] for at in range(0, len(data), BLOCK)]
    count = 0
    for one, other in itertools.combinations(range(len(blocks) - 1), 2):
        if blocks[one] == blocks[other]:
            continue
        moved = list(blocks)
        moved[one], moved[other] = moved[other], moved[one]
        with content(newest / name, b"".join(moved)):
            assert [problem.block for problem in holdfast.open(newest).verify()] == [one, other]
        count += 1
    assert count > 0
    tried("harms", count)


def replaced(path, kind):
    """Puts something else in the place of a file; its content goes to a file beside the checkpoint."""
    aside = path.parent.parent / "aside"
    os.rename(path, aside)
    if kind == "nothing":
        return
    if kind == "a directory":
        path.mkdir()
    elif kind == "a directory that holds it":
        path.mkdir()
        shutil.copy(aside, path / path.name)
    elif kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a socket":
        with socket.socket(socket.AF_UNIX) as server:
            directory = os.open(path.parent, os.O_RDONLY)
            server.bind(f"/proc/self/fd/{directory}/{path.name}")
            os.close(directory)
    elif kind == "a device":
        os.mknod(path, 0o600 | 0o020000, os.makedev(1, 5))  # /dev/zero
    else:
        targets = {
            "a link to its content": "../aside",
            "a link to nothing": "nowhere",
            "a link to itself": path.name,
            "a link to zeros without end": "/dev/zero",
            "a link to a directory": "..",
        }
        path.symlink_to(targets[kind])


KINDS = [
    "nothing",
    "a directory",
    "a directory that holds it",
    "a pipe",
    "a socket",
    "a device",
    "a link to its content",
    "a link to nothing",
    "a link to itself",
    "a link to zeros without end",
    "a link to a directory",
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FILES)
def test_something_else_in_the_place_of_a_file(run, name, kind, tried):
    """Where a file is gone, or is no regular file, `verify` and load say so and never wait, follow or read without end."""
    if kind == "a device" and os.geteuid() != 0:
        pytest.skip("making a device file needs root")
    newest = checkpoints(run)[-1]
    known = holdfast.open(newest)
    replaced(newest / name, kind)
    [problem] = known.verify()
    assert type(problem) is DamagedError
    assert (problem.path, problem.file) == (str(newest), name)
    assert name in str(problem)
    if name == "checkpoint.json":
        error = caught_by(lambda: holdfast.open(newest))
        assert isinstance(error, CheckpointError)
        assert name in str(error)
        if kind != "a link to its content":
            assert str(newest) in str(error)
    elif name in READ:
        error = caught_by(holdfast.open(newest).load)
        assert type(error) is DamagedError
        assert error.file == name
    else:
        assert epoch_of(known.load()) == 3
    resumed, values = resume(run)
    assert resumed.epoch == epoch_of(values) == (2 if name in (*READ, "checkpoint.json") else 3)
    tried("harms")


def test_any_two_files_swapped(run, tried):
    """Any two files of a checkpoint with their names exchanged are both named."""
    newest = checkpoints(run)[-1]
    known = holdfast.open(newest)
    for one, other in itertools.combinations(FILES, 2):
        swap(newest / one, newest / other)
        found = {problem.file for problem in known.verify()}
        # The table tells the blocks of the payload: without it, its own damage is all that is known of them.
        hidden = set(PAYLOAD) if "arrays.json" in (one, other) else set()
        assert {one, other} - hidden <= found <= {one, other}, (one, other)
        if "checkpoint.json" in (one, other):
            assert isinstance(caught_by(lambda: holdfast.open(newest)), CheckpointError)
        elif {one, other} & set(READ):
            assert caught_by(holdfast.open(newest).load).file in (one, other)
        swap(newest / one, newest / other)
        tried("harms")
    assert known.verify() == []


def swap(one, other):
    os.rename(one, one.parent / "x")
    os.rename(other, one)
    os.rename(one.parent / "x", other)


def test_every_mixture_of_two_checkpoints(run, tried):
    """Of two checkpoints of one run no mixture loads as anything but one of them, and `verify` finds each mixture."""
    [_, older, newest] = checkpoints(run)
    right = {name: (newest / name).read_bytes() for name in FILES}
    other = {name: (older / name).read_bytes() for name in FILES}
    assert all(right[name] != other[name] for name in FILES)
    for count in range(1, len(FILES)):
        for taken in itertools.combinations(FILES, count):
            for name in FILES:
                (newest / name).write_bytes(other[name] if name in taken else right[name])
            mixture = holdfast.open(newest)
            old = {name for name in FILES if (name in taken) == ("checkpoint.json" in taken)}
            wrong = set(FILES) - old
            problems = mixture.verify()
            assert problems, taken
            assert {problem.file for problem in problems} <= wrong
            if wrong & set(READ):
                error = caught_by(mixture.load)
                assert type(error) is DamagedError
                assert error.file in wrong
            else:
                assert wrong == {"README.md"}
                assert epoch_of(mixture.load()) == mixture.progress.epoch
            tried("harms")


def test_tables_that_do_not_belong_together(run, tried):
    """A table that the manifest lists, but whose blocks are another checkpoint's, is told as such."""
    [_, older, newest] = checkpoints(run)
    for change in ("other digests", "a payload less", "a payload more"):
        shutil.copytree(newest, run.parent / change)
        path = run.parent / change
        table = table_of(older if change == "other digests" else path)
        manifest = sealed.decode((path / "checkpoint.json").read_bytes(), "")
        del table["xxh3-128"]
        if change == "a payload less":
            del table["files"]["state.safetensors"]
            del table["parts"]["state"]
        elif change == "a payload more":
            del manifest["files"]["state.safetensors"]
        data = sealed.encode(table)
        (path / "arrays.json").write_bytes(data)
        manifest["files"]["arrays.json"] = {"size": len(data), "digest": sealed.digest(data)}
        (path / "checkpoint.json").write_bytes(sealed.encode(manifest))
        error = caught_by(holdfast.open(path).load)
        assert type(error) is DamagedError
        assert error.file == ("model.safetensors" if change == "other digests" else "state.safetensors")
        assert "they do not belong together" in str(error)
        assert any("do not belong together" in str(problem) for problem in holdfast.open(path).verify())
        tried("harms")


DUPLICATES = {
    "checkpoint.json": [
        (b'"note":""', b'"note":"","note":"x"'),
        (b'"note":""', b'"note":"","n\\u006fte":"x"'),
        (b'"epoch":3', b'"epoch":3,"epoch":2'),
        (b'"score":0.4', b'"score":0.4,\n"score":0.99'),
        (b'"stopped":false', b'"stopped":false,"stopped" :true'),
    ],
    "arrays.json": [
        (b'"block_size":4096', b'"block_size":4096,"block_size":8192'),
        (b'"dtype":"F32"', b'"dtype":"F32","dtype":"I32"'),
        (b'"0.weight":', b'"0.weight":1,"0.weight":'),
        (b'"kind":"torch.Module"', b'"kind":"torch.Module","\\u006bind":"mapping"'),
    ],
}


@pytest.mark.parametrize("name", DUPLICATES)
def test_a_key_twice(run, name, tried):
    """A key given twice, however it is written and under right digests, is refused by name."""
    newest = checkpoints(run)[-1]
    manifest = sealed.decode((newest / "checkpoint.json").read_bytes(), "")
    for place, twice in DUPLICATES[name]:
        body = (newest / name).read_bytes()[:-47]
        assert place in body, place
        body = body.replace(place, twice, 1)
        data = body + b'"xxh3-128":"%s"}\n' % sealed.digest(body).encode()
        changed = {**manifest, "files": dict(manifest["files"])}
        with contextlib.ExitStack() as stack:
            stack.enter_context(content(newest / name, data))
            if name == "arrays.json":
                changed["files"][name] = {"size": len(data), "digest": sealed.digest(data)}
                stack.enter_context(content(newest / "checkpoint.json", sealed.encode(changed)))
            error = caught_by(lambda: holdfast.open(newest).load())
            assert type(error) is FormatError, place
            assert f"{newest / name} has the key" in str(error)
            assert "twice" in str(error)
        tried("harms")


def test_what_does_not_belong(run, tried):
    """Files and folders that do not belong to a checkpoint are reported by `verify`, and harm nothing else."""
    newest = checkpoints(run)[-1]
    (newest / "core.1234").write_bytes(b"x")
    (newest / "model.safetensors.1").write_bytes(b"x")
    (newest / ".nfs0001").write_bytes(b"x")
    (newest / "folder").mkdir()
    (newest / "link").symlink_to("nowhere")
    problems = holdfast.open(newest).verify()
    assert {p.file for p in problems} == {"core.1234", "model.safetensors.1", ".nfs0001", "folder", "link"}
    assert all("does not belong to it" in str(problem) for problem in problems)
    assert epoch_of(holdfast.open(newest).load()) == 3
    assert resume(run)[0].epoch == 3
    tried("harms", 5)


def test_a_checkpoint_replaced_while_it_is_open(tmp_path):
    """What `verify` looks at is what is there now: a checkpoint that was saved anew meanwhile is whole."""
    path = tmp_path / "ckpt"
    known = holdfast.save(path, {"a": np.zeros(9)})
    holdfast.save(path, {"a": np.ones(9)}, note="another")
    assert known.verify() == []
    assert known.note == "another"
    assert (known.load()["a"] == 1).all()


# -- a run whose newest checkpoints are harmed ---------------------------------------------------------


def resume(path, live=None):
    """A new launch: its progress, and what the newest checkpoint that it takes holds."""
    net, opt = live or training()
    with holdfast.Run(path, keep=KEEP) as again:
        again.track(model=net, optimizer=opt)
        progress = again.resume()
        values = {
            "state": dict(again.state),
            "model": {name: array.detach() for name, array in net.state_dict().items()},
            "optimizer": {"state": opt.state_dict()["state"]},
        }
    return progress, values


def harm(path, how, older):
    size = os.path.getsize(path)
    if how == "cut in half":
        os.truncate(path, size // 2)
    elif how == "gone":
        os.unlink(path)
    elif how == "a zeroed page":
        at = max(0, size - 700) if size < 2 * BLOCK else 2 * BLOCK
        with open(path, "r+b") as file:
            file.seek(at)
            file.write(bytes(min(512, size - at)))
    elif how == "of the checkpoint before":
        shutil.copy(older / path.name, path)
    elif how == "longer":
        with open(path, "ab") as file:
            file.write(b"\0")
    elif how == "a directory":
        os.unlink(path)
        path.mkdir()


HARMS = ["cut in half", "gone", "a zeroed page", "of the checkpoint before", "longer", "a directory"]


@pytest.mark.parametrize("how", HARMS)
@pytest.mark.parametrize("name", FILES)
def test_a_run_falls_back(run, name, how, said, tried):
    """The next older whole checkpoint is resumed, all of it, loudly and in history; saving goes on with a new number."""
    [_, older, newest] = checkpoints(run)
    harm(newest / name, how, older)
    progress, values = resume(run)
    if name == "README.md":
        assert progress.epoch == epoch_of(values) == 3
        tried("harms")
        return
    assert progress.epoch == epoch_of(values) == 2
    assert f"Passed over {newest.name}: " in said.text
    foreign = name == "checkpoint.json" and how == "of the checkpoint before"
    assert ("is foreign" if foreign else name) in said.text
    events = book.read_events(str(run))
    damaged = [event for event in events if event["event"] == "damaged"]
    assert [event["name"] for event in damaged] == ([] if foreign else [newest.name])
    assert [event["event"] for event in events[-2:]] == ["resume", "launch"]
    assert events[-2]["name"] == older.name
    net, opt = training()
    with holdfast.Run(run, keep=KEEP) as again:
        again.track(model=net, optimizer=opt)
        again.resume()
        fill(net, opt, 7)
        again.state["x"] = np.arange(3000) * 7
        again.save(epoch=7, metrics={"score": 0.2}, wait=True)
        assert again.latest.sequence == 4
    assert epoch_of(holdfast.open(run).load()) == 7
    assert newest.is_dir(), "what is damaged is left for people to look at"
    tried("harms")


@pytest.mark.parametrize("name", ["checkpoint.json", *READ])
def test_a_damaged_one_is_not_one_of_the_last(run, name, tried):
    """A damaged checkpoint is neither one of the last that Keep keeps nor the best: the whole ones stay in its place."""
    [first, older, newest] = checkpoints(run)
    harm(newest / name, "cut in half", older)
    keep = Keep(last=2, best=1, metric="score", mode="min")
    net, opt = training()
    with holdfast.Run(run, keep=keep) as again:
        again.track(model=net, optimizer=opt)
        assert again.resume().epoch == 2
        again.state["x"] = np.arange(3000) * 4
        again.save(epoch=4, metrics={"score": 0.5}, wait=True)
        assert set(checkpoints(run)) >= {first, older, newest}, "the best, and the last two that are whole"
        again.save(epoch=5, metrics={"score": 0.6}, wait=True)
        assert first.is_dir()
        assert not older.is_dir()
    tried("harms")


@pytest.mark.parametrize("how", HARMS)
@pytest.mark.parametrize("name", ["checkpoint.json", *READ])
def test_nothing_whole_is_left(run, name, how, tried):
    """With every checkpoint harmed the launch is refused; `target_changed` is the truth, and nothing can be saved."""
    folders = checkpoints(run)
    spare = shutil.copytree(run, run.parent / "spare", symlinks=True)
    donor = shutil.copytree(folders[0], run.parent / "donor")
    if how == "of the checkpoint before" and name != "checkpoint.json":
        shutil.copy(folders[1] / name, donor / name)  # the first has none before it
    for folder in reversed(folders):
        before = folders[folders.index(folder) - 1] if folder != folders[0] else donor
        if how == "of the checkpoint before" and folder == folders[0] and name == "checkpoint.json":
            shutil.copy(folders[2] / name, folder / name)
        else:
            harm(folder / name, how, before)
    net, opt = training()
    fill(net, opt, 100)
    again = holdfast.Run(run, keep=KEEP)
    again.track(model=net, optimizer=opt)
    with pytest.raises(DamagedError) as caught:
        again.resume()
    error = caught.value
    assert f"No checkpoint of {run} is whole: 3 were tried. The newest says: " in str(error)
    assert error.path == str(run)
    unchanged = all((parameter == 100).all() for parameter in net.parameters())
    assert error.target_changed or unchanged
    if name in ("checkpoint.json", "arrays.json") or how not in ("a zeroed page", "of the checkpoint before"):
        assert not error.target_changed, "that is found before any byte is read"
        assert unchanged
    with pytest.raises(UsageError, match="failed half-way|has not resumed from them"):
        again.save(epoch=9)
    with pytest.raises(DamagedError):
        for _ in again.epochs(9):
            raise AssertionError("an epoch began")
    again.close()
    assert checkpoints(run) == folders
    # Put back, the same Run may resume, and then saves.
    shutil.rmtree(run)
    shutil.copytree(spare, run, symlinks=True)
    again = holdfast.Run(run, keep=KEEP)
    again.track(model=net, optimizer=opt)
    assert again.resume().epoch == 3
    again.save(epoch=9, metrics={"score": 0}, wait=True)
    again.close()
    tried("harms")


def test_a_block_in_the_middle_of_a_live_model(tmp_path, tried):
    """Damage found half-way through a live model: `target_changed`, and no save until a restore has succeeded."""
    net = torch.nn.Linear(4096, 3000)  # 49 MB: four blocks of 16 MiB
    torch.nn.init.ones_(net.weight)
    path = tmp_path / "run"
    with holdfast.Run(path) as run:
        run.track(model=net)
        run.save(epoch=1, wait=True)
    file = checkpoints(path)[0] / "model.safetensors"
    at = 40 << 20
    with open(file, "r+b") as stream:
        stream.seek(at)
        right = stream.read(1)
        stream.seek(at)
        stream.write(bytes([right[0] ^ 32]))
    torch.nn.init.zeros_(net.weight)
    again = holdfast.Run(path)
    again.track(model=net)
    with pytest.raises(DamagedError) as caught:
        again.resume()
    assert caught.value.target_changed
    assert "already partly overwritten" in str(caught.value)
    assert (caught.value.block, caught.value.arrays) == (2, ["model/weight"])
    assert (net.weight == 1).any(), "this is what it means"
    with pytest.raises(UsageError):
        again.save(epoch=2)
    with pytest.raises(DamagedError) as caught:
        for _ in again.epochs(5):
            raise AssertionError("an epoch began")
    assert caught.value.target_changed
    with open(file, "r+b") as stream:
        stream.seek(at)
        stream.write(right)
    assert again.resume().epoch == 1
    assert (net.weight == 1).all()
    again.save(epoch=2, wait=True)
    again.close()
    assert holdfast.open(path).progress.epoch == 2
    tried("harms")


@pytest.mark.parametrize("what", ["a page of the model", "the streams"])
def test_a_second_restore_that_fails(run, what, tried):
    """A launch that had resumed, and fails half-way in resuming again, saves nothing from then on."""
    net, opt = training()
    again = holdfast.Run(run, keep=KEEP)
    again.track(model=net, optimizer=opt)
    assert again.resume().epoch == 3
    for folder in checkpoints(run):
        if what == "a page of the model":
            harm(folder / "model.safetensors", "a zeroed page", None)
        else:  # right digests, and random streams that no generator takes: found when the weights are in
            table = sealed.decode((folder / "arrays.json").read_bytes(), "")
            table["parts"]["random"]["skeleton"] = {"streams": {"python": {"version": "x"}}}
            data = sealed.encode(table)
            (folder / "arrays.json").write_bytes(data)
            manifest = sealed.decode((folder / "checkpoint.json").read_bytes(), "")
            manifest["files"]["arrays.json"] = {"size": len(data), "digest": sealed.digest(data)}
            (folder / "checkpoint.json").write_bytes(sealed.encode(manifest))
    fill(net, opt, 100)
    with pytest.raises(DamagedError, match="No checkpoint of") as caught:
        again.resume()
    assert caught.value.target_changed
    with pytest.raises(UsageError, match="failed half-way"):
        again.save(epoch=4)
    again.close()
    assert len(checkpoints(run)) == 3
    tried("harms", 3)


def test_a_damaged_newest_leaves_no_trace_in_a_live_model(tmp_path, tried):
    """Half of a damaged checkpoint in the live model is overwritten by all of the older one, buffers and optimizer too."""
    net, opt = training()
    path = tmp_path / "run"
    with holdfast.Run(path, keep=KEEP) as run:
        run.track(model=net, optimizer=opt)
        for epoch in (1, 2):
            fill(net, opt, epoch)
            run.state["x"] = np.arange(3000) * epoch
            run.save(epoch=epoch, metrics={"score": epoch}, wait=True)
    draw = random.Random(20_260)
    newest = checkpoints(path)[-1]
    reblock(newest, BLOCK)
    for name in PAYLOAD:
        for _ in range(8):
            data = bytearray((newest / name).read_bytes())
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
            with content(newest / name, bytes(data)):
                live = training()
                fill(*live, 100)
                progress, values = resume(path, live)
                assert progress.epoch == epoch_of(values) == 1
            tried("harms")


# -- references, names, run.json ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["checkpoint.json", "arrays.json", "model.safetensors"])
def test_a_harmed_best(run, name, tried):
    """@best never means a checkpoint without its manifest; of other damage its load tells, by the checkpoint's name."""
    [first, best, newest] = checkpoints(run)
    harm(best / name, "cut in half", first)
    found = holdfast.open(f"{run}@best")
    if name == "checkpoint.json":
        assert found.path == str(newest)
        assert epoch_of(found.load()) == 3
        with pytest.raises(DamagedError, match=r"checkpoint\.json"):
            holdfast.open(f"{run}@seq=2")
        with pytest.raises(HoldfastError, match=r"damaged or foreign|checkpoint\.json"):
            holdfast.open(f"{run}@epoch=2")
    else:
        assert found.path == str(best)
        error = caught_by(found.load)
        assert (error.path, error.file) == (str(best), name)
    assert epoch_of(holdfast.open(run).load()) == 3
    assert epoch_of(holdfast.open(f"{run}@-3" if name != "checkpoint.json" else f"{run}@-2").load()) == 1
    tried("harms")


def test_a_renamed_checkpoint_is_foreign(run, said, tried):
    """Under another name, or as a copy with another number, a checkpoint is foreign: never resumed, never the best."""
    [first, best, newest] = checkpoints(run)
    later = run / newest.name.replace("000003", "000009")
    shutil.copytree(first, later)
    os.rename(best, run / best.name.replace("epoch-0002", "epoch-0005"))
    shutil.copytree(first, run / newest.name.replace("Z", "Z").replace("000003", "000004"))
    progress, values = resume(run)
    assert progress.epoch == epoch_of(values) == 3
    assert said.text.count("is foreign") == 2  # what is older than the newest whole one is not looked at
    assert holdfast.open(f"{run}@best").path == str(newest)
    assert call("ls", run).exit_code == 0
    marks = {
        row["sequence"]: row["marks"] for row in json.loads(call("ls", run, "--json").stdout)["checkpoints"]
    }
    assert marks[9] == marks[4] == marks[2] == ["foreign"]
    tried("harms", 3)


@pytest.mark.parametrize("what", ["renamed", "another run.json"])
def test_a_run_of_foreign_checkpoints_is_not_new(run, tmp_path, what, tried):
    """Where all checkpoints are foreign (renamed, or run.json is another's), a launch is refused and nothing begins anew."""
    if what == "renamed":
        for folder in checkpoints(run):
            os.rename(folder, run / folder.name.replace("_step-00000000_", "_step-00000009_"))
    else:
        with holdfast.Run(tmp_path / "other") as other:
            other.save(epoch=1)
        shutil.copy(tmp_path / "other" / "run.json", run / "run.json")
    with pytest.raises(DamagedError) as caught:
        resume(run)
    assert "No checkpoint of" in str(caught.value)
    assert "is foreign" in str(caught.value)
    assert len(checkpoints(run)) == 3
    assert all(holdfast.open(folder).verify() == [] for folder in checkpoints(run))
    tried("harms")


def test_a_run_whose_rewind_lost_its_target_is_not_new(run, tried):
    """When the checkpoint that a rewind went back to is gone, the abandoned ones are told, and nothing begins anew."""
    assert call("rewind", run, "@seq=1").exit_code == 0
    shutil.rmtree(checkpoints(run)[0])
    with pytest.raises(UsageError, match=r"All 2 checkpoints of .* are marked abandoned.*rewind .* @seq=3"):
        resume(run)
    assert call("rewind", run, "@seq=3").exit_code == 0
    assert resume(run)[0].epoch == 3
    tried("harms")


ODD = {
    "a file": lambda path, _: path.write_bytes(b"x"),
    "an empty directory": lambda path, _: path.mkdir(),
    "a link to nothing": lambda path, _: path.symlink_to("nowhere"),
    "a link to itself": lambda path, _: path.symlink_to(path.name),
    "a link to another": lambda path, newest: path.symlink_to(newest.name),
    "a pipe": lambda path, _: os.mkfifo(path),
    "payload without a manifest": lambda path, newest: (
        path.mkdir(),
        shutil.copy(newest / "model.safetensors", path),
    ),
}


@pytest.mark.parametrize("what", ODD)
def test_odd_things_with_a_checkpoints_name(run, what, tried):
    """What bears a newer checkpoint's name and is none is passed over by a launch, and listed by `ls`."""
    newest = checkpoints(run)[-1]
    odd = run / newest.name.replace("000003", "000008")
    ODD[what](odd, newest)
    progress, values = resume(run)
    assert progress.epoch == epoch_of(values) == 3
    listing = call("ls", run)
    assert listing.exit_code == 0
    assert "damaged" in listing.stdout or "foreign" in listing.stdout
    assert holdfast.open(run).path == str(newest)
    assert call("verify", run).exit_code != 0
    tried("harms")


def test_every_content_harm_to_run_json(run, tried):
    """A harmed run.json is told by name before anything is written; nothing begins anew beside the checkpoints."""
    data = (run / "run.json").read_bytes()
    count = 0
    for what, harmed in contents(data, data[::-1]):
        if harmed == data:
            continue
        with content(run / "run.json", harmed):
            for act in (lambda: holdfast.open(run), lambda: holdfast.Run(run).resume()):
                error = caught_by(act)
                assert type(error) is DamagedError, what
                assert (error.path, error.file) == (str(run), "run.json")
        count += 1
    tried("harms", count)
    for kind in KINDS:
        if kind == "a device" and os.geteuid() != 0:
            continue
        replaced(run / "run.json", kind)
        listing = {entry for entry in os.listdir(run) if not entry.startswith("lease-")}
        error = caught_by(lambda: resume(run))
        assert str(run) in str(error)
        assert {entry for entry in os.listdir(run) if not entry.startswith("lease-")} == listing
        if kind != "nothing":
            remove = shutil.rmtree if os.path.isdir(run / "run.json") and "link" not in kind else os.unlink
            remove(run / "run.json")
        os.rename(run.parent / "aside", run / "run.json")
        tried("harms")
    assert resume(run)[0].epoch == 3


GARBAGE = b"\n".join(
    [
        b"\xff\x00" * 999,
        b"[" * 5_000,
        b'{"a":' * 5_000,
        b"[" * 100_000,
        b'{"event":"save","held_seconds":1,"seconds":1,"bytes":1e999}',
        b'{"event":"save","held_seconds":NaN,"seconds":1,"bytes":1}',
        b'{"event":"save","held_seconds":%d,"seconds":1,"bytes":1}' % 10**400,
        b'[1]\n"x"\nnull\n{"event":"sa',
    ]
)


@pytest.mark.parametrize("how", ["gone", "a directory", "garbage", "a pipe", "a link to itself"])
def test_a_harmed_history(run, how, tried):
    """Without its history, or with something else in its place, a run resumes and saves the same."""
    path = run / "history.jsonl"
    if how == "garbage":
        path.write_bytes(GARBAGE)
    elif how == "gone":
        path.unlink()
    else:
        os.unlink(path)
        replaced_by = {"a directory": path.mkdir, "a pipe": lambda: os.mkfifo(path)}
        replaced_by.get(how, lambda: path.symlink_to(path.name))()
    assert isinstance(book.read_events(str(run)), list)
    assert resume(run)[0].epoch == 3
    for words in (("ls", run), ("doctor", run)):
        assert call(*words).exit_code == 0
    tried("harms")


# -- through the command ------------------------------------------------------------------------------


def codes(name, how):
    """What show, diff, export and verify of a harmed checkpoint end with."""
    if name == "checkpoint.json":
        gone = how in ("gone", "a directory")
        return [4, 4, 4, 4] if gone else [5, 5, 5, 5]
    if name == "arrays.json":
        return [5, 5, 5, 5]
    return [0, 0, 0, 5] if name == "README.md" else [0, 5, 5, 5]


@pytest.mark.parametrize("how", [how for how in HARMS if how != "of the checkpoint before"])
@pytest.mark.parametrize("name", FILES)
def test_commands_on_a_harmed_checkpoint(run, tmp_path, name, how, tried):
    """ls marks it and goes on; show, diff, export and verify end with the code of the damage, and leave nothing."""
    [_, older, newest] = checkpoints(run)
    harm(newest / name, how, older)
    lists = json.loads(call("ls", run, "--json").stdout)["checkpoints"]
    damaged = name == "checkpoint.json"
    assert [("damaged" in row["marks"]) for row in lists] == [False, False, damaged]
    assert (lists[2]["problem"] is not None) == damaged
    said = call("ls", run)
    assert said.exit_code == 0
    assert ("damaged" in said.stdout) == damaged
    expected = codes(name, how)
    target = tmp_path / "out.pth"
    for code, words in zip(
        expected,
        [("show", newest), ("diff", older, newest), ("export", newest, target), ("verify", newest)],
        strict=True,
    ):
        result = call(*words)
        assert result.exit_code == code, (words, result.output)
        if code == 0 and words[0] == "show" and name == "README.md":
            assert "README.md" in result.stderr
            assert "# " + newest.name in result.stdout
        if code:
            assert name in result.output
        if words[0] == "export":
            assert target.exists() == (code == 0)
            assert [entry for entry in os.listdir(tmp_path) if entry not in ("digits", "out.pth")] == []
    assert call("verify", run).exit_code == (6 if expected[-1] == 4 and how == "a directory" else 5)
    assert call("prune", run).exit_code == 0
    best = call("show", f"{run}@best")
    assert best.exit_code == 0
    tried("harms")


@pytest.mark.parametrize("name", ["checkpoint.json", "model.safetensors"])
def test_commands_that_need_a_whole_one(run, name):
    """rewind refuses a damaged target and changes nothing; init refuses a damaged source and touches no weight."""
    [first, older, newest] = checkpoints(run)
    harm(older / name, "a zeroed page" if name == "checkpoint.json" else "cut in half", first)
    before = sorted(os.listdir(run))
    assert call("rewind", run, "@seq=2").exit_code == 5
    assert [entry for entry in sorted(os.listdir(run)) if not entry.startswith("lease")] == [
        entry for entry in before if not entry.startswith("lease")
    ]
    net, _ = training()
    weights = [parameter.detach().clone() for parameter in net.parameters()]
    child = holdfast.Run(run.parent / "child", init={"model": str(older)})
    child.track(model=net)
    with pytest.raises(DamagedError):
        child.resume()
    child.close()
    assert all(torch.equal(a, b) for a, b in zip(weights, net.parameters(), strict=True))
    assert newest.is_dir()


# -- entire models ---------------------------------------------------------------------------------------


def test_an_entire_model_harmed(tmp_path, tried):
    """Every harm to any file of an entire model is found before the code that it names is run."""
    import holdfast.torch

    path = tmp_path / "net"
    holdfast.torch.save_model(torch.nn.Linear(3, 2), path)
    count = 0
    for name in sorted(os.listdir(path)):
        if name == "README.md":
            continue
        data = (path / name).read_bytes()
        for what, harmed in contents(data, data[::-1]):
            if harmed == data:
                continue
            with content(path / name, harmed):
                error = caught_by(lambda: holdfast.torch.load_model(path, trust=True))
                assert type(error) is DamagedError, (name, what)
                assert error.file == name
            count += 1
    tried("harms", count)
