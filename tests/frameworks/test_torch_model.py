"""Entire models: `save_model` and `load_model`."""

import json
import os
import pickle
import subprocess
import sys
import types

import pytest
import torch
from torch import nn

import holdfast
from holdfast.torch import load_model, modules, save_model


def double(module, args, output):
    return output * 2


class Net(nn.Module):
    """Has everything that can lie in a module."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.rnn = nn.LSTM(4, 4)
        self.head = nn.Linear(4, 10, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("mask", torch.tril(torch.ones(3, 3)), persistent=False)
        self.register_buffer("absent", None)
        self.plain = torch.arange(3.0)
        self.listed = [torch.ones(2), {"deep": torch.zeros(1, dtype=torch.bfloat16)}]
        self.settings = {"width": 4, "kind": "x"}
        self.embed.weight.note = "tied"
        self.calls = 0

    def forward(self, x):
        return self.norm(self.conv(x)) * self.plain.sum() + self.mask.sum()

    def get_extra_state(self):
        return {"calls": self.calls}

    def set_extra_state(self, state):
        self.calls = state["calls"]


@pytest.fixture
def net():
    torch.manual_seed(3)
    net = Net()
    net.conv.to(memory_format=torch.channels_last)
    net.conv.register_forward_hook(double)
    net.conv.bias.requires_grad_(False)
    net.calls = 5
    net(torch.randn(2, 3, 8, 8))
    net.eval()
    net.rnn.train()
    return net


def test_an_entire_model_comes_back_as_it_was(tmp_path, net):
    """Weights, buffers, attributes, hooks, ties, memory format, modes and requires_grad survive."""
    ckpt = save_model(net, tmp_path / "m", note="a net")
    assert ckpt.note == "a net"
    assert ckpt.verify() == []
    other = load_model(tmp_path / "m", trust=True)
    for (name, a), (_, b) in zip(net.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(a, b), name
        assert a.requires_grad == b.requires_grad, name
        assert type(a) is type(b)
    for (name, a), (_, b) in zip(net.named_buffers(), other.named_buffers(), strict=True):
        assert torch.equal(a, b), name
    assert other.head.weight is other.embed.weight
    assert other.embed.weight.note == "tied"
    assert other.rnn._flat_weights[0] is other.rnn.weight_ih_l0
    assert other.absent is None
    assert torch.equal(other.plain, net.plain)
    assert torch.equal(other.listed[1]["deep"], net.listed[1]["deep"])
    assert other.conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert [m.training for m in other.modules()] == [m.training for m in net.modules()]
    assert (other.settings, other.calls) == (net.settings, 5)
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(net(x), other(x))
    assert other.state_dict().keys() == net.state_dict().keys()  # the mask is still not persistent
    optimizer = torch.optim.SGD([p for p in other.parameters() if p.requires_grad], lr=0.1)
    other(x).sum().backward()
    optimizer.step()


def test_saving_leaves_the_live_module_alone(tmp_path, net):
    """save_model changes neither the module's tensors nor its attributes."""
    before = [
        (name, id(value), value._version, value.data_ptr())
        for name, value in net.state_dict(keep_vars=True).items()
        if isinstance(value, torch.Tensor)
    ]
    attributes = {path: dict(vars(module)) for path, module in net.named_modules()}
    save_model(net, tmp_path / "m")
    after = [
        (name, id(value), value._version, value.data_ptr())
        for name, value in net.state_dict(keep_vars=True).items()
        if isinstance(value, torch.Tensor)
    ]
    assert before == after
    for path, module in net.named_modules():
        assert vars(module).keys() == attributes[path].keys()
        assert all(vars(module)[key] is value for key, value in attributes[path].items())


def test_the_pickle_holds_no_weights(tmp_path):
    """structure.pickle has the size of the structure: a model 100 times as large adds nothing to it."""
    save_model(nn.Linear(10, 10), tmp_path / "small")
    save_model(nn.Linear(1000, 1000), tmp_path / "large")
    sizes = [os.path.getsize(tmp_path / name / "structure.pickle") for name in ("small", "large")]
    assert abs(sizes[0] - sizes[1]) < 32


def test_it_is_an_ordinary_checkpoint(tmp_path, net):
    """Without trust, the weights open like those of any checkpoint."""
    save_model(net, tmp_path / "m")
    assert holdfast.open(tmp_path / "m").parts == ["model", "attributes"]
    other = Net()
    holdfast.restore(tmp_path / "m", {"model": other})
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))
    assert other.calls == 5


def test_without_trust_it_is_refused_and_nothing_runs(tmp_path, net, monkeypatch):
    """load_model needs trust=True: the error says why and names the class; nothing is unpickled."""
    save_model(net, tmp_path / "m")
    monkeypatch.setattr(pickle, "Unpickler", None)
    for trust in (False, 1, "yes"):
        with pytest.raises(holdfast.UntrustedError, match=r"import and run code.*trust=True") as caught:
            load_model(tmp_path / "m", trust=trust)
    assert f"{__name__}.Net" in caught.value.names


ran = []


def tattle(word):
    ran.append(word)
    return word


class Tattler:
    def __reduce__(self):
        return tattle, ("ran",)


@pytest.mark.parametrize("file", ["structure.pickle", "structure.json", "model.safetensors", "arrays.json"])
def test_damage_is_found_before_any_code_runs(tmp_path, file):
    """A changed byte in any file is a DamagedError, and nothing of the structure was run."""
    net = nn.Linear(8, 8)
    net.tattler = Tattler()
    save_model(net, tmp_path / "m")
    ran.clear()
    path = tmp_path / "m" / file
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)
    with pytest.raises(holdfast.DamagedError):
        load_model(tmp_path / "m", trust=True)
    assert ran == []
    data[-20] ^= 1
    path.write_bytes(data)
    load_model(tmp_path / "m", trust=True)
    assert ran == ["ran"]


def _hooked():
    net = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2)))
    net[1][0].register_forward_hook(lambda *_: None)
    return net


def _with_file():
    net = nn.Sequential(nn.Linear(2, 2))
    net[0].log = sys.stderr
    return net


def _local():
    class Inner(nn.Linear):
        pass

    return nn.Sequential(Inner(2, 2))


@pytest.mark.parametrize(
    ("make", "path"),
    [
        (_hooked, r"model\.1\.0\._forward_hooks\[\d+\].*lambda"),
        (_with_file, r"model\.0\.log"),
        (_local, r"model\.0 \(a .*Inner\)"),
    ],
)
def test_what_cannot_be_pickled_is_named_by_its_path(tmp_path, make, path):
    """A lambda, an open file, a local class: a UsageError with the path; nothing is saved."""
    with pytest.raises(holdfast.UsageError, match=path):
        save_model(make(), tmp_path / "m")
    assert os.listdir(tmp_path) == []


def test_views_of_one_another_are_refused(tmp_path):
    """Tensors that overlap in memory would come back apart: a UsageError names both."""
    net = nn.Linear(3, 3)
    net.flipped = net.weight.detach().t()
    with pytest.raises(holdfast.UsageError, match=r"flipped.*weight|weight.*flipped"):
        save_model(net, tmp_path / "m")


def test_tensors_of_equal_memory_stay_one(tmp_path):
    """Two parameters on the same memory share it after loading too."""
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[0].weight = nn.Parameter(torch.randn(3, 3).t())  # in another memory order, which is kept by a copy
    net[1].weight = nn.Parameter(net[0].weight.detach())
    save_model(net, tmp_path / "m")
    other = load_model(tmp_path / "m", trust=True)
    assert other[0].weight is not other[1].weight
    assert other[0].weight.data_ptr() == other[1].weight.data_ptr()


class Own(nn.Parameter):
    pass


def test_parameters_of_an_own_class_stay_so(tmp_path):
    """A subclass of Parameter comes back as that subclass."""
    net = nn.Linear(2, 2)
    net.weight = Own(torch.ones(2, 2))
    save_model(net, tmp_path / "m")
    other = load_model(tmp_path / "m", trust=True)
    assert type(other.weight) is Own
    assert other.weight.requires_grad
    assert torch.equal(other.weight, torch.ones(2, 2))


def test_wrappers_are_left_off(tmp_path):
    """Saving a DataParallel saves the model in it."""
    save_model(nn.DataParallel(nn.Linear(2, 2)), tmp_path / "m")
    assert type(load_model(tmp_path / "m", trust=True)) is nn.Linear


def test_map_location_moves_every_tensor(tmp_path, net):
    """map_location places parameters, buffers and attributes."""
    save_model(net, tmp_path / "m")
    other = load_model(tmp_path / "m", trust=True, map_location="meta")
    assert {t.device.type for t in [*other.parameters(), *other.buffers(), other.plain]} == {"meta"}
    assert other.head.weight is other.embed.weight


def test_a_class_that_is_gone_is_named_with_its_place(tmp_path, monkeypatch):
    """A class that cannot be imported is a MismatchError: its name, where it was, what to do."""
    module = types.ModuleType("vanished_nets")
    module.__file__ = "/somewhere/vanished_nets.py"
    exec("from torch import nn\nclass Gone(nn.Linear):\n    pass\n", module.__dict__)
    monkeypatch.setitem(sys.modules, "vanished_nets", module)
    save_model(module.Gone(2, 2), tmp_path / "m")
    del module.Gone
    with pytest.raises(holdfast.MismatchError, match=r"vanished_nets\.Gone, in /somewhere.*no such name"):
        load_model(tmp_path / "m", trust=True)
    monkeypatch.delitem(sys.modules, "vanished_nets")
    with pytest.raises(holdfast.MismatchError, match=r"vanished_nets\.Gone, in /somewhere.*PYTHONPATH"):
        load_model(tmp_path / "m", trust=True)


def test_a_class_of_a_script_is_explained(tmp_path):
    """A class defined in the script that saved it is named with that script's path and the remedy."""
    script = tmp_path / "train.py"
    script.write_text(
        "import sys\nfrom torch import nn\nfrom holdfast.torch import save_model\n"
        "class Mine(nn.Linear):\n    pass\n"
        "save_model(Mine(2, 2), sys.argv[1])\n"
    )
    subprocess.run([sys.executable, script, tmp_path / "m"], check=True)
    with pytest.raises(holdfast.MismatchError, match=r"__main__\.Mine, in .*train\.py.*module of its own"):
        load_model(tmp_path / "m", trust=True)
    facts = json.loads((tmp_path / "m" / "structure.json").read_text())
    assert facts["class"] == "__main__.Mine"


class Picky(nn.Linear):
    broken = False

    def __setstate__(self, state):
        if Picky.broken:
            raise KeyError("width")
        super().__setstate__(state)


def test_a_class_that_changed_is_a_mismatch(tmp_path, monkeypatch):
    """When a class no longer takes the state that it gave, the error says so."""
    save_model(Picky(2, 2), tmp_path / "m")
    monkeypatch.setattr(Picky, "broken", True)
    with pytest.raises(holdfast.MismatchError, match=r"KeyError.*changed since"):
        load_model(tmp_path / "m", trust=True)


def test_an_ordinary_checkpoint_has_no_structure(tmp_path):
    """load_model on a checkpoint of holdfast.save is a FormatError that says how to open it."""
    holdfast.save(tmp_path / "c", {"model": nn.Linear(2, 2)})
    with pytest.raises(holdfast.FormatError, match=r"no structure.*holdfast\.restore"):
        load_model(tmp_path / "c", trust=True)


def test_other_things_are_no_models(tmp_path):
    """save_model of something else than a module is a UsageError."""
    with pytest.raises(holdfast.UsageError, match="not a dict"):
        save_model({"w": torch.ones(2)}, tmp_path / "m")


def test_modules_and_parameters_are_walked_as_torch_walks_them():
    """Names, order and repetitions of shared modules and tied parameters are those of torch's own generators."""
    shared = nn.Linear(3, 3)
    net = nn.ModuleDict(
        {
            "a": nn.Sequential(shared, nn.ReLU(), nn.ModuleDict({"x": shared, "y": nn.BatchNorm1d(3)})),
            "b": shared,
            "c": nn.Linear(3, 3, bias=False),
        }
    )
    net["c"].weight = shared.weight
    net["a"].register_module("nothing", None)
    assert modules.walk(net) == list(net.named_modules(remove_duplicate=False))
    found, expected = list(modules.parameters(net)), list(net.named_parameters(remove_duplicate=False))
    assert [name for name, _ in found] == [name for name, _ in expected]
    assert all(one is other for (_, one), (_, other) in zip(found, expected, strict=True))


def test_a_module_that_names_its_parameters_itself_is_asked():
    """A subclass with `named_parameters` of its own is saved under the names that it gives."""

    class Renaming(nn.Linear):
        def named_parameters(self, *args, **kwargs):
            for name, parameter in super().named_parameters(*args, **kwargs):
                yield f"own.{name}", parameter

    assert [name for name, _ in modules.parameters(Renaming(2, 2))] == ["own.weight", "own.bias"]
