"""What a launch may begin with: init, fresh, config, seeds; what refuses is named, and nothing changes by halves."""

import os
import subprocess
import sys
import textwrap

import pytest
import torch

import holdfast
from holdfast import MismatchError, Probe, UsageError


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "r")


class Two(torch.nn.Module):
    """Two layers, registered in one order or the other."""

    def __init__(self, *, turned=False, width=3):
        super().__init__()
        for name in "ba" if turned else "ab":
            setattr(self, name, torch.nn.Linear(width, width))

    def forward(self, x):
        return self.b(self.a(x))


def base(path, lr=0.1):
    """A run with a model and an Adam that has moments; returns both."""
    net = Two()
    opt = torch.optim.Adam(net.parameters(), lr=lr)
    with holdfast.Run(path) as run:
        run.track(model=net, optimizer=opt)
        for _ in run.steps(2):
            opt.zero_grad()
            net(torch.ones(1, 3)).square().sum().backward()
            opt.step()
    return net, opt


def start(path, net, opt, **options):
    """Enters the loop of a new run, and leaves it."""
    with holdfast.Run(path, **options) as run:
        run.track(model=net, optimizer=opt)
        for _ in run.steps(1):
            break
    return run


def scheduled(lr, t_max):
    net = torch.nn.Linear(2, 2)
    opt = torch.optim.SGD(net.parameters(), lr=lr)
    return {
        "model": net,
        "optimizer": opt,
        "scheduler": torch.optim.lr_scheduler.CosineAnnealingLR(opt, T_max=t_max),
    }


def train(path, goal, things, **options):
    """Epochs that only step the optimizer and its schedule; returns what stood at the first epoch's top."""
    seen = []
    with holdfast.Run(path, **options) as run:
        run.track(**things)
        for _ in run.epochs(goal):
            scheduler = things["scheduler"]
            seen.append((things["optimizer"].param_groups[0]["lr"], dict(scheduler.state_dict())))
            things["optimizer"].step()
            scheduler.step()
    return seen[0]


# -- fresh -----------------------------------------------------------------------------------------


def test_fresh_option_of_a_scheduler(path):
    """`fresh=["scheduler.T_max"]` takes that value from this launch, and all the rest from the checkpoint, once."""
    train(path, 2, scheduled(0.1, 10))
    with pytest.raises(UsageError, match=r"scheduler\.T_max: 10 when saved, 50 here"):
        train(path, 3, scheduled(0.1, 50))
    lr, state = train(path, 3, scheduled(0.1, 50), fresh=["scheduler.T_max"])
    assert (state["T_max"], state["last_epoch"], state["base_lrs"]) == (50, 2, [0.1])
    assert lr == pytest.approx(0.1 * (1 + torch.tensor(torch.pi * 2 / 10).cos().item()) / 2)
    _, state = train(path, 4, scheduled(0.1, 50))
    assert (state["T_max"], state["last_epoch"]) == (50, 3)


def test_fresh_options_of_optimizer_and_scheduler_together(path):
    """A new learning rate and the schedule's own copy of it are taken over, and the schedule goes on where it was."""

    def things(lr):
        found = scheduled(lr, 1)
        return {**found, "scheduler": torch.optim.lr_scheduler.LambdaLR(found["optimizer"], lambda e: 0.9**e)}

    train(path, 2, things(0.1))
    lr, state = train(path, 3, things(0.5), fresh=["optimizer.lr", "scheduler.base_lrs"])
    assert lr == 0.5
    assert (state["base_lrs"], state["last_epoch"]) == ([0.5], 2)


# -- init ------------------------------------------------------------------------------------------


def test_init_matches_the_optimizer_by_parameter_names(tmp_path, path):
    """`init` matches an optimizer's state by parameter names, though the modules are registered in another order."""
    base_path = str(tmp_path / "base")
    net, opt = base(base_path)
    other = Two(turned=True)
    its = torch.optim.Adam(other.parameters(), lr=0.1)
    start(path, other, its, init={"model": base_path, "optimizer": base_path})
    own = dict(net.named_parameters())
    assert not torch.equal(opt.state[net.a.weight]["exp_avg"], opt.state[net.b.weight]["exp_avg"])
    for name, parameter in other.named_parameters():
        assert torch.equal(parameter, own[name])
        assert torch.equal(its.state[parameter]["exp_avg"], opt.state[own[name]]["exp_avg"])


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("fault", ["model", "optimizer"])
def test_init_is_all_or_nothing(tmp_path, path, fault, apart):
    """When one part named in `init` does not fit, all of them stay as they were, also when they come from two runs."""
    sources = [str(tmp_path / name) for name in ("one", "two")]
    for source in sources:
        base(source)
    net = Two(width=4 if fault == "model" else 3)
    opt = torch.optim.Adam([net.a.weight] if fault == "optimizer" else net.parameters(), lr=0.1)
    before = [parameter.detach().clone() for parameter in net.parameters()]
    for init in (
        {"model": sources[0], "optimizer": sources[apart]},
        {"optimizer": sources[apart], "model": sources[0]},
    ):
        with pytest.raises(MismatchError):
            start(path, net, opt, init=init)
        assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
        assert not opt.state


def test_init_with_other_hyperparameters(tmp_path, path):
    """Hyperparameters other than the base's are refused with both values and `fresh=[…]`, which takes the new ones."""
    base_path = str(tmp_path / "base")
    _, opt = base(base_path, lr=0.5)
    init = {"model": base_path, "optimizer": base_path}
    net = Two()
    its = torch.optim.Adam(net.parameters(), lr=0.001)
    before = net.a.weight.detach().clone()
    with pytest.raises(UsageError) as caught:
        start(path, net, its, init=init)
    assert "optimizer.lr: 0.5 when saved, 0.001 here" in str(caught.value)
    assert "fresh=['optimizer.lr']" in str(caught.value)
    assert torch.equal(net.a.weight, before)
    start(path, net, its, init=init, fresh=["optimizer.lr"])
    assert its.param_groups[0]["lr"] == 0.001
    moments = [state["exp_avg"] for state in its.state.values()]
    assert all(torch.equal(a, b["exp_avg"]) for a, b in zip(moments, opt.state.values(), strict=True))


def test_init_of_a_part_that_is_fresh(tmp_path, path):
    """A part that is named whole in `fresh` keeps this launch's values, also when `init` names it."""
    base_path = str(tmp_path / "base")
    train(base_path, 2, scheduled(0.1, 10))
    things = scheduled(0.1, 50)
    init = dict.fromkeys(things, base_path)
    with pytest.raises(UsageError, match=r"fresh=\['scheduler'\]"):
        train(path, 1, scheduled(0.1, 50), init=init)
    _, state = train(path, 1, things, init=init, fresh=["scheduler"])
    assert (state["T_max"], state["last_epoch"]) == (50, 0)


# -- what is refused -------------------------------------------------------------------------------


def test_config_left_out_is_a_difference(path):
    """Leaving config out is a difference like any other, and `changed` names what may go."""

    def launch(**options):
        with holdfast.Run(path, **options) as run:
            run.resume()
            run.save(epoch=run.progress.epoch + 1)

    launch(config={"width": 1})
    with pytest.raises(UsageError, match=r"width: 1 when saved, \(none\) here") as caught:
        launch()
    assert "changed=['width']" in str(caught.value)
    launch(changed=["width"])
    launch()


class Counting(torch.nn.Module):
    """Counts its calls in a buffer, whatever its mode."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 2)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x):
        self.calls += 1
        return self.layer(x)


def test_a_probe_that_changes_a_buffer(path):
    """A probe whose forward changes a buffer in evaluation mode is refused with the buffer's name; nothing is saved."""
    net = Counting()
    run = holdfast.Run(path)
    run.track(model=net, probe=Probe(net, torch.ones(1, 4)))
    with pytest.raises(UsageError, match="The probe changed calls of the model"):
        list(run.epochs(1))
    assert net.training
    assert run.checkpoints == []
    run.close()


class Strict:
    """An object whose load_state_dict refuses."""

    def __init__(self, error=None):
        self.error = error

    def state_dict(self):
        return {"count": 3}

    def load_state_dict(self, state):
        if self.error is not None:
            raise self.error


@pytest.mark.parametrize("error", [ValueError("not mine"), KeyError("count"), RuntimeError("no")])
def test_an_object_that_refuses_its_state(path, error):
    """A load_state_dict that refuses is a `MismatchError` that names the part, with the object's own words."""
    with holdfast.Run(path) as run:
        run.track(meter=Strict())
        run.resume()
        run.save(epoch=1)
    run = holdfast.Run(path)
    run.track(meter=Strict(error))
    with pytest.raises(MismatchError) as caught:
        run.resume()
    for word in ("'meter'", "load_state_dict", str(error)):
        assert word in str(caught.value)
    assert caught.value.__cause__ is error
    run.close()


def test_a_scaler_that_is_enabled_later(path):
    """A GradScaler that was disabled when saved does not fit one that is enabled: the part is named."""
    for enabled in (False, True):
        run = holdfast.Run(path)
        run.track(scaler=torch.amp.GradScaler("cpu", enabled=enabled))
        if enabled:
            with pytest.raises(MismatchError, match="scaler"):
                run.resume()
        else:
            run.resume()
            run.save(epoch=1, wait=True)
        run.close()


# -- seeds -----------------------------------------------------------------------------------------


def test_seed_before_torch_is_imported(path):
    """`Run(seed=…)` before torch is imported seeds torch when the run is entered, and says so."""
    script = f"""
        import holdfast, sys
        run = holdfast.Run({path!r}, seed=3)
        assert "torch" not in sys.modules
        import torch
        torch.rand(5)
        run.resume()
        here = torch.rand(4)
        torch.manual_seed(3)
        print(torch.equal(here, torch.rand(4)))
        run.close()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.stdout.strip() == "True", done.stderr
    assert "torch was imported after Run(seed=…) and is seeded only now" in done.stderr
