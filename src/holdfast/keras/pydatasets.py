"""`keras.utils.PyDataset` as a source of batches: any batch of an epoch can be the first."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from holdfast.errors import UsageError
from holdfast.state.source import Skip, Steps, count_samples


class PyDatasetSource:
    """A source (`state.source.Source`) of the batches of a PyDataset.

    Args:
        dataset: its `workers`, if more than one, are threads.
        shuffle: the order of its batches is drawn anew in each epoch, from NumPy's global stream.
        tells: whether its own `on_epoch_begin` and `on_epoch_end` are called from here.

    """

    def __init__(self, dataset: Any, *, shuffle: bool, tells: bool = True) -> None:
        self.dataset, self._shuffle, self.tells = dataset, shuffle, tells
        if dataset.num_batches is None:
            raise UsageError(
                "run.batches() needs to know where an epoch of this PyDataset ends; its num_batches is None. "
                "Next: give it a num_batches, or use run.steps(…).",
                found=None,
            )
        self.samples_out = 0

    def fingerprint(self) -> dict[str, Any]:
        return {
            "kind": "PyDataset",
            "type": f"{type(self.dataset).__module__}.{type(self.dataset).__qualname__}",
            "length": self.length(),
            "sampler": "shuffled" if self._shuffle else "in order",
        }

    def generators(self) -> dict[str, Any]:
        return {}

    def length(self) -> int | None:
        return int(self.dataset.num_batches)

    def start(self, skip: Skip | None) -> Iterator[Any]:
        if self.tells:
            self.dataset.on_epoch_begin()
        count = int(self.dataset.num_batches)
        # At once, not at the first batch: another thread may ask for that.
        order = (
            [int(number) for number in np.random.permutation(count)] if self._shuffle else list(range(count))
        )
        self.samples_out = skip.samples if skip else 0
        return Steps(self._fetch(order[skip.batches if skip else 0 :]), self._count, self._end)

    def _fetch(self, order: list[int]) -> Iterator[Any]:
        workers = int(getattr(self.dataset, "workers", 1) or 1)
        if workers < 2:
            for number in order:
                yield self.dataset[number]
            return
        ahead = max(workers, int(getattr(self.dataset, "max_queue_size", 10) or 10))
        with ThreadPoolExecutor(workers) as pool:
            waiting: list[Future[Any]] = [pool.submit(self.dataset.__getitem__, n) for n in order[:ahead]]
            try:
                for number in range(len(order)):
                    batch = waiting.pop(0).result()
                    if number + ahead < len(order):
                        waiting.append(pool.submit(self.dataset.__getitem__, order[number + ahead]))
                    yield batch
            finally:
                for future in waiting:
                    future.cancel()

    def _count(self, batch: Any) -> None:
        self.samples_out += count_samples(batch)

    def _end(self) -> None:
        if self.tells:
            self.dataset.on_epoch_end()

    def state(self) -> Any | None:
        return None

    def warnings(self, skip: Skip | None) -> list[str]:  # noqa: ARG002 (as every source)
        return []

    def close(self) -> None:
        """Does nothing: threads end with the iteration that started them."""


def forget_fetched(iterator: Any) -> None:
    """Drops the batches of a PyDataset that its workers have fetched before the training begins.

    With the torch and JAX backends Keras looks at one of them to build the model, and would train on the others
    first, whatever is restored meanwhile.

    Args:
        iterator: Keras' iterator over epochs; the workers stand still.

    """
    enqueuer = getattr(getattr(iterator, "data_adapter", None), "enqueuer", None)
    fetched = getattr(enqueuer, "ready_queue", None)
    while fetched is not None and not fetched.empty():
        fetched.get_nowait()
