"""`holdfast.save` onto what is there already: the old or the new one, at every instant."""

import errno
import mmap
import os

import numpy as np
import pytest

import holdfast
from holdfast import UsageError, files
from holdfast.errors import DamagedError, NotFoundError, StorageError
from holdfast.store import publish


def value(path):
    """What a reader sees at this instant: every array of a checkpoint holds one number."""
    found = holdfast.open(path).load()
    numbers = {float(number) for array in found.values() for number in np.unique(array)}
    assert len(numbers) == 1, "a mixture"
    return numbers.pop()


def put(path, number):
    return holdfast.save(path, {"a": np.full(1000, float(number)), "b": np.full(10, float(number))})


class Watched(files.System):
    """Looks at the checkpoint before each call that changes something."""

    def __init__(self, look, exchanges=True):
        self.look, self.exchanges, self.calls = look, exchanges, []


def _watch(name):
    real = getattr(files.System, name)

    def method(self, *args):
        self.calls.append(name)
        self.look()
        if name == "exchange" and not self.exchanges:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        result = real(self, *args)
        self.look()
        return result

    setattr(Watched, name, method)


for _name in ("open", "pwrite", "write", "fsync", "mkdir", "rename", "exchange", "unlink", "rmdir"):
    _watch(_name)


@pytest.mark.parametrize("exchanges", [True, False], ids=["exchange", "two renames"])
def test_old_or_new_at_every_instant(tmp_path, monkeypatch, exchanges):
    """Between any two system calls of a save, a reader finds the old or the new one whole, never neither."""
    path, seen = tmp_path / "best", []
    put(path, 1)
    system = Watched(lambda: seen.append(value(path)), exchanges)
    monkeypatch.setattr(files, "system", system)
    put(path, 2)
    monkeypatch.undo()
    assert set(seen) == {1.0, 2.0}
    assert sorted(seen) == seen, "the old one came back"
    assert seen[-1] == 2.0
    assert "exchange" in system.calls
    assert system.calls.count("rename") == (0 if exchanges else 2)
    assert os.listdir(tmp_path) == ["best"]


class Failing(files.System):
    """Fails at the n-th call that changes something; every later one fails too, as after a crash."""

    def __init__(self, number):
        self.left, self.exchanges = number, False

    def _call(self, name, *args):
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        if name == "exchange":
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        return getattr(files.System, name)(self, *args)


for _name in vars(files.System):
    if not _name.startswith("_"):
        setattr(Failing, _name, lambda self, *args, _name=_name: self._call(_name, *args))


def test_a_storage_that_dies_at_any_call(tmp_path, monkeypatch):
    """Whichever call is the last one to succeed, the old or the new checkpoint can be read afterwards."""
    path, number, results, said = tmp_path / "best", 0, [], []
    put(path, 1)
    while True:
        monkeypatch.setattr(files, "system", Failing(number))
        try:
            put(path, 2)
            break
        except StorageError as error:
            said.append(str(error))
        finally:
            monkeypatch.undo()
        results.append(value(path))
        if results[-1] == 2.0:
            put(path, 1)
        number += 1
    assert number > 10
    assert set(results) >= {1.0}
    assert all(str(tmp_path) in text and "Input/output error" in text for text in said)
    assert value(path) == 2.0


def test_second_rename_fails(tmp_path, monkeypatch):
    """When the new one cannot take its place, the old one is put back and the error tells."""
    path = tmp_path / "best"
    put(path, 1)
    real = files.System.rename

    def refuse(self, source, target):
        if ".writing-" in os.fspath(source):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        real(self, source, target)

    def no_exchange(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(files.System, "exchange", no_exchange)
    monkeypatch.setattr(files.System, "rename", refuse)
    with pytest.raises(StorageError, match=f"Cannot replace {path}: Permission denied. Check the owner"):
        put(path, 2)
    assert value(path) == 1.0
    assert os.listdir(tmp_path) == ["best"]


@pytest.mark.parametrize("kind", ["file", "directory", "empty directory", "link to nothing", "run"])
def test_onto_anything_else(tmp_path, kind):
    """A save never replaces what is no checkpoint: a `UsageError`, and it is left as it was."""
    path = tmp_path / "best"
    if kind == "file":
        path.write_text("mine")
    elif kind == "link to nothing":
        path.symlink_to("nowhere")
    elif kind == "run":
        with holdfast.Run(path) as run:
            run.save(epoch=1)
    else:
        path.mkdir()
        if kind == "directory":
            (path / "notes.txt").write_text("mine")
    before = sorted(os.listdir(path)) if path.is_dir() else None
    with pytest.raises(UsageError) as caught:
        put(path, 2)
    assert str(caught.value) == (
        f"{path} exists and is not a checkpoint; it was left alone. Next: choose another name, or remove it."
    )
    assert before is None or sorted(os.listdir(path)) == before
    assert os.listdir(tmp_path) == ["best"]


def test_a_checkpoint_of_a_run_is_not_replaced(tmp_path):
    """A save over a checkpoint inside a run is refused: those are immutable."""
    with holdfast.Run(tmp_path / "r") as run:
        run.save(epoch=1)
        path = run.latest.path
    with pytest.raises(UsageError, match=r"is a checkpoint of the run .*/r"):
        put(path, 2)
    assert holdfast.open(path).progress.epoch == 1


def test_beside_the_checkpoints_of_a_run(tmp_path):
    """A checkpoint of another name may lie in a run's directory, and the run does not count it."""
    holdfast.Run(tmp_path / "r").save(epoch=1, wait=True)
    put(tmp_path / "r" / "final", 2)
    assert value(tmp_path / "r" / "final") == 2.0
    assert holdfast.open(tmp_path / "r").progress.epoch == 1


def test_memory_maps_of_the_old_one_are_not_harmed(tmp_path):
    """Saving over a checkpoint that is memory-mapped leaves the mapped data as it was."""
    path = tmp_path / "best"
    put(path, 1)
    with open(path / "a.safetensors", "rb") as file:
        mapped = np.frombuffer(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ), np.float64)[512:]
    for number in (2, 3):
        put(path, number)
    assert set(mapped.tolist()) == {1.0}
    assert value(path) == 3.0


def test_saving_what_is_mapped_from_the_same_place(tmp_path):
    """A state that is itself mapped from the checkpoint can be saved over that checkpoint."""
    path = tmp_path / "best"
    put(path, 1)
    with open(path / "a.safetensors", "rb") as file:
        mapped = np.frombuffer(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ), np.float64)[512:]
    holdfast.save(path, {"a": mapped})
    assert value(path) == 1.0


def test_a_damaged_one_can_be_replaced(tmp_path):
    """A checkpoint that is damaged can be saved over, so that a broken disk does not need rm."""
    path = tmp_path / "best"
    put(path, 1)
    os.truncate(path / "a.safetensors", 100)
    with pytest.raises(DamagedError):
        value(path)
    put(path, 2)
    assert value(path) == 2.0


def test_parents_are_made_and_a_refused_save_leaves_nothing(tmp_path):
    """Missing parents are made; a save that is refused leaves no file and no directory behind."""
    put(tmp_path / "x/y/z", 1)
    assert value(tmp_path / "x/y/z") == 1.0
    with pytest.raises(UsageError, match="is a object, which a checkpoint cannot hold"):
        holdfast.save(tmp_path / "new/deep", {"a": [object()]})
    assert os.listdir(tmp_path) == ["x"]
    with pytest.raises(UsageError, match="takes a mapping of names to parts"):
        holdfast.save(tmp_path / "new", [1])
    with pytest.raises(UsageError, match="cannot name a part"):
        holdfast.save(tmp_path / "new", {"My Model": 1})
    assert os.listdir(tmp_path) == ["x"]


def test_previous_of_another_save_is_not_used_while_the_new_one_is_there(tmp_path):
    """`.NAME.previous` is read only while NAME is missing."""
    path = tmp_path / "best"
    put(path, 1)
    os.rename(path, publish.previous_name(str(path)))
    put(tmp_path / "other", 2)
    os.rename(tmp_path / "other", path)
    assert value(path) == 2.0
    with pytest.raises(NotFoundError):
        holdfast.open(tmp_path / "bes")
