"""When an automatic save is due."""

import math

import pytest

from holdfast.errors import UsageError
from holdfast.policy.every import DEFAULT, Every, Since


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


def test_keywords_only():
    """A bare number is refused, since it does not tell what it counts."""
    with pytest.raises(TypeError):
        Every(5)
