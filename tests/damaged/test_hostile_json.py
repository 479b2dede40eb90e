"""Checkpoints of long, deep and endless JSON, skeletons, names and damage: the time and memory that the text may take.

Each is opened in a forked child in every way that there is, as in the sizes' tests.
"""

import itertools
import shutil

import hostile
import pytest
from hostile import MEGABYTE, check_use, forge, list_file, part, seal, skeleton

import holdfast


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    hostile.warm_up()
    return hostile.save_template(tmp_path_factory.mktemp("hostile") / "ckpt")


@pytest.fixture
def ckpt(template, tmp_path):
    return shutil.copytree(template, tmp_path / "ckpt")


# -- JSON ----------------------------------------------------------------------------------------

HEAD = b'{"format":"holdfast-arrays","version":[1,0],"block_size":16777216,\n'
JSON = {
    "a list of lists": HEAD + b'"files":{},"overlaps":[' + b"[]," * 400_000 + b'[]],"parts":{},\n',
    "many keys": b"{" + b",".join(b'"%d":0' % n for n in range(200_000)) + b",\n",
    "the same key many times": b"{" + b'"a":0,' * 10**6 + b"\n",
    "a text of 20 MB": HEAD + b'"files":{},"x":"' + b"a" * (20 << 20) + b'","parts":{},\n',
    "a float of ten million digits": HEAD + b'"x":0.' + b"123" * 3_000_000 + b",\n",
    "an exponent of a million": b'{"block_size":1e999999,\n',
    "a whole number of ten million digits": b'{"block_size":' + b"7" * 10**7 + b",\n",
    "spaces": b"{" + b" " * (20 << 20) + b"\n",
    "quotes and spaces": HEAD + (b'"' + b" " * 1000) * 20_000 + b",\n",
    "brackets": b'{"a":' + b"[" * (10 << 20) + b",\n",
    "braces": b'{"a":' + b'{"a":' * (1 << 20) + b"\n",
    "half a pair of surrogates": HEAD + b'"files":{"\\ud800":{"size":0,"blocks":[]}},"parts":{},\n',
    "bytes that are no text": HEAD + b'"x":"\xff\xfe",\n',
    "a zero": HEAD + b'"x":"\0",\n',
}  # fmt: skip


@pytest.mark.parametrize("name", JSON)
def test_json_bombs(ckpt, template, name, tried):
    """JSON that is long, deep, repeated or no JSON ends in an error that names its file, in the memory that it may take."""
    forge(ckpt, raw=seal(JSON[name]))
    found = check_use(ckpt, template, only={"load", "verify", "show"})
    assert found["load"][0] in ("FormatError", "DamagedError")
    assert "arrays.json" in found["load"][1]
    tried("hostile")


@pytest.mark.parametrize("name", ["keys", "digits", "depth"])
def test_manifest_bombs(ckpt, template, name, tried):
    """So does a checkpoint.json; one of more than 16 MiB is not even read."""
    body = {
        "keys": b'{"format":"holdfast-checkpoint",'
        + b",".join(b'"%d":0' % n for n in range(200_000))
        + b",\n",
        "digits": b'{"format":"holdfast-checkpoint","version":[1,' + b"9" * (4 << 20) + b"],\n",
        "depth": b'{"format":"holdfast-checkpoint","config":' + b"[" * 200 + b"]" * 200 + b",\n",
    }[name]
    (ckpt / "checkpoint.json").write_bytes(seal(body))
    found = check_use(ckpt, template, only={"look", "show"})
    assert found["look"][0] == "FormatError"
    (ckpt / "checkpoint.json").write_bytes(seal(b'{"x":"' + b"a" * (17 << 20) + b'",\n'))
    found = check_use(ckpt, template, memory=32 * MEGABYTE, only={"look", "show"})
    assert "such a file has at most 16,777,216" in found["look"][1]
    tried("hostile", 2)


# -- skeletons -----------------------------------------------------------------------------------


def nested(levels, value=None):
    for _ in range(levels):
        value = [value]
    return value


SKELETONS = {
    "an alias a hundred thousand times": [{"$": "torch", "v": "/x"}] * 100_000,
    "ten million hexadecimal digits": {"$": "int", "v": "0x" + "f" * 10**7},
    "a million decimal digits": {"$": "int", "v": "9" * 10**6},
    "20 MB of base64": {"$": "bytes", "v": "A" * (20 << 20)},
    "a range without end": {"$": "range", "v": [0, {"$": "int", "v": str(10**100)}, 1]},
    "a deque as long as memory": {"$": "deque", "v": [], "maxlen": 10**18},
    "a scalar of two hundred thousand fields": {"$": "numpy.scalar", "v": [",".join(["f4"] * 200_000), "00"]},
    "a scalar of 2^60 bytes": {"$": "numpy.scalar", "v": [f"V{2**60}", "00"]},
    "a size beyond all": {"$": "torch.Size", "v": [2**62, -1, 10**30]},
    "as deep as may be": nested(90),
    "a dict of many pairs": {"$": "dict", "v": [[n, nested(3)] for n in range(20_000)]},
    "a dict as its own key": {"$": "dict", "v": [[{"$": "dict", "v": []}, 1]]},
    "a set of sets": {"$": "set", "v": [{"$": "set", "v": []}]},
}  # fmt: skip


@pytest.mark.parametrize("name", SKELETONS)
def test_skeleton_bombs(ckpt, template, name, tried):
    """A skeleton costs what its JSON costs: nothing in it refers to itself, and no number is believed."""
    forge(ckpt, arrays=skeleton(SKELETONS[name]))
    found = check_use(ckpt, template, only={"load", "numpy", "restore", "diff", "show"})
    assert found["load"][0] in (None, "FormatError"), found["load"]
    if name.startswith("a scalar"):  # before NumPy looks at it
        assert "is no dtype that a checkpoint can hold" in found["load"][1]
    tried("hostile")


# -- many names ----------------------------------------------------------------------------------


def test_names_without_number(ckpt, template, tried):
    """Among a hundred thousand long names that nearly fit, the nearest is not looked for without end."""
    chunk = {"dtype": "F32", "shape": [0], "chunks": []}

    def change(content):
        part(content)["arrays"] = {f"weight_{'ab' * 40}_{n}": chunk for n in range(100_000)}
        part(content)["skeleton"] = {"$": "flat", "v": "torch"}

    forge(ckpt, arrays=change)
    found = check_use(ckpt, template, cpu=40, only={"restore", "load", "show"})
    assert found["restore"][0] == "MismatchError"
    assert "and 99980 more" in found["restore"][1]
    tried("hostile")


def test_parts_without_number(ckpt, template, tried):
    """A checkpoint of thousands of parts is listed in part when one is asked for that is not there."""

    def change(content):
        content["parts"].update({f"p{n}_{'x' * 60}": {"kind": "value", "skeleton": n} for n in range(5000)})

    forge(ckpt, arrays=change)
    with pytest.raises(holdfast.errors.NotFoundError) as caught:
        holdfast.open(ckpt).load(parts=["modle"])
    assert "did you mean 'model'" in str(caught.value)
    assert len(str(caught.value)) < 25_000
    check_use(ckpt, template, only={"load", "restore", "verify"})
    tried("hostile")


def test_damage_without_number(ckpt, template, tried):
    """Where everything is damaged, naming the arrays in each block has an end."""

    def change(content):
        data = (ckpt / "model.safetensors").read_bytes().ljust(64 * 4096, b"x")
        (ckpt / "model.safetensors").write_bytes(data)
        content["block_size"] = 4096
        for name, record in content["files"].items():
            size = (ckpt / name).stat().st_size
            record.update(size=size, blocks=["0" * 32] * -(-size // 4096))
        chunk = {
            "dtype": "U8",
            "shape": [1],
            "chunks": [{"file": "model.safetensors", "bytes": [8192, 8193]}],
        }
        part(content)["arrays"].update({f"n{n}": chunk for n in range(30_000)})

    forge(ckpt, arrays=change)
    found = check_use(ckpt, template, only={"verify"})
    assert found["verify"][0] == "DamagedError"
    tried("hostile")


def test_questions_have_an_end(ckpt, monkeypatch):
    """Of names without end some are compared, and of damage without end some is told with its arrays."""
    from holdfast import content
    from holdfast.errors import nearest

    def names():
        for number in itertools.count():
            assert number < 10_000, "one name after the other is compared"
            yield f"x{number}"

    assert nearest("weight", names()) == ""
    assert nearest("w" * 10**6, ["w" * 10**6 + "x"]) == ""
    for name in ("model.safetensors", "optimizer.safetensors"):
        data = bytearray((ckpt / name).read_bytes())
        data[-1] ^= 1
        (ckpt / name).write_bytes(data)
    assert all(problem.arrays for problem in holdfast.open(ckpt).verify())
    monkeypatch.setattr(content, "_MOST_LOOKS", -1)
    assert [problem.arrays for problem in holdfast.open(ckpt).verify()] == [[], []]


def test_a_card_of_markup(ckpt, template, tried):
    """A card of 15 MB is shown as it is, and not laid out."""
    text = "|a|b|\n|-|-|\n" + "|x|y|\n" * (15 << 17)
    (ckpt / "README.md").write_text(text)
    forge(ckpt, manifest=lambda m: list_file(m, "README.md", text.encode()))
    found = check_use(ckpt, template, only={"show"})
    assert found["show"][0] is None
    tried("hostile")
