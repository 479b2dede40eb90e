"""Runs with mirrors: small trainings whose content follows from the step, and what may be seen of them."""

import os
import random
import shutil

import numpy as np
import pytest

import holdfast
from holdfast import Every, Keep
from holdfast.format.names import parse_checkpoint_name
from holdfast.pulling import Pull
from holdfast.pushing import Push
from holdfast.store import catalog

LAST = Keep(last=2)


def content(step, size=2000):
    return {"w": np.arange(size, dtype=np.float32) + step, "step": step}


def train(run, goal, mirrors=(), *, keep=LAST, size=2000, **options):
    """Saves each step up to the goal, in a loop of its own; gives the step that it resumed from."""
    with holdfast.Run(run, mirrors=mirrors, keep=keep, every=Every(steps=1), **options) as opened:
        start = opened.resume().step
        if start:
            assert np.array_equal(opened.state["w"], content(start, size)["w"])
        for step in range(start + 1, goal + 1):
            opened.state.update(content(step, size))
            opened.save(step=step, wait=True)
    return start


def draws(run, goal, mirrors=()):
    """A managed loop whose end depends on every random draw; gives that end."""
    with holdfast.Run(run, seed=3, mirrors=mirrors, every=Every(steps=1)) as opened:
        for _ in opened.steps(goal):
            opened.state["sum"] = opened.state.get("sum", 0.0) * 1.1 + random.random() + np.random.rand()
    return opened.state["sum"]


def steps(place):
    """The steps of the checkpoints that a reader finds there, every byte of which is checked."""
    found = []
    for name in sorted(os.listdir(place)) if os.path.isdir(place) else ():
        parsed = parse_checkpoint_name(name)
        if parsed is not None:
            problems = holdfast.open(os.path.join(place, name)).verify()
            assert problems == [], [str(problem) for problem in problems]
            found.append(parsed.step)
    return found


def names(place):
    return sorted(name for name in os.listdir(place) if parse_checkpoint_name(name) is not None)


def flip(place, step, file="state.safetensors", at=5000):
    """Changes a bit of a file of the checkpoint of that step."""
    [name] = [name for name in names(place) if parse_checkpoint_name(name).step == step]
    path = os.path.join(place, name, file)
    with open(path, "r+b") as opened:
        opened.seek(at)
        byte = opened.read(1)[0]
        opened.seek(at)
        opened.write(bytes([byte ^ 4]))
    return path


# -- what is tried under faults --------------------------------------------------------------------


class Copy:
    """The first copy of a run into a mirror that is not there yet."""

    kill = None
    SEEN = [[], [2], [1, 2]]
    "What a reader of the mirror may find; the newest comes first."
    END = [1, 2]
    NEWEST = 2
    where = "arch"

    def __init__(self, place):
        self.run, self.arch = os.path.join(place, "run"), os.path.join(place, "arch")

    def prepare(self):
        train(self.run, 2)

    def check_prepared(self):
        pass

    def act(self):
        """A launch that resumes, brings the mirror up to date, and saves nothing."""
        return train(self.run, 0, [self.arch])

    def check(self):
        """What is seen after the fault, and that the next launch brings everything to its end."""
        found = steps(self.arch)
        assert found in self.SEEN, f"the mirror holds {found}"
        if found:
            assert catalog.is_run(self.arch), "checkpoints without run.json"
            assert holdfast.open(self.arch).progress.step == max(found)
        assert self.act() == self.NEWEST
        assert steps(self.arch) == self.END
        assert sorted(set(os.listdir(self.arch)) - set(names(self.arch))) == ["run.json"], os.listdir(
            self.arch
        )
        assert steps(self.run) == self.END


class Further(Copy):
    """A further copy, after which one leaves the mirror."""

    SEEN = [[1, 2], [1, 2, 3], [2, 3]]
    END = [2, 3]
    NEWEST = 3

    def prepare(self):
        train(self.run, 2, [self.arch])
        train(self.run, 3)


class Lost(Further):
    """A run that is gone, and comes back from its mirror."""

    SEEN = [[2, 3]]
    where = "run"

    def prepare(self):
        train(self.run, 3, [self.arch])
        shutil.rmtree(self.run)

    def check(self):
        assert steps(self.run) in ([], [3])
        assert self.act() == self.NEWEST
        assert steps(self.run) == [3]
        assert steps(self.arch) == self.END


class Behind(Lost):
    """A run that is behind its mirror."""

    def prepare(self):
        train(self.run, 2, [self.arch])
        shutil.copytree(self.run, self.run + ".old", symlinks=True)
        train(self.run, 3, [self.arch])
        shutil.rmtree(self.run)
        os.rename(self.run + ".old", self.run)

    def check(self):
        assert steps(self.run) in ([1, 2], [1, 2, 3])
        assert self.act() == self.NEWEST
        assert steps(self.run) == [1, 2, 3]
        assert steps(self.arch) == self.END


class Damaged(Further):
    """A damaged block of the newest checkpoint, which is fetched."""

    where = "run"

    def prepare(self):
        train(self.run, 3, [self.arch])
        flip(self.run, 3)

    def check(self):
        assert steps(self.arch) == self.END
        assert self.act() == self.NEWEST
        assert steps(self.run) == self.END
        assert not [name for name in os.listdir(self.run) if name.startswith(".writing")]


class Pushed(Copy):
    """A push by hand, of one checkpoint that is there and two that are not."""

    SEEN = [[1], [1, 3], [1, 2, 3]]
    END = [1, 2, 3]

    def prepare(self):
        train(self.run, 1, keep=Keep(last=None))
        Push(self.run, self.arch).go()
        train(self.run, 3, keep=Keep(last=None))

    def act(self):
        Push(self.run, self.arch).go(jobs=1)

    def check(self):
        found = steps(self.arch)
        assert found in self.SEEN, f"the place holds {found}"
        again = Push(self.run, self.arch)
        again.go()
        assert {item.status for item in again.items} <= {"copied", "there"}
        assert steps(self.arch) == steps(self.run) == self.END
        assert sorted(set(os.listdir(self.arch)) - set(names(self.arch))) == ["run.json"]
        assert not [name for name in os.listdir(self.run) if name.startswith((".writing", ".fetching"))]


class Pulled(Pushed):
    """A pull into a new run: what a training resumes from comes first, and nothing is begun beside it before."""

    SEEN = [[], [3], [2, 3]]
    END = [2, 3]
    where = "run"

    def prepare(self):
        train(self.run, 3)
        os.rename(self.run, self.arch)

    def act(self):
        Pull(self.arch, self.run).go(jobs=1)

    def check(self):
        found = steps(self.run)
        assert found in self.SEEN, f"the run holds {found}"
        if found:
            assert train(self.run, 0) == 3
        elif catalog.is_run(self.run):
            with pytest.raises(holdfast.UsageError, match="holdfast pull"):
                train(self.run, 0)
        Pull(self.arch, self.run).go()
        assert steps(self.run) == self.END
        assert train(self.run, 0) == 3
        left = set(os.listdir(self.run)) - set(names(self.run))
        assert {name.rstrip("0123456789") for name in left} == {
            "history.jsonl",
            "latest",
            "lease-",
            "run.json",
        }


CASES = {kind.__name__: kind for kind in (Copy, Further, Lost, Behind, Damaged, Pushed, Pulled)}
