"""Every error that Holdfast raises, in one tree; each class has an exit code of its own.

    HoldfastError                    1
    ├── UsageError (ValueError)      2   the call or the state is wrong
    ├── CheckpointError              3
    │   ├── NotFoundError            4   (also a FileNotFoundError)
    │   ├── DamagedError             5   bytes are not what was written
    │   ├── FormatError              6   not a checkpoint, or a newer format
    │   ├── MismatchError            7   whole, but does not fit its target
    │   ├── UntrustedError           8   would run code; needs trust=True
    │   └── ProbeError               9   the restored model answers differently
    ├── StorageError (OSError)      10   no space, quota, permission, I/O
    ├── LeaseError                  11   somebody else writes this run
    ├── RehearsalError              12   a command that is rehearsed failed by itself
    └── SlurmError                  13   one of Slurm's commands failed, or did not answer

`Preempted` is no error: it is a `SystemExit` with code 75 (EX_TEMPFAIL), raised after the
checkpoint that a SIGTERM or SIGUSR1 asked for is durable.

A message says where, what was expected, what was found, and what to do next. Each error also
carries its facts as attributes, so that a script need not parse the message.
"""

from __future__ import annotations

import errno
import itertools
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

# A name or a note in a checkpoint may come from anybody; these steer a terminal, or cannot be printed.
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
_LONGEST = 20_000
_NEAR_LENGTH, _NEAR_NUMBER = 200, 5000


def printable(text: str) -> str:
    """Text in which control characters are spelled out by their codes; line breaks and tabs stay."""
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def _bounded(message: str) -> str:
    if len(message) > _LONGEST:
        half = _LONGEST // 2 - 50
        message = f"{message[:half]} … ({len(message):,} characters) … {message[-half:]}"
    return printable(message)


class HoldfastError(Exception):
    """The root of the tree. `facts` are the values that the message was made from.

    A message never holds control characters; a very long one is cut in the middle.
    """

    exit_code = 1

    def __init__(self, message: str, **facts: Any) -> None:
        self.message = _bounded(message)
        super().__init__(self.message)
        self.facts: Mapping[str, Any] = facts

    def __str__(self) -> str:
        return self.message

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "facts":
            raise AttributeError(name)
        try:
            return self.facts[name]
        except KeyError:
            raise AttributeError(f"{type(self).__name__} carries no {name!r}") from None

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.message, dict(self.facts)))


def _rebuild(kind: type[HoldfastError], message: str, facts: dict[str, Any]) -> HoldfastError:
    return kind(message, **facts)


class UsageError(HoldfastError, ValueError):
    """The call, or the state that was handed over, is wrong. Nothing was changed."""

    exit_code = 2


class CheckpointError(HoldfastError):
    """Something is the matter with a checkpoint."""

    exit_code = 3


class NotFoundError(CheckpointError, FileNotFoundError):
    """There is no such run or checkpoint; the message lists what is there."""

    exit_code = 4

    def __init__(self, message: str, **facts: Any) -> None:
        HoldfastError.__init__(self, message, **facts)
        self.errno = errno.ENOENT
        self.filename = facts.get("path")


class DamagedError(CheckpointError):
    """Bytes on disk are not those that were written.

    Facts: `path` (the checkpoint), `file`, `block` (number or None), `arrays` (names),
    `expected` and `found` (digests or sizes), `target_changed` (True when live objects were
    already partly overwritten).
    """

    exit_code = 5

    @property
    def target_changed(self) -> bool:
        return bool(self.facts.get("target_changed", False))

    def changed_target(self) -> DamagedError:
        """The same error, saying that live objects were already partly overwritten."""
        facts = {**self.facts, "target_changed": True, "brief": self.message}
        return DamagedError(
            self.message + " The objects being restored were already partly overwritten: do not use them.",
            **facts,
        )


class FormatError(CheckpointError):
    """Not a Holdfast checkpoint, or one of a newer format, or one that no Holdfast wrote."""

    exit_code = 6


class MismatchError(CheckpointError):
    """A whole checkpoint that does not fit. Facts: `missing`, `unexpected`, `different`."""

    exit_code = 7


class UntrustedError(CheckpointError):
    """Opening this would run code that it brings; nothing was run."""

    exit_code = 8


class ProbeError(CheckpointError):
    """The restored model does not answer its probe as the saved one did."""

    exit_code = 9


class StorageError(HoldfastError, OSError):
    """The storage refused: no space, quota, permission, an I/O error.

    `errno` is the system's error number where there is one. Facts: `path`, `operation`.
    """

    exit_code = 10

    def __init__(self, message: str, **facts: Any) -> None:
        HoldfastError.__init__(self, message, **facts)
        self.errno = facts.get("errno")


class LeaseError(HoldfastError):
    """Another process holds the right to write this run. Fact: `holder`."""

    exit_code = 11


class RehearsalError(HoldfastError):
    """A command that is rehearsed failed by itself. Facts: `code` (its exit code), `log`, `launch`."""

    exit_code = 12


class SlurmError(HoldfastError):
    """One of Slurm's commands failed or did not answer. Facts: `command`, `code`, `said`, `missing`."""

    exit_code = 13


class Preempted(SystemExit):
    """The process was asked to end (SIGTERM, SIGUSR1) and its place is safe on disk."""

    def __init__(self, message: str = "", exit_code: int = 75) -> None:
        super().__init__(exit_code)
        self.message = message

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.message, self.code))


_ADVICE = {
    errno.ENOSPC: "Free some space, or keep fewer checkpoints (keep=Keep(last=1), `holdfast prune`).",
    errno.EDQUOT: "Your quota is used up (df may still show space). Free some, or write elsewhere.",
    errno.EACCES: "Check the owner and the permissions.",
    errno.EPERM: "Check the owner and the permissions.",
    errno.EROFS: "The file system is mounted read-only.",
    errno.EIO: "The device reports an I/O error; look at the system's log, and write elsewhere.",
    errno.ESTALE: "The network file system lost the file; check the mount.",
}


def storage_error(error: OSError, path: str | os.PathLike[str], operation: str) -> StorageError:
    """A `StorageError` that says what the system refused, where, and what helps."""
    reason = error.strerror or str(error)
    advice = _ADVICE.get(error.errno or 0, "")
    message = f"Cannot {operation} {os.fspath(path)}: {reason}.{' ' + advice if advice else ''}"
    return StorageError(message, errno=error.errno, path=os.fspath(path), operation=operation)


def nearest(name: str, candidates: Iterable[str]) -> str:
    """Words like ``did you mean 'val_accuracy'?``, or nothing when nothing is near."""
    import difflib

    if len(name) > _NEAR_LENGTH:
        return ""
    # Each comparison takes a moment, and names that a checkpoint holds may be many and long.
    short = (candidate for candidate in candidates if len(candidate) <= _NEAR_LENGTH)
    found = difflib.get_close_matches(name, list(itertools.islice(short, _NEAR_NUMBER)), n=1, cutoff=0.5)
    return f"did you mean {found[0]!r}?" if found else ""
