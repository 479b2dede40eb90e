"""Files of torch.save and safetensors: what comes in, what goes out, and that trainings continue across."""

import argparse
import collections
import errno
import os
import sys
import types

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

import holdfast
from holdfast import files
from holdfast.exchange import export_file, import_file
from holdfast.store import catalog

EPOCHS, HALF = 6, 3


def make(seed: int = 0):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 3))
    opt = torch.optim.Adam(
        [
            {"params": [p for n, p in net.named_parameters() if n.endswith("bias")], "weight_decay": 0.0},
            {"params": [p for n, p in net.named_parameters() if n.endswith("weight")], "weight_decay": 0.01},
        ],
        lr=0.01,
    )
    sched = torch.optim.lr_scheduler.MultiStepLR(opt, [2, 4], gamma=0.5)
    return net, opt, sched


def data():
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(4, 16, 6, generator=generator)
    return list(zip(x, torch.randint(0, 3, (4, 16), generator=generator), strict=True))


def one_epoch(net, opt, sched) -> None:
    for x, y in data():
        opt.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        opt.step()
    sched.step()


def train(net, opt, sched, start: int, stop: int) -> None:
    for _ in range(start, stop):
        one_epoch(net, opt, sched)


def assert_same(one, other) -> None:
    """Two (net, opt, sched) are equal to the bit."""
    for (name, a), (_, b) in zip(one[0].state_dict().items(), other[0].state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    a, b = one[1].state_dict(), other[1].state_dict()
    assert a["param_groups"] == b["param_groups"]
    assert a["state"].keys() == b["state"].keys()
    for index, fields in a["state"].items():
        for field, value in fields.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(b["state"][index][field])), field
    assert one[2].state_dict() == other[2].state_dict()


@pytest.fixture
def said(monkeypatch):
    lines = []
    monkeypatch.setattr("holdfast.log._Stderr.emit", lambda _, record: lines.append(record.getMessage()))
    return lines


@pytest.fixture
def guide(tmp_path):
    """A file as the PyTorch guides write it, after half of a training; and the whole training."""
    things = make()
    train(*things, 0, HALF)
    path = tmp_path / "old.pth"
    content = {
        "epoch": HALF,
        "state_dict": things[0].state_dict(),
        "optimizer": things[1].state_dict(),
        "scheduler": things[2].state_dict(),
        "best_acc1": torch.tensor(71.5),
    }
    torch.save(content, path)
    content = torch.load(path, weights_only=True)  # not the live tensors, which go on
    train(*things, HALF, EPOCHS)
    return types.SimpleNamespace(path=path, end=things, content=content)


# -- trainings that continue across ------------------------------------------------------------


def test_a_training_begun_with_torch_save_continues_under_holdfast_to_the_bit(tmp_path, guide):
    """A file of the guide's form continues under Holdfast as under plain torch, bit for bit."""
    ckpt = import_file(guide.path, tmp_path / "run")
    assert (ckpt.progress.epoch, ckpt.progress.step) == (HALF, 0)
    net, opt, sched = make(seed=99)
    seen = []
    with holdfast.Run(tmp_path / "run") as run:
        run.track(model=net, optimizer=opt, scheduler=sched)
        for epoch in run.epochs(EPOCHS):
            seen.append(epoch)
            for x, y in run.batches(data()):
                opt.zero_grad()
                nn.functional.cross_entropy(net(x), y).backward()
                opt.step()
            sched.step()
        assert run.state["best_acc1"] == torch.tensor(71.5)
    assert seen == list(range(HALF, EPOCHS))
    assert_same((net, opt, sched), guide.end)


def test_a_training_begun_under_holdfast_continues_with_plain_torch_to_the_bit(tmp_path, guide):
    """An export is read by torch.load(weights_only=True), and a plain script goes on from it, bit for bit."""
    things = make()
    with holdfast.Run(tmp_path / "run") as run:
        run.track(model=things[0], optimizer=things[1], scheduler=things[2])
        for _ in run.epochs(HALF):
            one_epoch(*things)
            run.log(val_accuracy=0.5)
    export_file(tmp_path / "run", tmp_path / "x.pth")
    content = torch.load(tmp_path / "x.pth", weights_only=True)
    assert content["epoch"] == HALF
    assert content["metrics"] == {"val_accuracy": 0.5}
    assert [group["params"] for group in content["optimizer"]["param_groups"]] == [[0, 1, 2], [3, 4, 5]]
    assert sorted(content["optimizer"]["state"]) == [0, 1, 2, 3, 4, 5]
    net, opt, sched = make(seed=99)
    net.load_state_dict(content["state_dict"])
    opt.load_state_dict(content["optimizer"])
    sched.load_state_dict(content["scheduler"])
    train(net, opt, sched, content["epoch"], EPOCHS)
    assert_same((net, opt, sched), guide.end)


def test_what_was_imported_goes_out_again_unchanged(tmp_path, guide):
    """Import, then export, gives the values of the file that came in."""
    import_file(guide.path, tmp_path / "run")
    export_file(tmp_path / "run", tmp_path / "x.pt")
    content = torch.load(tmp_path / "x.pt", weights_only=True)
    for name, tensor in guide.content["state_dict"].items():
        assert torch.equal(content["state_dict"][name], tensor)
    assert content["optimizer"]["param_groups"] == guide.content["optimizer"]["param_groups"]
    assert content["scheduler"] == guide.content["scheduler"]
    assert content["state"] == {"best_acc1": torch.tensor(71.5)}


def test_an_export_comes_in_again_as_it_was(tmp_path):
    """Export, then import, keeps progress, metrics and run.state: the new run ranks by the old metric."""
    net, opt, sched = make()
    with holdfast.Run(tmp_path / "one") as run:
        run.track(model=net, optimizer=opt, scheduler=sched)
        run.state["seen"] = [1, 2]
        for _ in run.steps(5):
            run.log(acc=0.75)
    export_file(tmp_path / "one", tmp_path / "x.pth")
    ckpt = import_file(tmp_path / "x.pth", tmp_path / "two")
    before = holdfast.open(tmp_path / "one")
    assert ckpt.progress.key() == before.progress.key() == (0, 5, 0)
    assert ckpt.metrics == before.metrics == {"acc": 0.75}
    assert set(ckpt.parts) == set(before.parts) - {"random"}
    assert ckpt.load(["state"]) == before.load(["state"])
    run = holdfast.Run(tmp_path / "two", keep=holdfast.Keep(best=1, metric="acc", mode="max"))
    assert run.best.name == ckpt.name


def test_the_values_of_an_imported_optimizer_win_over_those_of_the_script(tmp_path, guide):
    """An imported checkpoint declares nothing: a script with another learning rate takes the file's."""
    import_file(guide.path, tmp_path / "run")
    net, opt, sched = make()
    opt.param_groups[0]["lr"] = 123.0
    with holdfast.Run(tmp_path / "run") as run:
        run.track(model=net, optimizer=opt, scheduler=sched)
        run.resume()
    assert opt.param_groups[0]["lr"] == guide.content["optimizer"]["param_groups"][0]["lr"]


def test_an_imported_optimizer_that_does_not_fit_is_refused(tmp_path, guide):
    """Index-keyed state for another number of parameters is a MismatchError, and nothing is changed."""
    import_file(guide.path, tmp_path / "run")
    net, _, sched = make()
    opt = torch.optim.Adam(net.parameters())
    before = {name: value.clone() for name, value in net.state_dict().items()}
    run = holdfast.Run(tmp_path / "run")
    run.track(model=net, optimizer=opt, scheduler=sched)
    with pytest.raises(holdfast.MismatchError, match="2 groups"):
        run.resume()
    run.close()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


# -- what is recognised ----------------------------------------------------------------------


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "net"])
@pytest.mark.parametrize("optimizer", ["optimizer", "optimizer_state_dict"])
def test_common_names_become_model_and_optimizer(tmp_path, key, optimizer):
    """The usual spellings of a dictionary's keys give the parts model and optimizer."""
    net, opt, sched = make()
    train(net, opt, sched, 0, 1)
    content = {optimizer: opt.state_dict(), key: net.state_dict(), "lr_scheduler": sched.state_dict()}
    torch.save({**content, "epoch": 1, "global_step": 4, "loss": 0.25}, tmp_path / "x.pt")
    ckpt = import_file(tmp_path / "x.pt", tmp_path / "run")
    assert sorted(ckpt.parts) == ["model", "optimizer", "scheduler", "state"]
    assert (ckpt.progress.epoch, ckpt.progress.step) == (1, 4)
    assert ckpt.load(["state"])["state"] == {"loss": 0.25}
    assert "completed epochs" in ckpt.note
    other, _, _ = make(seed=5)
    ckpt.restore({"model": other})
    assert all(
        torch.equal(a, b) for a, b in zip(other.state_dict().values(), net.state_dict().values(), strict=True)
    )


def test_several_models_and_optimizers_become_parts_under_their_own_names(tmp_path):
    """Two networks with two optimizers come in as four parts, named after their keys."""
    one, two = nn.Linear(2, 2), nn.Linear(3, 3)
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.1) for net in (one, two)]
    content = {
        "netG_state_dict": one.state_dict(),
        "netD": two.state_dict(),
        "optimizerG": optimizers[0].state_dict(),
        "optimizerD": optimizers[1].state_dict(),
    }
    torch.save(content, tmp_path / "gan.pt")
    ckpt = import_file(tmp_path / "gan.pt", tmp_path / "run")
    assert sorted(ckpt.parts) == ["net_d", "net_g", "optimizer_d", "optimizer_g"]


def test_lightning_lists_of_one_become_one_optimizer_and_one_scheduler(tmp_path):
    """A Lightning file's lists of optimizer and scheduler states come in as parts."""
    net, opt, sched = make()
    content = {
        "epoch": 2,
        "global_step": 9,
        "state_dict": net.state_dict(),
        "optimizer_states": [opt.state_dict()],
        "lr_schedulers": [sched.state_dict()],
        "pytorch-lightning_version": "2.0",
    }
    torch.save(content, tmp_path / "last.ckpt")
    ckpt = import_file(tmp_path / "last.ckpt", tmp_path / "run")
    assert {"model", "optimizer", "scheduler"} <= set(ckpt.parts)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_bare_state_dict_comes_in_as_the_model(tmp_path, suffix):
    """A bare state_dict, as torch or safetensors file, becomes the part model, every dtype exact."""
    tensors = {
        "a.weight": torch.randn(3, 4),
        "b": torch.randn(5).bfloat16(),
        "c": torch.arange(3),
        "empty": torch.zeros(0, 2),
        "scalar": torch.tensor(3.5, dtype=torch.float64),
    }
    path = tmp_path / f"x.{suffix}"
    if suffix == "pth":
        torch.save(collections.OrderedDict(tensors), path)
    else:
        safetensors.torch.save_file(tensors, path)
    ckpt = import_file(path, tmp_path / "run")
    assert ckpt.parts == ["model"]
    loaded = ckpt.load(arrays="torch")["model"]
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)
    assert ckpt.verify() == []


def test_prefixes_of_wrappers_are_removed_only_when_every_name_has_them(tmp_path):
    """`module.` and `_orig_mod.` go if all names begin so, and stay if one does not."""
    torch.save({"module._orig_mod.w": torch.ones(2), "module._orig_mod.b": torch.ones(1)}, tmp_path / "a.pth")
    torch.save({"module.w": torch.ones(2), "n_averaged": torch.ones(1)}, tmp_path / "b.pth")
    one = import_file(tmp_path / "a.pth", tmp_path / "a")
    assert set(one.load()["model"]) == {"w", "b"}
    assert "module._orig_mod." in one.note
    assert set(import_file(tmp_path / "b.pth", tmp_path / "b").load()["model"]) == {"module.w", "n_averaged"}


def test_weights_with_nan_are_marked(tmp_path, said):
    """NaN in an imported weight marks the checkpoint, loudly; an infinite mask does not."""
    tensors = {
        "a.weight": torch.tensor([1.0, float("nan")]),
        "mask": torch.tensor(float("-inf")),
        "n.weight": torch.ones(2, dtype=torch.int8),
    }
    torch.save(tensors, tmp_path / "x.pth")
    assert import_file(tmp_path / "x.pth", tmp_path / "run").manifest.nan == ["model/a.weight"]
    assert any("NaN" in line for line in said)


def test_extra_state_of_modules_comes_in(tmp_path):
    """Entries called _extra_state are kept beside the tensors and reach the module."""

    class Counting(nn.Linear):
        count = 0

        def get_extra_state(self):
            return {"count": self.count}

        def set_extra_state(self, state):
            self.count = state["count"]

    net, other = Counting(2, 2), Counting(2, 2)
    net.count = 7
    torch.save(net.state_dict(), tmp_path / "x.pth")
    import_file(tmp_path / "x.pth", tmp_path / "run").restore({"model": other})
    assert other.count == 7
    assert torch.equal(other.weight, net.weight)


def test_numpy_numbers_and_arguments_need_no_trust(tmp_path):
    """NumPy scalars and arrays and argparse namespaces, common beside weights, come in without trust."""
    content = {
        "model": nn.Linear(2, 2).state_dict(),
        "best": np.float64(0.5),
        "curve": np.arange(3.0),
        "args": argparse.Namespace(lr=0.1, name="x"),
    }
    torch.save(content, tmp_path / "x.pth")
    state = import_file(tmp_path / "x.pth", tmp_path / "run").load()["state"]
    assert state["best"] == 0.5
    assert state["curve"].tolist() == [0.0, 1.0, 2.0]
    assert state["args"] == {"lr": 0.1, "name": "x"}


def test_the_legacy_format_of_torch_comes_in(tmp_path):
    """A file in torch's format before ZIP archives is read."""
    net = nn.Linear(2, 2)
    torch.save(net.state_dict(), tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    ckpt = import_file(tmp_path / "x.pth", tmp_path / "run")
    assert torch.equal(ckpt.load()["model"]["weight"], net.weight)


# -- trust -------------------------------------------------------------------------------------


ran: list[str] = []


def tattle(word):
    ran.append(word)


class Payload:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return tattle, ("ran",)


@pytest.mark.parametrize("archive", [True, False])
def test_a_file_that_would_run_code_is_refused_by_name_and_runs_nothing(tmp_path, archive):
    """Without trust no code of a file runs; the error names it, and no run is created."""
    ran.clear()
    path = tmp_path / "x.pth"
    torch.save(
        {"model": nn.Linear(2, 2).state_dict(), "x": Payload()}, path, _use_new_zipfile_serialization=archive
    )
    with pytest.raises(holdfast.UntrustedError, match=r"tattle.*trust=True"):
        import_file(path, tmp_path / "run")
    assert ran == []
    assert not (tmp_path / "run").exists()


def test_with_trust_what_a_checkpoint_cannot_hold_is_left_out_and_said(tmp_path, said):
    """Objects without a state are left out of the import, with a warning and a line on the card."""
    torch.save({"model": nn.Linear(2, 2).state_dict(), "odd": {1: Odd()}}, tmp_path / "x.pth")
    ckpt = import_file(tmp_path / "x.pth", tmp_path / "run", trust=True)
    assert ckpt.parts == ["model"]
    assert "Left out: 'odd'" in ckpt.note
    assert any("Odd" in line for line in said)


class Odd:
    pass


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 2)

    def forward(self, x):
        return self.inner(x)


def test_an_entire_model_comes_in_with_trust_only(tmp_path):
    """torch.save(net) needs trust, whose error names the class; then its weights are the part model."""
    net = Net()
    torch.save(net, tmp_path / "net.pt")
    with pytest.raises(holdfast.UntrustedError, match="Net"):
        import_file(tmp_path / "net.pt", tmp_path / "run")
    ckpt = import_file(tmp_path / "net.pt", tmp_path / "run", trust=True)
    other = Net()
    ckpt.restore({"model": other})
    assert torch.equal(other.inner.weight, net.inner.weight)


def test_a_class_that_is_gone_is_named(tmp_path, monkeypatch):
    """An entire model whose module cannot be imported is a MismatchError that says what to do."""
    module = types.ModuleType("vanished_module")
    exec("from torch import nn\nclass Gone(nn.Linear):\n    pass\n", module.__dict__)
    monkeypatch.setitem(sys.modules, "vanished_module", module)
    torch.save(module.Gone(2, 2), tmp_path / "net.pt")
    monkeypatch.delitem(sys.modules, "vanished_module")
    with pytest.raises(holdfast.MismatchError, match=r"vanished_module.*PYTHONPATH"):
        import_file(tmp_path / "net.pt", tmp_path / "run", trust=True)


# -- refusals ----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html>404</html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5"),
        (b"hello, world", "begins with"),
        (b"\x80\x04hello, world", "no file that torch.save wrote"),
        (b"PK\x03\x04" + bytes(100), "cut or damaged"),
    ],
)
def test_files_of_other_kinds_are_refused_with_what_they_are(tmp_path, content, text):
    """What is no torch file is a FormatError that says what it looks like; no run is created."""
    path = tmp_path / "x.pth"
    path.write_bytes(content)
    with pytest.raises(holdfast.FormatError, match=text):
        import_file(path, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_directories_and_missing_files_are_refused(tmp_path):
    """A directory is a FormatError, a missing file a NotFoundError."""
    with pytest.raises(holdfast.FormatError, match="directory"):
        import_file(tmp_path, tmp_path / "run")
    with pytest.raises(holdfast.NotFoundError, match="no file"):
        import_file(tmp_path / "none.pth", tmp_path / "run")


@pytest.mark.parametrize("cut", [10, 500, 1200, -30])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_truncated_files_are_refused(tmp_path, suffix, cut):
    """A file that was cut anywhere is a FormatError."""
    state = nn.Linear(20, 20).state_dict()
    path = tmp_path / f"x.{suffix}"
    torch.save(state, path) if suffix == "pth" else safetensors.torch.save_file(state, path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(holdfast.FormatError):
        import_file(path, tmp_path / "run")


def test_a_flipped_bit_in_a_torch_archive_is_found(tmp_path):
    """A changed byte, which torch.load returns as a wrong weight, is a DamagedError at import."""
    path = tmp_path / "x.pth"
    torch.save({"w": torch.ones(1000)}, path)
    data = bytearray(path.read_bytes())
    data[data.find(torch.ones(10).numpy().tobytes())] ^= 1
    path.write_bytes(data)
    assert not torch.equal(torch.load(path)["w"], torch.ones(1000))
    with pytest.raises(holdfast.DamagedError, match="data/0"):
        import_file(path, tmp_path / "run")


def test_archives_without_checksums_are_taken(tmp_path):
    """torch can write archives without checksums; those come in."""
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"w": torch.ones(10)}, tmp_path / "x.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    ckpt = import_file(tmp_path / "x.pth", tmp_path / "run")
    assert torch.equal(ckpt.load()["model"]["w"], torch.ones(10))


@pytest.mark.parametrize(
    "content", [[1, 2], 5, {}, {"epoch": 3, "loss": 0.1}, {"rng": {"cpu": torch.ones(2)}}]
)
def test_a_file_without_a_model_is_refused_with_its_entries(tmp_path, content):
    """Without a model or an optimizer there is nothing to continue from: a FormatError lists the keys."""
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(holdfast.FormatError) as caught:
        import_file(tmp_path / "x.pth", tmp_path / "run")
    assert all(repr(key) in str(caught.value) for key in (content if isinstance(content, dict) else ()))


def test_a_run_with_checkpoints_takes_no_import(tmp_path, guide):
    """An import into a run that has checkpoints is a UsageError, and the run stays as it was."""
    import_file(guide.path, tmp_path / "run")
    before = sorted(os.listdir(tmp_path / "run"))
    with pytest.raises(holdfast.UsageError, match="already"):
        import_file(guide.path, tmp_path / "run")
    assert sorted(os.listdir(tmp_path / "run")) == before


def test_a_run_that_another_process_holds_takes_no_import(tmp_path, guide):
    """The lease is respected: while a run is held, an import is a LeaseError."""
    run = holdfast.Run(tmp_path / "run")
    run.resume()
    with pytest.raises(holdfast.LeaseError):
        import_file(guide.path, tmp_path / "run")
    run.close()
    import_file(guide.path, tmp_path / "run")
    assert len(catalog.scan(str(tmp_path / "run"))) == 1


# -- export ------------------------------------------------------------------------------------


def test_a_safetensors_export_holds_every_name_and_opens_with_the_ordinary_library(tmp_path):
    """The safetensors library reads the export; tied weights are there under each name."""
    net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4))
    net[1].weight = net[0].weight
    holdfast.save(tmp_path / "ck", {"model": net})
    export_file(tmp_path / "ck", tmp_path / "x.safetensors")
    loaded = safetensors.torch.load_file(tmp_path / "x.safetensors")
    assert loaded.keys() == net.state_dict().keys()
    assert all(torch.equal(loaded[name], value) for name, value in net.state_dict().items())
    assert sorted(os.listdir(tmp_path)) == ["ck", "x.safetensors"]


def test_one_part_is_exported_alone(tmp_path):
    """part= gives a bare state: the torch file of a module is what load_state_dict takes."""
    one, two = nn.Linear(2, 2), nn.Linear(3, 3)
    holdfast.save(tmp_path / "ck", {"actor": one, "critic": two})
    export_file(tmp_path / "ck", tmp_path / "x.pth", part="critic")
    nn.Linear(3, 3).load_state_dict(torch.load(tmp_path / "x.pth", weights_only=True))
    export_file(tmp_path / "ck", tmp_path / "x.safetensors", part="actor")
    assert safetensors.torch.load_file(tmp_path / "x.safetensors")["weight"].shape == (2, 2)
    with pytest.raises(holdfast.UsageError, match="several models"):
        export_file(tmp_path / "ck", tmp_path / "y.safetensors")
    with pytest.raises(holdfast.NotFoundError, match="critic"):
        export_file(tmp_path / "ck", tmp_path / "y.pth", part="critik")


def test_what_torch_does_not_read_without_trust_is_made_plain_or_left_out(tmp_path, said):
    """NumPy scalars become numbers, tuples stay, and what has no plain form is left out, loudly."""
    state = {
        "a": np.float32(0.5),
        "t": (1, "x"),
        "odd": slice(1, 2),
        "q": collections.deque([1]),
        "n": np.arange(2),
    }
    holdfast.save(tmp_path / "ck", {"model": nn.Linear(2, 2), "extras": state})
    export_file(tmp_path / "ck", tmp_path / "x.pth")
    content = torch.load(tmp_path / "x.pth", weights_only=True)["extras"]
    assert content["a"] == 0.5
    assert content["t"] == (1, "x")
    assert content["q"] == [1]
    assert content["n"].tolist() == [0, 1]
    assert "odd" not in content
    assert any("odd" in line for line in said)


def test_an_export_never_replaces_a_file_unasked(tmp_path):
    """An existing target is a UsageError and stays; overwrite=True replaces it whole."""
    holdfast.save(tmp_path / "ck", {"model": nn.Linear(2, 2)})
    for name in ("x.pth", "x.safetensors"):
        target = tmp_path / name
        target.write_bytes(b"precious")
        with pytest.raises(holdfast.UsageError, match="exists already"):
            export_file(tmp_path / "ck", target)
        assert target.read_bytes() == b"precious"
        export_file(tmp_path / "ck", target, overwrite=True)
        assert target.stat().st_size > 100


@pytest.mark.parametrize("name", ["x.h5", "x", "none/x.pth"])
def test_targets_that_cannot_be_are_refused(tmp_path, name):
    """An unknown suffix and a missing directory are UsageErrors; nothing is created."""
    holdfast.save(tmp_path / "ck", {"model": nn.Linear(2, 2)})
    with pytest.raises(holdfast.UsageError):
        export_file(tmp_path / "ck", tmp_path / name)
    assert os.listdir(tmp_path) == ["ck"]


@pytest.mark.parametrize("name", ["x.pth", "x.safetensors"])
def test_a_full_disk_leaves_no_export(tmp_path, name, monkeypatch):
    """When the storage refuses, the export is a StorageError and nothing is left of it."""
    holdfast.save(tmp_path / "ck", {"model": nn.Linear(200, 200)})

    def refuse(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.system, "write", refuse)
    monkeypatch.setattr(files.system, "pwrite", refuse)
    with pytest.raises(holdfast.StorageError) as caught:
        export_file(tmp_path / "ck", tmp_path / name)
    assert caught.value.errno == errno.ENOSPC
    assert os.listdir(tmp_path) == ["ck"]


def test_an_export_of_a_damaged_checkpoint_is_refused(tmp_path):
    """Every byte is checked on the way out: damage is a DamagedError, and no file appears."""
    holdfast.save(tmp_path / "ck", {"model": nn.Linear(20, 20)})
    payload = tmp_path / "ck" / "model.safetensors"
    data = bytearray(payload.read_bytes())
    data[-5] ^= 1
    payload.write_bytes(data)
    for name in ("x.pth", "x.safetensors"):
        with pytest.raises(holdfast.DamagedError):
            export_file(tmp_path / "ck", tmp_path / name)
    assert os.listdir(tmp_path) == ["ck"]


def test_importing_the_exchange_imports_no_torch():
    """`holdfast.exchange` itself loads without torch, as the command line needs it."""
    import subprocess

    code = "import sys, holdfast.exchange; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
