"""States made to harm: generators that read foreign memory, and what a loop goes on from in any form."""

import os
import shutil

import hostile
import numpy as np
import pytest
import torch
from hostile import MEGABYTE, check_use, forge, part, read, skeleton
from hostile_cage import confined

import holdfast


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    hostile.warm_up()
    return hostile.save_template(tmp_path_factory.mktemp("hostile") / "ckpt")


# -- states that are places in memory ---------------------------------------------------------------


def words(dtype, data):
    return {"dtype": np.dtype(dtype).str, "data": np.asarray(data, dtype).tobytes().hex()}


MERSENNE = {"bit_generator": "MT19937", "state": {"key": words("u4", [1] * 624), "pos": 624}}
PHILOX = {
    "bit_generator": "Philox", "state": {"counter": words("u8", [0] * 4), "key": words("u8", [0] * 2)},
    "buffer": words("u8", [0] * 4), "buffer_pos": 4, "has_uint32": 0, "uinteger": 0,
}  # fmt: skip
LEGACY = {**MERSENNE, "has_gauss": 0, "gauss": 0.0}


def with_place(state, place):
    if "buffer_pos" in state:
        return {**state, "buffer_pos": place}
    return {**state, "state": {**state["state"], "pos": place}}


@pytest.mark.parametrize("place", [-1, -(2**30), 625, 2**31 - 1, 2**40, True, "5", None, 1.0])
@pytest.mark.parametrize("state", [MERSENNE, PHILOX], ids=["MT19937", "Philox"])
def test_a_generator_reads_only_its_own_memory(template, tmp_path, state, place, tried):
    """A saved generator whose place lies outside of its buffer, from where NumPy would read, is refused."""
    path = shutil.copytree(template, tmp_path / "ckpt")
    forge(path, arrays=skeleton({"$": "numpy.Generator", "v": with_place(state, place)}))

    def act():
        holdfast.open(path).load(parts=["values"])["values"].random(1000)

    outcome = confined(act, path)
    assert outcome.ours, outcome.trace
    assert outcome.error == "FormatError"
    tried("hostile")


@pytest.mark.parametrize("state", [MERSENNE, PHILOX], ids=["MT19937", "Philox"])
def test_a_good_generator_still_draws(template, tmp_path, state):
    """The states that these attacks are made from are right: NumPy draws from them."""
    path = shutil.copytree(template, tmp_path / "ckpt")
    forge(path, arrays=skeleton({"$": "numpy.Generator", "v": state}))
    assert len(holdfast.open(path).load(parts=["values"])["values"].random(1000)) == 1000


@pytest.mark.parametrize("place", [-1, 625, 2**31 - 1])
def test_the_global_stream_reads_only_its_own_memory(tmp_path, place, tried):
    """The same for NumPy's global stream, which a resume sets; the process goes on with streams that work."""
    path = tmp_path / "run"
    with holdfast.Run(path) as run:
        run.state["a"] = 1
        run.save(epoch=1)
        newest = run.latest.path

    def change(content):
        content["parts"]["random"]["skeleton"]["streams"]["numpy"] = with_place(LEGACY, place)

    forge(tmp_path / newest, arrays=change)

    def act():
        run = holdfast.Run(path)
        try:
            run.resume()
        finally:
            run.close()
            np.random.random(1000)

    outcome = confined(act, path)
    assert outcome.ours, outcome.trace
    assert "No checkpoint of" in outcome.message
    tried("hostile")


# -- what a loop goes on from -----------------------------------------------------------------------


def train(path, epochs=3):
    from torch.utils.data import DataLoader, TensorDataset

    net = torch.nn.Linear(3, 2)
    opt = torch.optim.SGD(net.parameters(), lr=0.1)
    run = holdfast.Run(path, every=holdfast.Every(steps=1))
    run.track(model=net, opt=opt)
    loader = DataLoader(TensorDataset(torch.ones(16, 3)), batch_size=4, shuffle=True)
    count = 0
    try:
        for _ in run.epochs(epochs):
            for (x,) in run.batches(loader):
                count += 1
                opt.zero_grad()
                net(x).sum().backward()
                opt.step()
    finally:
        run.close()
    return count


@pytest.fixture(scope="module")
def inside(tmp_path_factory):
    """A run whose only checkpoint was taken in the middle of an epoch."""
    path = tmp_path_factory.mktemp("hostile") / "run"
    train(path, epochs=1)
    entries = sorted(name for name in os.listdir(path) if name[0] == "0")
    kept = next(n for n in entries if 0 < read(path / n, "checkpoint.json")["progress"]["batch"] < 4)
    for name in entries:
        if name != kept:
            shutil.rmtree(path / name)
    return path, kept


WRONG = {
    "number": 5,
    "list": [1],
    "mapping": {"a": 5},
    "parts": {"model": 5, "torch": 5, "python": {}},
    "none": None,
}
RANDOM = ["streams", "generators", "order", "top", "loader", "first", "touched", "zeros", "flags"]


def go_on(inside, tmp_path, arrays=None, manifest=None):
    source, kept = inside
    path = shutil.copytree(source, tmp_path / "run", symlinks=True)
    forge(path / kept, arrays=arrays, manifest=manifest)
    outcome = confined(lambda: train(path), path, cpu=30, wall=60)
    assert outcome.error is None or outcome.ours, outcome.trace
    assert outcome.peak < 64 * MEGABYTE
    assert [name for name in os.listdir(path) if name.startswith(".writing")] == []
    return outcome


@pytest.mark.parametrize("key", RANDOM)
def test_random_parts_of_another_form(inside, tmp_path, key, tried):
    """Whatever stands in the part `random`, a loop goes on, or ends in an error of ours, and holds no lease after."""
    for name, value in WRONG.items():

        def put(content, value=value):
            part(content, "random")["skeleton"][key] = value

        go_on(inside, tmp_path / name, arrays=put)
        tried("hostile")
    go_on(inside, tmp_path / "gone", arrays=lambda c: part(c, "random")["skeleton"].pop(key, None))
    tried("hostile")


INNER = {"streams": {"python": {"version": 3, "words": "zz", "gauss": None}}, "generators": {}}
DEEP = {
    "order": [INNER, {**INNER, "streams": {}}, {"streams": {"torch": {"cpu": "00"}}, "generators": {}}],
    "top": [INNER, {**INNER, "streams": {"python": 5}}],
    "generators": [
        {"generator": {"kind": "torch", "state": "00"}},
        {"generator": {"kind": "os", "state": ""}},
    ],
    "loader": [{"a": {"b": 5}}, "x" * 1000],
    "touched": [{"generator": {"a": 1}}],
    "zeros": [{"torch": ["a"] * 1000}, {"torch": [[1]]}],
    "flags": [{"model": {"training:": 5, "requires_grad:weight": "x"}}],
}


@pytest.mark.parametrize("key", DEEP)
def test_random_parts_of_the_right_form(inside, tmp_path, key, tried):
    """The same where the form is right and what lies deeper is not."""
    for number, value in enumerate(DEEP[key]):

        def put(content, value=value):
            part(content, "random")["skeleton"][key] = value

        go_on(inside, tmp_path / str(number), arrays=put)
        tried("hostile")


FIELDS = {
    "loader": [{"kind": 5}, {"length": 10**30}, {"x": {"$": "os", "v": "system"}}],
    "declared": [{"opt": {"lr": []}}, {"opt": {"lr": {"$": "x", "v": 1}}}],
    "fresh": [{"opt.lr": 5}, {"opt": {"$": "x"}}],
    "best": [{"x": 1}, {"metric": 5, "mode": [], "value": {"$": "x"}, "name": "../../x"}],
    "goal": [{"kind": "x", "value": 1}, {"kind": "epochs", "value": 10**4000}, {"kind": "epochs", "value": -1}],
    "init": [5, {"a": 5}, {"a": {"reference": "\x1b[31m", "name": {"$": "x"}}}],
    "history": [[{"a": {"$": "os", "v": 1}}], [{"a" * 1000: 1}] * 100],
    "probe": [{"x": 1}],
    "environment": [{"$": "x", "v": 1}, {"torch": {"$": "x"}}],
    "metrics": [{"a": {"$": "x"}}, {"a": [[]]}, {"a": 10**4000}, {"a": "x"}],
    "nan": [["x" * 10000], ["\x1b]0;x\x07"]],
    "config": [{"$": "dict", "v": 5}, 5, [1]],
    "parts": [{"x": {"outline": 5}}, {"model": {"kind": 5, "outline": {"layers": [[1]]}}}],
    "progress": [{"batch": 10**15}, {"samples": 10**15}, {"epoch": 10**17}, {"step": 2**63 - 1}, {"entered": False}],
}  # fmt: skip


@pytest.mark.parametrize("field", FIELDS)
def test_manifest_fields_of_another_form(inside, template, tmp_path, field, tried):
    """The same for each field of checkpoint.json; and every command shows it, or says what is wrong with it."""
    for number, value in enumerate(FIELDS[field]):

        def change(manifest, value=value):
            manifest[field] = {**manifest[field], **value} if field == "progress" else value

        folder = tmp_path / str(number)
        go_on(inside, folder, manifest=change)
        other = shutil.copytree(inside[0] / inside[1], folder / "x" / inside[1])
        forge(other, manifest=change)
        (other / "README.md").unlink()
        forge(other, manifest=lambda m: m["files"].pop("README.md"))
        check_use(
            other,
            inside[0] / inside[1],
            only={"look", "load", "show", "show --json", "verify --json", "diff"},
        )
        tried("hostile", 2)
