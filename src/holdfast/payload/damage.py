"""The errors of reading: what is wrong, where, which arrays it touches, and the next command."""

from __future__ import annotations

import os
from typing import Any

from holdfast.errors import DamagedError, HoldfastError, NotFoundError
from holdfast.payload.source import Readable

_NAMED = 5  # arrays in a message; the fact `arrays` has all


def damaged(
    directory: str,
    file: str,
    what: str,
    *,
    block: int | None = None,
    arrays: list[str] | None = None,
    expected: Any = None,
    found: Any = None,
) -> DamagedError:
    """An error about one file: `what` completes the sentence that begins with its path."""
    held = f" It holds {_listed(arrays)}." if arrays else ""
    return DamagedError(
        f"{os.path.join(directory, file)} {what}.{held} Next: `holdfast verify {directory}`.",
        path=directory,
        file=file,
        block=block,
        arrays=arrays or [],
        expected=expected,
        found=found,
        target_changed=False,
    )


def wrong_size(directory: str, file: str, expected: int, found: int) -> DamagedError:
    kind = "shorter" if found < expected else "longer"
    what = f"is {kind} than it was written: expected {expected:,} bytes, found {found:,}"
    return damaged(directory, file, what, expected=expected, found=found)


def missing(source: Readable, file: str, expected: int) -> HoldfastError:
    """A file is not there: damage, unless the whole checkpoint is gone."""
    if not source.exists():
        return gone(source.path)
    return damaged(source.path, file, "is missing", expected=expected)


def gone(directory: str) -> NotFoundError:
    return NotFoundError(
        f"{directory} was deleted while it was being read. Next: ask for the newest one again.",
        path=directory,
    )


def after_change(error: HoldfastError) -> HoldfastError:
    """The same error, saying that destinations were already partly overwritten."""
    if isinstance(error, DamagedError):
        return error.changed_target()
    return type(error)(
        f"{error.message} The objects being restored were already partly overwritten: do not use them.",
        **{**error.facts, "target_changed": True},
    )


def _listed(arrays: list[str]) -> str:
    more = len(arrays) - _NAMED
    return ", ".join(arrays[:_NAMED]) + (f" and {more:,} more arrays" if more > 0 else "")
