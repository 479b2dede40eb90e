"""`run.batches(…)` handed to `fit`: batches that Keras asks for, in an order that a checkpoint can give back.

Keras fetches a batch before it calls the callbacks for it, or, with TensorFlow, several of them, in
another thread. So an epoch's order is drawn in one go where the epoch begins, and what counts as done
is what was trained, never what was handed out.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import keras
from keras.src.trainers.data_adapters import data_adapter_utils
from keras.src.trainers.data_adapters.data_adapter import DataAdapter

from holdfast.errors import UsageError
from holdfast.keras import surroundings
from holdfast.loop import Batches, Loop
from holdfast.state import streams
from holdfast.state.source import Source


class Feed(Batches, DataAdapter):  # type: ignore[misc] # Keras brings no types
    """The batches of a run, for a loop of one's own and for `fit`."""

    def __init__(self, loop: Loop, find: Callable[[], Source]) -> None:
        super().__init__(loop, find)
        self.loop = loop
        self.iterator: Any = None
        """Keras' iterator over epochs of the `fit` that trains on these batches."""
        self._source: Source | None = None
        self._items: Iterator[Any] = iter(())
        self._counts: list[int] = []
        """Samples in the epoch up to each batch that was handed out."""
        self._begin = 0
        self._example: Any = None

    @property
    def source(self) -> Source:
        """Where the batches come from: one source for all epochs of a `fit`."""
        if self._source is None:
            self._source = self._find()
            if hasattr(self._source, "tells"):
                self._source.tells = False  # Keras tells its data of epochs, and we pass it on
        return self._source

    @property
    def dataset(self) -> Any:
        """The user's object that the batches come from, where it is told of epochs."""
        return getattr(self.source, "dataset", None)

    # -- what the fitting asks -------------------------------------------------------------------

    def samples(self, batches: int) -> int:
        """Samples of this epoch up to a batch."""
        index = batches - self._begin - 1
        return self._counts[index] if 0 <= index < len(self._counts) else self.loop.training.position.samples

    # -- what Keras asks -------------------------------------------------------------------------

    def on_epoch_begin(self) -> None:
        """An epoch of `fit`, or a look at one batch before it: to build a model.

        Raises:
            UsageError: Keras would train or evaluate on these batches, and no run would know.

        """
        if surroundings.builds():
            self._items = iter([self.example()])
            return
        if self.loop.active != "fit" or surroundings.caller() is not self.iterator:
            raise UsageError(
                "run.batches(…) are the batches that a run trains on, and here Keras would use them without the run. Next: "
                "fit(…, callbacks=[holdfast.keras.Callback(run)]); for validation_data=, evaluate and predict give the data "
                "themselves."
            )
        self._counts, self._begin = [], self.loop.training.position.batch
        hook = getattr(self.dataset, "on_epoch_begin", None)
        if hook is not None:
            hook()
        self.loop.training.loader.source = self.source
        items = self.loop.start(self.source, quiet=True)
        # Some loaders draw their order at the first batch: that must come before what Keras draws to ask for it.
        first = next(items, None)
        self._items = items if first is None else itertools.chain([first], items)

    def on_epoch_end(self) -> None:
        hook = getattr(self.dataset, "on_epoch_end", None)
        if hook is not None:
            hook()

    def example(self) -> Any:
        """A batch to learn shapes from; no stream moves by it, and no epoch begins."""
        if self._example is None:
            dataset = self.dataset
            before = streams.capture()
            if hasattr(dataset, "element_spec"):
                self._example = keras.tree.map_structure(_zeros, dataset.element_spec)
            elif dataset is not None:
                self._example = dataset[0]
            else:
                self._example = next(self.source.start(None), None)
            streams.restore(before)
            if self._example is None:
                raise UsageError("run.batches(…): there is no batch in this data.")
            if isinstance(self._example, list):
                self._example = tuple(self._example)
        return self._example

    def _stream(self) -> Iterator[Any]:
        items, self._items = self._items, iter(())
        for batch in items:
            self._counts.append(self.source.samples_out)
            yield tuple(batch) if isinstance(batch, list) else batch

    def get_numpy_iterator(self) -> Any:
        return data_adapter_utils.get_numpy_iterator(self._stream())

    def get_jax_iterator(self) -> Any:
        return data_adapter_utils.get_jax_iterator(self._stream())

    def get_torch_dataloader(self) -> Any:
        return data_adapter_utils.get_torch_dataloader(self._stream())

    def get_tf_dataset(self) -> Any:
        import tensorflow as tf

        spec = getattr(self.dataset, "element_spec", None)
        if spec is None:
            spec = data_adapter_utils.get_tensor_spec([self.example()])
        spec = tuple(spec) if isinstance(spec, list) else spec
        return tf.data.Dataset.from_generator(self._stream, output_signature=spec).prefetch(tf.data.AUTOTUNE)

    @property
    def num_batches(self) -> int | None:
        return self.source.length()

    @property
    def batch_size(self) -> int | None:
        return None

    @property
    def has_partial_batch(self) -> bool:
        return False

    @property
    def partial_batch_size(self) -> int | None:
        return None


def _zeros(spec: Any) -> Any:
    import numpy as np

    return np.zeros([extent or 1 for extent in spec.shape], spec.dtype.as_numpy_dtype)
