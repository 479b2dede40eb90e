"""The cases of keras_fit_cases.py for each of Keras' backends."""

import pytest
from backends import BACKENDS, needs_keras, run_cases


@needs_keras
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_users_do_with_fit(backend):
    """Every case passes: what is not in the book is continued to the bit, or refused in words, and nothing is trained."""
    # Where every backend would do the same, one does it.
    chosen = [] if backend == "torch" else ["-k", f"each_backend or {backend}"]
    run_cases("keras_fit_cases.py", backend, *chosen)
