"""What is known of data that `fit` is given as they are, so that other data are noticed at a resume."""

from __future__ import annotations

from typing import Any


def fingerprint_of(iterator: Any) -> dict[str, Any] | None:
    """The facts that a source of `run.batches` would state of the same data; None where Keras tells none.

    Args:
        iterator: Keras' iterator over epochs.

    """
    adapter: Any = getattr(iterator, "data_adapter", None)
    kind = type(adapter).__name__
    if kind == "ArrayDataAdapter":
        samples = getattr(adapter, "_num_samples", None)
        return {
            "kind": "arrays",
            "samples": None if samples is None else int(samples),
            "sampler": "shuffled" if getattr(adapter, "_shuffle", False) else "in order",
            "batch_size": adapter.batch_size,
        }
    if kind == "TFDatasetAdapter":
        return {"kind": "tf.data.Dataset", "length": adapter.num_batches}
    if kind == "PyDatasetAdapter":
        data = type(adapter.py_dataset)
        return {
            "kind": "PyDataset",
            "type": f"{data.__module__}.{data.__qualname__}",
            "length": adapter.num_batches,
            "sampler": "shuffled" if adapter.shuffle else "in order",
        }
    return None
