"""The lease: the right to write a run, held by one process at a time.

`lease-<generation>` is created exclusively and the highest generation holds. What its holder
writes or throws away lies in `.writing-<generation>/` until one rename. Who takes over first
creates a higher lease and then renames the older directories away, so a holder that was only
asleep finds no directory to rename out of or into: it can publish and delete nothing. No lock
of the file system is used; this holds on NFS and Lustre.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import errno
import logging
import os
import sys
import threading
import time
from collections.abc import Callable

from holdfast import files, open_files
from holdfast.errors import HoldfastError, LeaseError, NotFoundError, StorageError, printable, storage_error
from holdfast.store import retention
from holdfast.store.holder import Holder, encode, judge, lease_name, myself
from holdfast.store.watch import Watch, highest_lease, holder_of, lease_number, names_in, writing_number

__all__ = ["Holder", "Lease", "holder_of"]

BEAT_SECONDS = 5.0
_BEATS_PER_SYNC = 6  # a synced beat is seen by the other clients of a network file system
_BLINK_SECONDS = 0.01
_SILENT_SECONDS = 600.0
_GONE = ".gone"

_held: set[str] = set()  # tokens of the leases that this process holds


def _say(line: str) -> None:
    sys.stderr.write(f"holdfast: {printable(line)}\n")
    sys.stderr.flush()


class Lease:
    """The right to write one run, from `acquire` to `release`.

    A thread writes a beat every few seconds. `check` and `release` may be called from any
    thread. In a forked child the lease is inert: nothing is written, and `check` refuses.

    Attributes:
        run: the run's directory.
        generation: the number of this lease; never used twice.
        writing: the directory for partial checkpoints and trash, there while the lease is held.

    """

    def __init__(self, run: str, identity: Holder) -> None:
        self.run = run
        self.generation = identity.generation
        self.writing = os.path.join(run, f".writing-{self.generation:06d}")
        self._path = os.path.join(run, lease_name(self.generation))
        self._identity = identity
        self._pid = os.getpid()
        self._turn = threading.Lock()
        self._ended = threading.Event()
        self._failures: collections.deque[HoldfastError] = collections.deque(maxlen=1)
        self._overtaken = False
        # Before the file is there, so that no other thread takes it for a former program's.
        _held.add(identity.token)
        try:
            self._file = open_files.BeatFile(self._path, encode(identity))
        except BaseException:
            _held.discard(identity.token)
            raise

    @classmethod
    def acquire(
        cls,
        run: str,
        *,
        wait: float = 0.0,
        say: Callable[[str], None] = _say,
        stale_after: float = 300.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> Lease:
        """Takes the lease of an existing run directory, from a dead holder if there is one.

        Args:
            run: the run's directory.
            wait: seconds to wait for a holder that is alive.
            say: gets one line on each thing that is waited for or that was left over.
            stale_after: seconds without a beat after which a holder that cannot be seen from
                here counts as dead; they are waited even when `wait` is shorter.
            clock: monotonic seconds.
            sleep: waits for so many seconds.

        Raises:
            LeaseError: a living process holds it. Fact: `holder`.
            NotFoundError: there is no such directory.
            StorageError: the directory cannot be read or written.

        """
        run = os.path.abspath(run)
        deadline = clock() + wait
        while True:
            try:
                os.lstat(run)
            except (FileNotFoundError, NotADirectoryError):
                raise NotFoundError(f"There is no run directory {run}.", path=run) from None
            except OSError as error:
                raise storage_error(error, run, "look at") from error
            last = Watch(
                run=run,
                held=_held,
                deadline=deadline,
                stale_after=stale_after,
                say=say,
                clock=clock,
                sleep=sleep,
            ).wait_until_free()
            lease = cls._create(run, last)
            if lease is None:  # Somebody was faster; see who.
                sleep(_BLINK_SECONDS)
                continue
            try:
                if lease._enter(say):
                    return lease
            except BaseException:
                lease._give_up()
                raise
            # A higher one exists, and no name of ours was ever used by it: nothing is reused.
            lease._give_up()
            files.remove_file(lease._path)

    @classmethod
    def _create(cls, run: str, last: int) -> Lease | None:
        """Makes the lease after the generation that was found free; None if that is no longer the last."""
        names = names_in(run)
        # A directory proves a number used where somebody deleted the lease files.
        used = max([last, *map(writing_number, names)])
        newer = used > last and os.path.lexists(os.path.join(run, lease_name(used)))
        if newer or max(map(lease_number, names), default=0) > last:
            return None
        try:
            return cls(run, myself(used + 1))
        except StorageError as error:
            if error.errno != errno.EEXIST:
                raise
            return None

    def _enter(self, say: Callable[[str], None]) -> bool:
        """Makes this number the only one that can publish; False when a higher one exists."""
        files.sync_directory(self.run)
        # A contender that slept since its last look may have made a number that others used and
        # cleared away. Then a higher one exists already, and a sleeping holder of that number
        # must not find its directory made anew.
        if self._outrun():
            return False
        older = self._sweep(say)
        files.make_new_directory(self.writing)
        files.sync_directory(self.run)
        if self._outrun():
            return False
        for path in older:
            _remove(path, say)
        threading.Thread(target=self._keep_beating, name="holdfast-lease", daemon=True).start()
        return True

    def _outrun(self) -> bool:
        return highest_lease(self.run) > self.generation

    def _sweep(self, say: Callable[[str], None]) -> list[str]:
        """Takes the directories of lower generations out of use; returns the leases they left.

        The rename is what stops a sleeping holder. The emptying after it may fail.
        """
        done: set[str] = set()
        while True:
            names = sorted(names_in(self.run))
            left = [name for name in names if 0 < writing_number(name) < self.generation and name not in done]
            if not left:
                lower = [name for name in names if 0 < lease_number(name) < self.generation]
                return [os.path.join(self.run, name) for name in lower]
            for name in left:
                path = os.path.join(self.run, name)
                if ".swept-" not in name:
                    path = _take_out_of_use(path, f"{path}.swept-{self.generation:06d}")
                _empty(self.run, path, say)
                done.update((name, os.path.basename(path)))
            # Once more: another contender may have renamed away what was listed, and may sleep
            # before it empties that.

    def _keep_beating(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            self._beat()

    def _beat(self) -> None:
        with self._turn:
            if self._ended.is_set():
                return
            beat = self._identity.beat + 1
            self._identity = dataclasses.replace(self._identity, beat=beat)
            try:
                self._file.rewrite(encode(self._identity), sync=beat % _BEATS_PER_SYNC == 0)
                self._overtaken = self._outrun()
            except HoldfastError as error:
                # Kept for `check`. The next beat is tried all the same: a network file system
                # may come back, or a full one get room, before anybody takes this holder for dead.
                self._failures.append(error)
                return
            while self._failures:  # it has come back, and nobody has taken the run over meanwhile
                logging.getLogger("holdfast").warning(
                    "A sign of life could not be written for a while, and can be again: %s",
                    self._failures.popleft(),
                )

    @property
    def token(self) -> str:
        """What tells this acquisition from every other one."""
        return self._identity.token

    @property
    def overtaken(self) -> bool:
        """Whether the last beat found a higher lease. Costs nothing; `check` says more."""
        return self._overtaken

    def check(self) -> None:
        """Returns if this process holds the lease; costs one listing of the directory.

        That is true of the moment only: what protects the run is that everything published or
        deleted is renamed out of or into `writing`.

        Raises:
            LeaseError: a higher lease exists, or this one was deleted or released.
            StorageError: the directory cannot be listed, or the last beat could not be written, and
                cannot be now.

        """
        me = lease_name(self.generation)
        if os.getpid() != self._pid:
            raise self._refused(
                f"This process was forked from pid {self._pid}, which holds the lease of {self.run}; a child "
                f"never writes the run. Save in the parent."
            )
        if self._ended.is_set():
            raise self._refused(
                f"The lease of {self.run} ({me}) was released, and nothing more is written there. "
                f"Make a new Run."
            )
        held = [lease_number(name) for name in names_in(self.run)]
        if max(held, default=0) > self.generation:
            holder = holder_of(self.run)
            raise self._refused(
                f"The lease of {self.run} is lost: {me} was taken over by "
                f"{holder.describe() if holder else 'another process'}. This process publishes and deletes "
                f"nothing more there. Let the other one go on; or end it, and start this one again.",
                holder,
            )
        if self.generation not in held:
            raise self._refused(
                f"The lease of {self.run} is lost: somebody deleted the file {me}. This process publishes "
                f"and deletes nothing more there. Start it again."
            )
        if self._failures:
            self._beat()
        with contextlib.suppress(IndexError):
            raise self._failures.popleft()

    def _refused(self, message: str, holder: Holder | None = None) -> LeaseError:
        return LeaseError(message, run=self.run, generation=self.generation, holder=holder)

    def release(self) -> None:
        """Gives the lease back. A second time, after a take-over or in a child: nothing happens.

        Raises:
            StorageError: what was being written could not be removed, or the release could not
                be recorded. The lease is given up all the same.

        """
        if os.getpid() != self._pid:
            return
        with self._turn:
            if self._ended.is_set():
                return
            self._ended.set()
            try:
                # First, so that who reads `released` finds nothing left to sweep.
                files.remove_tree(self.writing)
            finally:
                self._record_release()

    def _record_release(self) -> None:
        try:
            self._file.rewrite(encode(dataclasses.replace(self._identity, released=True)), sync=True)
        except StorageError:
            # Nobody reads a file that is gone or outrun: then there was nothing to record.
            if os.path.exists(self._path) and not self._outrun():
                raise
        finally:
            _held.discard(self._identity.token)
            self._file.close()

    def _give_up(self) -> None:
        # Why it is given up is what the caller must hear, and that is on its way.
        with contextlib.suppress(StorageError):
            self.release()


def living_holder(run: str) -> Holder | None:
    """Who writes a run at this moment, as far as can be told from here; None where nobody does.

    A holder that cannot be judged, on another machine say, counts as living as long as its beat was written in
    the last ten minutes.
    """
    holder = holder_of(run)
    if holder is None or holder.released:
        return None
    life = judge(holder, myself(0), _held)
    if life == "unknown":
        # A living holder writes its beat every few seconds.
        with contextlib.suppress(OSError):
            beat = os.stat(os.path.join(run, lease_name(holder.generation))).st_mtime
            life = "dead" if beat < time.time() - _SILENT_SECONDS else life
    return None if life in ("released", "dead") else holder


def _take_out_of_use(path: str, away: str) -> str:
    """Renames a former holder's directory; one that its holder has just removed is no error."""
    try:
        with files.translated(path, "rename"):
            files.rename(path, away)
    except StorageError as error:
        if error.errno != errno.ENOENT:
            raise
    return away


def _empty(run: str, path: str, say: Callable[[str], None]) -> None:
    """Deletes a former holder's directory, which was taken out of use.

    A rename that its holder began before may still arrive: a network file system repeats it when the
    network is back. So what is in there is renamed before it is deleted, and such a rename finds a
    checkpoint untouched or not at all. What arrives after the look inside waits for the next start,
    since a pin that came in between would not be seen. A link is deleted; what it leads to is nobody's
    leftover.
    """
    if os.path.islink(path):
        _remove(path, say)
        return
    try:
        there = names_in(path)
    except StorageError as error:
        if error.errno != errno.ENOTDIR:
            say(f"{error} It is left for the next start.")
            return
        _remove(path, say)
        return
    retention.bring_back(run, path)
    try:
        for name in there:
            inside = os.path.join(path, name)
            if not name.endswith(_GONE):
                inside = _take_out_of_use(inside, inside + _GONE)
            files.remove_tree(inside)
        files.remove_empty_directory(path)
    except StorageError as error:
        say(f"{error} It is left for the next start.")


def _remove(path: str, say: Callable[[str], None]) -> None:
    """Deletes what nothing depends on any more; what stays is told, and tried again next time."""
    try:
        files.remove_tree(path)
    except StorageError as error:
        say(f"{error} It is left for the next start.")
