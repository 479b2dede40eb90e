"""What kind of storage a path lies on, and how much room it has. Looks only; changes nothing by itself."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable
from typing import TypeVar

from holdfast import files
from holdfast.errors import StorageError, UsageError
from holdfast.files import Path

_T = TypeVar("_T")
_OVERHEAD = 1 << 20  # for directories and small files


def free_bytes(path: Path) -> int:
    """Bytes that this user may still write on the file system of `path` (quotas not counted)."""
    with files.translated(path, "look at"):
        room = os.statvfs(path)
    return room.f_bavail * room.f_frsize


def check_space(path: Path, needed: int) -> None:
    """Speaks before a write that cannot fit: `StorageError` with both figures."""
    free = free_bytes(path)
    if free < needed:
        raise StorageError(
            f"No space for this checkpoint in {os.fspath(path)}: it needs {needed:,} bytes and "
            f"{free:,} are free. Free some, keep fewer checkpoints (keep=Keep(last=1)), or see "
            f"`holdfast prune`.",
            errno=errno.ENOSPC,
            path=os.fspath(path),
            operation="write",
            needed=needed,
            free=free,
        )


def check_room(path: str, needed: int, verb: str) -> None:
    """Speaks before checkpoints are copied that cannot fit in a directory, which may still have to be made."""
    existing = os.path.abspath(path)
    while not os.path.isdir(existing) and existing != os.path.dirname(existing):
        existing = os.path.dirname(existing)
    free = free_bytes(existing)
    if free < needed + _OVERHEAD:
        raise StorageError(
            f"There is no room in {path} for the checkpoints to {verb}: they need {needed:,} bytes and {free:,} are free. "
            f"Nothing was copied. Next: free some there, or {verb} fewer (--only newest, --only best).",
            errno=errno.ENOSPC,
            path=path,
            operation="write",
            needed=needed,
            free=free,
        )


class Room:
    """Room that can be made on a full disk, in the middle of a write, by deleting what can be spared. Thread-safe.

    Args:
        spare: deletes something; False where nothing is left to be spared.

    """

    def __init__(self, spare: Callable[[], bool]) -> None:
        self._spare = spare
        self._lock = threading.Lock()
        self._made = 0

    def write(self, act: Callable[[], _T]) -> _T:
        """What `act` gives; where the disk is full it is done again with more room, as long as there is some to make.

        Raises:
            StorageError: that of the last attempt.

        """
        while True:
            before = self._made
            try:
                return act()
            except StorageError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                with self._lock:
                    if self._made == before:  # else another thread has made room meanwhile
                        if not self._spare():
                            raise
                        self._made += 1


NO_ROOM = Room(lambda: False)
"""Nothing can be spared."""


def out_of_files(path: Path) -> bool:
    """Whether the file system of `path` can hold no more files, however much room it has."""
    try:
        room = os.statvfs(path)
    except OSError:  # asked about a failure, which is what counts
        return False
    return room.f_files > 0 and room.f_favail == 0


def explain(error: StorageError, path: Path, needed: int, *, out_of_files: bool) -> StorageError:
    """An error of a write that did not fit, with what was needed and what is free; any other as it is."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT) or "needed" in error.facts:
        return error
    try:
        free = free_bytes(path)
    except StorageError:
        return error
    if out_of_files:
        why = f"{free:,} are free, but no more files can be made there (`df -i` shows how many there are)"
    else:
        why = f"{free:,} are free on that file system now"
    facts = {**error.facts, "needed": needed, "free": free}
    return StorageError(f"{error} The checkpoint needs {needed:,} bytes; {why}.", **facts)


_OBJECT_STORES = ("s3fs", "gcsfuse", "mountpoint-s3", "goofys", "geesefs", "rclone", "blobfuse", "blobfuse2")


def file_system_type(path: Path) -> str:
    """The type of the file system that holds `path` (``ext4``, ``fuse.gcsfuse``), or ``unknown``."""
    path = os.path.realpath(path)
    best, kind = "", "unknown"
    with (
        contextlib.suppress(OSError),
        open("/proc/self/mounts", encoding="utf-8", errors="replace") as mounts,
    ):
        for line in mounts:
            device, point, fstype = line.split()[:3]
            point = point.encode().decode("unicode_escape")
            inside = path == point or path.startswith(point.rstrip("/") + "/")
            if inside and len(point) >= len(best):
                best, kind = point, f"{fstype}:{device}" if fstype == "fuse" else fstype
    return kind


def refuse_object_store(path: Path) -> None:
    """A bucket mounted as a folder has no atomic rename: no run can live there."""
    existing = os.path.abspath(path)
    while not os.path.exists(existing):
        existing = os.path.dirname(existing)
    kind = file_system_type(existing)
    if kind.startswith("fuse") and any(name in kind for name in _OBJECT_STORES):
        raise UsageError(
            f"{os.fspath(path)} lies in an object store that is mounted as a folder ({kind}); it has no "
            f"atomic rename, so no checkpoint would be safe. Put the run on a local or a network file "
            f"system.",
            path=os.fspath(path),
            found=kind,
        )
