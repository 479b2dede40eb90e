"""Continuing an epoch of a torch `DataLoader` by drawing its order again and passing over indices.

While `iter(loader)` runs, its index sampler (the batch sampler, or the sampler where there is no
batch size) is an `Order`, which counts samples from the lists of indices, digests them, and passes
over those that were done: no data is fetched for them.

torch draws a base seed only when it makes an iterator, and a loader with persistent workers makes
one per process, so an epoch's order would depend on whether the process is new. Here each epoch
of such a loader draws what one with new workers does.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from holdfast.state.source import (
    Skip,
    Source,
    Steps,
    count_samples,
    find_generators,
    generic_source,
    length_of,
    pass_over,
    thrown_away,
    type_name,
)
from holdfast.torch import workers
from holdfast.torch.order import Indices, Order, digest_choice, draw_as_new, in_place, innermost, place


def source(loader: Any) -> Source:
    """The source for a torch `DataLoader` or a subclass; for all else, the generic one."""
    if not isinstance(loader, DataLoader):
        return generic_source(loader)
    if hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict"):
        return _StatefulLoader(loader)
    if isinstance(loader.dataset, IterableDataset):
        return _StreamLoader(loader)
    return _IndexedLoader(loader)


class _Loader:
    """What all kinds of torch loaders have in common: opening, counting, ending workers."""

    kind = "torch"

    def __init__(self, loader: Any) -> None:
        self._loader = loader
        self._iterator: Any = None  # the running epoch's; it holds the workers
        self._children: list[Any] = []
        # A subclass whose __iter__ is a generator starts all at the first batch that is asked for.
        self._late = inspect.isgeneratorfunction(type(loader).__iter__)
        self.samples_out = 0

    def fingerprint(self) -> dict[str, Any]:
        loader, batches, sampler = self._loader, self._loader.batch_sampler, innermost(self._loader)
        streamed = isinstance(loader.dataset, IterableDataset)
        return {
            "kind": self.kind,
            "samples": None if streamed else length_of(loader.dataset),
            "drawn": None if streamed else length_of(sampler),
            "sampler": type_name(sampler),
            "batch_sampler": "" if batches is None else type_name(batches),
            "batch_size": getattr(batches, "batch_size", loader.batch_size),
            "drop_last": getattr(batches, "drop_last", loader.drop_last),
            "indices": digest_choice(loader),
        }

    def generators(self) -> dict[str, Any]:
        return find_generators(self._loader)

    def length(self) -> int | None:
        loader = self._loader
        if not isinstance(loader.dataset, IterableDataset):
            return length_of(loader)
        # Not len(loader): torch notes that it was asked and then warns of what comes beyond. With
        # workers the answer is a guess, since it depends on how the data set divides itself.
        samples = length_of(loader.dataset) if not loader.num_workers else None
        if samples is None or loader.batch_size is None:
            return samples
        size: int = loader.batch_size
        return samples // size if loader.drop_last else -(-samples // size)

    def start(self, skip: Skip | None) -> Iterator[Any]:
        self.samples_out = skip.samples if skip else 0
        return Steps(self._begin(skip), self._count, self._end)

    def _begin(self, skip: Skip | None) -> Iterator[Any]:
        items: Iterator[Any] = self._open()
        if skip:
            pass_over(items, skip.batches)
        return items

    def _count(self, batch: Any) -> None:
        self.samples_out += count_samples(batch)

    def _end(self) -> None:
        """Called when a batch was asked for that is not there."""

    def _open(self, order: Order | None = None) -> Any:
        """`iter(loader)` with `order` in the place of the index sampler, and protected workers."""
        loader, live = self._loader, self._live()
        if live is not None:
            inner = live._index_sampler
            live._index_sampler = inner if order is None else order
            try:
                draw_as_new(loader, live._index_sampler)
                return iter(loader)
            finally:
                live._index_sampler = inner
        if self._late:
            self._iterator = iter(loader)
            return _Late(self._iterator, self._protected)
        with self._protected(), in_place(loader, order):
            opened = self._iterator = iter(loader)
            workers.adopt(opened)
        replaced = getattr(opened, "_index_sampler", None)
        if isinstance(replaced, Order):
            opened._index_sampler = replaced.inner
        return opened

    def _live(self) -> Any:
        """The iterator of an earlier epoch whose workers go on; all others are ended."""
        loader = self._loader
        kept: Any = getattr(loader, "_iterator", None)
        lives = loader.persistent_workers and loader.num_workers and not getattr(kept, "_shutdown", True)
        if lives and workers.adopted(kept):
            self._iterator = kept
            return kept
        # Workers that somebody else started (for a sample batch) are not protected from signals.
        self.close()
        if kept is not None:
            workers.end(kept)
            loader._iterator = None
        if hasattr(loader, "_initial_iter_for_state_dict"):
            # torchdata's: an iterator made only to ask for its state would be the next epoch's.
            loader._initial_iter_for_state_dict = False
        return None

    @contextlib.contextmanager
    def _protected(self) -> Iterator[None]:
        if not self._loader.num_workers:
            yield
            return
        with workers.protected(self._loader) as self._children:
            yield

    def state(self) -> Any | None:
        return None

    def warnings(self, skip: Skip | None) -> list[str]:
        loader = self._loader
        if not skip or not skip.batches or not loader.num_workers:
            return []
        augmented = (
            f"Random augmentation inside the {loader.num_workers} loader worker(s) cannot be replayed in the "
            "middle of an epoch: their streams begin anew. The order of the samples is exact. With "
            "num_workers=0, or random numbers made from the sample's index, all is."
        )
        said = [augmented]
        if not getattr(loader, "in_order", True):
            said.append(
                "With in_order=False batches come as workers finish them, so those before the interruption "
                "are not exactly those passed over now. Use in_order=True to be exact."
            )
        return said

    def close(self) -> None:
        """Ends the workers, those that do not answer with SIGKILL, within some seconds."""
        iterator, self._iterator = self._iterator, None
        children, self._children = self._children, []
        if iterator is None:
            return
        if inspect.isgenerator(iterator):
            iterator.close()
        workers.end(iterator)
        kept = getattr(self._loader, "_iterator", None)
        if kept is not None:
            workers.end(kept)
            self._loader._iterator = None
        workers.kill(children)


class _IndexedLoader(_Loader):
    """A loader over a map-style data set: passing over costs indices, not data."""

    def __init__(self, loader: Any) -> None:
        super().__init__(loader)
        self._current: Indices | None = None
        self._state: dict[str, Any] | None = None
        self._thrown = False
        self._lost = ""

    def _begin(self, skip: Skip | None) -> Iterator[Any]:
        self._current = self._state = None
        self._lost = ""
        if skip and isinstance(skip.state, dict) and skip.state.get("ended"):
            # A sampler that was asked for one batch too many may have drawn, and would draw again.
            self._state = skip.state
            return iter(())
        name = place(self._loader)
        order = Order(getattr(self._loader, name), skip, batched=name == "batch_sampler")
        items: Iterator[Any] = self._open(order)
        self._thrown = order.current is None
        if order.current is None:
            # A subclass with an __iter__ of its own, which did not ask for indices yet.
            if skip:
                pass_over(items, skip.batches)
            return items
        self._current = order.current
        self._current.advance()
        self._state = self._current.place
        if skip:
            self._compare(skip, self._state["order"])
        return items

    def _compare(self, skip: Skip, found: str | None) -> None:
        saved = skip.state.get("order") if isinstance(skip.state, dict) else None
        if saved is None or found is None or saved == found:
            return
        self._lost = (
            f"The order of the interrupted epoch could not be drawn again: the first {skip.samples:,} indices "
            f"that {type_name(innermost(self._loader))} gives now are not those that were trained on, so in "
            f"this epoch some samples come twice and some not at all. A sampler is exact if its order depends "
            f"only on its arguments, the global random streams, and generators that it holds as attributes, "
            f"and if all is drawn before the epoch's first batch."
        )

    def _count(self, batch: Any) -> None:
        if self._current is None:
            super()._count(batch)
            return
        samples, self._state = self._current.ahead.popleft()
        self.samples_out += samples

    def _end(self) -> None:
        if self._state is not None:
            self._state = {**self._state, "ended": True}

    def state(self) -> Any | None:
        return self._state

    def warnings(self, skip: Skip | None) -> list[str]:
        said = super().warnings(skip)
        if self._lost:
            said.append(self._lost)
        if skip and skip.batches and (self._thrown or self._late):
            said.append(
                f"{thrown_away(skip.batches)} to find the place in the epoch, since "
                f"{type_name(self._loader)} has an __iter__ of its own."
            )
        return said


class _StreamLoader(_Loader):
    """A loader over an `IterableDataset`: it has no indices, so batches are thrown away."""

    kind = "torch-iterable"

    def warnings(self, skip: Skip | None) -> list[str]:
        if not skip or not skip.batches:
            return []
        said = (
            f"{thrown_away(skip.batches)} to find the place in the epoch, since an IterableDataset has no "
            "indices. The rest is the same only if the data set gives the same samples again. A map-style "
            "data set, or torchdata's StatefulDataLoader with state_dict and load_state_dict in the data "
            "set, is continued without that."
        )
        return [said, *super().warnings(skip)]


class _StatefulLoader(_Loader):
    """A loader with `state_dict` and `load_state_dict` (torchdata's): continued through them."""

    kind = "torch-stateful"

    def fingerprint(self) -> dict[str, Any]:
        return {**super().fingerprint(), "workers": self._loader.num_workers}

    def _begin(self, skip: Skip | None) -> Iterator[Any]:
        if skip is None or skip.state is None:
            return super()._begin(skip)
        if isinstance(skip.state, dict) and skip.state.get("_iterator_finished"):
            # Nothing is left of that epoch, and the loader would begin the next.
            return iter(())
        self.close()
        self._live()
        self._loader.load_state_dict(skip.state)
        return super()._begin(None)

    def state(self) -> Any | None:
        # Asked before it has an iterator, the loader makes one and draws from the streams.
        return None if self._iterator is None else self._loader.state_dict()

    def warnings(self, skip: Skip | None) -> list[str]:
        said = super().warnings(skip)
        if not skip or not skip.batches:
            return said
        if skip.state is None:
            said.append(f"{thrown_away(skip.batches)}, since the checkpoint has no state of this loader.")
        sampler = innermost(self._loader)
        known = type(sampler).__module__.partition(".")[0] in {"torch", "torchdata"}
        if skip.state is not None and not known and not hasattr(sampler, "state_dict"):
            said.append(
                f"{type_name(sampler)} has no state_dict, so {type_name(self._loader)} begins it once more than "
                "an uninterrupted run does; an order that is drawn when it begins will differ. Give it "
                "state_dict and load_state_dict, or use torch's DataLoader."
            )
        return said


class _Late:
    """An iterator whose first item is asked for inside `guard`, because workers start then."""

    def __init__(
        self, items: Iterator[Any], guard: Callable[[], contextlib.AbstractContextManager[None]]
    ) -> None:
        self._items, self._guard, self._first = items, guard, True

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if not self._first:
            return next(self._items)
        self._first = False
        with self._guard():
            return next(self._items)
