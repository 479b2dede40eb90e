"""Sources of batches that belong to no framework, and the comparison of fingerprints."""

import json
import random
from collections.abc import Sequence

import numpy as np
import pytest

from holdfast.errors import UsageError
from holdfast.state.source import Skip, compare_fingerprints, count_samples, find_generators, generic_source


class Lazy(Sequence):
    """A sequence that notes what is read from it."""

    def __init__(self, size):
        self.size, self.reads = size, []

    def __len__(self):
        return self.size

    def __getitem__(self, number):
        if number >= self.size:
            raise IndexError(number)
        self.reads.append(number)
        return number


class Indexed:
    """Only the old protocol: items by number until IndexError."""

    def __len__(self):
        return 5

    def __getitem__(self, number):
        return [10, 11, 12, 13, 14][number]


class Plain:
    def __iter__(self):
        return iter(range(5))


class Stateful:
    def __init__(self):
        self.at, self.rng = 0, random.Random(3)

    def __iter__(self):
        while self.at < 5:
            self.at += 1
            yield self.at - 1
        self.at = 0

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state):
        self.at = state["at"]


@pytest.mark.parametrize(
    "make",
    [
        lambda: [1, 2, 3, 4, 5],
        lambda: (1, 2, 3, 4, 5),
        lambda: range(5),
        lambda: Lazy(5),
        Indexed,
        lambda: np.arange(10).reshape(5, 2),
        Plain,
        lambda: {"a": 1, "b": 2, "c": 3},
        lambda: zip(range(5), range(5), strict=True),
        lambda: (number for number in range(5)),
        Stateful,
    ],
)
def test_every_cut(make):
    """Whatever can be iterated goes on after any batch as if it had not been interrupted."""
    src = generic_source(make())
    items, states = [], []
    run = src.start(None)
    while True:
        states.append(Skip(len(items), src.samples_out, src.state()))
        try:
            items.append(next(run))
        except StopIteration:
            break
    for skip in states:
        again = generic_source(make())
        rest = list(again.start(skip))
        assert list(map(str, rest)) == list(map(str, items[skip.batches :]))
        assert again.samples_out == src.samples_out
        again.close()


def test_sequence_is_not_read():
    """Of a sequence, batches that are passed over are not read."""
    lazy = Lazy(6)
    assert list(generic_source(lazy).start(Skip(4, 4))) == [4, 5]
    assert lazy.reads == [4, 5]


def test_state_of_an_object():
    """An object with state_dict is asked only once it was started, and is not fetched from to skip."""
    src = generic_source(Stateful())
    assert src.state() is None
    next(src.start(None))
    assert src.state() == {"at": 1}
    assert src.warnings(Skip(1, 1, src.state())) == []
    assert "1 batch is fetched and thrown away" in src.warnings(Skip(1, 1))[0]


class Endless(Stateful):
    """Forgets at its end that it is there."""

    def __len__(self):
        return 5

    def state_dict(self):
        return {"at": self.at % 5}


def test_object_at_its_end():
    """An object whose state at the end of an epoch is that of a beginning does not begin again."""
    src = generic_source(Endless())
    assert list(src.start(None)) == [0, 1, 2, 3, 4]
    assert list(generic_source(Endless()).start(Skip(5, 5, src.state()))) == []
    assert list(generic_source(Endless()).start(Skip(4, 4, {"at": 4}))) == [4]


def test_what_is_said():
    """That batches are thrown away is said of an iterable, and nothing of a sequence or a fresh epoch."""
    assert "3 batches are fetched and thrown away" in generic_source(Plain()).warnings(Skip(3, 3))[0]
    assert generic_source(Plain()).warnings(None) == generic_source(Plain()).warnings(Skip(0, 0)) == []
    assert generic_source([1, 2]).warnings(Skip(1, 1)) == []


def test_no_loader():
    """What cannot be iterated is a UsageError that names its type."""
    with pytest.raises(UsageError, match="A int cannot be"):
        generic_source(3)


@pytest.mark.parametrize(
    ("batch", "samples"),
    [
        (np.zeros((4, 2)), 4),
        (np.float64(3), 1),
        ((np.zeros((4, 2)), ["a", "b", "c", "d"]), 4),
        ({"text": ["a", "b"], "ids": np.zeros((2, 7))}, 2),
        ({"text": ["a", "b"]}, 2),
        ({}, 1),
        (({"ids": np.zeros((3, 7))}, 5), 3),
        (["a", "b", "c"], 3),
        ([("a", 1), ("b", 2)], 2),
        (("a", 1), 1),
        ("abc", 1),
        (7, 1),
        ([], 0),
    ],
)
def test_count_samples(batch, samples):
    """A batch's samples are its arrays' leading dimension, else a list's length, else one."""
    assert count_samples(batch) == samples


class Part:
    def __init__(self, **attributes):
        self.__dict__.update(attributes)


def test_generators_by_path():
    """Generators of a loader, its samplers, data sets and transforms are found once each, by path."""
    shared, own, old = np.random.default_rng(1), random.Random(2), np.random.RandomState(3)
    data = Part(transform=Part(transforms=[Part(rng=own), Part(rng=own)]), model=Part(rng=random.Random(4)))
    loader = Part(generator=shared, sampler=Part(generator=shared, data_source=data), dataset=data, old=old)
    data.dataset = loader  # a circle
    assert find_generators(loader) == {
        "generator": shared,
        "old": old,
        "dataset.transform.transforms.0.rng": own,
    }
    assert find_generators([1, 2]) == {}
    assert find_generators(Part(rng=random.SystemRandom())) == {}


BASE = {
    "kind": "torch",
    "samples": 100,
    "sampler": "Random",
    "batch_size": 4,
    "drop_last": False,
    "indices": "",
}


def test_compare_equal():
    """Equal fingerprints, and values that one side does not know, say nothing."""
    assert compare_fingerprints(BASE, dict(BASE)) == ([], [])
    assert compare_fingerprints(BASE, {**BASE, "samples": None}) == ([], [])
    assert compare_fingerprints({}, BASE) == ([], [])


@pytest.mark.parametrize(
    ("key", "value", "texts"),
    [
        ("samples", 2000, ["100", "2,000"]),
        ("sampler", "Sequential", ["Random", "Sequential"]),
        ("indices", "abc", ["none", "abc"]),
        ("kind", "sequence", ["torch", "sequence"]),
    ],
)
def test_compare_errors(key, value, texts):
    """A different length, sampler or choice is an error with both values and the remedy."""
    (error,), notes = compare_fingerprints(BASE, {**BASE, key: value})
    assert notes == []
    assert all(text in error for text in [*texts, "changed=['loader']"])


def test_compare_batch_size():
    """A different batch size alone is a warning with both values."""
    errors, (note,) = compare_fingerprints(BASE, {**BASE, "batch_size": 8})
    assert errors == []
    assert "was 4 and is 8" in note


def test_fingerprint_is_json():
    """Fingerprints are plain JSON values and compare equal after a round trip."""
    for loader in ([1], Plain(), Stateful()):
        print_ = generic_source(loader).fingerprint()
        assert json.loads(json.dumps(print_)) == print_
