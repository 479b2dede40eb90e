"""Tens of thousands of small arrays: what each costs stays the same, however many there are."""

import gc
import sys

import numpy as np
import pytest

import holdfast
from holdfast.errors import DamagedError, StorageError
from holdfast.payload import threads
from holdfast.state import arrays as numpy_edge
from holdfast.state.batches import SMALL
from holdfast.state.part import Plan

torch = pytest.importorskip("torch")
torch_edge = pytest.importorskip("holdfast.torch.arrays")


def as_numpy(count):
    return {"value": {f"layer.{i}": np.full(1 + i % 3, i, "f4") for i in range(count)}}


def as_torch(count):
    return {"value": {f"layer.{i}": torch.full((1 + i % 3,), float(i)) for i in range(count)}}


def alike(count):
    return {"value": {f"layer.{i}": torch.full((2, 3), float(i)) for i in range(count)}}


def nested(count):
    return {"value": {f"layer{i}": {"w": torch.full((2, 2), float(i)), "n": i} for i in range(count)}}


def trained(count):
    net = torch.nn.ParameterList(torch.full((1 + i % 3,), float(i)) for i in range(count // 3))
    optimizer = torch.optim.AdamW(net.parameters(), foreach=True)
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return {"model": net, "optimizer": optimizer}


@pytest.fixture
def alone(monkeypatch):
    """No other thread helps to read, so that what is called can be counted in this one."""
    monkeypatch.setattr(threads, "size", lambda _: 1)


def calls_of(act):
    """How many functions, Python's and C's, this thread calls in it."""
    found = 0

    def count(_frame, event, _argument):
        nonlocal found
        found += event in ("call", "c_call")

    gc.collect()
    sys.setprofile(count)
    try:
        act()
    finally:
        sys.setprofile(None)
    return found


def lines_of(act):
    """How many lines of Python this thread runs in it, each turn of a loop counted."""
    found = 0

    def count(_frame, event, _argument):
        nonlocal found
        found += event == "line"
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        act()
    finally:
        sys.settrace(before)
    return found


ACTS = {
    as_numpy: "save load restore",
    as_torch: "save load restore",
    nested: "save load",
    trained: "save load restore",
}


@pytest.mark.parametrize(
    ("make", "what"), [(make, what) for make, acts in ACTS.items() for what in acts.split()]
)
def test_twice_the_arrays_are_twice_the_work(tmp_path, alone, make, what):
    """To save, load or restore twice as many arrays takes no more than twice as many calls and turns of loops."""
    found = {}
    for count in (300, 600, 1200):
        state, path = make(count), tmp_path / str(count)
        acts = {
            "save": lambda path=path, state=state: holdfast.save(path, state),
            "load": lambda path=path: holdfast.open(path).load(),
            "restore": lambda path=path, state=state: holdfast.restore(path, state),
        }
        if what == "save":
            holdfast.save(tmp_path / "warm", state)
        else:
            holdfast.save(path, state)
            acts[what]()  # what is imported and looked up once is not counted
        found[count] = calls_of(acts[what]), lines_of(acts[what])
    for few, some, many in zip(*found.values(), strict=True):
        assert many - some <= 2.1 * (some - few)


@pytest.mark.parametrize("make", [as_numpy, as_torch])
def test_what_is_paid_for_an_array(tmp_path, alone, make):
    """A small array costs at most 36 calls to save, and 20 to load."""
    few, many = make(500), make(1500)
    counts = []
    for state in (few, few, many):  # the first warms up
        saving = calls_of(lambda state=state: holdfast.save(tmp_path / "c", state))
        loading = calls_of(lambda: holdfast.open(tmp_path / "c").load())
        counts.append((saving, loading))
    (_, (save_few, load_few), (save_many, load_many)) = counts
    assert (save_many - save_few) / 1000 <= 36
    assert (load_many - load_few) / 1000 <= 20


@pytest.mark.parametrize("make", [as_numpy, as_torch, alike])
def test_new_arrays_are_independent(tmp_path, make):
    """Each small array that is loaded has memory of its own, and no more of it than it needs."""
    state = make(300)
    holdfast.save(tmp_path / "c", state)
    found = holdfast.open(tmp_path / "c").load()["value"]
    assert all(name in found and (array == found[name]).all() for name, array in state["value"].items())
    for array in found.values():
        if isinstance(array, torch.Tensor):
            assert array.untyped_storage().nbytes() == array.nbytes
            assert not array._is_view()
        else:
            assert array.base is None
            assert array.flags.owndata
            assert array.flags.writeable
        array[:] = -1
    assert len({id(array) for array in found.values()}) == 300


def test_arrays_large_and_small_side_by_side(tmp_path):
    """Small arrays among large ones, and some of the largest size that counts as small, come back to the byte."""
    rng = np.random.default_rng(3)
    sizes = [SMALL // 4 + step for step in (-1, 0, 1)] + [3, 4_000_000, 0, 70_000]
    state = {f"a{i:03}": rng.random(sizes[i % 7], "f4") for i in range(60)}
    holdfast.save(tmp_path / "c", {"value": state})
    found = holdfast.open(tmp_path / "c").load()["value"]
    assert all(np.array_equal(found[name], array) for name, array in state.items())
    live = {name: np.zeros_like(array) for name, array in state.items()}
    holdfast.restore(tmp_path / "c", {"value": live})
    assert all(np.array_equal(live[name], array) for name, array in state.items())


@pytest.mark.parametrize("make", [as_numpy, as_torch])
def test_nothing_of_a_damaged_block_comes_into_a_live_array(tmp_path, make):
    """A flipped bit leaves the live arrays of its block as they were, and the error names the array."""
    state = make(200)
    holdfast.save(tmp_path / "c", state)
    live = {"value": {name: array * 0 - 1 for name, array in state["value"].items()}}
    entry = holdfast.open(tmp_path / "c").arrays().parts["value"].arrays["layer.7"]
    with open(tmp_path / "c" / "value.safetensors", "r+b") as file:
        file.seek(entry.chunks[0].bytes[0])
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 4]))
    with pytest.raises(DamagedError) as caught:
        holdfast.restore(tmp_path / "c", live)
    assert "value/layer.7" in caught.value.arrays
    assert all((array == -1).all() for array in live["value"].values())


def test_no_memory_for_small_arrays(tmp_path, monkeypatch):
    """Where small arrays cannot be made, the error is a StorageError that names one of them."""
    holdfast.save(tmp_path / "c", as_numpy(10))

    def full(*_):
        raise MemoryError("no room")

    monkeypatch.setattr(numpy_edge, "unpack", full)
    with pytest.raises(StorageError, match=r"numpy cannot make the array value/layer\.0, .*: no room"):
        holdfast.open(tmp_path / "c").load()


def test_small_arrays_have_no_request_each(tmp_path):
    """Small arrays are read without a request for each, and what is to be read counts them."""
    holdfast.save(tmp_path / "c", as_torch(100))
    plan = Plan()
    plan.value(holdfast.open(tmp_path / "c").saved("value"))
    assert plan.requests == []
    assert plan.nbytes == sum(4 * (1 + i % 3) for i in range(100))


def test_one_array_under_two_names_comes_back_as_one(tmp_path):
    """Small arrays that were one come back as one, inside a part and between two."""
    one, other = np.arange(5.0), torch.arange(3)
    holdfast.save(
        tmp_path / "c", {"first": {"a": one, "b": one, "t": [other]}, "second": [one, other, {"x": other}]}
    )
    found = holdfast.open(tmp_path / "c").load(parts=["first", "second"])
    first, second = found["first"], found["second"]
    assert first["a"] is first["b"] is second[0]
    assert first["t"][0] is second[1] is second[2]["x"]


NUMPY_DTYPES = [
    "?",
    "u1",
    "i8",
    "f2",
    "f4",
    ">f4",
    ">i8",
    "f8",
    "c8",
    ">c16",
    "<U3",
    ">U2",
    "S5",
    "V3",
    "M8[s]",
    ">m8[D]",
]


@pytest.mark.parametrize("dtype", NUMPY_DTYPES)
@pytest.mark.parametrize("shape", [(3,), (2, 2), ()])
def test_neighbours_of_one_dtype(tmp_path, dtype, shape):
    """Many small arrays of one dtype, whatever its order of bytes, come back to the byte, and in place."""
    rng, size = np.random.default_rng(1), np.dtype(dtype).itemsize
    state = {
        f"a{i}": rng.integers(0, 127, (*shape, size), "u1").view(dtype).reshape(shape) for i in range(50)
    }
    holdfast.save(tmp_path / "c", {"value": state})
    live = {name: np.zeros_like(array) for name, array in state.items()}
    holdfast.restore(tmp_path / "c", {"value": live})
    found = holdfast.open(tmp_path / "c").load()["value"]
    for name, array in state.items():
        assert found[name].dtype == array.dtype
        assert found[name].tobytes() == live[name].tobytes() == array.tobytes()


@pytest.mark.parametrize("framework", ["torch", "numpy"])
def test_neighbours_of_dtypes_of_one_size(tmp_path, framework):
    """Small arrays whose dtypes take turns come back to the byte: none is turned into its neighbour's."""
    kinds = ["f4", "i4", "u4", "f4", "c8", "f8", "i8", "f2", "i2", "?", "u1", "i1"]
    state = {f"a{i:03}": (np.arange(5) * 50.5).astype(kinds[i % len(kinds)]) for i in range(200)}
    if framework == "torch":
        state = {name: torch.from_numpy(array) for name, array in state.items()}
    holdfast.save(tmp_path / "c", {"value": state})
    found = holdfast.open(tmp_path / "c").load()["value"]
    for name, array in state.items():
        assert found[name].dtype == array.dtype
        assert (found[name] == array).all()


def test_neighbours_are_opened_together(tmp_path, monkeypatch):
    """Small arrays of one dtype, of which nothing is told by name, are copied by a few calls, not by one each."""
    calls = []
    for kind in (torch_edge.TensorArray, numpy_edge.SmallHostArray):
        join = kind.join
        monkeypatch.setattr(
            kind, "join", staticmethod(lambda arrays, join=join: calls.append(len(arrays)) or join(arrays))
        )
        monkeypatch.setattr(kind, "open", lambda _: pytest.fail("opened by itself"))
    holdfast.save(tmp_path / "t", as_torch(1000))
    holdfast.save(tmp_path / "n", as_numpy(1000))
    assert calls == [1000, 1000]


def test_an_error_in_neighbours_names_them(tmp_path, monkeypatch):
    """An error while neighbours are copied names the first and the last of them."""

    def fail(_):
        raise OSError("unreadable")

    monkeypatch.setattr(numpy_edge.SmallHostArray, "join", staticmethod(fail))
    with pytest.raises(OSError, match="unreadable") as caught:
        holdfast.save(tmp_path / "c", as_numpy(10))
    assert caught.value.__notes__ == ["while the array value/layer.0 … layer.9 was being copied"]


def test_a_nan_is_told_by_its_name(tmp_path):
    """Of thousands of small parameters the one that is not finite is named."""
    net = torch.nn.ParameterList(torch.zeros(4) for _ in range(3000))
    with torch.no_grad():
        net[1234][2] = float("nan")
    holdfast.save(tmp_path / "c", {"model": net})
    assert holdfast.open(tmp_path / "c").manifest.nan == ["model/1234"]
