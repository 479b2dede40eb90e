"""What others leave in a bucket, or write there at the same time: markers of folders, odd names, another run."""

import traceback

import pytest
from bucket_runs import held
from mirrored_runs import steps, train

from holdfast import StorageError, UsageError
from holdfast.objects.access import Objects
from holdfast.pushing import Push
from holdfast.store import book, catalog


@pytest.fixture
def run(tmp_path):
    return str(tmp_path / "run")


@pytest.fixture
def url(bucket):
    return f"s3://{bucket}/runs/first"


def test_a_marker_of_a_folder_is_nothing(run, url, s3, bucket):
    """The empty object that consoles make for a folder, at the prefix or below it, is no content of a mirror."""
    s3.put_object(Bucket=bucket, Key="runs/first/", Body=b"")
    assert Objects.at(url).names() == {}
    train(run, 3, [url])
    for name in ("pins/", "abandoned/", f"{book.read_run(run).id}/"):
        s3.put_object(Bucket=bucket, Key=f"runs/first/{name}", Body=b"")
    train(run, 4, [url])
    assert [entry.sequence for entry in catalog.scan(url)] == [3, 4]


@pytest.mark.parametrize("odd", ["a//b", "../b", "a\tb"])
def test_a_name_that_cannot_be_listed(odd, run, url, s3, bucket, said):
    """An object whose name the library cannot list is named, with what helps; the training goes on beside it."""
    train(run, 1, [url])
    s3.put_object(Bucket=bucket, Key=f"runs/first/{odd}", Body=b"x")
    assert train(run, 2, [url]) == 1
    assert steps(run) == [1, 2]
    shown = f"runs/first/{odd}".replace("\t", "\\t")
    assert f"'{shown}'" in said.text
    with pytest.raises(StorageError, match="Next: delete or rename it"):
        Objects.at(url).names()
    s3.delete_object(Bucket=bucket, Key=f"runs/first/{odd}")
    train(run, 2, [url])
    assert held(url) == [1, 2]


@pytest.mark.parametrize("kind", ["bucket", "folder"])
def test_two_runs_that_begin_one_mirror_at_once(kind, run, url, tmp_path):
    """The second one to write is refused, though both had found the place empty, and what the first wrote stays."""
    place = url if kind == "bucket" else str(tmp_path / "place")
    other = str(tmp_path / "other")
    train(run, 2)
    train(other, 2)
    first, second = Push(run, place), Push(other, place)
    first.go()
    with pytest.raises(UsageError, match="holds another run") as caught:
        second.go()
    assert book.read_run(run).id in str(caught.value)
    assert book.read_run(place).id == book.read_run(run).id
    assert (held(place) if kind == "bucket" else steps(place)) == [1, 2]
    assert {item.status for item in Push(run, place).items} == {"there"}


def test_a_mirror_that_cannot_be_read_is_said_once(run, tmp_path):
    """A launch that is refused for it ends in one message, which says everything once."""
    with pytest.raises(StorageError) as caught:
        train(run, 1, [str(tmp_path / "unmounted" / "place")])
    shown = "".join(traceback.format_exception(caught.value))
    assert shown.count("Traceback") == shown.count("cannot be reached") == 1
    assert "Next: make it readable" in shown
