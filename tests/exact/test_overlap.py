"""Trainings with overlap=True, whose late copies are slowed down, against the same ones without it, bit by bit."""

# ruff: noqa: E402

import contextlib
import copy
import errno
import json
import os
import shutil
import signal
import threading
import time

import pytest

torch = pytest.importorskip("torch")

import trainings as t
from torch import nn
from torch.optim.lr_scheduler import ExponentialLR
from torch.utils.data import DataLoader

import holdfast
from holdfast import Every, Keep, StorageError, files
from holdfast.payload import pending
from holdfast.payload.filling import Filling
from holdfast.run import _open_runs

SLOW = 0.03  # seconds by which a late copy comes too late, if nobody waits for it


@pytest.fixture
def slowly(monkeypatch):
    """Lets the forward and backward of these small models, and a step, pass before a late array is copied."""
    fill = Filling.fill

    def slow(self, file, number, target, late=None):
        if late:
            time.sleep(SLOW)
        fill(self, file, number, target, late)

    monkeypatch.setattr(Filling, "fill", slow)


def saves(path):
    """The save events of a run's history."""
    with open(f"{path}/history.jsonl", encoding="utf-8") as file:
        events = [json.loads(line) for line in file]
    return [event for event in events if event.get("event") == "save"]


def overlapped(path):
    """How many saves of a run copied behind the training."""
    return sum(event.get("overlapped", False) for event in saves(path))


def contents(path):
    """Progress → the bytes of all payload files, for each checkpoint of a run."""
    found = {}
    for _, name in t.checkpoints(path):
        progress = holdfast.open(f"{path}/{name}").progress
        here = found[(progress.epoch, progress.step, progress.batch)] = {}
        for file in sorted(os.listdir(f"{path}/{name}")):
            if file.endswith(".safetensors"):
                with open(f"{path}/{name}/{file}", "rb") as opened:
                    here[file] = opened.read()
    return found


@pytest.fixture
def assert_same(place, slowly, said):
    """Trains with and without overlap: all checkpoints have the same bytes, and both ends are equal, a resumed one too."""

    def check(training, *, at_least=3, missing=0, **options):
        plain, path = f"{place}/plain", f"{place}/overlapped"
        straight = t.launch(training, plain, thorough=True, **options)
        said.clear()
        end = t.launch(training, path, thorough=True, overlap=True, **options)
        assert t.differences(straight, end) == []
        expected, found = contents(plain), contents(path)
        assert [place for place, files in found.items() if files != expected[place]] == []
        assert len(expected) - len(found) == missing
        assert overlapped(path) >= at_least
        events = [event for event in saves(path) if event.get("overlapped")] or saves(path)
        name = events[len(events) // 2]["name"]
        number = next(number for number, found in t.checkpoints(path) if found == name)
        t.copy_until(path, f"{place}/cut", number)
        assert (
            t.differences(straight, t.launch(training, f"{place}/cut", 1000, overlap=True, **options)) == []
        )
        for directory in (plain, path, f"{place}/cut"):
            shutil.rmtree(directory)
        return [line for line in said if " overlap" in line]

    return check


def ordinary(net=t.net, optimizer=lambda p: torch.optim.AdamW(p, lr=0.02), top=None, before_step=None):
    """A training of two epochs; `top` and `before_step` get the model, the number of the step, and a notebook."""

    def training(launch):
        model = net()
        opt = optimizer(model.parameters())
        loader = DataLoader(t.data(), 4, shuffle=True)
        run = launch.run()
        launch.track(model=model, optimizer=opt)
        notes = {}
        for _ in run.epochs(2):
            for batch in run.batches(loader):
                if top is not None:
                    top(model, run.progress.step, notes)
                opt.zero_grad()
                t.loss_of(model, batch).backward()
                if before_step is not None:
                    before_step(model, run.progress.step, notes)
                opt.step()
        return run

    return training


# -- what overlaps -------------------------------------------------------------------------------------

WAYS = {"foreach": {"foreach": True}, "one by one": {"foreach": False}, "fused": {"fused": True}}
OPTIMIZERS = {
    "sgd": lambda p, **way: torch.optim.SGD(p, lr=0.1, **way),
    "momentum": lambda p, **way: torch.optim.SGD(p, lr=0.1, momentum=0.9, **way),
    "adam": lambda p, **way: torch.optim.Adam(p, lr=0.02, amsgrad=True, **way),
    "adamw": lambda p, **way: torch.optim.AdamW(p, lr=0.02, **way),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_optimizer(make, way, assert_same):
    """What is copied behind the training is what stood there at the boundary, whatever way the optimizer steps."""
    assert assert_same(ordinary(optimizer=lambda p: make(p, **way))) == []


def test_lbfgs(assert_same):
    """LBFGS, which writes parameters many times within one step and makes its state anew, is copied before."""

    def training(launch):
        net = t.net()
        opt = torch.optim.LBFGS(net.parameters(), lr=0.5, max_iter=4, history_size=2)
        run = launch.run()
        launch.track(model=net, optimizer=opt)
        for _ in run.epochs(3):
            for batch in run.batches(DataLoader(t.data(), 4)):

                def closure(batch=batch):
                    opt.zero_grad()
                    loss = t.loss_of(net, batch)
                    loss.backward()
                    return loss

                opt.step(closure)
        return run

    assert assert_same(training) == []


def test_two_optimizers(assert_same):
    """With two optimizers of two models, the first one that steps waits for the arrays of both."""

    def training(launch):
        make, judge = nn.Linear(3, 6), t.net()
        opt_g, opt_d = (torch.optim.Adam(m.parameters(), lr=0.01) for m in (make, judge))
        run = launch.run()
        launch.track(generator=make, judge=judge, opt_g=opt_g, opt_d=opt_d)
        for _ in run.epochs(2):
            for number, (x, _) in run.batches(DataLoader(t.data(), 4, drop_last=True)).numbered():
                opt_d.zero_grad()
                (judge(make(torch.randn(4, 3)).detach()).mean() - judge(x).mean()).backward()
                opt_d.step()
                if number % 2:
                    opt_g.zero_grad()
                    (-judge(make(torch.randn(4, 3))).mean()).backward()
                    opt_g.step()
        return run

    assert assert_same(training) == []


def test_an_untracked_optimizer(assert_same):
    """An optimizer that is not tracked, and moves tracked parameters, waits as well."""

    def training(launch):
        net = t.net()
        opt, other = torch.optim.Adam(net.parameters()), torch.optim.SGD(net.parameters(), lr=0.01)
        run = launch.run()
        launch.track(model=net, optimizer=opt)
        for _ in run.epochs(2):
            for number, batch in run.batches(DataLoader(t.data(), 4)).numbered():
                t.step(net, other, batch)
                if number % 2:
                    t.step(net, opt, batch)
        return run

    assert assert_same(training) == []


def test_accumulation(assert_same):
    """Boundaries with no step between them neither tear a copy nor cost the overlap."""

    def training(launch):
        net = t.net()
        opt = torch.optim.Adam(net.parameters(), lr=0.02)
        run = launch.run()
        launch.track(model=net, optimizer=opt)
        for _ in run.epochs(3):
            for number, batch in run.batches(DataLoader(t.data(), 4)).numbered():
                t.loss_of(net, batch).backward()
                if number % 3 == 2:
                    opt.step()
                    opt.zero_grad()
        return run

    assert assert_same(training) == []


def test_skipped_steps(assert_same):
    """Steps that a GradScaler leaves out after infinite gradients neither tear a copy nor cost the overlap."""

    def training(launch):
        net = t.net()
        opt = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=2)
        run = launch.run()
        launch.track(model=net, optimizer=opt, scaler=scaler)
        for _ in run.epochs(2):
            for batch in run.batches(DataLoader(t.data(), 3)):
                opt.zero_grad()
                loss = t.loss_of(net, batch) * (float("inf") if run.progress.step in (1, 2, 6) else 1.0)
                scaler.scale(loss).backward()
                scaler.step(opt)
                scaler.update()
        return run

    assert assert_same(training) == []


def test_tensor_lr(assert_same):
    """A learning rate that is a tensor, which the scheduler writes to at the top of an iteration, is copied at once."""

    def training(launch):
        net = t.net()
        opt = torch.optim.AdamW(net.parameters(), lr=torch.tensor(0.02))
        sched = ExponentialLR(opt, 0.8)
        run = launch.run()
        launch.track(model=net, optimizer=opt, scheduler=sched)
        for _ in run.epochs(2):
            for batch in run.batches(DataLoader(t.data(), 4)):
                if run.progress.step:
                    sched.step()
                t.step(net, opt, batch)
        return run

    assert assert_same(training) == []


def test_a_shared_tensor(assert_same):
    """A tensor of a parameter group that also stands in an optimizer's state is copied at once."""

    def training(launch):
        net = t.net()
        opt = torch.optim.AdamW(net.parameters(), lr=torch.tensor(0.02))
        run = launch.run()
        launch.track(model=net, optimizer=opt)
        for _ in run.epochs(2):
            for batch in run.batches(DataLoader(t.data(), 4)):
                opt.param_groups[0]["lr"].mul_(0.9)
                t.step(net, opt, batch)
                opt.state[net[0].weight]["lr"] = opt.param_groups[0]["lr"]
        return run

    assert assert_same(training) == []


def norm():
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 1), nn.BatchNorm1d(1))


def test_buffers(assert_same):
    """The statistics of batch norm, which the next forward changes, are copied at once."""
    assert assert_same(ordinary(norm)) == []


def test_frozen_parameters(assert_same):
    """Parameters that are frozen, though an optimizer has them, may be written to by anything at any time."""

    def net():
        model = t.net()
        model[0].weight.requires_grad_(False)
        return model

    def top(model, _step, _notes):
        with torch.no_grad():
            model[0].weight += 0.1  # a low-rank change that is merged into its base, say

    assert assert_same(ordinary(net, top=top)) == []


def test_what_is_in_the_state_too(assert_same):
    """A parameter that also stands in run.state is copied at once."""

    def training(launch):
        net = t.net()
        opt = torch.optim.SGD(net.parameters(), lr=0.1)
        run = launch.run()
        launch.track(model=net, optimizer=opt)
        run.state["shared"] = net[0].weight.detach()
        for _ in run.epochs(2):
            for batch in run.batches(DataLoader(t.data(), 4)):
                run.state["shared"] = net[0].weight.detach()
                run.state["shared"].mul_(1.5)
                t.step(net, opt, batch)
        return run

    assert assert_same(training) == []


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)
        self.outer.weight = self.inner.weight
        self.last = nn.Linear(6, 1)

    def forward(self, x):
        return self.last(self.outer(self.inner(x).tanh()))


class Pictures(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution, self.last = nn.Conv2d(2, 3, 2), nn.Linear(6, 1)

    def forward(self, x):
        return self.last(self.convolution(torch.cat([x, x], 1).reshape(-1, 2, 2, 3)).flatten(1).tanh())


MODELS = {"tied weights": Tied, "channels last": lambda: Pictures().to(memory_format=torch.channels_last)}


@pytest.mark.parametrize("net", MODELS.values(), ids=MODELS)
def test_model(net, assert_same):
    """Weights that two layers share, and those that do not lie in C order, are copied as they stood at the boundary."""
    assert assert_same(ordinary(net)) == []


class Halved(torch.optim.SGD):
    """Keeps fp32 masters of bf16 parameters in its state."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if "master" not in state:
                    state["master"] = p.detach().float().clone()
                state["master"].add_(p.grad.float(), alpha=-group["lr"])
                p.copy_(state["master"])


def test_bf16(assert_same):
    """Parameters in bf16 with their masters in the state of an optimizer of the user's own are copied late."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = t.net().to(torch.bfloat16)

        def forward(self, x):
            return self.inner(x.to(torch.bfloat16)).float()

    assert assert_same(ordinary(Net, lambda p: Halved(p, lr=0.1))) == []


def test_steps(assert_same):
    """Loops of steps overlap as those of batches do."""

    def training(launch):
        net = t.net()
        opt = torch.optim.Adam(net.parameters(), lr=0.02)
        x, y = t.data().tensors
        run = launch.run(every=Every(steps=1))
        launch.track(model=net, optimizer=opt)
        for _ in run.steps(9):
            t.step(net, opt, (x, y))
        return run

    assert assert_same(training, every=Every(steps=1)) == []


def test_compiled_steps(assert_same):
    """A compiled step waits as any other."""

    def training(launch):
        torch.compiler.reset()
        net = t.net()
        opt = torch.optim.SGD(net.parameters(), lr=0.1, foreach=True)
        compiled = torch.compile(lambda: opt.step(), backend="eager")
        run = launch.run()
        launch.track(model=net, optimizer=opt)
        for _ in run.epochs(1):
            for batch in run.batches(DataLoader(t.data(), 4)):
                opt.zero_grad()
                t.loss_of(net, batch).backward()
                compiled()
        return run

    assert assert_same(training) == []


@pytest.mark.parametrize("room", [0, 40 << 20, None])
def test_large_arrays(room, assert_same):
    """Arrays over many blocks are exact with all the staging memory that they want, with some, and with none."""

    def net():
        return nn.Sequential(
            nn.Linear(6, 3000), nn.BatchNorm1d(3000), nn.Linear(3000, 2300), nn.Linear(2300, 1)
        )

    def training(launch):
        model = net()
        opt = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        run = launch.run()
        launch.track(model=model, optimizer=opt)
        for _ in run.epochs(1):
            for batch in run.batches(DataLoader(t.data(), 4)):
                t.step(model, opt, batch)
        return run

    assert assert_same(training, staging=room) == []


# -- what is written to between a boundary and a step -----------------------------------------------------


def test_leaving_the_batches(assert_same):
    """After a break out of the batches parameters may be written to."""

    def training(launch):
        net = t.net()
        opt = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        run = launch.run()
        launch.track(model=net, optimizer=opt)
        for _ in run.epochs(3):
            for number, batch in run.batches(DataLoader(t.data(), 4)).numbered():
                if number == 3:
                    break
                t.step(net, opt, batch)
            with torch.no_grad():
                net[0].weight.zero_()
        return run

    assert assert_same(training) == []


class Unsized:
    """A loader that does not tell how many batches it has."""

    def __iter__(self):
        return iter(list(DataLoader(t.data(), 4)))


def test_an_end_that_could_not_be_known(assert_same):
    """After the last batch of a loader without a length parameters may be written to."""

    def training(launch):
        net = t.net()
        opt = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        run = launch.run()
        launch.track(model=net, optimizer=opt)
        for _ in run.epochs(2):
            for batch in run.batches(Unsized()):
                t.step(net, opt, batch)
            with torch.no_grad():
                net[0].weight.zero_()
        return run

    assert assert_same(training) == []


def test_restoring_in_the_body(place, assert_same):
    """A checkpoint that is restored in the body of the loop waits, and is not taken for a stranger's writing."""
    torch.manual_seed(3)
    holdfast.save(f"{place}/start", {"model": t.net()})
    start = holdfast.open(f"{place}/start")

    def top(model, step, _notes):
        if step in (1, 4, 7):
            start.restore({"model": model})

    assert assert_same(ordinary(top=top)) == []


@pytest.mark.parametrize("loop", ["batches", "steps"])
@pytest.mark.parametrize("error", [t.Died, SystemExit, KeyboardInterrupt])
def test_an_exception_in_the_body(loop, error, place, slowly):
    """What happens after an exception has left the loop does not get into the checkpoint that was being copied."""
    weights = {}

    def items(run):
        if loop == "steps":
            yield from ((step, t.data()[:4]) for step in run.steps(9))
        else:
            yield from (
                (run.progress.step, batch)
                for _ in run.epochs(2)
                for batch in run.batches(DataLoader(t.data(), 4))
            )

    def training(launch):
        net = t.net()
        opt = torch.optim.Adam(net.parameters(), lr=0.02)
        run = launch.run()
        launch.track(model=net, optimizer=opt)
        with contextlib.suppress(error):
            for step, batch in items(run):
                if step == 4:
                    weights["at the boundary"] = net[0].weight.detach().clone()
                    if error is KeyboardInterrupt:
                        signal.raise_signal(signal.SIGINT)  # asks for a save at the next boundary
                        signal.raise_signal(signal.SIGINT)  # at once
                    raise error
                t.step(net, opt, batch)
        with torch.no_grad():
            net[0].weight.zero_()
        return run

    t.launch(training, f"{place}/r", thorough=True, overlap=True, every=Every(steps=1))
    assert saves(f"{place}/r")[-1]["overlapped"]
    newest = holdfast.open(f"{place}/r")
    assert newest.progress.step == 4
    assert torch.equal(newest.load(parts=["model"])["model"]["0.weight"], weights["at the boundary"])


def test_sigterm(place, slowly):
    """A signal to end is obeyed at the boundary with a save that copies at once; the resumed end is the same."""
    straight = t.launch(ordinary(), f"{place}/straight")

    def top(_model, step, _notes):
        if step == 4:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(SystemExit) as ended:
        t.launch(ordinary(top=top), f"{place}/r", thorough=True, overlap=True)
    assert ended.value.code == 75
    assert [event.get("overlapped", False) for event in saves(f"{place}/r")][-2:] == [True, False]
    assert t.differences(straight, t.launch(ordinary(), f"{place}/r", overlap=True)) == []


def test_interrupted_while_it_waits(place, monkeypatch):
    """A Ctrl-C while a step waits ends the training before that step; what was being saved is whole."""
    gate = threading.Event()
    fill, before = Filling.fill, {}

    def slow(self, file, number, target, late=None):
        if late:
            gate.wait(20)
        fill(self, file, number, target, late)

    def before_step(model, step, notes):
        if notes.setdefault("last", 3) == step:
            before["weight"] = model[0].weight.detach().clone()
            before["model"] = model
            monkeypatch.setattr(pending, "settle", interrupted)

    def interrupted(real=pending.settle):
        monkeypatch.setattr(pending, "settle", real)
        timers = [threading.Timer(0.2 * n, os.kill, [os.getpid(), signal.SIGINT]) for n in (1, 2)]
        timers.append(threading.Timer(0.8, gate.set))
        for timer in timers:
            timer.start()
        real()

    # From the save at step 3 on, which is the third and overlaps.
    def top(_model, step, _notes):
        if step == 2:
            monkeypatch.setattr(Filling, "fill", slow)

    with pytest.raises(KeyboardInterrupt):
        t.launch(ordinary(top=top, before_step=before_step), f"{place}/r", thorough=True, overlap=True)
    assert torch.equal(before["model"][0].weight, before["weight"])
    for run in list(_open_runs.values()):
        run.close()  # what is in flight is finished, and succeeds
    newest = holdfast.open(f"{place}/r")
    assert newest.progress.step == 3
    assert torch.equal(newest.load(parts=["model"])["model"]["0.weight"], before["weight"])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupted_end_of_the_loop(place, monkeypatch):
    """Where Ctrl-C ends even the wait at the end of the loop, the save that could be torn fails, and says so."""
    gate, fill, caught = threading.Event(), Filling.fill, []

    def slow(self, file, number, target, late=None):
        if late:
            assert gate.wait(20)
        fill(self, file, number, target, late)

    def training(launch):
        net = t.net()
        opt = torch.optim.SGD(net.parameters(), lr=0.1)
        run = launch.run()
        launch.track(model=net, optimizer=opt)
        try:
            for _ in run.epochs(1):
                for batch in run.batches(DataLoader(t.data(), 4)):
                    if run.progress.step == 2:
                        t.step(net, opt, batch)
                        monkeypatch.setattr(Filling, "fill", slow)
                        continue
                    if run.progress.step == 3:
                        for number in (1, 2, 3, 4):
                            threading.Timer(0.3 * number, os.kill, [os.getpid(), signal.SIGINT]).start()
                    t.step(net, opt, batch)
        except KeyboardInterrupt as error:
            caught.append(error)
        with contextlib.suppress(KeyboardInterrupt):
            time.sleep(2)  # for those that come too late
        with torch.no_grad():
            net[0].weight.zero_()
        gate.set()
        with pytest.raises(holdfast.UsageError, match="given up"):
            run.close()
        return run

    with contextlib.suppress(AttributeError):
        t.launch(training, f"{place}/r", thorough=True, overlap=True)
    assert caught
    assert holdfast.open(f"{place}/r").progress.step == 2


def test_a_forked_child_does_not_wait(place, monkeypatch):
    """A process forked while arrays are being copied trains without waiting for a copy that it does not see."""
    fill, codes = Filling.fill, []

    def slow(self, file, number, target, late=None):
        if late:
            time.sleep(10 * SLOW)
        fill(self, file, number, target, late)

    monkeypatch.setattr(Filling, "fill", slow)

    def top(_model, step, _notes):
        if step not in (3, 4):
            return
        assert pending._under_way
        other = nn.Linear(2, 2)
        opt = torch.optim.SGD(other.parameters(), lr=0.1)
        child = os.fork()
        if not child:
            with contextlib.suppress(BaseException):
                other(torch.ones(1, 2)).sum().backward()
                opt.step()
                os._exit(0)
            os._exit(1)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

    t.launch(ordinary(top=top), f"{place}/r", thorough=True, overlap=True)
    assert codes == [0, 0]


# -- what is noticed ---------------------------------------------------------------------------------------


def clamp(model, _step, _notes):
    with torch.no_grad():
        for p in model.parameters():
            p.clamp_(-0.2, 0.2)


def swap(model, _step, notes):
    """Averaged weights take the place of the present ones for an evaluation before the step, and stay."""
    own = notes.setdefault("average", copy.deepcopy(model))
    with torch.no_grad():
        for one, other in zip(model.parameters(), own.parameters(), strict=True):
            other.lerp_(one, 0.5)
            one.copy_(other)


def merge(model, _step, _notes):
    """A low-rank change is merged into a weight that trains, and taken out again but for rounding."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        change = torch.rand(5, 2, generator=generator) @ torch.rand(2, 6, generator=generator)
        model[0].weight += change
        model[0].weight -= change


def is_off(lines):
    return [line for line in lines if "overlap is off" in line and "0.weight" in line]


STRANGERS = {
    "a clamp at the top": {"top": clamp},
    "averaged weights before the step": {"before_step": swap},
    "a merge at the top": {"top": merge},
}


@pytest.mark.parametrize("places", STRANGERS.values(), ids=STRANGERS)
def test_strangers_are_noticed(places, place, slowly, said):
    """Something else that writes parameters before each step switches overlap off, with one notice that names them."""
    plain, path = f"{place}/plain", f"{place}/overlapped"
    straight = t.launch(ordinary(**places), plain, thorough=True)
    assert t.differences(straight, t.launch(ordinary(**places), path, thorough=True, overlap=True)) == []
    assert overlapped(path) == 0
    assert len(is_off(said)) == 1
    assert contents(path) == contents(plain)


def test_steps_by_hand_are_noticed(place, slowly, said):
    """Steps that no optimizer announces switch overlap off at the next boundary."""

    def training(launch):
        net = t.net()
        opt = torch.optim.SGD(net.parameters(), lr=0.1)
        run = launch.run()
        launch.track(model=net, optimizer=opt)
        for _ in run.epochs(2):
            for batch in run.batches(DataLoader(t.data(), 4)):
                net.zero_grad()
                t.loss_of(net, batch).backward()
                with torch.no_grad():
                    for p in net.parameters():
                        p -= 0.1 * p.grad
        return run

    t.launch(training, f"{place}/plain", thorough=True)
    t.launch(training, f"{place}/r", thorough=True, overlap=True)
    assert overlapped(f"{place}/r") == 0
    assert len(is_off(said)) == 1
    assert contents(f"{place}/r") == contents(f"{place}/plain")


def test_a_rare_stranger_is_noticed(assert_same):
    """A torn copy is never published: overlap goes off with one notice, and the next boundary saves; nothing is raised."""

    def top(model, step, notes):
        if step == 8:
            clamp(model, step, notes)

    lines = assert_same(ordinary(top=top), missing=1)
    assert len(is_off(lines)) == 1
    assert "was not published" in lines[0]


def test_no_due_save_is_lost_with_a_torn_copy(place, slowly, said):
    """The boundary after a torn copy saves, although nothing else is due there."""

    def training(launch):
        net = t.net()
        opt = torch.optim.AdamW(net.parameters(), lr=0.02)
        run = launch.run()
        launch.track(model=net, optimizer=opt)
        for _ in run.epochs(1):
            for batch in run.batches(DataLoader(t.data(40), 4)):
                if run.progress.step == 6:
                    clamp(net, 6, {})
                t.step(net, opt, batch)
                while run._training.need_saver().busy:
                    time.sleep(SLOW / 10)
        return run

    t.launch(training, f"{place}/r", overlap=True, every=Every(steps=2), keep=Keep(last=100))
    steps = [place.step for place in t.places(f"{place}/r").values()]
    assert steps == [2, 4, 7, 9, 10]
    assert len(is_off(said)) == 1


def test_a_new_best_is_copied_at_once(place, slowly):
    """A save for a new best does not overlap: its metrics are of this step, and a torn copy would lose them."""

    def training(launch):
        model = t.net()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
        run = launch.run(
            every=Every(steps=3), keep={"last": 100, "best": 1, "metric": "score", "mode": "max"}
        )
        launch.track(model=model, optimizer=optimizer)
        for _ in run.epochs(1):
            for number, batch in run.batches(DataLoader(t.data(), 2)).numbered():
                t.step(model, optimizer, batch)
                run.log(score=number // 8)
                while run._training.need_saver().busy:  # so that no due save is postponed
                    time.sleep(SLOW / 10)
        return run

    t.launch(training, f"{place}/r", overlap=True)
    best = [event for event in saves(f"{place}/r") if event["reason"] == "new best"]
    assert len(best) == 2
    assert not any(event.get("overlapped") for event in best)
    assert overlapped(f"{place}/r")


def test_a_save_that_was_asked_for_overlaps(place, slowly):
    """`run.save()` between two batches is copied behind the next step, and holds what stood there when it was asked for."""

    def training(launch):
        model = t.net()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
        run = launch.run(every=Every(steps=1000))
        launch.track(model=model, optimizer=optimizer)
        for _ in run.epochs(1):
            for number, batch in run.batches(DataLoader(t.data(), 2)).numbered():
                t.step(model, optimizer, batch)
                if number % 3 == 2:
                    run.save()
        return run

    t.launch(training, f"{place}/plain")
    t.launch(training, f"{place}/r", overlap=True)
    asked = [event for event in saves(f"{place}/r") if event["reason"] == "asked for"]
    assert [bool(event.get("overlapped")) for event in asked[1:]] == [True] * (len(asked) - 1)
    assert len(asked) > 2
    assert contents(f"{place}/r") == contents(f"{place}/plain")


def test_arrays_that_change_their_place_are_tried_anew(place, slowly):
    """Parameters that were made anew are not trusted on the account of those before them."""
    events = []

    def top(model, step, _notes):
        if step == 4:
            for p in model.parameters():
                p.data = p.data.clone()

    t.launch(ordinary(top=top), f"{place}/r", thorough=True, overlap=True)
    events = {
        holdfast.open(f"{place}/r/{e['name']}").progress.step: e.get("overlapped", False)
        for e in saves(f"{place}/r")
    }
    assert [events[step] for step in (1, 2, 3, 4)] == [False, True, True, True]
    assert events[5] is False
    assert events[7] is True


# -- nothing to overlap ------------------------------------------------------------------------------------


def test_graphed_optimizers(place, slowly, said):
    """Optimizers that may step inside a CUDA graph, where nothing can wait, have their arrays copied at once."""

    def make(parameters):
        opt = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
        opt.param_groups[0]["capturable"] = True
        return opt

    t.launch(ordinary(optimizer=make), f"{place}/r", thorough=True, overlap=True)
    assert overlapped(f"{place}/r") == 0
    assert len([line for line in said if "nothing to overlap" in line]) == 1


def test_nothing_to_overlap(place, said):
    """overlap=True without a tracked optimizer says so once, and saves as without it."""

    def training(launch):
        net = t.net()
        opt = torch.optim.SGD(net.parameters(), lr=0.1)
        run = launch.run()
        launch.track(model=net)
        for _ in run.epochs(2):
            for batch in run.batches(DataLoader(t.data(), 4)):
                t.step(net, opt, batch)
        return run

    t.launch(training, f"{place}/r", thorough=True, overlap=True)
    assert overlapped(f"{place}/r") == 0
    assert len([line for line in said if "nothing to overlap" in line]) == 1


def test_only_between_two_batches(place, slowly):
    """The saves before the first batch, after the last, at the end of an epoch and at the goal copy at once."""
    t.launch(ordinary(), f"{place}/r", thorough=True, overlap=True)
    for event in saves(f"{place}/r"):
        progress = holdfast.open(f"{place}/r/{event['name']}").progress
        between = progress.batch > 0 and not progress.exhausted
        assert event.get("overlapped", False) == (between and progress.step > 2) or progress.step == 2
    assert overlapped(f"{place}/r") >= 5


def test_a_failed_save_reaches_the_caller(place, slowly, monkeypatch):
    """A save that copies behind the training and fails raises at the next touch of the run, as any other."""
    full, fsync = [], files.System.fsync

    def failing(self, fd):
        if full and threading.current_thread() is not threading.main_thread():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return fsync(self, fd)

    monkeypatch.setattr(files.System, "fsync", failing)

    def top(_model, step, _notes):
        full[:] = [True] if step == 5 else []  # the save before this batch is still being copied

    with pytest.raises(StorageError):
        t.launch(ordinary(top=top), f"{place}/r", thorough=True, overlap=True)
    assert overlapped(f"{place}/r") >= 2
    assert max(progress.step for progress in t.places(f"{place}/r").values()) == 4


def test_the_hook_goes_with_the_run(place):
    """torch's global hook is there while a run with overlap is open, and only then."""
    from torch.optim import optimizer

    hooks = optimizer._global_optimizer_pre_hooks
    before = dict(hooks)
    seen = []
    for overlap in (True, False):
        t.launch(
            ordinary(top=lambda *_: seen.append(len(hooks) - len(before))),
            f"{place}/{overlap}",
            overlap=overlap,
        )
        assert dict(hooks) == before
    assert set(seen[: len(seen) // 2]) == {1}
    assert set(seen[len(seen) // 2 :]) == {0}


def test_the_argument():
    """Anything but True and False is refused."""
    with pytest.raises(holdfast.UsageError, match="overlap"):
        holdfast.Run("nowhere", overlap="yes")
