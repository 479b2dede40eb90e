"""`rewind`: which checkpoint the next launch resumes from, and what is refused."""

import os

import numpy as np
import pytest
from cli_runs import ALL, checkpoints, flip, make_run

import holdfast
from holdfast import rewinding
from holdfast.errors import DamagedError, LeaseError, NotFoundError, StorageError, UsageError
from holdfast.rewinding import rewind
from holdfast.store import book, catalog, retention


def resumed(path):
    """What the next launch resumes from: the completed epochs."""
    run = holdfast.Run(path, config={"lr": 0.1}, keep=ALL)
    progress = run.resume()
    weights = run.state["weights"]
    run.close()
    return progress.epoch, float(weights[0, 1])


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run", epochs=4)


@pytest.mark.parametrize(
    "how", ["@epoch=2", "@seq=2", "@-3", "@step=20", "@best", "name", "path", "full", "link"]
)
def test_the_next_launch_resumes_from_the_target(run, how):
    """After a rewind, by whatever reference, a launch continues from the target; nothing is deleted."""
    second = checkpoints(run)[1]
    spelled = {
        "name": os.path.basename(second),
        "path": second,
        "full": f"{run}@seq=2",
        "link": f"{run}/best",
    }
    done = rewind(run, spelled.get(how, how))
    assert resumed(run) == (2, 2.0)
    assert done.target == os.path.basename(second)
    assert [name[:6] for name in done.abandoned] == ["000003", "000004"]
    assert len(checkpoints(run)) == 4


def test_training_goes_on_and_counts_on(run):
    """New checkpoints after a rewind get new numbers, and abandoned ones stay listed and open."""
    rewind(run, "@seq=2")
    make_run(run, epochs=3, start=2)
    entries = catalog.scan(run)
    assert [(e.sequence, e.abandoned) for e in entries] == [
        (1, False),
        (2, False),
        (3, True),
        (4, True),
        (5, False),
    ]
    assert holdfast.open(f"{run}@seq=4").progress.epoch == 4
    assert holdfast.open(run).sequence == 5


def test_deleting_the_marks_undoes_it(run):
    """Without the marks in abandoned/, the run is as before."""
    rewind(run, "@seq=1")
    for name in os.listdir(f"{run}/abandoned"):
        os.remove(f"{run}/abandoned/{name}")
    assert resumed(run) == (4, 4.0)


def test_rewinding_to_an_abandoned_one_revives_it(run):
    """An abandoned target loses its own mark; what is newer than it is abandoned."""
    rewind(run, "@seq=1")
    done = rewind(run, "@seq=3")
    assert (done.revived, done.abandoned) == (True, [])
    assert resumed(run)[0] == 3
    assert [e.abandoned for e in catalog.scan(run)] == [False, True, False, True]


def test_a_reached_goal_is_cleared(tmp_path):
    """A complete run is no longer complete after a rewind, and stays so when the target is its end."""
    path = str(tmp_path / "run")
    run = holdfast.Run(path, keep=ALL)
    for epoch in run.epochs(3):
        run.log(accuracy=float(epoch))
    run.close()
    assert book.read_run(path).reached
    assert not rewind(path, "@latest").goal_cleared
    assert book.read_run(path).reached
    assert rewind(path, "@epoch=2").goal_cleared
    assert book.read_run(path).reached is None
    again = holdfast.Run(path, keep=ALL)
    assert list(again.epochs(3)) == [2]
    again.close()


def test_history_and_links_tell(run):
    """history.jsonl has the rewind, and the links for people point to what counts now."""
    rewind(run, "@seq=3")
    events = book.read_events(run)
    (event,) = [event for event in events if event["event"] == "rewind"]
    assert event["name"].startswith("000003")
    assert os.readlink(f"{run}/latest") == event["name"]
    assert os.readlink(f"{run}/best").startswith("000002")


def test_a_damaged_target_is_refused(run):
    """A target with a flipped byte is found by reading it, before anything is marked."""
    flip(os.path.join(checkpoints(run)[1], "state.safetensors"))
    with pytest.raises(DamagedError):
        rewind(run, "@seq=2")
    assert resumed(run)[0] == 4


def test_a_nan_target_is_refused_while_a_clean_one_is_older(tmp_path):
    """A launch would pass a NaN-marked target over, so it is refused with the one to name instead."""
    path = make_run(tmp_path / "run", epochs=2)
    run = holdfast.Run(path, config={"lr": 0.1}, keep=ALL)
    run.resume()
    run.save(epoch=3, step=30, metrics={"accuracy": float("nan")}, wait=True)
    run.close()
    with pytest.raises(UsageError, match="@seq=2"):
        rewind(path, "@seq=3")


def test_a_living_holder_is_named(run):
    """While another Run holds the lease, nothing is marked and the holder is named."""
    holder = holdfast.Run(run, config={"lr": 0.1}, keep=ALL)
    holder.resume()
    with pytest.raises(LeaseError, match=str(os.getpid())):
        rewind(run, "@seq=2")
    holder.close()
    assert not catalog.marks(run, catalog.ABANDONED)


def test_interrupted_it_is_a_shorter_rewind(run, monkeypatch):
    """When marking fails half-way, a launch resumes from a checkpoint between target and newest; repeating finishes."""
    mark, calls = retention.abandon, []

    def fail(path, name):
        calls.append(name)
        if len(calls) == 2:
            raise StorageError("full", path=path)
        mark(path, name)

    monkeypatch.setattr(retention, "abandon", fail)
    with pytest.raises(StorageError):
        rewind(run, "@seq=1")
    monkeypatch.undo()
    assert resumed(run)[0] == 3
    rewind(run, "@seq=1")
    assert resumed(run)[0] == 1


def test_what_is_no_checkpoint_of_the_run(run, tmp_path):
    """Another run's checkpoint, a missing one and a directory that is no run each say so."""
    other = make_run(tmp_path / "other", epochs=1)
    with pytest.raises(UsageError, match="not a checkpoint of the run"):
        rewind(run, other)
    with pytest.raises(UsageError, match="not a checkpoint of the run"):
        rewind(run, f"{checkpoints(other)[0]}")
    with pytest.raises(NotFoundError, match="@epoch=N"):
        rewind(run, "epoch=2")
    with pytest.raises(NotFoundError, match="@seq=77"):
        rewind(run, "@seq=77")
    with pytest.raises(NotFoundError, match="not a run"):
        rewind(tmp_path / "none", "@seq=1")
    assert not os.path.exists(tmp_path / "none")


def test_find_in_takes_links_to_the_run(run, tmp_path):
    """A run reached through a symbolic link is the same run."""
    os.symlink(run, tmp_path / "link")
    entries = catalog.scan(run)
    assert rewinding.find_in(run, entries, f"{tmp_path}/link@seq=1").sequence == 1
    assert np.isfinite(entries[0].size)
