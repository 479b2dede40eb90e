"""How fast a training gets on and what its metrics did, read from its history."""

import datetime
import math

import pytest

from holdfast.cli.screen import sparkline
from holdfast.jobs.course import Pace, Place, Series, pace, rows_of, series

START = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


def event(kind, second, **more):
    return {"event": kind, "time": (START + datetime.timedelta(seconds=second)).isoformat(), **more}


def save(second, epoch, step):
    return event("save", second, name=f"{step + 1:06d}_epoch-{epoch:04d}_step-{step:08d}_20260101T000000Z")


def test_pace_counts_only_time_in_which_the_training_ran():
    """Steps and epochs a second are those between the saves of a launch, from its resume on; waiting in the queue is not counted."""
    found = pace(
        [
            event("launch", 0),
            event("start", 10),
            save(30, 1, 100),
            save(50, 2, 200),
            event("end", 51, why="time limit"),
            event("launch", 5000),
            event("resume", 5010, epoch=2, step=200, batch=0),
            save(5050, 3, 300),
            event("end", 5060, why="left"),
            event("launch", 9000),
            save(9900, 4, 400),
        ]
    )
    assert found == Pace(steps=pytest.approx(300 / 80), epochs=pytest.approx(3 / 80), interval=20.0)


def test_a_rewind_and_nonsense_do_not_count():
    """Saves before and after a rewind are not compared, and lines that are not whole are passed over."""
    found = pace(
        [
            save(0, 5, 500),
            event("rewind", 5),
            save(10, 1, 100),
            save(20, 2, 200),
            {"event": "save"},
            event("save", 30),
        ]
    )
    assert found == Pace(10.0, 0.1, 10.0)
    assert pace([save(0, 1, 1)]) is None
    assert pace([]) is None


@pytest.mark.parametrize(
    ("goal", "place", "speed", "seconds"),
    [
        (("steps", 100), Place(0, 60), Pace(2.0, None, None), 20.0),
        (("epochs", 10), Place(4, 450, 50), Pace(10.0, 0.1, None), 55.0),
        (("epochs", 10), Place(4, 0), Pace(None, 0.5, None), 12.0),
        (("epochs", 10), Place(0, 30, 30), Pace(3.0, None, None), None),
        (("steps", 100), Place(2, 120), Pace(2.0, None, None), 0.0),
    ],
)
def test_time_to_the_goal(goal, place, speed, seconds):
    """What is left of a goal takes so many seconds at that pace; None where it cannot be told."""
    assert speed.seconds_to(goal, place) == (None if seconds is None else pytest.approx(seconds))


def test_how_much_is_done():
    """A fraction counts batches of the epoch under way as far as the length of an epoch is known."""
    assert Place(0, 50).fraction(("steps", 200)) == 0.25
    assert Place(4, 450, 50).fraction(("epochs", 10)) == pytest.approx(0.45)
    assert Place(0, 5, 5).fraction(("epochs", 10)) == 0.0
    assert Place(30, 3000).fraction(("epochs", 10)) == 1.0


def metrics(epoch, **values):
    return event("metrics", epoch, epoch=epoch, step=10 * epoch, metrics=values)


def test_metrics_that_were_taken_back_are_left_out():
    """After a resume from an older place only the new values count."""
    rows = rows_of(
        [
            metrics(1, loss=3.0),
            metrics(2, loss=2.0),
            metrics(3, loss=9.0),
            metrics(2, loss=1.5),
            event("metrics", 9),
        ]
    )
    assert [(epoch, values["loss"]) for epoch, _, values in rows] == [(1, 3.0), (2, 1.5)]


def test_the_metric_that_decides_and_the_loss_are_shown():
    """Shown are the Keep metric and the loss with the shortest name, or the first metric that there is."""
    rows = rows_of(
        [
            metrics(1, train_loss=3.0, accuracy=0.1, loss=2.0),
            metrics(2, train_loss=2.0, accuracy={"$": "float", "v": "nan"}, loss=1.0),
        ]
    )
    assert [one.name for one in series(rows, "accuracy")] == ["accuracy", "loss"]
    assert [one.name for one in series(rows, "loss")] == ["loss"]
    assert [one.name for one in series(rows_of([metrics(1, speed=1)]), "accuracy")] == ["speed"]
    assert series(rows, "accuracy")[0].values == [0.1, None]
    assert series([], "accuracy") == []


def test_the_best_value():
    """The best of a series is the one by its mode, with where it was; without a mode there is none."""
    course = Series("a", [(1, 10, 0.5), (2, 20, 0.9), (3, 30, None), (4, 40, 0.7)])
    assert course.best("max") == (2, 20, 0.9)
    assert course.best("min") == (1, 10, 0.5)
    assert course.best(None) is None
    assert Series("a", [(1, 1, None)]).best("max") is None


@pytest.fixture
def fancy(monkeypatch):
    """An output that takes more than ASCII, or not."""

    def put(encoding):
        import io
        import sys

        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))

    return put


def test_sparklines(fancy):
    """A line of blocks spans from the lowest to the highest value, shares a block among many, and is ASCII where it must be."""
    fancy("utf-8")
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline([1.0, 1.0]) == "▅▅"
    assert sparkline([0.0, None, 1.0]) == "▁!█"
    assert sparkline([]) == sparkline([None]) == ""
    assert sparkline(list(range(1000)), 8) == "▁▂▃▄▅▆▇█"
    assert sparkline([-1.7e308, 1.7e308]) == "▁█"
    fancy("ascii")
    assert sparkline([0, 1]) == "_@"
    assert all(math.isfinite(ord(letter)) and ord(letter) < 128 for letter in sparkline([0, None, 3]))
