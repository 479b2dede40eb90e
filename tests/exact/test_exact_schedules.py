"""Trainings with schedulers, straight against resumed, bit by bit."""

# ruff: noqa: E402

import pytest

torch = pytest.importorskip("torch")

import trainings as t
from torch.optim import lr_scheduler as s
from torch.utils.data import DataLoader

PER_STEP = {
    "step": lambda o: s.StepLR(o, 4, gamma=0.5),
    "one cycle": lambda o: s.OneCycleLR(o, max_lr=0.1, total_steps=20),
    "one cycle, three phases": lambda o: s.OneCycleLR(
        o, max_lr=0.1, total_steps=20, three_phase=True, anneal_strategy="linear"
    ),
    "multi step": lambda o: s.MultiStepLR(o, [3, 7, 11], gamma=0.3),
    "lambda": lambda o: s.LambdaLR(o, lambda step: 1 / (1 + step)),
    "multiplicative": lambda o: s.MultiplicativeLR(o, lambda _: 0.9),
    "sequential": lambda o: s.SequentialLR(
        o, [s.LinearLR(o, 0.1, total_iters=6), s.CosineAnnealingLR(o, 10)], milestones=[6]
    ),
    "chained": lambda o: s.ChainedScheduler([s.ConstantLR(o, 0.5, 5), s.ExponentialLR(o, 0.95)]),
    "restarts": lambda o: s.CosineAnnealingWarmRestarts(o, T_0=3, T_mult=2),
    "cyclic": lambda o: s.CyclicLR(o, base_lr=0.01, max_lr=0.1, step_size_up=3),
    "polynomial": lambda o: s.PolynomialLR(o, total_iters=12, power=2.0),
}
PER_EPOCH = {
    "step": PER_STEP["step"],
    "multi step": lambda o: s.MultiStepLR(o, [1, 2], gamma=0.3),
    "sequential": lambda o: s.SequentialLR(o, [s.LinearLR(o), s.CosineAnnealingLR(o, 10)], milestones=[1]),
    "restarts": PER_STEP["restarts"],
}


def training(make, *, per_step, tensor_lr=False):
    def train(launch):
        net = t.net()
        lr = torch.tensor(0.05) if tensor_lr else 0.05
        opt = torch.optim.AdamW(net.parameters(), lr=lr, foreach=not tensor_lr)
        sched = make(opt)
        loader = DataLoader(t.data(), 5, shuffle=True)
        run = launch.run()
        launch.track(model=net, optimizer=opt, scheduler=sched)
        for _ in run.epochs(3):
            for batch in run.batches(loader):
                t.step(net, opt, batch)
                if per_step:
                    sched.step()
                run.state["rates"] = [*run.state.get("rates", ()), float(sched.get_last_lr()[0])]
            if not per_step:
                sched.step()
        return run

    return train


@pytest.mark.parametrize("make", PER_STEP.values(), ids=PER_STEP.keys())
def test_per_step(make, assert_exact):
    """A scheduler that steps with every batch continues exactly, in the middle of an epoch as well."""
    assert_exact(training(make, per_step=True))


@pytest.mark.parametrize("make", PER_EPOCH.values(), ids=PER_EPOCH.keys())
def test_per_epoch(make, assert_exact):
    """A scheduler that steps with every epoch continues exactly and never steps twice for one."""
    assert_exact(training(make, per_step=False))


@pytest.mark.parametrize("name", ["one cycle", "sequential", "step"])
def test_tensor_rate(name, assert_exact):
    """A learning rate that is a tensor, which the scheduler writes into, continues exactly."""
    assert_exact(training(PER_STEP[name], per_step=True, tensor_lr=True))


def test_plateau(assert_exact):
    """ReduceLROnPlateau continues with its best value and its count of bad epochs."""

    def train(launch):
        net = t.net()
        opt = torch.optim.SGD(net.parameters(), lr=0.2, momentum=0.9)
        sched = s.ReduceLROnPlateau(opt, factor=0.5, patience=0, cooldown=1, threshold=0.05)
        loader = DataLoader(t.data(), 5, shuffle=True)
        run = launch.run(keep={"best": 1, "metric": "loss", "mode": "min"})
        launch.track(model=net, optimizer=opt, scheduler=sched)
        for _ in run.epochs(6):
            run.state["loss"] = 0.0
            for batch in run.batches(loader):
                run.state["loss"] += t.step(net, opt, batch)
            sched.step(run.state["loss"])
            run.log(loss=run.state["loss"])
        return run

    assert_exact(train)
