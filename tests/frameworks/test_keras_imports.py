"""The cases of keras_import_cases.py for each of Keras' backends."""

import pytest
from backends import BACKENDS, needs_keras, run_cases


@needs_keras
@pytest.mark.parametrize("backend", BACKENDS)
def test_files_of_keras_and_tensorflow_continue_in_keras_3(backend):
    """Every case passes: weights, slots and steps of files by Keras 2 and 3 and TensorFlow reach live models."""
    # Where every backend would do the same, one does it; what TensorFlow itself says, it alone can say.
    chosen = {"torch": "not tensorflow_itself", "tensorflow": "each_backend or tensorflow_itself"}
    run_cases("keras_import_cases.py", backend, "-k", chosen.get(backend, "each_backend"))
