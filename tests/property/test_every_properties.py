"""The interval between saves, for any measured cost and any `Every` that asks for one."""

import math

from hypothesis import given
from hypothesis import strategies as st

from holdfast.policy.every import LEAST, Every

seconds = st.floats(0, 1e6)
shares = st.floats(1e-6, 0.999)
times = st.floats(1e-3, 1e9)
paced = st.builds(Every, overhead=shares, mtbf=st.none() | times) | st.builds(Every, mtbf=times)


@given(paced, seconds, seconds)
def test_saves_never_queue(every, cost, write):
    """The interval is never shorter than a write, nor than a second, and its term is the one that has that value."""
    interval = every.interval(cost, write)
    assert interval.seconds >= max(write, LEAST)
    assert interval.terms[interval.term] == interval.seconds


@given(paced, seconds, seconds, seconds)
def test_dearer_saves_come_less_often(every, cost, more, write):
    """A save that costs the training more never comes sooner, and neither does one that takes longer to write."""
    assert every.interval(cost + more, write).seconds >= every.interval(cost, write).seconds
    assert every.interval(cost, write + more).seconds >= every.interval(cost, write).seconds


@given(shares, times, seconds, seconds)
def test_both_terms_are_the_nearer_of_the_two(overhead, mtbf, cost, write):
    """With both, the interval is the shorter one of overhead's alone and mtbf's alone."""
    both = Every(overhead=overhead, mtbf=mtbf).interval(cost, write).seconds
    alone = [Every(overhead=overhead), Every(mtbf=mtbf)]
    assert both == min(every.interval(cost, write).seconds for every in alone)


@given(shares, seconds, seconds)
def test_overhead_is_kept(overhead, cost, write):
    """Saves cost no larger share of the training than was allowed."""
    interval = Every(overhead=overhead).interval(cost, write).seconds
    assert cost / interval <= overhead * (1 + 1e-9)


@given(times, st.floats(1e-3, 1e6), st.floats(0.01, 100))
def test_mtbf_is_the_optimum_of_its_model(mtbf, cost, factor):
    """No other interval loses less: cost / interval to saving, and interval / 2 at each failure."""

    def lost(interval):
        return cost / interval + interval / (2 * mtbf)

    best = Every(mtbf=mtbf).interval(cost, 0.0).terms["mtbf"]
    assert lost(best) <= lost(best * factor) * (1 + 1e-9)
    assert math.isclose(lost(best), math.sqrt(2 * cost / mtbf))
