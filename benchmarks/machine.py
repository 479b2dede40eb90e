"""The facts about the machine that a table of timings needs beside it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from datetime import UTC, datetime

from benchmarks.limits import cores, disk_thread_counts, thread_counts
from holdfast import storage


def facts(place: str) -> dict[str, str]:
    """Name → text, in the order in which they are shown."""
    versions = ("holdfast", "torch", "torch_checkpointing", "safetensors", "numpy", "xxhash")
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": f"{cores()} cores, {_processor()}",
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB",
        "file system": storage.file_system_type(place),
        "system": f"{platform.system()} {platform.release()}",
        "versions": ", ".join(
            [f"Python {platform.python_version()}"] + [f"{name} {_version(name)}" for name in versions]
        ),
        "threads tried for the limits": f"{_listed(thread_counts())}; with the disk {_listed(disk_thread_counts())}",
    }


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _listed(counts: list[int]) -> str:
    return ", ".join(map(str, counts))


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
