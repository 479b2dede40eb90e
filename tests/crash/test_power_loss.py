"""Power loss: whatever a disk may have forgotten, the old or the new is there, whole, and training goes on.

A scenario runs once on a real disk while every system call is recorded. Then, for each place in the
recording, the contents of the disk that a power loss there could leave are made real (module
`volatile_disk` says which), read, and continued by a new launch.
"""

import contextlib
import functools
import logging
import math
import os
import random
import re
import shutil
import socket
import sys
import tempfile
import time

import numpy as np
import pytest
import volatile_disk
from volatile_disk import BLOCKS, JOURNAL

import holdfast
from holdfast import Every, Keep, files, open_files
from holdfast.errors import NotFoundError
from holdfast.format import safetensors
from holdfast.format.names import parse_checkpoint_name
from holdfast.payload import writer
from holdfast.rewinding import rewind
from holdfast.state import environment
from holdfast.store import book, catalog, holder, lease, publish, retention, watch

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="descriptors are looked up in /proc")

RUN, SAVED = "work/runs/r", "work/best"
OWN = re.compile(r"run\.json|history\.jsonl|lease-\d{6}|pins|abandoned|latest|best|\d{6}_.*")
STALE = 300
HANDS = 8


def value(number):
    """A state in which every sector tells which save it is of."""
    return number * 1e6 + np.arange(1500.0)


def hidden(path):
    return re.search(r"(^|/)\.(.+\.)?writing-", path) is not None


# -- scenarios -----------------------------------------------------------------------------------


class Stage:
    """Where a scenario plays: what is done inside `recording` is recorded."""

    def __init__(self, root):
        self.root, self.tape, self.tell = root, None, None
        self.run, self.saved = os.path.join(root, RUN), os.path.join(root, SAVED)

    @contextlib.contextmanager
    def recording(self, recorder=volatile_disk.Recorder, **told):
        recorder = recorder(self.root)
        self.tape, self.tell = recorder.tape, recorder.note
        self.tape.told.update(told)  # true from the start
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(files, "system", recorder)
            yield recorder

    def launch(self, **options):
        run = holdfast.Run(self.run, **options)
        run.track(part=Part())
        run.resume()
        return run

    def train(self, *steps, **options):
        """A finished launch, before the recording."""
        with self.launch(**options) as run:
            for step in steps:
                put(run, step, wait=True)


class Part:
    """Something that is tracked: a second file of a checkpoint, small enough to be written through the cache."""

    def __init__(self):
        self.array = np.zeros(500)

    def state_dict(self):
        return {"array": self.array}

    def load_state_dict(self, state):
        self.array = state["array"]


def put(run, step, *, metrics=None, wait=False):
    run.state["w"] = value(step)
    run._training.things["part"].array = value(step)[:500]
    run.save(step=step, metrics=metrics, wait=wait)


def first_save(stage):
    """The first save of a run, whose folder and its parents are made for it."""
    with stage.recording(resumes={0}):
        run = stage.launch()
        stage.tell(generation=1, held=True, resumes={0, 1})
        put(run, 1, wait=True)
        stage.tell(resumes={1})
        stage.tell(held=False)
        run.close()
        stage.tell(released=True)


def later_saves(stage):
    """A save that is waited for, one behind the training, and one that waits for that one."""
    stage.train(1)
    with stage.recording(resumes={1}, generation=1, released=True, window=3):
        stage.tell(released=False)
        run = stage.launch()
        stage.tell(resumes={1, 2}, generation=2, held=True)
        put(run, 2, wait=True)
        stage.tell(resumes={2, 3})
        put(run, 3)
        stage.tell(resumes={2, 3, 4})
        put(run, 4)
        stage.tell(resumes={3, 4})
        stage.tell(held=False)
        run.close()
        stage.tell(resumes={4}, released=True)


def retained(stage):
    """Saves that each delete an older one; the best one and a pinned one stay."""
    keep = Keep(last=2, best=1, metric="loss", mode="min")
    stage.train(1, 2, keep=keep)
    holdfast.open(f"{stage.run}@step=1").pin()
    with stage.recording(resumes={2}, kept={1}, window=2):
        run = stage.launch(keep=keep)
        for step, loss in ((3, 0.1), (4, 0.5), (5, 0.4)):
            stage.tell(resumes={step - 1, step})
            put(run, step, metrics={"loss": loss}, wait=True)
            stage.tell(resumes={step}, kept={1, 3})
        run.close()
        stage.tell(released=True)


def pinned_meanwhile(stage):
    """A pin that comes while its checkpoint is being deleted brings it back, and holds."""
    stage.train(1)

    class Pinning(volatile_disk.Recorder):
        def rename(self, source, target):
            if os.fspath(target).endswith(".trash"):
                retention.pin(stage.run, os.path.basename(source))
                self.note(kept={1})
            super().rename(source, target)

    with stage.recording(Pinning, resumes={1}):
        run = stage.launch(keep=Keep(last=1))
        stage.tell(resumes={1, 2})
        put(run, 2, wait=True)
        stage.tell(resumes={2})
        run.close()


# The deletion itself is a rename of which half may be lost on a disk without a journal, and then it
# has taken the checkpoint away for good: nothing that came after it can help.
pinned_meanwhile.models = (JOURNAL,)


def pinned_too_late(stage):
    """A pin that comes when its checkpoint is half deleted does not bring back the half."""
    stage.train(1)

    class Pinning(volatile_disk.Recorder):
        def unlink(self, path):
            super().unlink(path)
            folder, end, _ = os.fspath(path).partition(".trash/")
            if end and not catalog.marks(stage.run, catalog.PINS):
                retention.mark(stage.run, catalog.PINS, os.path.basename(folder))

    with stage.recording(Pinning, resumes={1}):
        run = stage.launch(keep=Keep(last=1))
        stage.tell(resumes={1, 2})
        put(run, 2, wait=True)
        stage.tell(resumes={2})
        run.close()


def leave_for_dead(stage):
    """What a holder leaves that is cut off in the middle of a save and of a deletion."""
    dead = os.path.join(stage.run, ".writing-000002")
    for name in ("000003_draft", "000000_old.trash"):
        os.makedirs(os.path.join(dead, name))
        with open(os.path.join(dead, name, "state.safetensors"), "wb") as file:
            file.write(bytes(5000))
    with open(os.path.join(stage.run, "lease-000002"), "wb") as file:
        file.write(holder.encode(holder.myself(2)).replace(b'"boot_id":"', b'"boot_id":"an older '))
    return dead


def acquired(stage):
    """A lease that was acquired: its number is never used again, and the dead holder's folder is out of use."""
    stage.train(1, 2)
    leave_for_dead(stage)
    with stage.recording(resumes={2}):
        held = lease.Lease.acquire(stage.run)
        stage.tell(generation=3, held=True, swept=True)
    held.release()


def brought_back(stage):
    """A launch that finds a pinned checkpoint where a dead holder was about to delete it."""
    stage.train(1, 2)
    dead = leave_for_dead(stage)
    first = holdfast.open(f"{stage.run}@step=1")
    first.pin()
    os.rename(first.path, os.path.join(dead, f"{first.name}.trash"))
    with stage.recording(resumes={2}, kept={1}):
        stage.launch().close()


brought_back.models = (JOURNAL,)  # as above


def taken_over(stage):
    """A launch that takes over from one that was cut off in the middle of a save and of a deletion."""
    stage.train(1, 2)
    leave_for_dead(stage)
    with stage.recording(resumes={2}):
        run = stage.launch()
        stage.tell(generation=3, held=True, swept=True, resumes={2, 3})
        put(run, 3, wait=True)
        stage.tell(resumes={3}, held=False)
        run.close()
        stage.tell(released=True)


def beaten(stage):
    """A holder that writes its beats, some of them synced, until it closes."""
    stage.train(1)
    with stage.recording(resumes={1}), pytest.MonkeyPatch.context() as patch:
        patch.setattr(lease, "BEAT_SECONDS", 0.001)
        patch.setattr(
            socket, "gethostname", lambda: "node-with-a-long-name." * 10
        )  # a lease of several sectors
        run = stage.launch()
        stage.tell(generation=2, held=True)
        while sum(call.text.startswith(f"write {RUN}/lease-") for call in list(stage.tape.calls)) < 9:
            time.sleep(0.001)
        stage.tell(held=False)
        run.close()
        stage.tell(released=True)


def requeued(stage):
    """A job that Slurm starts again after a power loss need not wait for its former self."""
    stage.train(1)
    with stage.recording(resumes={1}), pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_JOB_ID", "77")
        run = stage.launch()
        stage.tell(released=True)
        run.close()


requeued.environment = {"SLURM_JOB_ID": "77", "SLURM_RESTART_COUNT": "1"}


def killed_before(stage):
    """A launch finds the folders that a killed one had just made, and that nobody has synced."""
    with stage.recording(resumes={0}) as recorder:
        for path in ("work", "work/runs", RUN):
            recorder.mkdir(os.path.join(stage.root, path))
        run = stage.launch()
        stage.tell(resumes={0, 1})
        put(run, 1, wait=True)
        stage.tell(resumes={1})
        run.close()


def pins(stage):
    """A pin and its removal hold once they have returned."""
    stage.train(1, 2)
    with stage.recording(resumes={2}):
        holdfast.open(f"{stage.run}@step=1").pin()
        stage.tell(pinned={1})
        holdfast.open(f"{stage.run}@step=2").pin()
        stage.tell(pinned={1, 2}, resumes={2})
        stage.tell(pinned={2})
        holdfast.open(f"{stage.run}@step=1").unpin()
        stage.tell(unpinned={1})


def rewound(stage):
    """A rewind abandons the newest first, so that an interrupted one has gone less far."""
    stage.train(1, 2, 3)
    with stage.recording(resumes={3}):
        stage.tell(resumes={1, 2, 3}, up_to=3)
        rewind(stage.run, "@step=1")
        stage.tell(resumes={1}, released=True)


def rewound_to_an_abandoned_one(stage):
    """A rewind to an abandoned checkpoint never leaves less than where it leads."""
    stage.train(1, 2, 3)
    rewind(stage.run, "@step=1")
    stage.train(4)
    with stage.recording(resumes={4}):
        stage.tell(resumes={2, 4})
        rewind(stage.run, "@seq=2")
        stage.tell(resumes={2}, released=True)


def goal_reached(stage):
    """A managed loop up to its goal: every step saved, then recorded as complete."""
    stage.train(1)
    with stage.recording(resumes={1}):
        run = holdfast.Run(stage.run, every=Every(steps=1))
        part = Part()
        run.track(part=part)
        stage.tell(resumes={1, 2, 3})
        for step in run.steps(3):
            run.state["w"] = value(step + 1)
            part.array = value(step + 1)[:500]
        stage.tell(resumes={3}, reached=3)
        run.close()
        stage.tell(released=True)


def save_new(stage):
    """`holdfast.save` where nothing is, not even the folder above."""
    with stage.recording(values={0, 1}):
        holdfast.save(stage.saved, {"w": value(1)})
        stage.tell(values={1})


def save_again(stage):
    """`holdfast.save` over an older one, by an exchange of two names."""
    holdfast.save(stage.saved, {"w": value(1)})
    with stage.recording(values={1, 2}):
        holdfast.save(stage.saved, {"w": value(2)})
        stage.tell(values={2})


class NoExchange(volatile_disk.Recorder):
    """A file system that cannot exchange two names."""

    def exchange(self, one, other):
        raise OSError(38, "Function not implemented")


def save_by_two_renames(stage):
    """`holdfast.save` over an older one, where the system cannot exchange; what a former one left goes."""
    holdfast.save(stage.saved, {"w": value(1)})
    shutil.copytree(stage.saved, publish.previous_name(stage.saved))
    with stage.recording(NoExchange, values={1, 2}):
        holdfast.save(stage.saved, {"w": value(2)})
        stage.tell(values={2})


def save_beside_previous(stage):
    """`holdfast.save` after one that was cut off between its two renames."""
    holdfast.save(stage.saved, {"w": value(1)})
    os.rename(stage.saved, publish.previous_name(stage.saved))
    with stage.recording(NoExchange, values={1, 2}):
        holdfast.save(stage.saved, {"w": value(2)})
        stage.tell(values={2})


def model_saved(stage):
    """An entire model over an older one, with its structure."""
    import torch

    from holdfast.torch import save_model

    net = torch.nn.Linear(3, 500)
    with stage.recording(values={0, 1}):
        for number in (1, 2):
            torch.nn.init.constant_(net.weight, number)
            stage.tell(values={number - 1, number})
            save_model(net, stage.saved)
            stage.tell(values={number})


# -- what must be there --------------------------------------------------------------------------


class Clock:
    """Seconds that pass only while somebody sleeps."""

    def __init__(self):
        self.now, self.until = 0.0, math.inf

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += max(seconds, 0)
        assert self.now < self.until, "a dead one blocks the run"


class Quick(files.System):
    """The checks themselves lose no power."""

    def fsync(self, fd):
        pass


class RunJudge:
    """A run on a disk that lost power."""

    def __init__(self, root, crash, clock, known):
        self.run, self.told, self.clock, self.known = os.path.join(root, RUN), crash.told, clock, known
        self.image = crash.image

    def judge(self):
        seen = self.look()
        assert seen in self.told["resumes"], f"step {seen}, of {self.told['resumes']}"
        self.look_at_marks()
        self.go_on(seen)

    def look(self):
        """The step that a reader finds; 0 where there is none yet."""
        if not catalog.is_run(self.run):
            with pytest.raises(NotFoundError):
                holdfast.open(self.run)
            return 0
        there = self.steps()
        if not there:
            with pytest.raises(NotFoundError):
                holdfast.open(self.run)
            return 0
        newest = holdfast.open(self.run).progress.step
        window = range(max(1, newest - self.told.get("window", 1) + 1), newest + 1)
        assert there >= set(window), f"of {list(window)} there are {there}"
        return newest

    def steps(self):
        """Those of all checkpoints that are visible; each is whole, to the last value."""
        found = set()
        for entry in catalog.scan(self.run):
            assert entry.problem is None, entry.problem
            folder = f"{RUN}/{entry.name}"
            content = volatile_disk.digest_of({p: d for p, d in self.image.items() if p.startswith(folder)})
            # What was found whole once need not be read again to the last byte; what is new here must.
            if content not in self.known or not any(path.startswith(folder) for path in self.image):
                self.read(entry.path)
                self.known.add(content)
            found.add(entry.name.step)
        return found

    def read(self, path):
        checkpoint = holdfast.open(path)
        assert checkpoint.verify() == []
        step, loaded = checkpoint.progress.step, checkpoint.load()
        assert np.array_equal(loaded["state"]["w"], value(step))
        assert np.array_equal(loaded["part"]["array"], value(step)[:500])

    def look_at_marks(self):
        told = self.told
        if "pinned" in told:
            pinned = {parse_checkpoint_name(name).step for name in catalog.marks(self.run, catalog.PINS)}
            assert told["pinned"] <= pinned <= {1, 2} - told.get("unpinned", set())
        if "up_to" in told:
            left = {parse_checkpoint_name(name).step for name in catalog.marks(self.run, catalog.ABANDONED)}
            assert left == set(range(min(left, default=4), told["up_to"] + 1)), f"a gap: {left}"
        if "reached" in told:
            assert book.read_run(self.run).reached["value"] == told["reached"]
        if told.get("swept"):
            assert not [name for name in os.listdir(self.run) if re.fullmatch(r"\.writing-00000[12]", name)]

    def go_on(self, seen):
        """A new launch takes the run over, resumes, saves, and leaves nothing behind."""
        told, since, before = self.told, book.now(), self.clock()
        dead, self.clock.until = watch.holder_of(self.run), before + STALE + 100
        with holdfast.Run(self.run, keep=Keep(last=100)) as run:
            part = Part()
            run.track(part=part)
            assert run.resume().step == seen
            waited = self.clock() - before
            assert waited < 1 or not told.get("released"), "nobody holds the run, and it was waited for"
            assert waited >= STALE or not told.get("held"), "the holder may live, and was not waited for"
            watched = waited >= watch.UNFINISHED_SECONDS
            assert watched or dead is None or dead.pid, "a lease that names nobody was taken for free"
            assert run._training.session.lease.generation > told.get("generation", 0)
            if seen:
                assert np.array_equal(run.state["w"], value(seen))
                assert np.array_equal(part.array, value(seen)[:500])
            put(run, seen + 1, wait=True)
        there = self.steps()
        assert there >= {seen + 1, *told.get("kept", ())}, f"there are {there}"
        listing = os.listdir(self.run)
        assert not [name for name in listing if not OWN.fullmatch(name)]
        assert sum(name.startswith("lease-") for name in listing) == 1
        events = [event["event"] for event in book.read_events(self.run) if event["time"] >= since]
        assert events[0] == ("resume" if seen else "start"), "the first event after the power loss is lost"


class SaveJudge:
    """What `holdfast.save` wrote, on a disk that lost power."""

    def __init__(self, root, crash, clock, known):
        self.path, self.told = os.path.join(root, SAVED), crash.told

    def judge(self):
        try:
            seen = self.look()
        except NotFoundError:
            seen = 0
        assert seen in self.told["values"]
        parent = os.path.dirname(self.path)
        left = {name for name in os.listdir(parent) if hidden(name)} if os.path.isdir(parent) else set()
        holdfast.save(self.path, {"w": value(9)})
        assert self.look() == 9
        assert left <= set(os.listdir(parent)), "its maker may live, on another machine"
        for place, folders, names in os.walk(parent):
            for name in folders + names:
                os.utime(os.path.join(place, name), (0, 0))  # long ago
        holdfast.save(self.path, {"w": value(9)})
        assert self.look() == 9
        assert os.listdir(parent) == ["best"]

    def look(self):
        found = holdfast.open(self.path)
        assert found.verify() == []
        return self.number(found)

    def number(self, found):
        array = found.load()["w"]
        assert np.array_equal(array, value(array[0] // 1e6))
        return int(array[0] // 1e6)


class ModelJudge(SaveJudge):
    def number(self, found):
        from holdfast.torch import load_model

        if "model" not in found.parts:
            return super().number(found)
        weight = load_model(self.path, trust=True).weight.detach().numpy()
        assert (weight == weight[0, 0]).all()
        return int(weight[0, 0])


RUNS = (
    first_save,
    later_saves,
    retained,
    pinned_meanwhile,
    pinned_too_late,
    acquired,
    brought_back,
    taken_over,
    beaten,
    requeued,
    killed_before,
    pins,
    rewound,
    rewound_to_an_abandoned_one,
    goal_reached,
)
SAVES = (save_new, save_again, save_by_two_renames, save_beside_previous)
JUDGES = {**dict.fromkeys(RUNS, RunJudge), **dict.fromkeys(SAVES, SaveJudge), model_saved: ModelJudge}


@functools.cache
def tape_of(scenario):
    return record(scenario)


def record(scenario):
    """The recording of a scenario: on a real disk, in small blocks, with direct and with buffered files."""
    root = tempfile.mkdtemp(prefix="holdfast-power-")
    try:
        with pytest.MonkeyPatch.context() as patch, time_that_flies(patch):
            patch.setitem(writer.Save.__init__.__kwdefaults__, "block_size", 4096)
            patch.setattr(safetensors, "BLOCK", 4096)
            patch.setattr(writer, "DIRECT_FROM", 8192)
            patch.setattr(open_files, "_direct_by_device", {})
            patch.setattr(holder, "_boot_id", lambda: "before-the-power-loss")
            stage = Stage(root)
            scenario(stage)
            return stage.tape
    finally:
        shutil.rmtree(root)


@contextlib.contextmanager
def time_that_flies(patch):
    clock = Clock()
    patch.setitem(lease.Lease.acquire.__func__.__kwdefaults__, "clock", clock)
    patch.setitem(lease.Lease.acquire.__func__.__kwdefaults__, "sleep", clock.sleep)
    patch.setattr(watch, "_POLL_SECONDS", 60.0)
    yield clock


# -- the tests -----------------------------------------------------------------------------------


@pytest.fixture
def place():
    """An empty folder in memory, if there is one: thousands of disks are made real there."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    root = tempfile.mkdtemp(prefix="holdfast-power-", dir=memory)
    yield root
    shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def clock(monkeypatch):
    logger = logging.getLogger("holdfast")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    monkeypatch.setattr(files, "system", Quick())
    monkeypatch.setattr(environment, "gather", functools.cache(environment.gather))  # asks git, each time
    with time_that_flies(monkeypatch) as clock:
        yield clock
    logger.setLevel(level)


class Loss(AssertionError):
    """A disk on which something is lost, and how it came about."""


def try_all(scenario, tape, place, clock, **how):
    """Judges every crash of a tape; returns how many different disks there were."""
    seen, known = set(), set()
    for number, crash in enumerate(volatile_disk.crashes(tape, hidden=hidden, **how)):
        root = os.path.join(place, str(number))
        volatile_disk.materialise(crash.image, root)
        try:
            JUDGES[scenario](root, crash, clock, known).judge()
        except Exception as error:
            shutil.rmtree(root)
            volatile_disk.materialise(crash.image, root)
            raise Loss(
                f"{error}\n{scenario.__name__}: {crash.cause}\nTold before: {crash.told}", root
            ) from error
        shutil.rmtree(root)
        seen.add(crash.digest)
    return len(seen)


def pytest_generate_tests(metafunc):
    """A thorough run tries so much more that each case is dealt out to several tests."""
    if "hand" in metafunc.fixturenames:
        hands = HANDS if metafunc.config.getoption("--thorough") else 1
        metafunc.parametrize("hand", range(hands))


CASES = [
    (scenario, model)
    for scenario in (*RUNS, *SAVES, model_saved)
    for model in getattr(scenario, "models", (JOURNAL, BLOCKS))
]


@pytest.mark.parametrize(("scenario", "model"), CASES, ids=lambda value: getattr(value, "__name__", value))
def test_power_loss(scenario, model, hand, place, clock, monkeypatch, tried, thorough):
    """After a power loss at any call the old or the new is there, whole, and training goes on from it."""
    tape = tape_of(scenario)
    for name, text in getattr(scenario, "environment", {}).items():
        monkeypatch.setenv(name, text)
    how = {"random": random.Random(f"{scenario.__name__} {hand}"), "limit": 128, "twins": 3}
    if thorough:
        how.update(limit=1024, twins=20, chosen=lambda digest: digest[0] % HANDS == hand)
    try:
        tried("power", try_all(scenario, tape, place, clock, model=model, **how))
    except Loss as loss:
        kept = shutil.move(loss.args[1], tempfile.mkdtemp(prefix="holdfast-power-loss-"))
        loss.add_note(f"The disk as it was then lies in {kept}.")
        raise


@pytest.mark.parametrize("draw", range(3))
def test_power_lost_twice(draw, hand, place, clock, tried):
    """A launch that goes on after a power loss may lose power as well, at any call of its own."""
    chance, count = random.Random(f"twice {draw} {hand}"), 0
    how = {"model": JOURNAL, "random": chance, "limit": 24, "twins": 1}
    for source in (later_saves, pinned_meanwhile):
        found = list(volatile_disk.crashes(tape_of(source), hidden=hidden, **how))
        for number, crash in enumerate(chance.sample(found, 2)):
            tape = record(functools.partial(going_on, crash))
            folder = os.path.join(place, f"{source.__name__} {number}")
            os.mkdir(folder)
            count += try_all(going_on, tape, folder, clock, **how)
    tried("power", count)


def going_on(crash, stage):
    """A launch on a disk that lost power."""
    shutil.rmtree(stage.root)
    volatile_disk.materialise(crash.image, stage.root)
    seen = holdfast.open(stage.run).progress.step
    with stage.recording(resumes={seen}, kept=crash.told.get("kept", set())):
        run = stage.launch(keep=Keep(last=100))
        stage.tell(resumes={seen, seen + 1})
        put(run, seen + 1, wait=True)
        stage.tell(resumes={seen + 1})
        run.close()


JUDGES[going_on] = RunJudge


# -- every fsync is needed -----------------------------------------------------------------------

PUBLISHED, TRASHED = r"rename \S+/\d{6}_\S+ → \S+/r/\d{6}_", r"rename \S+ → \S+\.trash$"
# What is left out: the scenario that misses it, what is synced, and the call that changed it.
NEEDED = {
    "a payload file written directly": (later_saves, r".*/\d{6}_\S+/state\.safetensors", ""),
    "a payload file written through the cache": (later_saves, r".*/\d{6}_\S+/part\.safetensors", ""),
    "a payload file of holdfast.save": (save_new, r".*/best/w\.safetensors", ""),
    "arrays.json": (later_saves, r".*/arrays\.json", ""),
    "checkpoint.json": (later_saves, r".*/checkpoint\.json", ""),
    "the card": (later_saves, r".*/README\.md", ""),
    "the draft's folder": (later_saves, r".*/\.writing-\d+/\d{6}_[^/]+", ""),
    "the draft's folder of holdfast.save": (save_new, r".*/\.best\.writing-[^/]+/best", ""),
    "the run's folder after a publish": (first_save, RUN, PUBLISHED),
    "the run's folder after a publish, before a deletion": (retained, RUN, PUBLISHED),
    "the run's folder after a deletion": (retained, RUN, TRASHED),
    "the run's folder after a pinned one was put back": (pinned_meanwhile, RUN, r"rename \S+\.trash → "),
    "the run's folder after a take-over brought one back": (brought_back, RUN, r"rename \S+\.trash → "),
    "the folder above a new run": (first_save, "work/runs", r"mkdir work/runs/r$"),
    "the folder above that": (first_save, "work", r"mkdir work/runs$"),
    "the first folder that was there": (first_save, r"\.", r"mkdir work$"),
    "folders that a killed launch has made": (killed_before, r"work/runs|work|\.", ""),
    "the new run.json": (first_save, r".*/run\.json", ""),
    "the run's folder after run.json": (first_save, RUN, r"rename \S+ → \S+/run\.json"),
    "the run's folder after the goal was noted": (goal_reached, RUN, r"rename \S+ → \S+/run\.json"),
    "a lease's content": (requeued, r".*/lease-\d+", r"write "),
    "the names of a lease and of its folder": (acquired, RUN, r"create .*/lease-|mkdir .*/\.writing-"),
    "the run's folder after the dead one's was taken out of use": (acquired, RUN, r"mkdir .*/\.writing-"),
    "a release": (first_save, r".*/lease-\d+", r"truncate "),
    "the folder of the pins": (pins, f"{RUN}/pins", r"create "),
    "the folder of the pins after a removal": (pins, f"{RUN}/pins", r"unlink "),
    "the run's folder after that of the pins": (pins, RUN, r"mkdir "),
    "the folder of what is abandoned": (rewound, f"{RUN}/abandoned", r"create "),
    "the same when an abandoned one is revived": (
        rewound_to_an_abandoned_one,
        f"{RUN}/abandoned",
        r"unlink ",
    ),
    "the run's folder after that of what is abandoned": (
        rewound,
        RUN,
        r"mkdir .*/abandoned",
    ),
    "the folder above a new checkpoint": (save_new, "work", r"rename "),
    "the folder above an exchanged one": (save_again, "work", r"exchange "),
    "the folder above one renamed into its place": (save_by_two_renames, "work", r"rename \S+ → work/best$"),
    "the folder above, made by holdfast.save": (save_new, r"\.", r"mkdir work$"),
}
# Nothing is lost without these.
SPARE = {
    "a pin or a mark is an empty file: only its name says something": (rf"{RUN}/(pins|abandoned)/.+", ""),
    "each beat replaces the one before; synced, it shows on other machines": (r".*/lease-\d+", r"truncate "),
    "a folder's name that was durable already": (r"work/runs|work|\.", r"^$"),
    "two renames within one folder: the new name is never there without the old one": (
        "work",
        r"rename work/best → ",
    ),
}


def fsyncs(tape):
    """(index, what is synced, the last call that changed it) of each fsync on a tape."""
    changed = {}
    for index, call in enumerate(tape.calls):
        if type(call) is volatile_disk.Sync:
            yield index, call.text.removeprefix("fsync "), changed.get(call.inode, "")
        elif type(call) is volatile_disk.Names:
            changed.update((directory, call.text) for directory, _, _ in call.changes)
        elif type(call) is not volatile_disk.Note:
            changed[call.inode] = call.text


def fits(fsync, path, after):
    return re.fullmatch(path, fsync[1]) is not None and re.search(after, fsync[2]) is not None


@pytest.mark.parametrize("left_out", NEEDED)
def test_every_fsync_is_needed(left_out, place, clock, monkeypatch, tried):
    """Without this fsync a power loss takes what was promised, and the test above would tell."""
    scenario, path, after = NEEDED[left_out]
    tape = tape_of(scenario)
    for name, text in getattr(scenario, "environment", {}).items():
        monkeypatch.setenv(name, text)
    indices = [fsync[0] for fsync in fsyncs(tape) if fits(fsync, path, after)]
    assert indices
    how = {"model": JOURNAL, "random": random.Random(left_out), "limit": 64, "twins": 1}
    with pytest.raises(Loss):
        try_all(scenario, tape.without(*indices), place, clock, **how)
    tried("safeguards")


@pytest.mark.parametrize("scenario", [*RUNS, *SAVES], ids=lambda scenario: scenario.__name__)
def test_every_fsync_is_accounted_for(scenario):
    """Each fsync is one that the test above leaves out, or known to be spare."""
    known = [(path, after) for _, path, after in NEEDED.values()] + list(SPARE.values())
    unknown = [fsync for fsync in fsyncs(tape_of(scenario)) if not any(fits(fsync, *pair) for pair in known)]
    assert not unknown
