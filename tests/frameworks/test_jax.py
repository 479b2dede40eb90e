"""JAX's cases, in a process of their own: JAX is multithreaded, and other tests fork."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="JAX is not installed")
def test_jax_values_are_saved_and_resumed():
    """Every case of jax_cases.py passes: loops, dtypes, keys, refusals."""
    cases = Path(__file__).with_name("jax_cases.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(cases)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
