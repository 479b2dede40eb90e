"""The shell between Slurm and a training: whether Slurm's signals get through it.

On clusters that keep processes in cgroups Slurm signals only what it has started itself: the batch
script, and each task of `srun`. A shell that runs a program in the foreground passes nothing on; it dies
of the signal, and what it has started is killed with it.
"""

from __future__ import annotations

import os
import re
import signal
import stat
from typing import NamedTuple

_SHELLS = frozenset({"bash", "sh", "dash", "zsh", "ksh", "tcsh", "csh", "fish", "slurm_script"})
_STARTER = "slurmstepd"
_SCRIPT_LIMIT = 1 << 20
_WARNING = re.compile(rb"^#SBATCH\s(?:.*\s)?--signal[=\s]\s*([RB]{1,2}):(\w+)(?:@(\d+))?", re.MULTILINE)
_SECONDS = 60  # by Slurm's default


class Shell(NamedTuple):
    """The shell that Slurm has started, with this process below it, and others between the two.

    Attributes:
        catches: the signals for which each of them has a trap; these may well be passed on.
        warned: by which signal `#SBATCH --signal=B:…` has the first one warned, and how many seconds before the end.

    """

    catches: frozenset[int]
    warned: tuple[str, int] | None

    @property
    def dies_early(self) -> bool:
        """Whether that warning ends the shell, for which it has no trap."""
        return self.warned is not None and _number(self.warned[0]) not in self.catches


def find(proc: str = "/proc") -> Shell | None:
    """The shell that stands between Slurm and this process; None if none does, or where that cannot be seen."""
    pid, outermost, catches = os.getppid(), 0, []
    while pid > 1:
        try:
            with open(f"{proc}/{pid}/status", encoding="utf-8", errors="replace") as file:
                status = dict(line.split(":", 1) for line in file if ":" in line)
            name = status["Name"].strip()
            if name == _STARTER:
                break
            # A script that is called by its own name has that for its process's name, too.
            if name in _SHELLS or _interpreter(proc, pid) in _SHELLS:
                outermost = pid
                catches.append(_signals(status.get("SigCgt", "0")))
            pid = int(status["PPid"])
        except (OSError, ValueError, KeyError):
            return None
    if pid <= 1 or not outermost:
        return None
    return Shell(frozenset.intersection(*catches), _warned(proc, outermost))


def _words(proc: str, pid: int) -> list[bytes]:
    with open(f"{proc}/{pid}/cmdline", "rb") as file:
        return file.read().split(b"\0")


def _interpreter(proc: str, pid: int) -> str:
    try:
        return os.path.basename(os.fsdecode(_words(proc, pid)[0])).removeprefix("-")
    except OSError:
        return ""


def _signals(mask: str) -> frozenset[int]:
    bits = int(mask.strip(), 16)
    return frozenset(number for number in range(1, 65) if bits >> (number - 1) & 1)


def _warned(proc: str, pid: int) -> tuple[str, int] | None:
    """What the shell's script asks Slurm for, if that can be read."""
    try:
        words = _words(proc, pid)[1:]
        script = next(word for word in words if word and not word.startswith(b"-"))
        # Not /dev/stdin or a pipe: what this process would read there is its own, or never comes.
        with open(os.open(script, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return None
            found = _WARNING.search(file.read(_SCRIPT_LIMIT))
    except (OSError, StopIteration, ValueError):
        return None
    if found is None or b"B" not in found[1]:
        return None
    return found[2].decode().upper().removeprefix("SIG"), int(found[3] or _SECONDS)


def _number(name: str) -> int:
    found = getattr(signal, f"SIG{name}", None)
    return int(found) if found is not None else int(name) if name.isdecimal() else 0
