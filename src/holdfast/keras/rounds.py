"""A `tf.data.Dataset` that `fit` was given as it is: how often it was begun, so that a later epoch has its order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Rounds:
    """Counts the iterations over a shuffled data set, and makes up for those of earlier launches.

    Args:
        iterator: Keras' iterator over epochs.
        learns: whether a length that nobody knows is learned in the first epoch, and known in later ones.

    """

    def __init__(self, iterator: Any, *, learns: bool = True) -> None:
        self._iterator, self._learns = iterator, learns
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
        if self._learns and self._iterator._num_batches is None:
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


class ValidationRounds:
    """The same for the data that `fit` validates on, whose iterator Keras makes when it first does.

    A shuffled set gives the sums of a loss in another order, and other last bits of what callbacks compare.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._iterator: Any = None
        self._rounds: Rounds | None = None
        self._saved: Mapping[str, Any] = {}

    def begin(self) -> None:
        """A validation begins."""
        iterator = getattr(self._model, "_eval_epoch_iterator", None)
        if iterator is not self._iterator:
            self._iterator, self._rounds = iterator, rounds_of(iterator, learns=False)
            if self._rounds is not None and self._saved:
                self._rounds.load_state_dict(self._saved)
        if self._rounds is not None:
            self._rounds.begin_epoch()

    def state_dict(self) -> Mapping[str, Any]:
        return self._saved if self._rounds is None else self._rounds.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._saved = state


def rounds_of(iterator: Any, *, learns: bool = True) -> Rounds | None:
    """What counts the rounds of the data that an iterator has; None for what is no `tf.data.Dataset`."""
    adapter = getattr(iterator, "data_adapter", None)
    plain = type(adapter).__name__ == "TFDatasetAdapter" and hasattr(adapter, "_dataset")
    return Rounds(iterator, learns=learns) if plain else None
