"""Names of checkpoints, parts and files, and references to checkpoints."""

import datetime

import pytest

from holdfast.errors import FormatError, UsageError
from holdfast.format import names
from holdfast.format.names import CheckpointName, Reference, parse_checkpoint_name, parse_reference

MORNING = datetime.datetime(2026, 11, 23, 8, 31, 7, tzinfo=datetime.UTC)


def test_checkpoint_name():
    """A name carries sequence, epoch, step and the time in UTC, whatever zone the time was in."""
    text = "000012_epoch-0005_step-00004690_20261123T083107Z"
    assert str(CheckpointName(12, 5, 4690, MORNING)) == text
    berlin = MORNING.astimezone(datetime.timezone(datetime.timedelta(hours=1)))
    assert str(CheckpointName(12, 5, 4690, berlin)) == text
    assert parse_checkpoint_name(text) == CheckpointName(12, 5, 4690, MORNING)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "latest",
        "000012_epoch-0005_step-00004690_20261123T083107Z\n",
        "000012_epoch-0005_step-00004690_20261323T083107Z",
        "12_epoch-0005_step-00004690_20261123T083107Z",
        "000012_epoch-0005_step-00004690_20261123T083107Z.trash",
        ".000012_epoch-0005_step-00004690_20261123T083107Z",
        "٠٠٠٠١٢_epoch-0005_step-00004690_20261123T083107Z",
        "0" * 5000 + "_epoch-0005_step-00004690_20261123T083107Z",
    ],
)
def test_other_names_are_none(text):
    """What is not exactly a checkpoint's name is not taken for one."""
    assert parse_checkpoint_name(text) is None


@pytest.mark.parametrize("name", ["model", "optimizer_d", "a", "m2"])
def test_part_names(name):
    """Lower-case words with digits and underscores name parts."""
    assert names.check_part_name(name) == name


@pytest.mark.parametrize(
    "name", ["", "Model", "2d", "_a", "my-model", "a.b", "a/b", "../a", "a\n", "ä", 3, None]
)
def test_bad_part_names(name):
    """Any other part name is refused, with what a name looks like."""
    with pytest.raises(UsageError) as caught:
        names.check_part_name(name)
    assert f"{name!r} cannot name a part" in str(caught.value)
    assert "like 'model' or 'optimizer_d'" in str(caught.value)


@pytest.mark.parametrize("name", ["state", "random", "grads", "probe"])
def test_reserved_part_names(name):
    """A name that Holdfast uses itself is refused, with another proposed."""
    with pytest.raises(UsageError, match=f"The part name '{name}' is used by Holdfast.*like 'my_{name}'"):
        names.check_part_name(name)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "model-00001-of-00002.safetensors", "README.md", "probe.png"]
)
def test_file_names(name):
    """Plain file names are taken."""
    assert names.check_file_name(name, "m") == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../a",
        "a/b",
        "/etc/passwd",
        "a\\b",
        "C:a",
        ".hidden",
        "a..b",
        "a\0b",
        "a\n",
        "-rf",
        "~a",
        "ä",
    ],
)
def test_file_names_that_could_point_outside(name):
    """Any name that could lead out of the folder is refused before anything is opened."""
    with pytest.raises(FormatError) as caught:
        names.check_file_name(name, "runs/a/checkpoint.json")
    assert str(caught.value) == (
        f"runs/a/checkpoint.json names the file {name!r}; files of a checkpoint are plain names inside its folder. "
        f"Nothing was read from there."
    )


REFERENCES = {
    "runs/a": Reference("runs/a"),
    "runs/a@best": Reference("runs/a", "best"),
    "runs/a@latest": Reference("runs/a", "latest"),
    "runs/a@step=4690": Reference("runs/a", "step", 4690),
    "runs/a@epoch=3": Reference("runs/a", "epoch", 3),
    "runs/a@seq=12": Reference("runs/a", "seq", 12),
    "runs/a@-2": Reference("runs/a", "back", 2),
    "me@host/a@best": Reference("me@host/a", "best"),
    # An @ that no selector follows is part of the path.
    "runs/a@bst": Reference("runs/a@bst"),
    "runs/a@-0": Reference("runs/a@-0"),
    "runs/a@step=": Reference("runs/a@step="),
    "runs/a@step=-1": Reference("runs/a@step=-1"),
    "s3://user@bucket/a": Reference("s3://user@bucket/a"),
}


@pytest.mark.parametrize("text", REFERENCES)
def test_references(text):
    """A reference is a path and a selector, and prints as it was written."""
    assert parse_reference(text) == REFERENCES[text]
    assert str(parse_reference(text)) == text


def test_reference_without_a_run():
    """A selector alone names no run, and the message says how to write it."""
    with pytest.raises(UsageError, match="The reference '@best' names no run; write RUN@best"):
        parse_reference("@best")
