"""How a managed loop ends: by its goal, by break, by a signal, by close, in a child."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import traceback

import pytest
import torch

import holdfast
from holdfast import Every, Keep, LeaseError, Preempted, UsageError, files
from holdfast.payload import threads
from holdfast.store import book

WATCHED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
BATCHES = list(range(8))


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "r")


def checkpoints(path):
    """The names that a reader sees, oldest first."""
    return sorted(name for name in os.listdir(path) if name[0] == "0")


def leases(path):
    return sorted(name for name in os.listdir(path) if name.startswith("lease-"))


class Gate:
    """Holds the background's fsync back while it is shut.

    Each time the main thread begins to wait for a save, the next of `actions` is called; where
    none is left, the gate opens.
    """

    def __init__(self):
        self.opened = threading.Event()
        self.opened.set()
        self.saves, self.actions, self.waits = [], [], 0

    def shut(self, *actions):
        self.opened.clear()
        self.actions = list(actions)

    def passed(self):
        self.waits += 1
        (self.actions.pop(0) if self.actions else self.opened.set)()


@pytest.fixture
def gate(monkeypatch):
    gate = Gate()
    fsync, wait, submit = files.System.fsync, threads.Ticket.wait, threads.submit

    def held(self, fd):
        if threading.current_thread() is not threading.main_thread():
            gate.opened.wait(20)
        return fsync(self, fd)

    def noticed(self, timeout=None):
        if self in gate.saves and threading.current_thread() is threading.main_thread():
            gate.passed()
        return wait(self, timeout)

    def noted(crew, task):
        ticket = submit(crew, task)
        if crew == "publish":
            gate.saves.append(ticket)
        return ticket

    monkeypatch.setattr(files.System, "fsync", held)
    monkeypatch.setattr(threads.Ticket, "wait", noticed)
    monkeypatch.setattr(threads, "submit", noted)
    yield gate
    gate.opened.set()


def send(number):
    return lambda: os.kill(os.getpid(), number)


# -- signals ---------------------------------------------------------------------------------------


def test_ctrl_c_during_close_leaves_the_run_open(path, gate):
    """Ctrl-C while `close` waits leaves the run open, and a second close publishes the save in flight."""
    run = holdfast.Run(path)
    run.resume()
    run.save(epoch=1, wait=True)
    gate.shut(send(signal.SIGINT))
    run.save(epoch=2)
    with pytest.raises(KeyboardInterrupt):
        run.close()
    assert len(checkpoints(path)) == 1
    assert os.path.isdir(os.path.join(path, ".writing-000001"))
    run.close()
    assert len(checkpoints(path)) == 2
    assert not os.path.exists(os.path.join(path, ".writing-000001"))
    run.close()


def test_ctrl_c_during_close_at_the_scripts_end(path):
    """Where Ctrl-C during `close` ends the script, what was in flight is published before the process ends."""
    script = f"""
        import os, signal, threading, holdfast
        from holdfast import files
        from holdfast.payload import threads
        run = holdfast.Run({path!r})
        run.resume()
        gate, fsync, wait = threading.Event(), files.System.fsync, threads.Ticket.wait
        def held(self, fd):
            if threading.current_thread() is not threading.main_thread():
                gate.wait(20)
            return fsync(self, fd)
        def interrupted(self, timeout=None):
            threads.Ticket.wait = wait
            os.kill(os.getpid(), signal.SIGINT)
        files.System.fsync = held
        run.save(epoch=1)
        threads.Ticket.wait = interrupted
        try:
            run.close()
        finally:
            gate.set()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == -signal.SIGINT, done.stderr
    assert len(checkpoints(path)) == 1
    assert not [name for name in os.listdir(path) if name.startswith(".writing-")]


def test_a_second_ctrl_c_does_not_wait(path, gate):
    """A second Ctrl-C reaches the script while the save in flight is still being written; nothing of it is lost."""
    run = holdfast.Run(path, every=Every(minutes=99))
    gate.shut(send(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        for _ in run.epochs(3):
            os.kill(os.getpid(), signal.SIGINT)
    assert gate.waits == 1
    assert not gate.opened.is_set()
    assert checkpoints(path) == []
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    run.close()
    assert [name[7:17] for name in checkpoints(path)] == ["epoch-0001"]


def test_a_second_ctrl_c_in_the_body_does_not_wait(path, gate):
    """A second Ctrl-C that comes in the body ends the loop at once, and does not wait for a save in flight."""
    run = holdfast.Run(path)
    gate.shut()
    with pytest.raises(KeyboardInterrupt):
        for epoch in run.epochs(3):
            if epoch == 1:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)
    assert gate.waits == 0
    assert checkpoints(path) == []
    run.close()
    assert [name[7:17] for name in checkpoints(path)] == ["epoch-0001"]


def test_sigterm_during_the_last_drain(path, gate):
    """SIGTERM that comes while the last save is written is acted on when the goal is durable and recorded."""
    run = holdfast.Run(path)
    with pytest.raises(Preempted) as caught:
        for epoch in run.epochs(2):
            if epoch == 1:
                assert run.latest  # the save of epoch 0 is no more in flight
                gate.shut(lambda: (send(signal.SIGTERM)(), gate.opened.set()))
    assert caught.value.code == 75
    assert len(checkpoints(path)) == 2
    assert book.read_run(path).reached["value"] == 2
    run.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_in_the_last_epoch(tmp_path, path, number):
    """A signal in the last epoch ends the process after the goal is recorded; a later launch records it, too."""
    run = holdfast.Run(path)
    with pytest.raises(Preempted):
        for epoch in run.epochs(2):
            for _ in run.batches(BATCHES):
                pass
            if epoch == 1:
                os.kill(os.getpid(), number)
    run.close()
    content = book.read_run(path)
    assert content.reached == {"kind": "epochs", "value": 2, "stopped": False}
    content.reached = None  # as after a kill between the last save and its record
    book.write_run(path, content, str(tmp_path))
    with holdfast.Run(path) as later:
        assert list(later.epochs(2)) == []
    assert book.read_run(path).reached["value"] == 2


# -- break -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("numbered", [False, True])
def test_held_batches_count_in_their_own_epoch(path, numbered):
    """Batches held in a variable and left by break count the batch in hand in their own epoch."""
    seen = []
    with holdfast.Run(path) as run:
        for epoch in run.epochs(3):
            assert run.progress.step == 3 * epoch
            batches = run.batches(BATCHES)
            held = iter(batches.numbered() if numbered else batches)
            for done, _ in enumerate(held, 1):
                seen.append(run.progress.batch)
                if done == 3:
                    break
        assert (run.progress.epoch, run.progress.step, run.progress.batch) == (3, 9, 0)
    assert seen == [0, 1, 2] * 3


class Bar:
    """What a progress bar does with an iterable: it keeps it, and hands its items on."""

    def __init__(self, iterable):
        self.iterable = iterable

    def __iter__(self):
        # Not `yield from`, which would close what it iterates over.
        for item in self.iterable:  # noqa: UP028
            yield item


def test_a_progress_bar_around_the_loop(path):
    """A loop inside a progress bar that somebody holds is over at `break`: signals are as before, it may start again."""
    before = [signal.getsignal(number) for number in WATCHED]
    run = holdfast.Run(path)
    bar = Bar(run.epochs(5))
    for epoch in bar:
        assert run.checkpoints is not None  # waits for the save in flight
        if epoch == 2:
            break
    assert [signal.getsignal(number) for number in WATCHED] == before
    assert list(run.epochs(5)) == [2, 3, 4]
    assert bar.iterable is not None
    run.close()


def test_loops_held_by_a_traceback(path):
    """An exception whose traceback holds the loops' variables, as in a notebook, leaves no loop behind."""
    before = [signal.getsignal(number) for number in WATCHED]
    run = holdfast.Run(path)

    def cell():
        epochs = run.epochs(2)
        for _ in epochs:
            batches = run.batches(BATCHES)
            for _ in batches:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        cell()
    assert [signal.getsignal(number) for number in WATCHED] == before
    assert list(run.epochs(2)) == [0, 1]
    assert caught.tb is not None
    run.close()


# -- the metric of Keep ----------------------------------------------------------------------------


def test_a_metric_logged_long_ago(path):
    """The metric of Keep, logged once long ago or seen in an older checkpoint, is no error at the end."""
    keep = Keep(metric="val", mode="max")
    run = holdfast.Run(path, keep=keep, every=Every(steps=60))
    with pytest.raises(ZeroDivisionError):
        for step in run.steps(300):
            run.log(loss=1 / (step + 1))
            if step == 10:
                run.log(val=0.5)
            if step % 60 == 55:
                assert run.checkpoints is not None  # waits for the save in flight
            if step == 200:
                raise ZeroDivisionError
    run.close()
    newest = holdfast.open(path).manifest
    assert newest.progress.step > 111
    assert not any("val" in row for row in newest.history)
    with holdfast.Run(path, keep=keep, every=Every(steps=60)) as later:
        for step in later.steps(300):
            later.log(loss=1 / (step + 1))
    assert later.progress.step == 300


def test_a_metric_logged_early_in_a_long_launch(path):
    """More rows than a history holds do not make a launch forget that it logged the metric."""
    with holdfast.Run(path, keep=Keep(metric="val", mode="max"), every=Every(minutes=99)) as run:
        for step in run.steps(130):
            run.log(**({"val": float("nan")} if step == 0 else {"loss": 1.0}))
    assert len(run.latest.manifest.history) <= 100


@pytest.mark.parametrize("kind", ["epochs", "steps"])
def test_a_goal_of_nothing(path, kind):
    """A goal of 0 yields nothing, and misses no metric."""
    with holdfast.Run(path, keep=Keep(metric="val", mode="max")) as run:
        assert list(getattr(run, kind)(0)) == []


# -- close, and children ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["steps", "epochs", "batches"])
def test_a_run_that_another_one_took_over(path, kind, capsys):
    """A lost lease ends the loop with the user's own line and one message; nobody is told to go on with the run."""
    run = holdfast.Run(path, every=Every(epochs=1, steps=None if kind == "epochs" else 1))

    def train():
        for number in run.steps(9) if kind == "steps" else run.epochs(9):
            yield from run.batches(BATCHES) if kind == "batches" else [number]

    with pytest.raises(LeaseError, match="is lost") as caught:
        for _ in train():
            run.state["n"] = 1
            with contextlib.suppress(FileExistsError):
                os.link(os.path.join(path, "lease-000001"), os.path.join(path, "lease-000002"))
    frames = [os.path.basename(frame.filename) for frame in traceback.extract_tb(caught.tb)]
    assert set(frames) == {os.path.basename(__file__), "loop.py"}
    assert caught.value.__cause__ is None and caught.value.__suppress_context__
    assert "continues from it" not in capsys.readouterr().err
    run.close()


def test_a_launch_that_is_refused_is_told_in_few_lines(path):
    """Where somebody else holds the run, the user's own line and the message are shown, and none of ours."""
    other = subprocess.Popen(
        [sys.executable, "-c", f"import holdfast; next(iter(holdfast.Run({path!r}).steps(2))); input()"],
        stdin=subprocess.PIPE,
    )
    while not os.path.exists(os.path.join(path, "run.json")):
        assert other.poll() is None
        time.sleep(0.01)
    with pytest.raises(LeaseError, match="is held by") as caught:
        next(iter(holdfast.Run(path).steps(2)))
    other.communicate(b"\n")
    frames = [os.path.basename(frame.filename) for frame in traceback.extract_tb(caught.tb)]
    assert set(frames) == {os.path.basename(__file__), "loop.py"}


def test_a_run_closed_inside_its_loop(path):
    """A run that its own body closes stays closed: the loop ends in a UsageError and takes no new lease."""
    run = holdfast.Run(path)
    with pytest.raises(UsageError, match="is closed"):
        for epoch in run.epochs(4):
            if epoch == 1:
                run.close()
    assert leases(path) == ["lease-000001"]
    assert not os.path.exists(os.path.join(path, ".writing-000001"))
    assert [name[7:17] for name in checkpoints(path)] == ["epoch-0001"]
    assert path not in holdfast.run._open_runs


@pytest.mark.parametrize("kind", ["steps", "batches"])
def test_a_forked_child_that_goes_on_with_the_loop(path, kind):
    """A forked child that goes on with the loop gets a UsageError at its next boundary and writes nothing."""
    run = holdfast.Run(path, every=Every(steps=1))
    outer = iter(run.steps(3) if kind == "steps" else run.epochs(1))
    next(outer)
    loop = outer
    if kind == "batches":
        loop = iter(run.batches(BATCHES))
        next(loop)
    next(loop)
    assert run.checkpoints  # nothing is in flight
    run.log(loss=1.0)
    before = _content(path)
    pid = os.fork()
    if pid == 0:
        code = 1
        with contextlib.suppress(BaseException):
            try:
                next(loop)
            except UsageError as error:
                code = 0 if "belongs to the parent process" in str(error) else 2
            del loop, outer
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert _content(path) == before
    assert len([*loop, *outer]) == (1 if kind == "steps" else 6)
    run.close()


def _content(path):
    with open(os.path.join(path, "history.jsonl")) as file:
        return sorted(os.listdir(path)), file.read()


# -- gradients that are pending where a loop is interrupted ------------------------------------------


def model():
    torch.manual_seed(0)
    net = torch.nn.Linear(4, 2)
    return net, torch.optim.SGD(net.parameters(), lr=0.1), torch.randn(10, 3, 4)


def gathered_in_a_managed_loop(path, die):
    net, opt, data = model()
    run = holdfast.Run(path, every=Every(steps=1))
    run.track(model=net, optimizer=opt)
    for _ in run.epochs(1):
        for number, x in run.batches(data).numbered():
            if number and number % 2 == 0:
                opt.step()
                opt.zero_grad()
            net(x).square().mean().backward()
            if number == die:
                assert run.latest.progress.batch == die  # the boundary just before saved
                raise ZeroDivisionError
            assert run.checkpoints is not None  # waits for the save in flight
        opt.step()
    run.close()
    return net.weight


def gathered_in_an_own_loop(path, die):
    net, opt, data = model()
    run = holdfast.Run(path)
    run.track(model=net, optimizer=opt)
    for step in range(run.resume().step, len(data)):
        if step and step % 2 == 0:
            opt.step()
            opt.zero_grad()
        net(data[step]).square().mean().backward()
        run.save(step=step + 1, wait=True)
        if step + 1 == die:
            raise ZeroDivisionError
    opt.step()
    run.close()
    return net.weight


@pytest.mark.parametrize("train", [gathered_in_a_managed_loop, gathered_in_an_own_loop])
@pytest.mark.parametrize("die", [3, 4])
def test_gradients_gathered_after_a_step(tmp_path, train, die):
    """Gradients gathered after a step of the same batch are part of the state: a resumed training is exact."""
    straight = train(str(tmp_path / "straight"), None)
    with pytest.raises(ZeroDivisionError):
        train(str(tmp_path / "r"), die)
    assert torch.equal(train(str(tmp_path / "r"), None), straight)


def test_zeros_that_were_only_restored_are_saved_as_they_were_found():
    """A launch that trains no more before its save says of gradients what the checkpoint said that it began from."""
    from holdfast.torch import edge

    net = torch.nn.Linear(2, 1)
    things = {"model": net, "optimizer": torch.optim.SGD(net.parameters(), lr=0.1)}
    edge.set_gradients(things, {}, zeros=True)
    assert edge.gradients(things, stepped={}) == ({}, True)
