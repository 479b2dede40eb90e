"""How much memory this process takes, and the most that it took since a moment."""

from __future__ import annotations

import gc
import resource
import sys
import time
from collections.abc import Callable

import psutil


def reset_peak() -> None:
    """Begins to count the peak anew, where the system can (Linux)."""
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")
    except OSError:  # then the peak counts since the process began: an upper bound
        return


def peak() -> int:
    """The most bytes that were resident at once since `reset_peak`."""
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            for line in file:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def measured(act: Callable[[], object]) -> tuple[float, int]:
    """Seconds of one call, and the bytes by which memory grew above what was there before, at most."""
    gc.collect()
    reset_peak()
    before = psutil.Process().memory_info().rss
    started = time.perf_counter()
    result = act()
    seconds = time.perf_counter() - started
    extra = max(0, peak() - before)
    del result
    return seconds, extra
