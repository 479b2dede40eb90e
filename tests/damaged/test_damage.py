"""Every file of a checkpoint, harmed in every way: it is found, it is named, and it is never loaded."""

import contextlib
import os
import shutil

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import holdfast
from holdfast import CheckpointError, DamagedError, FormatError, HoldfastError, NotFoundError
from holdfast.format import sealed

FILES = [
    "checkpoint.json",
    "arrays.json",
    "README.md",
    "notes.txt",
    "model.safetensors",
    "optimizer.safetensors",
]
PAYLOAD = {"model.safetensors": "model", "optimizer.safetensors": "optimizer"}


def training(value):
    """A network and its optimizer, all of whose arrays hold `value`, and a nested value."""
    net = torch.nn.Sequential(torch.nn.Linear(40, 30), torch.nn.Linear(30, 3))
    opt = torch.optim.Adam(net.parameters())
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    opt.step()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(value)
            opt.state[parameter]["exp_avg"].fill_(value)
    return {"model": net, "optimizer": opt, "config": {"numbers": [1, 2, value]}}


def save(path, value):
    holdfast.save(path, training(value), extra={"notes.txt": b"a small file, %d" % value})


@pytest.fixture(scope="module")
def templates(tmp_path_factory):
    """Two checkpoints of the same training, one holding ones, the other twos."""
    home = tmp_path_factory.mktemp("templates")
    save(home / "ones", 1)
    save(home / "twos", 2)
    return home


@pytest.fixture
def ckpt(templates, tmp_path):
    return shutil.copytree(templates / "ones", tmp_path / "ckpt")


def flip(path, place, bit=3):
    data = bytearray(path.read_bytes())
    data[place] ^= 1 << bit
    path.write_bytes(bytes(data))


HARMS = {
    "flip at the start": lambda path, _: flip(path, 0),
    "flip in the middle": lambda path, _: flip(path, path.stat().st_size // 2),
    "flip at the end": lambda path, _: flip(path, -1),
    "empty": lambda path, _: path.write_bytes(b""),
    "half": lambda path, _: os.truncate(path, path.stat().st_size // 2),
    "one byte short": lambda path, _: os.truncate(path, path.stat().st_size - 1),
    "one byte long": lambda path, _: path.write_bytes(path.read_bytes() + b"\0"),
    "twice": lambda path, _: path.write_bytes(path.read_bytes() * 2),
    "a terabyte of zeros": lambda path, _: os.truncate(path, 1 << 40),
    "zeros": lambda path, _: path.write_bytes(bytes(path.stat().st_size)),
    "deleted": lambda path, _: path.unlink(),
    "another checkpoint's": lambda path, other: shutil.copy(other / path.name, path),
    "a link to another checkpoint's": lambda path, other: (path.unlink(), path.symlink_to(other / path.name)),
    "a link to itself": lambda path, _: (path.unlink(), path.symlink_to(path.name)),
    "a directory": lambda path, _: (path.unlink(), path.mkdir()),
    "a pipe": lambda path, _: (path.unlink(), os.mkfifo(path)),
}


def names_the_file(error, name):
    """The message has the file, and what to do next."""
    text = str(error)
    assert name in text, text
    assert isinstance(error, FormatError | NotFoundError) or "Next: " in text, text
    assert len(text) < 2000


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("name", FILES)
def test_every_file_and_every_harm(ckpt, templates, name, harm):
    """Harm to any file is found by `verify`, and by load and restore when they read it; the error names the file."""
    HARMS[harm](ckpt / name, templates / "twos")
    if name == "checkpoint.json":
        if harm == "another checkpoint's":
            problems = holdfast.open(ckpt).verify()
            assert problems
            assert all(
                "README.md" in str(p) or "arrays.json" in str(p) or "notes" in str(p) for p in problems
            )
            name = "arrays.json"
        else:
            with pytest.raises(CheckpointError) as caught:
                holdfast.open(ckpt)
            names_the_file(caught.value, "checkpoint.json")
            return
    else:
        problems = holdfast.open(ckpt).verify()
        assert problems
        for problem in problems:
            assert isinstance(problem, HoldfastError)
            names_the_file(problem, name)
        assert any(isinstance(problem, DamagedError) and problem.file == name for problem in problems)
    reads = name == "arrays.json" or name in PAYLOAD
    expected = pytest.raises(DamagedError) if reads else contextlib.nullcontext()
    with expected as caught:
        assert_ones(holdfast.open(ckpt).load())
    if reads:
        names_the_file(caught.value, name)
    live = training(3)
    with pytest.raises(DamagedError) if reads else contextlib.nullcontext() as caught:
        holdfast.restore(ckpt, {"model": live["model"], "optimizer": live["optimizer"]})
    if reads:
        names_the_file(caught.value, name)
        if not caught.value.target_changed:
            assert all((p == 3).all() for p in live["model"].parameters())
    else:
        assert all((p == 1).all() for p in live["model"].parameters())


def assert_ones(values):
    assert all((array == 1).all() for array in values["model"].values())
    assert all((state["exp_avg"] == 1).all() for state in values["optimizer"]["state"].values())
    assert values["config"] == {"numbers": [1, 2, 1]}


@pytest.mark.parametrize("name", PAYLOAD)
def test_what_is_not_read_does_not_matter(ckpt, name):
    """A damaged payload file does not keep another part from being loaded."""
    flip(ckpt / name, -1)
    [other] = set(PAYLOAD.values()) - {PAYLOAD[name]}
    assert list(holdfast.open(ckpt).load(parts=[other, "config"])) == [other, "config"]
    with pytest.raises(DamagedError) as caught:
        holdfast.open(ckpt).load(parts=[PAYLOAD[name]])
    assert caught.value.file == name


def test_files_swapped_within_a_checkpoint(ckpt):
    """Two files of one checkpoint with their names exchanged are both damaged."""
    os.rename(ckpt / "model.safetensors", ckpt / "x")
    os.rename(ckpt / "optimizer.safetensors", ckpt / "model.safetensors")
    os.rename(ckpt / "x", ckpt / "optimizer.safetensors")
    problems = holdfast.open(ckpt).verify()
    assert {problem.file for problem in problems} == set(PAYLOAD)


def test_a_mixture_of_two_checkpoints(ckpt, templates):
    """The arrays and payload of another checkpoint do not pass under this one's manifest."""
    for name in ("arrays.json", *PAYLOAD):
        shutil.copy(templates / "twos" / name, ckpt / name)
    with pytest.raises(DamagedError) as caught:
        holdfast.open(ckpt).load()
    assert caught.value.file == "arrays.json"
    assert {problem.file for problem in holdfast.open(ckpt).verify()} == {"arrays.json"}


def test_arrays_that_do_not_belong_to_the_manifest(ckpt, templates):
    """An arrays.json that the manifest lists, but whose payload digests are others, is told as such."""
    data = (templates / "twos" / "arrays.json").read_bytes()
    (ckpt / "arrays.json").write_bytes(data)
    path = ckpt / "checkpoint.json"
    content = sealed.decode(path.read_bytes(), "x")
    content["files"]["arrays.json"] = {"size": len(data), "digest": sealed.digest(data)}
    path.write_bytes(sealed.encode(content))
    for act in (lambda: holdfast.open(ckpt).load(), lambda: holdfast.open(ckpt).verify()):
        with contextlib.suppress(DamagedError):
            problems = act()
            raise problems[0]
    with pytest.raises(DamagedError, match=r"disagree about model.safetensors: they do not belong together"):
        holdfast.open(ckpt).load()


def test_a_file_too_many(ckpt):
    """A file that does not belong to the checkpoint is told by `verify`, and does not keep it from loading."""
    (ckpt / "core.1234").write_bytes(b"x")
    [problem] = holdfast.open(ckpt).verify()
    assert problem.file == "core.1234"
    assert "does not belong to it" in str(problem)
    assert_ones(holdfast.open(ckpt).load())


def test_all_damage_is_listed(ckpt):
    """`verify` goes on after the first damage, and lists every damaged file once."""
    for name in ("README.md", "model.safetensors", "optimizer.safetensors"):
        flip(ckpt / name, -1)
    assert [problem.file for problem in holdfast.open(ckpt).verify()] == [
        "README.md",
        "model.safetensors",
        "optimizer.safetensors",
    ]


def test_block_and_arrays_are_named(tmp_path):
    """Damage in a large file is told by block, bytes and arrays, with both digests; verify lists each block."""
    parts = {"state_a": {"first": np.zeros(5 << 20, np.float32), "second": np.ones(5 << 20, np.float32)}}
    path = tmp_path / "big"
    holdfast.save(path, parts)
    file = path / "state_a.safetensors"
    with open(file, "r+b") as stream:
        for place in (1 << 20, 30 << 20):
            stream.seek(place)
            stream.write(b"\xff")
    first, second = holdfast.open(path).verify()
    assert (first.block, first.arrays) == (0, ["state_a/first"])
    assert (second.block, second.arrays) == (1, ["state_a/first", "state_a/second"])
    assert str(first).startswith(
        f"{file} is damaged in block 0 of 3 (bytes 0 to 16,777,216): expected xxh3-128 "
    )
    assert first.expected in str(first)
    assert first.found in str(first)
    assert first.expected != first.found
    assert "It holds state_a/first." in str(first)
    assert f"Next: `holdfast verify {path}`." in str(first)


def test_two_keys_of_one_name(ckpt):
    """A manifest with a key twice and a right digest is refused with the key."""
    body = (ckpt / "checkpoint.json").read_bytes()[:-47].replace(b'"note":"",', b'"note":"","note":"x",')
    assert b'"note":"x"' in body
    (ckpt / "checkpoint.json").write_bytes(body + b'"xxh3-128":"%s"}\n' % sealed.digest(body).encode())
    with pytest.raises(FormatError, match=r"checkpoint.json has the key 'note' twice"):
        holdfast.open(ckpt)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_harm_is_found_or_harmless(templates, data):
    """Whatever happens to any bytes of any file, a load gives what was saved or an error that is ours."""
    name = data.draw(st.sampled_from(FILES))
    original = (templates / "ones" / name).read_bytes()
    place = data.draw(st.integers(0, len(original) - 1))
    what = data.draw(st.binary(max_size=40))
    length = data.draw(st.integers(0, 60))
    changed = original[:place] + what + original[place + length :]
    path = templates / "mutant"
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(templates / "ones", path)
    (path / name).write_bytes(changed)
    said = None
    try:
        found = holdfast.open(path)
        assert bool(found.verify()) == (changed != original)
        assert_ones(found.load())
    except HoldfastError as error:
        said = str(error)
    if said is None:
        assert changed == original or name in ("README.md", "notes.txt")
    else:
        assert changed != original
        assert name in said


# -- the files of a run ------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path):
    path = tmp_path / "run"
    with holdfast.Run(path) as run:
        for epoch in range(1, 3):
            run.state["x"] = np.full(3, epoch)
            run.save(epoch=epoch, wait=True)
    return path


@pytest.mark.parametrize("harm", [harm for harm in HARMS if "another" not in harm and harm != "deleted"])
def test_a_damaged_run_json(run, harm):
    """A damaged run.json is told by name before anything is written; its checkpoints still open by their paths."""
    HARMS[harm](run / "run.json", None)
    before = sorted(os.listdir(run))
    for act in (lambda: holdfast.open(run), lambda: holdfast.Run(run).resume()):
        with pytest.raises(HoldfastError) as caught:
            act()
        assert str(run) in str(caught.value)
        assert caught.value.exit_code in (4, 5, 6, 2, 10)
    checkpoints = [name for name in before if name[0] == "0"]
    assert checkpoints == sorted(name for name in os.listdir(run) if name[0] == "0")
    name = checkpoints[-1]
    assert holdfast.open(run / name).load()["state"]["x"][0] == 2


def test_what_nothing_is_decided_from(run):
    """A garbled history, wrong links and odd marks change nothing about what is resumed."""
    (run / "history.jsonl").write_bytes(b'\xff\x00{"event":\n[1]\n')
    (run / "latest").unlink()
    (run / "latest").symlink_to("/etc")
    (run / "pins").mkdir(exist_ok=True)
    (run / "pins" / "not-a-checkpoint").mkdir()
    again = holdfast.Run(run)
    assert again.resume().epoch == 2
    again.save(epoch=3, wait=True)
    assert os.readlink(run / "latest") == again.latest.name
    again.close()
