"""Which checkpoints stay, which go, and the reasons that people read."""

import math

import numpy as np
import pytest

from holdfast.errors import UsageError
from holdfast.policy.keep import Keep, Record, best_of, decide, is_new_best, rank


def record(sequence, **changes):
    values = {"epoch": sequence, "step": 100 * sequence, "batch": 0, "metrics": {}, "size": 10}
    marks = {"nan": False, "pinned": False, "abandoned": False}
    return Record(name=f"{sequence:06d}", sequence=sequence, **{**values, **marks, **changes})


def scored(*scores, **changes):
    return [record(n, metrics={"acc": score}, **changes) for n, score in enumerate(scores, start=1)]


def kept(keep, records, **options):
    return [verdict.record.sequence for verdict in decide(keep, records, **options) if verdict.kept]


def reasons(keep, records, **options):
    return {verdict.record.sequence: verdict.reasons for verdict in decide(keep, records, **options)}


BEST = Keep(last=1, best=1, metric="acc", mode="max")


# -- last ----------------------------------------------------------------------------------------


def test_nothing_to_decide():
    """An empty run has no verdicts and no best."""
    assert decide(Keep(), []) == []
    assert best_of(BEST, []) is None


def test_last():
    """The newest three stay by default; the reasons say which rule keeps and which lets go."""
    assert reasons(Keep(), [record(n) for n in (4, 2, 1, 3)]) == {
        1: ("beyond last 3",),
        2: ("last 3",),
        3: ("last 3",),
        4: ("newest", "last 3"),
    }


def test_verdicts_come_in_order():
    """Verdicts come in the order of the sequence, whatever the order of the records, step or epoch."""
    records = [record(3, epoch=1, step=1), record(1, epoch=9, step=9), record(2)]
    assert [verdict.record.sequence for verdict in decide(Keep(last=1), records)] == [1, 2, 3]
    assert kept(Keep(last=1), records) == [3]


def test_keep_all():
    """`last=None` keeps every clean one."""
    assert kept(Keep(last=None), [record(n) for n in range(1, 30)]) == list(range(1, 30))


# -- NaN -----------------------------------------------------------------------------------------


def test_marked_ones_never_count():
    """Checkpoints marked NaN take no place in `last`; only the newest of them stays."""
    records = [record(1), record(2), record(3, nan=True), record(4, nan=True), record(5, nan=True)]
    assert reasons(Keep(last=2), records) == {
        1: ("last 2",),
        2: ("newest clean", "last 2"),
        3: ("marked NaN, and not the newest such",),
        4: ("marked NaN, and not the newest such",),
        5: ("newest marked NaN",),
    }


def test_marked_one_is_never_best():
    """A checkpoint marked NaN is never the best, however good its metric."""
    records = [*scored(0.5, 0.6), record(3, nan=True, metrics={"acc": 0.99})]
    assert best_of(BEST, records).sequence == 2


def test_all_marked():
    """With nothing but NaN the newest stays, even over the budget: there is nothing else to go on from."""
    records = [record(n, nan=True) for n in (1, 2)]
    assert kept(Keep(budget=1), records) == [2]


# -- best ----------------------------------------------------------------------------------------


def test_best_stays():
    """The best stays behind the newest, with its metric, mode and value as the reason."""
    records = scored(0.5, 0.981, 0.7, 0.6)
    assert reasons(BEST, records)[2] == ("best acc (max) 0.981",)
    assert kept(BEST, records) == [2, 4]


def test_several_best():
    """The best k stay, each with its place."""
    keep = Keep(last=1, best=3, metric="acc", mode="min")
    found = reasons(keep, scored(0.4, 0.1, 0.3, 0.2, 0.9))
    assert found[2] == ("best acc (min) 0.1",)
    assert found[4] == ("2nd best acc (min) 0.2",)
    assert found[3] == ("3rd best acc (min) 0.3",)
    assert found[1] == ("beyond last 1",)


@pytest.mark.parametrize("mode", ["min", "max"])
def test_older_of_equals_wins(mode):
    """Of equal values the older one is the best, so that the best does not wander."""
    keep = Keep(best=1, metric="acc", mode=mode)
    records = scored(0.5, 0.5, 0.5)
    assert best_of(keep, records).sequence == 1
    assert best_of(keep, records[::-1]).sequence == 1
    assert not is_new_best(keep, records, {"acc": 0.5})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None, "0.9", [1.0]])
def test_values_that_are_not_ranked(value):
    """What is not a finite number is never ranked and never a new best."""
    for mode in ("min", "max"):
        keep = Keep(best=1, metric="acc", mode=mode)
        assert rank(keep, [record(1, metrics={"acc": value})]) == []
        assert not is_new_best(keep, [], {"acc": value})


@pytest.mark.parametrize("value", [True, 1, 10**400, 0.25, np.float32(0.25), np.int64(3)])
def test_values_that_are_ranked(value):
    """Booleans, whole numbers of any size and floats of any kind are ranked."""
    assert is_new_best(BEST, [], {"acc": value})
    records = [record(1, metrics={"acc": value}), record(2)]
    assert best_of(BEST, records).sequence == 1
    assert kept(BEST, records) == [1, 2]


def test_new_best():
    """A value is a new best when it is strictly better than the k-th, or there are fewer than k."""
    keep = Keep(best=2, metric="loss", mode="min")
    records = [record(1, metrics={"loss": 0.5})]
    assert is_new_best(keep, records, {"loss": 9.0})
    records.append(record(2, metrics={"loss": 0.3}))
    assert is_new_best(keep, records, {"loss": 0.4})
    assert not is_new_best(keep, records, {"loss": 0.5})
    assert not is_new_best(keep, records, {"loss": 0.1}, nan=True)
    assert not is_new_best(keep, records, {"other": 0.1})
    assert not is_new_best(Keep(), records, {"loss": 0.1})


@pytest.mark.parametrize("change", [{"abandoned": True}, {"whole": False}])
def test_abandoned_and_damaged_are_not_ranked(change):
    """A best that was abandoned by a rewind, or is damaged, is not the best."""
    records = [record(1, metrics={"acc": 0.99}, **change), record(2, metrics={"acc": 0.5})]
    assert best_of(BEST, records).sequence == 2


# -- every, pinned, abandoned, damaged -------------------------------------------------------------


def test_every_epochs():
    """Every k-th epoch's end stays; a save inside an epoch or before the first does not count."""
    records = [record(n, epoch=n // 2, batch=5 * (n % 2)) for n in range(14)]
    assert kept(Keep(last=1, every_epochs=3), records) == [6, 12, 13]
    assert reasons(Keep(last=1, every_epochs=3), records)[6] == ("every 3 epochs",)
    assert reasons(Keep(last=1, every_epochs=1), records)[2] == ("every epoch",)


def test_pinned():
    """A pinned one stays whatever else it is: old, marked, abandoned, even when pruning."""
    records = [
        record(1, pinned=True),
        record(2, pinned=True, nan=True),
        record(3, pinned=True, abandoned=True),
    ]
    records += [record(n, nan=n == 5) for n in (4, 5, 6)]
    assert kept(Keep(last=1), records, prune=True) == [1, 2, 3, 5, 6]
    assert reasons(Keep(last=1), records, prune=True)[3] == ("pinned",)


def test_abandoned():
    """Abandoned ones are left alone and count for nothing; only pruning lets them go."""
    records = [record(1), record(2), record(3, abandoned=True), record(4, abandoned=True, nan=True)]
    assert reasons(Keep(last=1), records) == {
        1: ("beyond last 1",),
        2: ("newest", "last 1"),
        3: ("abandoned by rewind",),
        4: ("abandoned by rewind",),
    }
    assert kept(Keep(last=1), records, prune=True) == [2]


def test_damaged():
    """A damaged one is neither counted nor deleted, not even when pruning or over the budget."""
    records = [record(1), record(2), record(3, whole=False), record(4, whole=False, abandoned=True)]
    keep = Keep(last=1, budget=1)
    assert reasons(keep, records, prune=True) == {
        1: ("beyond last 1",),
        2: ("newest clean", "last 1"),
        3: ("damaged: see `holdfast verify`",),
        4: ("damaged: see `holdfast verify`",),
    }


# -- budget --------------------------------------------------------------------------------------


def test_budget_takes_the_oldest_first():
    """Over the budget the oldest go until the rest fits, and the reason names the budget as written."""
    records = [record(n, size=100) for n in range(1, 6)]
    keep = Keep(last=None, budget="0.35 kB")
    assert kept(keep, records) == [3, 4, 5]
    assert reasons(keep, records)[1] == ("over the budget of 0.35 kB",)
    assert kept(Keep(last=None, budget=300), records) == [3, 4, 5]
    assert kept(Keep(last=None, budget=299), records) == [4, 5]
    assert reasons(Keep(last=None, budget=299_000), [*records, record(9, size=299_000)])[1] == (
        "over the budget of 299 kB",
    )


def test_budget_never_takes_the_protected():
    """The newest clean, the best and the pinned ones stay even where they alone exceed the budget."""
    records = [*scored(0.5, 0.9, 0.1, 0.2, 0.3), record(6, nan=True)]
    records[2] = record(3, pinned=True)
    keep = Keep(last=4, best=1, metric="acc", mode="max", every_epochs=1, budget=1)
    assert kept(keep, records) == [2, 3, 5]


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "remedy"),
    [
        ({"best": 2}, "Keep(best=2, metric='val_accuracy', mode='max')"),
        ({"best": 1, "metric": "loss"}, "Keep(best=1, metric='loss', mode='max')"),
        ({"best": 1, "mode": "min"}, "Keep(best=1, metric='val_accuracy', mode='min')"),
        ({"metric": "loss"}, "Keep(best=1, metric='loss', mode='max')"),
        ({"mode": "min"}, "mode='min'"),
    ],
)
def test_best_without_metric_and_mode(given, remedy):
    """A best without metric and mode, or one without the other, is refused with the line to write."""
    with pytest.raises(UsageError) as caught:
        Keep(**given)
    assert remedy in str(caught.value)


def test_metric_and_mode_mean_one_best():
    """A metric with its mode means that the best one is kept."""
    assert Keep(metric="acc", mode="max") == Keep(best=1, metric="acc", mode="max")


@pytest.mark.parametrize(
    "given",
    [
        {"last": 0},
        {"last": True},
        {"last": 2.0},
        {"best": 0, "metric": "a", "mode": "min"},
        {"every_epochs": -1},
        {"mode": "maximum", "metric": "a"},
        {"metric": "", "mode": "min"},
        {"metric": 3, "mode": "min"},
    ],
)
def test_values_that_make_no_sense(given):
    """A value that makes no sense is refused, naming the argument, what was found and what is expected."""
    with pytest.raises(UsageError, match="expected") as caught:
        Keep(**given)
    assert repr(given[caught.value.argument]) in str(caught.value)


@pytest.mark.parametrize(
    ("budget", "size"),
    [
        (None, None),
        (5, 5),
        (2e11, 200_000_000_000),
        ("200 GB", 200_000_000_000),
        ("1.5TiB", 3 << 39),
        (" 200gb ", 200_000_000_000),
        ("1 KiB", 1024),
        ("7 B", 7),
        ("3 PB", 3 * 10**15),
    ],
)
def test_budgets(budget, size):
    """A budget is bytes, or a number with a decimal or binary unit."""
    assert Keep(budget=budget).budget_bytes == size


@pytest.mark.parametrize(
    "budget", [0, -1, True, math.nan, math.inf, "", "200", "200 G", "GB", "1 iB", "-3 GB", "0 GB", [1]]
)
def test_budgets_that_are_refused(budget):
    """Anything else is refused with examples of both kinds."""
    with pytest.raises(UsageError, match=r"'200 GB' or '1.5 TiB'"):
        Keep(budget=budget)
