"""Runs with mirrors in an object store: what lies there, and faults at the requests that lead there."""

import contextlib
import itertools
import os
import shutil
import tempfile

from mirrored_runs import steps, train

from holdfast.errors import HoldfastError, StorageError
from holdfast.format.names import parse_checkpoint_name
from holdfast.objects.access import Objects


def pull(url, place):
    """Everything below a URL, as a directory; what has no `checkpoint.json` is no checkpoint, and left out."""
    objects = Objects.at(url)
    listed = objects.names()
    for name, size in listed.items():
        folder = name.partition("/")[0]
        if parse_checkpoint_name(folder) is not None and f"{folder}/checkpoint.json" not in listed:
            continue
        if not size and "/" not in name:  # what a console shows as a folder
            continue
        path = os.path.join(place, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(objects.small(name, size))
    return place


def held(url):
    """The steps of the checkpoints that a reader finds there, every byte of which is checked."""
    with tempfile.TemporaryDirectory() as place:
        return steps(pull(url, place))


def folders(url):
    """The names under which checkpoints lie, or parts of them."""
    found = {name.partition("/")[0] for name in Objects.at(url).names()}
    return sorted(name for name in found if parse_checkpoint_name(name) is not None)


class Requests:
    """Takes note of every request, and lets something happen at one of them.

    Args:
        monkeypatch: puts it in place.
        number: which one, counted from 1; or the end of the name of what is written or read.
        strike: happens there.
        moment: "before" it is sent, or "after" it was answered: the answer is lost.

    """

    def __init__(self, monkeypatch, number=None, strike=None, moment="before"):
        self.made, self.counter, real = [], itertools.count(1), Objects._begin

        def begin(objects, work, operation, name, seconds):
            count = next(self.counter)
            self.made.append((operation, name))
            here = name.endswith(number) if isinstance(number, str) else count == number
            if here and moment == "before":
                strike()
            request = real(objects, work, operation, name, seconds)
            if here and moment == "after":
                with contextlib.suppress(HoldfastError):
                    request.wait()
                strike()
            return request

        monkeypatch.setattr(Objects, "_begin", begin)

    def of(self, operation):
        return [name for made, name in self.made if made == operation]


def refuse():
    raise StorageError("Refused for the test.", errno=5, operation="try")


# -- what is tried under faults --------------------------------------------------------------------


class First:
    """The first copy of a run into a prefix where nothing is."""

    SEEN = [[], [2], [1, 2]]
    END = [1, 2]
    HERE = [1, 2]

    def __init__(self, place, url):
        self.place, self.url = place, url
        self.run = os.path.join(place, "run")

    def prepare(self):
        """Makes what it begins with; gives the objects."""
        train(self.run, 2)

    def renew(self, kept, objects):
        """Puts back what it begins with."""
        shutil.rmtree(self.place, ignore_errors=True)
        shutil.copytree(kept, self.place, symlinks=True)
        there = Objects.at(self.url)
        for name, data in objects.items():
            there.put(name, data)

    def act(self):
        return train(self.run, 0, [self.url])

    def check(self):
        """What is seen after the fault, and that the next launch brings everything to its end."""
        found = held(self.url)
        assert found in self.SEEN, f"the mirror holds {found}"
        assert not found or "run.json" in Objects.at(self.url).names()
        assert self.act() == max(self.HERE)
        assert held(self.url) == self.END
        assert len(folders(self.url)) == len(self.END), "something was left behind"
        assert steps(self.run) == self.HERE


class Further(First):
    """A further copy, after which one leaves the mirror."""

    SEEN = [[1, 2], [1, 2, 3], [2, 3]]
    END = [2, 3]
    HERE = [2, 3]

    def prepare(self):
        train(self.run, 2, [self.url])
        train(self.run, 3)


class Lost(Further):
    """A run that is gone, and comes back from its mirror."""

    SEEN = [[2, 3]]
    HERE = [3]

    def prepare(self):
        train(self.run, 3, [self.url])
        shutil.rmtree(self.run)

    def check(self):
        assert not os.path.isdir(self.run) or steps(self.run) in ([], [3])
        super().check()


CASES = {kind.__name__: kind for kind in (First, Further, Lost)}


def prepared(name, place, url):
    """Makes what a case begins with; gives the directory and the objects."""
    kept = os.path.join(place, "kept")
    os.makedirs(kept)
    CASES[name](kept, url).prepare()
    there = Objects.at(url)
    return kept, {name: there.small(name, size) for name, size in there.names().items()}
