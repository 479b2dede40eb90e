"""`tf.data.Dataset` as a source of batches: an interrupted epoch is continued in its own order.

A shuffled data set draws a new order each time that it is iterated over, from a stream that only
TensorFlow sees: what can be known is how often that was done. So a launch that resumes begins as many
iterations as were begun before, which costs little, and then has the order of its epoch.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

from holdfast.log import logger
from holdfast.state.source import Skip, Steps, count_samples, pass_over, thrown_away


class Orders:
    """The stream that a data set draws the orders of its epochs from, known by how many were drawn.

    Attributes:
        drawn: how many are counted as drawn; the next `draw` is the one after these.

    """

    def __init__(self) -> None:
        self.drawn = 0
        self._made = 0

    def draw(self, dataset: Any) -> Iterator[Any]:
        """The next iteration over the data set."""
        if self._made > self.drawn:
            logger.warning(
                "This tf.data.Dataset was iterated over in this process already, and draws no order a second time: if it "
                "shuffles, the rest of the training has other orders than an uninterrupted one. Next: start the script again."
            )
            self._made = self.drawn
        while self._made < self.drawn:
            iter(dataset)
            self._made += 1
        self._made = self.drawn = self.drawn + 1
        return iter(dataset)


_orders: weakref.WeakKeyDictionary[Any, Orders] = weakref.WeakKeyDictionary()
_told: weakref.WeakSet[Any] = weakref.WeakSet()


def warn_of_order(dataset: Any) -> None:
    """Says, once, that a data set that shuffles without a seed has other orders in each launch."""
    if dataset in _told or not _shuffles_unseeded(dataset):
        return
    _told.add(dataset)
    logger.warning(
        "This tf.data.Dataset shuffles without a seed, so each launch draws other orders: an epoch that is continued may see "
        "samples twice and others not at all. Next: keras.utils.set_random_seed(…), tf.random.set_seed(…) or Run(seed=…) at "
        "the top of the script, before the data are made; or shuffle(…, seed=…)."
    )


def _shuffles_unseeded(dataset: Any) -> bool:
    waiting = [dataset]
    while waiting:
        node = waiting.pop()
        seeds: list[Any] = [getattr(node, "_seed", None), getattr(node, "_seed2", None)]
        if None not in seeds and not any(int(seed) for seed in seeds):
            return True  # a pair of zeros lets the operation draw its own
        waiting += getattr(node, "_inputs", list)()
    return False


class DatasetSource:
    """A source (`state.source.Source`) of the batches of a data set."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        # A loop calls run.batches anew for each epoch; the data set is what stays.
        self._orders = _orders.setdefault(dataset, Orders())
        self.samples_out = 0

    def fingerprint(self) -> dict[str, Any]:
        return {"kind": "tf.data.Dataset", "length": self.length()}

    def generators(self) -> dict[str, Any]:
        return {"orders": self._orders}

    def length(self) -> int | None:
        found = int(self.dataset.cardinality())
        return found if found >= 0 else None  # -1 is endless, -2 is unknown

    def start(self, skip: Skip | None) -> Iterator[Any]:
        self.samples_out = skip.samples if skip else 0
        warn_of_order(self.dataset)
        items = self._orders.draw(self.dataset)
        if skip:
            pass_over(items, skip.batches)
        return Steps(items, self._count)

    def _count(self, batch: Any) -> None:
        self.samples_out += count_samples(batch)

    def state(self) -> Any | None:
        return None

    def warnings(self, skip: Skip | None) -> list[str]:
        if not skip or not skip.batches:
            return []
        return [
            (
                f"{thrown_away(skip.batches)} to find the place in the epoch, since a tf.data.Dataset begins at its beginning. "
                f"The rest is the same, unless the pipeline draws random numbers for each sample."
            )
        ]

    def close(self) -> None:
        """Does nothing: an iterator ends with whoever holds it."""
