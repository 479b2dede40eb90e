"""`Run` as a user meets it: loops, states, metrics, phases, notebooks."""

import gc
import logging
import os
import random

import numpy as np
import pytest
import torch

import holdfast
from holdfast import Every, Keep, UsageError

BATCHES = [0, 1, 2]


@pytest.fixture
def said(caplog, monkeypatch):
    """What the logger said."""
    monkeypatch.setattr(logging.getLogger("holdfast"), "propagate", True)
    caplog.set_level(logging.INFO, "holdfast")
    return caplog


def network(value=0.0):
    net = torch.nn.Linear(2, 1)
    with torch.no_grad():
        net.weight.fill_(value)
    return net


def drive(path, goal, *, body=None, **options):
    """A managed loop of `goal` epochs that counts in run.state."""
    with holdfast.Run(path, **options) as run:
        for epoch in run.epochs(goal):
            run.state["epochs"] = run.state.get("epochs", 0) + 1
            for _ in run.batches(BATCHES):
                pass
            if body is not None:
                body(run, epoch)
    return run


def test_nothing_is_touched_before_it_is_used(tmp_path):
    """Making a Run, tracking, asking for progress and closing create nothing on disk."""
    run = holdfast.Run(tmp_path / "r", keep=Keep(metric="x", mode="min"))
    run.track(model=network())
    run.state["a"] = 1
    assert (run.progress.epoch, run.latest, run.best, run.checkpoints) == (0, None, None, [])
    run.close()
    run.close()
    assert os.listdir(tmp_path) == []


def test_goal_is_in_total(tmp_path, said):
    """`epochs(5)` means five in total: a larger goal continues, a reached one yields nothing."""
    drive(tmp_path / "r", 2)
    run = drive(tmp_path / "r", 5)
    assert (run.progress.epoch, run.state["epochs"]) == (5, 5)
    said.clear()
    run = drive(tmp_path / "r", 4)
    assert run.state["epochs"] == 5
    assert f"{tmp_path}/r: complete at epoch 5, step 15 of 4 epochs (the goal is reached)" in said.text


def test_start_lines(tmp_path, said):
    """One line says the absolute path, and whether the run is new, or resumed from what."""
    drive(tmp_path / "r", 1)
    assert f"{tmp_path}/r: new run, 1 epochs." in said.text
    drive(tmp_path / "r", 2)
    assert f"{tmp_path}/r: resumed from 00000" in said.text
    assert "(epoch 1, step 3 of 2 epochs)" in said.text


def test_stop_completes(tmp_path):
    """`stop` finishes and saves the epoch, and the run is complete; only a larger goal goes on."""
    run = drive(tmp_path / "r", 9, body=lambda run, epoch: run.stop() if epoch == 1 else None)
    assert run.progress.epoch == 2
    assert drive(tmp_path / "r", 9).state["epochs"] == 2
    assert drive(tmp_path / "r", 10).state["epochs"] == 10


def test_break_saves_nothing(tmp_path, said):
    """Leaving by break or by an exception saves nothing more, and says which checkpoint is newest."""
    run = holdfast.Run(tmp_path / "r")
    for epoch in run.epochs(5):
        assert run.latest or epoch == 0  # waits for the save in flight
        if epoch == 2:
            break
    gc.collect()
    assert len(run.checkpoints) == 2
    assert f"nothing more was saved. Newest: {run.latest.name}" in said.text
    again = holdfast.Run(tmp_path / "r")
    with pytest.raises(ZeroDivisionError):
        for _ in again.epochs(5):
            raise ZeroDivisionError
    assert again.latest.progress.epoch == 2
    again.close()


def test_leaving_before_the_first_save_says_so(tmp_path, said):
    """Left before anything was saved, a run promises no continuation: the same command begins anew."""
    run = holdfast.Run(tmp_path / "r")
    with pytest.raises(ValueError, match="torn"):
        for _ in run.epochs(3):
            raise ValueError("torn")
    assert "nothing was saved yet: the same command begins anew" in said.text
    assert "continues from it" not in said.text


def test_a_loop_that_was_left_may_be_entered_again(tmp_path):
    """After a break the loop starts again at the newest checkpoint; after its goal a second one is refused."""
    run = holdfast.Run(tmp_path / "r")
    for epoch in run.epochs(3):
        if epoch == 1:
            break
    assert list(run.epochs(3)) == [1, 2]
    with pytest.raises(
        UsageError, match=r"has reached its goal in this process; run.epochs\(\) would be a second"
    ):
        list(run.epochs(4))
    run.close()


def test_steps(tmp_path):
    """A loop without epochs counts steps in total and continues."""
    with holdfast.Run(tmp_path / "r", every=Every(steps=2)) as run:
        for step in run.steps(5):
            run.state["sum"] = run.state.get("sum", 0) + step
    with holdfast.Run(tmp_path / "r", every=Every(steps=2)) as run:
        assert list(run.steps(7)) == [5, 6]
        assert run.state["sum"] == 10


def test_own_loop(tmp_path):
    """A loop of one's own saves exactly where it says, and continues at the next index."""
    run = holdfast.Run(tmp_path / "r")
    progress = run.resume()
    assert (progress.epoch, progress.step) == (0, 0)
    for epoch in range(3):
        run.state["seen"] = epoch
        run.save(epoch=epoch + 1, step=10 * (epoch + 1), metrics={"acc": epoch / 10})
    run.close()
    again = holdfast.Run(tmp_path / "r")
    assert again.resume().epoch == 3
    assert (again.progress.step, again.state["seen"], again.latest.metrics) == (30, 2, {"acc": 0.2})
    again.save(wait=True)
    assert (again.latest.progress.epoch, again.latest.progress.step) == (3, 30)
    again.close()


def test_state_keeps_its_identity(tmp_path):
    """`run.state` is one object throughout: restored by content, readable after close, and not replaceable."""
    run = holdfast.Run(tmp_path / "r")
    state = run.state
    run.state["x"] = np.arange(3)
    run.save(epoch=1)
    run.close()
    assert run.state is state
    assert state["x"][2] == 2
    again = holdfast.Run(tmp_path / "r")
    held = again.state
    held["stale"] = 1
    again.resume()
    assert again.state is held
    assert list(held) == ["x"]
    with pytest.raises(UsageError, match=r'run.state\["name"\] = …, or run.state.update'):
        again.state = {}
    again.close()


def test_a_complete_run_restores_everything(tmp_path):
    """A complete run yields nothing and still restores models and state, for evaluation."""
    net = network(5.0)
    with holdfast.Run(tmp_path / "r") as run:
        run.track(model=net)
        for _ in run.epochs(1):
            run.state["note"] = "done"
    other = network()
    with holdfast.Run(tmp_path / "r") as run:
        run.track(model=other)
        assert list(run.epochs(1)) == []
        assert torch.equal(other.weight, net.weight)
        assert run.state["note"] == "done"


def test_metrics_are_those_of_the_boundary(tmp_path):
    """A checkpoint's metrics are what was logged since the boundary before it; older ones are in its history."""
    with holdfast.Run(tmp_path / "r", keep=Keep(last=None)) as run:
        for epoch in run.epochs(3):
            assert run.latest or epoch == 0
            if epoch != 1:
                run.log(loss=torch.tensor(0.5), lr=np.float32(0.25))
                run.log(acc=epoch)
    first, second, third = run.checkpoints
    assert first.metrics == {"loss": 0.5, "lr": 0.25, "acc": 0}
    assert second.metrics == {}
    assert third.manifest.history == [
        {"epoch": 1, "step": 0, "loss": 0.5, "lr": 0.25, "acc": 0},
        {"epoch": 3, "step": 0, "loss": 0.5, "lr": 0.25, "acc": 2},
    ]


def test_metric_never_logged(tmp_path, said):
    """A metric that nobody logs is warned of at the first epoch's end with the nearest name, and an error at the end."""
    keep = Keep(best=1, metric="val_accuracy", mode="max")
    run = holdfast.Run(tmp_path / "r", keep=keep)
    with pytest.raises(UsageError) as caught:
        for _ in run.epochs(2):
            run.log(val_acc=0.5, loss=1)
    text = (
        "keep=Keep(metric='val_accuracy'), but no such metric was logged; did you mean 'val_acc'? Logged were: loss, "
        "val_acc. Next: run.log(val_accuracy=…) in each epoch, or name another metric."
    )
    assert str(caught.value) == text
    assert said.text.count("did you mean 'val_acc'?") == 1
    assert run.latest.progress.epoch == 2, "the training itself is saved"
    run.close()


def test_seed(tmp_path):
    """`seed` seeds Python, NumPy and torch at each launch, and is in the checkpoint's environment."""
    drawn = []
    for _ in range(2):
        run = holdfast.Run(tmp_path / "r", seed=7)
        drawn.append((random.random(), np.random.rand(), torch.rand(1).item()))
    assert drawn[0] == drawn[1]
    run.save(epoch=1, wait=True)
    assert run.latest.environment["seed"] == 7
    run.close()


# -- init, fresh, changed ----------------------------------------------------------------------------


def phase(path, net, lr=0.1, **options):
    opt = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    run = holdfast.Run(path, **options)
    run.track(model=net, optimizer=opt)
    return run, opt


def test_init_starts_from_another_run(tmp_path, said):
    """`init` restores named parts from another run while this one has no checkpoint, and is recorded."""
    run, _ = phase(tmp_path / "base", network(3.0))
    run.save(epoch=4, wait=True)
    run.close()
    net = network()
    run, _ = phase(tmp_path / "tuned", net, init={"model": f"{tmp_path}/base"})
    assert run.resume().epoch == 0
    assert net.weight.unique().tolist() == [3.0]
    assert "Part 'model' starts from" in said.text
    with torch.no_grad():
        net.weight.fill_(8.0)
    run.save(epoch=1, wait=True)
    record = run.latest.manifest.init["model"]
    assert record["reference"] == f"{tmp_path}/base"
    assert record["name"].startswith("000001_epoch-0004")
    run.close()
    other = network()
    run, _ = phase(tmp_path / "tuned", other, init={"model": f"{tmp_path}/nowhere"})
    assert run.resume().epoch == 1
    assert other.weight.unique().tolist() == [8.0]
    run.close()


def test_init_from_nowhere(tmp_path):
    """An `init` that is not there, or names a part that is not tracked, is refused; nothing is restored."""
    net = network(1.0)
    run, _ = phase(tmp_path / "r", net, init={"model": f"{tmp_path}/nowhere@best"})
    with pytest.raises(holdfast.NotFoundError, match="There is no run or checkpoint"):
        run.resume()
    run, _ = phase(tmp_path / "r", net, init={"backbone": f"{tmp_path}/nowhere"})
    with pytest.raises(UsageError) as caught:
        run.resume()
    assert "no part 'backbone' is tracked. Tracked are: model, optimizer. Next: run.track(backbone=…)" in str(
        caught.value
    )
    with pytest.raises(UsageError, match=r'expected a mapping like {"model": "runs/base@best"}'):
        holdfast.Run(tmp_path / "x", init={"model": 3})


def test_fresh_takes_over_once(tmp_path):
    """`fresh` keeps this launch's value once; at the next launch the training's own value wins again."""
    run, opt = phase(tmp_path / "r", network(), lr=0.1)
    run.save(epoch=1)
    run.close()
    run, opt = phase(tmp_path / "r", network(), lr=0.5, fresh=["optimizer.lr"])
    run.resume()
    assert opt.param_groups[0]["lr"] == 0.5
    opt.param_groups[0]["lr"] = 0.25
    run.save(epoch=2)
    run.close()
    run, opt = phase(tmp_path / "r", network(), lr=0.5, fresh=["optimizer.lr"])
    run.resume()
    assert opt.param_groups[0]["lr"] == 0.25
    run.close()


def test_fresh_leaves_a_part_alone(tmp_path):
    """`fresh` with a part's name keeps the whole part as this launch made it."""
    run, _ = phase(tmp_path / "r", network(1.0))
    run.save(epoch=1)
    run.close()
    net = network(2.0)
    run, _ = phase(tmp_path / "r", net, fresh=["model"])
    assert run.resume().epoch == 1
    assert net.weight.unique().tolist() == [2.0]
    run.close()


def test_changed_keys_of_config(tmp_path):
    """A key of config named in `changed` may differ, and the new value is stored."""
    holdfast.Run(tmp_path / "r", config={"epochs": 5, "lr": 1}).save(epoch=1, wait=True)
    run = holdfast.Run(tmp_path / "r", config={"epochs": 9, "lr": 1}, changed=["epochs"])
    run.resume()
    run.save(epoch=2, wait=True)
    assert run.latest.config == {"epochs": 9, "lr": 1}
    run.close()
    holdfast.Run(tmp_path / "r", config={"epochs": 9, "lr": 1}).resume()


# -- notebooks ---------------------------------------------------------------------------------------


def test_a_new_run_on_the_same_path_closes_the_old(tmp_path, said):
    """Running a notebook cell again takes the path over from the Run that the cell made before."""
    first = holdfast.Run(tmp_path / "r")
    first.save(epoch=1)
    second = holdfast.Run(tmp_path / "r")
    assert second.resume().epoch == 1
    assert "an earlier Run of this process on the same path is closed" in said.text
    with pytest.raises(UsageError, match=r"is closed. Next: make a new Run on the same path"):
        first.save(epoch=2)
    second.save(epoch=2, wait=True)
    second.close()


def test_a_network_made_anew_is_noticed(tmp_path, said):
    """A tracked network in which nothing changes over steps is warned of, once, with the likely reason."""
    run = holdfast.Run(tmp_path / "r")
    run.track(model=network())
    run.resume()
    for step in range(1, 5):
        run.save(step=step, wait=True)
    text = "Nothing in the part 'model' changed between step 1 and step 2."
    assert said.text.count("Nothing in the part 'model' changed") == 1
    assert text in said.text
    assert "A network re-created after run.track (in a notebook cell, say) must be tracked again" in said.text
    run.close()


def test_frozen_parts_are_not_warned_of(tmp_path, said):
    """A network that does not train may stay as it is without a warning."""
    run = holdfast.Run(tmp_path / "r")
    run.track(teacher=network().requires_grad_(False))
    run.resume()
    for step in range(1, 4):
        run.save(step=step, wait=True)
    assert "Nothing in the part" not in said.text
    run.close()


def test_with_block_closes(tmp_path):
    """A `with` block closes the run, and never replaces an exception that is on its way."""
    with pytest.raises(KeyError, match="mine"):
        with holdfast.Run(tmp_path / "r") as run:
            run.save(epoch=1)
            raise KeyError("mine")
    assert holdfast.open(tmp_path / "r").progress.epoch == 1
    with pytest.raises(UsageError, match="is closed"):
        run.epochs(3)


def test_a_refused_launch_releases_the_run(tmp_path):
    """A launch that was refused holds no lease: another process may go on at once."""
    from holdfast.store.lease import holder_of

    holdfast.Run(tmp_path / "r", config={"lr": 1}).save(epoch=1, wait=True)
    refused = holdfast.Run(tmp_path / "r", config={"lr": 2})
    with pytest.raises(UsageError):
        refused.resume()
    held = holder_of(str(tmp_path / "r"))
    assert held is None or held.released
