"""What kind of storage a path lies on, and how much room it has. Looks only; changes nothing."""

from __future__ import annotations

import contextlib
import errno
import os

from holdfast import files
from holdfast.errors import StorageError, UsageError
from holdfast.files import Path


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
