"""TensorFlow's global seed, which a data set is made with: set again before `fit` makes one."""

from __future__ import annotations

import sys
from typing import Any

from holdfast.errors import HoldfastError
from holdfast.keras import variables
from holdfast.log import logger


def seed_as_before(run: Any) -> None:
    """Sets the global seed that a run was begun with, where this launch has set none.

    `fit` makes its data set before it tells any callback that it begins, so this is done when the
    callback is made. No stream but TensorFlow's own moves by it.
    """
    if variables.framework() != "tensorflow":
        return
    import tensorflow as tf

    from holdfast.tensorflow import streams

    if streams.global_seed() is not None:
        return
    try:
        newest = run.latest
        saved = newest.environment.get("tensorflow_seed") if newest is not None else None
    except HoldfastError:  # a damaged one, say: what resumes will tell
        return
    if isinstance(saved, int):
        logger.info("TensorFlow's global seed is set to %d, as it was when %s was saved.", saved, newest.name)
        tf.random.set_seed(saved)


def warn_of_order(iterator: Any) -> None:
    """Says that without a seed TensorFlow shuffles otherwise each time: arrays on its backend, its data sets on any."""
    adapter: Any = getattr(iterator, "data_adapter", None)
    if type(adapter).__name__ == "TFDatasetAdapter" and hasattr(adapter, "_dataset"):
        from holdfast.tensorflow import datasets

        datasets.warn_of_order(adapter._dataset)
    if "tensorflow" not in sys.modules or variables.framework() != "tensorflow":
        return
    from holdfast.tensorflow import streams

    shuffles = getattr(adapter, "_shuffle", False)
    if shuffles and streams.global_seed() is None:
        logger.warning(
            "TensorFlow's global seed is not set, so each launch shuffles the data of fit in another order; all else "
            "is continued to the bit. Next: keras.utils.set_random_seed(…) or Run(seed=…) at the top of the script; or "
            "give the data through run.batches(…)."
        )
