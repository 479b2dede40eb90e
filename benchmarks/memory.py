"""How much memory this process takes, and the most that it took since a moment."""

from __future__ import annotations

import gc
import resource
import sys
import time
from collections.abc import Callable


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


def measured(act: Callable[[], object]) -> tuple[float, int]:
    """Seconds of one call, and the bytes by which memory grew above what was there before, at most."""
    gc.collect()
    _reset_peak()
    before = _status("VmRSS")
    started = time.perf_counter()
    result = act()
    seconds = time.perf_counter() - started
    extra = max(0, _status("VmHWM") - before)
    del result
    return seconds, extra
