"""P1, P3 on full disks: what mirrors hold back gives way in the middle of a write, and a fetch loses nothing."""

import errno
import os

import pytest
from mirrored_runs import content, names, steps, train
from small_disks import Disk, apart

import holdfast
from holdfast import Keep, StorageError, saving, storage
from holdfast.mirrors import mirroring
from holdfast.mirrors.mirroring import Mirroring
from holdfast.pulling import Pull
from holdfast.pushing import Push
from holdfast.store import book

MIB = 1 << 20


def lagging(monkeypatch):
    """Mirrors to which nothing comes."""

    def never(self):
        raise mirroring._Stopped

    monkeypatch.setattr(Mirroring, "_check_going", never)


@pytest.mark.parametrize("manner", ["payload", "small", "checked"])
def test_a_full_disk_releases_what_is_held_back(manner, tmp_path):
    """Where a disk fills in the middle of a save, the oldest checkpoint that waits for a mirror goes, and the save succeeds."""
    assert apart(lambda: _fill(str(tmp_path), manner)) == "done"


def _fill(place, manner):
    disk = Disk(place, "tmpfs", 24 * MIB)
    run, lines = os.path.join(disk.path, "run"), []
    with pytest.MonkeyPatch.context() as patch:
        lagging(patch)
        patch.setattr(saving.logger, "warning", lambda *words: lines.append(words[0] % words[1:]))
        if manner != "checked":
            patch.setattr(storage, "check_space", lambda path, needed: None)
        opened = holdfast.Run(run, mirrors=[os.path.join(place, "arch")], keep=Keep(last=1))
        opened.resume()

        def save(step, size=MIB):
            opened.state.update(content(step, size))
            opened.save(step=step, wait=True)

        for step in (1, 2, 3):
            save(step)
        assert steps(run) == [1, 2, 3]
        # Room for half of the next one; or for its payload, and nothing beside it.
        disk.fill(2 * MIB if manner != "small" else 4 * MIB + 8192)
        save(4)
        assert steps(run) == [2, 3, 4]
        assert [line for line in lines if "is deleted, although a mirror does not have it" in line]
        disk.fill(MIB)
        save(5)
        assert steps(run) == [3, 4, 5]
        assert [entry.folder for entry in opened._training.session.entries] == names(run)
        deleted = [event["name"] for event in book.read_events(run) if event["event"] == "delete"]
        assert len(deleted) == len(set(deleted)) == 2
        disk.fill(0)
        with pytest.raises(StorageError) as error:  # two are spared, and there is no room all the same
            save(6, 8 * MIB)
        assert error.value.errno == errno.ENOSPC
        assert steps(run) == [5]
        disk.empty()
        save(6)
        opened.close()
    return "done"


def test_a_full_disk_stops_a_pull_and_a_push(tmp_path):
    """Without room nothing is begun, in clear words; where it fills on the way, what was copied is gone on with."""
    assert apart(lambda: _copy(str(tmp_path))) == "done"


def _copy(place):
    disk = Disk(place, "tmpfs", 160 * MIB)
    run = os.path.join(place, "run")
    train(run, 1, size=16 * MIB)  # 64 MiB
    new, there = os.path.join(disk.path, "new"), os.path.join(disk.path, "there")
    disk.fill(40 * MIB)
    for task in (Pull(run, new), Push(run, there)):
        with pytest.raises(
            StorageError, match="There is no room in .* they need 67,1.* Next: free some"
        ) as error:
            task.go()
        assert error.value.errno == errno.ENOSPC
    assert not os.path.exists(new)
    assert not os.path.exists(there)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "free_bytes", lambda path: 1 << 40)
        with pytest.raises(StorageError) as error:
            Pull(run, new).go(jobs=1)
        assert error.value.errno == errno.ENOSPC
        assert "The checkpoint needs" in str(error.value)
        assert "the next attempt goes on with it" in str(error.value)
    disk.empty()
    with pytest.raises(holdfast.UsageError, match="were being fetched"):
        train(new, 0)
    task = Pull(run, new)
    task.go()
    assert task.items[0].found >= 16 * MIB
    assert steps(new) == [1]
    assert train(new, 0, size=16 * MIB) == 1
    return "done"
