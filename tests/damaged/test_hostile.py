"""Checkpoints whose digests are all right and whose content is not: an error of ours, soon, and nothing else.

Whoever can write a folder can write digests that match. What such a folder says must then end in
an error of our tree, without reading or writing anything outside, running anything that it names,
or asking for memory that it only claims to need.
"""

import contextlib
import json
import os
import pickle
import resource
import shutil
import signal
import struct
import sys

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import holdfast
from holdfast import DamagedError, FormatError, HoldfastError, UsageError
from holdfast.format import sealed

opened = []
_watching = [False]


def _note(event, arguments):
    if _watching[0] and event in (
        "open",
        "os.mkdir",
        "os.rename",
        "os.remove",
        "os.symlink",
        "exec",
        "os.system",
    ):
        opened.append((event, str(arguments[0])))


sys.addaudithook(_note)


@pytest.fixture(autouse=True)
def bounded():
    """No case takes more than a minute or half a gigabyte, whatever it claims."""

    def late(*_):
        raise TimeoutError("this takes too long")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 512 << 10


def training():
    net = torch.nn.Linear(30, 20)
    opt = torch.optim.Adam(net.parameters())
    net(torch.ones(1, 30)).sum().backward()
    opt.step()
    return {"model": net, "optimizer": opt, "generator": np.random.default_rng(0)}


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    path = tmp_path_factory.mktemp("hostile") / "ckpt"
    holdfast.save(path, {**training(), "values": {"a": [1, (2, 3)], "x": np.arange(5)}})
    return path


@pytest.fixture
def ckpt(template, tmp_path):
    (tmp_path / "secret.safetensors").write_bytes((template / "model.safetensors").read_bytes())
    return shutil.copytree(template, tmp_path / "ckpt")


def read(path, name):
    return sealed.decode((path / name).read_bytes(), name)


def forge(path, *, arrays=None, manifest=None, raw=None):
    """Changes the JSON files by functions (or replaces arrays.json's bytes) and makes all digests right."""
    content = read(path, "arrays.json")
    if arrays is not None:
        arrays(content)
    data = raw if raw is not None else sealed.encode(content)
    (path / "arrays.json").write_bytes(data)
    table = read(path, "checkpoint.json")
    table["files"]["arrays.json"] = {"size": len(data), "digest": sealed.digest(data)}
    for name, record in content["files"].items():
        with contextlib.suppress(ValueError, TypeError, KeyError):
            digest = sealed.digest(b"".join(bytes.fromhex(block) for block in record["blocks"]))
            table["files"][name] = {"size": record["size"], "digest": digest}
    if manifest is not None:
        manifest(table)
    (path / "checkpoint.json").write_bytes(sealed.encode(table))


def seal(body):
    return body + b'"xxh3-128":"%s"}\n' % sealed.digest(body).encode()


def use(path):
    """Does all that a reader can do, watching what is opened; returns the first error."""
    errors = []
    opened.clear()
    _watching[0] = True
    try:
        with contextlib.ExitStack() as stack:
            stack.callback(_watching.__setitem__, 0, False)
            live = training()
            acts = [
                lambda: holdfast.open(path).load(),
                lambda: holdfast.open(path).load(arrays="numpy"),
                lambda: holdfast.open(path).verify(),
                lambda: holdfast.restore(path, live),
                lambda: [
                    getattr(holdfast.open(path), name)
                    for name in ("metrics", "config", "environment", "parts")
                ],
            ]
            for act in acts:
                try:
                    act()
                except HoldfastError as error:
                    errors.append(error)
    finally:
        _watching[0] = False
    outside = os.path.dirname(path)
    touched = [
        name
        for _, name in opened
        if name == "/etc/passwd" or (name.startswith(outside) and not name.startswith(str(path)))
    ]
    assert touched == [], "something outside the folder was touched"
    assert not [event for event in opened if event[0] not in ("open", "exec")], "a reader changed something"
    assert all(0 < len(str(error)) < 5000 for error in errors)
    return errors[0] if errors else None


def part(content, name="model"):
    return content["parts"][name]


def weight(content):
    return part(content)["arrays"]["weight"]


def listed(content, name):
    """Lists a file in arrays.json like the model's own."""
    content["files"][name] = content["files"]["model.safetensors"]
    weight(content)["chunks"][0]["file"] = name


def skeleton(value, name="values"):
    return lambda content: part(content, name).update(skeleton=value)


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
    "a block size of one": (lambda c: c.update(block_size=1), "block digests"),
    "a tiny block size": (lambda c: c.update(block_size=64), "block digests"),
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
def test_hostile_arrays_json(ckpt, name):
    """An arrays.json with right digests and wrong content ends in an error that says what is wrong."""
    change, words = ARRAYS[name]
    forge(ckpt, arrays=change)
    error = use(ckpt)
    assert error is not None
    assert any(word in str(error) for word in words.split("|")), str(error)


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
def test_hostile_json(ckpt, name):
    """Whatever bytes stand under a right digest, they are JSON of this format or a `FormatError` that names the file."""
    forge(ckpt, raw=seal(RAW[name]))
    error = use(ckpt)
    assert isinstance(error, FormatError)
    assert f"{ckpt}/arrays.json" in str(error)


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
def test_hostile_checkpoint_json(ckpt, name):
    """A checkpoint.json with a right digest and wrong content ends in an error, or is harmless."""
    change, words = MANIFEST[name]
    forge(ckpt, manifest=change)
    error = use(ckpt)
    assert (words is None and error is None) or words in str(error)


@pytest.mark.parametrize("name", ["model.safetensors", "arrays.json", "README.md", "checkpoint.json"])
def test_links_are_not_followed(ckpt, name):
    """A symbolic link in the place of a file is refused, though what it points to has the right digest."""
    outside = ckpt.parent / "elsewhere"
    os.rename(ckpt / name, outside)
    (ckpt / name).symlink_to(outside)
    with pytest.raises(HoldfastError) as caught:
        found = holdfast.open(ckpt)
        if name == "README.md":
            raise found.verify()[0]
        found.load()
    assert name in str(caught.value)
    assert "link" in str(caught.value) or "no regular file" in str(caught.value)


def payload(path, data, name="model.safetensors"):
    """Puts other bytes into a payload file, with all digests right."""
    (path / name).write_bytes(data)

    def change(content):
        content["files"][name] = {"size": len(data), "blocks": [sealed.digest(data)] if data else []}

    return change


HEADERS = {
    "2^60 bytes": struct.pack("<Q", 2**60),
    "2^64 - 1 bytes": b"\xff" * 8,
    "longer than the file": struct.pack("<Q", 99_999_999),
    "no JSON": struct.pack("<Q", 100) + b"\x80\x04\x95" * 20,
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers_that_lie(ckpt, name):
    """A payload header of 2^60 bytes, or of nonsense, costs nothing: sizes come from what was checked."""
    data = (ckpt / "model.safetensors").read_bytes()
    forge(ckpt, arrays=payload(ckpt, HEADERS[name] + data[len(HEADERS[name]) :]))
    use(ckpt)
    from holdfast.format import safetensors

    with pytest.raises(FormatError) as caught:
        safetensors.parse_header((ckpt / "model.safetensors").read_bytes(), len(data), "model.safetensors")
    if name == "2^60 bytes":
        assert "announces a header of 1,152,921,504,606,846,976 bytes; the limit is 100,000,000" in str(
            caught.value
        )


def test_an_empty_payload(ckpt):
    """A payload file of no bytes, listed as such, ends in an error about the arrays that it lacks."""
    forge(ckpt, arrays=payload(ckpt, b""))
    error = use(ckpt)
    assert isinstance(error, FormatError)
    assert "model/weight" in str(error)
    assert "has 0 bytes" in str(error)


class Bomb:
    """Leaves a mark when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.parametrize("name", ["checkpoint.json", "arrays.json", "model.safetensors", "run.json"])
def test_pickles_are_never_opened(ckpt, name):
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


class Canary:
    """A class that is loaded, and must not be called because a checkpoint names it."""

    called = 0
    _fields = ("a",)

    def __new__(cls, *_):
        cls.called += 1
        return super().__new__(cls)


@pytest.mark.parametrize("tag", ["enum", "namedtuple"])
def test_classes_are_not_called(ckpt, tag):
    """A skeleton that names a class of this program as an enum or a named tuple does not call it."""
    value = {"$": tag, "class": f"{__name__}:Canary", "name": "a", "fields": ["a"], "v": [1]}
    forge(ckpt, arrays=skeleton(value))
    assert holdfast.open(ckpt).load(parts=["values"])["values"] in ([1], (1,))
    assert Canary.called == 0


def test_modules_are_not_imported(ckpt):
    """A skeleton that names a module does not import it."""
    value = [
        {"$": "enum", "class": "antigravity:x", "name": "a", "v": 1},
        {"$": "torch.dtype", "v": "_dynamo"},
    ]
    forge(ckpt, arrays=skeleton(value))
    before = set(sys.modules)
    with pytest.raises(FormatError, match="has no dtype '_dynamo'"):
        holdfast.open(ckpt).load(parts=["values"])
    assert not {"antigravity", "this"} & (set(sys.modules) - before)


def test_a_name_that_is_a_path_in_a_run(ckpt, tmp_path):
    """A run's checkpoint that calls itself ../../x is foreign, and no path is made of its name."""
    with holdfast.Run(tmp_path / "run") as run:
        run.save(epoch=1)
        path = run.latest.path
    content = read(tmp_path / path, "checkpoint.json")
    content["name"] = "../../x"
    (tmp_path / path / "checkpoint.json").write_bytes(sealed.encode(content))
    with pytest.raises(FormatError, match=r"is foreign: its manifest says run .*, name ../../x"):
        holdfast.open(f"{tmp_path}/run@seq=1")


STATES = {
    "state": [1, 2],
    "random": {"streams": {"python": {"version": "x"}}},
    "grads": 5,
}


@pytest.mark.parametrize("name", [*STATES, "no streams"])
def test_a_hostile_run_is_not_resumed(tmp_path, name):
    """A run's own parts with the wrong content end in an error of ours, and nothing is saved over them."""
    path = tmp_path / "run"
    with holdfast.Run(path) as run:
        run.state["a"] = 1
        run.save(epoch=1)
        found = run.latest.path
    forge(
        tmp_path / found,
        arrays=lambda c: c["parts"].update(
            {name if name in STATES else "random": {"kind": "value", "skeleton": STATES.get(name, {"a": 1})}}
        ),
    )
    again = holdfast.Run(path)
    with pytest.raises(DamagedError, match=r"No checkpoint of .* is whole: 1 were tried"):
        again.resume()
    with pytest.raises(UsageError, match=r"failed half-way|has not resumed"):
        again.save(epoch=2)
    again.close()


# -- anything at all -----------------------------------------------------------------------------------

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.sampled_from([0, -1, 1, 2**31, 2**63, -(2**63), 2**64, 10**30])
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["", "x", "../x", "weight", "0" * 32, "F32", "torch", "model.safetensors", "/a"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["$", "v", "a", "weight", "params", "state"]), inner, max_size=3)
    ),
    max_leaves=6,
)


def places(value, path=()):
    """The paths of all places in a nested value."""
    yield path
    children = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for key, child in children:
        yield from places(child, (*path, key))


def put(content, path, value):
    *parents, last = path
    for key in parents:
        content = content[key]
    content[last] = value


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_value_in_any_place(template, data):
    """Whatever JSON value stands in whichever place, all that comes of it is a result or an error of ours."""
    path = template.parent / "mutant"
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(template, path)
    name = data.draw(st.sampled_from(["arrays", "manifest"]))
    content = read(path, "arrays.json" if name == "arrays" else "checkpoint.json")
    where = data.draw(st.sampled_from([place for place in places(content) if place]))
    value = data.draw(json_values)

    def change(target):
        with contextlib.suppress(KeyError, IndexError, TypeError):
            put(target, where, value)

    try:
        forge(path, **{name: change})
    except (AttributeError, TypeError, KeyError):
        return  # what is left cannot even be forged
    json.dumps(value)
    use(path)
