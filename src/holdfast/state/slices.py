"""Batches cut out of arrays that lie in memory, shuffled or in order; any batch can be the first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from holdfast.errors import UsageError
from holdfast.state.source import Skip, Steps, type_name

_OWN_INDEXING = {"numpy", "torch", "jax", "jaxlib"}


class ArraySource:
    """A source (`state.source.Source`) of one array, or of a nested value of arrays of one length.

    An epoch's order is drawn at `start`, from NumPy's global stream.

    Args:
        arrays: an array, or tuples, lists and mappings of them; the first axis counts samples.
        batch_size: samples in a batch; the last one of an epoch may have fewer.
        shuffle: a new order in each epoch; else that of the arrays.

    """

    def __init__(self, arrays: Any, batch_size: int, *, shuffle: bool) -> None:
        if isinstance(batch_size, bool) or not hasattr(batch_size, "__index__") or batch_size < 1:
            raise UsageError(
                f"run.batches(…, batch_size={batch_size!r}): expected a whole number of samples, like 32.",
                found=batch_size,
            )
        self._arrays = _indexable(arrays)
        lengths = sorted({int(leaf.shape[0]) for leaf in _leaves(self._arrays)})
        if len(lengths) != 1:
            raise UsageError(
                f"run.batches(…, batch_size=…): expected arrays of one length, found the lengths "
                f"{', '.join(map(str, lengths)) or 'of none'}.",
                found=lengths,
            )
        self._samples, self._size, self._shuffle = lengths[0], int(batch_size), bool(shuffle)
        self.samples_out = 0

    def fingerprint(self) -> dict[str, Any]:
        return {
            "kind": "arrays",
            "samples": self._samples,
            "sampler": "shuffled" if self._shuffle else "in order",
            "batch_size": self._size,
        }

    def generators(self) -> dict[str, Any]:
        return {}

    def length(self) -> int | None:
        return -(-self._samples // self._size)

    def start(self, skip: Skip | None) -> Iterator[Any]:
        # At once, not at the first batch: another thread may ask for that.
        order = np.random.permutation(self._samples) if self._shuffle else np.arange(self._samples)
        begin = skip.samples if skip else 0
        self.samples_out = begin
        return Steps(self._cut(order, begin), self._count)

    def _cut(self, order: np.ndarray[Any, Any], begin: int) -> Iterator[Any]:
        for first in range(begin, self._samples, self._size):
            yield _take(self._arrays, order[first : first + self._size])

    def _count(self, _batch: Any) -> None:
        self.samples_out = min(self.samples_out + self._size, self._samples)

    def state(self) -> Any | None:
        return None

    def warnings(self, skip: Skip | None) -> list[str]:  # noqa: ARG002 (as every source)
        return []

    def close(self) -> None:
        """Does nothing, since nothing was started here."""


def _indexable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _indexable(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return tuple(_indexable(item) for item in value)
    root = type(value).__module__.partition(".")[0]
    found = value if root in _OWN_INDEXING and hasattr(value, "shape") else np.asarray(value)
    if found.ndim == 0 or getattr(found.dtype, "hasobject", False):
        raise UsageError(
            f"run.batches(…, batch_size=…): expected arrays whose first axis counts samples, found a {type_name(value)}.",
            found=type_name(value),
        )
    return found


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in _leaves(item)]
    if isinstance(value, tuple):
        return [leaf for item in value for leaf in _leaves(item)]
    return [value]


def _take(value: Any, rows: np.ndarray[Any, Any]) -> Any:
    if isinstance(value, dict):
        return {key: _take(item, rows) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(_take(item, rows) for item in value)
    return value[rows]
