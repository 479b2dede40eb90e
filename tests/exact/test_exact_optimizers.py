"""Trainings with every kind of optimizer, straight against resumed, bit by bit."""

# ruff: noqa: E402

import pytest

torch = pytest.importorskip("torch")

import trainings as t
from torch import nn
from torch.utils.data import DataLoader

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, lr=0.02),
    "adam foreach": lambda p: torch.optim.Adam(p, lr=0.02, foreach=True),
    "adam fused": lambda p: torch.optim.Adam(p, lr=0.02, fused=True),
    "adamw amsgrad": lambda p: torch.optim.AdamW(p, lr=0.02, amsgrad=True),
    "adamw tensor lr": lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.02), foreach=False),
    "adamw fused tensor lr": lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.02), fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05),
    "adadelta": lambda p: torch.optim.Adadelta(p),
    "adamax": lambda p: torch.optim.Adamax(p),
    "nadam": lambda p: torch.optim.NAdam(p),
    "radam": lambda p: torch.optim.RAdam(p),
    "asgd": lambda p: torch.optim.ASGD(p, lr=0.05, t0=3),
    "rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_optimizer(make, assert_exact):
    """A resumed training has the parameters and the optimizer state of an uninterrupted one."""

    def training(launch):
        net = t.net()
        opt = make(net.parameters())
        loader = DataLoader(t.data(), 5, shuffle=True)
        run = launch.run()
        launch.track(model=net, optimizer=opt)
        for _ in run.epochs(2):
            for batch in run.batches(loader):
                t.step(net, opt, batch)
        return run

    assert_exact(training)


def test_lbfgs(assert_exact):
    """LBFGS, whose steps call the model many times and whose state is lists of tensors, is exact."""

    def training(launch):
        net = t.net()
        opt = torch.optim.LBFGS(net.parameters(), lr=0.5, max_iter=4, history_size=3)
        loader = DataLoader(t.data(), 8, shuffle=True)
        run = launch.run()
        launch.track(model=net, optimizer=opt)
        for _ in run.epochs(3):
            for batch in run.batches(loader):

                def closure(batch=batch):
                    opt.zero_grad()
                    loss = t.loss_of(net, batch)
                    loss.backward()
                    return loss

                opt.step(closure)
        return run

    assert_exact(training)


def test_groups(assert_exact):
    """Parameter groups with options of their own, one of them frozen for a while, are exact."""

    def training(launch):
        net = t.net()
        opt = torch.optim.AdamW(
            [
                {"params": net[0].parameters(), "lr": 0.01, "weight_decay": 0.1},
                {"params": [net[2].weight], "lr": 0.05},
                {"params": [net[2].bias]},
            ],
            lr=0.02,
        )
        loader = DataLoader(t.data(), 5, shuffle=True)
        run = launch.run()
        launch.track(model=net, optimizer=opt)
        for epoch in run.epochs(3):
            net[2].bias.requires_grad_(epoch != 0)
            for batch in run.batches(loader):
                t.step(net, opt, batch)
            opt.param_groups[1]["lr"] *= 0.7
        return run

    assert_exact(training)


def gan(launch):
    """Two networks with an optimizer each; the generator's steps only every second batch."""
    make, judge = nn.Linear(3, 6), t.net()
    opt_g, opt_d = (torch.optim.Adam(m.parameters(), lr=0.01, betas=(0.5, 0.9)) for m in (make, judge))
    loader = DataLoader(t.data(), 5, shuffle=True, drop_last=True)
    run = launch.run()
    launch.track(generator=make, judge=judge, opt_g=opt_g, opt_d=opt_d)
    for _ in run.epochs(2):
        for number, (x, _) in run.batches(loader).numbered():
            opt_d.zero_grad()
            loss = judge(make(torch.randn(5, 3)).detach()).mean() - judge(x).mean()
            loss.backward()
            opt_d.step()
            if number % 2:
                opt_g.zero_grad()
                (-judge(make(torch.randn(5, 3))).mean()).backward()
                opt_g.step()
    return run


def test_gan(assert_exact):
    """Two networks that train each other, with two optimizers, are exact."""
    assert_exact(gan)


def test_one_optimizer_waits(assert_exact):
    """Gradients that one optimizer still gathers are kept while another steps in every batch."""

    def training(launch):
        fast, slow = t.net(), t.net()
        opt_fast, opt_slow = (torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.5) for m in (fast, slow))
        loader = DataLoader(t.data(), 5, shuffle=True)
        run = launch.run()
        launch.track(fast=fast, slow=slow, opt_fast=opt_fast, opt_slow=opt_slow)
        for _ in run.epochs(2):
            for batch in run.batches(loader):
                t.step(fast, opt_fast, batch)
                t.loss_of(slow, batch).backward()
                if run.progress.step % 3 == 2:
                    opt_slow.step()
                    opt_slow.zero_grad()
        return run

    assert_exact(training)


def test_one_optimizer_of_two_models(assert_exact):
    """An optimizer over the parameters of two models, one of which the other shares layers with, is exact."""

    def training(launch):
        body, head = nn.Linear(6, 4), nn.Linear(4, 1)
        opt = torch.optim.Adam([*head.parameters(), *body.parameters()], lr=0.02)
        whole = nn.Sequential(body, nn.Tanh(), head)
        loader = DataLoader(t.data(), 5, shuffle=True)
        run = launch.run()
        launch.track(head=head, body=body, optimizer=opt, whole=whole)
        for _ in run.epochs(2):
            for batch in run.batches(loader):
                t.step(whole, opt, batch)
        return run

    assert_exact(training)


def test_optimizer_without_model(assert_exact):
    """Loose parameters live in run.state, their optimizer is tracked without a model."""

    def training(launch):
        run = launch.run()
        weight = nn.Parameter(torch.randn(6, 1))
        opt = torch.optim.Adam([weight], lr=0.02)
        launch.track(optimizer=opt)
        loader = DataLoader(t.data(), 5, shuffle=True)
        for _ in run.epochs(2):
            for x, y in run.batches(loader):
                with torch.no_grad():
                    weight.copy_(run.state.get("weight", torch.ones(6, 1)))
                opt.zero_grad()
                (x @ weight - y).square().mean().backward()
                opt.step()
                run.state["weight"] = weight.detach().clone()
        return run

    assert_exact(training)


class Halved(torch.optim.SGD):
    """Keeps fp32 masters of bf16 parameters in its state."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if "master" not in state:
                    state["master"] = p.detach().float().clone()
                    state["moment"] = torch.zeros_like(state["master"])
                state["moment"].mul_(0.9).add_(p.grad.float())
                state["master"].add_(state["moment"], alpha=-group["lr"])
                p.copy_(state["master"])


def test_bf16_with_fp32_state(assert_exact):
    """fp32 state of bf16 parameters keeps its dtype and its bits."""

    def training(launch):
        net = t.net().bfloat16()
        opt = Halved(net.parameters(), lr=0.01)
        loader = DataLoader(t.data(), 5, shuffle=True)
        run = launch.run()
        launch.track(model=net, optimizer=opt)
        for _ in run.epochs(2):
            for x, y in run.batches(loader):
                t.step(net, opt, (x.bfloat16(), y.bfloat16()))
        return run

    assert_exact(training)


def test_scaler(assert_exact):
    """A GradScaler whose scale grows, and shrinks at an overflow, is exact."""

    def training(launch):
        net = t.net()
        opt = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
        scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=3)
        loader = DataLoader(t.data(), 5, shuffle=True)
        run = launch.run()
        launch.track(model=net, optimizer=opt, scaler=scaler)
        for _ in run.epochs(3):
            for batch in run.batches(loader):
                opt.zero_grad()
                with torch.autocast("cpu", torch.bfloat16):
                    loss = t.loss_of(net, batch)
                factor = float("inf") if run.progress.step == 7 else 1.0
                scaler.scale(loss * factor).backward()
                scaler.step(opt)
                scaler.update()
        return run

    assert_exact(training)
