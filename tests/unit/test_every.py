"""When an automatic save is due."""

import math

import pytest

from holdfast.errors import UsageError
from holdfast.policy.every import DEFAULT, FIRST, LEAST, Every, Interval, Since


@pytest.mark.parametrize(
    ("every", "since", "at_epoch_end", "reason"),
    [
        (Every(epochs=1), Since(1, 300, 5.0), True, "every 1 epoch"),
        (Every(epochs=1), Since(0, 300, 5.0), True, None),
        (Every(epochs=1), Since(1, 300, 5.0), False, None),
        (Every(epochs=3), Since(2, 0, 0.0), True, None),
        (Every(epochs=3), Since(4, 0, 0.0), True, "every 3 epochs"),
        (Every(steps=500), Since(0, 499, 1e9), False, None),
        (Every(steps=500), Since(0, 500, 0.0), False, "every 500 steps"),
        (Every(steps=1_000_000_000), Since(0, 1_000_000_000, 0.0), False, "every 1000000000 steps"),
        (Every(minutes=10), Since(9, 9, 599.9), True, None),
        (Every(minutes=10), Since(0, 1, 600.0), False, "every 10 minutes"),
        (Every(minutes=1), Since(0, 1, 60.0), False, "every 1 minute"),
        (Every(minutes=0.5), Since(0, 1, 30.0), False, "every 0.5 minutes"),
        (Every(epochs=1, steps=5, minutes=1), Since(1, 5, 60.0), True, "every 1 epoch"),
        (Every(epochs=1, steps=5, minutes=1), Since(1, 5, 60.0), False, "every 5 steps"),
        (Every(epochs=2, steps=5, minutes=1), Since(1, 4, 60.0), True, "every 1 minute"),
    ],
)
def test_due(every, since, at_epoch_end, reason):
    """A save is due when a count is reached, epochs only where one ends, and the reason says which."""
    assert every.due(since, at_epoch_end) == reason


def test_default():
    """Unasked, a run saves at each epoch's end and at least every ten minutes."""
    assert Every(epochs=1, minutes=10) == DEFAULT


def test_nothing_asked():
    """An Every that asks for nothing is refused with an example."""
    with pytest.raises(UsageError, match=r"Every\(epochs=1, minutes=10\)"):
        Every()


@pytest.mark.parametrize("argument", ["epochs", "steps", "minutes"])
@pytest.mark.parametrize("value", [0, -1, True, "5", math.nan, math.inf])
def test_no_positive_number(argument, value):
    """What is not a positive number is refused, naming the argument and what was found."""
    with pytest.raises(UsageError) as caught:
        Every(**{argument: value})
    assert f"Every({argument}={value!r})" in str(caught.value)
    assert caught.value.argument == argument


@pytest.mark.parametrize("argument", ["epochs", "steps"])
def test_no_fractions(argument):
    """Epochs and steps are whole; only minutes may be fractions."""
    with pytest.raises(UsageError, match="whole number"):
        Every(**{argument: 1.5})


@pytest.mark.parametrize("value", [0, 1, -0.01, 1.5, True, "1%", math.nan, math.inf])
def test_no_share(value):
    """An overhead that is no share of the training's time is refused, with an example."""
    with pytest.raises(UsageError, match=r"between 0 and 1, such as overhead=0\.01") as caught:
        Every(overhead=value)
    assert f"Every(overhead={value!r})" in str(caught.value)
    assert (caught.value.argument, caught.value.found) == ("overhead", value)


@pytest.mark.parametrize(
    "value",
    [0, -1, True, math.nan, 10**400, "24", "h", "", "0h", "-1h", "1h30m", "1w", "1 hour", "1e3s", "٢h", [24]],
)
def test_no_time_between_failures(value):
    """An mtbf that is neither a positive number of seconds nor a number with a unit is refused, with examples."""
    with pytest.raises(UsageError, match='such as mtbf="24h" or mtbf="90m"') as caught:
        Every(mtbf=value)
    assert f"Every(mtbf={value!r})" in str(caught.value)
    assert (caught.value.argument, caught.value.found) == ("mtbf", value)


@pytest.mark.parametrize(
    ("mtbf", "seconds"),
    [("30s", 30), ("90m", 5400), ("24h", 86400), ("7d", 604800), (" 1.5 h ", 5400), (5400, 5400), (0.5, 0.5)],
)
def test_time_between_failures(mtbf, seconds):
    """A mean time between failures is a number of seconds, or has a unit: s, m (minutes), h or d."""
    cost = 200.0
    assert Every(mtbf=mtbf).interval(cost, 0.0).terms["mtbf"] == math.sqrt(2 * cost * seconds)


@pytest.mark.parametrize(
    ("every", "cost", "write", "seconds", "term"),
    [
        # 0.41 / 0.01; √(2 · 0.41 · 86400) = 266.17
        (Every(overhead=0.01), 0.41, 1.2, 41.0, "overhead"),
        (Every(overhead=0.01, mtbf="24h"), 0.41, 1.2, 41.0, "overhead"),
        (Every(mtbf="24h"), 0.41, 1.2, 266.17, "mtbf"),
        # 0.41 / 0.001 = 410 is more than that
        (Every(overhead=0.001, mtbf="24h"), 0.41, 1.2, 266.17, "mtbf"),
        # √(2 · 0.5 · 3600) = 60 beside 0.5 / 0.01 = 50 and a write of 55
        (Every(mtbf="1h"), 0.5, 55.0, 60.0, "mtbf"),
        (Every(overhead=0.01, mtbf="1h"), 0.5, 55.0, 55.0, "write"),
        (Every(overhead=0.5), 3.0, 90.0, 90.0, "write"),
        (Every(overhead=0.01), 0.002, 0.05, 1.0, "least"),
        (Every(overhead=0.01), 0.0, 0.0, 1.0, "least"),
        (Every(epochs=1, steps=5, minutes=1, overhead=0.1), 2.0, 0.1, 20.0, "overhead"),
    ],
)
def test_interval(every, cost, write, seconds, term):
    """The interval is the least that overhead and mtbf allow, but at least a write and a second; it says which decided."""
    found = every.interval(cost, write)
    assert (round(found.seconds, 2), found.term) == (seconds, term)
    assert found.terms[found.term] == found.seconds
    assert (found.terms["write"], found.terms["least"]) == (write, LEAST)


def test_no_interval():
    """Every without overhead and mtbf has no interval, and asking for it is refused."""
    assert not DEFAULT.paced
    assert Every(overhead=0.01).paced
    assert Every(mtbf="1h").paced
    with pytest.raises(UsageError, match="neither overhead nor mtbf"):
        DEFAULT.interval(1.0, 1.0)


PACED = Every(overhead=0.01, mtbf="24h")
KNOWN = Interval(41.0, "overhead", {})


@pytest.mark.parametrize(
    ("every", "since", "at_epoch_end", "interval", "reason"),
    [
        (PACED, Since(0, 9, 99.0, 40.9), False, KNOWN, None),
        (PACED, Since(1, 9, 99.0, 40.9), True, KNOWN, None),
        (PACED, Since(0, 9, 0.0, 41.0), False, KNOWN, "every 41 s (overhead 0.01)"),
        (PACED, Since(0, 9, 0.0, 400.0), False, Interval(266.2, "mtbf", {}), "every 266 s (mtbf 24h)"),
        (
            PACED,
            Since(0, 9, 0.0, 2.0),
            False,
            Interval(1.24, "write", {}),
            "every 1.2 s (a write takes as long)",
        ),
        (PACED, Since(0, 9, 0.0, 2.0), False, Interval(1.0, "least", {}), "every 1 s (the least)"),
        (PACED, Since(9, 9, 1e9, 1e9), True, None, None),
        (PACED, Since(0, 9, 99.0, 29.9), False, FIRST, None),
        (PACED, Since(0, 9, 0.0, 30.0), False, FIRST, "to measure what a save costs"),
        (PACED, Since(1, 9, 0.0, 0.1), True, FIRST, "to measure what a save costs"),
        (Every(steps=9, overhead=0.5), Since(0, 9, 0.0, 1.0), False, KNOWN, "every 9 steps"),
        (Every(steps=10, overhead=0.01), Since(0, 9, 0.0, 41.0), False, KNOWN, "every 41 s (overhead 0.01)"),
        (Every(epochs=2, mtbf=60), Since(2, 9, 0.0, 1.0), True, KNOWN, "every 2 epochs"),
    ],
)
def test_due_by_cost(every, since, at_epoch_end, interval, reason):
    """What a save costs decides like the other counts; before it is known, 30 s or the epoch's end are due."""
    assert every.due(since, at_epoch_end, interval) == reason


def test_repr():
    """An Every is shown as it was written, in the order of its arguments."""
    assert repr(Every(mtbf="24h", overhead=0.01)) == "Every(overhead=0.01, mtbf='24h')"
    assert repr(DEFAULT) == "Every(epochs=1, minutes=10)"


def test_keywords_only():
    """A bare number is refused, since it does not tell what it counts."""
    with pytest.raises(TypeError):
        Every(5)
