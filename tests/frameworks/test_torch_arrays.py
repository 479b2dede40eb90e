"""Torch's tensors and modules: every dtype and layout to the bit, and modules of every making."""

import json

import numpy as np
import pytest
import torch
from torch import nn

import holdfast
from holdfast import MismatchError, UsageError
from holdfast.torch.arrays import NAMES

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def bits(tensor):
    """The bytes of a tensor, whatever its dtype, layout or device."""
    tensor = tensor.detach().resolve_conj().resolve_neg().contiguous()
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def random_bits(dtype, *shape):
    """A tensor of any dtype with random bits in it: every NaN and every subnormal occurs."""
    size = torch.empty((), dtype=dtype).element_size()
    if dtype is torch.bool:
        return torch.rand(shape) < 0.5
    raw = torch.randint(0, 256, (*shape[:-1], shape[-1] * size), dtype=torch.uint8)
    return raw.view(dtype)


def table(path):
    """What arrays.json says."""
    return json.loads((path / "arrays.json").read_bytes())


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ckpt"


# -- dtypes and layouts ------------------------------------------------------------------------------


def test_every_dtype_of_this_torch_is_known():
    """Whatever dtype this torch has, it is stored, or it is one of the few that have no plain bytes."""
    every = {value for value in vars(torch).values() if isinstance(value, torch.dtype)}
    left = {str(dtype).removeprefix("torch.") for dtype in every - set(NAMES)}
    assert all(name.startswith(("q", "bits", "int", "uint", "float4")) for name in left), left
    assert not left & {"int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"}


@pytest.mark.parametrize("dtype", NAMES, ids=str)
def test_every_dtype(path, dtype):
    """Every dtype comes back to the bit: in matrices, as scalars, empty, from views, and in place."""
    matrix = random_bits(dtype, 6, 8)
    parts = {
        "matrix": matrix,
        "scalar": matrix[1, 2],
        "empty": torch.empty(0, 3, dtype=dtype),
        "columns": matrix.t(),
        "steps": matrix[::2, 1::3],
        "expanded": matrix[:1].expand(4, 8),
    }
    holdfast.save(path, {"state_dict": parts})
    found = holdfast.open(path).load()["state_dict"]
    for name, tensor in parts.items():
        assert (found[name].dtype, found[name].shape) == (dtype, tensor.shape)
        assert bits(found[name]) == bits(tensor), name
    live = {name: torch.zeros_like(tensor, dtype=torch.uint8).to(dtype) for name, tensor in parts.items()}
    live["columns"] = torch.zeros(6, 8, dtype=torch.uint8).to(dtype).t()
    holdfast.restore(path, {"state_dict": live})
    for name, tensor in parts.items():
        assert bits(live[name]) == bits(tensor), name
    assert not live["columns"].is_contiguous()


@pytest.mark.parametrize("dtype", NAMES, ids=str)
def test_every_dtype_as_numpy(path, dtype):
    """With arrays="numpy" every dtype comes as NumPy's own, or as unsigned integers of its width."""
    tensor = random_bits(dtype, 3, 4)
    holdfast.save(path, {"x": tensor})
    found = holdfast.open(path).load(arrays="numpy")["x"]
    assert isinstance(found, np.ndarray)
    assert found.shape == (3, 4)
    assert found.tobytes() == bits(tensor)
    name = str(dtype).removeprefix("torch.")
    own = {"bool": "bool"}.get(name, name)
    if hasattr(np, own) and own != "complex32":
        assert found.dtype == np.dtype(own)
    else:
        assert found.dtype.itemsize == tensor.element_size()
        assert found.dtype.kind in "uV"


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_conjugate_and_negative_views(path, dtype):
    """Lazy conjugates and negations are stored as the values they show, and restored into as well."""
    base = torch.randn(3, 4, dtype=dtype)
    views = {"conj": base.conj(), "neg": base.conj().imag, "both": base.mH}
    assert views["conj"].is_conj()
    assert views["neg"].is_neg()
    holdfast.save(path, {"views": views})
    for name, found in holdfast.open(path).load()["views"].items():
        assert torch.equal(found, views[name].resolve_conj().resolve_neg())
    other = torch.zeros(3, 4, dtype=dtype)
    live = other.conj()
    holdfast.save(path, {"x": base})
    holdfast.restore(path, {"x": live})
    assert torch.equal(live, base)
    assert torch.equal(other, base.conj())


def test_memory_formats(path):
    """Channels-last tensors come back equal, and a live one keeps its layout."""
    tensor = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    holdfast.save(path, {"x": tensor})
    assert torch.equal(holdfast.open(path).load()["x"], tensor)
    live = torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last)
    holdfast.restore(path, {"x": live})
    assert torch.equal(live, tensor)
    assert live.is_contiguous(memory_format=torch.channels_last)


def test_gradients_and_versions(path):
    """Leaves that require gradients are saved and restored in place without becoming part of a graph."""
    leaf = torch.randn(3, requires_grad=True)
    holdfast.save(path, {"x": leaf, "y": leaf * 2})
    live = torch.zeros(3, requires_grad=True)
    holdfast.restore(path, {"x": live})
    assert torch.equal(live, leaf)
    assert live.is_leaf
    assert live.requires_grad
    assert not holdfast.open(path).load()["y"].requires_grad


def test_a_bool_that_is_neither(path):
    """A bool tensor whose bytes are neither 0 nor 1 comes back to the bit, and in place."""
    odd = torch.tensor([0, 1, 2, 255, 128], dtype=torch.uint8).view(torch.bool)
    holdfast.save(path, {"x": {"odd": odd, "plain": torch.ones(3)}})
    assert bits(holdfast.open(path).load()["x"]["odd"]) == bits(odd)
    live = {"odd": torch.zeros(5, dtype=torch.bool), "plain": torch.zeros(3)}
    holdfast.restore(path, {"x": live})
    assert bits(live["odd"]) == bits(odd)


def test_in_inference_mode(path):
    """What is loaded in inference mode can be trained outside of it; inference tensors are restored in place."""
    with torch.inference_mode():
        net = nn.Linear(3, 3)
        live = nn.Linear(3, 3)
        holdfast.save(path, {"x": {"w": torch.ones(3), "v": torch.ones(2, 2)}})
        found = holdfast.open(path).load()["x"]
        zeros = {name: tensor * 0 for name, tensor in found.items()}
        both = zeros | {"v": torch.zeros(2, 2)}
    holdfast.restore(path, {"x": both})
    assert both["w"].is_inference()
    assert all((tensor == 1).all() for tensor in both.values())
    holdfast.save(path, {"model": net})
    holdfast.restore(path, {"model": live})
    assert all(torch.equal(a, b) for a, b in zip(live.parameters(), net.parameters(), strict=True))
    for tensor in found.values():
        assert not tensor.is_inference()
        tensor.requires_grad_().sum().backward()


# -- memory that is shared ----------------------------------------------------------------------------


def test_tied_and_aliased(path):
    """Tied weights are stored once, come back as one tensor, and stay tied in a live model."""
    net = nn.ModuleDict({"embed": nn.Embedding(50, 8), "head": nn.Linear(8, 50, bias=False)})
    net["head"].weight = net["embed"].weight
    holdfast.save(path, {"model": net, "again": net["embed"].weight})
    assert holdfast.open(path).total_bytes() < 2 * 50 * 8 * 4 + 10_000
    arrays = table(path)["parts"]
    places = [arrays["model"]["arrays"][name]["chunks"] for name in ("embed.weight", "head.weight")]
    assert places[0] == places[1] == arrays["again"]["arrays"]["/"]["chunks"]
    assert table(path)["overlaps"] == []
    found = holdfast.open(path).load()
    assert found["model"]["embed.weight"] is found["model"]["head.weight"]
    other = nn.ModuleDict({"embed": nn.Embedding(50, 8), "head": nn.Linear(8, 50, bias=False)})
    other["head"].weight = other["embed"].weight
    holdfast.restore(path, {"model": other})
    assert other["head"].weight is other["embed"].weight
    assert torch.equal(other["head"].weight, net["head"].weight)
    untied = nn.ModuleDict({"embed": nn.Embedding(50, 8), "head": nn.Linear(8, 50, bias=False)})
    holdfast.restore(path, {"model": untied})
    assert torch.equal(untied["head"].weight, net["head"].weight)
    assert untied["head"].weight is not untied["embed"].weight


def test_partly_overlapping(path):
    """Tensors that share a part of their memory are stored apart, noted as such, and come back apart."""
    base = torch.arange(100.0)
    views = {
        "all": base,
        "front": base[:60],
        "middle": base[20:30],
        "back": base[50:],
        "other": torch.ones(5),
    }
    holdfast.save(path, {"views": views})
    noted = {tuple(pair) for pair in table(path)["overlaps"]}
    assert noted == {("views/front", "views/all"), ("views/all", "views/middle"), ("views/all", "views/back")}
    assert not any("views/other" in pair for pair in noted)
    found = holdfast.open(path).load()["views"]
    assert all(torch.equal(found[name], views[name]) for name in views)
    found["front"].zero_()
    assert torch.equal(found["all"], base)


def test_same_bytes_of_another_shape(path):
    """Two views of one memory with different shapes are two arrays, each with its own shape."""
    base = torch.arange(12.0)
    holdfast.save(path, {"v": {"flat": base, "grid": base.view(3, 4), "columns": base.view(4, 3).t()}})
    found = holdfast.open(path).load()["v"]
    assert torch.equal(found["grid"], base.view(3, 4))
    assert torch.equal(found["columns"], base.view(4, 3).t())


# -- refusals -----------------------------------------------------------------------------------------

REFUSED = {
    "meta": (lambda: torch.ones(2, device="meta"), "to_empty"),
    "coo": (lambda: torch.eye(3).to_sparse(), "to_dense"),
    "csr": (lambda: torch.eye(3).to_sparse_csr(), "to_dense"),
    "quantized": (lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.quint8), "dequantized"),
    "nested": (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "unbind"),
    "jagged": (
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
        "unbind",
    ),
    "lazy": (lambda: nn.LazyLinear(2).weight, "run one batch through the model first"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_tensors(path, name):
    """A tensor without plain bytes is refused with its path and the remedy, and nothing is written."""
    make, remedy = REFUSED[name]
    with pytest.raises(UsageError) as caught:
        holdfast.save(path, {"values": {"deep": [make()]}})
    assert str(caught.value).startswith("values/deep/0 ")
    assert remedy in str(caught.value)
    assert str(caught.value).endswith("Nothing was saved.")
    assert not path.exists()


def test_a_tensor_that_wraps_others(path):
    """A subclass that keeps its data elsewhere is refused by its type."""

    class Wrapper(torch.Tensor):
        @classmethod
        def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
            raise NotImplementedError

    tensor = torch.Tensor._make_wrapper_subclass(Wrapper, (2,), dtype=torch.float32)
    with pytest.raises(UsageError, match="Wrapper, a tensor that wraps others: store the plain tensors"):
        holdfast.save(path, {"x": tensor})


# -- modules ------------------------------------------------------------------------------------------


def parameters(net):
    return {
        name: value.clone() for name, value in net.state_dict().items() if isinstance(value, torch.Tensor)
    }


def assert_equal(net, values):
    found = parameters(net)
    assert list(found) == list(values)
    assert all(torch.equal(found[name], values[name]) for name in values)


def test_in_place(path):
    """A restore writes into the tensors that are there: optimizers and references stay valid."""
    net = nn.Linear(3, 2)
    kept, pointer = net.weight, net.weight.data_ptr()
    saved = parameters(net)
    holdfast.save(path, {"model": net})
    with torch.no_grad():
        net.weight.zero_()
    holdfast.restore(path, {"model": net})
    assert net.weight is kept
    assert net.weight.data_ptr() == pointer
    assert_equal(net, saved)


def test_non_contiguous_parameters(path):
    """Parameters that are not contiguous are restored in place, and stay so."""
    net = nn.Linear(3, 2, bias=False)
    net.weight = nn.Parameter(torch.randn(3, 2).t())
    saved = parameters(net)
    holdfast.save(path, {"model": net})
    with torch.no_grad():
        net.weight.zero_()
    holdfast.restore(path, {"model": net})
    assert not net.weight.is_contiguous()
    assert_equal(net, saved)


class Named(nn.Module):
    """A child that is called `module`, which no wrapper made."""

    def __init__(self):
        super().__init__()
        self.module = nn.Linear(2, 2)


def test_wrappers_go_by_type(path):
    """DataParallel and torch.compile, at any depth, leave no prefix; a child called `module` keeps its name."""
    plain = nn.Sequential(nn.Linear(2, 2), Named())
    wrapped = nn.DataParallel(nn.Sequential(torch.compile(nn.Linear(2, 2)), Named()))
    averaged = torch.optim.swa_utils.AveragedModel(nn.Linear(2, 2))
    holdfast.save(path, {"model": wrapped, "averaged": averaged})
    parts = table(path)["parts"]
    assert set(parts["model"]["arrays"]) == {"0.weight", "0.bias", "1.module.weight", "1.module.bias"}
    assert set(parts["averaged"]["arrays"]) == {"module.weight", "module.bias", "n_averaged"}
    holdfast.restore(path, {"model": plain})
    assert torch.equal(plain[0].weight, wrapped.module[0].weight)
    holdfast.save(path, {"model": plain})
    with torch.no_grad():
        wrapped.module[0].weight.zero_()
    holdfast.restore(path, {"model": wrapped})
    assert torch.equal(plain[0].weight, wrapped.module[0].weight)


class Extra(nn.Module):
    """Extra state: plain values and a tensor."""

    def __init__(self, count=0):
        super().__init__()
        self.layer, self.count, self.seen = nn.Linear(2, 2), count, torch.full((3,), float(count))

    def get_extra_state(self):
        return {"count": self.count, "seen": self.seen, "names": ("a", {1: 2})}

    def set_extra_state(self, state):
        assert state["names"] == ("a", {1: 2})
        self.count, self.seen = state["count"], state["seen"]


def test_extra_state(path):
    """Extra state comes back through `set_extra_state`, tensors in it included, at any depth."""
    net, other = nn.Sequential(Extra(7), nn.Linear(2, 2)), nn.Sequential(Extra(), nn.Linear(2, 2))
    holdfast.save(path, {"model": net})
    holdfast.restore(path, {"model": other})
    assert other[0].count == 7
    assert other[0].seen.tolist() == [7.0] * 3
    assert torch.equal(other[0].layer.weight, net[0].layer.weight)
    holdfast.save(path, {"model": nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))})
    with pytest.raises(MismatchError, match=r"model/0._extra_state"):
        holdfast.restore(path, {"model": other})


class OwnLoading(nn.Module):
    """Renames an array while it loads, as models with a history do."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))
        self.loaded = 0

    def _load_from_state_dict(self, state_dict, prefix, *args):
        self.loaded += 1
        if f"{prefix}old_name" in state_dict:
            state_dict[f"{prefix}weight"] = state_dict.pop(f"{prefix}old_name")
        super()._load_from_state_dict(state_dict, prefix, *args)


class OldNames(nn.Module):
    def __init__(self):
        super().__init__()
        self.old_name = nn.Parameter(torch.arange(3.0))


def test_own_loading_code_is_called(path):
    """A module with loading code of its own is loaded through it."""
    holdfast.save(path, {"model": nn.Sequential(OldNames())})
    net = nn.Sequential(OwnLoading())
    holdfast.restore(path, {"model": net})
    assert net[0].loaded == 1
    assert net[0].weight.tolist() == [0, 1, 2]


def test_own_loading_code_that_fails(path):
    """What a module's own loading code refuses is a `MismatchError` with its words, not a foreign error."""
    holdfast.save(path, {"model": nn.Sequential(nn.Linear(2, 2))})
    with pytest.raises(MismatchError) as caught:
        holdfast.restore(path, {"model": nn.Sequential(OwnLoading())})
    assert "does not fit Sequential, whose own loading code says: Error(s) in loading state_dict" in str(
        caught.value
    )
    assert "Parts of it may have been overwritten already" in str(caught.value)
    assert caught.value.target_changed is True


@pytest.mark.parametrize("make", ["weight_norm", "spectral_norm", "hooks"])
def test_hooks_and_parametrizations(path, make):
    """Parametrized modules and state_dict hooks work in both directions."""

    def build():
        torch.manual_seed(len(built))
        net = nn.Linear(4, 3)
        if make == "weight_norm":
            net = torch.nn.utils.parametrizations.weight_norm(net)
        elif make == "spectral_norm":
            net = torch.nn.utils.parametrizations.spectral_norm(net)
        else:
            net.register_state_dict_post_hook(
                lambda m, state, prefix, _: state.update({f"{prefix}more": torch.ones(1)})
            )
            net.register_load_state_dict_pre_hook(lambda m, state, prefix, *_: state.pop(f"{prefix}more"))
        built.append(net)
        return net.eval()

    built = []
    one, other = build(), build()
    holdfast.save(path, {"model": one})
    holdfast.restore(path, {"model": other})
    assert torch.equal(one(torch.ones(1, 4)), other(torch.ones(1, 4)))


def test_lazy_modules(path):
    """A lazy module that has no shapes yet takes them from the checkpoint."""
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    lazy = nn.Sequential(nn.LazyLinear(3), nn.ReLU(), nn.LazyLinear(2))
    holdfast.save(path, {"model": net})
    holdfast.restore(path, {"model": lazy})
    assert torch.equal(lazy(torch.ones(1, 4)), net(torch.ones(1, 4)))
    with pytest.raises(UsageError, match=r"model/0.weight is a lazy parameter without a shape yet"):
        holdfast.save(path, {"model": nn.Sequential(nn.LazyLinear(3))})


def test_batch_norm_buffers(path):
    """Running statistics and counters of batch norm are restored, not only what trains."""
    net, other = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    net(torch.randn(8, 3))
    holdfast.save(path, {"model": net})
    holdfast.restore(path, {"model": other})
    assert_equal(other, parameters(net))
    assert other.num_batches_tracked.item() == 1


def test_a_plain_state_dict(path):
    """A saved `net.state_dict()` fits the module, and a saved module fits a mapping of tensors."""
    net, other = nn.Linear(3, 2), nn.Linear(3, 2)
    holdfast.save(path, {"weights": net.state_dict()})
    holdfast.restore(path, {"weights": other})
    assert_equal(other, parameters(net))
    holdfast.save(path, {"weights": net})
    live = {name: torch.zeros_like(value) for name, value in net.state_dict().items()}
    holdfast.restore(path, {"weights": live})
    assert all(torch.equal(live[name], value) for name, value in net.state_dict().items())


def test_a_state_dict_with_extra_state(path):
    """A saved state_dict that holds more than tensors fits its module as well."""
    net, other = Extra(5), Extra()
    holdfast.save(path, {"weights": net.state_dict()})
    holdfast.restore(path, {"weights": other})
    assert other.count == 5
    assert torch.equal(other.layer.weight, net.layer.weight)


def test_a_module_without_arrays(path):
    """A module that holds nothing is saved and restored without ado."""
    holdfast.save(path, {"model": nn.ReLU(), "weights": nn.ReLU().state_dict()})
    holdfast.restore(path, {"model": nn.ReLU(), "weights": nn.ReLU()})


def test_non_persistent_buffers_stay(path):
    """A buffer that is not persistent is neither stored nor touched."""
    net = nn.Linear(2, 2)
    net.register_buffer("cache", torch.ones(4), persistent=False)
    holdfast.save(path, {"model": net})
    net.cache.fill_(9)
    holdfast.restore(path, {"model": net})
    assert net.cache.tolist() == [9] * 4
