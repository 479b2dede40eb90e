import os

import numpy as np
import pytest

import holdfast
from holdfast.checkpoint import Checkpoint
from holdfast.content import Content
from holdfast.errors import DamagedError, FormatError, NotFoundError
from holdfast.format.manifest import CARD_FILE
from holdfast.payload.source import FolderSource


class Elsewhere:
    """A source that is no directory: bytes by name, as an object store has them."""

    crew, distant = "network", True

    def __init__(self, path, files):
        self.path, self.files, self.asked = path, files, []
        self.worse = {}  # file → how often its bytes arrive wrong

    @classmethod
    def copy(cls, directory):
        files = {}
        for name in os.listdir(directory):
            with open(os.path.join(directory, name), "rb") as file:
                files[name] = file.read()
        return cls("far://away", files)

    def exists(self):
        return "checkpoint.json" in self.files

    def names(self):
        return list(self.files)

    def size(self, file):
        return len(self._of(file))

    def small(self, file, limit, *, text=False):
        data = self._of(file)
        if len(data) > limit:
            raise FormatError("too long", path=self.path)
        return data

    def read(self, file, into, offset):
        data = self.open(file).fetch(offset, len(into))
        into[: len(data)] = data
        return len(data)

    def open(self, file):
        self._of(file)
        return Far(self, file)

    def _of(self, file):
        if file not in self.files:
            raise NotFoundError(f"There is no {file}.", path=self.path)
        return self.files[file]


class Far:
    distant = True

    def __init__(self, source, file):
        self.source, self.file, self.path = source, file, f"{source.path}/{file}"

    def size(self):
        return self.source.size(self.file)

    def fetch(self, offset, length):
        data = bytearray(self.source._of(self.file)[offset : offset + length])
        self.source.asked.append((self.file, offset, len(data)))
        if self.source.worse.get(self.file, 0):
            self.source.worse[self.file] -= 1
            data[-1] ^= 1
        return memoryview(data)

    def abandon(self):
        pass

    def close(self):
        pass


BIG = np.arange(9 << 20, dtype=np.float32)  # 36 MiB: three blocks


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("content") / "ckpt")
    small = {f"w{number}": np.full(1000, number, "f4") for number in range(200)}
    holdfast.save(path, {"big": {"x": BIG}, "small": small, "epoch": 3})
    return path


@pytest.fixture
def far(saved):
    return Elsewhere.copy(saved)


@pytest.fixture
def checkpoint(saved, far):
    """A checkpoint whose files are elsewhere."""
    opened = Checkpoint(saved)
    opened._held = Content(far, opened.manifest)
    return opened


def test_what_is_elsewhere_is_read_the_same(checkpoint, saved):
    """The values are those of the directory, and nothing is damaged."""
    here = holdfast.open(saved).load(arrays="numpy")
    there = checkpoint.load(arrays="numpy")
    assert there["epoch"] == here["epoch"] == 3
    assert np.array_equal(there["big"]["x"], BIG)
    assert all(np.array_equal(there["small"][name], value) for name, value in here["small"].items())
    assert checkpoint._content.verify() == []


def test_a_part_costs_its_own_blocks(checkpoint, far):
    """Of a distant checkpoint, the blocks of the part that is wanted are read, once, each in one call."""
    checkpoint.load(["small"], arrays="numpy")
    assert far.asked == [("small.safetensors", 0, far.size("small.safetensors"))]
    far.asked.clear()
    checkpoint.load(["big"], arrays="numpy")
    size = far.size("big.safetensors")
    blocks = [(start, min(16 << 20, size - start)) for start in range(0, size, 16 << 20)]
    assert sorted(far.asked) == sorted(
        [("big.safetensors", 0, 8), *(("big.safetensors", *block) for block in blocks)]
    )


def test_a_block_that_arrives_damaged_is_asked_for_once_more(checkpoint, far):
    """The network may be at fault: the second answer counts."""
    far.worse["small.safetensors"] = 1
    assert checkpoint.load(["small"], arrays="numpy")["small"]["w7"][0] == 7
    assert len(far.asked) == 2


def test_a_block_that_stays_damaged_names_file_block_and_arrays(checkpoint, far):
    """What is wrong twice is damage; the target was not written to."""
    far.worse["big.safetensors"] = 10
    target = {"x": np.zeros_like(BIG)}
    with pytest.raises(DamagedError) as caught:
        checkpoint.restore({"big": target})
    error = caught.value
    assert (error.file, error.arrays) == ("big.safetensors", ["big/x"])
    assert error.block in {0, 1, 2}
    assert not error.target_changed
    assert not target["x"].any()


def test_verify_tells_each_damaged_block_of_a_distant_file(checkpoint, far):
    """What does not pass with time is told by file and block, for all of them; and a file too many."""
    data = bytearray(far.files["big.safetensors"])
    data[5000] ^= 1
    data[(32 << 20) + 9] ^= 1
    far.files["big.safetensors"] = bytes(data)
    far.files["stranger"] = b""
    found = checkpoint._content.verify()
    assert [(problem.file, problem.block) for problem in found] == [
        ("stranger", None), ("big.safetensors", 0), ("big.safetensors", 2),
    ]  # fmt: skip


@pytest.mark.parametrize("cut", [0, 100, 20 << 20])
def test_a_distant_file_that_is_too_short_is_damage(checkpoint, far, cut):
    """It is found before anything is read of it."""
    far.files["big.safetensors"] = far.files["big.safetensors"][:cut]
    with pytest.raises(DamagedError, match="shorter than it was written"):
        checkpoint.load(["big"])
    assert far.asked == []


def test_a_file_that_goes_while_it_is_read(checkpoint, far, monkeypatch):
    """A file that is gone is damage as long as there is a checkpoint; else that was deleted."""
    fetch = Far.fetch

    def going(self, offset, length):
        far.files.pop("small.safetensors", None)
        if whole:
            far.files.pop("checkpoint.json", None)
        return fetch(self, offset, length)

    monkeypatch.setattr(Far, "fetch", going)
    data, whole = dict(far.files), False
    with pytest.raises(DamagedError, match="is missing"):
        checkpoint._content.read(planned(checkpoint))
    far.files, whole = data, True
    with pytest.raises(NotFoundError, match="was deleted while it was being read"):
        checkpoint._content.read(planned(checkpoint))


def planned(checkpoint):
    from holdfast.state.part import Plan

    plan = Plan()
    plan.value(checkpoint.saved("small"), "numpy")
    return plan


def test_the_sources_agree(saved, far):
    """A directory and what is elsewhere answer the same questions alike."""
    here = FolderSource(saved)
    assert sorted(here.names()) == sorted(far.names())
    for name in here.names():
        assert here.size(name) == far.size(name)
        one, other = bytearray(10), bytearray(10)
        assert here.read(name, memoryview(one), 3) == far.read(name, memoryview(other), 3)
        assert one == other
        assert here.read(name, memoryview(one), here.size(name)) == 0
    assert here.small(CARD_FILE, 1 << 20) == far.small(CARD_FILE, 1 << 20)
    for source in (here, far):
        with pytest.raises(FormatError):
            source.small(CARD_FILE, 5)
        with pytest.raises(NotFoundError):
            source.small("nothing", 5)
        with pytest.raises(NotFoundError):
            source.open("nothing")
