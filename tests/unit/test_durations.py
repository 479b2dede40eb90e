"""Durations are told in the unit in which they matter."""

import pytest

from holdfast.durations import about, exact


@pytest.mark.parametrize(
    ("seconds", "one", "two"),
    [
        (-1, "0 s", "0 s"),
        (0.00001, "0 s", "0 s"),
        (0.014, "0.014 s", "0.014 s"),
        (0.42, "0.42 s", "0.42 s"),
        (9.96, "10 s", "10 s"),
        (58.2, "58 s", "58 s"),
        (119.4, "119 s", "119 s"),
        (119.6, "120 s", "2 min 0 s"),
        (598.4, "10 min", "9 min 58 s"),
        (7199.6, "2.0 h", "2 h 0 min"),
        (86340, "24.0 h", "23 h 59 min"),
        (180000, "2.1 d", "50 h 0 min"),
    ],
)
def test_durations_for_people(seconds, one, two):
    """One unit where the order of magnitude counts, two where a time of day follows from it."""
    assert (about(seconds), exact(seconds)) == (one, two)
