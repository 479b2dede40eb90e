"""`compare`: which bits of two checkpoints differ, and what does not count."""

import math
import os
import struct

import numpy as np
import pytest
from cli_runs import checkpoints, flip, make_run
from hypothesis import given, settings
from hypothesis import strategies as st

import holdfast
from holdfast import comparison
from holdfast.checkpoint import Checkpoint
from holdfast.comparison import ABSENT, compare, same, walk
from holdfast.errors import DamagedError
from holdfast.format import dtypes
from holdfast.payload import difference


def saved(path, **parts):
    return holdfast.save(str(path), parts)


def compared(tmp_path, left, right):
    return compare(saved(tmp_path / "a", **left), saved(tmp_path / "b", **right))


def of_bits(*words, dtype="<f4"):
    return np.array(words, dtype.replace("f", "u")).view(dtype)


# -- arrays ----------------------------------------------------------------------------------


def test_equal_states_are_equal(tmp_path):
    """Two checkpoints of the same values are equal, and what was compared is counted."""
    value = {"w": np.arange(6.0), "n": {"deep": [1, 2.5, None, "x", (3, True)]}, "e": np.empty((0, 3))}
    found = compared(tmp_path, {"m": value}, {"m": value})
    assert found.equal
    assert (found.arrays, found.bytes, found.parts) == (2, 48, ["m"])
    assert found.values >= 6


def test_nan_payloads_and_signed_zeros_are_bits(tmp_path):
    """Two NaN of different payload differ, 0.0 and -0.0 differ, and equal NaN do not."""
    quiet, other = 0x7FC00000, 0x7FC00001
    left = {"nan": of_bits(quiet, quiet), "zero": of_bits(0, 0x80000000), "same": of_bits(quiet)}
    right = {"nan": of_bits(quiet, other), "zero": of_bits(0, 0), "same": of_bits(quiet)}
    found = compared(tmp_path, {"m": left}, {"m": right})
    by_name = {difference.name: difference for difference in found.array_differences}
    assert set(by_name) == {"m/nan", "m/zero"}
    assert (by_name["m/nan"].differing, by_name["m/nan"].nonfinite, by_name["m/nan"].max_abs) == (1, 1, None)
    assert (by_name["m/zero"].differing, by_name["m/zero"].max_abs, by_name["m/zero"].max_rel) == (
        1,
        0.0,
        0.0,
    )


def test_how_much_arrays_differ(tmp_path):
    """Differing elements are counted; the largest absolute and relative difference are those of finite pairs."""
    a = np.array([1.0, 2.0, 3.0, np.inf, 5.0])
    b = np.array([1.0, 2.5, -3.0, 4.0, 5.0])
    (found,) = compared(tmp_path, {"m": {"w": a, "x": a}}, {"m": {"w": b, "x": a}}).array_differences
    assert (found.elements, found.differing, found.nonfinite) == (5, 3, 1)
    assert (found.max_abs, found.max_rel) == (6.0, 2.0)


def test_integers_differ_exactly(tmp_path):
    """The difference of extreme integers does not overflow."""
    a, b = np.array([2**63 - 1, -5], "i8"), np.array([-(2**63), -7], "i8")
    (found,) = compared(tmp_path, {"m": {"w": a}}, {"m": {"w": b}}).array_differences
    assert found.max_abs == float(2**64 - 1)


def test_other_shape_or_dtype_is_said(tmp_path):
    """Arrays of another shape or dtype differ as a whole, with both described."""
    left = {"w": np.zeros((2, 3), "f4"), "v": np.zeros(4, "f4")}
    right = {"w": np.zeros((3, 2), "f4"), "v": np.zeros(4, "i4")}
    found = compared(tmp_path, {"m": left}, {"m": right})
    assert [(d.name, d.left, d.right, d.differing) for d in found.array_differences] == [
        ("m/w", "F32 [2, 3]", "F32 [3, 2]", None),
        ("m/v", "F32 [4]", "I32 [4]", None),
    ]


def test_arrays_and_parts_of_one_side(tmp_path):
    """An array or a part that one side lacks is listed for the other and makes them unequal."""
    left = {"m": {"w": np.zeros(3), "x": np.zeros(3)}, "ema": {"w": np.zeros(3)}}
    found = compared(tmp_path, left, {"m": {"w": np.zeros(3)}, "plain": {"n": 1}})
    assert (found.only_left, found.only_right) == (["ema", "m/x"], ["plain"])
    assert not found.equal


def test_groups_are_read_in_turn(tmp_path, monkeypatch):
    """Arrays that do not fit into one group are read in several, and named in their own order."""
    monkeypatch.setattr(comparison, "GROUP", 1000)
    read, held = Checkpoint.read, []

    def note(checkpoint, plan, progress=None):
        held.append(sum(request.stop - request.start for request in plan.requests))
        read(checkpoint, plan, progress)

    monkeypatch.setattr(Checkpoint, "read", note)
    left = {f"a{n}": np.full(100 + n, n, "f4") for n in range(9)}
    right = {name: value + (name in {"a7", "a2"}) for name, value in left.items()}
    found = compared(tmp_path, {"m": left}, {"m": {k: v.astype("f4") for k, v in right.items()}})
    assert [d.name for d in found.array_differences] == ["m/a2", "m/a7"]
    assert found.arrays == 9
    assert max(held) <= 1000


def test_damage_is_not_a_difference(tmp_path):
    """A flipped byte raises instead of being reported as a difference."""
    a, b = saved(tmp_path / "a", m={"w": np.zeros(9)}), saved(tmp_path / "b", m={"w": np.zeros(9)})
    flip(os.path.join(b.path, "m.safetensors"))
    with pytest.raises(DamagedError) as caught:
        compare(a, b)
    assert caught.value.file == "m.safetensors"


@pytest.mark.parametrize("name", ["F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F8_E8M0", "BF16"])
def test_small_floats_have_their_values(name):
    """What NumPy lacks is decoded to the values that torch gives it."""
    torch = pytest.importorskip("torch")
    kinds = {
        "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E4M3FNUZ": "float8_e4m3fnuz",
        "F8_E5M2FNUZ": "float8_e5m2fnuz", "F8_E8M0": "float8_e8m0fnu", "BF16": "bfloat16",
    }  # fmt: skip
    kind = getattr(torch, kinds[name])
    width = dtypes.item_size(name)
    codes = torch.arange(256**width, dtype=torch.int64).to(torch.uint8 if width == 1 else torch.uint16)
    expected = codes.view(kind).to(torch.float64).numpy()
    rows = codes.numpy().view(np.uint8).reshape(-1, width)
    np.testing.assert_array_equal(difference._numbers(rows, name), expected)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_measure_finds_what_a_slow_loop_finds(data):
    """Counting differing elements agrees with comparing the bytes of each, for any width."""
    name = data.draw(
        st.sampled_from(["U8", "I16", "F32", "F64", "C128", "BF16", "C32", "numpy:<M8[s]", "numpy:<U3"])
    )
    width = dtypes.item_size(name)
    a = data.draw(st.binary(min_size=width, max_size=6 * width).map(lambda b: b[: len(b) // width * width]))
    places = data.draw(st.lists(st.integers(0, len(a) - 1), max_size=4))
    b = bytearray(a)
    for place in places:
        b[place] ^= data.draw(st.integers(0, 255))
    x, y = np.frombuffer(a, np.uint8), np.frombuffer(bytes(b), np.uint8)
    expected = sum(a[i : i + width] != bytes(b[i : i + width]) for i in range(0, len(a), width))
    found = difference.measure(x, y, name)
    if not expected:
        assert found is None
    else:
        assert found is not None
        assert (found.differing, found.elements) == (expected, len(a) // width)


# -- plain values ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b"), [(1, 1.0), (1, True), (0.0, -0.0), ("1", 1), (None, 0), ([1], (1,)), (float("nan"), 0.0)]
)
def test_values_differ_in_kind_and_bits(tmp_path, a, b):
    """Values that Python's == takes for equal still differ when their kind or bits do."""
    found = compared(tmp_path, {"m": {"v": a}}, {"m": {"v": b}})
    assert not found.equal
    assert compared(tmp_path, {"m": {"v": a}}, {"m": {"v": a}}).equal


def test_values_are_named_by_their_path(tmp_path):
    """A differing value is named by part and path, also under keys that are no strings."""
    left = {0: {"lr": 0.1}, "list": [1, 2], "only": 1}
    right = {0: {"lr": 0.2}, "list": [1, 3, 4]}
    found = compared(tmp_path, {"m": left}, {"m": right})
    assert {(d.name, d.left, d.right) for d in found.value_differences} == {
        ("m/0/lr", 0.1, 0.2),
        ("m/list/1", 2, 3),
        ("m/list/2", ABSENT, 4),
        ("m/only", 1, ABSENT),
    }


def test_walk_and_same_agree():
    """What has no differing leaf is the same, and the other way round."""
    values = [{"a": [1, {"b": 0.0}]}, {"a": [1, {"b": -0.0}]}, {"a": [1]}, {"a": {"b": 0.0}}, [], {}, 0]
    for a in values:
        for b in values:
            leaves = list(walk(a, b, "x"))
            equal = all(same(x, y) for _, x, y in leaves)
            assert equal == (same(a, b)), (a, b)


# -- runs ----------------------------------------------------------------------------------------


def test_metadata_does_not_count(tmp_path):
    """Run, time, note and config differ between two equal trainings, which are equal all the same."""
    one = make_run(tmp_path / "one", note="first", seed=1)
    other = make_run(tmp_path / "other", note="second", seed=1)
    found = compare(holdfast.open(one), holdfast.open(other))
    assert found.equal, (found.value_differences, found.array_differences)
    names = {difference.name for difference in found.metadata}
    assert {"run", "note"} <= names
    assert "random" in found.parts


def test_progress_streams_and_best_count(tmp_path):
    """Another place in the training differs in progress, and another seed in the random streams."""
    one, other = make_run(tmp_path / "one", seed=1), make_run(tmp_path / "other", seed=2)
    found = compare(holdfast.open(f"{one}@seq=1"), holdfast.open(f"{one}@seq=3"))
    names = {difference.name for difference in found.value_differences}
    assert {"progress/epoch", "progress/step", "best/value", "state/loss"} <= names
    found = compare(holdfast.open(one), holdfast.open(other))
    assert any(difference.name.startswith("random/streams/") for difference in found.value_differences)
    assert not found.array_differences


def test_progress_of_reading_is_told(tmp_path):
    """The bytes that are told as read are at least those of both states."""
    paths = checkpoints(make_run(tmp_path / "one", epochs=2))
    a, b = map(holdfast.open, paths)
    told = []
    compare(a, b, told.append)
    assert sum(told) >= comparison.bytes_to_read(a, b) == 2 * 48


def test_huge_and_tiny_do_not_warn(tmp_path, recwarn):
    """Differences that overflow or divide by zero give infinities, not warnings."""
    big = struct.unpack("<d", b"\xff\xff\xff\xff\xff\xff\xef\x7f")[0]
    (found,) = compared(
        tmp_path, {"m": {"w": np.array([big, 0.0])}}, {"m": {"w": np.array([-big, 5e-324])}}
    ).array_differences
    assert math.isinf(found.max_abs)
    assert not recwarn.list
