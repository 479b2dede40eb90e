"""Where the batches of an epoch come from, and how an interrupted epoch is continued.

A `Source` is used like this. Straight: the caller notes all random streams and the source's
`generators` (the *order state*), calls `start(None)` and iterates. A checkpoint between two
batches keeps the order state, how many batches and samples were handed out, `state()`, and the
streams and generators as they stand now. Resuming: the order state is put back, `start(Skip(...))`
draws the same order and passes over what was done, then the streams and generators of the
checkpoint are put back, and the iteration goes on.

`start(Skip(N, ...))` with N the full epoch is not the same as not starting: a sampler may draw
once more when it is asked for the batch that is not there. So a resumed epoch is always started,
however much of it was done. A source may serve many epochs; `close` is for the end of the last.
"""

from __future__ import annotations

import collections.abc
import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

from holdfast.errors import UsageError


class Skip(NamedTuple):
    """Where an interrupted epoch stood: what was handed out, and the source's own state."""

    batches: int
    samples: int
    state: Any | None = None


class Source(Protocol):
    """Batches of one loader, epoch after epoch. Used by one thread at a time."""

    samples_out: int
    """Samples handed out so far in this epoch, those passed over included."""

    def fingerprint(self) -> dict[str, Any]:
        """What must be the same for an interrupted epoch to be continued; plain JSON values."""

    def generators(self) -> dict[str, Any]:
        """The loader's own random generators by attribute path, each object once.

        They are `torch.Generator`, `numpy.random.Generator`, `numpy.random.RandomState` or
        `random.Random`; the caller saves and restores their states.
        """

    def length(self) -> int | None:
        """Batches in a full epoch, or None where that cannot be known."""

    def start(self, skip: Skip | None) -> Iterator[Any]:
        """An iterator over the epoch's batches, or over those that come after `skip`."""

    def state(self) -> Any | None:
        """What `start` needs beside the counts. Good until the next batch is asked for."""

    def warnings(self, skip: Skip | None) -> list[str]:
        """What cannot be exact when this epoch is resumed. Ask after `start`: it may add to it."""

    def close(self) -> None:
        """Ends what `start` has started, loader workers above all. The source can start again."""


class Steps:
    """An iterator that tells `done` of each item before it hands it out, and `end` of the end."""

    def __init__(
        self, items: Iterator[Any], done: Callable[[Any], None], end: Callable[[], None] = lambda: None
    ) -> None:
        self._items, self._done, self._end = items, done, end

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        try:
            item = next(self._items)
        except StopIteration:
            self._end()
            raise
        self._done(item)
        return item


def pass_over(items: Iterator[Any], count: int) -> None:
    """Fetches `count` items and throws them away; stops early where there are fewer."""
    next(itertools.islice(items, count, count), None)


# -- sources without a framework -----------------------------------------------------------------


def generic_source(loader: Any) -> Source:
    """The source for anything that can be iterated (else a `UsageError`) and is not a framework's loader."""
    if callable(getattr(loader, "state_dict", None)) and callable(getattr(loader, "load_state_dict", None)):
        return _StatefulSource(loader)
    if _is_sequence(loader):
        return _SequenceSource(loader)
    if not hasattr(loader, "__iter__") and not hasattr(loader, "__getitem__"):
        raise UsageError(
            f"batches() needs a loader: something that can be iterated, such as a DataLoader or a list of "
            f"batches. A {type_name(loader)} cannot be.",
            found=type_name(loader),
        )
    return _IterableSource(loader)


class _IterableSource:
    """Any iterable: its place is found by fetching and throwing away."""

    kind = "iterable"

    def __init__(self, loader: Any) -> None:
        self._loader = loader
        self.samples_out = 0

    def fingerprint(self) -> dict[str, Any]:
        return {"kind": self.kind, "type": type_name(self._loader), "length": self.length()}

    def generators(self) -> dict[str, Any]:
        return find_generators(self._loader)

    def length(self) -> int | None:
        return length_of(self._loader)

    def start(self, skip: Skip | None) -> Iterator[Any]:
        self.samples_out = skip.samples if skip else 0
        return Steps(self._begin(skip), self._count)

    def _begin(self, skip: Skip | None) -> Iterator[Any]:
        items: Iterator[Any] = iter(self._loader)
        if skip:
            pass_over(items, skip.batches)
        return items

    def _count(self, batch: Any) -> None:
        self.samples_out += count_samples(batch)

    def state(self) -> Any | None:
        return None

    def warnings(self, skip: Skip | None) -> list[str]:
        if not skip or not skip.batches:
            return []
        said = (
            f"{thrown_away(skip.batches)} to find the place in the epoch, since a "
            f"{type_name(self._loader)} cannot begin in the middle. The rest of the epoch is the same only "
            f"if it gives the same batches again. A DataLoader, a list, or an object with state_dict and "
            f"load_state_dict is continued without that."
        )
        return [said]

    def close(self) -> None:
        """Does nothing, since nothing was started here."""


class _SequenceSource(_IterableSource):
    """A list, a tuple, an array or any other sequence of batches: begins anywhere at no cost."""

    kind = "sequence"

    def fingerprint(self) -> dict[str, Any]:
        return {"kind": self.kind, "length": self.length()}

    def _begin(self, skip: Skip | None) -> Iterator[Any]:
        return _items_from(self._loader, skip.batches if skip else 0)

    def warnings(self, skip: Skip | None) -> list[str]:  # noqa: ARG002
        return []


class _StatefulSource(_IterableSource):
    """An object that keeps its own place (`state_dict`, `load_state_dict`)."""

    kind = "stateful"

    def __init__(self, loader: Any) -> None:
        super().__init__(loader)
        self._started = False

    def _begin(self, skip: Skip | None) -> Iterator[Any]:
        self._started = True
        if skip is None or skip.state is None:
            return super()._begin(skip)
        length = self.length()
        if length is not None and skip.batches >= length:
            return iter(())  # its state says "at the end", which some take for "begin the next epoch"
        self._loader.load_state_dict(skip.state)
        return super()._begin(None)

    def state(self) -> Any | None:
        return self._loader.state_dict() if self._started else None

    def warnings(self, skip: Skip | None) -> list[str]:
        if not skip or skip.state is not None:
            return []
        return super().warnings(skip)


def _is_sequence(loader: Any) -> bool:
    """Whether items may be taken by number instead of by iterating."""
    if not hasattr(loader, "__getitem__") or not hasattr(loader, "__len__"):
        return False
    if isinstance(loader, collections.abc.Mapping):
        return False
    if isinstance(loader, list | tuple | range) or (_family(loader) in _ARRAYS and hasattr(loader, "shape")):
        return True
    iterate = getattr(type(loader), "__iter__", None)
    return iterate is None or iterate is collections.abc.Sequence.__iter__


def _items_from(sequence: Any, begin: int) -> Iterator[Any]:
    # A list that grows under the loop is followed, as `for` does.
    for number in itertools.count(begin):
        try:
            item = sequence[number]
        except IndexError:
            return
        yield item
        del item


# -- comparing -----------------------------------------------------------------------------------

_WORDS = {
    "kind": "the kind of loader",
    "type": "the type of the loader",
    "length": "the number of batches",
    "samples": "the number of samples in the data set",
    "drawn": "the number of samples drawn in an epoch",
    "sampler": "the type of the sampler",
    "batch_sampler": "the type of the batch sampler",
    "indices": "the indices of the sampler or of a Subset (as a digest)",
    "workers": "the number of loader workers",
}

_NOTES = {
    "batch_size": "The batch size was {was} and is {now} now: the same samples are passed over, and those "
    "that follow come in batches of {now}.",
    "drop_last": "drop_last was {was} and is {now} now: the end of the interrupted epoch differs.",
}


def compare_fingerprints(saved: Mapping[str, Any], current: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """How the loader differs from the one of the interrupted epoch: errors, warnings.

    An error means that the epoch cannot be continued with this loader. What either side does
    not know (None, or a key that it does not have) is not compared.
    """
    changes = {
        key: (saved[key], current[key])
        for key in (*_WORDS, *_NOTES)
        if None not in (saved.get(key), current.get(key)) and saved[key] != current[key]
    }
    if "kind" in changes:  # nothing else can be compared
        changes = {"kind": changes["kind"]}
    errors = [
        f"The loader differs from that of the interrupted epoch: {_WORDS[key]} was {_shown(was)} and is "
        f"{_shown(now)} now. Make it as it was, or pass changed=['loader'] to go on with the new one."
        for key, (was, now) in changes.items()
        if key in _WORDS
    ]
    notes = [_NOTES[key].format(was=was, now=now) for key, (was, now) in changes.items() if key in _NOTES]
    return errors, notes


def _shown(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else (str(value) or "none")


# -- looking at loaders --------------------------------------------------------------------------

_GENERATORS = {("torch", "Generator"), ("numpy", "Generator"), ("numpy", "RandomState")}
_ARRAYS = {"numpy", "torch", "jax", "jaxlib"}
_PARTS = ["sampler", "batch_sampler", "base_sampler", "data_source", "dataset", "datasets"]
_PARTS += ["transform", "transforms", "target_transform", "collate_fn"]


def find_generators(root: Any) -> dict[str, Any]:
    """Random generators held as attributes by a loader, its samplers, data sets and transforms."""
    found: dict[str, Any] = {}
    seen: set[int] = set()
    waiting: collections.deque[tuple[str, Any]] = collections.deque([("", root)])
    while waiting:
        path, node = waiting.popleft()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, list | tuple):
            waiting.extend((f"{path}.{number}", part) for number, part in enumerate(node))
            continue
        attributes = getattr(node, "__dict__", None)
        if not isinstance(attributes, dict):
            continue
        before = f"{path}." if path else ""
        for name in sorted(attributes, key=str):
            value = attributes[name]
            if _is_generator(value) and id(value) not in seen:
                seen.add(id(value))
                found[f"{before}{name}"] = value
        waiting.extend((f"{before}{name}", attributes[name]) for name in _PARTS if name in attributes)
    return found


def _is_generator(value: Any) -> bool:
    if isinstance(value, random.Random):
        return not isinstance(value, random.SystemRandom)
    return (_family(value), type(value).__name__) in _GENERATORS


def _family(value: Any) -> str:
    return type(value).__module__.partition(".")[0]


def length_of(loader: Any) -> int | None:
    """`len(loader)`, or None where it has none."""
    try:
        return len(loader)
    except (TypeError, NotImplementedError, AttributeError):
        return None


def count_samples(batch: Any) -> int:
    """How many samples a batch seems to hold: its leading dimension, else its length, else 1."""
    if hasattr(batch, "shape"):
        return _leading(batch)
    if isinstance(batch, Mapping):
        return _count_first(batch.values(), otherwise=1)
    if isinstance(batch, tuple):
        return _count_first(batch, otherwise=1)
    if isinstance(batch, list):
        return _count_first(batch, otherwise=len(batch))
    return 1


def _count_first(parts: Iterable[Any], otherwise: int) -> int:
    parts = list(parts)
    for part in parts:
        if hasattr(part, "shape"):
            return _leading(part)
    if parts and isinstance(parts[0], Mapping | list) and otherwise == 1:
        return count_samples(parts[0])
    return otherwise


def _leading(array: Any) -> int:
    return int(array.shape[0]) if len(array.shape) else 1


def thrown_away(batches: int) -> str:
    """`3 batches are fetched and thrown away`, in good grammar."""
    return (
        "1 batch is fetched and thrown away"
        if batches == 1
        else f"{batches:,} batches are fetched and thrown away"
    )


def type_name(value: Any) -> str:
    """The full name of an object's type, without `builtins`."""
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
