"""How much memory this process takes, and the most that it took since a moment."""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import sys
import threading
import time
from collections.abc import Callable

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # malloc.h


def _status(field: str) -> int:
    """Bytes of a field of Linux's account of this process; elsewhere the highest use so far."""
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            for line in file:
                if line.startswith(f"{field}:"):
                    return int(line.split()[1]) * 1024
    except FileNotFoundError:
        pass
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _reset_peak() -> None:
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")
    except OSError:  # then the peak counts from the start of the process: an upper bound
        return


def keep_freed() -> None:
    """Lets this process keep the memory that it frees, for its next arrays; where the C library can (glibc).

    As it comes, it is chance whether the gradients of each step get new pages from the system, which
    makes a step a fifth longer or shorter: more than what is looked for.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)


class Peak:
    """The most by which this process's memory grew since this was made."""

    def __init__(self) -> None:
        gc.collect()
        _reset_peak()
        self._before = _status("VmRSS")

    def extra(self) -> int:
        return max(0, _status("VmHWM") - self._before)


def measured(act: Callable[[], object]) -> tuple[float, int]:
    """Seconds of one call, and the bytes by which memory grew above what was there before, at most."""
    peak = Peak()
    started = time.perf_counter()
    result = act()
    seconds = time.perf_counter() - started
    extra = peak.extra()
    del result
    return seconds, extra


def inventory() -> dict[str, int]:
    """What this process holds now: bytes of memory, open descriptors, threads."""
    gc.collect()
    descriptors = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"
    tasks = "/proc/self/task"
    return {
        "memory": _status("VmRSS"),
        "descriptors": len(os.listdir(descriptors)),
        "threads": len(os.listdir(tasks)) if os.path.isdir(tasks) else threading.active_count(),
    }
