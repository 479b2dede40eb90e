"""P3, P7, P8 with mirrors that lag or fail: what waits, what goes on, what is told, and who may write."""

import errno
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from mirrored_runs import LAST, content, names, steps, train

import holdfast
from holdfast import Keep, LeaseError, Mirror, StorageError, files, storage
from holdfast.mirrors import mirroring
from holdfast.mirrors.mirroring import Mirroring
from holdfast.store import book


@pytest.fixture
def run(tmp_path):
    return str(tmp_path / "run")


@pytest.fixture
def arch(tmp_path):
    return str(tmp_path / "arch")


@pytest.fixture
def gate(monkeypatch):
    """Copies begin, and wait at their first block until the gate is opened; closing does not wait for them."""
    gate, real = threading.Event(), Mirroring._check_going

    def check(self):
        while not gate.wait(0.02):
            real(self)
        real(self)

    monkeypatch.setattr(Mirroring, "_check_going", check)
    monkeypatch.setattr(mirroring, "CLOSE_SECONDS", 0.2)
    yield gate
    gate.set()


def save(run, step, metrics=None):
    run.state.update(content(step))
    run.save(step=step, metrics=metrics, wait=True)


def test_two_deletions_wait(run, arch, gate):
    """A mirror that lags holds back two deletions, no more, and the training goes on; they go once it has caught up."""
    opened = holdfast.Run(run, mirrors=[arch], keep=Keep(last=1))
    opened.resume()
    for step in range(1, 8):
        save(opened, step)
        assert len(names(run)) <= 3
        assert step in steps(run)
    assert len(names(run)) == 3
    gate.set()
    opened.close()
    assert steps(run) == steps(arch) == [7]


def test_a_required_mirror_holds_back_all(run, arch, gate):
    """A required mirror holds back every deletion until something newer is there."""
    opened = holdfast.Run(run, mirrors=[Mirror(arch, required=True)], keep=Keep(last=1))
    opened.resume()
    for step in range(1, 6):
        save(opened, step)
    assert steps(run) == [1, 2, 3, 4, 5]
    gate.set()
    opened.close()
    assert steps(run) == steps(arch) == [5]


def test_a_full_disk_releases_the_oldest(run, arch, gate, monkeypatch, said):
    """Where there is no room for the next checkpoint, the oldest of those that wait for a mirror goes, loudly."""
    opened = holdfast.Run(run, mirrors=[arch], keep=Keep(last=1))
    opened.resume()
    for step in range(1, 4):
        save(opened, step)
    assert steps(run) == [1, 2, 3]
    real = storage.check_space

    def check(path, needed):
        if len(names(run)) > 2:
            raise StorageError("No space.", errno=errno.ENOSPC, path=path)
        real(path, needed)

    monkeypatch.setattr(storage, "check_space", check)
    save(opened, 4)
    monkeypatch.setattr(storage, "check_space", real)
    assert "There is no room for the next checkpoint: 000001" in said.text
    assert steps(run) == [2, 3, 4]
    gate.set()
    opened.close()
    assert steps(run) == steps(arch) == [4]


def test_close_tells_what_is_not_there(run, arch, gate, said):
    """Close waits for a bounded time, tells what a mirror lacks, succeeds, and the next launch brings it there."""
    train(run, 3, [arch])
    assert "is not up to date" in said.text
    assert "000003" in said.text
    assert steps(arch) == []
    gate.set()
    train(run, 0, [arch])
    assert steps(arch) == [2, 3]


def test_close_raises_for_a_required_one(run, arch, gate):
    """A required mirror that is not up to date makes close raise; the run is closed and released all the same."""
    with pytest.raises(StorageError, match="is not up to date"):
        train(run, 3, [Mirror(arch, required=True)])
    gate.set()
    assert train(run, 0, [Mirror(arch, required=True)]) == 3
    assert steps(arch) == [2, 3]


def test_a_required_one_is_waited_for_while_it_moves(run, arch, monkeypatch):
    """For a required mirror, close waits as long as bytes are on their way, however long that takes in all.

    The clock goes on only while the copy waits for its limit, so a slow disk changes nothing.
    """

    class Clock:
        now = 0.0

        def monotonic(self):
            return self.now

        def sleep(self, seconds):
            time.sleep(seconds / 4)
            self.now += seconds

    clock = Clock()
    monkeypatch.setattr(mirroring, "time", clock)
    monkeypatch.setattr(mirroring, "CLOSE_SECONDS", 2.0)
    train(run, 2)
    train(run, 0, [Mirror(arch, required=True, limit=10_000)])  # about three seconds for the two
    assert steps(arch) == [1, 2]
    assert clock.now > 2.0


def test_ctrl_c_ends_the_wait(run, arch, gate, monkeypatch):
    """Ctrl-C while close waits for a mirror ends the wait; the run is closed, and the interrupt is not lost."""

    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(mirroring, "CLOSE_SECONDS", 60)
    opened = holdfast.Run(run, mirrors=[arch], keep=LAST)
    opened.resume()
    save(opened, 1)
    monkeypatch.setattr(Mirroring, "_idle", interrupt)
    with pytest.raises(KeyboardInterrupt):
        opened.close()
    monkeypatch.undo()
    gate.set()
    assert train(run, 0) == 1


def test_own_keep(run, arch):
    """A mirror with a Keep of its own holds more, or less, than the run."""
    train(run, 5, [Mirror(arch, keep=Keep(last=4))], keep=Keep(last=1))
    assert (steps(run), steps(arch)) == ([5], [2, 3, 4, 5])
    train(run, 6, [Mirror(arch, keep=Keep(last=1))], keep=Keep(last=3))
    assert steps(arch) == [6]


def test_best_and_pinned_stay_in_the_mirror(run, arch):
    """The best and the pinned ones stay in a mirror (P3), a pin that was set there alone included."""
    keep = Keep(last=1, best=1, metric="m", mode="max")
    opened = holdfast.Run(run, mirrors=[Mirror(arch, keep=keep)], keep=Keep(last=None))
    opened.resume()
    save(opened, 1, {"m": 9.0})
    opened.close()
    holdfast.open(arch).pin()
    opened = holdfast.Run(run, mirrors=[Mirror(arch, keep=keep)], keep=Keep(last=None))
    opened.resume()
    for step, value in ((2, 10.0), (3, 1.0), (4, 2.0)):
        save(opened, step, {"m": value})
    opened.close()
    assert steps(arch) == [1, 2, 4]


def test_a_newer_one_is_there_before_an_older_one_leaves(run, arch, monkeypatch):
    """At no moment a mirror has fewer than one checkpoint that is newer than, or the same as, the one before."""
    from holdfast.mirrors.folder import Folder

    train(run, 1, [arch], keep=Keep(last=1))
    real, seen = Folder.delete, []

    def delete(self, name):
        seen.append((steps(arch), name[:6]))
        return real(self, name)

    monkeypatch.setattr(Folder, "delete", delete)
    train(run, 2, [arch], keep=Keep(last=1))
    assert seen == [([1, 2], "000001")]
    assert steps(arch) == [2]


def test_a_failure_is_told_at_the_next_touch(run, arch, monkeypatch, said):
    """A mirror that fails is a warning at the next touch of the run and an event in its history; the training goes on."""
    train(run, 1, [arch])
    from holdfast.mirrors.folder import Folder

    def fail(self, name):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    real = Folder.publish
    monkeypatch.setattr(Folder, "publish", fail)
    opened = holdfast.Run(run, mirrors=[arch], keep=LAST)
    opened.resume()
    save(opened, 2)
    opened._training.mirroring._ticket.join()
    said.clear()
    save(opened, 3)
    assert "was not brought up to date: Cannot use the mirror" in said.text
    monkeypatch.setattr(Folder, "publish", real)
    said.clear()
    opened.close()
    assert "can be written again, and is up to date" in said.text
    assert steps(arch) == steps(run) == [2, 3]
    assert any("Input/output error" in event.get("problem", "") for event in book.read_events(run))


def test_a_full_mirror_is_left_as_it_was(run, arch, monkeypatch):
    """A copy for which a mirror has no room is taken away again; what was there stays."""
    from holdfast.mirrors.folder import FolderTarget

    train(run, 1, [arch])

    def full(self):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(FolderTarget, "finish", full)
    train(run, 2, [arch])
    assert steps(arch) == [1]
    left = [os.listdir(os.path.join(arch, name)) for name in os.listdir(arch) if name.startswith(".copying-")]
    assert left in ([], [[]])


def test_a_lost_lease_changes_nothing_in_the_mirror(run, arch, monkeypatch):
    """A holder whose run was taken over while it copied publishes and deletes nothing in the mirror."""
    from holdfast.mirrors.folder import FolderTarget

    real = FolderTarget.finish

    def finish(self):  # all is copied, and nothing published yet
        real(self)
        with open(os.path.join(run, "lease-000099"), "w"):
            pass

    monkeypatch.setattr(FolderTarget, "finish", finish)
    train(run, 0)
    opened = holdfast.Run(run, mirrors=[arch], keep=Keep(last=1))
    opened.resume()
    save(opened, 1)
    opened._training.mirroring._ticket.join()
    assert os.path.exists(os.path.join(run, "lease-000099"))
    assert names(arch) == []
    with pytest.raises(LeaseError):
        save(opened, 2)
    opened._training.mirroring.hand_over(at_once=True)
    opened._training.mirroring._ticket.join()
    opened.close()
    assert names(arch) == []


def test_a_sleeping_writer_finds_its_directory_gone(run, arch, monkeypatch):
    """A writer that sleeps between its last look at the lease and its rename publishes and deletes nothing."""
    from holdfast.mirrors.folder import Folder

    train(run, 3, [arch])
    data = open(os.path.join(run, "run.json"), "rb").read()
    zombie, later = Folder(arch, "zombie"), Folder(arch, "later")
    zombie.enter(data)
    target = zombie.target(names(arch)[0])
    target.begin([])
    later.enter(data)
    assert sorted(name for name in os.listdir(arch) if name.startswith(".")) == [".copying-later"]
    with pytest.raises(StorageError):
        zombie.delete(names(arch)[0])
    os.rename(os.path.join(arch, names(arch)[1]), os.path.join(arch, "aside"))
    with pytest.raises(StorageError):
        zombie.publish(names(run)[1])
    os.rename(os.path.join(arch, "aside"), os.path.join(arch, names(run)[1]))
    assert steps(arch) == [2, 3]


def test_a_pin_that_comes_while_it_is_deleted_holds(run, arch, monkeypatch):
    """A checkpoint that is pinned in the mirror between the look and the deletion is put back."""
    from holdfast.mirrors.folder import Folder
    from holdfast.store import retention

    train(run, 3, [arch])
    folder = Folder(arch, "writer")
    folder.enter(open(os.path.join(run, "run.json"), "rb").read())
    real = Folder._throw_away

    def throw(self, name):
        retention.mark(arch, "pins", name)
        return real(self, name)

    monkeypatch.setattr(Folder, "_throw_away", throw)
    assert not folder.delete(names(arch)[0])
    assert steps(arch) == [2, 3]


SCRIPT = """
import sys, numpy as np, holdfast
from holdfast import Every
run = holdfast.Run(sys.argv[1], mirrors=[sys.argv[2]], every=Every(steps=1))
{body}
"""


def script(run, arch, body):
    code = SCRIPT.format(body=body)
    return subprocess.run(
        [sys.executable, "-c", code, run, arch], capture_output=True, text=True, timeout=60, check=False
    )


def test_a_forgotten_close(run, arch):
    """A script that ends without closing its run leaves its mirror up to date, and ends with 0."""
    done = script(
        run,
        arch,
        """
run.resume()
for step in range(1, 4):
    run.state["w"] = np.zeros(100) + step
    run.save(step=step)
""",
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert steps(arch) == [1, 2, 3]
    assert not [name for name in os.listdir(arch) if name.startswith(".")]


def test_exit_is_bounded(run, arch):
    """A script whose mirror lags at its end still ends, with 0, and says what is not there."""
    done = script(
        run,
        arch,
        """
from holdfast.mirrors import mirroring
mirroring.CLOSE_SECONDS = 0.3
run._training.options.mirrors[0].__dict__["limit"] = 100
run.resume()
run.state["w"] = np.zeros(100)
run.save(step=1)
""",
    )
    assert done.returncode == 0, done.stderr
    assert "is not up to date; not there: 000001" in done.stderr
    assert steps(run) == [1]
    assert steps(arch) == []


def test_a_required_mirror_decides_the_exit_code(run, arch):
    """A script that leaves a required mirror behind ends with the code of a StorageError."""
    done = script(
        run,
        arch,
        """
from holdfast.mirrors import mirroring
mirroring.CLOSE_SECONDS = 0.3
run._training.options.mirrors[0].__dict__.update(limit=100, required=True)
run.resume()
run.state["w"] = np.zeros(100)
run.save(step=1)
""",
    )
    assert done.returncode == StorageError.exit_code, done.stderr
    assert "is not up to date" in done.stderr


def test_one_thread_copies_for_all(run, arch, tmp_path):
    """Several runs and mirrors of a process are copied by one thread."""
    runs = [holdfast.Run(str(tmp_path / f"run{n}"), mirrors=[str(tmp_path / f"arch{n}")]) for n in range(3)]
    for opened in runs:
        opened.resume()
        opened.state["w"] = np.zeros(10)
        opened.save(step=1, wait=True)
    copying = [thread for thread in threading.enumerate() if thread.name.startswith("holdfast-mirrors")]
    assert len(copying) == 1
    for number, opened in enumerate(runs):
        opened.close()
        assert steps(str(tmp_path / f"arch{number}")) == [1]


def test_durable_before_it_is_seen(run, arch, monkeypatch):
    """Every file of a copy is synced, then its folder, before the rename that shows it; the mirror's folder after it."""
    calls = []

    class Recorded(files.System):
        def fsync(self, fd):
            calls.append(("fsync", os.readlink(f"/proc/self/fd/{fd}")))
            super().fsync(fd)

        def rename(self, source, target):
            calls.append(("rename", os.fspath(source), os.fspath(target)))
            super().rename(source, target)

    train(run, 1)
    monkeypatch.setattr(files, "system", Recorded())
    train(run, 0, [arch])
    [name] = names(arch)
    [shown] = [place for place, call in enumerate(calls) if call[2:] == (os.path.join(arch, name),)]
    hidden = calls[shown][1]
    synced = [call[1] for call in calls[:shown] if call[0] == "fsync" and call[1].startswith(hidden)]
    assert synced[-1] == hidden
    assert {os.path.basename(path) for path in synced[:-1]} == set(os.listdir(os.path.join(arch, name)))
    assert synced[-2].endswith("checkpoint.json")
    assert ("fsync", arch) in calls[shown:]
    [book_shown] = [
        place for place, call in enumerate(calls) if call[2:] == (os.path.join(arch, "run.json"),)
    ]
    assert ("fsync", calls[book_shown][1]) in calls[:book_shown]
    assert book_shown < shown


def test_memory_is_bounded(run, arch):
    """A copy takes the memory of a block, not that of a file."""
    import tracemalloc

    from holdfast.mirrors import copying
    from holdfast.mirrors.folder import Folder
    from holdfast.payload.source import FolderSource

    train(run, 1, size=25 << 20)  # 100 MB
    os.mkdir(arch)
    folder = Folder(arch, "writer")
    with open(os.path.join(run, "run.json"), "rb") as file:
        folder.enter(file.read())
    tracemalloc.start()
    try:
        copying.copy(
            [FolderSource(os.path.join(run, names(run)[0]))], folder.target(names(run)[0]), lambda _: None
        )
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()
