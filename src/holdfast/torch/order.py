"""An index sampler's order: counted, digested, and begun in the middle."""

from __future__ import annotations

import collections
import contextlib
import itertools
from array import array
from collections.abc import Iterator
from typing import Any

import torch
import xxhash
from torch.utils.data import BatchSampler

from holdfast.state.source import Skip


class Order:
    """Stands in for an index sampler; counts and digests what it hands out, after passing over `skip`.

    Passing over must not happen before torch has drawn the workers' base seed, which it does after
    it opened the sampler, since a sampler may draw from the same stream: it happens when the first
    index is asked for, or at `Indices.advance`.
    """

    def __init__(self, inner: Any, skip: Skip | None, *, batched: bool) -> None:
        self.inner, self.skip, self.batched = inner, skip, batched
        self.current: Indices | None = None  # torch opens it twice when workers start; the last counts

    def __iter__(self) -> Indices:
        self.current = Indices(self.inner, self.skip, batched=self.batched)
        return self.current

    def __len__(self) -> int:
        return len(self.inner)

    def __getattr__(self, name: str) -> Any:
        # A subclass of DataLoader may look at its sampler (`set_epoch`) while it is opened.
        if name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)

    def __reduce__(self) -> tuple[Any, ...]:
        # A data set or a collate function may hold the loader, and is sent to spawned workers.
        return (_same, (self.inner,))


def _same(value: Any) -> Any:
    return value


class Indices:
    """One pass over an index sampler.

    A place is the digest of the indices so far, the batch size, and the sample from which on that
    size held (0 unless it changed in the middle of the epoch). `place` is that after passing over;
    `ahead` has (samples, place) for each batch that was asked for and not yet handed out.
    """

    def __init__(self, inner: Any, skip: Skip | None, *, batched: bool) -> None:
        self._inner, self._skip, self._batched = inner, skip, batched
        self._items: Iterator[Any] = iter(inner)
        self._digest = Digest()
        self._cut = 0
        self.place = self._place()
        self.ahead: collections.deque[tuple[int, dict[str, Any]]] = collections.deque()

    def __iter__(self) -> Indices:
        return self

    def __next__(self) -> Any:
        self.advance()
        index = next(self._items)
        listed = list_indices(index, batched=self._batched)
        self._digest.add(listed)
        self.ahead.append((len(listed), self._place()))
        return index

    def advance(self) -> None:
        """Passes over what was done, once; later calls do nothing."""
        skip, self._skip = self._skip, None
        if skip is None or not skip.batches:
            return
        if type(self._inner) is BatchSampler:
            saved = skip.state if isinstance(skip.state, dict) else {}
            same_size = saved.get("batch_size") == self._inner.batch_size
            self._cut = int(saved.get("cut", 0)) if same_size else skip.samples
            self._pass(batches=0, samples=skip.samples, done=self._cut_anew(self._inner))
        else:
            self._pass(skip.batches, skip.samples)
        self.place = self._place()

    def _cut_anew(self, batches: BatchSampler[Any]) -> int:
        """Where the batch size changed: what came before in single samples, the rest in new batches."""
        if not self._cut:
            return 0
        samples, left = iter(batches.sampler), self._cut
        while left and (passed := list(itertools.islice(samples, min(left, 1 << 16)))):
            self._digest.add(passed)
            left -= len(passed)
        self._items = iter(BatchSampler(samples, batches.batch_size, batches.drop_last))
        return self._cut

    def _pass(self, batches: int, samples: int, done: int = 0) -> None:
        """At least so many batches, up to so many samples; a batch that has too many is split."""
        while batches > 0 or done < samples:
            try:
                index = next(self._items)
            except StopIteration:
                return
            listed = list_indices(index, batched=self._batched)
            room = samples - done
            if len(listed) > room:
                self._digest.add(listed[:room])
                self._items = itertools.chain([listed[room:] if room else index], self._items)
                return
            self._digest.add(listed)
            batches, done = batches - 1, done + len(listed)

    def _place(self) -> dict[str, Any]:
        size = self._inner.batch_size if type(self._inner) is BatchSampler else None
        return {"order": self._digest.value, "batch_size": size, "cut": self._cut}


class Digest:
    """Of the sample indices so far, however they were cut into batches; None if one has no stable text."""

    def __init__(self) -> None:
        self._hash = xxhash.xxh3_64()
        self.value: str | None = self._hash.hexdigest()

    def add(self, indices: list[Any]) -> None:
        if self.value is None:
            return
        try:
            self._hash.update(array("q", indices).tobytes())
        except (TypeError, OverflowError):
            text = "".join(f"{index!r};" for index in indices)
            if " at 0x" in text:  # an address: another one in each process
                self.value = None
                return
            self._hash.update(text.encode(errors="surrogatepass"))
        self.value = self._hash.hexdigest()


def list_indices(index: Any, *, batched: bool) -> list[Any]:
    """The sample indices in what an index sampler gave: a batch of them, or a single one."""
    if isinstance(index, list):
        return index
    if getattr(index, "ndim", 0) and hasattr(index, "tolist"):
        listed: list[Any] = index.tolist()
        return listed
    if isinstance(index, range) or (batched and hasattr(index, "__len__") and not isinstance(index, str)):
        return list(index)
    return [index]


def place(loader: Any) -> str:
    """The attribute of a loader that its order comes from."""
    return "batch_sampler" if loader.batch_sampler is not None else "sampler"


def innermost(loader: Any) -> Any:
    """The sampler of single samples; a custom batch sampler may have none, then it is the loader's."""
    return getattr(loader.batch_sampler, "sampler", loader.sampler)


@contextlib.contextmanager
def in_place(loader: Any, order: Order | None) -> Iterator[None]:
    """In the block, the loader's index sampler is `order`."""
    if order is None:
        yield
        return
    # DataLoader refuses a plain assignment once it is initialised.
    name = place(loader)
    object.__setattr__(loader, name, order)
    try:
        yield
    finally:
        object.__setattr__(loader, name, order.inner)


def draw_as_new(loader: Any, sampler: Any) -> None:
    """Draws what the constructor of an iterator with workers does before it opens `sampler` again."""
    iter(sampler)
    torch.empty((), dtype=torch.int64).random_(generator=loader.generator)


def digest_choice(loader: Any) -> str:
    """Digest of the indices that nested `Subset`s and a `SubsetRandomSampler` choose; "" for none."""
    chosen = xxhash.xxh3_64()
    found = 0
    sampler = innermost(loader)
    waiting, seen = [sampler, loader.dataset], set[int]()
    while waiting and len(seen) < 1000:  # a data set that makes up its attributes has no end
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        indices = getattr(node, "indices", None)
        if indices is not None and hasattr(indices, "__len__"):
            part = Digest()
            part.add(list_indices(indices, batched=True))
            chosen.update(f"{found}:{len(indices)}:{part.value};".encode())
            found += 1
        if node is sampler:
            continue
        inner = getattr(node, "datasets", ())
        waiting.extend(inner.values() if isinstance(inner, dict) else inner)
        if getattr(node, "dataset", None) is not None:
            waiting.append(node.dataset)
    return chosen.hexdigest() if found else ""
