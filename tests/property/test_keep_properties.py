"""Retention, for any run and any policy: P3, the last good one is never deleted."""

import dataclasses
import math

from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.policy.keep import Keep, Record, best_of, decide, is_new_best, rank

counts = st.none() | st.integers(1, 4)
values = st.sampled_from([0.1, 0.5, 0.5, 0.9, 1, True, math.nan, math.inf, -math.inf])


@st.composite
def policies(draw):
    ranked = {"metric": "acc", "mode": draw(st.sampled_from(["min", "max"])), "best": draw(counts)}
    return Keep(
        last=draw(counts),
        every_epochs=draw(counts),
        budget=draw(st.none() | st.integers(1, 80)),
        **draw(st.sampled_from([{}, ranked])),
    )


@st.composite
def runs(draw):
    sequences = draw(st.lists(st.integers(1, 30), max_size=12, unique=True))
    return [
        Record(
            name=f"{sequence:06d}",
            sequence=sequence,
            epoch=draw(st.integers(0, 6)),
            step=draw(st.integers(0, 50)),
            batch=draw(st.integers(0, 1)),
            metrics=draw(st.dictionaries(st.sampled_from(["acc", "loss"]), values)),
            nan=draw(st.booleans()),
            pinned=draw(st.booleans()),
            abandoned=draw(st.booleans()),
            size=draw(st.integers(0, 20)),
            whole=draw(st.sampled_from([True, True, True, False])),
        )
        for sequence in sequences
    ]


def kept(keep, records, **options):
    return [verdict.record for verdict in decide(keep, records, **options) if verdict.kept]


@given(policies(), runs(), st.booleans())
def test_protected_ones_stay(keep, records, prune):
    """The newest clean, the best k and every pinned one stay, under any policy, budget and pruning."""
    stays = kept(keep, records, prune=prune)
    clean = [record for record in records if record.clean]
    if clean:
        assert max(clean, key=lambda record: record.sequence) in stays
    assert all(record in stays for record in records if record.pinned)
    assert all(record in stays for record in rank(keep, records)[: keep.best])
    if not prune:
        assert all(record in stays for record in records if record.abandoned)
    assert all(record in stays for record in records if not record.whole)


@given(policies(), runs(), st.booleans())
def test_deciding_again_deletes_nothing_more(keep, records, prune):
    """After what goes is gone, the same policy keeps all that is left, and the best is the same."""
    stays = kept(keep, records, prune=prune)
    assert kept(keep, stays, prune=prune) == stays
    assert best_of(keep, stays) == best_of(keep, records)


@given(policies(), runs(), st.data())
def test_interrupted_deletion_loses_nothing_more(keep, records, data):
    """When a crash came after some of the deletions, which go in order, what stays is the same afterwards."""
    stays = kept(keep, records)
    ordered = sorted(records, key=lambda record: record.sequence)
    going = [record for record in ordered if record not in stays]
    left = going[data.draw(st.integers(0, len(going))) :]
    assert kept(keep, [*stays, *left]) == stays


@given(policies(), runs(), st.randoms(use_true_random=False))
def test_order_of_records_does_not_matter(keep, records, random):
    """Verdicts depend on the records only, come by sequence, cover each once and always have a reason."""
    shuffled = list(records)
    random.shuffle(shuffled)
    verdicts = decide(keep, records)
    assert decide(keep, shuffled) == verdicts
    assert [verdict.record for verdict in verdicts] == sorted(records, key=lambda record: record.sequence)
    assert all(verdict.reasons for verdict in verdicts)


@given(policies(), runs(), runs())
def test_further_checkpoints_never_cost_a_pinned_one(keep, records, more):
    """Whatever is saved later, a pinned checkpoint stays."""
    later = [one._replace(name=f"{one.sequence + 100:06d}", sequence=one.sequence + 100) for one in more]
    assert {record.name for record in kept(keep, records) if record.pinned} <= {
        record.name for record in kept(keep, [*records, *later])
    }


@given(policies(), runs())
def test_budget_is_met_or_only_the_protected_are_left(keep, records):
    """What stays fits the budget, unless nothing but protected, abandoned and damaged ones is left."""
    stays = kept(keep, records)
    if keep.budget_bytes is None or sum(record.size for record in stays) <= keep.budget_bytes:
        return
    clean = [record for record in stays if record.clean]
    protected = [*clean[-1:], *rank(keep, stays)[: keep.best]]
    if not clean:
        marked = [record for record in stays if record.nan and record.whole and not record.abandoned]
        protected += marked[-1:]
    for record in stays:
        assert record in protected or record.pinned or record.abandoned or not record.whole


@given(policies(), runs())
def test_marked_ones_cost_the_clean_ones_nothing(keep, records):
    """Without a budget the clean ones that stay are the same as if no marked one had been saved."""
    keep = dataclasses.replace(keep, budget=None)
    clean = [record for record in records if record.clean]
    assert [record for record in kept(keep, records) if record.clean] == kept(keep, clean)
    marked = [record for record in records if record.nan and record.whole and not record.abandoned]
    assert len([record for record in kept(keep, marked) if not record.pinned]) <= 1


@given(policies(), runs(), values, st.booleans())
@settings(max_examples=200)
def test_new_best_is_what_ranks(keep, records, value, nan):
    """A value is a new best exactly when its checkpoint, once saved, is among the best k."""
    new = Record("new", 99, 1, 1, 0, {"acc": value}, nan=nan, pinned=False, abandoned=False, size=1)
    among = keep.best is not None and new in rank(keep, [*records, new])[: keep.best]
    assert is_new_best(keep, records, {"acc": value}, nan=nan) == among
