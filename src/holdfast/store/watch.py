"""Watching a run's highest lease: whether its holder lives, and for how long to wait."""

from __future__ import annotations

import dataclasses
import errno
import math
import os
import re
import time
from collections.abc import Callable, Collection

from holdfast import files
from holdfast.errors import LeaseError, StorageError
from holdfast.store.holder import Holder, Life, judge, lease_name, myself, read_holder
from holdfast.store.queue import Word, ask_slurm

_POLL_SECONDS = 1.0
_SAY_SECONDS = 30.0
_BLINK_SECONDS = 0.01  # until a file, or a listing that is behind, shows what changed
_BLINKS = 20
_ASK_SECONDS = 5.0  # between two questions to Slurm
UNFINISHED_SECONDS = 15.0
"""How long a lease without its last byte is watched: three beats.

Its maker died, or sleeps, before `acquire` returned. So it has trained nothing, and gives way when it wakes.
"""

_LEASE = re.compile(r"lease-(\d{6,})")
_WRITING = re.compile(r"\.writing-(\d{6,})(?:\.swept-\d{6,})?")


def names_in(run: str) -> list[str]:
    """What lies in the run's directory; nothing when there is no such directory."""
    try:
        with files.translated(run, "list"):
            return os.listdir(run)
    except StorageError as error:
        if error.errno != errno.ENOENT:
            raise
        return []


def lease_number(name: str) -> int:
    """The generation of a lease file's name; 0 for any other name."""
    match = _LEASE.fullmatch(name)
    # `lease-0000007` is nobody's: a number has one name.
    return int(match[1]) if match and name == lease_name(int(match[1])) else 0


def writing_number(name: str) -> int:
    """The generation whose files a directory of this name holds; 0 for any other name."""
    match = _WRITING.fullmatch(name)
    return int(match[1]) if match else 0


def highest_lease(run: str) -> int:
    """The generation that holds the run, or held it last; 0 when there is none."""
    return max(map(lease_number, names_in(run)), default=0)


def holder_of(run: str) -> Holder | None:
    """Who the newest lease names, alive or not; None where there is none. Creates nothing."""
    run = os.path.abspath(run)
    for _ in range(100):
        generation = highest_lease(run)
        if not generation:
            return None
        found = read_holder(run, generation)
        if found is not None:
            return found[0]
        time.sleep(_BLINK_SECONDS)
    return Holder(generation=generation)


@dataclasses.dataclass(kw_only=True)
class Watch:
    """One contender's watch over the highest lease of a run.

    Attributes:
        run: the run's directory.
        held: the tokens of the leases that this very process holds.
        deadline: the clock's reading up to which a living holder is waited for.
        stale_after: seconds without a beat that prove a holder dead which cannot be seen.
        say: gets a line when waiting starts, and then every half minute.
        clock: monotonic seconds.
        sleep: waits for so many seconds.

    """

    run: str
    held: Collection[str]
    deadline: float
    stale_after: float
    say: Callable[[str], None]
    clock: Callable[[], float]
    sleep: Callable[[float], None]
    _said: float = -math.inf
    _still: float = 0.0  # seconds that the beat was watched and did not move
    _moved: bool = False
    _leaving_since: float = math.inf  # when a living holder's job was first seen to be over
    _word: tuple[float, str, Word] = (
        -math.inf,
        "",
        "unknown",
    )  # when Slurm was asked about whom, and what it said

    def wait_until_free(self) -> int:
        """Returns when nobody alive holds the run, with the generation that held it last (or 0).

        Raises:
            LeaseError: somebody does, and the deadline has passed.
            StorageError: the directory or the lease cannot be read.

        """
        poll = min(_POLL_SECONDS, self.stale_after / 4)
        seen: tuple[int, bytes] | None = None
        looked, blinks = self.clock(), 0
        while generation := highest_lease(self.run):
            found = read_holder(self.run, generation)
            if found is None:  # Cleared away by a higher one.
                self.sleep(_BLINK_SECONDS)
                continue
            holder, content = found
            if not holder.pid and blinks < _BLINKS:  # Most likely in the middle of being written.
                blinks += 1
                self.sleep(_BLINK_SECONDS)
                continue
            life: Life | Word = judge(holder, myself(generation), self.held)
            if life == "unknown":
                life = self._ask(holder, generation)
            elif life == "alive" and self._is_leaving(holder, generation):
                life = "ending"
            if life in ("released", "dead"):
                return generation
            now = self.clock()
            # The file system may have hung, or this process slept: what nobody watched proves nothing.
            self._still += min(now - looked, 2 * poll)
            looked = now
            if seen is None or seen[0] != generation:
                self._still, self._moved = 0.0, False
            elif seen[1] != content:
                self._still, self._moved = 0.0, True
            seen = (generation, content)
            # Whoever is just ending needs only be waited for, as whoever may be dead.
            known = life not in ("unknown", "ending") or (life == "unknown" and self._moved)
            patience = min(self.stale_after, math.inf if content.endswith(b"\n") else UNFINISHED_SECONDS)
            if life in ("unknown", "ending") and self._still >= patience:
                self.say(
                    f"{self.run}: {holder.describe()} gave no sign of life for {self._still:.0f} s; "
                    f"taking over."
                )
                return generation
            if known and now >= self.deadline:
                raise self._refusal(holder, life)
            self._tell(holder, now, patience, life, known=known)
            self.sleep(min(poll, self.deadline - now) if known else poll)
        return 0

    def _is_leaving(self, holder: Holder, generation: int) -> bool:
        """Whether a living holder's job is over, so that it will be gone in a moment; for a moment only."""
        if not holder.slurm_job or self._ask(holder, generation) not in ("ending", "dead"):
            self._leaving_since = math.inf
            return False
        # Slurm starts the next task of an array when the last one begins to end, on the same node, too.
        self._leaving_since = min(self._leaving_since, self.clock())
        return self.clock() - self._leaving_since < self.stale_after

    def _ask(self, holder: Holder, generation: int) -> Word:
        asked, whom, word = self._word
        if whom != holder.token or self.clock() - asked >= _ASK_SECONDS:
            word = ask_slurm(holder, myself(generation))
            self._word = (self.clock(), holder.token, word)
        return word

    def _tell(self, holder: Holder, now: float, patience: float, life: Life | Word, *, known: bool) -> None:
        if now - self._said < _SAY_SECONDS:
            return
        self._said = now
        if life == "ending":
            self.say(
                f"{self.run} is held by {holder.describe()}, whose job is just ending. Waiting for that."
            )
        elif known:
            self.say(
                f"{self.run} is held by {holder.describe()}. Waiting up to {self.deadline - now:.0f} s for it."
            )
        else:
            self.say(
                f"{self.run} is held by {holder.describe()}, and whether that lives cannot be seen from here. "
                f"Waiting for a sign of life; without one it is taken over in "
                f"{patience - self._still:.0f} s."
            )

    def _refusal(self, holder: Holder, life: Life | Word) -> LeaseError:
        said = f"{self.run} is held by {holder.describe()}"
        if life == "ours":
            message = (
                f"{said}, which is this very process. Close that run first (run.close()), or go on with it."
            )
        elif task := _task_of(holder):
            message = (
                f"{said}; this process is {task} of the same Slurm job, so several tasks of one srun seem to "
                f"run this script. Start one task (srun --ntasks=1), or give each a run of its own."
            )
        else:
            proof = "Slurm says that this job is running" if life == "running" else "that is alive"
            message = (
                f"{said}, and {proof}; only one process may write a run. Wait for it (wait=SECONDS), "
                f"end it, or give this training another directory."
            )
        return LeaseError(message, run=self.run, generation=holder.generation, holder=holder)


def _task_of(holder: Holder) -> str:
    """Words like ``task 3 of 8`` when holder and contender look like tasks of one srun."""
    of = os.environ.get("SLURM_STEP_NUM_TASKS") or os.environ.get("SLURM_NTASKS", "1")
    task = os.environ.get("SLURM_PROCID")
    same_job = holder.slurm_job and holder.slurm_job == os.environ.get("SLURM_JOB_ID")
    return f"task {task} of {of}" if same_job and task is not None and of != "1" else ""
