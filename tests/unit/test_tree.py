"""The skeleton: what nested values become in JSON, and which values are refused."""

import collections
import dataclasses
import datetime
import enum
import fractions
import json
import math
import pathlib
import random
import sys
import typing
import zoneinfo

import numpy as np
import pytest
import torch

from holdfast.errors import FormatError, UsageError
from holdfast.format import sealed
from holdfast.state import tree


class Colour(enum.Enum):
    RED = 1
    GREEN = "g"


class Level(enum.IntEnum):
    LOW = 1


class Mode(enum.Flag):
    READ = 1
    WRITE = 2
    RUN = 4


class Point(typing.NamedTuple):
    """A named tuple of this module."""

    x: object
    y: object


class OddInt(int):
    """An int with a type of its own."""


@dataclasses.dataclass
class Settings:
    lr: float = 0.1


def through_json(value):
    """The value as it comes back from the bytes of a sealed file, with its arrays as they went in."""
    arrays = {}
    data = sealed.encode({"skeleton": tree.encode(value, "part", arrays)})
    skeleton = sealed.decode(data, "arrays.json")["skeleton"]
    return tree.decode(skeleton, lambda _, name: arrays[name])


EXACT = [
    None,
    True,
    0,
    -(2**63),
    2**63,
    -(2**64) - 1,
    10**5000,
    0.1,
    -0.0,
    5e-324,
    "",
    "naïve / ~ ☃ \ud800 \x00",
    b"\x00\xff",
    bytearray(b"ab"),
    3 - 0j,
    [],
    (),
    {},
    [[], ((),), {"a": ()}],
    {"$": "torch", "v": "no array"},
    {1: "int", "1": "text", (1, 2): "tuple", None: 0, b"k": 1, False: 2},
    {Colour.RED: 1, frozenset({1}): 2},
    collections.OrderedDict(b=1, a=2),
    collections.Counter("hello"),
    collections.defaultdict(list, {"a": [1]}),
    collections.defaultdict(None, {1: 2}),
    collections.deque([1, 2], maxlen=3),
    collections.deque(),
    {1, "a", None, (1, 2)},
    frozenset({1.5}),
    range(0, 2**70, 3),
    slice(1, None, 2),
    pathlib.Path("/data/☃"),
    datetime.date(2026, 11, 23),
    datetime.time(1, 2, 3, 4, tzinfo=datetime.UTC),
    datetime.datetime(2026, 10, 25, 2, 30, fold=1),
    datetime.datetime(2026, 10, 25, 2, 30, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin"), fold=1),
    datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone(datetime.timedelta(hours=-3, minutes=-30))),
    datetime.timedelta(days=-1, microseconds=1),
    Colour.GREEN,
    Level.LOW,
    Mode.WRITE,
    Mode.READ | Mode.RUN,
    Mode(0),
    Point(1, [2]),
    np.float32(0.1),
    np.int64(-1),
    np.bool_(True),
    np.complex64(1j),
    np.datetime64("2026-11-23", "D"),
    np.str_(""),
    np.str_("a\x00☃"),
    np.bytes_(b"a\x00"),
    np.dtype("<M8[ns]"),
    torch.float8_e4m3fn,
    torch.device("cuda:1"),
    torch.Size([2, 0]),
]


def same(one, other):
    """Equal, with equal types at every depth."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        pairs = zip(one.items(), other.items(), strict=True)
        return all(same(a, c) and same(b, d) for (a, b), (c, d) in pairs)
    if isinstance(one, list | tuple | collections.deque):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, float | complex) and isinstance(other, float | complex):
        return repr(one) == repr(other)
    return one == other


@pytest.mark.parametrize("value", EXACT, ids=[type(value).__name__ for value in EXACT])
def test_exact(value):
    """A value comes back equal and of the same type, alone and inside others."""
    assert same(through_json(value), value)
    assert same(through_json({"a": [value]}), {"a": [value]})


def test_details_that_equality_does_not_show():
    """Limits of deques, factories of dicts, folds and zones of times come back too."""
    back = through_json([collections.deque([1], 3), collections.defaultdict(set)])
    assert back[0].maxlen == 3
    assert back[1].default_factory is set
    times = [value for value in EXACT if isinstance(value, datetime.datetime)]
    for time, found in zip(times, through_json(times), strict=True):
        assert (found.fold, found.utcoffset()) == (time.fold, time.utcoffset())
        assert getattr(found.tzinfo, "key", None) == getattr(time.tzinfo, "key", None)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nonfinite_floats_are_texts(value):
    """NaN and infinities are tagged texts, since JSON has no such numbers."""
    skeleton = tree.encode([value])
    assert json.loads(json.dumps(skeleton, allow_nan=False)) == skeleton
    assert repr(tree.decode(skeleton, None)) == repr([value])


def test_generators_continue_where_they_were():
    """A NumPy or torch generator inside a state comes back at the same place of its stream."""
    ours = [np.random.Generator(np.random.Philox(3)), torch.Generator().manual_seed(4)]
    ours[0].random(5)
    back = through_json(ours)
    assert back[0].random() == ours[0].random()
    assert torch.rand(2, generator=back[1]).equal(torch.rand(2, generator=ours[1]))


def test_arrays_are_named_by_pointers():
    """Arrays are left out under JSON Pointers, and two keys that print alike do not collide."""
    arrays = {}
    a, b, c, d = (np.full(2, number) for number in range(4))
    skeleton = tree.encode({"x/y~": [a], 1: b, "1": c, "": d}, "state", arrays)
    assert list(arrays) == ["/x~1y~0/0", "/1", "/1~2", "/"]
    assert [name for _, name in tree.leaves(skeleton)] == list(arrays)
    back = tree.decode(skeleton, lambda _, name: arrays[name])
    assert back[1] is b
    assert back["1"] is c
    assert back["x/y~"][0] is a


REFUSED = [
    (object(), "object", "numbers, strings, lists, dicts or arrays"),
    (lambda: 0, "function", "code is not state"),
    (Settings(), "Settings", "dataclasses.asdict"),
    (OddInt(3), "OddInt", "numbers"),
    (fractions.Fraction(1, 3), "fractions.Fraction", "numbers"),
    (random.Random, "type", "code is not state"),
    (sys, "module", "numbers"),
    (collections.defaultdict(lambda: 0), "collections.defaultdict", "a plain dict"),
    (pathlib.PureWindowsPath("a\\b"), "pathlib.PureWindowsPath", "strings"),
    (np.dtype([("a", "f4")]), "numpy.dtype", "numbers"),
    (torch.nn.Linear(1, 1), "torch.nn.modules.linear.Linear", "run.track"),
    ((x for x in "ab"), "generator", "numbers"),
    ([].append, "builtin_function_or_method", "code is not state"),
]


@pytest.mark.parametrize(("value", "kind", "remedy"), REFUSED, ids=[row[1] for row in REFUSED])
def test_refusal_names_path_and_type(value, kind, remedy):
    """What cannot be given back exactly is refused, with its path, its type and what to do."""
    with pytest.raises(UsageError) as caught:
        tree.encode({"config": [0, {"deep/er": (1, value)}]}, "run.state")
    error = caught.value
    assert error.path == "/config/1/deep~1er/1"
    assert kind in error.type
    text = str(error)
    assert text.startswith("run.state/config/1/deep~1er/1 is a ")
    assert kind in text
    assert remedy in text
    assert text.endswith("Nothing was saved.")


def test_refusal_in_a_key():
    """A key that cannot be stored is refused as a key."""
    with pytest.raises(
        UsageError, match=r"run\.state/a \(a key\) is a object, which a checkpoint cannot hold"
    ):
        tree.encode({"a": {object(): 1}}, "run.state")


def test_a_value_that_contains_itself():
    """A list that contains itself is refused by its depth, not by a crash of the interpreter."""
    value = []
    value.append(value)
    with pytest.raises(UsageError, match="nested deeper than 47 levels \\(or contains itself\\)"):
        tree.encode(value, "run.state")


def test_deepest_value_that_is_taken_can_be_read():
    """What `encode` takes at its limit of depth is within the limit of the reader, tags included."""
    value = 1
    for _ in range(tree.MAX_VALUE_DEPTH + 1):
        value = (value,)
    assert through_json(value) == value
    with pytest.raises(UsageError):
        tree.encode((value,))


def test_arrays_refused_where_none_can_be():
    """An array in a config or another plain value is refused with its path."""
    with pytest.raises(UsageError, match="config/mean is an array; only plain values can stand here"):
        tree.encode({"mean": np.ones(2)}, "config")


def test_class_that_is_not_loaded_is_never_imported():
    """An enum or named tuple whose class is not here comes back as its plain value; nothing is imported."""
    before = set(sys.modules)
    enum_ = {"$": "enum", "class": "antigravity:Thing", "name": "A", "v": 3}
    tuple_ = {"$": "namedtuple", "class": "antigravity:Thing", "fields": ["a"], "v": [1]}
    assert tree.decode([enum_, tuple_], None) == [3, (1,)]
    assert "antigravity" not in set(sys.modules) - before


def test_names_of_torch_load_nothing(monkeypatch):
    """A dtype's name is looked up in torch as it is, not through the hook that imports what is asked for."""
    monkeypatch.setattr(torch, "__getattr__", lambda name: pytest.fail(f"torch was asked for {name}"))
    with pytest.raises(FormatError, match="has no dtype '_inductor_of_mine'"):
        tree.decode({"$": "torch.dtype", "v": "_inductor_of_mine"}, None)


def test_class_lookup_runs_no_code():
    """A class name that leads to a function or a property gives the plain value and calls nothing."""
    for name in ("os:system", "builtins:print", "test_tree:Settings.lr", ":", "sys:modules.os.path"):
        for skeleton in (
            {"$": "enum", "class": name, "name": "x", "v": 7},
            {"$": "namedtuple", "class": name, "fields": ["a"], "v": [7]},
        ):
            assert tree.decode(skeleton, None) in (7, (7,))


def test_named_tuple_of_another_shape():
    """A named tuple whose class changed its fields, or with too few items, comes as a plain tuple."""
    skeleton = tree.encode(Point(1, 2))
    assert type(tree.decode({**skeleton, "fields": ["x", "z"]}, None)) is tuple
    assert type(tree.decode({**skeleton, "v": [1]}, None)) is tuple


HOSTILE = [
    {"$": "unknown", "v": 1},
    {"$": ["list"], "v": 1},
    {"$": None},
    {"$": "float", "v": "1e3"},
    {"$": "float", "v": []},
    {"$": "int", "v": "9" * 10_000},
    {"$": "int", "v": 3.5},
    {"$": "complex", "v": "x"},
    {"$": "bytes", "v": "%%%"},
    {"$": "dict", "v": [[1]]},
    {"$": "dict", "v": [[[1], 2]]},
    {"$": "defaultdict", "factory": "eval", "v": []},
    {"$": "defaultdict", "v": []},
    {"$": "set", "v": [[1]]},
    {"$": "set", "v": 3},
    {"$": "deque", "v": [1], "maxlen": -1},
    {"$": "deque", "v": [1]},
    {"$": "range", "v": [1, 2, 0]},
    {"$": "range", "v": [1]},
    {"$": "slice", "v": [1, 2, 3, 4]},
    {"$": "path", "v": 5},
    {"$": "datetime", "v": "yesterday"},
    {"$": "datetime", "v": ["2026-01-01", "../../etc/passwd", 0]},
    {"$": "datetime", "v": ["2026-01-01", "UTC", 9]},
    {"$": "timedelta", "v": [10**30, 0, 0]},
    {"$": "enum", "class": 5, "name": "x", "v": 1},
    {"$": "enum", "v": 1},
    {"$": "namedtuple", "class": "test_tree:Point", "v": 1},
    {"$": "torch", "v": 5},
    {"$": "numpy.scalar", "v": ["O", "00"]},
    {"$": "numpy.scalar", "v": ["<f4", "00"]},
    {"$": "numpy.scalar", "v": ["f4,(", "00"]},
    {"$": "numpy.scalar", "v": ["V2147483647", "00"]},
    {"$": "numpy.scalar", "v": "xy"},
    {"$": "numpy.dtype", "v": "nonsense"},
    {"$": "numpy.Generator", "v": {"bit_generator": "RandomState"}},
    {"$": "numpy.Generator", "v": {"bit_generator": "PCG64", "state": "x"}},
    {"$": "numpy.elsewhere", "v": 1},
    {"$": "torch.dtype", "v": "_dynamo"},
    {"$": "torch.dtype", "v": "load"},
    {"$": "torch.device", "v": "nonsense"},
    {"$": "torch.Size", "v": ["a"]},
    {"$": "torch.Generator", "v": ["cpu", "00"]},
    {"$": "torch.Generator", "v": ["cpu", "zz"]},
]


@pytest.mark.parametrize("skeleton", HOSTILE, ids=lambda skeleton: json.dumps(skeleton)[:50])
def test_hostile_skeletons(skeleton):
    """A tag with the wrong content, or an unknown one, is a `FormatError` that names the tag or what it held."""
    with pytest.raises(FormatError) as caught:
        tree.decode({"a": [skeleton]}, lambda framework, name: (framework, name), "RUN/arrays.json")
    assert str(caught.value)
    tree.leaves([skeleton])  # only looks for arrays, and takes everything


def test_message_of_an_unknown_tag_says_what_helps():
    """A tag of a newer version says where it was found and to upgrade."""
    with pytest.raises(FormatError) as caught:
        tree.decode({"$": "quaternion", "v": 1}, None, "runs/a/000001: part 'state'")
    assert str(caught.value) == (
        "runs/a/000001: part 'state' holds a value tagged 'quaternion', which this version of Holdfast does not "
        "know. Upgrade with: pip install --upgrade holdfast"
    )
