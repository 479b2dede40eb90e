"""What a run keeps and deletes, in the directory: pins, best, the newest clean one, and the order of things."""

import logging
import os
import shutil

import numpy as np
import pytest

import holdfast
from holdfast import CheckpointError, Keep, LeaseError, UsageError, files
from holdfast.store import retention


def names(run):
    return sorted(name for name in os.listdir(run) if name[:1].isdigit())


def epochs(run):
    """The epochs of the checkpoints that are there."""
    return [int(name[13:17]) for name in names(run)]


def train(path, count, *, losses=None, **options):
    """Epoch after epoch in a loop of one's own; NaN in `losses` puts one into the weights."""
    import torch

    net = torch.nn.Linear(2, 1)
    run = holdfast.Run(path, **options)
    run.track(model=net)
    start = run.resume().epoch
    for epoch in range(start, start + count):
        loss = 1.0 if losses is None else losses[epoch - start]
        with torch.no_grad():
            net.weight.fill_(loss)
        run.save(epoch=epoch + 1, metrics={"loss": loss}, wait=True)
    run.close()
    return run


@pytest.fixture
def said(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("holdfast"), "propagate", True)
    caplog.set_level(logging.INFO, "holdfast")
    return caplog


def test_last(tmp_path):
    """The newest three stay by default."""
    train(tmp_path / "r", 5)
    assert epochs(tmp_path / "r") == [3, 4, 5]


def test_best_outlives_its_age(tmp_path):
    """The best one stays however old it is, and `best` points at it; it is found again after a restart."""
    keep = Keep(last=1, metric="loss", mode="min")
    path = tmp_path / "r"
    train(path, 4, losses=[0.5, 0.1, 0.4, 0.3], keep=keep)
    assert epochs(path) == [2, 4]
    assert os.readlink(path / "best") == names(path)[0]
    assert os.readlink(path / "latest") == names(path)[1]
    train(path, 2, losses=[0.2, 0.3], keep=keep)
    assert epochs(path) == [2, 6]
    train(path, 1, losses=[0.05], keep=keep)
    assert epochs(path) == [7]


def test_every_epochs_and_budget(tmp_path):
    """Each second epoch stays beside the last one; a budget lets the oldest of them go."""
    train(tmp_path / "a", 6, keep=Keep(last=1, every_epochs=2))
    assert epochs(tmp_path / "a") == [2, 4, 6]
    train(tmp_path / "b", 6, keep=Keep(last=None, budget="1 kB"))
    assert epochs(tmp_path / "b") == [6]


def test_pinned(tmp_path):
    """A pinned checkpoint stays until it is unpinned; then the next save lets it go."""
    path = tmp_path / "r"
    train(path, 2, keep=Keep(last=1))
    holdfast.open(path).pin()
    holdfast.open(path).pin()
    train(path, 2, keep=Keep(last=1))
    assert epochs(path) == [2, 4]
    holdfast.open(f"{path}@epoch=2").unpin()
    train(path, 1, keep=Keep(last=1))
    assert epochs(path) == [5]


def test_pin_outside_a_run(tmp_path):
    """A checkpoint that lies in no run cannot be pinned, and the message says why."""
    found = holdfast.save(tmp_path / "a", {"x": np.ones(1)})
    for act in (found.pin, found.unpin):
        with pytest.raises(UsageError, match="lies in no run; only a run's checkpoints are pinned"):
            act()
    assert os.listdir(tmp_path) == ["a"]


def test_pins_are_read_before_and_after_the_rename(tmp_path, monkeypatch):
    """A pin that comes right before the deletion holds it, and one that comes during it brings it back."""
    path = str(tmp_path / "r")
    train(path, 2, keep=Keep(last=None))
    run = holdfast.Run(path, keep=Keep(last=1))
    run.resume()
    writing, name = run._training.open().writing, names(path)[0]
    retention.pin(path, name)
    real = files.rename
    with monkeypatch.context() as patch:
        patch.setattr(files, "rename", lambda *_: pytest.fail("a pinned one was touched"))
        assert retention.delete(path, name, writing) is False
    retention.unpin(path, name)

    def pinned_meanwhile(source, target):
        real(source, target)
        if os.fspath(target).endswith(".trash"):
            retention.mark(path, "pins", name)

    monkeypatch.setattr(files, "rename", pinned_meanwhile)
    assert retention.delete(path, name, writing) is False
    assert name in names(path)
    assert holdfast.open(f"{path}/{name}").verify() == []
    run.close()


def test_the_successor_is_durable_first(tmp_path, monkeypatch):
    """Nothing is deleted before the next checkpoint is renamed and the directory synced."""
    path, calls = str(tmp_path / "r"), []
    train(path, 1, keep=Keep(last=1))

    class Noting(files.System):
        def rename(self, source, target):
            calls.append(("rename", os.path.basename(os.fspath(target))))
            super().rename(source, target)

        def fsync(self, fd):
            calls.append(("sync", os.readlink(f"/proc/self/fd/{fd}")))
            super().fsync(fd)

    monkeypatch.setattr(files, "system", Noting())
    old = names(path)[0]
    train(path, 1, keep=Keep(last=1))
    new = names(path)[0]
    published = calls.index(("rename", new))
    deleted = calls.index(("rename", f"{old}.trash"))
    assert published < calls.index(("sync", path), published) < deleted


def test_who_lost_the_lease_deletes_nothing(tmp_path):
    """A process whose writing directory was taken away cannot delete; it is told."""
    path = str(tmp_path / "r")
    train(path, 2)
    with pytest.raises(LeaseError, match=r"no longer holds the run.*Nothing was deleted"):
        retention.delete(path, names(path)[0], f"{path}/.writing-000099")
    assert len(names(path)) == 2
    assert retention.delete(path, "000099_not-there", path) is True


def test_a_failed_deletion_does_not_fail_the_save(tmp_path, monkeypatch, said):
    """When an old checkpoint cannot be deleted, the save is a success and the failure is said."""
    path = str(tmp_path / "r")
    train(path, 1, keep=Keep(last=1))
    monkeypatch.setattr(files, "remove_tree", _denied(files.remove_tree))
    train(path, 1, keep=Keep(last=1))
    assert epochs(path) == [2]
    assert "was saved; cleaning up after it failed: Cannot delete" in said.text


def _denied(real):
    from holdfast.errors import StorageError

    refused = []

    def remove(path):
        if ".trash" in os.fspath(path) and not refused:
            refused.append(path)
            raise StorageError(f"Cannot delete {path}: Permission denied.", path=path)
        real(path)

    return remove


# -- NaN -----------------------------------------------------------------------------------------

NAN = float("nan")


def test_nan_is_marked_and_said(tmp_path, said):
    """A NaN among the parameters marks the checkpoint, and a warning names the arrays."""
    train(tmp_path / "r", 2, losses=[1.0, NAN])
    newest = holdfast.open(f"{tmp_path}/r@latest")
    assert newest.manifest.nan == ["model/weight"]
    assert "NaN or infinity in model/weight" in said.text
    assert "is marked, never counts as best, and is not resumed from while a clean one exists" in said.text
    assert holdfast.open(tmp_path / "r").progress.epoch == 1


def test_nan_never_costs_the_clean_ones(tmp_path):
    """Marked checkpoints do not count toward `last`; of them only the newest stays."""
    path = tmp_path / "r"
    train(path, 6, losses=[1.0, 2.0, NAN, NAN, NAN, NAN], keep=Keep(last=2))
    assert epochs(path) == [1, 2, 6]
    again = train(path, 0, keep=Keep(last=2))
    assert again.progress.epoch == 2


def test_nan_is_never_best(tmp_path):
    """Neither a NaN metric nor a NaN in the weights makes a checkpoint the best."""
    path = tmp_path / "r"
    keep = Keep(last=1, metric="loss", mode="max")
    train(path, 3, losses=[0.5, NAN, float("inf")], keep=keep)
    assert holdfast.open(f"{path}@best").progress.epoch == 1
    assert holdfast.open(path).progress.epoch == 1
    assert set(holdfast.open(f"{path}@latest").manifest.nan) == {"metric/loss", "model/weight"}


def test_only_marked_ones_are_resumed_from_all_the_same(tmp_path):
    """Where no clean one exists, the newest marked one is kept and resumed from."""
    path = tmp_path / "r"
    train(path, 3, losses=[NAN, NAN, NAN], keep=Keep(last=1))
    assert epochs(path) == [3]
    assert train(path, 0).progress.epoch == 3


def test_buffers_may_be_infinite(tmp_path):
    """An infinite buffer, such as a causal mask, marks nothing; an infinite parameter does."""
    import torch

    net = torch.nn.Linear(2, 2)
    net.register_buffer("mask", torch.full((3, 3), float("-inf")).triu(1))
    assert holdfast.save(tmp_path / "a", {"model": net}).manifest.nan == []
    with torch.no_grad():
        net.bias[1] = float("-inf")
    assert holdfast.save(tmp_path / "a", {"model": net}).manifest.nan == ["model/bias"]


def test_on_nan_raise(tmp_path):
    """With on_nan='raise' the state is not saved; the error names the arrays and reaches the caller."""
    path = tmp_path / "r"
    with pytest.raises(CheckpointError) as caught:
        train(path, 3, losses=[1.0, NAN, 2.0], on_nan="raise")
    text = str(caught.value)
    assert text.startswith("NaN or infinity in model/weight at epoch 2, step 0; this state was not saved")
    assert "Next: look at the learning rate and the data" in text
    assert caught.value.arrays == ["model/weight"]
    assert epochs(path) == [1]


def test_damaged_and_foreign_ones_are_left(tmp_path):
    """What is damaged or foreign is left where it is, for `verify` and for people."""
    path = tmp_path / "r"
    train(path, 2, keep=Keep(last=2))
    os.truncate(path / names(path)[0] / "checkpoint.json", 10)
    shutil.copytree(path / names(path)[1], path / names(path)[1].replace("000002", "000001"))
    train(path, 3, keep=Keep(last=1))
    assert epochs(path) == [1, 2, 5]
