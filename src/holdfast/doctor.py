"""What decides whether and how fast trainings are saved here: versions, storage, cost, Slurm.

Nothing is imported that was not installed for Holdfast itself: a framework's version is read
from its package's metadata.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import time

from holdfast import files, open_files
from holdfast.cost import SUGGESTED, Choice, SaveCost, choices, save_cost, suggested_interval, used_every
from holdfast.durations import about
from holdfast.errors import NotFoundError, UsageError
from holdfast.storage import file_system_type, free_bytes, refuse_object_store
from holdfast.store import book, catalog, quota, sources
from holdfast.store.lease import holder_of

TEST_BYTES = 256 << 20
TEST_FILE = ".doctor-"
"""How the name of the test file begins; what a killed examination left is removed by `prune`."""

_PACKAGES = ("holdfast", "numpy", "xxhash", "msgspec", "torch")
_BLOCK = 16 << 20
_VOLATILE = ("tmpfs", "ramfs")


@dataclasses.dataclass(frozen=True)
class Storage:
    """The file system under a directory; bytes, and bytes per second.

    Attributes:
        path: the existing directory that was examined.
        type: such as ``ext4``; ``unknown`` where the system does not tell.
        directory_sync, direct_io: whether they work there; None when it may not be written.
        free, total: bytes.
        quota: what the user's quota leaves, None where there is none or it cannot be known.
        write_bytes, write_seconds: the durable test write; None when it was not made.

    """

    path: str
    type: str
    directory_sync: bool | None
    direct_io: bool | None
    free: int
    total: int
    quota: quota.Quota | None
    write_bytes: int | None = None
    write_seconds: float | None = None

    @property
    def write_speed(self) -> float | None:
        """Bytes per second of the durable test write."""
        return self.write_bytes / self.write_seconds if self.write_bytes and self.write_seconds else None


@dataclasses.dataclass(frozen=True)
class Report:
    """Everything that `examine` found."""

    versions: dict[str, str | None]
    system: str
    cores: int
    storage: Storage
    run: str | None
    holder: str | None
    cost: SaveCost | None
    intervals: list[Choice]
    slurm: dict[str, str]
    suggestions: list[str]


def examine(directory: str | os.PathLike[str], *, write: bool = True) -> Report:
    """Examines a run's directory, or any other.

    Args:
        directory: need not exist yet: then the nearest existing parent is examined.
        write: whether to make the test write: up to 256 MiB, at most a tenth of what is free;
            it is removed at once.

    Raises:
        StorageError: the directory can be neither looked at nor, with `write`, written.

    """
    place = sources.local(directory, "holdfast doctor")
    is_run = catalog.is_run(place)
    existing = place
    while not os.path.isdir(existing):
        if os.path.exists(existing):
            raise NotFoundError(f"{existing} is a file; name a directory.", path=existing, candidates=[])
        existing = os.path.dirname(existing)
    storage = _storage(existing, write=write)
    events = book.read_events(place) if is_run else []
    cost = save_cost(events)
    intervals = choices(cost, used_every(events)) if cost is not None else []
    slurm = _slurm()
    holder = holder_of(place) if is_run else None
    return Report(
        versions=_versions(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        storage=storage,
        run=place if is_run else None,
        holder=holder.describe() if holder is not None and not holder.released else None,
        cost=cost,
        intervals=intervals,
        slurm=slurm,
        suggestions=_suggestions(storage, cost, intervals),
    )


def _versions() -> dict[str, str | None]:
    from importlib import metadata

    found: dict[str, str | None] = {"holdfast": None, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    if found["holdfast"] is None:  # run from a source tree
        from holdfast import __version__

        found["holdfast"] = __version__
    return found


# -- storage -----------------------------------------------------------------------------------


def _storage(path: str, *, write: bool) -> Storage:
    with files.translated(path, "look at"):
        room = os.statvfs(path)
    writable = os.access(path, os.W_OK | os.X_OK)
    direct = open_files.direct_io_works(path) if writable and write else None
    storage = Storage(
        path=path,
        type=file_system_type(path),
        directory_sync=files.sync_directory(path) if os.access(path, os.R_OK) else None,
        direct_io=direct,
        free=room.f_bavail * room.f_frsize,
        total=room.f_blocks * room.f_frsize,
        quota=quota.of_user(path),
    )
    if not write:
        return storage
    count = (
        min(TEST_BYTES, free_bytes(path) // 10) // open_files.DIRECT_ALIGNMENT * open_files.DIRECT_ALIGNMENT
    )
    if storage.quota is not None and storage.quota.left is not None:
        count = (
            min(count, storage.quota.left // 10) // open_files.DIRECT_ALIGNMENT * open_files.DIRECT_ALIGNMENT
        )
    if count <= 0:
        return storage
    return dataclasses.replace(
        storage, write_bytes=count, write_seconds=_time_write(path, count, direct=bool(direct))
    )


def _time_write(directory: str, count: int, *, direct: bool) -> float:
    """Seconds of one durable write of `count` bytes by one thread; the file is gone afterwards."""
    import mmap

    path = os.path.join(directory, f"{TEST_FILE}{os.getpid()}")
    with mmap.mmap(-1, _BLOCK) as block, memoryview(block) as view:
        view[:] = os.urandom(_BLOCK)  # a file system that compresses gains nothing
        started = time.perf_counter()
        try:
            file = open_files.PayloadFile(path, count, direct=direct)
            try:
                for offset in range(0, count, _BLOCK):
                    with view[: min(_BLOCK, count - offset)] as piece:
                        file.write(piece, offset)
                file.finish()
            finally:
                file.close()
            return max(time.perf_counter() - started, 1e-9)
        finally:
            files.remove_file(path)


# -- advice ---------------------------------------------------------------------------


def _suggestions(storage: Storage, cost: SaveCost | None, intervals: list[Choice]) -> list[str]:
    said = []
    if storage.type in _VOLATILE:
        said.append(f"{storage.path} is memory ({storage.type}): checkpoints there do not survive a reboot.")
    try:
        refuse_object_store(storage.path)
    except UsageError as error:
        said.append(str(error))
    if storage.directory_sync is False:
        said.append(
            "This file system has no call that makes new names durable: a checkpoint that was just published "
            "may be missing after a power loss; older ones are not in danger."
        )
    left = storage.free
    if storage.quota is not None and storage.quota.left is not None:
        left = min(left, storage.quota.left)
    if cost is not None:
        if not any(choice.used for choice in intervals):
            seconds = suggested_interval(cost)
            said.append(
                f"A save costs the training {cost.cost_seconds:.2g} s. With every={SUGGESTED} it would be saved every "
                f"{about(seconds)}, for {100 * cost.cost_seconds / seconds:.2g} % of its time; a kill then costs at "
                f"most that much work."
            )
        if left < 3 * cost.bytes:
            said.append(
                f"Only {left:,} bytes are left here, and a checkpoint takes {cost.bytes:,}: free some space, or keep "
                f"fewer (`holdfast prune`, keep=Keep(last=1))."
            )
    elif storage.write_speed is not None:
        gigabyte = 1e9 / storage.write_speed
        said.append(
            f"Writing 1 GB durably takes about {gigabyte:.2g} s here; Holdfast writes behind the training, so "
            f"Every(minutes=10) is a good start, and {SUGGESTED} finds out by itself. After some saves, "
            f"`holdfast doctor RUN` knows their real cost."
        )
    return said


# -- Slurm -------------------------------------------------------------------------------------


def _slurm() -> dict[str, str]:
    """What this process sees of Slurm: the job's variables, and where sbatch is; empty without."""
    import shutil

    found = {
        name.removeprefix("SLURM_").lower(): os.environ[name]
        for name in (
            "SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_RESTART_COUNT",
            "SLURM_JOB_PARTITION", "SLURM_JOB_END_TIME", "SLURM_NTASKS",
        )
        if name in os.environ
    }  # fmt: skip
    sbatch = shutil.which("sbatch")
    if sbatch is not None:
        found["sbatch"] = sbatch
    return found
