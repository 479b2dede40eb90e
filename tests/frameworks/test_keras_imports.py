"""The cases of keras_import_cases.py for each of Keras' backends, each in a process of its own."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

BACKENDS = ("tensorflow", "torch", "jax")


@pytest.mark.skipif(importlib.util.find_spec("keras") is None, reason="Keras is not installed")
@pytest.mark.parametrize("backend", BACKENDS)
def test_files_of_keras_and_tensorflow_continue_in_keras_3(backend):
    """Every case passes: weights, slots and steps of files by Keras 2 and 3 and TensorFlow reach live models."""
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    cases = Path(__file__).with_name("keras_import_cases.py")
    # Where every backend would do the same, one does it; what TensorFlow itself says, it alone can say.
    chosen = {"torch": "not tensorflow_itself", "tensorflow": "each_backend or tensorflow_itself"}
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"),
            *("-k", chosen.get(backend, "each_backend"), str(cases)),
        ],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
