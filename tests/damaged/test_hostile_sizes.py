"""Checkpoints that claim to be larger, longer or deeper than they are: no memory and no time is spent on claims.

Each is opened in a forked child in every way that there is (loaded, restored, verified, shown,
compared), and may take 64 MB and 50 times what it takes on the disk: JSON becomes objects.
"""

import os
import shutil

import hostile
import pytest
from hostile import MEGABYTE, check_use, forge, part, read, sparse, weight

from holdfast.format import sealed


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    hostile.warm_up()
    return hostile.save_template(tmp_path_factory.mktemp("hostile") / "ckpt")


@pytest.fixture
def ckpt(template, tmp_path):
    return shutil.copytree(template, tmp_path / "ckpt")


# -- arrays --------------------------------------------------------------------------------------


def first(content):
    return weight(content)["chunks"][0]


def again(content, times):
    """One array of many pieces, all of which lie in the same bytes."""
    chunk = first(content)
    weight(content)["shape"] = [times, 600]
    weight(content)["chunks"] = [{**chunk, "offset": [row, 0], "shape": [1, 600]} for row in range(times)]


def many(content, count):
    """Many arrays of other shapes, all of which lie in the same bytes."""
    chunk = first(content)
    names = [f"/{number}" for number in range(count)]
    shapes = [[1] * (number % 60) + [600] + [1] * (number // 60 % 3) for number in range(count)]
    part(content, "values")["arrays"] = {
        name: {"dtype": "F32", "shape": shape, "chunks": [chunk]}
        for name, shape in zip(names, shapes, strict=True)
    }
    part(content, "values")["skeleton"] = [{"$": "torch", "v": name} for name in names]


def shifted(content, count):
    """Many arrays, each of which lies four bytes behind the one before."""
    chunk, start = first(content), first(content)["bytes"][0]
    names = [f"/{number}" for number in range(count)]
    part(content, "values")["arrays"] = {
        name: {
            "dtype": "F32",
            "shape": [500],
            "chunks": [{**chunk, "bytes": [start + at, start + at + 2000]}],
        }
        for at, name in zip(range(0, 400, 4), names, strict=False)
    }
    part(content, "values")["skeleton"] = [
        {"$": "torch", "v": name} for name in part(content, "values")["arrays"]
    ]


def twice(content):
    """Two pieces in one place of an array: the other place would keep what the memory held before."""
    start, stop = first(content)["bytes"]
    middle = (start + stop) // 2
    pieces = [[start, middle], [middle, stop]]
    weight(content)["chunks"] = [
        {"file": first(content)["file"], "bytes": piece, "offset": [0, 0], "shape": [10, 30]}
        for piece in pieces
    ]


def listed_size(content, size, blocks):
    content["files"]["model.safetensors"] = {"size": size, "blocks": ["0" * 32] * blocks}


def terabyte(content):
    listed_size(content, 1 << 40, 1 << 16)
    weight(content)["shape"] = [1 << 36]
    first(content)["bytes"] = [0, 1 << 38]


def pieces_in_all_directions(content):
    weight(content)["shape"] = [1 << 8] * 8
    chunks = [
        {
            "file": "model.safetensors",
            "bytes": [4096, 4100],
            "offset": [n >> (2 * a) & 3 for a in range(8)],
            "shape": [1] * 8,
        }
        for n in range(30_000)
    ]
    weight(content)["chunks"] = chunks


def dtypes(content):
    arrays = part(content, "values")["arrays"]
    for number, dtype in enumerate(
        ["numpy:<U999999999", "numpy:|V999999999", "numpy:<M8[99999999999999999999s]"]
    ):
        arrays[f"/{number}"] = {"dtype": dtype, "shape": [0], "chunks": []}
    arrays["/none"] = {"dtype": "numpy:|S0", "shape": [10**10], "chunks": []}
    part(content, "values")["skeleton"] = [{"$": "numpy", "v": name} for name in arrays]


ARRAYS = {
    "pieces that lie in the same bytes": (lambda c: again(c, 50_000), "FormatError", "share their bytes"),
    "arrays that lie in the same bytes": (lambda c: many(c, 3000), "FormatError", "share their bytes"),
    "arrays that overlap": (lambda c: shifted(c, 100), "FormatError", "share their bytes"),
    "pieces on top of each other": (twice, "FormatError", "overlap, and leave a part of it out"),
    "pieces cut in eight directions": (pieces_in_all_directions, "FormatError", "of its|would have"),
    "a file of a terabyte that has 6 kB": (
        terabyte,
        "DamagedError|MismatchError",
        "is shorter than it was written|does not fit",
    ),
    "a block size of one": (lambda c: c.update(block_size=1), "FormatError", "gives a block size of 1 bytes"),
    "a million dimensions": (
        lambda c: weight(c).update(shape=[1] * 10**6),
        "FormatError",
        "at most 64 sizes",
    ),
    "a million empty pieces": (
        lambda c: weight(c).update(
            shape=[0], chunks=[{"file": "model.safetensors", "bytes": [0, 0]}] * 200_000
        ),
        "None|MismatchError",
        "",
    ),
    "dtypes of a gigabyte": (
        dtypes,
        "FormatError",
        "is no NumPy dtype|cannot make",
    ),
    "an array name of 20 MB": (
        lambda c: part(c)["arrays"].update({"n" * (20 << 20): {**weight(c), "dtype": "F99"}}),
        "FormatError",
        "F99",
    ),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_claims_of_arrays(ckpt, template, name, tried):
    """A table of arrays that claims more than its files hold costs no memory, and is refused by name."""
    change, expected, words = ARRAYS[name]
    forge(ckpt, arrays=change)
    found = check_use(ckpt, template)
    for act in ("load", "numpy", "restore"):
        assert str(found[act][0]) in expected.split("|"), found[act]
        assert any(word in found[act][1] for word in words.split("|")), found[act][1][:500]
    tried("hostile")


# -- files ---------------------------------------------------------------------------------------

BIG = 1 << 30


@pytest.mark.parametrize("name", ["README.md", "arrays.json", "checkpoint.json", "model.safetensors"])
@pytest.mark.parametrize("listed", [True, False])
def test_a_hole_of_a_gigabyte(ckpt, template, name, listed, tried):
    """A file that is one large hole, listed with that size or not, takes next to no memory."""
    sparse(ckpt / name, BIG if name != "model.safetensors" else 1 << 40)
    if listed and name != "checkpoint.json":
        manifest = read(ckpt, "checkpoint.json")
        manifest["files"][name] = {"size": BIG, "digest": "0" * 32}
        (ckpt / "checkpoint.json").write_bytes(sealed.encode(manifest))
    only = {"look", "load", "numpy", "restore", "verify", "show"}
    found = check_use(ckpt, template, memory=64 * MEGABYTE, only=only)
    assert found["verify"][0] in ("DamagedError", "FormatError"), found
    assert name in found["verify"][1]
    tried("hostile")


def test_a_file_that_grows(tmp_path, tried):
    """A small file that somebody keeps adding to is read up to its limit and no further."""
    from holdfast import files
    from holdfast.errors import FormatError

    path = tmp_path / "grows"
    path.write_bytes(b"x" * 100)
    true = os.read

    def grows(fd, count):
        with open(path, "ab") as file:
            file.write(b"x" * 4096)
        return true(fd, count)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "read", grows)
        with pytest.raises(FormatError, match="such a file has at most 65,536"):
            files.read_file(path, 1 << 16)
    tried("hostile")


def test_an_array_larger_than_memory(ckpt, template, tried):
    """An array that really lies in a file, all of it a hole, ends in an error where there is no memory for it."""
    size = 8 << 30
    sparse(ckpt / "model.safetensors", size)
    zeros = sealed.digest(bytes(16 << 20))

    def change(content):
        content["files"]["model.safetensors"] = {"size": size, "blocks": [zeros] * (size >> 24)}
        part(content, "values")["arrays"] = {
            "/x": {
                "dtype": "U8",
                "shape": [size],
                "chunks": [{"file": "model.safetensors", "bytes": [0, size]}],
            }
        }
        part(content, "values")["skeleton"] = [{"$": "torch", "v": "/x"}]

    forge(ckpt, arrays=change)
    found = check_use(ckpt, template, only={"load", "numpy"})
    for act in ("load", "numpy"):
        assert found[act][0] == "StorageError"
        assert "cannot make the array values//x, U8 [8589934592], of 8,589,934,592 bytes" in found[act][1]
    tried("hostile")
