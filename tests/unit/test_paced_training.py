"""Trainings that save as often as the cost allows: what is measured decides when the next save comes."""

import itertools
import threading
import time

import pytest

import holdfast
from holdfast import Every, saving, snapshot, training
from holdfast.errors import UsageError
from holdfast.policy import every as policy
from holdfast.store import book


class Clock:
    """Seconds that pass when the test says so; the background's are those of the loop."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    found = Clock()
    monkeypatch.setattr(training, "time", found)
    monkeypatch.setattr(saving, "time", found)
    return found


@pytest.fixture
def disk(monkeypatch):
    """A disk on which a checkpoint becomes durable when the test says so."""
    gate, publish = threading.Event(), saving.publish

    def wait_and_publish(*args):
        if not gate.wait(60):
            raise TimeoutError("the test never let it through")
        gate.clear()
        return publish(*args)

    monkeypatch.setattr(saving, "publish", wait_and_publish)
    return gate


def hold(monkeypatch, clock, seconds):
    """Makes each save hold the training for so long: the present item of a list."""
    capture = snapshot.capture_parts

    def slow(*args):
        clock.now += seconds[0]
        return capture(*args)

    monkeypatch.setattr(snapshot, "capture_parts", slow)


def saves(path):
    return [event for event in book.read_events(path) if event["event"] == "save"]


def steps_of(path):
    return [int(event["name"].split("_step-")[1][:8]) for event in saves(path)]


def train(run, clock, disk, steps, *, step=1.0, beside=1.0, write=4):
    """Steps of so many seconds, other ones beside a write, which takes so many steps."""
    busy = 0
    for number in run.steps(steps):
        saver = run._training.saver
        writing = saver is not None and saver.busy
        clock.now += beside if writing else step
        if writing:
            busy += 1
            if busy == write or number == steps - 1:
                disk.set()
                while saver.busy:
                    time.sleep(0.001)
                busy = 0
        if number == steps - 1:
            disk.set()  # for the last save, which is waited for


def test_the_interval_follows_what_saves_cost(tmp_path, monkeypatch, clock, disk):
    """A save comes when hold and slow-down of the last ones are the share that was allowed, and later if they grow."""
    held = [0.2]
    hold(monkeypatch, clock, held)
    path = str(tmp_path / "run")
    with holdfast.Run(path, every=Every(overhead=0.01)) as run:
        train(run, clock, disk, 400, beside=1.1, write=4)
    first, second, third = saves(path)[:3]
    assert first["reason"] == "to measure what a save costs"
    assert "cost_seconds" not in first
    # Four steps were slower by 0.1 s each. So 60 s pass: four steps of 1.1 s, and 56 of 1 s.
    assert (second["slowdown_seconds"], second["cost_seconds"]) == (pytest.approx(0.4), pytest.approx(0.6))
    assert (second["interval_seconds"], second["term"]) == (pytest.approx(60.0), "overhead")
    assert (second["overhead"], second["mtbf"]) == (0.01, None)
    assert second["reason"] == third["reason"] == "every 60 s (overhead 0.01)"
    assert steps_of(path) == [30, 90, 150, 210, 270, 330, 390, 400]

    held[0] = 1.0
    with holdfast.Run(path, every=Every(overhead=0.01)) as run:
        train(run, clock, disk, 1200, beside=1.1, write=4)
    anew = saves(path)[8:]
    assert anew[0]["reason"] == "to measure what a save costs"  # a new launch measures anew
    assert "cost_seconds" not in anew[0]
    assert anew[1]["interval_seconds"] == pytest.approx(140.0)
    assert [step - 400 for step in steps_of(path)[8:]] == [30, 170, 310, 450, 590, 730, 800]


def test_a_slow_disk_is_waited_for(tmp_path, monkeypatch, clock, disk):
    """Where saves cost next to nothing but take long to write, the write decides, and none is postponed."""
    hold(monkeypatch, clock, [0.01])
    path = str(tmp_path / "run")
    with holdfast.Run(path, every=Every(overhead=0.01, mtbf="24h")) as run:
        train(run, clock, disk, 200, write=25)
    assert [event["term"] for event in saves(path)[1:-1]] == ["write"] * (len(saves(path)) - 2)
    assert saves(path)[1]["reason"] == "every 25 s (a write takes as long)"
    taken = steps_of(path)[:-1]
    # With its hold a save takes 25.01 s until it is durable, so the boundary after 26 steps is the first one.
    assert [after - before for before, after in itertools.pairwise(taken)] == [26] * (len(taken) - 1)


def test_other_counts_come_first(tmp_path, monkeypatch, clock, disk):
    """Steps that are due sooner are saved as ever, and what they cost is measured all the same."""
    hold(monkeypatch, clock, [0.5])
    path = str(tmp_path / "run")
    with holdfast.Run(path, every=Every(steps=20, overhead=0.01)) as run:
        train(run, clock, disk, 90, write=2)
    assert [event["reason"] for event in saves(path)] == ["every 20 steps"] * 4 + ["goal reached"]
    assert saves(path)[1]["cost_seconds"] == pytest.approx(0.5)
    assert (saves(path)[1]["interval_seconds"], saves(path)[1]["term"]) == (pytest.approx(50.0), "overhead")


def test_the_first_epoch_is_measured(tmp_path, clock):
    """A short first epoch is saved at its end, so that there is something to measure, and later ones only when due."""
    path = str(tmp_path / "run")
    with holdfast.Run(path, every=Every(overhead=0.01, mtbf="7d")) as run:
        for _ in run.epochs(6):
            for _ in run.batches([1, 2, 3]):
                clock.now += 0.1
    assert [(event["name"].split("_")[1], event["reason"]) for event in saves(path)] == [
        ("epoch-0001", "to measure what a save costs"),
        ("epoch-0006", "goal reached"),
    ]


def test_time_between_two_loops_is_no_step(tmp_path, clock):
    """What passes between a loop that was left and the same loop entered again is not taken for a step."""
    with holdfast.Run(str(tmp_path / "run"), every=Every(overhead=0.01)) as run:
        for step in run.steps(20):
            clock.now += 1.0
            if step == 8:
                run.save()
            if step == 9:
                break
        clock.now += 500.0
        for _ in run.steps(20):
            clock.now += 1.0
        assert run.latest.progress.step == 20
        assert max(run._training.pace._quiet) == 1.0


def test_own_loops_are_measured(tmp_path):
    """Saves of a loop of one's own tell the history what the ones before cost, without any interval."""
    path = str(tmp_path / "run")
    run = holdfast.Run(path)
    run.resume()
    for epoch in range(3):
        run.state["epoch"] = epoch
        run.save(epoch=epoch + 1)
    run.close()
    first, second, third = saves(path)
    assert "cost_seconds" not in first
    assert min(second["cost_seconds"], third["cost_seconds"], third["write_seconds"]) > 0
    assert {"interval_seconds", "term", "overhead", "slowdown_seconds"} & set(third) == set()


def test_by_the_real_clock(tmp_path, monkeypatch):
    """A save that holds the training half a tenth of a second is given at least a tenth between two, at half the time."""
    monkeypatch.setattr(policy, "LEAST", 0.0)
    capture = snapshot.capture_parts

    def slow(*args):
        time.sleep(0.05)
        return capture(*args)

    monkeypatch.setattr(snapshot, "capture_parts", slow)
    path = str(tmp_path / "run")
    with holdfast.Run(path, every=Every(overhead=0.5)) as run:
        for step in run.steps(400):
            if step == 5:
                run.save()
            time.sleep(0.002)
    events = [event for event in saves(path) if "cost_seconds" in event]
    assert len(events) >= 2
    assert all(event["cost_seconds"] >= 0.05 for event in events)
    assert all(event["interval_seconds"] >= 0.1 for event in events)


@pytest.mark.parametrize("every", [Every(overhead=0.01), Every(mtbf="1h"), Every(epochs=1, mtbf="1h")])
def test_steps_take_an_overhead(tmp_path, every):
    """A loop without epochs may save by cost alone; by epochs alone it may not, and is told what would do."""
    with holdfast.Run(str(tmp_path / "run"), every=every) as run:
        assert list(run.steps(3)) == [0, 1, 2]
    with (
        holdfast.Run(str(tmp_path / "other"), every=Every(epochs=1)) as run,
        pytest.raises(UsageError, match=r"never comes due .* Every\(overhead=0\.01\)"),
    ):
        list(run.steps(3))
