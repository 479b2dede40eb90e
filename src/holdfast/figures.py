"""Figures for people: sizes and durations, in as many digits as say something."""

from __future__ import annotations


def size(count: float) -> str:
    """Bytes in three digits: ``130 kB``, ``1.54 GB``."""
    value = float(count)
    if value < 1000:
        return f"{value:.0f} B"
    for unit in ("kB", "MB", "GB", "TB"):
        value /= 1000
        if value < 999.5 or unit == "TB":
            break
    return f"{value:.0f} {unit}" if value >= 99.5 else f"{value:.3g} {unit}"


def seconds(value: float) -> str:
    """A duration: ``0.014 s``, ``90 s``, ``12 min``."""
    if value < 100:
        return f"{value:.2g} s" if value < 10 else f"{value:.0f} s"
    return f"{value / 60:.0f} min" if value < 6000 else f"{value / 3600:.1f} h"
