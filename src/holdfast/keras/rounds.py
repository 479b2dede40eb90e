"""A `tf.data.Dataset` that `fit` was given as it is: how often it was begun, so that a later epoch has its order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Rounds:
    """Counts the iterations over a shuffled data set, and makes up for those of earlier launches.

    Args:
        iterator: Keras' iterator over epochs.

    """

    def __init__(self, iterator: Any) -> None:
        self._iterator = iterator
        self._eager = hasattr(iterator, "_distributed_dataset")
        self._begun = 0
        self._saved = 0
        self._length: int | None = None
        if self._eager:  # where Keras asks for it, an iteration is made; elsewhere at its first batch
            give = iterator._get_iterator

            def counted() -> Any:
                self._begun += 1
                return give()

            iterator._get_iterator = counted

    def begin_epoch(self) -> None:
        """An epoch begins."""
        missing, self._saved = self._saved, 0
        for _ in range(missing):
            iter(self._dataset)
        self._begun += missing if self._eager else missing + 1
        if self._iterator._num_batches is None:
            # Where the length is known Keras makes one iterator more in each epoch: it was known by then.
            self._iterator._num_batches = self._length

    @property
    def _dataset(self) -> Any:
        if self._eager:
            return self._iterator._distributed_dataset
        return self._iterator.data_adapter._dataset

    def state_dict(self) -> dict[str, Any]:
        return {"begun": self._begun, "length": self._iterator._num_batches}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._saved = int(state["begun"]) - self._begun
        self._length = None if state["length"] is None else int(state["length"])


def rounds_of(iterator: Any) -> Rounds | None:
    """What counts the rounds of the data that an iterator has; None for what is no `tf.data.Dataset`."""
    adapter = getattr(iterator, "data_adapter", None)
    plain = type(adapter).__name__ == "TFDatasetAdapter" and hasattr(adapter, "_dataset")
    return Rounds(iterator) if plain else None
