"""Launches of small trainings: straight, stopped at a step, continued; and their ends, to be compared bit by bit.

A training is a function of a `Launch`, written like a script: it builds everything anew, calls
`launch.run(...)` and `launch.track(...)` instead of `Run(...)` and `run.track(...)`, and
`launch.alive()` in the body of its loop, where a launch may die. As a script,

    python trainings.py ORDERS

reads a JSON list of orders (see `obey`) and carries each out in a forked process of its own, so
that importing torch is paid for once.
"""

import gc
import hashlib
import importlib
import json
import os
import random
import shutil
import signal
import sys
import traceback

import numpy as np
import torch
from torch import nn
from torch.utils.data import TensorDataset

import holdfast
from holdfast import Every, Keep
from holdfast.format.names import parse_checkpoint_name

torch.set_num_threads(1)  # models this small only lose by more, above all beside other tests

ALL = 100_000


class Died(BaseException):
    """Ends a launch in the body of its loop, as SIGKILL would."""


class Launch:
    """One launch of a training.

    Args:
        path: the run's directory.
        number: what the random streams are seeded with before the training builds anything: a
            launch that continues another one must not depend on it.
        die_at: the step at which the launch ends, or a pair of the step and the place in the loop
            (what `alive` was called with), and `how`: "raise", "kill" or "exit".
        signals: step → names of the signals that the process group gets in the body of that step.
        thorough: save at every boundary, and keep all.
        options: what takes precedence over the training's own options for `Run`.

    """

    def __init__(self, path, number=0, *, die_at=None, how="raise", signals=None, thorough=False, **options):
        self.path, self.number, self.how = str(path), number, how
        self.die_at = die_at if isinstance(die_at, list | tuple | None) else (die_at, "body")
        self.signals = {int(key): names for key, names in (signals or {}).items()}
        self.thorough, self.options = thorough, options
        self.things = {}
        seed(number)

    def run(self, **options):
        keep = options.pop("keep", {})
        kept = Keep(**{**keep, "last": ALL}) if self.thorough else Keep(**keep)
        every = Every(epochs=1, steps=1) if self.thorough else Every(epochs=ALL, steps=ALL)
        self._run = holdfast.Run(self.path, **{"every": every, "keep": kept, **options, **self.options})
        if self.thorough:
            self._wait_for_saves(self._run._training)
        return self._run

    def _wait_for_saves(self, inner):
        """Lets no boundary postpone its save because another one is still being written."""
        boundary = inner.boundary

        def waiting(**when):
            inner.need_saver().drain()
            boundary(**when)

        inner.boundary = waiting

    def track(self, **things):
        self.things.update(things)
        self._run.track(**things)

    def top(self):
        """What stands at the top of an epoch's body: makes the first boundary of `batches` a save."""
        if self.thorough:
            self._run.save()

    def alive(self, place="body"):
        """Gets the signals that are due, and dies here if that was asked for."""
        now = self._run.progress.step
        for name in self.signals.pop(now, ()):
            os.killpg(0, getattr(signal, name))
        if self.die_at is not None and (now, place) == tuple(self.die_at):
            if self.how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.how == "exit":
                os._exit(9)
            raise Died

    def end(self):
        """All that must be equal: parts, streams, run.state, progress, history, best."""
        run = self._run
        found = {"streams": read_streams()}
        found |= {name: state_of(thing) for name, thing in self.things.items() if name != "probe"}
        newest = run.latest
        found["state"] = dict(run.state)
        found["progress"] = {name: getattr(run.progress, name) for name in ("epoch", "step", "batch")}
        if newest is not None:
            found["history"] = newest.manifest.history
        if run._training.options.keep.metric is not None and run.best is not None:
            found["best"] = {"metrics": run.best.metrics, "step": run.best.progress.step}
        return flatten(found)


def seed(number):
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


def read_streams():
    kind, keys, *rest = np.random.get_state()
    return [repr(random.getstate()), [kind, keys, *rest], torch.get_rng_state()]


def state_of(thing):
    if isinstance(thing, np.random.Generator):
        return thing.bit_generator.state
    if isinstance(thing, random.Random):
        return repr(thing.getstate())
    if isinstance(thing, torch.Generator):
        return thing.get_state()
    return thing.state_dict()


def flatten(value, path="", found=None):
    """Path → text that tells every bit (dtype, shape, strides and a digest for arrays)."""
    found = {} if found is None else found
    if isinstance(value, dict):
        for key, item in value.items():
            flatten(item, f"{path}/{key}", found)
    elif isinstance(value, list | tuple):
        found[path] = f"{type(value).__name__} of {len(value)}"
        for number, item in enumerate(value):
            flatten(item, f"{path}/{number}", found)
    elif isinstance(value, torch.Tensor):
        array = value.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
        found[path] = f"{value.dtype} {list(value.shape)} {value.stride()} {digest(array.tobytes())}"
    elif isinstance(value, np.ndarray):
        found[path] = f"numpy {value.dtype} {value.shape} {digest(value.tobytes())}"
    elif isinstance(value, np.random.Generator):
        flatten(value.bit_generator.state, path, found)
    elif isinstance(value, set):
        found[path] = repr(sorted(value))
    elif isinstance(value, float):
        found[path] = value.hex()
    elif hasattr(value, "__dict__") and not isinstance(value, type) and not callable(value):
        flatten(vars(value), path, found)
    else:
        found[path] = repr(value)
    return found


def digest(data):
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def differences(one, other):
    """Where two ends differ, in words; empty when they are equal to the bit."""
    return [
        f"{path}: {one.get(path, '(nothing)')} / {other.get(path, '(nothing)')}"
        for path in {**one, **other}
        if one.get(path) != other.get(path)
    ]


# -- launching -----------------------------------------------------------------------------------


def launch(training, path, number=0, **options):
    """Runs a training to its end, which is returned; None when the launch died."""
    one = Launch(path, number, **options)
    try:
        run = training(one)
    except Died:
        return None
    end = one.end()
    run.close()
    return end


def checkpoints(path):
    """(sequence, directory name) of a run's checkpoints, oldest first."""
    names = sorted(name for name in os.listdir(path) if parse_checkpoint_name(name))
    return [(parse_checkpoint_name(name).sequence, name) for name in names]


def places(path):
    """Sequence → progress of every checkpoint of a run."""
    return {number: holdfast.open(f"{path}/{name}").progress for number, name in checkpoints(path)}


def copy_until(source, target, sequence):
    """A run as it was when a checkpoint was its newest."""
    shutil.copytree(
        source,
        target,
        symlinks=True,
        ignore=lambda _, names: [
            name
            for name in names
            if (found := parse_checkpoint_name(name)) is not None and found.sequence > sequence
        ],
    )


# -- in processes of their own ---------------------------------------------------------------------


def find(name):
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)


def obey(order):
    """Carries out one order: {"training", "path", "number", "options", "end": file, "copy"}.

    The process has a group of its own, for signals; "copy" is where the run is copied afterwards.
    """
    os.setsid()
    options = order.get("options", {})
    for name, kind in (("every", Every), ("keep", Keep)):
        if name in options:
            options[name] = kind(**options[name])
    end = launch(find(order["training"]), order["path"], order["number"], **options)
    if order.get("end"):
        with open(order["end"], "w", encoding="utf-8") as file:
            json.dump(end, file)


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        orders = json.load(file)
    for name in ("torch._dynamo", "holdfast.run", "holdfast.torch.loader", "holdfast.payload.reader"):
        importlib.import_module(name)  # what every child would import at its first step
    for order in orders:
        importlib.import_module(order["training"].partition(":")[0])
    gc.freeze()
    codes = []
    for order in orders:
        sys.stdout.flush()
        child = os.fork()
        if not child:
            try:
                obey(order)
            except SystemExit as error:
                sys.exit(error.code)
            except BaseException as error:
                traceback.print_exc()
                sys.exit(130 if isinstance(error, KeyboardInterrupt) else 1)
            sys.exit(0)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        if "copy" in order:
            shutil.copytree(order["path"], order["copy"], symlinks=True)
    print(json.dumps(codes))


# -- what most trainings are made of -----------------------------------------------------------------


def data(samples=22, features=6):
    """The same small data set in every launch, whatever the global streams are."""
    own = torch.Generator().manual_seed(5)
    return TensorDataset(torch.rand(samples, features, generator=own), torch.rand(samples, 1, generator=own))


def net(dropout=0.0):
    layers = [nn.Linear(6, 5), nn.Tanh()]
    if dropout:
        layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers, nn.Linear(5, 1))


def loss_of(model, batch):
    x, y = batch
    return nn.functional.mse_loss(model(x), y)


def step(model, optimizer, batch):
    """One step of any optimizer; the loss as a float."""
    optimizer.zero_grad()
    loss = loss_of(model, batch)
    loss.backward()
    optimizer.step()
    return loss.item()


if __name__ == "__main__":
    main()
