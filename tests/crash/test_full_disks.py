"""Real file systems that are full, over their quota, read-only or gone, in the middle of what is being written."""

import contextlib
import errno
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import time
import traceback

import numpy as np
import pytest
import small_disks
from small_disks import Disk, MissingHere, apart

import holdfast
from holdfast import Every, Keep, StorageError, storage
from holdfast.checkpoint import Checkpoint
from holdfast.files import sync_directory
from holdfast.rewinding import rewind
from holdfast.store import catalog, retention

KIB = 1024
# The usual file systems, and those that somebody's machine may have the tools for.
KINDS = list(small_disks.KINDS)
BUFFERED, DIRECT = 200 * KIB, 2500 * KIB  # small payload files go through the page cache, large ones do not


# -- what is on disk -------------------------------------------------------------------------------------


def visible(place):
    """Every checkpoint under a directory that a reader sees, whole: path → digest of its manifest."""
    found = {}
    for folder, names, files in os.walk(place):
        names[:] = [name for name in names if ".writing-" not in name]
        if "checkpoint.json" in files:
            checkpoint = Checkpoint(folder)
            assert [str(problem) for problem in checkpoint.verify()] == [], folder
            with open(f"{folder}/checkpoint.json", "rb") as file:
                found[os.path.relpath(folder, place)] = file.read()[-35:-3].decode()
        if "run.json" in files:
            assert [str(entry.problem) for entry in catalog.scan(folder) if entry.problem] == []
    return found


def debris(place):
    """What nobody needs: drafts, trash, scratch files, half-made ones."""
    return [
        os.path.relpath(os.path.join(folder, name), place)
        for folder, names, files in os.walk(place)
        for name in [*names, *files]
        if name.startswith(".") or name.endswith((".trash", ".link"))
    ]


def check_refusal(error, place):
    """An error says that there is no room, where, and what helps."""
    assert isinstance(error, StorageError), repr(error)
    assert error.errno in (errno.ENOSPC, errno.EDQUOT), repr(error)
    assert error.exit_code == 10
    assert error.path.startswith(str(place)), error.path
    assert str(place) in str(error)
    words = ("Free some", "No space") if error.errno == errno.ENOSPC else ("quota",)
    assert all(word in str(error) for word in words), error


# -- saves at every fill level ---------------------------------------------------------------------------


def weights(run, size):
    run.state["weights"] = np.random.default_rng(0).random(size // 8)


def begin(disk, size):
    """A run with two checkpoints, resumed; and what one more takes."""
    run = holdfast.Run(f"{disk.path}/run", keep=Keep(last=2))
    weights(run, size)
    run.resume()
    run.save(step=1, wait=True)
    before = disk.free
    run.save(step=2, wait=True)
    return run, before - disk.free


def attempt(run, step, *, blocking):
    """Saves; the error, if any, once it has come to the caller."""
    try:
        run.save(step=step, wait=blocking)
        run.latest  # the next touch
    except StorageError as error:
        return error
    return None


def no_check(monkeypatch, disk, level):
    """The check sees room enough where there is none, as with quotas that cannot be known."""
    disk.fill(level)
    monkeypatch.setattr(storage, "free_bytes", lambda path: 1 << 60)


def eaten(monkeypatch, disk, level):
    """Another process eats the space between the check and the write."""
    free_bytes = storage.free_bytes

    def looked(path):
        found = free_bytes(path)
        disk.fill(level)
        return found

    disk.empty()
    monkeypatch.setattr(storage, "free_bytes", looked)


def honest(monkeypatch, disk, level):
    """Nothing deceives the check."""
    disk.fill(level)


MANNERS = {"checked": honest, "eaten": eaten, "unchecked": no_check}


def sweep(disk, size, manner, ways):
    """Saves at each level of free space, blocking or behind the training; how many failed, and how many did not."""
    run, cost = begin(disk, size)
    outcomes = {"failed": 0, "succeeded": 0}
    step = 2
    for number, level in enumerate(levels(disk, cost, manner)):
        blocking = ways[number % len(ways)]
        where = f"{disk.kind}, {size:,} bytes, {manner}, {level:,} free, {'' if blocking else 'not '}blocking"
        there = visible(run.path)
        with pytest.MonkeyPatch.context() as monkeypatch:
            MANNERS[manner](monkeypatch, disk, level)
            error = attempt(run, step + 1, blocking=blocking)
        if error is None:
            outcomes["succeeded"] += 1
            assert run.latest.progress.step == step + 1, where
        else:
            outcomes["failed"] += 1
            check_refusal(error, run.path)
            if "needed" in error.facts or disk.kind != "btrfs":  # where even the sign of life may not fit
                assert error.needed > size, where
                assert f"{error.needed:,}" in str(error) and f"{error.free:,}" in str(error), where
            assert visible(run.path) == there, where
            if disk.counts:
                spoken = str(error).startswith("No space for this checkpoint")  # before anything was written
                assert spoken == (manner == "checked"), where
                assert not spoken or error.free < level + 64 * KIB, where
                assert disk.free >= level - 8 * KIB, f"{where}: {disk.free:,} free after"
        left = os.listdir(run._training.session.writing)
        assert [name for name in left if not name.endswith(".link")] == [], where
        disk.empty()
        step += 2
        assert attempt(run, step, blocking=blocking) is None, where
        assert run.latest.progress.step == step and run.latest.verify() == [], where
    run.close()
    with holdfast.Run(run.path, keep=Keep(last=2)) as again:
        assert again.resume().step == step
        assert again.state["weights"].tobytes() == run.state["weights"].tobytes()
    assert debris(run.path) == []
    return outcomes


def levels(disk, cost, manner):
    """Every 64 KiB to beyond what is asked for; every 4 KiB where one small file after the other begins to fit."""
    if disk.kind == "btrfs":  # it counts in larger pieces
        return range(0, cost + 24 * 1024 * KIB, 1024 * KIB)
    if manner == "checked":
        return range(0, cost + 1216 * KIB, 64 * KIB)
    edge = cost // (4 * KIB) * (4 * KIB)
    around = range(max(0, edge - 64 * KIB), edge + 24 * KIB, 4 * KIB)
    # The last is room enough whatever a file system sets aside beside what the save before took (xfs does).
    return sorted({*range(0, cost + 64 * KIB, 64 * KIB), *around, cost + 2048 * KIB})


@pytest.mark.parametrize("size", [BUFFERED, DIRECT], ids=["buffered", "direct"])
@pytest.mark.parametrize("manner", MANNERS)
@pytest.mark.parametrize("kind", KINDS)
def test_save(kind, manner, size, tmp_path, tried, thorough):
    """A save at any fill level succeeds whole or fails with ENOSPC and leaves all as it was; with room, the next succeeds."""

    def body(ways, name):
        os.mkdir(tmp_path / name)
        return sweep(Disk(str(tmp_path / name), kind), size, manner, ways)

    found = []
    if thorough:
        found += [apart(lambda: body([True], "blocking")), apart(lambda: body([False], "background"))]
    else:
        found.append(apart(lambda: body([True, False], "both")))
    assert all(one["failed"] > 3 and one["succeeded"] > 0 for one in found), found
    tried("full", sum(one["failed"] for one in found))


# -- a full disk at every other place ----------------------------------------------------------------------


class Place:
    """Something that writes: what is there before, and what is done then, twice if the first time fails."""

    def prepare(self, folder):
        """Makes what is there before, with room."""

    def act(self, folder):
        raise NotImplementedError

    def check(self, folder):
        """What must be true once it was done with room."""


class FirstLaunch(Place):
    """A new run: its directories, the lease, run.json, the first save."""

    def act(self, folder):
        with holdfast.Run(f"{folder}/deep/run", keep=Keep(last=2), note="n") as run:
            weights(run, 8 * KIB)
            run.resume()
            run.save(step=run.progress.step + 1, metrics={"loss": 1.0})

    def check(self, folder):
        assert holdfast.open(f"{folder}/deep/run").progress.step >= 1


class NextLaunch(FirstLaunch):
    """A run that goes on, with retention: take the lease over, run.json, history, save, links, deletion."""

    def prepare(self, folder):
        for _ in range(3):
            self.act(folder)

    def check(self, folder):
        entries = catalog.scan(f"{folder}/deep/run")
        assert len(entries) == 2 and entries[-1].sequence >= 4
        assert os.readlink(f"{folder}/deep/run/latest") == str(entries[-1].name)


class TakeOver(NextLaunch):
    """A run whose holder was killed in a save: its draft and its trash are cleared away first."""

    def prepare(self, folder):
        super().prepare(folder)
        child = os.fork()
        if not child:
            run = holdfast.Run(f"{folder}/deep/run", keep=Keep(last=2))
            weights(run, 8 * KIB)
            run.resume()
            writing = run._training.session.writing
            os.mkdir(f"{writing}/000009_epoch-0000_step-00000009_20261123T083107Z")
            with open(f"{writing}/000009_epoch-0000_step-00000009_20261123T083107Z/state", "wb") as file:
                file.write(bytes(20 * KIB))
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(child, 0)


class Goal(Place):
    """A loop with a goal: the goal asked and the goal reached are written into run.json."""

    def act(self, folder):
        run = holdfast.Run(f"{folder}/run", every=Every(steps=1), keep=Keep(last=2))
        try:
            weights(run, 8 * KIB)
            for _ in run.steps(3):
                pass
        finally:
            run.close()

    def check(self, folder):
        assert catalog.book.read_run(f"{folder}/run").reached is not None


class Pins(Place):
    """A pin, and the marks of a rewind."""

    def prepare(self, folder):
        with holdfast.Run(f"{folder}/run", keep=Keep(last=4)) as run:
            run.resume()
            for step in (1, 2, 3):
                run.save(step=step, wait=True)

    def act(self, folder):
        holdfast.open(f"{folder}/run@seq=1").pin()
        rewind(f"{folder}/run", "@seq=2")

    def check(self, folder):
        assert len(os.listdir(f"{folder}/run/pins")) == 1
        assert holdfast.open(f"{folder}/run").sequence == 2


class Replace(Place):
    """`holdfast.save` onto a checkpoint that is there."""

    def prepare(self, folder):
        holdfast.save(f"{folder}/one", {"weights": np.ones(KIB), "step": 1})

    def act(self, folder):
        holdfast.save(f"{folder}/one", {"weights": np.ones(KIB) * 2, "step": 2})

    def check(self, folder):
        assert holdfast.open(f"{folder}/one").load()["weights"][0] == 2


class EntireModel(Place):
    """`holdfast.torch.save_model`, with its two more files."""

    def prepare(self, folder):
        import torch

        self.net = torch.nn.Linear(30, 30)

    def act(self, folder):
        import holdfast.torch

        holdfast.torch.save_model(self.net, f"{folder}/entire")

    def check(self, folder):
        assert holdfast.torch.load_model(f"{folder}/entire", trust=True).weight.shape == (30, 30)


class Export(EntireModel):
    """Exports to a file of torch and one of safetensors."""

    def prepare(self, folder):
        super().prepare(folder)
        holdfast.save(f"{folder}/one", {"model": self.net})

    def act(self, folder):
        from holdfast.exchange.exporting import export_file

        for suffix in ("pth", "safetensors"):
            export_file(f"{folder}/one", f"{folder}/out.{suffix}", overwrite=True)

    def check(self, folder):
        import torch

        assert torch.load(f"{folder}/out.pth", weights_only=True)["state_dict"]["weight"].shape == (30, 30)


PLACES = [FirstLaunch, NextLaunch, TakeOver, Goal, Pins, Replace, EntireModel, Export]


def fail_at(disk, place, number, fill):
    """One scenario with so much room; whether it failed."""
    folder = f"{disk.path}/{number}"
    os.mkdir(folder)
    place.prepare(folder)
    there = visible(folder)
    fill(number)
    error = None
    try:
        place.act(folder)
    except StorageError as caught:
        error = caught
        check_refusal(error, folder)
    now = visible(folder)
    kept = {path for path in there if now.get(path) == there[path]}
    if error is not None and not isinstance(place, NextLaunch | Goal):
        assert kept == set(there), "something that was there is gone"
    elif there and not isinstance(place, Replace):
        assert kept, "nothing that was there is left"
    disk.empty()
    place.act(folder)
    place.check(folder)
    assert debris(folder) == []
    visible(folder)
    shutil.rmtree(folder)
    return error is not None


@pytest.mark.parametrize("of", ["bytes", "files"])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_place(kind, place, of, tmp_path, tried):
    """Whatever is written when a disk has no more bytes or files fails with ENOSPC, keeps what was there, and works with room."""
    if issubclass(place, EntireModel):
        pytest.importorskip("torch")

    def body():
        options = {"options": "nr_inodes=400"} if kind == "tmpfs" else {"make": ["-N", "256"]}
        disk = Disk(str(tmp_path), kind, **options)
        fill = (lambda number: disk.fill(4 * KIB * number)) if of == "bytes" else disk.fill_inodes
        failed, whole, number = 0, 0, 0
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr(storage, "free_bytes", lambda path: 1 << 60)
            while whole < 3 and number < 60:  # three levels in a row at which it had room
                if fail_at(disk, place(), number, fill):
                    failed, whole = failed + 1, 0
                else:
                    whole += 1
                number += 1
        return failed, whole

    failed, whole = apart(body)
    assert failed >= 1
    assert whole == 3
    tried("full", failed)


# -- deletions on a full disk ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_retention_deletes(kind, tmp_path, tried):
    """A disk that is full to the last byte once a checkpoint is published: what the policy drops is deleted all the same."""

    def body():
        disk = Disk(str(tmp_path), kind)
        run, _ = begin(disk, BUFFERED)
        point_links = retention.point_links

        def full(*words):
            assert disk.fill(0) == 0
            point_links(*words)

        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr(retention, "point_links", full)
            run.save(step=3, wait=True)
        assert [checkpoint.progress.step for checkpoint in run.checkpoints] == [2, 3]
        assert disk.free >= BUFFERED - 8 * KIB
        run.close()
        visible(run.path)
        assert debris(run.path) == []

    apart(body)
    tried("full", 1)


@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_prune_makes_room(kind, tmp_path, tried):
    """`holdfast prune` makes room where three blocks are left for its lease; with less it says what to delete by hand."""

    def body():
        disk = Disk(str(tmp_path), kind)
        run, _ = begin(disk, BUFFERED)
        run.close()
        words = [
            os.path.join(os.path.dirname(sys.executable), "holdfast"),
            "prune",
            run.path,
            "--keep-last",
            "1",
            "--yes",
        ]
        refused = 0
        for blocks in range(4):
            assert len(visible(run.path)) == 2
            disk.fill(blocks * 4 * KIB)
            done = subprocess.run(words, capture_output=True, text=True, check=False)
            if done.returncode == 0:
                break
            refused += 1
            assert done.returncode == 10, done.stderr
            assert f"rm -r {run.path}/000001" in done.stderr, done.stderr
        assert done.returncode == 0, done.stderr
        assert len(visible(run.path)) == 1
        assert disk.free > BUFFERED
        return refused

    tried("full", apart(body) + 1)


# -- a disk that becomes read-only, or goes -----------------------------------------------------------------

SCRIPT = """
import sys
import time
import numpy as np
import holdfast
from holdfast import Every, Keep
run = holdfast.Run(sys.argv[1], every=Every(steps=1), keep=Keep(last=2))
run.state["weights"] = np.zeros(int(sys.argv[2]) // 8)
for step in run.steps(int(sys.argv[3])):
    time.sleep(0.01)
    run.state["weights"] += step
    print(step, flush=True)
print("done", flush=True)
"""


def start(path, size=BUFFERED, steps=1000):
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, path, str(size), str(steps)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_step(process, step):
    for line in process.stdout:
        if line.strip() == str(step):
            return


def check_exact(path):
    """What the training has summed up is what its progress says."""
    checkpoint = holdfast.open(path)
    step = checkpoint.progress.step
    assert set(checkpoint.load()["state"]["weights"]) == {float(sum(range(step)))}
    return step


def test_read_only_in_the_middle(tmp_path, tried):
    """A file system that an error made read-only ends the training with a StorageError; once repaired, it goes on."""

    def body():
        disk = Disk(str(tmp_path), "ext4", options="errors=remount-ro")
        process = start(f"{disk.path}/run")
        wait_for_step(process, 8)
        trigger = f"/sys/fs/ext4/{disk.device}/trigger_fs_error"
        if not os.path.exists(trigger):
            process.kill()
            raise MissingHere("this kernel cannot be told to make an ext4 read-only (trigger_fs_error)")
        with open(trigger, "w", encoding="ascii") as file:
            file.write("1")
        _, said = process.communicate(timeout=60)
        assert process.returncode not in (0, 75), said
        assert "StorageError" in said and "ead-only file system" in said, said
        visible(disk.path)
        disk.unmount()
        disk.check()
        disk.mount()
        visible(disk.path)
        before = check_exact(f"{disk.path}/run")
        process = start(f"{disk.path}/run", steps=before + 3)
        out, said = process.communicate(timeout=60)
        assert process.returncode == 0 and "done" in out, said
        assert check_exact(f"{disk.path}/run") == before + 3
        assert debris(disk.path) == []

    apart(body)
    tried("full", 1)


@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_read_only_at_the_launch(kind, tmp_path, tried):
    """A launch on a read-only file system is a StorageError that says so; readers read; mounted for writing, it goes on."""

    def body():
        disk = Disk(str(tmp_path), kind)
        run, _ = begin(disk, BUFFERED)
        run.close()
        there = visible(run.path)
        small_disks.run("mount", "-o", "remount,ro", disk.path)
        again = holdfast.Run(run.path)
        with pytest.raises(StorageError, match="mounted read-only") as caught:
            again.resume()
        assert caught.value.errno == errno.EROFS
        with pytest.raises(StorageError, match="mounted read-only"):
            holdfast.save(f"{disk.path}/one", {"a": np.ones(3)})
        assert visible(run.path) == there
        small_disks.run("mount", "-o", "remount,rw", disk.path)
        assert again.resume().step == 2
        again.save(step=3)
        again.close()
        assert debris(run.path) == []

    apart(body)
    tried("full", 2)


_NOBODY = 65534
_SHUTDOWN, _NO_LOG_FLUSH = 0x8004587D, 2  # EXT4_IOC_SHUTDOWN, XFS_IOC_GOINGDOWN


@pytest.mark.parametrize("size", [BUFFERED, DIRECT], ids=["buffered", "direct"])
@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_disk_gone(kind, size, tmp_path, tried, thorough):
    """A disk that goes, its journal unwritten: an error, and what was said to be durable is there when it comes back."""
    import fcntl

    chance = random.Random(f"{kind} {size}")

    def body():
        disk = Disk(str(tmp_path), kind, 1 << 30)
        times = 40 if thorough else 6
        for number in range(times):
            read, write = os.pipe()
            child = os.fork()
            if not child:
                os.close(read)
                _save_for_ever(f"{disk.path}/run", size, write, last=2 if number % 2 else 100)
            os.close(write)
            with os.fdopen(read, "rb") as pipe:
                durable = [pipe.readline() for _ in range(chance.randint(2, 4))]
                time.sleep(chance.choice([0, chance.uniform(0, 0.03)]))
                fd = os.open(disk.path, os.O_RDONLY)
                fcntl.ioctl(fd, _SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
                os.close(fd)
                durable += pipe.readlines()
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == StorageError.exit_code
            disk.unmount()
            disk.mount()
            visible(disk.path)
            assert check_exact(f"{disk.path}/run") >= int(durable[-1]), (
                f"time {number} of {kind}, {size:,} bytes"
            )
        with holdfast.Run(f"{disk.path}/run") as run:
            run.resume()
        assert debris(disk.path) == []
        return times

    tried("power", apart(body))


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_nothing_is_synced_to_a_disk_that_is_gone(kind, tmp_path, tried, monkeypatch):
    """A directory's names went with the journal of a disk that was shut down: its sync is an error, not a success.

    On XFS the system's own call answers that all is well.
    """
    import fcntl

    def body():
        disk = Disk(str(tmp_path), kind)
        here = f"{disk.path}/run"
        os.makedirs(f"{here}/before")
        sync_directory(here)
        os.sync()
        top, real = os.open(disk.path, os.O_RDONLY), os.fsync

        def fsync(fd):  # between the opening of the directory, which would fail, and its sync
            fcntl.ioctl(top, _SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
            real(fd)

        os.rename(f"{here}/before", f"{here}/after")
        monkeypatch.setattr(os, "fsync", fsync)
        with pytest.raises(StorageError) as caught:
            sync_directory(here)
        assert caught.value.errno == errno.EIO
        os.close(top)
        disk.unmount()
        disk.mount()
        assert os.listdir(here) == ["before"]

    apart(body)
    tried("power", 1)


def _save_for_ever(path, size, pipe, last):
    """Saves, and says what is durable, until the storage refuses."""
    try:
        run = holdfast.Run(path, keep=Keep(last=last))
        run.state["weights"] = np.zeros(size // 8)
        run.resume()
        for step in range(run.progress.step, 1 << 30):
            run.state["weights"] += step
            run.save(step=step + 1, wait=True)
            os.write(pipe, b"%d\n" % (step + 1))
            time.sleep(0.004)  # whose sync makes durable what this save left to chance
    except StorageError as error:
        os._exit(error.exit_code)
    except BaseException:
        traceback.print_exc()
    os._exit(1)


# -- limits that the free space does not show ----------------------------------------------------------------


def test_thin_volume(tmp_path, tried):
    """A volume that promises more than its host has: the sync fails, and what was durable is whole afterwards."""

    def body():
        failed = 0
        for number, level in enumerate([0, 64 * KIB, 256 * KIB, 1024 * KIB, 3000 * KIB]):
            place = str(tmp_path / str(number))
            os.mkdir(place)
            host = Disk(place, "tmpfs", 24 << 20)
            disk = Disk(host.path, "ext4", 128 << 20)
            run, _ = begin(disk, DIRECT)
            host.fill(level)
            errors = [attempt(run, 3, blocking=True), attempt(run, 4, blocking=False)]
            with contextlib.suppress(StorageError):
                run.close()
            failed += sum(isinstance(error, StorageError) for error in errors)
            host.empty()
            disk.unmount()
            disk.check()
            disk.mount()
            visible(run.path)
            durable = 4 if errors[1] is None else 3 if errors[0] is None else 2
            assert holdfast.open(run.path).progress.step >= durable
            with holdfast.Run(run.path, keep=Keep(last=2)) as again:
                assert again.resume().step >= 2
                again.save(step=9, wait=True)
            assert debris(run.path) == []
            disk.unmount()
            host.unmount()
        return failed

    failed = apart(body)
    assert failed >= 3
    tried("full", failed)


def test_reserved_blocks(tmp_path, tried):
    """Blocks that are reserved for root are not free for anybody else, and the figures say so."""

    def body():
        disk = Disk(str(tmp_path), "ext4", make=["-m", "30"])
        run, _ = begin(disk, DIRECT)
        run.close()
        for folder, names, files in os.walk(disk.path):
            for name in [".", *names, *files]:
                os.lchown(os.path.join(folder, name), _NOBODY, _NOBODY)
        for folder in (tmp_path, *tmp_path.parents[:3]):
            os.chmod(folder, 0o755)
        os.setgid(_NOBODY)
        os.setuid(_NOBODY)
        step, run = 2, holdfast.Run(run.path, keep=Keep(last=100))
        run.resume()
        error = None
        while error is None and step < 20:
            step += 1
            there = visible(run.path)
            error = attempt(run, step, blocking=True)
        check_refusal(error, run.path)
        room = os.statvfs(disk.path)
        assert error.free == room.f_bavail * room.f_frsize < error.needed < room.f_bfree * room.f_frsize
        assert visible(run.path) == there
        run.close()

    apart(body)
    tried("full", 1)


def test_quota(tmp_path, tried):
    """A quota that ends in the middle of a save is an error that speaks of a quota; what was there stays."""

    def body():
        disk = Disk(str(tmp_path), "btrfs")
        small_disks.run("btrfs", "quota", "enable", disk.path)
        small_disks.run("btrfs", "subvolume", "create", f"{disk.path}/limited")
        small_disks.run("btrfs", "qgroup", "limit", "16M", f"{disk.path}/limited")
        run = holdfast.Run(f"{disk.path}/limited/run", keep=Keep(last=100))
        weights(run, DIRECT)
        run.resume()
        step, error = 0, None
        while error is None and step < 20:
            step += 1
            there = visible(run.path)
            error = attempt(run, step, blocking=step % 2 == 0)
        check_refusal(error, run.path)
        assert error.errno == errno.EDQUOT
        assert visible(run.path) == there
        small_disks.run("btrfs", "qgroup", "limit", "none", f"{disk.path}/limited")
        assert attempt(run, step + 1, blocking=True) is None
        run.close()
        assert debris(run.path) == []

    apart(body)
    tried("full", 1)


# -- as a user sees it -----------------------------------------------------------------------------------------


def test_script_on_a_small_disk(tmp_path, tried):
    """A script on 4 MB ends with one error that says what was needed, what is free, where and what helps; then goes on."""

    def body():
        disk = Disk(str(tmp_path), "tmpfs", 4 << 20)
        process = start(f"{disk.path}/run", 1200 * KIB, 9)
        out, said = process.communicate(timeout=60)
        assert process.returncode == 1
        last = said.strip().splitlines()[-1]
        assert last.startswith("holdfast.errors.StorageError: No space for this checkpoint in "), said
        assert f"{disk.path}/run" in last and "bytes are free" not in out
        assert (
            " needs " in last and " are free" in last and "Keep(last=1)" in last and "holdfast prune" in last
        )
        assert said.count("Traceback") == 1, said
        assert "Newest: 00000" in said, said
        before = check_exact(f"{disk.path}/run")
        assert debris(disk.path) == []
        small_disks.run("mount", "-o", "remount,size=8m", disk.path)
        process = start(f"{disk.path}/run", 1200 * KIB, before + 4)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said
        assert check_exact(f"{disk.path}/run") == before + 4
        return said

    apart(body)
    tried("full", 1)
