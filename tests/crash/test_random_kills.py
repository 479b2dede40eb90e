"""Real trainings killed at random moments until they end by themselves; the end is that of a straight run, bit by bit.

Where the kills landed is derived from what is on disk after each, and printed (`pytest -rP` shows it).
"""

import collections
import json
import os
import random
import re
import signal
import subprocess
import sys

import pytest

pytest.importorskip("torch")
pytest.importorskip("sklearn")

import real_trainings as real

from holdfast.checkpoint import Checkpoint
from holdfast.comparison import compare
from holdfast.format.names import parse_checkpoint_name
from holdfast.store import catalog, retention
from holdfast.store.watch import holder_of

SEEDS = 4  # of each training, when many are tried
KILLS = 25  # of one training before it is let alone


class Case:
    """A training: how it is called, how long a step takes, and about how long it lives in one launch.

    `start` is about what passes before its first step; `length` its steps.
    """

    def __init__(self, training, words, length, *, pause, start, life):
        self.training, self.words, self.length = training, words, length
        self.pause, self.start, self.life = pause, start, life


CASES = {
    "digits": Case("digits", ["--epochs", "20"], 480, pause=0.003, start=0.3, life=0.12),
    "workers": Case("digits", ["--epochs", "4", "--workers", "2"], 96, pause=0.006, start=0.3, life=0.2),
    "results": Case("results", ["--steps", "600"], 600, pause=0.003, start=0.1, life=0.12),
    "large": Case("large", ["60"], 60, pause=0.02, start=0.1, life=0.25),
    "own": Case("own", ["60"], 180, pause=0.03, start=0.1, life=0.15),
}


def pytest_generate_tests(metafunc):
    if "seed" in metafunc.fixturenames:
        many = metafunc.config.getoption("--thorough")
        metafunc.parametrize("seed", range(SEEDS if many else 1))


@pytest.fixture(scope="module")
def launcher():
    with real.Launcher() as one:
        yield one
    assert one.stayed == 0, "loader workers outlived their killed training"


@pytest.fixture(scope="module")
def straight(launcher, tmp_path_factory):
    """The newest and the best checkpoint of a training that nothing has interrupted."""
    place, found = tmp_path_factory.mktemp("straight"), {}

    def run(name):
        if name not in found:
            case, log = CASES[name], f"{place}/{name}.log"
            order = {"training": case.training, "words": case.words, "pause": 0}
            ended = launcher.launch(run=f"{place}/{name}", log=log, **order)
            assert ended["code"] == 0, said(log)
            found[name] = f"{place}/{name}"
        return found[name]

    return run


def said(log):
    if not os.path.exists(log):  # killed before it could say anything
        return ""
    with open(log, encoding="utf-8", errors="replace") as file:
        return file.read()


# -- what is checked after each launch ----------------------------------------------------------------


class Watcher:
    """What a reader has seen of a run so far; each look is compared with the one before."""

    def __init__(self, run):
        self.run = run
        self.newest = None
        self.place = (-1, -1)
        self.best = None
        self.pinned = None
        self.launches = 0

    def look(self):
        """Every visible checkpoint is whole, the newest and the best are no worse than before."""
        if not catalog.is_run(self.run):
            assert self.newest is None, "run.json is gone"
            return
        entries = catalog.scan(self.run)
        assert [str(entry.problem) for entry in entries if entry.problem is not None] == []
        for entry in entries:
            assert Checkpoint(entry.path).verify() == []
        candidates = list(catalog.newest(entries))
        if self.newest is not None:
            assert candidates, "no checkpoint is left"
        if not candidates:
            return
        first = candidates[0]
        place = (first.name.epoch, first.name.step)
        assert self.newest is None or str(first.name) >= self.newest, "the newest went backwards"
        assert place >= self.place, "the progress went backwards"
        self.newest, self.place = str(first.name), place
        keep = catalog.run_keep(self.run)
        if keep is not None and keep.metric is not None:
            record = retention.best_record(keep, entries)
            value = record.metrics[keep.metric] * (1 if keep.mode == "max" else -1) if record else None
            assert self.best is None or (value is not None and value >= self.best), "the best was lost"
            self.best = value
        if self.pinned is not None:
            assert self.pinned in [str(entry.name) for entry in entries], "the pinned one was lost"
        elif self.launches > 5:
            Checkpoint(first.path).pin()
            self.pinned = self.newest

    def resumed(self, text, before):
        """A launch that got so far has gone on from what was the newest before it, and from nothing else."""
        self.launches += 1
        found = re.search(r": resumed from (\S+) \(|; restored (\S+)\.\n", text)
        if found:
            assert (found[1] or found[2]) == before
        if re.search(r": new run[.,]", text):
            assert before is None

    def events(self):
        """How many launches have come as far as the first step."""
        path = os.path.join(self.run, "history.jsonl")
        if not os.path.exists(path):
            return 0
        with open(path, encoding="ascii") as file:
            events = [json.loads(line)["event"] for line in file]
        return sum(event in ("start", "resume") for event in events)


def landed(run, lease_before, events_before, events_after):
    """Where in its life a launch was when it was killed: from what is on disk."""
    found = real.look(run)
    if "no run" in found or "no run.json" in found:
        return "before the run was there"
    if real.lease_of(run) == lease_before:
        return "importing"
    if "swept" in found:
        return "taking over"
    if "writing" not in found:
        return "after the end" if holder_of(run).released else "taking over"
    if "trash" in found:
        return "deleting"
    if "manifest" in found:
        return "in a save, before its rename"
    if "draft" in found:
        return "in a save"
    if found - {"writing"}:
        return "writing run.json or a link"
    return "between saves" if events_after > events_before else "loading"


def assert_end(watcher, other):
    """The run is complete, tidy, and equal to the straight one: state, streams, history and best, bit by bit."""
    run = watcher.run
    entries, theirs = catalog.scan(run), catalog.scan(other)
    for mine, expected in [
        (next(catalog.newest(entries)), next(catalog.newest(theirs))),
        best_of_both(run, other),
    ]:
        one, two = Checkpoint(mine.path), Checkpoint(expected.path)
        found = compare(one, two)
        assert found.equal, (found.array_differences, found.value_differences)
        assert one.manifest.history == two.manifest.history
        assert one.metrics == two.metrics
    keep = catalog.run_keep(run)
    assert [v.record.name for v in retention.verdicts(keep, entries) if not v.kept] == []
    names = {name for name in os.listdir(run) if parse_checkpoint_name(name) is None}
    lease = f"lease-{real.lease_of(run):06d}"
    assert names - {"pins"} == {"run.json", "history.jsonl", "latest", lease} | (
        {"best"} if keep.metric else set()
    )
    assert holder_of(run).released
    assert os.readlink(f"{run}/latest") == str(entries[-1].name)
    if keep.metric:
        best = retention.best_record(keep, entries)
        values = [row[keep.metric] for row in Checkpoint(next(catalog.newest(entries)).path).manifest.history]
        assert best.metrics[keep.metric] == {"max": max, "min": min}[keep.mode](values), "the best was lost"
        assert os.readlink(f"{run}/best") == best.name


def best_of_both(run, other):
    """The entry of the best checkpoint on both sides; of the newest where there is no metric."""
    if catalog.run_keep(run).metric is None:
        return [next(catalog.newest(catalog.scan(path))) for path in (run, other)]
    return [catalog.best_entry(path, catalog.scan(path)) for path in (run, other)]


# -- the random moments ---------------------------------------------------------------------------------


def moment(chance, case, done):
    """When a launch is killed: mostly at a moment of time, else just after something was seen on disk."""
    start, life = case.start, case.life
    soon = {"from": chance.uniform(0, start + life), "latest": start + 4 * life}
    if done > 0.9 and chance.random() < 0.6:
        return {"aim": "reached", "after": chance.uniform(0, 0.02)}
    kind = chance.choices(
        ["time", "life", "draft", "manifest", "trash", "swept", "lease"], [35, 25, 15, 5, 8, 6, 6]
    )[0]
    if kind == "time":
        return {"after": chance.uniform(0, start + life)}
    if kind == "life":
        return {"aim": "lease", "after": min(chance.expovariate(1 / life), 5 * life)}
    if kind in ("swept", "lease"):
        return {"aim": kind, "after": chance.uniform(0, 0.003), "latest": start + 4 * life}
    return {"aim": kind, "after": chance.uniform(0, 0.004 if kind == "draft" else 0.001), **soon}


def launch(launcher, watcher, case, log, where, **order):
    """One launch, and all that is checked after it."""
    order = {"training": case.training, "words": case.words, "pause": case.pause, **order}
    newest, then, events = watcher.newest, real.before(watcher.run), watcher.events()
    ended = launcher.launch(run=watcher.run, log=log, **order)
    text = said(log)
    try:
        assert ended["code"] is not None, "the launch hung"
        watcher.look()
        watcher.resumed(text, newest)
    except AssertionError as error:
        error.add_note(
            f"Launch {watcher.launches}: {json.dumps(order)}\nended with {ended}, and said:\n{text}"
        )
        raise
    if ended["killed"]:
        where[landed(watcher.run, then[0], events, watcher.events())] += 1
    return ended


def finish(launcher, watcher, case, log, where, other):
    """Lets the training end by itself."""
    ended = launch(launcher, watcher, case, log, where)
    assert ended["code"] == 0, said(log)
    assert_end(watcher, other)


def report(name, seed, where):
    total = sum(where.values())
    print(f"\n{name}, seed {seed}: {total} kills")
    for place, number in where.most_common():
        print(f"{number:>6}  {place}")
    return total


# -- the tests --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_killed_at_random(name, seed, launcher, straight, tmp_path, tried, thorough):
    """A training killed by SIGKILL at random moments, again and again, ends as a straight one, bit by bit."""
    case, chance = CASES[name], random.Random(f"{name} {seed}")
    watcher, where, log = Watcher(str(tmp_path / "run")), collections.Counter(), str(tmp_path / "log")
    try:
        for _ in range(KILLS):
            done = watcher.place[1] / case.length
            order = moment(chance, case, done)
            ended = launch(launcher, watcher, case, log, where, group=chance.random() < 0.5, **order)
            if not ended["killed"]:
                assert ended["code"] == 0, said(log)
                break
        finish(launcher, watcher, case, log, where, straight(name))
    except AssertionError as error:
        error.add_note(f"{name}, seed {seed}; the run is {watcher.run}")
        raise
    tried("trainings", report(name, seed, where))
    if thorough:
        assert sum(number for place, number in where.items() if place.startswith("in a save")) >= 1


# Ways in which a launch may end that gets signals at any moment: before its loop has handlers, and after.
ENDS = {
    0,
    75,
    128 + signal.SIGINT,
    *(-getattr(signal, f"SIG{name}") for name in ("KILL", "TERM", "INT", "USR1", "USR2")),
}


@pytest.mark.parametrize("name", ["digits", "workers", "own"])
def test_signals_at_random(name, seed, launcher, straight, tmp_path, tried):
    """SIGTERM, SIGUSR1, SIGUSR2, Ctrl-C and SIGKILL at random moments, repeated and mixed, lose nothing."""
    case, chance = CASES[name], random.Random(f"signals {name} {seed}")
    watcher, where, log = Watcher(str(tmp_path / "run")), collections.Counter(), str(tmp_path / "log")
    codes = collections.Counter()
    try:
        for _ in range(KILLS // 2):
            early = chance.random() < 0.3  # before the loop has its handlers, perhaps
            span = case.start if early else 2 * case.life
            signals = [
                [chance.uniform(0, span), chance.choice(["SIGTERM", "SIGUSR1", "SIGUSR2", "SIGINT"])]
                for _ in range(chance.randint(1, 4))
            ]
            if chance.random() < 0.4:  # an impatient one: again at once
                signals.append([signals[0][0] + chance.uniform(0, 0.01), signals[0][1]])
            order = {"signals": signals}
            if not early:
                order["aim"] = "entered"
            if chance.random() < 0.3:
                order["after"] = chance.uniform(0, span)
            ended = launch(launcher, watcher, case, log, where, **order)
            codes[ended["code"]] += 1
            check_ended(ended["code"], said(log), watcher)
        finish(launcher, watcher, case, log, where, straight(name))
    except AssertionError as error:
        error.add_note(f"{name}, seed {seed}; the run is {watcher.run}")
        raise
    print(f"\n{name}, seed {seed}: {dict(codes)}")
    tried("trainings", sum(number for code, number in codes.items() if code))


def check_ended(code, text, watcher):
    """An exit code is one of a few; 75 means that what the last line names is the newest, and nothing is left."""
    assert code in ENDS, text
    if code == 75:
        assert re.findall(r"holdfast: SIG\w+: (\S+) is saved; ending with exit code 75.", text)[-1] == (
            watcher.newest or "no checkpoint"
        )
        assert real.look(watcher.run) == set(), "left behind"
        assert holder_of(watcher.run).released


def test_storm(seed, launcher, straight, tmp_path, tried):
    """A training killed every tenth of a second, which hardly lets it begin, is exact when it is let alone."""
    case, chance = CASES["digits"], random.Random(f"storm {seed}")
    watcher, where, log = Watcher(str(tmp_path / "run")), collections.Counter(), str(tmp_path / "log")
    for number in range(40):
        # Every fifth lives long enough to get something done, so that there is something to lose.
        after = chance.uniform(0.01, 0.1) if number % 5 else 2 * case.start
        launch(launcher, watcher, case, log, where, after=after, pause=0.02)
    finish(launcher, watcher, case, log, where, straight("digits"))
    tried("trainings", report("storm", seed, where))


def test_command_line(tmp_path, tried, thorough):
    """The example started by its true command line, killed at random moments, ends as a straight one, bit by bit."""
    chance, watcher = random.Random(5), Watcher(str(tmp_path / "run"))
    words = [sys.executable, os.path.join(real.EXAMPLES, "digits_torch.py"), "--run", watcher.run]
    words += ["--epochs", "20", "--every-steps", "3"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # as those that it is compared with
    case, log, where = CASES["digits"], str(tmp_path / "log"), collections.Counter()
    for number in range(8 if thorough else 2):
        order = {"latest": 60, **moment(chance, case, 0)} if number % 2 else {"after": chance.uniform(1, 5)}
        newest, then, events = watcher.newest, real.before(watcher.run), watcher.events()
        with open(log, "wb") as file:
            process = subprocess.Popen(words, stdout=file, stderr=file, env=environment)
        ended = real.attend(process.pid, process.poll, {"run": watcher.run, **order}, then)
        assert ended["killed"] or ended["code"] == 0, said(log)
        watcher.look()
        watcher.resumed(said(log), newest)
        if ended["killed"]:
            where[landed(watcher.run, then[0], events, watcher.events())] += 1
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    watcher.look()
    other = str(tmp_path / "straight")
    again = [other if word == watcher.run else word for word in words]
    subprocess.run(again, capture_output=True, check=True, env=environment)
    assert_end(watcher, other)
    tried("trainings", report("command line", 5, where))
