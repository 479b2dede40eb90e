"""Skeletons and states made to harm: classes that they name, modules, states of a run, and any value in any place."""

import contextlib
import importlib.util
import json
import shutil
import sys

import hostile
import pytest
from hostile import forge, read, skeleton
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import holdfast
from holdfast import DamagedError, FormatError, UsageError
from holdfast.format import sealed


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    hostile.warm_up()
    return hostile.save_template(tmp_path_factory.mktemp("hostile") / "ckpt")


@pytest.fixture
def ckpt(template, tmp_path):
    return shutil.copytree(template, tmp_path / "ckpt")


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


def test_a_module_that_waits_is_not_loaded(ckpt, tmp_path, monkeypatch, tried):
    """A module whose loading the program has put off until its first use is not loaded by a look for a class in it."""
    (tmp_path / "waiting.py").write_text("import sys; sys.loaded = True\nclass Kind: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    spec = importlib.util.find_spec("waiting")
    spec.loader = importlib.util.LazyLoader(spec.loader)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "waiting", module)
    spec.loader.exec_module(module)
    forge(ckpt, arrays=skeleton({"$": "enum", "class": "waiting:Kind", "name": "a", "v": 1}))
    assert holdfast.open(ckpt).load(parts=["values"])["values"] == 1
    assert not hasattr(sys, "loaded")
    assert module.Kind  # a use loads it
    assert sys.loaded
    del sys.loaded
    tried("hostile")


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


TWINS = {
    "pairs that are a number": (skeleton({"$": "dict", "v": 5}), None),
    "pairs of one": (skeleton({"$": "dict", "v": [[1]]}), None),
    "pairs of three": (skeleton({"$": "OrderedDict", "v": [[1, 2, 3]]}), None),
    "pairs of texts": (skeleton({"$": "Counter", "v": "ab"}), None),
    "a best without a value": (None, lambda m: m.update(best={"x": 1})),
}


@pytest.mark.parametrize("name", TWINS)
def test_two_of_a_kind_are_compared(ckpt, tmp_path, name, tried):
    """Two checkpoints that are wrong in the same way are compared, or it is said that they cannot be."""
    arrays, manifest = TWINS[name]
    forge(ckpt, arrays=arrays, manifest=manifest)
    other = shutil.copytree(ckpt, tmp_path / "other")
    found = hostile.check_use(ckpt, other, only={"diff", "show --json"})
    assert found["diff"][0] is None
    assert hostile.command("diff", ckpt, other)[0] == 6
    tried("hostile")


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
    for act, kind, ours, text, trace in hostile.use(path, template):
        assert ours, f"{act}: {kind}: {text}\n{trace}"
