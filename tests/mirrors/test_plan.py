"""What goes where is decided without a clock or a disk."""

import dataclasses

import pytest

from holdfast import Keep
from holdfast.mirrors import plan
from holdfast.mirrors.plan import Standing
from holdfast.policy.keep import Record


def record(sequence, **more):
    return Record(
        **{
            "name": f"c{sequence}",
            "sequence": sequence,
            "epoch": sequence,
            "step": sequence,
            "batch": 0,
            "metrics": {},
            "nan": False,
            "pinned": False,
            "abandoned": False,
            "size": 10,
            **more,
        }
    )


def names(*numbers):
    return [f"c{number}" for number in numbers]


def test_lacking_is_what_its_own_keep_wants():
    """A mirror lacks what its own Keep would keep of all that is known, newest first, and nothing else."""
    local = [record(number) for number in (3, 4, 5)]
    assert plan.lacking(Keep(last=2), local, []) == names(5, 4)
    assert plan.lacking(Keep(last=2), local, [record(5)]) == names(4)
    assert plan.lacking(Keep(last=10), local, [record(1), record(2)]) == names(5, 4, 3)
    assert plan.lacking(Keep(last=2), local, [record(6), record(7)]) == []


def test_the_best_is_sent_first():
    """A mirror that has the newest checkpoint has the best so far as well: a lost run is compared with it."""
    keep = Keep(last=2, best=1, metric="m", mode="max")
    local = [record(n, metrics={"m": value}) for n, value in ((1, 1.0), (2, 9.0), (3, 2.0), (4, 3.0))]
    assert plan.lacking(keep, local, []) == names(2, 4, 3)
    assert plan.lacking(keep, local, [local[1]]) == names(4, 3)


@pytest.mark.parametrize("mark", ["abandoned", "nan", "unread"])
def test_what_does_not_count_is_not_sent(mark):
    """Abandoned and damaged checkpoints are not copied; of NaN-marked ones only the newest is."""
    change = {"whole": False} if mark == "unread" else {mark: True}
    local = [record(3), record(4, **change), record(5, **change)]
    assert plan.lacking(Keep(last=3), local, []) == (names(5, 3) if mark == "nan" else names(3))


def test_leaving_keeps_best_pinned_and_newest():
    """What leaves a mirror is decided from what lies there: the newest, the best and the pinned stay."""
    keep = Keep(last=1, best=1, metric="m", mode="max")
    there = [
        record(n, metrics={"m": value}, pinned=n == 2)
        for n, value in ((1, 9.0), (2, 1.0), (3, 2.0), (4, 3.0))
    ]
    assert plan.leaving(keep, there) == names(3)
    assert plan.leaving(keep, there[:1]) == []


def test_two_are_held_back_for_a_mirror_that_lags():
    """A mirror that is not required holds back two, the one that is on its way and the newest; a required one all."""
    doomed = [record(number) for number in (1, 2, 3, 4)]
    lagging = Standing(newest=0, copying="c1")
    assert plan.held_back(doomed, [lagging]) == {"c1", "c4"}
    assert plan.held_back(doomed, [Standing()]) == {"c3", "c4"}
    assert plan.held_back(doomed, [dataclasses.replace(lagging, required=True)]) == {"c1", "c2", "c3", "c4"}


def test_nothing_is_held_back_for_one_that_is_up_to_date():
    """What a mirror has, or has a newer one of, may go; what it still wants may not."""
    doomed = [record(1), record(2)]
    assert plan.held_back(doomed, [Standing(newest=5)]) == set()
    assert plan.held_back(doomed, [Standing(newest=1, names=frozenset(names(1, 2)))]) == set()
    assert plan.held_back(doomed, [Standing(newest=5, lacking=frozenset(names(1)))]) == {"c1"}
    assert plan.held_back(doomed, []) == set()


def offered(highest, *mirrors, abandoned=(), rewound=None):
    there = {
        place: [(one, f"2026-01-{one.sequence:02}") for one in mirror] for place, mirror in enumerate(mirrors)
    }
    return [offer.record.name for offer in plan.offers(highest, abandoned, rewound, there)]


def test_only_newer_ones_are_offered():
    """A run takes from its mirrors what is newer than all that it has."""
    assert offered(5, [record(4), record(5), record(6)], [record(7)]) == names(7, 6)
    assert offered(0, [record(1), record(2)], [record(2)]) == names(2, 1)


def test_a_rewind_is_not_undone():
    """What a rewind marked, or came after without knowing of it, is not offered; what was made since is."""
    assert offered(3, [record(4), record(5)], abandoned=["c5"]) == names(4)
    assert offered(3, [record(4, abandoned=True)]) == []
    assert offered(3, [record(4), record(9)], rewound="2026-01-05") == names(9)


def test_nan_is_offered_last_and_to_an_empty_run_alone():
    """A run that has something of its own never goes on from a NaN-marked checkpoint of a mirror."""
    assert offered(0, [record(1), record(2, nan=True)]) == names(1, 2)
    assert offered(1, [record(2, nan=True)]) == []


def test_an_offer_names_every_mirror_that_has_it():
    """A checkpoint that several mirrors hold can be read from all of them."""
    there = {0: [(record(2), "t")], 1: [(record(1), "t")], 2: [(record(2), "t")]}
    assert [offer.places for offer in plan.offers(0, (), None, there)] == [(0, 2), (1,)]


def test_pauses_grow_and_end():
    """A mirror that fails is tried again after longer and longer pauses, up to ten minutes."""
    assert [plan.pause(failures) for failures in (0, 1, 2, 3, 50)] == [0, 5, 10, 20, 600]


def test_a_limit_is_kept_on_average():
    """The delays of a throttle add up to bytes by limit; without one there is none."""
    throttle = plan.Throttle(100)
    assert [throttle.delay(50, 0.0), throttle.delay(50, 0.5), throttle.delay(0, 9.0), throttle.delay(100, 9.0)] == [
        0.5, 0.5, 0.0, 1.0,
    ]  # fmt: skip
    assert plan.Throttle(None).delay(1 << 40, 0.0) == 0


def test_marks_follow_the_run():
    """Pins are added to a mirror; abandoned marks there are those of the run for all that the run still has."""
    local = [record(1, pinned=True), record(2), record(3, abandoned=True)]
    there = [(record(number), "2026-01-02") for number in (1, 2, 3, 4)]
    assert plan.marks(local, {"c3"}, None, there) == ({"c1"}, {"c3"}, {"c1", "c2"})
    assert plan.marks(local, {"c3"}, "2026-01-03", there).abandoned == {"c3", "c4"}
    assert plan.marks(local, {"c3"}, "2026-01-01", there).abandoned == {"c3"}
    assert plan.marks([], {"c4"}, None, there) == (set(), {"c4"}, set())


def test_the_best_of_the_run_stays_in_every_mirror():
    """A mirror's own Keep ranks by the run's metric unless it names one of its own."""
    run, own = Keep(last=3, best=2, metric="m", mode="max"), Keep(last=9, metric="n", mode="min")
    assert plan.keep_of(None, run) == run
    assert plan.keep_of(Keep(last=9), run) == Keep(last=9, best=2, metric="m", mode="max")
    assert plan.keep_of(own, run) == own
    assert plan.keep_of(Keep(last=9), Keep()) == Keep(last=9)
