"""What a user's quota leaves on a file system, asked of the system's own tools where they are."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess

from holdfast import storage

_SECONDS = 5  # a quota server may be down; nothing here is worth waiting for
_KIB = 1024


@dataclasses.dataclass(frozen=True)
class Quota:
    """Bytes used, and the limit (the hard one where there is one); None for no limit."""

    used: int
    limit: int | None

    @property
    def left(self) -> int | None:
        """Bytes that may still be written; None without a limit."""
        return None if self.limit is None else max(0, self.limit - self.used)


def of_user(path: str) -> Quota | None:
    """The quota of the current user where `path` lies; None where there is none or nobody can tell."""
    kind = storage.file_system_type(path)
    if kind == "lustre":
        return parse(_ask("lfs", "quota", "-q", "-u", str(os.getuid()), path))
    device = _device(path)
    if device is None:
        return None
    text = _ask("quota", "-w", "-p")
    lines = [line for line in text.splitlines() if line.split()[:1] == [device]]
    return parse("\n".join(lines))


def parse(text: str) -> Quota | None:
    """The first line with figures: file system, blocks used, quota, limit, in KiB; ``*`` marks an excess."""
    for line in text.splitlines():
        figures = [word.strip("*[]") for word in line.split()[1:4]]
        if len(figures) == 3 and all(figure.isdigit() for figure in figures):
            used, soft, hard = (int(figure) * _KIB for figure in figures)
            limit = hard or soft
            return Quota(used, limit) if limit else None
    return None


def _ask(*words: str) -> str:
    """What a tool prints; nothing when it is not there, fails or does not answer."""
    if shutil.which(words[0]) is None:
        return ""
    try:
        done = subprocess.run(  # noqa: S603 (a fixed command of the system)
            words,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout


def _device(path: str) -> str | None:
    """What is mounted where `path` lies, as /proc/self/mounts names it."""
    path = os.path.realpath(path)
    best, found = "", None
    try:
        with open("/proc/self/mounts", encoding="utf-8", errors="replace") as mounts:
            lines = mounts.readlines()
    except OSError:
        return None
    for line in lines:
        device, point = line.split()[:2]
        if (path == point or path.startswith(point.rstrip("/") + "/")) and len(point) >= len(best):
            best, found = point, device
    return found
