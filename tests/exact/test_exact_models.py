"""Models with state beside parameters, wrapped, tied or laid out otherwise; resumed bit by bit."""

# ruff: noqa: E402

import pytest

torch = pytest.importorskip("torch")

import trainings as t
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn
from torch.utils.data import DataLoader, TensorDataset

import holdfast
import holdfast.torch


def shuffled(data=None):
    return DataLoader(data or t.data(), 5, shuffle=True)


def images():
    own = torch.Generator().manual_seed(6)
    return TensorDataset(torch.rand(14, 3, 6, 6, generator=own), torch.rand(14, 1, generator=own))


def convolutions(*extra):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), *extra, nn.Flatten(), nn.Linear(64, 1))


def training(make, data=None, **parts):
    """Trains `make()`; further parts are made from the model."""

    def train(launch):
        net = make()
        opt = torch.optim.AdamW(net.parameters(), lr=0.01)
        others = {name: build(net) for name, build in parts.items()}
        loader = shuffled(data() if data else None)
        run = launch.run()
        launch.track(model=net, optimizer=opt, **others)
        for _ in run.epochs(2):
            net.train()
            for batch in run.batches(loader):
                t.step(net, opt, batch)
                for other in others.values():
                    if hasattr(other, "update_parameters"):
                        other.update_parameters(net)
            net.eval()
            run.log(loss=t.loss_of(net, next(iter(DataLoader(loader.dataset, 4)))).item())
        return run

    return train


class Tied(nn.Module):
    """An input and an output layer with one weight, and a buffer that no checkpoint holds."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 6)
        self.last.weight = self.first.weight
        self.register_buffer("scale", torch.tensor(0.5), persistent=False)

    def forward(self, x):
        return (self.last(torch.tanh(self.first(x))) * self.scale).sum(1, keepdim=True)


class Counting(nn.Module):
    """Keeps a plain value beside its parameters, with get_extra_state and set_extra_state."""

    def __init__(self):
        super().__init__()
        self.inner, self.calls = nn.Linear(6, 1), 0

    def forward(self, x):
        self.calls += self.training
        return self.inner(x) * (1 + 0.01 * self.calls)

    def get_extra_state(self):
        return {"calls": self.calls}

    def set_extra_state(self, state):
        self.calls = state["calls"]


MODELS = {
    "dropout": training(lambda: t.net(dropout=0.5)),
    "batch norm": training(convolutions, images),
    "channels last": training(
        lambda: convolutions(nn.Dropout2d(0.3)).to(memory_format=torch.channels_last), images
    ),
    "tied": training(Tied),
    "extra state": training(Counting),
    "double": training(
        lambda: t.net().double(), lambda: TensorDataset(*(x.double() for x in t.data().tensors))
    ),
    "average": training(
        convolutions, images, ema=lambda net: AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    ),
    "average with buffers": training(
        convolutions, images, average=lambda net: AveragedModel(net, use_buffers=True)
    ),
    "spectral norm": training(
        lambda: nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(6, 4)), nn.Linear(4, 1))
    ),
    "recurrent": training(
        lambda: nn.Sequential(nn.Unflatten(1, (3, 2)), nn.GRU(2, 3, dropout=0.2, num_layers=2), Last())
    ),
    "data parallel": training(lambda: nn.DataParallel(t.net(dropout=0.2))),
}


class Last(nn.Module):
    def forward(self, x):
        return x[0][:, -1].sum(1, keepdim=True)


@pytest.mark.parametrize("train", MODELS.values(), ids=MODELS.keys())
def test_model(train, assert_exact):
    """A resumed model has the parameters and the buffers of one that was never interrupted."""
    assert_exact(train)


def test_batch_norm_of_an_average(assert_exact):
    """update_bn at the end of an epoch, which goes through the loader once more, is exact."""

    def train(launch):
        net = convolutions()
        average = AveragedModel(net)
        opt = torch.optim.SGD(net.parameters(), lr=0.05)
        loader = shuffled(images())
        run = launch.run()
        launch.track(model=net, optimizer=opt, average=average)
        for _ in run.epochs(2):
            for batch in run.batches(loader):
                t.step(net, opt, batch)
            average.update_parameters(net)
            update_bn(loader, average)
        return run

    assert_exact(train)


def test_average_keeps_its_names(place):
    """An AveragedModel is no wrapper: its arrays keep `module.`, and it restores into one of its kind."""
    run = t.launch(MODELS["average"], place)
    ckpt = holdfast.open(place)
    names = set(ckpt.load(["ema"])["ema"])
    assert {"n_averaged", "module.0.weight", "module.1.running_mean"} <= names
    other = AveragedModel(convolutions())
    ckpt.restore({"ema": other})
    assert t.flatten({"ema": other.state_dict()}).items() <= run.items()


class DistributedDataParallel(nn.Module):
    """Named like torch's, and not it."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return self.module(x)


def compiled(net):
    return torch.compile(net, backend="eager")


@pytest.mark.parametrize("wrap", [nn.DataParallel, compiled], ids=["data parallel", "compiled"])
def test_wrapped_at_one_launch_only(wrap, place):
    """A training may be wrapped at one launch and not at another: names are those without wrappers."""

    def train(launch):
        net = t.net(dropout=0.2)
        used = wrap(net) if launch.number % 2 == 0 else net
        opt = torch.optim.AdamW(used.parameters(), lr=0.01)
        loader = shuffled()
        run = launch.run()
        run.track(model=used, optimizer=opt)
        launch.things |= {"model": net, "optimizer": opt}
        for _ in run.epochs(3):
            for batch in run.batches(loader):
                t.step(used, opt, batch)
                launch.alive()
        return run

    straight = t.launch(train, f"{place}/straight")
    every = holdfast.Every(steps=2)
    assert t.launch(train, f"{place}/parts", 0, die_at=5, every=every) is None
    assert t.launch(train, f"{place}/parts", 1, die_at=9, every=every) is None
    assert t.differences(straight, t.launch(train, f"{place}/parts", 2)) == []
    assert set(holdfast.open(f"{place}/parts").load(["model"])["model"]) == set(t.net(0.2).state_dict())


def test_name_of_a_wrapper_only(place):
    """A module that is only named like a wrapper keeps the names of its child."""
    t.launch(training(lambda: DistributedDataParallel(t.net())), place)
    assert "module.0.weight" in holdfast.open(place).load(["model"])["model"]


def test_unfrozen_later(assert_exact):
    """Layers that the loop unfreezes at some epoch stay unfrozen, frozen ones frozen."""

    def train(launch):
        net = t.net(dropout=0.3)
        net[0].requires_grad_(False)
        opt = torch.optim.AdamW(net.parameters(), lr=0.01)
        loader = shuffled()
        run = launch.run()
        launch.track(model=net, optimizer=opt)
        for epoch in run.epochs(4):
            if epoch == 1:
                net[0].requires_grad_(True)
                net[3].bias.requires_grad_(False)
            for batch in run.batches(loader):
                t.step(net, opt, batch)
        return run

    assert_exact(train, cuts=list)


def test_evaluation_mode_forgotten(assert_exact):
    """A script that never leaves evaluation mode after its first epoch does the same when it is resumed."""

    def train(launch):
        net = nn.Sequential(nn.BatchNorm1d(6), t.net(dropout=0.5))
        opt = torch.optim.AdamW(net.parameters(), lr=0.01)
        loader = shuffled()
        run = launch.run()
        launch.track(model=net, optimizer=opt)
        for _ in run.epochs(3):
            for batch in run.batches(loader):
                t.step(net, opt, batch)
            net[1].eval()
        return run

    assert_exact(train)


def test_trainable(assert_exact):
    """A part that stores only what trains is exact on a base that is loaded anew."""

    def train(launch):
        torch.manual_seed(3)
        base = t.net(dropout=0.3)
        base[0].requires_grad_(False)
        t.seed(launch.number)
        opt = torch.optim.Adam([p for p in base.parameters() if p.requires_grad], lr=0.01)
        loader = shuffled()
        run = launch.run()
        run.track(model=holdfast.torch.trainable(base), optimizer=opt)
        launch.things |= {"model": base, "optimizer": opt}
        for _ in run.epochs(2):
            for batch in run.batches(loader):
                t.step(base, opt, batch)
        return run

    assert_exact(train)
