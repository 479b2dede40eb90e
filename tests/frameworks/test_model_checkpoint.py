"""The cases of model_checkpoint_cases.py for each of Keras' backends."""

import pytest
from backends import BACKENDS, needs_keras, run_cases


@needs_keras
@pytest.mark.parametrize("backend", BACKENDS)
def test_model_checkpoint_beside_that_of_keras(backend):
    """Every case passes: decisions, names and texts as Keras', whole files, the best remembered, TensorFlow's verbs."""
    # Where every backend would do the same, one does it.
    run_cases("model_checkpoint_cases.py", backend, *([] if backend == "torch" else ["-k", "each_backend"]))
