"""The cases of model_checkpoint_cases.py for each of Keras' backends, each in a process of its own."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

BACKENDS = ("tensorflow", "torch", "jax")


@pytest.mark.skipif(importlib.util.find_spec("keras") is None, reason="Keras is not installed")
@pytest.mark.parametrize("backend", BACKENDS)
def test_model_checkpoint_beside_that_of_keras(backend):
    """Every case passes: decisions, names and texts as Keras', whole files, the best remembered, TensorFlow's verbs."""
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    cases = Path(__file__).with_name("model_checkpoint_cases.py")
    # Where every backend would do the same, one does it.
    chosen = [] if backend == "torch" else ["-k", "each_backend"]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-p",
            "no:xdist",
            *chosen,
            str(cases),
        ],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
