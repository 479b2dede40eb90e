"""What is done while the disk stops or fails, and what must be there after it.

A scenario is one class: `prepare` makes what is there before, on a healthy disk; `act` is tried
under faults, and then once more by a new process, which must bring it to its end. `STAGES` says
which steps a reader may see: those of one stage, or, between two, on the way from the first to the
second; `END`, which are there when a later launch has added one. Another scenario (a repair, a mirror) is another class here, with its name in `SCENARIOS`.

In all of them a checkpoint of step n holds `content(n)`, so a mixture or an older value shows.
"""

import contextlib
import functools
import glob
import os
import random

import numpy as np

import holdfast
from holdfast import Every, Keep, NotFoundError, rewinding
from holdfast.exchange import exporting
from holdfast.format.names import parse_checkpoint_name
from holdfast.store import book, catalog
from holdfast.store.lease import holder_of, lease_number

NAMES = ("run.json", "history.jsonl")
ALL = Keep(last=None)


@functools.cache
def drawn(step):
    """What the loop draws at a step of an uninterrupted training."""
    stream = random.Random(7)
    return [stream.random() for _ in range(step)][-1]


def content(step, size=3000):
    return {"w": np.arange(size, dtype=np.float32) + step, "b": np.full((3, 5), step), "drawn": drawn(step)}


def step_of(name):
    return parse_checkpoint_name(name).step


def equal(found, expected):
    assert found.keys() == expected.keys(), (sorted(found), sorted(expected))
    for key, value in expected.items():
        assert np.array_equal(found[key], value), f"{key} is {found[key]}, not {value}"


class Scenario:
    """A training in a loop of its own, from what `before` steps left to `goal`; each step is saved."""

    before, goal = 0, 1
    keep, staging = ALL, 0
    STAGES, END = [set(), {1}], {1, 2}
    links = {"latest"}
    more = set()  # other names in the run
    beside = set()  # other names beside the run
    exchanges = True
    size = 3000
    start = None
    """The step that the last launch resumed from; None before it has."""
    kill = None
    """The call, as (name, end of the role), in whose middle a launch was killed before."""

    def __init__(self, place):
        self.place, self.run = place, os.path.join(place, "run")

    # -- what is done ------------------------------------------------------------------------------

    def prepare(self):
        if self.before:
            self.train(self.before)

    def check_prepared(self):
        """Whether that is there which this is about."""

    def act(self):
        """What is tried."""
        self.train(self.goal)

    def finish(self):
        """A later launch: what was interrupted is brought to its end, and goes on. Gives what it resumed from."""
        earlier = len(book.read_events(self.run)) if os.path.isdir(self.run) else 0
        start = self.train(self.goal + 1)
        first = book.read_events(self.run)[earlier]["event"]
        # A line that a kill cut off must not swallow the next one.
        assert first in ("start", "resume", "damaged"), f"the first event in the history is {first!r}"
        return start

    def settle(self):
        """What a later process does of itself about things that only the end of a process lets go."""

    def open(self, **options):
        return holdfast.Run(
            self.run,
            **{"seed": 7, "keep": self.keep, "staging": self.staging, "every": Every(steps=1), **options},
        )

    def train(self, goal):
        with self.open() as run:
            start = self.start = self.resumed(run, run.resume())
            for step in range(start, goal):
                self.step(run, step + 1)
                run.save(step=step + 1, metrics=self.metrics(step + 1))
        return start

    def resumed(self, run, progress):
        """The step that a run stands at, whose state is compared."""
        equal(run.state, content(progress.step, self.size) if progress.step else {})
        return progress.step

    def step(self, run, step):
        run.state.update(content(step, self.size))
        run.state["drawn"] = random.random()

    def metrics(self, step):
        return None

    # -- what is there -----------------------------------------------------------------------------

    def look(self):
        """The steps that a reader sees, each whole and with the right content; checks every name."""
        if not os.path.lexists(self.run):
            return set()
        found = set()
        for name in os.listdir(self.run):
            if not name.startswith((*NAMES, "lease-", ".writing-", *self.links, *self.more)):
                found.add(self.look_at(os.path.join(self.run, name)))
        if catalog.is_run(self.run):
            whole = {checkpoint.progress.step for checkpoint in holdfast.Run(self.run).checkpoints}
            assert whole == found, f"the run lists {whole}, the directory has {found}"
            self.look_at_newest(found - self.abandoned_now())
        else:
            assert not found, "checkpoints without run.json"
        return found

    def look_at(self, path):
        """The step of a checkpoint, every byte of which is checked."""
        checkpoint = holdfast.open(path)
        assert checkpoint.verify() == [], [str(error) for error in checkpoint.verify()]
        step = checkpoint.progress.step
        equal(checkpoint.load(["state"])["state"], content(step, self.size))
        return step

    def look_at_newest(self, found):
        try:
            newest = holdfast.open(self.run).progress.step
        except NotFoundError:
            newest = 0
        assert newest == max(found, default=0), f"the newest of {found} is said to be {newest}"

    def abandoned_now(self):
        return {step_of(name) for name in catalog.marks(self.run, catalog.ABANDONED)}

    def check(self, found):
        """Whether a reader may see these: one stage, or one on the way to the next, the new before the old goes."""
        stages = self.STAGES
        for one, other in zip(stages, [*stages[1:], stages[-1]], strict=True):
            new = other - one
            if one <= found <= one | other:
                return
            if new <= found and one & other <= found <= one | other:
                return
        raise AssertionError(f"{sorted(found)} is none of {stages}, nor between two of them")

    def newest(self, found):
        """The step that a run resumes from, where these are found."""
        return max(found - self.abandoned_now(), default=0) if found else 0

    def check_end(self, expected):
        """After the end: exactly the names that are expected, and these steps."""
        self.check_names()
        found = self.look()
        assert found == expected, f"at the end there are {sorted(found)}, not {expected}"
        for link in self.links:
            assert catalog.is_checkpoint(os.path.join(self.run, link)), f"{link} points nowhere"
        latest = os.path.basename(os.readlink(os.path.join(self.run, "latest")))
        assert step_of(latest) == self.newest(found), latest

    def check_names(self):
        names = set(os.listdir(self.run))
        leases = {name for name in names if lease_number(name)}
        assert len(leases) == 1, f"leases: {leases}"
        assert holder_of(self.run).released, "the release is not written"
        extra = {name for name in names - leases if not name[0].isdigit()} - {*NAMES, *self.links, *self.more}
        assert not extra, f"left behind: {extra}"
        missing = {*NAMES, *self.links} - names
        assert not missing, f"missing: {missing}"
        besides = set(os.listdir(self.place)) - {"run", *self.beside}
        assert not besides, f"left beside the run: {besides}"


# -- saves ---------------------------------------------------------------------------------------------


class FirstSave(Scenario):
    """The first save of a new run; nothing is there before, not even the folder."""


class FirstSaveBehind(FirstSave):
    """The same in the background."""

    staging = None


class FurtherSave(Scenario):
    """One more save of a run that has two."""

    before, goal = 2, 3
    STAGES, END = [{1, 2}, {1, 2, 3}], {1, 2, 3, 4}


class FurtherSavesBehind(FurtherSave):
    """Two more, in the background, with the oldest deleted."""

    goal, staging, keep = 4, None, Keep(last=3)
    STAGES, END = [{1, 2}, {1, 2, 3}, {2, 3, 4}], {3, 4, 5}


class Large(FurtherSave):
    """A payload of several blocks, written around the page cache where the disk can."""

    before, goal, staging = 1, 2, None
    size = 9 << 19
    STAGES, END = [{1}, {1, 2}], {1, 2, 3}


class LastOne(Scenario):
    """Retention that leaves one."""

    before, goal, keep = 1, 3, Keep(last=1)
    STAGES, END = [{1}, {2}, {3}], {4}


class BestAndPinned(Scenario):
    """Retention that leaves the last two, the best and a pinned one, while the best changes."""

    before, goal = 3, 5
    keep = Keep(last=2, best=1, metric="m", mode="max")
    STAGES, END = [{1, 2, 3}, {1, 2, 3, 4}, {2, 4, 5}], {2, 5, 6}
    links = {"latest", "best"}
    more = {"pins"}

    def metrics(self, step):
        return {"m": float([0, 5, 1, 2, 3, 9, 4][step])}

    def prepare(self):
        self.train(2)
        holdfast.open(self.run).pin()
        self.train(3)


class Tracked(Scenario):
    """Parts that are tracked, each a payload file of its own, beside the state."""

    goal = 2
    STAGES, END = [set(), {1}, {1, 2}], {1, 2, 3}

    def open(self, **options):
        run = super().open(**options)
        self.box, self.other = Box(), Box()
        run.track(box=self.box, other=self.other)
        return run

    def step(self, run, step):
        super().step(run, step)
        self.box.weight[:] = step
        self.other.weight[:] = -step

    def resumed(self, run, progress):
        assert (self.box.weight == progress.step).all()
        assert (self.other.weight == -progress.step).all()
        return super().resumed(run, progress)


class Box:
    """Something with a state_dict."""

    def __init__(self):
        self.weight = np.zeros(1000)

    def state_dict(self):
        return {"weight": self.weight}

    def load_state_dict(self, state):
        self.weight = np.array(state["weight"])


class Release(Scenario):
    """A launch that resumes and saves nothing."""

    before = goal = 2
    STAGES, END = [{1, 2}], {1, 2, 3}


# -- managed loops ---------------------------------------------------------------------------------------


class Managed(Scenario):
    """A managed loop over steps, to its goal, which is recorded."""

    before, goal, keep = 1, 3, Keep(last=2)
    STAGES, END = [{1}, {1, 2}, {2, 3}], {3, 4}

    def train(self, goal):
        start = None
        with self.open() as run:
            for _ in self.loop(run, goal):
                if start is None:
                    start = self.start = self.resumed(run, run.progress)
                self.step(run, run.progress.step + 1)
                written(run)
            return self.resumed(run, run.progress) if start is None else start

    def loop(self, run, goal):
        yield from run.steps(goal)

    def check_end(self, expected):
        super().check_end(expected)
        later = expected == self.END
        reached = book.read_run(self.run).reached
        assert reached == self.reached(later), reached
        assert self.train(self.goal + later) == self.newest(self.look()), "a complete run goes on"
        assert book.read_run(self.run).reached == reached, "looking at it changed it"

    def reached(self, later):
        return {"kind": "steps", "value": self.goal + later, "stopped": False}


class ManagedBehind(Managed):
    """The same in the background."""

    staging = None


class Epochs(Managed):
    """A managed loop over epochs of two batches, which is stopped before its goal."""

    before, goal, keep = 0, 9, ALL
    STAGES, END = [set(), {1}, {1, 2}, {1, 2, 3}, {1, 2, 3, 4}], {1, 2, 3, 4, 5, 6}

    def loop(self, run, goal):
        for epoch in run.epochs(goal):
            yield from run.batches(["first", "second"])
            if epoch == 1 + goal - self.goal:
                run.stop()

    def reached(self, later):
        return {"kind": "epochs", "value": self.goal + later, "stopped": True}


def written(run):
    """Waits until the save in flight is written, so that each boundary's save is made."""
    saver = run._training.saver
    if saver is not None and saver._flight is not None:
        saver._flight.ticket.join()


# -- after something went wrong before -------------------------------------------------------------------


class TakeOver(FurtherSave):
    """A launch after one that was killed in the middle of a save: its half-written folder is there."""

    kill = ("pwrite", "state.safetensors")

    def check_prepared(self):
        drafts = glob.glob(os.path.join(self.run, ".writing-*", "*", "state.safetensors"))
        assert drafts, "nothing half-written"


class Damaged(Scenario):
    """A launch that passes over a damaged newest checkpoint; retention leaves two good ones."""

    before, goal, keep = 3, 4, Keep(last=2)
    STAGES, END = [{2}, {2, 3}, {3, 4}], {4, 5}

    def prepare(self):
        super().prepare()
        self.harm()

    def harm(self):
        newest = holdfast.open(self.run).path
        with open(os.path.join(newest, "state.safetensors"), "r+b") as file:
            file.seek(5000)
            file.write(b"damage")

    def look_at(self, path):
        # The damaged one has the number 3, and stays: nobody may take it for one that can go.
        if os.path.basename(path).startswith("000003"):
            assert holdfast.open(path).verify(), "the damage is gone"
            return 0
        return super().look_at(path)

    def look(self):
        names = [name for name in os.listdir(self.run) if name[0].isdigit()]
        return {self.look_at(os.path.join(self.run, name)) for name in names} - {0}


# -- without a run ---------------------------------------------------------------------------------------


class Saved(Scenario):
    """`holdfast.save` of something new."""

    STAGES, END = [set(), {1}], {1}
    name = "first"
    named = False
    """Whether an older one has that name."""

    def put(self, step):
        holdfast.save(os.path.join(self.place, self.name), {"values": content(step), "step": step})

    def prepare(self):
        """Nothing."""

    def act(self):
        self.put(max(self.STAGES[-1]))

    def finish(self):
        self.act()

    settle = finish

    def check_undone(self):
        """After a save whose last step could not be made durable: what was there before is there again."""
        assert self.look() == self.STAGES[0], "a save that failed is there all the same"
        there = os.path.lexists(os.path.join(self.place, self.name))
        assert there == self.named, "the older one has not got its name back"

    def look(self):
        path = os.path.join(self.place, self.name)
        try:
            checkpoint = holdfast.open(path)
        except NotFoundError:
            return set()
        assert checkpoint.verify() == [], [str(error) for error in checkpoint.verify()]
        values = checkpoint.load()
        equal(values["values"], content(values["step"]))
        return {values["step"]}

    def check_end(self, expected):
        assert self.look() == expected
        found = sorted(os.listdir(self.place))
        assert found == sorted([self.name, *self.beside]), f"left behind: {found}"


class Replaced(Saved):
    """`holdfast.save` in the place of an older one."""

    STAGES, END = [{1}, {2}], {2}
    named = True

    def prepare(self):
        self.put(1)


class ReplacedByTwoRenames(Replaced):
    """The same where two names cannot be exchanged."""

    exchanges = False


class ReplacedAfterAKill(ReplacedByTwoRenames):
    """The same once more, after a process was killed between the two renames."""

    STAGES, END = [{1}, {3}], {3}
    named = False

    def prepare(self):
        super().prepare()
        os.rename(os.path.join(self.place, self.name), os.path.join(self.place, f".{self.name}.previous"))


class Exported(Saved):
    """A safetensors file of a checkpoint."""

    target = "out.safetensors"
    beside = {target}
    named = True  # the checkpoint

    def prepare(self):
        weights = {"w": np.arange(3000, dtype=np.float32), "b": np.ones(5)}
        holdfast.save(os.path.join(self.place, self.name), {"model": weights})

    def act(self):
        source, target = (os.path.join(self.place, name) for name in (self.name, self.target))
        exporting.export_file(source, target, part="model", overwrite=True)

    def look(self):
        path = os.path.join(self.place, self.target)
        if not os.path.lexists(path):
            return set()
        from safetensors.numpy import load_file

        equal(load_file(path), {"w": np.arange(3000, dtype=np.float32), "b": np.ones(5)})
        return {1}


# -- commands --------------------------------------------------------------------------------------------


class Command(Scenario):
    """A command about a run; a launch after it resumes, and the same command ends what was begun."""

    def finish(self):
        start = self.train(0)
        self.act()
        return start


class Rewound(Command):
    """`holdfast rewind` by two; stopped half-way it is as if rewound less far."""

    before = 4
    STAGES, END = [{1, 2, 3, 4}], {1, 2, 3, 4}
    more = {"abandoned"}

    def act(self):
        rewinding.rewind(self.run, "@step=2")

    def check(self, found):
        super().check(found)
        assert self.abandoned_now() in (set(), {4}, {3, 4}), self.abandoned_now()

    def check_end(self, expected):
        super().check_end(expected)
        assert self.abandoned_now() == {3, 4}


class Pinned(Command):
    """A pin."""

    before = 2
    STAGES, END = [{1, 2}], {1, 2}
    more = {"pins"}
    pinned = {1}

    def act(self):
        holdfast.open(f"{self.run}@step=1").pin()

    def check_end(self, expected):
        super().check_end(expected)
        assert {step_of(name) for name in catalog.marks(self.run, catalog.PINS)} == self.pinned


class Unpinned(Pinned):
    """An unpin."""

    pinned = set()

    def prepare(self):
        super().prepare()
        super().act()

    def act(self):
        holdfast.open(f"{self.run}@step=1").unpin()


class Pruned(Command):
    """`holdfast prune --yes`, with a mark of a checkpoint that is gone."""

    before = 4
    STAGES, END = [{1, 2, 3, 4}, {2, 3, 4}, {3, 4}], {3, 4}
    more = {"pins"}

    def prepare(self):
        super().prepare()
        os.mkdir(os.path.join(self.run, "pins"))
        with open(os.path.join(self.run, "pins", "000009_epoch-0000_step-00000009_20260101T000000Z"), "w"):
            """A mark of one that is gone."""

    def act(self):
        from holdfast.cli.pruning import prune_command

        with contextlib.redirect_stdout(None):
            prune_command.main([self.run, "--keep-last", "2", "--yes"], standalone_mode=False)

    def check_end(self, expected):
        super().check_end(expected)
        assert os.listdir(os.path.join(self.run, "pins")) == []


class Init(Tracked):
    """The first launch of a run that starts from another one."""

    goal = 1
    STAGES, END = [set(), {1}], {1, 2}
    beside = {"base"}

    def prepare(self):
        holdfast.save(os.path.join(self.place, "base"), {"box": Box()})

    def open(self, **options):
        return super().open(init={"box": os.path.join(self.place, "base")}, **options)


# -- with torch ------------------------------------------------------------------------------------------


class TorchTrained(FurtherSave):
    """A model and its optimizer, in the background."""

    staging = None

    def open(self, **options):
        run = super().open(**options)
        self.net, self.optimizer = network()
        run.track(model=self.net, optimizer=self.optimizer)
        return run

    def step(self, run, step):
        super().step(run, step)
        push(self.net, self.optimizer)

    def resumed(self, run, progress):
        equal(weights(self.net), trained(progress.step))
        return super().resumed(run, progress)

    def look_at(self, path):
        step = super().look_at(path)
        equal(holdfast.open(path).load(["model"], arrays="numpy")["model"], trained(step))
        return step


def network():
    import torch

    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 2))
    return net, torch.optim.Adam(net.parameters())


def push(net, optimizer):
    """A step whose result depends on all steps before."""
    import torch

    for number, parameter in enumerate(net.parameters()):
        parameter.grad = torch.full_like(parameter, number + 1.0) * parameter.detach()
    optimizer.step()
    optimizer.zero_grad()


def weights(net):
    return {name: value.numpy().copy() for name, value in net.state_dict().items()}


@functools.cache
def trained(steps):
    """The weights after so many steps without an interruption."""
    net, optimizer = network()
    for _ in range(steps):
        push(net, optimizer)
    return weights(net)


class ModelSaved(Replaced):
    """An entire model, in the place of an older one."""

    def put(self, step):
        from holdfast import torch as edge

        net, optimizer = network()
        for _ in range(step):
            push(net, optimizer)
        edge.save_model(net, os.path.join(self.place, self.name))

    def look(self):
        from holdfast import torch as edge

        found = weights(edge.load_model(os.path.join(self.place, self.name), trust=True))
        steps = [step for step in (1, 2) if np.array_equal(found["0.weight"], trained(step)["0.weight"])]
        equal(found, trained(*steps))
        return set(steps)


class ExportedTorch(Exported):
    """A file that plain torch opens, in the place of an older one."""

    target = "out.pth"
    beside = {target}
    STAGES, END = [{1}], {1}

    def prepare(self):
        super().prepare()
        self.act()

    def look(self):
        import torch

        found = torch.load(os.path.join(self.place, self.target), weights_only=True)
        equal(found, {"w": np.arange(3000, dtype=np.float32), "b": np.ones(5)})
        return {1}


class Imported(Command):
    """A run made from a file of the safetensors library; interrupted, it can be made again."""

    STAGES, END = [set(), {0}], {0}
    links, more = set(), {"latest"}  # the link comes after the checkpoint, or with the next one
    beside = {"base.safetensors"}

    def prepare(self):
        from safetensors.numpy import save_file

        save_file({"w": np.arange(3000, dtype=np.float32)}, os.path.join(self.place, "base.safetensors"))

    def act(self):
        from holdfast.exchange import importing

        importing.import_file(os.path.join(self.place, "base.safetensors"), self.run)

    def finish(self):
        if not self.look():
            self.act()
        with holdfast.Run(self.run) as run:  # an import onto a checkpoint is refused; a launch clears up
            run.resume()

    def check_end(self, expected):
        self.check_names()
        assert self.look() == expected

    def look_at(self, path):
        checkpoint = holdfast.open(path)
        assert checkpoint.verify() == []
        equal(checkpoint.load(arrays="numpy")["model"], {"w": np.arange(3000, dtype=np.float32)})
        return checkpoint.progress.step


def warm():
    """Makes torch load what it loads late, once, before processes are forked."""
    import io

    import torch

    file = io.BytesIO()
    torch.save(trained(1), file)
    file.seek(0)
    torch.load(file, weights_only=False)
    trained(4)


TORCH = {kind.__name__: kind for kind in (TorchTrained, ModelSaved, ExportedTorch, Imported)}
SCENARIOS = {
    kind.__name__: kind
    for kind in (
        FirstSave,
        FirstSaveBehind,
        FurtherSave,
        FurtherSavesBehind,
        Large,
        LastOne,
        BestAndPinned,
        Tracked,
        Release,
        Managed,
        ManagedBehind,
        Epochs,
        TakeOver,
        Damaged,
        Saved,
        Replaced,
        ReplacedByTwoRenames,
        ReplacedAfterAKill,
        Exported,
        Rewound,
        Pinned,
        Unpinned,
        Pruned,
        Init,
    )
}
