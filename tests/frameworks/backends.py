"""Keras' backends, and how cases for them are run: each backend in a process of its own."""

import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

BACKENDS = ("tensorflow", "torch", "jax")

# Models this small only lose by more threads, above all beside other tests; and most of the time would go into
# compiling the same small programs for each launch.
ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "OMP_NUM_THREADS": "1",
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}

needs_keras = pytest.mark.skipif(importlib.util.find_spec("keras") is None, reason="Keras is not installed")


def run_cases(name, backend, *chosen):
    """Every test of a file of cases passes on a backend."""
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    with tempfile.TemporaryDirectory(prefix="holdfast-compiled-") as compiled:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"),
                *(*chosen, str(Path(__file__).with_name(name))),
            ],
            capture_output=True,
            text=True,
            check=False,
            env={
                **os.environ,
                **ENVIRONMENT,
                "KERAS_BACKEND": backend,
                "JAX_COMPILATION_CACHE_DIR": compiled,
            },
        )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
