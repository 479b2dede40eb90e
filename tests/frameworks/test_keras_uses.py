"""The cases of keras_fit_cases.py for each of Keras' backends, each in a process of its own."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

BACKENDS = ("tensorflow", "torch", "jax")


@pytest.mark.skipif(importlib.util.find_spec("keras") is None, reason="Keras is not installed")
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_users_do_with_fit(backend):
    """Every case passes: what is not in the book is continued to the bit, or refused in words, and nothing is trained."""
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    cases = Path(__file__).with_name("keras_fit_cases.py")
    # Where every backend would do the same, one does it.
    chosen = [] if backend == "torch" else ["-k", f"each_backend or {backend}"]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"),
            *(*chosen, str(cases)),
        ],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
