"""Names and references, for all of them."""

import datetime
import os

from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import FormatError, UsageError
from holdfast.format import names
from holdfast.format.names import CheckpointName, Reference, parse_checkpoint_name, parse_reference

times = st.datetimes(
    datetime.datetime(1970, 1, 1), datetime.datetime(9999, 12, 30), timezones=st.just(datetime.UTC)
).map(lambda time: time.replace(microsecond=0))
counts = st.integers(0, 10**17)
checkpoint_names = st.builds(CheckpointName, counts, counts, counts, times)


@given(checkpoint_names)
def test_checkpoint_names_round_trip(name):
    """Every name parses to what it was made from, and is a plain file name."""
    assert parse_checkpoint_name(str(name)) == name
    assert os.path.basename(str(name)) == str(name)


@given(st.lists(checkpoint_names, min_size=2, max_size=5))
def test_names_sort_by_sequence(found):
    """Below a million checkpoints, names sort as their sequence does."""
    few = [CheckpointName(n.sequence % 10**6, n.epoch, n.step, n.created) for n in found]
    assert [n.sequence for n in sorted(few, key=str)] == sorted(n.sequence for n in few)


@given(st.text(max_size=60))
def test_any_text_is_a_name_or_not(text):
    """Any text either is not a checkpoint's name, or prints again as itself up to leading zeros."""
    found = parse_checkpoint_name(text)
    assert found is None or parse_checkpoint_name(str(found)) == found


@given(st.text(max_size=30))
def test_file_names_stay_inside(text):
    """A file name that passes leads nowhere but into the folder."""
    try:
        names.check_file_name(text, "m")
    except FormatError:
        return
    assert os.path.normpath(os.path.join("/folder", text)) == f"/folder/{text}"
    assert text not in ("", ".", "..")
    assert "/" not in text
    assert "\0" not in text


@given(st.text(max_size=20))
def test_references_round_trip(text):
    """Every reference prints as what it was parsed from (numbers without their leading zeros)."""
    try:
        found = parse_reference(text)
    except UsageError:
        assert text.startswith("@") or "\0" in text
        return
    assert parse_reference(str(found)) == found
    assert text.startswith(found.place)


@given(
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=10),
    st.sampled_from(["step", "epoch", "seq", "back", "best", "latest"]),
    st.integers(1, 10**8),
)
def test_every_selector_is_understood(place, which, value):
    """Whatever the path, a selector after it is read as one."""
    made = Reference(place, which, 0 if which in ("best", "latest") else value)
    assert parse_reference(str(made)) == made


@given(st.from_regex(r"\A\d{6,8}_epoch-\d{4,6}_step-\d{8,10}_\d{8}T\d{6}Z\Z"))
def test_a_checkpoint_has_one_name(text):
    """What looks like a checkpoint's name is one exactly when it prints as itself: no other zeros, no other time."""
    found = parse_checkpoint_name(text)
    assert found is None or str(found) == text


@given(checkpoint_names)
def test_further_zeros_are_no_name(name):
    """A name with one more leading zero anywhere is not that of the same checkpoint."""
    text = str(name)
    for place in ("", "_epoch-", "_step-"):
        more = text.replace(place, f"{place}0", 1) if place else f"0{text}"
        assert parse_checkpoint_name(more) is None
    time = text[-16:]
    for other in (f"0{time[1:]}", f"{time[:9]}24{time[11:]}", f"{time[:9]}99{time[11:]}"):
        assert parse_checkpoint_name(text[:-16] + other) is None
