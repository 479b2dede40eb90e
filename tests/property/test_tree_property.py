"""Nested values through a skeleton, real JSON bytes, and back: nothing is lost, nothing is changed."""

import collections
import contextlib
import datetime
import enum
import math
import pathlib
import typing

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.errors import FormatError, UsageError, printable
from holdfast.format import sealed
from holdfast.state import tree


class Suit(enum.Enum):
    HEARTS = "h"
    SPADES = (1, 2)


class Access(enum.Flag):
    READ = 1
    WRITE = 2
    RUN = 4


class Pair(typing.NamedTuple):
    """A named tuple of this module."""

    left: object
    right: object


texts = st.text(st.characters(), max_size=8)
zones = st.none() | st.timezones() | st.just(datetime.timezone(datetime.timedelta(minutes=-95)))
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.complex_numbers(),
    texts,
    st.binary(max_size=8),
    st.binary(max_size=4).map(bytearray),
    st.dates(),
    st.datetimes(timezones=zones),
    st.times(),
    st.timedeltas(),
    st.sampled_from([*Suit]),
    st.integers(0, 7).map(Access),
    st.builds(range, st.integers(), st.integers(), st.integers(1, 9)),
    st.builds(slice, st.none() | st.integers(), st.integers()),
    st.sampled_from(["a", "/x/y", "..", "☃"]).map(pathlib.Path),
    st.floats(width=32).map(np.float32),
    st.integers(-128, 127).map(np.int8),
    texts.map(np.str_),
    st.binary(max_size=5).map(np.bytes_),
)
hashable = st.one_of(
    st.none(), st.booleans(), st.integers(), texts, st.binary(max_size=4), st.sampled_from([*Suit])
)
keys = hashable | st.tuples(hashable, hashable) | st.frozensets(st.integers(), max_size=3)


def containers(inner):
    items = st.lists(inner, max_size=4)
    return st.one_of(
        items,
        items.map(tuple),
        st.builds(collections.deque, items, st.integers(0, 5)),
        st.dictionaries(texts | st.just("$"), inner, max_size=4),
        st.dictionaries(keys, inner, max_size=4),
        st.dictionaries(keys, inner, max_size=3).map(collections.OrderedDict),
        st.dictionaries(keys, inner, max_size=3).map(lambda d: collections.defaultdict(int, d)),
        st.lists(hashable, max_size=5).map(collections.Counter),
        st.sets(keys, max_size=4),
        st.builds(Pair, inner, inner),
        st.lists(st.integers(-9, 9), max_size=3).map(np.array),
    )


values = st.recursive(scalars, containers, max_leaves=12)


def through_json(value):
    arrays = {}
    data = sealed.encode({"skeleton": tree.encode(value, "part", arrays)})
    return tree.decode(sealed.decode(data, "file")["skeleton"], lambda _, name: arrays[name])


def assert_same(one, other):
    """Equal and of equal type at every depth; NaN equals NaN, and -0.0 is not 0.0."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert len(one) == len(other)
        for (key, item), (other_key, other_item) in zip(one.items(), other.items(), strict=True):
            assert_same(key, other_key)
            assert_same(item, other_item)
        if isinstance(one, collections.defaultdict):
            assert one.default_factory is other.default_factory
    elif isinstance(one, list | tuple | collections.deque):
        assert len(one) == len(other)
        for item, other_item in zip(one, other, strict=True):
            assert_same(item, other_item)
        if isinstance(one, collections.deque):
            assert one.maxlen == other.maxlen
    elif isinstance(one, float | complex | np.floating):
        assert repr(one) == repr(other)
    elif isinstance(one, np.ndarray):
        assert one is other
    elif isinstance(one, datetime.datetime):
        assert (one.replace(tzinfo=None), one.fold) == (other.replace(tzinfo=None), other.fold)
        assert one.utcoffset() == other.utcoffset()
        assert getattr(one.tzinfo, "key", None) == getattr(other.tzinfo, "key", None)
    else:
        assert one == other


@settings(max_examples=300, deadline=None)
@given(values)
def test_round_trip(value):
    """Any nested value of the kinds that are held comes back equal, with its exact types and order."""
    assert_same(through_json(value), value)


@settings(max_examples=100, deadline=None)
@given(values, st.data())
def test_refusal_names_the_place(value, data):
    """Wherever in a value an object hides, the refusal names its type, and its path leads to it."""
    steps = data.draw(st.lists(st.one_of(texts, st.integers(0, 2)), min_size=1, max_size=4))
    stranger = object()
    whole, pointer = stranger, ""
    for step in reversed(steps):
        if isinstance(step, int):
            whole, part = [value] * step + [whole], str(step)
        else:
            whole, part = {step: whole}, step.replace("~", "~0").replace("/", "~1")
        pointer = f"/{part}{pointer}"
    with pytest.raises(UsageError) as caught:
        tree.encode(whole, "run.state", {})
    assert caught.value.path == pointer
    assert caught.value.type == "object"
    assert str(caught.value).startswith(printable(f"run.state{pointer} is a object"))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(texts, inner, max_size=3)
        | st.builds(
            lambda tag, content, extra: {"$": tag, "v": content, **extra},
            st.sampled_from(
                [
                    "int",
                    "float",
                    "complex",
                    "bytes",
                    "dict",
                    "Counter",
                    "defaultdict",
                    "set",
                    "deque",
                    "range",
                    "slice",
                    "path",
                    "datetime",
                    "time",
                    "date",
                    "timedelta",
                    "enum",
                    "namedtuple",
                    "tuple",
                    "numpy.scalar",
                    "numpy.dtype",
                    "numpy.Generator",
                    "torch.dtype",
                    "torch.device",
                    "nobody",
                ]
            ),
            inner,
            st.fixed_dictionaries(
                {},
                optional={"class": texts, "name": inner, "fields": inner, "factory": inner, "maxlen": inner},
            ),
        )
    ),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(json_values)
def test_any_json_is_a_value_or_a_format_error(skeleton):
    """Whatever JSON stands in a skeleton, decoding gives a value or a `FormatError`, nothing else."""
    with contextlib.suppress(FormatError):
        tree.decode(skeleton, lambda framework, name: (framework, name))
    tree.leaves(skeleton)


@given(st.integers(1, 20), st.sampled_from([math.nan, math.inf, -math.inf]))
def test_no_nonfinite_number_reaches_the_file(depth, number):
    """However deep it lies, a NaN or an infinity is never written as a JSON number."""
    value = number
    for _ in range(depth):
        value = {"deeper": [value]} if depth % 2 else (value,)
    data = sealed.encode({"skeleton": tree.encode(value)})
    assert b"NaN" not in data
    assert b":Infinity" not in data
    assert repr(through_json(value)) == repr(value)
