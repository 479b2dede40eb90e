"""Saves that fail, deletions that must not follow links, and what counts as last and as best."""

import errno
import glob
import json
import logging
import os
import shutil
import threading
import time

import numpy as np
import pytest
import torch

import holdfast
from holdfast import Every, Keep, LeaseError, NotFoundError, StorageError, UsageError, files
from holdfast.payload import threads
from holdfast.saving import Saver
from holdfast.session import Session
from holdfast.store import catalog


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "r")


@pytest.fixture
def said(caplog, monkeypatch):
    """What the logger said."""
    monkeypatch.setattr(logging.getLogger("holdfast"), "propagate", True)
    caplog.set_level(logging.INFO, "holdfast")
    return caplog


def names(path):
    """The names that a reader sees, oldest first, without their time."""
    return [name[:17] for name in sorted(os.listdir(path)) if name[0] == "0"]


class Disk:
    """Makes the background's fsync fail with `error` while `full` is set."""

    def __init__(self):
        self.full, self.error = False, errno.ENOSPC


@pytest.fixture
def disk(monkeypatch):
    disk, fsync = Disk(), files.System.fsync

    def failing(self, fd):
        if disk.full and threading.current_thread() is not threading.main_thread():
            raise OSError(disk.error, os.strerror(disk.error))
        return fsync(self, fd)

    monkeypatch.setattr(files.System, "fsync", failing)
    return disk


# -- links -----------------------------------------------------------------------------------------


def test_remove_tree_removes_links_and_follows_none(tmp_path):
    """`remove_tree` removes a link, at the top or inside, and leaves what it points to."""
    kept = tmp_path / "kept"
    (kept / "deep").mkdir(parents=True)
    (kept / "deep" / "file").write_text("here")
    top, tree = tmp_path / "top", tmp_path / "tree"
    top.symlink_to(kept)
    tree.mkdir()
    (tree / "inside").symlink_to(kept)
    dangling = tmp_path / "dangling"
    dangling.symlink_to(tmp_path / "nowhere")
    for path in (top, tree, dangling):
        files.remove_tree(path)
        assert not os.path.lexists(path)
    assert (kept / "deep" / "file").read_text() == "here"


def test_save_onto_a_link(tmp_path):
    """`save` onto a link replaces the checkpoint that it points to, and the link stays a link."""
    first, current = tmp_path / "v1", tmp_path / "current"
    holdfast.save(first, {"model": torch.nn.Linear(2, 2)})
    current.symlink_to(first)
    holdfast.save(current, {"model": torch.nn.Linear(3, 3)})
    assert os.readlink(current) == str(first)
    assert sorted(os.listdir(tmp_path)) == ["current", "v1"]
    assert holdfast.open(first).load()["model"]["weight"].shape == (3, 3)
    assert holdfast.open(first).verify() == []


def test_retention_deletes_the_link_of_a_checkpoint_moved_away(tmp_path, path):
    """Retention of a checkpoint that was moved to an archive, leaving a link, deletes the link alone."""
    with holdfast.Run(path, keep=Keep(last=1)) as run:
        run.resume()
        run.save(epoch=1)
    name = os.path.basename(run.latest.path)
    archived, link = tmp_path / name, os.path.join(path, name)
    shutil.move(link, archived)
    os.symlink(archived, link)
    before = sorted(os.listdir(archived))
    with holdfast.Run(path, keep=Keep(last=1)) as run:
        run.resume()
        run.save(epoch=2)
    assert not os.path.lexists(link)
    assert names(path) == ["000002_epoch-0002"]
    assert sorted(os.listdir(archived)) == before
    assert holdfast.open(archived).verify() == []


# -- what counts -----------------------------------------------------------------------------------


def damage_newest(path):
    target = sorted(glob.glob(os.path.join(path, "0*", "model.safetensors")))[-1]
    with open(target, "r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))


def own_loop(path, keep, values):
    """One save for each value, beginning at the next epoch."""
    run = holdfast.Run(path, keep=keep)
    run.track(model=torch.nn.Linear(2, 2))
    begin = run.resume().epoch
    for epoch, value in enumerate(values, begin + 1):
        run.save(epoch=epoch, metrics={} if value is None else {"v": value}, wait=True)
    run.close()


def test_what_is_damaged_is_not_one_of_the_last(path):
    """A checkpoint passed over as damaged at resume is not counted among the last ones that stay."""
    own_loop(path, Keep(last=2), [None, None])
    damage_newest(path)
    own_loop(path, Keep(last=2), [None])
    assert {"000001_epoch-0001", "000003_epoch-0002"} <= set(names(path))


def test_what_is_damaged_is_not_the_best(path):
    """A checkpoint passed over as damaged at resume is not the best: the healthy best stays, however old."""
    keep = Keep(last=1, best=1, metric="v", mode="max")
    own_loop(path, Keep(last=2), [0.5, 0.99])
    damage_newest(path)
    own_loop(path, keep, [0.6, 0.97, 0.7, 0.7])
    best = [found for name in glob.glob(os.path.join(path, "0*")) if (found := holdfast.open(name)).metrics]
    assert sorted(found.metrics["v"] for found in best if not found.verify()) == [0.7, 0.97]


# -- failures --------------------------------------------------------------------------------------


def test_failed_sync_of_the_run_directory(path, monkeypatch):
    """When the sync after the rename fails, the save fails, nothing of it is visible, and its number is not used again."""
    run = holdfast.Run(path)
    run.resume()
    run.save(epoch=1, wait=True)
    fsync, failing = files.System.fsync, [errno.EIO]

    def failing_once(self, fd):
        if failing and os.path.samestat(os.fstat(fd), os.stat(path)):
            raise OSError(failing[0], os.strerror(failing.pop()))
        return fsync(self, fd)

    monkeypatch.setattr(files.System, "fsync", failing_once)
    with pytest.raises(StorageError, match="sync the directory"):
        run.save(epoch=2, wait=True)
    assert not failing
    assert names(path) == ["000001_epoch-0001"]
    assert run.latest.progress.epoch == 1
    run.save(epoch=3, wait=True)
    assert names(path) == ["000001_epoch-0001", "000003_epoch-0003"]
    run.close()


def test_pins_that_cannot_be_listed(path, monkeypatch, said):
    """An I/O error in listing the pins is a warning of the retention, not a failed save; nothing is deleted then."""
    listdir, failing = os.listdir, [False]

    def refusing(where="."):
        if failing[0] and str(where).endswith("pins"):
            raise OSError(errno.EIO, os.strerror(errno.EIO), where)
        return listdir(where)

    monkeypatch.setattr(os, "listdir", refusing)
    run = holdfast.Run(path, keep=Keep(last=1))
    run.resume()
    run.save(epoch=1, wait=True)
    failing[0] = True
    with pytest.raises(StorageError):
        catalog.marks(path, catalog.PINS)
    run.save(epoch=2, wait=True)
    failing[0] = False
    assert "was saved; cleaning up after it failed" in said.text
    assert names(path) == ["000001_epoch-0001", "000002_epoch-0002"]
    run.save(epoch=3, wait=True)
    assert names(path) == ["000003_epoch-0003"]
    run.close()


def test_a_save_that_failed_in_a_loop_left_by_break(path, disk, said):
    """A save that fails while its loop is left by break is raised when the loop is entered again, once."""
    run = holdfast.Run(path, every=Every(minutes=99))
    disk.full = True
    for step in run.steps(3):
        if step == 0:
            run.save()
        if step == 1:
            break
    disk.full = False
    with pytest.raises(StorageError) as caught:
        list(run.steps(3))
    assert caught.value.errno == errno.ENOSPC
    assert names(path) == []
    assert list(run.steps(3)) == [0, 1, 2]
    run.close()


def test_the_saves_failure_wins_at_close(path, disk, monkeypatch, said):
    """When the last save and the release of the lease both fail, `close` raises the save's error and logs the other."""
    close = Session.close

    def refused(self):
        close(self)
        raise LeaseError("The lease cannot be given back.", holder=None)

    run = holdfast.Run(path)
    run.resume()
    run.save(epoch=1, wait=True)
    monkeypatch.setattr(Session, "close", refused)
    disk.full = True
    run.save(epoch=2)
    with pytest.raises(StorageError) as caught:
        run.close()
    assert caught.value.errno == errno.ENOSPC
    assert "The lease cannot be given back." in said.text
    run.close()


def test_a_refused_save_releases_the_lease(path):
    """A `save` that is refused because nothing was resumed holds nothing afterwards."""
    own_loop(path, Keep(), [None])
    run = holdfast.Run(path)
    with pytest.raises(UsageError, match="has not resumed"):
        run.save(epoch=5)
    assert [name for name in os.listdir(path) if name.startswith(".writing-")] == []
    run.track(model=torch.nn.Linear(2, 2))
    assert run.resume().epoch == 1
    with pytest.raises(UsageError, match="never goes backwards"):
        run.save(epoch=0)
    run.save(epoch=2, wait=True)  # a refusal later keeps what this launch holds
    run.close()


# -- Ctrl-C around the hand-over to the background ---------------------------------------------------


def test_ctrl_c_before_the_save_is_handed_over(path, monkeypatch):
    """Ctrl-C just before a save is handed to the background leaves no broken save: the run goes on and closes."""
    submit, raising = threads.submit, [True]

    def interrupted(crew, task):
        if crew == "publish" and raising:
            raising.pop()
            raise KeyboardInterrupt
        return submit(crew, task)

    monkeypatch.setattr(threads, "submit", interrupted)
    run = holdfast.Run(path)
    with pytest.raises(KeyboardInterrupt):
        list(run.epochs(3))
    assert names(path) == []
    assert os.listdir(os.path.join(path, ".writing-000001")) == []
    assert list(run.epochs(3)) == [0, 1, 2]
    run.close()
    assert names(path)[-1][7:] == "epoch-0003"


def test_ctrl_c_after_the_save_is_handed_over(path, monkeypatch):
    """Ctrl-C just after a save was handed to the background does not lose it: `close` waits for it."""
    run = holdfast.Run(path)
    run.resume()
    add, raising = Session.add, [True]

    def interrupted(self, *args):
        add(self, *args)
        if raising:
            raising.pop()
            raise KeyboardInterrupt

    monkeypatch.setattr(Session, "add", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run.save(epoch=1)
    run.close()
    assert names(path) == ["000001_epoch-0001"]


# -- pins, logs, milestones --------------------------------------------------------------------------


def test_pin_of_what_is_gone(path):
    """Pinning a checkpoint that is gone is a `NotFoundError`, and leaves no mark."""
    own_loop(path, Keep(), [None, None])
    gone = holdfast.open(path)
    shutil.rmtree(gone.path)
    with pytest.raises(NotFoundError, match="is gone, so it was not pinned"):
        gone.pin()
    assert os.listdir(os.path.join(path, "pins")) == []
    left = holdfast.open(path)
    left.pin()
    assert os.listdir(os.path.join(path, "pins")) == [left.name]


def test_metrics_named_like_the_rows_own_fields(path):
    """Metrics may be called epoch, step, event, run or path; each row keeps its own epoch and step."""
    logged = {"epoch": 7, "step": 8, "event": 1.0, "run": 2.0, "path": 3.0, "loss": 4.0}
    with holdfast.Run(path) as run:
        for _ in run.epochs(1):
            run.log(**logged)
    manifest = run.latest.manifest
    assert manifest.history == [{**logged, "epoch": 1, "step": 0}]
    assert run.latest.metrics == logged
    with open(os.path.join(path, "history.jsonl")) as file:
        (row,) = [row for row in map(json.loads, file) if row["event"] == "metrics"]
    assert (row["epoch"], row["step"], row["metrics"]) == (1, 0, logged)


def test_milestones_of_slow_saves(path, monkeypatch):
    """With saves slower than epochs, `Keep(every_epochs=1)` still keeps every epoch: a milestone waits, and is not merged."""
    monkeypatch.setattr(Saver, "busy", property(lambda self: True))
    with holdfast.Run(path, every=Every(epochs=1), keep=Keep(last=1, every_epochs=1)) as run:
        for _ in run.epochs(5):
            pass
    assert [name[-1] for name in names(path)] == ["1", "2", "3", "4", "5"]
    other = f"{path}-2"
    with holdfast.Run(other, every=Every(epochs=1), keep=Keep(last=1, every_epochs=2)) as run:
        for _ in run.epochs(5):
            pass
    assert [name[-1] for name in names(other)] == ["2", "4", "5"]


@pytest.mark.parametrize("error", [RuntimeError("no facts"), KeyboardInterrupt()])
def test_what_fails_while_blocks_are_written_stops_them(tmp_path, monkeypatch, error):
    """A save that fails, or is interrupted, while its facts are gathered leaves no file and no thread that writes one."""
    from holdfast import drafting
    from holdfast.payload import staging

    writing = threading.Event()
    pwrite = files.system.pwrite

    def slowly(*arguments):
        writing.set()
        time.sleep(0.05)
        return pwrite(*arguments)

    def gather():
        assert writing.wait(20)  # the first block is on its way
        raise error

    monkeypatch.setattr(files.system, "pwrite", slowly)
    monkeypatch.setattr(drafting.environment, "gather", gather)
    with pytest.raises(type(error)):  # of a state that is larger than what is in hand at once
        holdfast.save(tmp_path / "saved", {"arrays": {"a": np.ones(200 << 20, np.uint8)}})
    assert os.listdir(tmp_path) == []
    assert staging.pool.free == staging.pool.size
