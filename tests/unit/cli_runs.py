"""Small runs of plain NumPy state, made without a framework, for the tests of the command line."""

import json
import os

import numpy as np
from click.testing import CliRunner

import holdfast
from holdfast import Keep
from holdfast.cli.main import main as program

ALL = Keep(last=None, metric="accuracy", mode="max")


def make_run(path, epochs=4, *, keep=ALL, accuracy=(0.5, 0.9, 0.7, 0.8), note="a note", start=0, seed=None):
    """A run with one checkpoint for each epoch; sequence = epoch = step / 10."""
    run = holdfast.Run(str(path), config={"lr": 0.1}, note=note, keep=keep, seed=seed)
    run.resume()
    for epoch in range(start, epochs):
        run.state["weights"] = np.arange(12, dtype=np.float32).reshape(3, 4) * (epoch + 1)
        run.state["loss"] = 1.0 / (epoch + 1)
        metrics = {"accuracy": accuracy[epoch % len(accuracy)], "loss": 1.0 / (epoch + 1)}
        run.save(epoch=epoch + 1, step=10 * (epoch + 1), metrics=metrics, wait=True)
    run.close()
    return str(path)


def checkpoints(path):
    """The directories of a run's checkpoints, oldest first."""
    return [os.path.join(path, name) for name in sorted(os.listdir(path)) if "_epoch-" in name]


def call(*words, env=None):
    """What the command prints and how it ends, as a user gets it from a pipe."""
    result = CliRunner().invoke(program, [str(word) for word in words], env=env, prog_name="holdfast")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def call_json(*words):
    result = call(*words, "--json")
    return json.loads(result.stdout)


def flip(path, place=-1):
    """Flips one bit of a file."""
    with open(path, "r+b") as file:
        data = bytearray(file.read())
        data[place] ^= 1
        file.seek(0)
        file.write(data)
