"""TensorFlow's own way of training: `tf.Module`, `GradientTape`, iterators; one process for all checks."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
from backends import ENVIRONMENT

HERE = os.path.dirname(os.path.abspath(__file__))
pytestmark = pytest.mark.skipif(find_spec("tensorflow") is None, reason="TensorFlow is not installed")

CHECKS = {
    "tape": "a GradientTape loop over a tracked iterator",
    "batches": "run.batches over a tf.data.Dataset",
    "named": "the names of a module's variables",
    "tensors": "tensors as values",
    "iterators": "iterators that cannot be saved, or do not fit",
    "streams": "the global seed and generator",
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """check → what went wrong, or None."""
    done = subprocess.run(
        [sys.executable, f"{HERE}/tensorflow_cases.py", str(tmp_path_factory.mktemp("tensorflow") / "cases")],
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    found = dict(json.loads(line) for line in done.stdout.splitlines() if line.startswith("["))
    assert set(found) == set(CHECKS), done.stderr[-6000:]
    return found


@pytest.mark.parametrize("check", CHECKS)
def test_tensorflow(results, check):
    """What TensorFlow trains is saved in place and continued to the bit; what cannot be is refused with the remedy."""
    assert results[check] is None, results[check]
