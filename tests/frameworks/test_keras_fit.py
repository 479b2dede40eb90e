"""`holdfast.keras.Callback` on all three backends, each in processes of its own.

The cases are functions of `keras_cases.py`; two processes for each backend try them all, and each stands
here as a test.
"""

import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec

import pytest
from backends import ENVIRONMENT

HERE = os.path.dirname(os.path.abspath(__file__))
BACKENDS = [name for name in ("tensorflow", "torch", "jax") if find_spec(name)]

pytestmark = pytest.mark.skipif(find_spec("keras") is None, reason="Keras is not installed")


def python(backend, *words, check=True, **environment):
    done = subprocess.run(
        [sys.executable, f"{HERE}/keras_cases.py", *words],
        env={**os.environ, **ENVIRONMENT, **environment, "KERAS_BACKEND": backend},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert not check or done.returncode == 0, done.stderr[-6000:]
    return done


MEMORY = "/dev/shm"


@pytest.fixture(scope="module")
def place():
    """A directory in memory, where that is possible: nothing here is about the disk."""
    directory = tempfile.mkdtemp(prefix="holdfast-keras-", dir=MEMORY if os.access(MEMORY, os.W_OK) else None)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="module")
def results(place):
    """(backend, cases) → case → what went wrong, or None; each is started once."""

    @functools.cache
    def of(backend, which):
        directory = f"{place}/{backend}/{which}"
        done = python(backend, directory, *WHICH[which], JAX_COMPILATION_CACHE_DIR=f"{place}/compiled")
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
        return dict(lines), directory, done.stderr

    return of


CASES = {
    "plain": "dense layers, dropout, Adam and validation, killed three times",
    "deferred": "a model that is built by its first batch",
    "nested": "a subclassed model with shared and nested layers, a schedule and averaged weights",
    "functional": "a graph with augmentation layers and gathered gradients",
    "mixed": "mixed precision with a loss scale",
    "company": "EarlyStopping, a callback of the user's and the history",
    "plateau": "ReduceLROnPlateau",
    "arrays": "arrays through run.batches, continued in the middle of an epoch",
    "pydataset": "a PyDataset through run.batches, which shuffles itself, continued in the middle of an epoch",
    "plain_pydataset": "a PyDataset as it is",
    "tfdata": "a tf.data.Dataset through run.batches, continued in the middle of an epoch",
    "plain_tfdata": "a tf.data.Dataset as it is",
    "stateful": "a recurrent layer that hands its state on",
    "several": "several batches in one call",
}


@pytest.mark.parametrize(
    ("case", "backend"),
    # Keras has no calls of several batches with torch.
    [(case, backend) for case in CASES for backend in BACKENDS if (case, backend) != ("several", "torch")],
)
def test_exact(results, backend, case):
    """A fit that was interrupted and continued ends as one that was not, bit by bit."""
    found, _, said = results(backend, "cases")
    assert case in found, said[-3000:]
    assert found[case] is None, found[case]


CHECKS = {
    "preempted": "SIGTERM and Ctrl-C in the middle of an epoch",
    "preempted_inside": "SIGTERM in the middle of an epoch of run.batches",
    "alone": "the callback without a list",
    "seeded": "TensorFlow's global seed",
    "passed_over": "plain data after a checkpoint in the middle of an epoch",
    "duel": "two optimizers and a step of one's own",
    "complete": "a run that is complete trains nothing",
    "longer": "more epochs continue a complete run",
    "left": "an exception of another callback",
    "refused": "what cannot be right",
    "phases": "a frozen and an unfrozen phase",
    "named": "the names of variables",
    "own_loop": "a loop of one's own",
    "saved": "single checkpoints",
    "entire": "entire models",
    "certified": "probe, card, NaN",
}


WHICH = {"cases": CASES, "checks": CHECKS}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("check", CHECKS)
def test_promises(results, backend, check):
    """Signals, ends, errors, phases and names are on each backend as for a loop of one's own."""
    found, _, said = results(backend, "checks")
    assert check in found, said[-3000:]
    assert found[check] is None, found[check]


@pytest.mark.parametrize("backend", BACKENDS)
def test_killed(results, backend, tmp_path, tried):
    """A fit that SIGKILL ends in the middle of an epoch, continued by a new process, ends as one that was not."""
    _, directory, _ = results(backend, "cases")
    with open(f"{directory}/plain/straight.json", encoding="utf-8") as file:
        straight = json.load(file)
    order = [str(tmp_path / "run"), "--end", "plain"]
    killed = python(backend, *order, "0", json.dumps({"die": [2, 3], "how": "kill"}), check=False)
    assert killed.returncode == -9, killed.stderr[-3000:]
    resumed = python(backend, *order, "1")
    assert json.loads(resumed.stdout.splitlines()[-1]) == straight
    assert "resumed from 0000" in resumed.stderr
    tried("trainings")


@pytest.mark.skipif(set(BACKENDS) != {"tensorflow", "torch", "jax"}, reason="not all backends are installed")
def test_backends_adopt_one_another(results, tmp_path):
    """What one backend has trained is restored into the same model on another, optimizer included."""
    runs = [f"{results(backend, 'cases')[1]}/plain/straight" for backend in ("tensorflow", "jax")]
    python("torch", str(tmp_path), "--adopt", *runs)
    python("jax", str(tmp_path), "--adopt", f"{results('torch', 'cases')[1]}/plain/straight")
