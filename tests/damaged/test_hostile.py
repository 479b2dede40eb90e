"""Checkpoints whose digests are all right and whose content is not: an error of ours, soon, and nothing else.

Whoever can write a folder can write digests that match. What such a folder says must then end in
an error of our tree, without reading or writing anything outside, running anything that it names,
or asking for memory that it only claims to need.
"""

import contextlib
import os
import pickle
import shutil
import struct

import hostile
import pytest
import torch
from hostile import check_use, forge, payload, seal, skeleton, training, weight

import holdfast
from holdfast import FormatError, HoldfastError


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    hostile.warm_up()
    return hostile.save_template(tmp_path_factory.mktemp("hostile") / "ckpt")


@pytest.fixture
def ckpt(template, tmp_path):
    (tmp_path / "secret.safetensors").write_bytes((template / "model.safetensors").read_bytes())
    return shutil.copytree(template, tmp_path / "ckpt")


def first(found):
    """The first error of all acts: its class and text."""
    return next(((kind, text) for kind, text in found.values() if kind is not None), (None, ""))


def listed(content, name):
    """Lists a file in arrays.json like the model's own."""
    content["files"][name] = content["files"]["model.safetensors"]
    weight(content)["chunks"][0]["file"] = name


deep = []
for _ in range(120):
    deep = [deep]

ARRAYS = {
    "a file in the folder above": (
        lambda c: listed(c, "../secret.safetensors"),
        "plain names inside its folder",
    ),
    "an absolute file": (lambda c: listed(c, "/etc/passwd"), "'/etc/passwd'"),
    "a hidden file": (lambda c: listed(c, ".secret"), "'.secret'"),
    "a file name with a zero": (lambda c: listed(c, "a\0b"), "a\\x00b"),
    "a file name of a megabyte": (lambda c: listed(c, "a" * (1 << 20)), "plain names inside its folder"),
    "an exabyte": (lambda c: weight(c).update(shape=[2**58]), "has a chunk of 2,400 bytes"),
    "an exabyte without chunks": (lambda c: weight(c).update(shape=[2**58], chunks=[]), "hold 0 of its"),
    "a size that wraps around": (lambda c: weight(c).update(shape=[2**33, 2**33]), "would have"),
    "a size beyond 64 bits": (lambda c: weight(c).update(shape=[2**70]), "would have"),
    "empty, and larger than all memory": (lambda c: weight(c).update(shape=[0, 2**62]), "would have"),
    "a file of an exabyte": (
        lambda c: c["files"]["model.safetensors"].update(size=2**60),
        "1,152,921,504,606,846,976 bytes",
    ),
    "a block size of one": (lambda c: c.update(block_size=1), "gives a block size of 1"),
    "a tiny block size": (lambda c: c.update(block_size=64), "gives a block size of 64"),
    "no block digests": (
        lambda c: c["files"]["model.safetensors"].update(blocks=[]),
        "lists 0 block digests",
    ),
    "an unknown tag": (skeleton({"$": "quaternion", "v": 1}), "which this version of Holdfast does not know"),
    "a tag with wrong content": (skeleton({"$": "set", "v": [{}]}), "is not what that tag holds"),
    "an array that is not listed": (
        skeleton({"$": "torch", "v": "/nowhere"}),
        "which the table does not list",
    ),
    "an array of another framework": (skeleton({"$": "os", "v": "system"}), "'os'"),
    "nested too deep": (skeleton(deep), "nested deeper than 100"),
    "a skeleton of nothing for a model": (
        skeleton(None, "model"),
        "is a NoneType, not the state of a module",
    ),
    "a list for a model": (skeleton([1], "model"), "is a list, not the state of a module"),
    "numbers for an optimizer": (skeleton(5, "optimizer"), "not the state of an optimizer"),
    "an optimizer of texts": (
        skeleton({"state": "x", "param_groups": [{"params": ["weight", "bias"]}]}, "optimizer"),
        "is not what a torch.Optimizer is stored as",
    ),
    "an optimizer without parameters": (
        skeleton({"state": {}, "param_groups": [{}]}, "optimizer"),
        "lists no parameters",
    ),
    "an optimizer whose state is a list": (
        skeleton({"state": {"weight": [1]}, "param_groups": [{"params": ["weight", "bias"]}]}, "optimizer"),
        "is not what a torch.Optimizer is stored as",
    ),
    "a generator of another kind": (
        skeleton({"bit_generator": "os.system", "state": 1}, "generator"),
        "The saved generator is a os.system",
    ),
    "a generator with nonsense": (
        skeleton({"bit_generator": "PCG64", "state": "x"}, "generator"),
        "is not what a numpy.Generator is stored as",
    ),
    "half of a partial part": (skeleton({"$": "partial"}, "model"), "not the state of a module"),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_hostile_arrays_json(ckpt, template, name, tried):
    """An arrays.json with right digests and wrong content ends in an error that says what is wrong."""
    change, words = ARRAYS[name]
    forge(ckpt, arrays=change)
    found = check_use(ckpt, template)
    said = [text for _, text in found.values()]
    assert any(word in text for word in words.split("|") for text in said), said
    tried("hostile")


RAW = {
    "NaN": b'{"format":"holdfast-arrays","version":[1,0],"block_size":NaN,\n',
    "a key twice": b'{"format":"holdfast-arrays","format":"holdfast-arrays","version":[1,0],"block_size":1,\n',
    "a million brackets": b'{"format":' + b"[" * 10**6 + b",\n",
    "a number of a million digits": b'{"block_size":' + b"9" * 10**6 + b",\n",
    "a list": b"[1,\n",
    "nothing": b"",
    "a pickle": pickle.dumps({"a": 1}),
    "another format": b'{"format":"holdfast-checkpoint","version":[1,0],\n',
    "a newer format": b'{"format":"holdfast-arrays","version":[9,0],\n',
}


@pytest.mark.parametrize("name", RAW)
def test_hostile_json(ckpt, template, name, tried):
    """Whatever bytes stand under a right digest, they are JSON of this format or a `FormatError` that names the file."""
    forge(ckpt, raw=seal(RAW[name]))
    kind, text = first(check_use(ckpt, template))
    assert kind in ("FormatError", "DamagedError")
    assert "arrays.json" in text
    tried("hostile")


MANIFEST = {
    "no files": (lambda m: m.update(files={}), "does not list arrays.json"),
    "a file above": (
        lambda m: m["files"].update({"../secret.safetensors": m["files"]["arrays.json"]}),
        "plain names",
    ),
    "metrics that are no mapping": (
        lambda m: m.update(metrics={"$": "int", "v": "5"}),
        "no mapping under 'metrics'",
    ),
    "an environment that is a list": (
        lambda m: m.update(environment={"$": "tuple", "v": []}),
        "'environment'",
    ),
    "an array for a config": (
        lambda m: m.update(config={"$": "torch", "v": "weight"}),
        "holds the torch array",
    ),
    "a config of an unknown kind": (lambda m: m.update(config={"$": "code", "v": "1/0"}), "'code'"),
    "a size beyond all": (lambda m: m["files"]["README.md"].update(size=2**63), "which no file has"),
    "a name that is a path": (lambda m: m.update(name="../../x"), None),
}


@pytest.mark.parametrize("name", MANIFEST)
def test_hostile_checkpoint_json(ckpt, template, name, tried):
    """A checkpoint.json with a right digest and wrong content ends in an error, or is harmless."""
    change, words = MANIFEST[name]
    forge(ckpt, manifest=change)
    found = check_use(ckpt, template)
    if words is None:
        assert first(found) == (None, "")
    else:
        assert any(words in text for _, text in found.values()), found
    tried("hostile")


HEADERS = {
    "2^60 bytes": struct.pack("<Q", 2**60),
    "2^64 - 1 bytes": b"\xff" * 8,
    "longer than the file": struct.pack("<Q", 99_999_999),
    "no JSON": struct.pack("<Q", 100) + b"\x80\x04\x95" * 20,
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers_that_lie(ckpt, template, name, tried):
    """A payload header of 2^60 bytes, or of nonsense, costs nothing: sizes come from what was checked."""
    data = (ckpt / "model.safetensors").read_bytes()
    forge(ckpt, arrays=payload(ckpt, HEADERS[name] + data[len(HEADERS[name]) :]))
    check_use(ckpt, template)
    from holdfast.format import safetensors

    with pytest.raises(FormatError) as caught:
        safetensors.parse_header((ckpt / "model.safetensors").read_bytes(), len(data), "model.safetensors")
    if name == "2^60 bytes":
        assert "announces a header of 1,152,921,504,606,846,976 bytes; the limit is 100,000,000" in str(
            caught.value
        )


def test_an_empty_payload(ckpt, template, tried):
    """A payload file of no bytes, listed as such, ends in an error about the arrays that it lacks."""
    forge(ckpt, arrays=payload(ckpt, b""))
    kind, text = check_use(ckpt, template)["load"]
    assert kind == "FormatError"
    assert "model/weight" in text
    assert "has 0 bytes" in text
    tried("hostile")


class Bomb:
    """Leaves a mark when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.parametrize("name", ["checkpoint.json", "arrays.json", "model.safetensors", "run.json"])
def test_pickles_are_never_opened(ckpt, name, tried):
    """A pickle offered as any of the files, or as the checkpoint itself, is refused and never run."""
    mark = str(ckpt.parent / "exploded")
    bomb = pickle.dumps(Bomb(mark))
    (ckpt / name).write_bytes(bomb)
    torch.save({"x": Bomb(mark)}, ckpt.parent / "model.pt")
    with pytest.raises(HoldfastError):
        holdfast.open(ckpt).load()
    with pytest.raises(FormatError, match="is a file; a run and a checkpoint are directories"):
        holdfast.open(ckpt.parent / "model.pt")
    with contextlib.suppress(HoldfastError):
        holdfast.restore(ckpt, training())
    assert not os.path.exists(mark)
    tried("hostile")
