"""Every refusal, read as a user would read it: where, what was expected, what was found, what to do next."""

import contextlib
import errno
import itertools
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

import holdfast
from holdfast import (
    Every,
    Keep,
    LeaseError,
    MismatchError,
    NotFoundError,
    Probe,
    StorageError,
    UsageError,
    files,
    storage,
)
from holdfast.errors import ProbeError


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "r")


@contextlib.contextmanager
def refused(*words, kind=UsageError):
    """The block ends in an error of this kind whose message has all these words."""
    with pytest.raises(kind) as caught:
        yield caught
    for word in words:
        assert word in str(caught.value)


def network(*sizes):
    sizes = sizes or (2, 1)
    return torch.nn.Sequential(*(torch.nn.Linear(a, b) for a, b in itertools.pairwise(sizes)))


# -- what a checkpoint cannot hold -----------------------------------------------------------------


def test_an_object_deep_in_the_state(path):
    """An object that cannot be held is named by its path and type, and nothing is saved; the run can go on."""
    run = holdfast.Run(path)
    run.state["buffer"] = [{"transitions": ({"env": object()},)}]
    with refused(
        "state/buffer/0/transitions/0/env is a object, which a checkpoint cannot hold", "Nothing was saved."
    ):
        run.save(epoch=1)
    assert run.checkpoints == []
    run.state["buffer"][0]["transitions"][0]["env"] = lambda: 0
    with refused("is a function", "code is not state: leave it out, and build it again in the script"):
        run.save(epoch=1)
    run.state["buffer"] = []
    run.save(epoch=1, wait=True)
    assert len(run.checkpoints) == 1
    run.close()


TENSORS = {
    "meta": (
        lambda: torch.ones(2, device="meta"),
        "is on the meta device and has no data: materialise the model",
    ),
    "sparse": (lambda: torch.eye(2).to_sparse(), "has the layout torch.sparse_coo", ".to_dense()"),
    "quantized": (
        lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
        "is quantized: store the dequantized weights",
    ),
    "objects": (lambda: np.array([object()]), "is a NumPy array of Python objects"),
    "fields": (lambda: np.zeros(2, [("a", "f4")]), "is a structured NumPy array; store its fields as a dict"),
}


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", TENSORS)
def test_tensors_without_data_of_their_own(path, name):
    """A tensor on a meta device and its like are refused with their path and the remedy."""
    make, *words = TENSORS[name]
    run = holdfast.Run(path)
    run.state["deep"] = [{"x": make()}]
    with refused("state/deep/0/x", "Nothing was saved.", *words):
        run.save(epoch=1)
    run.close()


def test_a_model_on_the_meta_device(path, tmp_path):
    """A model on the meta device is neither saved nor restored into, and both messages say what to call."""
    with torch.device("meta"):
        meta = torch.nn.Linear(2, 1)
    with refused("model/weight is on the meta device and has no data"):
        holdfast.save(tmp_path / "a", {"model": meta})
    holdfast.save(tmp_path / "a", {"model": torch.nn.Linear(2, 1)})
    with refused(
        "model/weight is on the meta device and has no memory to restore into", ".to_empty(device=…)"
    ):
        holdfast.restore(tmp_path / "a", {"model": meta})


# -- track -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value", [3, 0.1, "x", None, [1], (1,), {"w": np.ones(2)}, np.ones(2), torch.ones(2)]
)
def test_values_that_cannot_be_restored_in_place(path, value):
    """A scalar, a list, an array or a pytree in `track` would keep its first value for ever: run.state is named."""
    with refused(
        f"track(params=…): a {type(value).__name__} cannot be restored in place",
        "would keep its first value for ever. Next: keep it in the run's state: run.state['params'] = …",
    ):
        holdfast.Run(path).track(params=value)


def test_things_without_state_dict(path):
    """An object without state_dict is refused with both remedies."""
    with refused(
        "track(thing=…): a object has no state_dict and load_state_dict",
        "Next: give it both, or keep its values in run.state['thing']",
    ):
        holdfast.Run(path).track(thing=object())


def test_names_of_parts(path):
    """A reserved or misshapen part name is refused."""
    run = holdfast.Run(path)
    with refused("The part name 'state' is used by Holdfast itself; choose another, like 'my_state'"):
        run.track(state=network())
    with refused("'Model' cannot name a part"):
        run.track(Model=network())
    with refused("track(probe=…) takes a Probe, like Probe(net, sample_batch), not a Sequential"):
        run.track(probe=network())


def test_tracking_too_late(path):
    """Tracking inside the loop, or after resume, comes too late to be restored."""
    run = holdfast.Run(path)
    for _ in run.epochs(1):
        with refused("run.track() inside the loop comes too late. Next: track before the loop is entered."):
            run.track(model=network())
    run.close()
    run = holdfast.Run(path)
    run.resume()
    with refused("run.track() after run.resume() comes too late", "Next: track before run.resume()."):
        run.track(model=network())
    run.close()


# -- arguments of Run ------------------------------------------------------------------------------

ARGUMENTS = [
    ({"every": "epoch"}, "every='epoch': expected Every(…), like Every(epochs=1, minutes=10)."),
    ({"keep": 3}, "keep=3: expected Keep(…), like Keep(last=3"),
    ({"on_nan": "ignore"}, "on_nan='ignore': expected 'mark' or 'raise'."),
    ({"fresh": "optimizer.lr"}, "fresh='optimizer.lr': expected a list, like fresh=['optimizer.lr']."),
    ({"changed": "epochs"}, "changed='epochs': expected a list, like changed=['epochs']."),
    ({"init": "runs/base"}, 'init=\'runs/base\': expected a mapping like {"model": "runs/base@best"}.'),
    ({"config": [1]}, "config is a list; pass a mapping, like vars(args)."),
    ({"config": {"a": {"b": object()}}}, "config/a/b is a object, which a checkpoint cannot hold"),
    ({"config": {"mean": np.ones(2)}}, "config/mean is an array; only plain values can stand here."),
    (
        {"config": {"x": "y" * 40_000}},
        "at most 32,768 are stored with each checkpoint. Next: leave the large",
    ),
    ({"staging": "lots"}, "staging='lots': expected bytes"),
    ({"staging": -1}, "staging=-1: expected bytes"),
    ({"wait": -5}, "wait=-5: expected seconds"),
    ({"wait": "long"}, "wait='long': expected seconds"),
    ({"seed": "x"}, "seed='x': a seed is a whole number from 0 to 2**32 - 1."),
    ({"note": 5}, "note=5: expected a text"),
]


@pytest.mark.parametrize(("arguments", "words"), ARGUMENTS, ids=[repr(a)[:40] for a, _ in ARGUMENTS])
def test_arguments_of_run(path, arguments, words):
    """A wrong argument is refused when the Run is made, with what would do; nothing is created."""
    with refused(words):
        holdfast.Run(path, **arguments)
    assert not os.path.exists(path)


def test_staging_may_be_nothing(path):
    """staging=0 holds the training instead of copying."""
    holdfast.Run(path, staging=0).save(epoch=1, wait=True)


def test_a_checkpoints_reference_in_the_place_of_a_run(path):
    """Run("…@best") is a misunderstanding, and is told so."""
    with refused("names a checkpoint of a run; a Run takes the run's own path."):
        holdfast.Run(path + "@best")
    with refused('Run(""): expected the path of a directory'):
        holdfast.Run("")


def test_best_without_metric_and_mode(path):
    """`best` without metric and mode is refused with the whole call to write."""
    with refused("Keep(best=2): a best needs a metric and a mode", "metric='val_accuracy', mode='max')"):
        Keep(best=2)
    with refused(
        "run.best needs a metric to rank by", 'keep=Keep(best=1, metric="val_accuracy", mode="max")'
    ):
        _ = holdfast.Run(path).best


def test_several_processes(path, monkeypatch):
    """One of several processes is refused before anything is written."""
    monkeypatch.setenv("WORLD_SIZE", "4")
    with refused("This is one of 4 processes (WORLD_SIZE=4)", "or unset WORLD_SIZE if that is what this is."):
        holdfast.Run(path)


# -- loops -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("goal", [-1, 2.5, "20", None, True])
def test_goals(path, goal):
    """A goal that is no count is refused."""
    with refused(f"run.epochs({goal!r}): expected how many epochs in total, like run.epochs(20)."):
        holdfast.Run(path).epochs(goal)
    assert not os.path.exists(path)


def test_every_epoch_in_a_loop_of_steps(path):
    """`Every(epochs=…)` alone never comes due in a loop without epochs."""
    with refused(
        "every=Every(epochs=1) never comes due in a loop without epochs.",
        "Next: Every(steps=1000), Every(minutes=10), or Every(overhead=0.01).",
    ):
        next(iter(holdfast.Run(path, every=Every(epochs=1)).steps(5)))


def test_one_loop(path):
    """A second loop inside the first, or after it, is refused: phases are runs chained by init."""
    run = holdfast.Run(path)
    for _ in run.epochs(1):
        with refused(
            "run.steps() was called inside run.epochs(): a run has one loop.", "chained by init={…}"
        ):
            next(iter(run.steps(3)))
        with refused("run.epochs() has resumed already; run.resume() is for loops of your own."):
            run.resume()
    with refused("run.epochs() would be a second one", f'init={{"model": "{path}@best"}}'):
        next(iter(run.epochs(2)))
    run.close()


def test_batches(path):
    """`batches` outside the loop, twice in an epoch, or of what is no loader, is refused."""
    run = holdfast.Run(path)
    with refused(
        "run.batches() belongs into the body of `for epoch in run.epochs(…)`", "iterate over the loader"
    ):
        list(run.batches([1]))
    for _ in run.epochs(1):
        with refused("batches() needs a loader", "A int cannot be"):
            list(run.batches(3))
        break
    for _ in run.epochs(1):
        assert list(run.batches([1])) == [1]
        with refused("run.batches() was called a second time in this epoch", "(evaluation, say) directly"):
            list(run.batches([1]))
    run.close()


def test_stop_outside_a_loop(path):
    """`stop` belongs into a managed loop."""
    with refused(
        "run.stop() belongs into a managed loop; in a loop of your own, leave it and close the run."
    ):
        holdfast.Run(path).stop()


@pytest.mark.parametrize("value", ["0.5", None, np.ones(2), torch.ones(2, 2), [1], 1j])
def test_metrics_are_numbers(path, value):
    """A metric that is not one number is refused by its name."""
    with refused("run.log(loss=", "number"):
        holdfast.Run(path).log(loss=value)


# -- save ------------------------------------------------------------------------------------------


def test_arguments_of_save(path):
    """Inside a managed loop `save` takes no arguments; outside, progress never goes backwards."""
    run = holdfast.Run(path)
    for _ in run.epochs(1):
        for arguments in ({"epoch": 1}, {"step": 1}, {"metrics": {}}, {"wait": True}):
            with refused(
                "Inside run.epochs() the progress is known, so run.save() takes no arguments",
                "Next: run.save(), and run.log(…) for metrics.",
            ):
                run.save(**arguments)
    run.close()
    run = holdfast.Run(path)
    run.resume()
    with refused(
        "run.save(epoch=0): the run stands at epoch 1; progress never goes backwards", "holdfast rewind"
    ):
        run.save(epoch=0)
    with refused("run.save(step='7'): expected a whole number."):
        run.save(step="7")
    assert len(run.checkpoints) == 1
    run.close()


def test_save_before_resume(path):
    """On a run that has checkpoints, `save` before `resume` would bury them, and is refused."""
    holdfast.Run(path).save(epoch=1, wait=True)
    run = holdfast.Run(path)
    with refused(
        f"{path} has checkpoints, and this launch has not resumed from them",
        "Next: progress = run.resume(), or another directory.",
    ):
        run.save(epoch=1)
    run.resume()
    run.save(epoch=2, wait=True)
    run.close()


# -- what differs from the saving launch -------------------------------------------------------------


def test_config(path):
    """A changed config is refused with both values, and with the `changed` to write."""
    holdfast.Run(path, config={"lr": 0.1, "model": "small", "epochs": 5}).save(epoch=1, wait=True)
    with refused(
        "nothing was restored:",
        "  epochs: 5 when saved, 9 here",
        "  lr: 0.1 when saved, (none) here",
        "  width: (none) when saved, 3 here",
        "Next: undo the change, or, if it is meant, say so with changed=['epochs', 'lr', 'width'].",
    ):
        holdfast.Run(path, config={"model": "small", "epochs": 9, "width": 3}).resume()


def sgd(path, lr=0.1, gamma=0.9, **options):
    net = network()
    opt = torch.optim.SGD(net.parameters(), lr=lr)
    run = holdfast.Run(path, **options)
    run.track(model=net, optimizer=opt, scheduler=torch.optim.lr_scheduler.ExponentialLR(opt, gamma))
    return run


def test_declared_hyperparameters(path):
    """A hyperparameter that differs from the saving launch's is refused with both values and both remedies."""
    run = sgd(path)
    run.save(epoch=1)
    run.close()
    with refused(
        "The hyperparameters differ from those of",
        "  optimizer.lr: 0.1 when saved, 0.5 here",
        "Next: undo the change, or take the new values over once with fresh=['optimizer.lr'",
    ):
        sgd(path, lr=0.5).resume()
    with refused("  scheduler.gamma: 0.9 when saved, 0.8 here", "fresh=['scheduler']"):
        sgd(path, gamma=0.8).resume()
    run = sgd(path, gamma=0.8, fresh=["scheduler"])
    assert run.resume().epoch == 1
    run.close()


def test_fresh_names(path):
    """A name in `fresh` that names nothing is refused, with the nearest."""
    with refused(
        "fresh='optimiser': no part 'optimiser' is tracked; did you mean 'optimizer'?", "Tracked are: model"
    ):
        sgd(path, fresh=["optimiser"]).resume()
    with refused("fresh='optimizer.lrr': the part 'optimizer' declares no 'lrr'; did you mean 'lr'?"):
        sgd(path, fresh=["optimizer.lrr"]).resume()


def test_a_part_that_is_new(path):
    """A part that the checkpoint lacks is refused, with both ways on."""
    run = sgd(path)
    run.save(epoch=1)
    run.close()
    run = sgd(path)
    run.track(ema=network())
    with refused("has no part 'ema', which this launch tracks; nothing was restored.", "fresh=['ema']"):
        run.resume()


def test_loader(path):
    """Another loader in an interrupted epoch is refused; `changed=["loader"]` goes on."""
    run = holdfast.Run(path, every=Every(steps=1))
    for _ in run.epochs(2):
        for batch in run.batches([0, 1, 2, 3]):
            if batch == 2:
                break
        break
    run.close()
    again = holdfast.Run(path)
    with refused(
        "The loader is not the one that this training was using:",
        "the number of batches was 4 and is 3 now",
        "changed=['loader']",
    ):
        for _ in again.epochs(2):
            list(again.batches([0, 1, 2]))
    again.close()
    again = holdfast.Run(path, changed=["loader"])
    for _ in again.epochs(1):
        list(again.batches([0, 1, 2]))
    again.close()


# -- what does not fit -------------------------------------------------------------------------------


def test_a_model_that_does_not_fit(tmp_path):
    """Missing, unexpected and mis-shaped arrays are all listed, with the nearest names; nothing is changed."""

    class Saved(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.head = torch.nn.Linear(2, 3), torch.nn.Linear(3, 4)

    class Here(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder1, self.head = torch.nn.Linear(2, 3), torch.nn.Linear(3, 5)

    saved, here = Saved(), Here()
    path = tmp_path / "a"
    holdfast.save(path, {"model": saved})
    before = {name: value.clone() for name, value in here.state_dict().items()}
    with pytest.raises(MismatchError) as caught:
        holdfast.restore(path, {"model": here})
    assert str(caught.value) == textwrap.dedent(
        f"""\
        {path} does not fit what it is restored into; nothing was changed.
          Here, but not in the checkpoint:
            model/encoder1.weight  (did you mean 'encoder.weight'?)
            model/encoder1.bias  (did you mean 'encoder.bias'?)
          In the checkpoint, but not here:
            model/encoder.weight
            model/encoder.bias
          Different:
            model/head.weight: saved F32 [4, 3], here F32 [5, 3]
            model/head.bias: saved F32 [4], here F32 [5]
          Next: build the model as it was saved, or pass strict=False to load what fits."""
    )
    assert caught.value.missing == ["model/encoder1.weight", "model/encoder1.bias"]
    assert all(torch.equal(value, before[name]) for name, value in here.state_dict().items())


def test_not_strict(tmp_path):
    """With strict=False what fits is restored, and the result says what did not."""
    saved, here = network(2, 3, 4), network(2, 3, 5)
    holdfast.save(tmp_path / "a", {"model": saved, "epoch": 3})
    result = holdfast.restore(tmp_path / "a", {"model": here}, strict=False)
    assert torch.equal(here[0].weight, saved[0].weight)
    assert result == {"epoch": 3}
    assert (result.missing, result.unexpected) == ([], [])
    assert result.different == [
        "model/1.weight: saved F32 [4, 3], here F32 [5, 3]",
        "model/1.bias: saved F32 [4], here F32 [5]",
    ]


def test_another_dtype_is_a_difference(tmp_path):
    """A model of another dtype does not fit silently."""
    holdfast.save(tmp_path / "a", {"model": network()})
    with refused("model/0.weight: saved F32 [1, 2], here BF16 [1, 2]", kind=MismatchError):
        holdfast.restore(tmp_path / "a", {"model": network().bfloat16()})


def test_a_resume_that_does_not_fit(path):
    """A run whose model changed its shape is refused before anything live is touched, and stays as it was."""
    run = holdfast.Run(path)
    run.track(model=network(2, 3))
    run.save(epoch=1)
    run.close()
    net = network(2, 4)
    before = net[0].weight.clone()
    run = holdfast.Run(path)
    run.track(model=net)
    with refused(
        "does not fit what it is restored into; nothing was changed", "model/0.weight", kind=MismatchError
    ):
        run.resume()
    assert torch.equal(net[0].weight, before)
    with refused("has checkpoints, and this launch has not resumed from them"):
        run.save(epoch=2)
    run.close()


def test_parts_by_name(tmp_path):
    """A part that is not there is a `NotFoundError` with the nearest name, for load and restore."""
    found = holdfast.save(tmp_path / "a", {"model": network(), "epoch": 3})
    with refused("has no part 'modle'; did you mean 'model'? It has: model, epoch.", kind=NotFoundError):
        found.load(parts=["modle"])
    with refused("has no part 'net'", kind=NotFoundError):
        found.restore({"net": network()})
    with refused("arrays='tf': expected one of numpy, torch"):
        found.load(arrays="tf")
    with refused("restore() takes a mapping of part names to what they are restored into"):
        found.restore([network()])
    with refused("'epoch' cannot be restored in place into a int"):
        found.restore({"epoch": 3})


def test_a_part_of_another_kind(tmp_path):
    """A list does not go into a module, a model not into an optimizer, and both messages say so."""
    net = network()
    opt = torch.optim.SGD(net.parameters(), lr=1)
    found = holdfast.save(tmp_path / "a", {"numbers": [1, 2], "model": net, "optimizer": opt})
    with refused("the part 'numbers' is a list, not the state of a module: a Sequential cannot take it"):
        found.restore({"numbers": net})
    with refused("the part 'model' is a torch.Module, not the state of an optimizer"):
        found.restore({"model": opt})
    with refused("the part 'model' is a torch.Module; a numpy.Generator cannot take it"):
        found.restore({"model": np.random.default_rng()})
    with refused("the part 'model' is no single array"):
        found.restore({"model": torch.ones(2)})


def test_another_optimizer(tmp_path):
    """The state of one of torch's optimizers does not go into another one, silently or halfway."""
    net = network()
    sgd_, adam = torch.optim.SGD(net.parameters(), lr=1, momentum=0.9), torch.optim.Adam(net.parameters())
    for opt in (sgd_, adam):
        net(torch.ones(1, 2)).sum().backward()
        opt.step()
    found = holdfast.save(tmp_path / "a", {"model": net, "optimizer": sgd_})
    before = {name: value.clone() for name, value in adam.state[net[0].weight].items()}
    with refused(
        "the state of 'optimizer' is not that of a Adam (KeyError: 'step'); nothing", kind=MismatchError
    ):
        found.restore({"model": net, "optimizer": adam})
    assert all(torch.equal(value, before[name]) for name, value in adam.state[net[0].weight].items())
    holdfast.save(tmp_path / "b", {"model": net, "optimizer": adam})
    with refused(
        "optimizer/class: saved torch.optim.adam.Adam, here torch.optim.sgd.SGD", kind=MismatchError
    ):
        holdfast.restore(tmp_path / "b", {"model": net, "optimizer": sgd_})


# -- the probe ---------------------------------------------------------------------------------------


def test_probe(path, tmp_path):
    """A model that answers its probe differently after a restore is a `ProbeError`, and nothing is saved."""
    with refused("Probe() takes a model to call, not a int"):
        Probe(3, torch.ones(1))
    with refused("Probe() needs an input to call the model with: Probe(net, sample_batch)."):
        Probe(network())
    net = network()
    run = holdfast.Run(path)
    run.track(model=net, probe=Probe(net, torch.ones(1, 2)))
    run.save(epoch=1)
    run.close()
    again = holdfast.Run(path)
    again.track(model=net, probe=Probe(net, torch.ones(1, 2) * 2))
    with refused(
        "The restored model does not answer its probe as the saved one did: relative difference",
        "on the same device and versions, where it must be 0",
        kind=ProbeError,
    ):
        again.resume()
    with refused("failed half-way"):
        again.save(epoch=2)
    again.close()


# -- the place -----------------------------------------------------------------------------------------


def test_a_directory_that_is_not_a_run(tmp_path):
    """A directory with other things in it is never made into a run."""
    (tmp_path / "thesis.tex").write_text("x")
    with refused(
        f"{tmp_path} is not a run and not empty (it holds thesis.tex); nothing was written.",
        "Next: choose a new directory for the run.",
    ):
        holdfast.Run(tmp_path).resume()
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_a_file_or_a_checkpoint_in_the_place_of_a_run(tmp_path):
    """A file, or a checkpoint, in the run's place is refused with what to do instead."""
    (tmp_path / "f").write_text("x")
    with refused(f"{tmp_path}/f is a file; a run is a directory."):
        holdfast.Run(tmp_path / "f").resume()
    holdfast.save(tmp_path / "c", {"x": np.ones(1)})
    with refused(f"{tmp_path}/c is a checkpoint, not a run.", f"init={{\"model\": '{tmp_path}/c'}}"):
        holdfast.Run(tmp_path / "c").resume()
    with refused("Cannot create the directory", "a file of that name is in the way", kind=StorageError):
        holdfast.Run(tmp_path / "f" / "deeper").resume()


def test_an_object_store_mounted_as_a_folder(path, monkeypatch):
    """A bucket mounted as a folder has no atomic rename, and is refused."""
    monkeypatch.setattr(storage, "file_system_type", lambda _: "fuse.gcsfuse")
    with refused("lies in an object store that is mounted as a folder (fuse.gcsfuse)", "no atomic rename"):
        holdfast.Run(path).resume()
    assert not os.path.exists(path)


def second_process(path, **environment):
    script = f"""
        import sys, holdfast
        try:
            holdfast.Run({path!r}).resume()
        except holdfast.LeaseError as error:
            print(error)
            sys.exit(error.exit_code)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    environment = {**os.environ, **environment}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == LeaseError.exit_code == 11, done.stderr
    return done.stdout


def test_two_writers(path):
    """The second process on a run is told who holds it, since when, and what can be done."""
    run = holdfast.Run(path)
    run.save(epoch=1, wait=True)
    said = second_process(path)
    assert said.startswith(f"{path} is held by pid {os.getpid()} on ")
    assert "since 20" in said
    assert "only one process may write a run. Wait for it (wait=SECONDS), end it" in said
    run.save(epoch=2, wait=True)
    run.close()


def test_two_tasks_of_one_srun(path, monkeypatch):
    """Several tasks under one srun are told so, and how to start one."""
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    run = holdfast.Run(path)
    run.save(epoch=1, wait=True)
    said = second_process(path, SLURM_PROCID="1", SLURM_NTASKS="2")
    assert "task 1 of 2 of the same Slurm job, so several tasks of one srun seem to run this script." in said
    assert "Start one task (srun --ntasks=1), or give each a run of its own." in said
    run.close()


def test_a_forked_child_is_inert(path):
    """After a fork the child's run refuses to write, and closing it there changes nothing."""
    run = holdfast.Run(path)
    run.save(epoch=1, wait=True)
    pid = os.fork()
    if pid == 0:
        code = 1
        with contextlib.suppress(BaseException):
            try:
                run.save(epoch=2)
            except UsageError as error:
                code = (
                    0
                    if "belongs to the parent process; a forked child must not write it" in str(error)
                    else 2
                )
            run.close()
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    run.save(epoch=2, wait=True)
    assert len(run.checkpoints) == 2
    run.close()


# -- the storage ---------------------------------------------------------------------------------------


def test_no_space_is_found_out_before_writing(path, monkeypatch):
    """A checkpoint that cannot fit is refused before it is written, with both figures."""
    run = holdfast.Run(path)
    run.state["x"] = np.zeros(1 << 20)
    monkeypatch.setattr(storage, "free_bytes", lambda _: 1_000_000)
    with refused(
        "No space for this checkpoint in", "and 1,000,000 are free", "holdfast prune", kind=StorageError
    ) as c:
        run.save(epoch=1)
    assert c.value.errno == errno.ENOSPC
    assert c.value.needed > 8 << 20
    assert isinstance(c.value, OSError)
    monkeypatch.undo()
    run.save(epoch=1, wait=True)
    run.close()


class Refusing(files.System):
    """A storage that refuses to write payload or small files with one error."""

    def __init__(self, code):
        self.code = code

    def fsync(self, fd):
        raise OSError(self.code, os.strerror(self.code))


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (
            errno.ENOSPC,
            "No space left on device. Free some space, or keep fewer checkpoints (keep=Keep(last=1)",
        ),
        (errno.EDQUOT, "Your quota is used up (df may still show space)."),
        (errno.EIO, "The device reports an I/O error; look at the system's log, and write elsewhere."),
        (errno.EROFS, "The file system is mounted read-only."),
    ],
)
def test_a_background_save_that_fails_reaches_the_caller(path, monkeypatch, code, words):
    """What the storage refused in the background is raised at the next touch of the run, once; then it goes on."""
    run = holdfast.Run(path)
    run.resume()
    monkeypatch.setattr(files, "system", Refusing(code))
    run.save(epoch=1)
    with refused(path, words, kind=StorageError) as caught:
        run.save(epoch=2, wait=True)
    assert caught.value.errno == code
    monkeypatch.undo()
    run.save(epoch=3, wait=True)
    assert [c.progress.epoch for c in run.checkpoints] == [3]
    run.close()


def test_a_failed_last_save_is_raised_by_close(path, monkeypatch):
    """A failure that nobody has seen is raised by `close`."""
    run = holdfast.Run(path)
    run.resume()
    monkeypatch.setattr(files, "system", Refusing(errno.EIO))
    run.save(epoch=1)
    with pytest.raises(StorageError):
        run.close()
    monkeypatch.undo()


def test_no_permission(path, monkeypatch):
    """A directory that may not be made is a `StorageError` with path, reason and advice."""

    def denied(self, target):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(files.System, "mkdir", denied)
    with refused(
        f"Cannot create the directory {path}: Permission denied. Check the owner and the permissions.",
        kind=StorageError,
    ):
        holdfast.Run(path).resume()


def test_another_kind_of_loop(path):
    """A run that counts epochs cannot go on in steps, and is let go again."""
    with holdfast.Run(path) as run:
        list(run.epochs(1))
    with refused("is a training by epochs (1 were asked for)", "run.epochs(…)"):
        list(holdfast.Run(path).steps(5))
    with holdfast.Run(path) as run:
        assert list(run.epochs(2)) == [1]


def test_a_changed_key_that_is_none(path):
    """A name in `changed` that is no key of the config is refused, with the nearest one."""
    with holdfast.Run(path, config={"epochs": 1}) as run:
        list(run.epochs(1))
    with refused("changed='epoch': config has no such key; did you mean 'epochs'?"):
        list(holdfast.Run(path, config={"epochs": 2}, changed=["epoch"]).epochs(2))
