"""Power loss while a mirror is written: what is visible there is whole, and what was said to be there is there.

The run and its mirror lie on the disk that loses power, so what either has may be all that is left.
"""

import os
import random
import shutil
import sys

import numpy as np
import pytest
import test_power_loss as losses
from test_power_loss import Part, RunJudge, clock, place, put, value  # noqa: F401 (fixtures)
from volatile_disk import BLOCKS, JOURNAL

import holdfast
from holdfast import Keep, Mirror
from holdfast.format.names import parse_checkpoint_name
from holdfast.mirrors.folder import Folder
from holdfast.store import catalog

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="descriptors are looked up in /proc")

ARCH = "work/arch"


# -- scenarios -----------------------------------------------------------------------------------


class Telling:
    """Notes in the recording what the mirror has, as the code that writes it believes."""

    def __init__(self, stage, patch, there=()):
        self.stage, self.there = stage, set(there)
        for name in ("publish", "delete"):
            patch.setattr(Folder, name, self.wrapped(getattr(Folder, name)))

    def wrapped(self, real):
        def call(folder, name):
            step = parse_checkpoint_name(name).step
            if real.__name__ == "delete":
                self.there -= {step}
                self.stage.tell(mirrored=set(self.there))
            result = real(folder, name)
            if real.__name__ == "publish":
                self.there |= {step}
                self.stage.tell(mirrored=set(self.there))
            return result

        return call


def launch(stage, **options):
    return stage.launch(mirrors=[os.path.join(stage.root, ARCH)], **options)


def first_copies(stage):
    """A run that has two checkpoints gets a mirror."""
    stage.train(1, 2)
    with stage.recording(resumes={2}, window=2), pytest.MonkeyPatch.context() as patch:
        Telling(stage, patch)
        launch(stage).close()
        stage.tell(released=True)


def copies_and_deletions(stage):
    """Saves while the mirror takes each over, and lets the older ones go."""
    keep = Keep(last=2)
    with launch(stage, keep=keep) as run:
        put(run, 1, wait=True)
        put(run, 2, wait=True)
    with stage.recording(resumes={2}, mirrored={1, 2}), pytest.MonkeyPatch.context() as patch:
        Telling(stage, patch, {1, 2})
        run = launch(stage, keep=keep)
        for step in (3, 4):
            stage.tell(resumes={step - 1, step})
            put(run, step, wait=True)
            stage.tell(resumes={step})
        run.close()
        stage.tell(released=True)


def deletions_wait(stage):
    """With a required mirror the run's older ones go when that has newer ones: somewhere there is always the newest."""
    mirrors = [Mirror(os.path.join(stage.root, ARCH), required=True)]
    keep = Keep(last=1)
    with stage.launch(mirrors=mirrors, keep=keep) as run:
        put(run, 1, wait=True)
    with stage.recording(resumes={1}, mirrored={1}), pytest.MonkeyPatch.context() as patch:
        Telling(stage, patch, {1})
        run = stage.launch(mirrors=mirrors, keep=keep)
        for step in (2, 3):
            stage.tell(resumes={step - 1, step})
            put(run, step, wait=True)
            stage.tell(resumes={step})
        run.close()
        stage.tell(released=True)


def fetched(stage):
    """A run that is gone comes back from its mirror, and goes on."""
    with launch(stage) as run:
        put(run, 1, wait=True)
        put(run, 2, wait=True)
    shutil.rmtree(stage.run)
    with stage.recording(resumes={0, 2}, mirrored={1, 2}), pytest.MonkeyPatch.context() as patch:
        Telling(stage, patch, {1, 2})
        run = launch(stage)
        stage.tell(resumes={2, 3})
        put(run, 3, wait=True)
        stage.tell(resumes={3})
        run.close()
        stage.tell(released=True)


SCENARIOS = (first_copies, copies_and_deletions, deletions_wait, fetched)


# -- what must be there --------------------------------------------------------------------------


class MirrorJudge(RunJudge):
    """A run and its mirror on a disk that lost power."""

    def __init__(self, root, crash, clock, known):  # noqa: F811
        super().__init__(root, crash, clock, known)
        self.arch = os.path.join(root, ARCH)

    def judge(self):
        seen = self.look()
        assert seen in self.told["resumes"], f"step {seen}, of {self.told['resumes']}"
        mirrored = self.steps_in(self.arch)
        lost = self.told.get("mirrored", set()) - mirrored
        assert not lost, f"{sorted(lost)} were said to be in the mirror, which has {sorted(mirrored)}"
        newest = max({seen, *mirrored})
        self.go_on(newest)
        shutil.rmtree(self.run)
        assert self.launch(newest + 1).close() is None  # from the mirror alone

    def steps_in(self, place):  # noqa: F811
        found = set()
        for entry in catalog.scan(place) if catalog.is_run(place) else ():
            assert entry.problem is None, entry.problem
            self.read(entry.path)
            found.add(entry.name.step)
        return found

    def go_on(self, seen):
        run = self.launch(seen)
        put(run, seen + 1, wait=True)
        run.close()
        assert {seen + 1} <= self.steps_in(self.arch), "the next launch did not bring the mirror up to date"
        assert not [name for name in os.listdir(self.arch) if name.startswith(".copying-")]

    def launch(self, step):
        before = self.clock()
        self.clock.until = before + losses.STALE + 100
        run = holdfast.Run(self.run, mirrors=[self.arch], keep=Keep(last=100))
        run.track(part=(part := Part()))
        assert run.resume().step == step
        if step:
            assert np.array_equal(run.state["w"], value(step))
            assert np.array_equal(part.array, value(step)[:500])
        return run


losses.JUDGES.update(dict.fromkeys(SCENARIOS, MirrorJudge))
CASES = [(scenario, model) for scenario in SCENARIOS for model in (JOURNAL, BLOCKS)]


@pytest.mark.parametrize(("scenario", "model"), CASES, ids=lambda value: getattr(value, "__name__", value))
def test_power_loss(scenario, model, place, clock, tried, thorough):  # noqa: F811
    """After a power loss at any call the mirror shows whole checkpoints, all that it was said to have among them."""
    how = {"random": random.Random(scenario.__name__), "limit": 24, "twins": 1}
    if thorough:
        how.update(limit=256, twins=4)
    else:
        how["chosen"] = lambda digest: digest[0] % 8 == 0
    tape = losses.tape_of(scenario)
    tried("power", losses.try_all(scenario, tape, place, clock, model=model, **how))


NEEDED = {
    "a payload file of a copy": (first_copies, rf"{ARCH}/\.copying-\S+/state\.safetensors", ""),
    "the manifest of a copy": (first_copies, rf"{ARCH}/\.copying-\S+/checkpoint\.json", ""),
    "the tables of a copy": (first_copies, rf"{ARCH}/\.copying-\S+/arrays\.json", ""),
    "the folder of a copy": (first_copies, rf"{ARCH}/\.copying-[^/]+/\d{{6}}_[^/]+", ""),
    "the mirror's folder after a copy": (first_copies, ARCH, rf"rename \S+ → {ARCH}/\d{{6}}_"),
    "the mirror's run.json": (first_copies, rf"{ARCH}/.*run\.json", ""),
    "the folder above a new mirror": (first_copies, "work", rf"mkdir {ARCH}$"),
}


@pytest.mark.parametrize("left_out", NEEDED)
def test_every_fsync_is_needed(left_out, place, clock, tried):  # noqa: F811
    """Without this fsync a power loss takes from a mirror what was said to be there, and the test above would tell."""
    scenario, path, after = NEEDED[left_out]
    tape = losses.tape_of(scenario)
    found = [fsync for fsync in losses.fsyncs(tape) if losses.fits(fsync, path, after)]
    assert found, [fsync[1:] for fsync in losses.fsyncs(tape)]
    how = {"model": JOURNAL, "random": random.Random(left_out), "limit": 64, "twins": 1}
    with pytest.raises(losses.Loss):
        losses.try_all(scenario, tape.without(*(fsync[0] for fsync in found)), place, clock, **how)
    tried("safeguards")
