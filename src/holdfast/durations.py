"""Durations as people say them."""

from __future__ import annotations

_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def about(seconds: float) -> str:
    """In one unit: ``0.014 s``, ``2.9 s``, ``58 s``, ``12 min``, ``3.5 h``, ``2.1 d``. What is negative is none."""
    if seconds < 10:
        return f"{seconds:.2g} s" if seconds >= 0.0001 else "0 s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    for unit, length, figures, limit in (("min", _MINUTE, 0, 120), ("h", _HOUR, 1, 48)):
        if round(seconds / length) < limit:
            return f"{seconds / length:.{figures}f} {unit}"
    return f"{seconds / _DAY:.1f} d"


def exact(seconds: float) -> str:
    """In two units where one would say too little: ``0.014 s``, ``58 s``, ``9 min 58 s``, ``23 h 59 min``."""
    whole = round(seconds)
    if whole < 120:
        return about(seconds)
    if whole < 2 * _HOUR:
        return f"{whole // _MINUTE} min {whole % _MINUTE} s"
    return f"{whole // _HOUR} h {whole % _HOUR // _MINUTE} min"
