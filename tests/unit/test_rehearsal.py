"""The pieces of a rehearsal: places to interrupt at, mapped paths, trails, variables of the script."""

import json
import os
import random
import subprocess
import sys
import threading
from collections import deque
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import holdfast
from holdfast import UsageError, stage, trail, witness
from holdfast.comparison import Comparison, ValueDifference
from holdfast.rehearsal import causes, points
from holdfast.rehearsal.ends import End, Ends, Odd, Variable, compare_series, unused_streams
from holdfast.rehearsal.partings import Parting, part
from holdfast.rehearsal.points import Point, choose, marks, parse_point
from holdfast.rehearsal.trails import Place, Shape, Trail, latest

# -- places ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "point"),
    [("step=37", Point("step", 37)), ("epoch=0", Point("epoch", 0)), ("random", Point("random"))],
)
def test_a_place_is_parsed(text, point):
    """step=N, epoch=N and random are places."""
    assert parse_point(text) == point
    assert str(point) == text


@pytest.mark.parametrize(
    "text", ["", "37", "step", "step=", "step=-1", "step=1.5", "middle", "batch=3", "step=\u0663"]
)
def test_another_place_is_refused(text):
    """Whatever else is given as a place is refused, with what there is."""
    with pytest.raises(UsageError, match=r"expected step=N .* epoch=N .* random"):
        parse_point(text)


def epochs(*lengths):
    """A training by epochs of so many batches."""
    ends = [sum(lengths[: i + 1]) for i in range(len(lengths))]
    return Shape("epochs", list(zip([0, *ends], ends, strict=False)), ends[-1] if ends else 0, [])


def steps(count):
    return Shape("steps", [], count, [])


def own(*places):
    return Shape("own", [], 0, [Place(epoch, step, 0) for epoch, step in places])


SHAPES = st.one_of(
    st.lists(st.integers(1, 9), min_size=1, max_size=6).map(lambda lengths: epochs(*lengths)),
    st.integers(1, 40).map(steps),
    st.integers(1, 8).map(lambda count: own(*((i + 1, 0) for i in range(count)))),
    st.integers(1, 6).map(lambda count: epochs(*([0] * count))),
)


@given(
    SHAPES,
    st.integers(1, 6),
    st.sampled_from(["random", "middle"]),
    st.sampled_from(points.SIGNALS),
    st.integers(0, 99),
)
def test_every_interruption_lies_in_the_training(shape, times, unit, signal, seed):
    """Wherever it is placed, an interruption comes before the end, after its save, each at another place."""
    found = choose({"r": shape}, [Point(unit)] * times, signal, seed)
    assert 1 <= len(found) <= times
    assert [one.at for one in found] == sorted({one.at for one in found})
    first = points.first(shape)
    for one in found:
        assert first <= one.at < first + points.count(shape)
        assert one.save <= one.at
        assert (one.save == -1) == (signal != "KILL" or one.unit == "save")
        assert one.unit == ("save" if shape.kind == "own" else "step" if shape.steps else "epoch")
        if one.unit == "step" and shape.epochs and signal == "KILL":
            start, stop = shape.epochs[one.epoch]
            assert start <= one.save <= one.at < stop, "the save is made in the epoch that is interrupted"
            assert one.save > start or one.at == start, "and after its first batch, if there is one"
    for entry in marks(found, {"r": shape}).values():
        assert all(0 < at <= max(shape.steps, len(shape.epochs)) for at in entry["at"])


def test_random_places_are_repeated_by_their_seed():
    """One seed gives the same places again, all different; another seed gives others."""
    shapes = {"a": epochs(5, 5), "b": steps(10)}
    draws = [choose(shapes, [Point("random")] * 6, "KILL", seed) for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]
    assert len({(one.run, one.at) for one in draws[0]}) == 6


def test_more_places_than_there_are():
    """More random interruptions than places are as many as there are places."""
    assert len(choose({"a": steps(3)}, [Point("random")] * 9, "KILL", 0)) == 3


@pytest.mark.parametrize(
    ("shapes", "text", "expected"),
    [
        ({"a": epochs(6, 6, 6, 6)}, "epoch=2", ("a", "step", 15, 13)),
        ({"a": epochs(6, 6, 6, 6)}, "step=12", ("a", "step", 12, 12)),
        ({"a": epochs(6, 6, 6, 6)}, "step=13", ("a", "step", 13, 13)),
        ({"a": epochs(6, 6, 6, 6)}, "step=17", ("a", "step", 17, 15)),
        ({"a": epochs(1, 1, 1)}, "epoch=1", ("a", "step", 1, 1)),
        ({"a": epochs(0, 0, 0)}, "epoch=1", ("a", "epoch", 2, 1)),
        ({"a": steps(9)}, "step=8", ("a", "step", 8, 6)),
        ({"a": steps(9), "b": epochs(20)}, "step=12", ("b", "step", 12, 10)),
        ({"a": own((1, 10), (2, 20), (3, 30))}, "epoch=1", ("a", "save", 2, -1)),
        ({"a": own((1, 10), (2, 20), (3, 30))}, "step=25", ("a", "save", 3, -1)),
    ],
)  # fmt: skip
def test_what_a_place_means(shapes, text, expected):
    """A place means a step, the end of an epoch, or a call of run.save, as the training is made."""
    (one,) = choose(shapes, [parse_point(text)], "KILL", 0)
    assert (one.run, one.unit, one.at, one.save) == expected


@pytest.mark.parametrize("text", ["step=9", "epoch=0"])
def test_a_place_that_a_training_never_gets_to(text):
    """A place after the end, or in a unit that the training does not count, is refused with what it has."""
    with pytest.raises(UsageError, match=rf"--kill-at {text}: .*\(a: 9 steps\)"):
        choose({"a": steps(9)}, [parse_point(text)], "KILL", 0)


# -- where things lie ------------------------------------------------------------------------------------


@pytest.fixture
def series(tmp_path, monkeypatch):
    """A stage in a directory of its own, and an empty working directory."""
    home = os.path.realpath(tmp_path / "series")
    stage.prepare(home)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return stage.Stage({"series": home, "launch": 1, "outside": 0, "interrupt": None, "marks": {}})


@pytest.fixture
def rehearsed(series, monkeypatch):
    """This very process is rehearsed."""
    path = f"{series.home}/plan.json"
    Path(path).write_text(json.dumps(series.plan))
    monkeypatch.setenv(stage.VARIABLE, path)
    yield series
    for handler in [h for h in stage.logger.handlers if isinstance(h, stage._Warnings)]:
        stage.logger.removeHandler(handler)
    stage._open.cache_clear()


def test_places_are_kept(series):
    """One path has one place at each launch; another path of the same name has another."""
    here = os.getcwd()
    names = [series.place(f"{here}/{path}", stage.RUNS) for path in ("a/m", "b/m", "a/m", "./a/../a/m", "m")]
    assert [os.path.relpath(name, series.home) for name in names] == [
        "runs/m", "runs/m-2", "runs/m", "runs/m", "runs/m-3",
    ]  # fmt: skip
    again = stage.Stage({**series.plan, "launch": 2})
    assert again.place(f"{here}/b/m", stage.RUNS) == names[1]
    assert again.place(names[1], stage.RUNS) == names[1], "a place of the rehearsal is its own"


def test_one_place_for_one_path_among_threads(series):
    """Processes that name one path at the same moment get one place."""
    found, gate = [], threading.Barrier(8)

    def name():
        gate.wait()
        found.append(series.place("x/run", stage.RUNS))

    threads = [threading.Thread(target=name) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(found) == {f"{series.home}/runs/run"}


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("a/m", "runs/m"),
        ("a/m@best", "runs/m@best"),
        ("./a/m@step=7", "runs/m@step=7"),
        ("a/m/000001_epoch-0001_step-00000001_20261123T083107Z", "runs/m/000001_epoch-0001_step-00000001_20261123T083107Z"),
        ("b/m@-2", "runs/m-2@-2"),
        ("out", "saves/out"),
        ("other", None),
        ("a/other@best", None),
        ("a", None),
        ("x@y", None),
    ],
)  # fmt: skip
def test_references(series, reference, expected):
    """A reference to what the script names is looked up in the rehearsal, any other where it is."""
    for path, kind in (("a/m", stage.RUNS), ("b/m", stage.RUNS), ("out", stage.SAVES)):
        series.place(os.path.abspath(path), kind)
    assert series.find(reference) == (f"{series.home}/{expected}" if expected else reference)


def test_only_its_own_runs_are_written(rehearsed):
    """In a process that is rehearsed, no run outside is written, by whatever way."""
    from holdfast.session import Session

    run = holdfast.Run("r")
    assert run.path == f"{rehearsed.home}/runs/r"
    with pytest.raises(UsageError, match="this is a rehearsal, which writes no run but its own"):
        Session.open(os.path.abspath("other"), wait=0, say=print)
    assert os.listdir() == []
    holdfast.save("out", {"n": 1})
    holdfast.restore("out", {"n": _Holder()})
    assert os.listdir() == []


class _Holder:
    def state_dict(self):
        return 0

    def load_state_dict(self, state):
        assert state == 1


def test_no_cost_outside_of_a_rehearsal(tmp_path):
    """A training that is not rehearsed loads nothing of what a rehearsal needs, and writes no trail."""
    script = (
        f"import sys, holdfast\nrun = holdfast.Run({str(tmp_path / 'r')!r})\nfor step in run.steps(3): pass\n"
        "run.close()\nprint(*[name for name in sys.modules if name.split('.')[-1] in ('cue', 'witness', 'trail')])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_a_stage_notes_warnings(rehearsed):
    """What the library warns of in a rehearsed process stands in the trail."""
    holdfast.Run("r")
    stage.logger.warning("beware of %s", "this")
    stage.logger.info("not of this")
    assert Trail.read(rehearsed.home).warnings(1) == ["beware of this"]


# -- trails --------------------------------------------------------------------------------------------------


def test_a_torn_line_is_left_out(series):
    """A line that a signal cut short is left out, and those after it are read."""
    series.note("run", run="a", path="/a", pid=1)
    with open(f"{series.home}/{stage.TRAIL}", "ab") as file:
        file.write(b'{"event": "loop", "run": "a", "st')
    series.note("end", run="a", epoch=1, step=9, batch=0)
    found = Trail.read(series.home)
    assert [line["event"] for line in found.events] == ["run", "end"]
    assert latest(series.home) == Place(1, 9, 0)


def test_no_trail_is_an_empty_one(tmp_path):
    """A command that noted nothing has an empty trail."""
    assert Trail.read(str(tmp_path)).runs() == {}
    assert latest(str(tmp_path)) is None


@pytest.mark.parametrize(
    ("place", "text"),
    [
        (Place(0, 0, 0), "step 0"),
        (Place(2, 37, 5), "step 37, batch 5 of epoch 3"),
        (Place(3, 42, 0), "step 42, 3 epochs done"),
        (Place(0, 1200, 0), "step 1,200"),
        (Place(4, 0, 0), "epoch 4"),
    ],
)
def test_places_are_told(place, text):
    """A place says its step, and the batch or the epoch."""
    assert str(place) == text


def test_every_array_has_its_digest(tmp_path):
    """What is noted of a checkpoint changes with one bit of one array, with a value, and with a dtype, only there."""

    def noted(name, **parts):
        path = str(tmp_path / name)
        holdfast.save(path, parts)
        return trail.describe(path)["parts"]

    x = np.arange(6, dtype=np.float32)
    y = x.copy()
    y.view(np.uint32)[3] ^= 1
    base = noted("base", p={"x": x, "y": x + 1}, q={"n": 1, "s": "long" * 99})
    assert noted("same", p={"x": x, "y": x + 1}, q={"n": 1, "s": "long" * 99}) == base
    bit = noted("bit", p={"x": y, "y": x + 1}, q={"n": 1, "s": "long" * 99})
    assert {key for key in base["p"]["arrays"] if base["p"]["arrays"][key] != bit["p"]["arrays"][key]} == {
        "x"
    }
    assert base["q"] == bit["q"]
    text = noted("text", p={"x": x, "y": x + 1}, q={"n": 1, "s": "long" * 98 + "lonG"})
    assert text["q"]["values"]["n"] == base["q"]["values"]["n"]
    assert text["q"]["values"]["s"] != base["q"]["values"]["s"]
    kind = noted("kind", p={"x": x.astype(np.float64), "y": x + 1}, q={"n": 1, "s": "long" * 99})
    assert kind["p"]["arrays"]["x"] != base["p"]["arrays"]["x"]


def test_large_arrays_are_read_in_groups(tmp_path, monkeypatch):
    """The groups in which arrays are read back change no digest."""
    holdfast.save(tmp_path / "c", {"p": {str(i): np.full(i, i, "f8") for i in range(9)}})
    whole = trail.describe(str(tmp_path / "c"))
    monkeypatch.setattr(trail, "GROUP", 64)
    assert trail.describe(str(tmp_path / "c")) == whole


# -- variables ----------------------------------------------------------------------------------------------


class Counter:
    def __init__(self):
        self.seen, self.name, self.rng = 3, "x", random.Random(0)


class Touchy:
    """As a loader that begins its epoch when it is asked for its state."""

    asked = 0

    def state_dict(self):
        type(self).asked += 1
        return {}

    def load_state_dict(self, state):
        pass


class Broken(random.Random):
    def getstate(self):
        raise RuntimeError("no")


def test_variables_that_hold_a_state(series):
    """Numbers, lists of numbers, arrays, generators and attributes of the script's objects are noted; texts are not."""
    total, losses, window, sizes = 1.5, [1.0, 2.0], deque([1]), {"a": 1}
    mean, name, nothing, flag = np.ones(3), "x", None, True
    rng, counter = np.random.default_rng(0), Counter()
    found = {key.rpartition(":")[2]: value for key, value in witness.look({}, ()).items()}
    mine = {"total", "losses", "window", "sizes", "mean", "rng", "counter.seen", "counter.rng"}
    assert mine <= set(found)
    assert not {"name", "nothing", "flag", "counter.name"} & set(found)
    assert found["total"] == {"kind": "number", "value": "1.5"}
    assert found["rng"]["trackable"]
    assert "trackable" not in found["mean"]
    before = found["rng"]["value"]
    rng.random()
    losses.append(3.0)
    again = {key.rpartition(":")[2]: value for key, value in witness.look({}, ()).items()}
    assert again["rng"]["value"] != before
    assert again["losses"]["kind"] == "3 numbers"
    assert again["mean"] == found["mean"]
    assert (total, window, sizes, name, nothing, flag, counter.seen) == (
        1.5,
        deque([1]),
        {"a": 1},
        "x",
        None,
        True,
        3,
    )
    assert mean.sum() == 3


def test_what_is_tracked_is_left_out(series):
    """What a run tracks is not among the variables, by whatever name."""
    rng = np.random.default_rng(0)
    also = rng
    found = witness.look({"rng": rng}, ())
    assert not [key for key in found if key.endswith((":rng", ":also"))]
    assert also is rng


def test_nothing_is_asked_of_strangers(series):
    """An object of an unknown kind is not asked for its state, and one that fails is noted as failing."""
    touchy, broken = Touchy(), Broken()
    found = {key.rpartition(":")[2]: value for key, value in witness.look({}, ()).items()}
    assert touchy.asked == 0
    assert found["broken"]["failed"] == "RuntimeError: no"
    assert isinstance(broken, random.Random)


def test_looking_draws_from_no_stream(series):
    """Looking at the variables leaves every generator and the global streams as they were."""
    own, rng, legacy = random.Random(1), np.random.default_rng(1), np.random.RandomState(1)
    states = (random.getstate(), repr(np.random.get_state()), own.getstate(), repr(rng.bit_generator.state), repr(legacy.get_state()))  # fmt: skip
    witness.look({}, ())
    assert states == (random.getstate(), repr(np.random.get_state()), own.getstate(), repr(rng.bit_generator.state), repr(legacy.get_state()))  # fmt: skip


def test_modules_of_torch(series):
    """An untracked module changes with its weights; a tracked one's own layers are left out."""
    torch = pytest.importorskip("torch")
    net, other = torch.nn.Sequential(torch.nn.Linear(2, 2)), torch.nn.Linear(1, 1)
    layer = net[0]
    values = []
    for _ in range(2):
        found = {key.rpartition(":")[2]: value for key, value in witness.look({"model": net}, ()).items()}
        assert "net" not in found
        assert "layer" not in found
        values.append(found["other"]["value"])
        with torch.no_grad():
            other.weight += 1
    assert values[0] != values[1]
    assert layer is net[0]


# -- what is concluded ------------------------------------------------------------------------------------------


def made(home, **runs):
    """A trail as trainings leave it: run → list of (place, value of state/x, stream, variables)."""
    events = []
    for run, lines in runs.items():
        events.append({"event": "run", "launch": 1, "run": run, "path": f"/{run}", "pid": 1})
        for number, (place, x, stream, variables) in enumerate(lines):
            at = {"launch": 1, "run": run, **place._asdict()}
            if number == 0:
                loop = {"kind": "steps", "goal": 9, "resumed": None, "streams": {"python": stream}}
                events.append({"event": "loop", **at, **loop})
            random_part = {"kind": "value", "values": {"streams": {"python": stream}}, "arrays": {}}
            parts = {"state": {"kind": "value", "values": {"x": x}, "arrays": {}}, "random": random_part}
            events.append({"event": "variables", **at, "found": variables})
            events.append({"event": "checkpoint", **at, "metrics": {}, "parts": parts})
    return Trail(str(home), events)


def number(value):
    return {"kind": "number", "value": str(value)}


def test_where_two_part(tmp_path):
    """The parting is the first place that both have and where they differ; the variables are those of the last equal one."""
    key = "t.py::n"
    one = made(tmp_path, r=[(Place(0, s, 0), s, "a", {key: number(s)}) for s in range(1, 9)])
    lines = [(2, 2, 2), (4, 4, 0), (6, 6.5, 0), (8, 8.5, 0)]
    other = made(tmp_path, r=[(Place(0, s, 0), x, "b", {key: number(n)}) for s, x, n in lines])
    found = part([one], other, "r", Odd())
    assert (found.before, found.at) == (Place(0, 4, 0), Place(0, 6, 0))
    assert [(d.name, d.left, d.right) for d in found.differences] == [("state/x", 6, 6.5)]
    assert [(v.key, v.left["value"], v.right["value"]) for v in found.variables] == [(key, "4", "0")]
    assert part([one], other, "r", Odd(names=["state/x"])) is None
    assert part([one], one, "r", Odd()) is None


def test_a_stream_that_is_used_counts(tmp_path):
    """A random stream that changes while it is trained is compared; one that never does is left out."""
    one = made(tmp_path, r=[(Place(0, s, 0), 0, "a", {}) for s in (1, 2)])
    other = made(tmp_path, r=[(Place(0, s, 0), 0, "b", {}) for s in (1, 2)])
    assert unused_streams(one, "r") == {"python"}
    assert part([one], other, "r", Odd()) is None
    drawn = made(tmp_path, r=[(Place(0, s, 0), 0, f"b{s}", {}) for s in (1, 2)])
    assert unused_streams(drawn, "r") == set()
    assert part([one], drawn, "r", Odd()).differences[0].name == "random/streams/python"


def ends_of(*records, values=()):
    found = Comparison("a", "b", value_differences=[ValueDifference(name, 1, 2) for name in values])
    return Ends([End("r", "/r", found, [ValueDifference(name, 1, 2) for name in records])], [], [])


def test_odd_metrics():
    """Metrics alone may differ between two straight trainings; whatever else differs, is no odd metric."""
    assert ends_of("metrics/t", "history/3/t", "history/4/u").odd_metrics() == {"t", "u"}
    assert ends_of("goal/value").odd_metrics() is None
    assert ends_of("metrics/t", values=["state/x"]).odd_metrics() is None
    assert Ends([], ["/x"], []).odd_metrics() is None
    assert ends_of().odd_metrics() == set()


def test_what_makes_two_ends_differ():
    """A value of the state, a metric, an untracked thing, a run of one side: each is a difference."""
    assert ends_of().equal
    assert not ends_of("history/0/loss").equal
    assert not ends_of(values=["state/x"]).equal
    untracked = ends_of()
    untracked.ends[0].untracked.append(variable("rng", trackable=True))
    assert not untracked.equal
    assert not Ends([], ["/x"], []).equal
    assert not Ends([], [], ["/x"]).equal


def parting_of(names, variables=(), launch=2):
    differences = [ValueDifference(name, 1, 2) for name in names]
    return Parting("r", Place(0, 1, 0), Place(0, 2, 0), launch, Place(0, 1, 0), differences, list(variables))


def variable(name, kind="number", **more):
    return Variable(
        f"t.py:main:{name}", {"kind": kind, "value": "1", **more}, {"kind": kind, "value": "2", **more}
    )


AUGMENTED = "Random augmentation inside the 2 loader worker(s) cannot be replayed in the middle of an epoch."


@pytest.mark.parametrize(
    ("parted", "warning", "words"),
    [
        (parting_of(["model/w"], [variable("rng", "numpy.Generator", trackable=True)]), "", "rng (Generator; t.py, in main) is not tracked"),
        (parting_of(["optimizer/param_groups/0/lr"]), "", "a scheduler that is not tracked. optimizer/param_groups/0/lr is 1"),
        (parting_of(["model/w"], [variable("x", "torch.Tensor [4]")]), AUGMENTED, "what the resumed launch warned of: Random augmentation"),
        (parting_of(["random/streams/numpy/state/pos"]), "", "the random stream of numpy is drawn from in one launch"),
        (parting_of(["model/w", "random/streams/torch/cpu"]), "", "the random stream of torch is drawn from"),
        (parting_of(["state/loss"], [variable("total")]), "", "Only state/loss differs, and total (t.py, in main) is 1"),
        (parting_of(["metrics/loss"]), "", "metrics/loss is summed up outside of run.state"),
        (parting_of(["state/loss"]), "", "state/loss depends on a variable that is kept outside of run.state"),
        (parting_of(["model/w"], [variable("n")]), "", "n (t.py, in main) is neither tracked nor in run.state"),
        (parting_of(["model/w"]), "", "something that decides how it trains is neither tracked nor in run.state"),
    ],
)  # fmt: skip
def test_likely_causes(tmp_path, parted, warning, words):
    """Each kind of difference has its likely cause."""
    events = [{"event": "warning", "launch": 2, "text": warning}] if warning else []
    found = causes.explain_interrupted(
        ends_of(values=["x"]), [parted], Trail(str(tmp_path), events), straight_once=False
    )
    assert len(found) == 1
    assert words in found[0]
    assert found[0].startswith("Likely: ")


def test_a_bit_of_a_run_is_a_difference(tmp_path):
    """Runs of two series are paired by the path that the script named, and one that is missing is a difference."""
    trails = []
    for series, runs in (("one", ("a", "b")), ("other", ("a", "c"))):
        home = str(tmp_path / series)
        stage.prepare(home)
        maker = stage.Stage({"series": home, "launch": 1})
        for name in runs:
            path = maker.place(f"/nowhere/{name}", stage.RUNS)
            run = holdfast.Run(path)
            run.state["x"] = 1 if name == "a" else 2
            run.save(step=1, wait=True)
            run.close()
            maker.note("run", run=name, path=f"/nowhere/{name}", pid=1)
        trails.append(Trail.read(home))
    found = compare_series(*trails, Odd())
    assert ([end.path for end in found.ends], found.only_left, found.only_right) == (
        ["/nowhere/a"], ["/nowhere/b"], ["/nowhere/c"],
    )  # fmt: skip
    assert found.ends[0].found.equal
    assert not found.equal
