"""Checkpoints on their way into a run: where they lie until they are whole, and how they outlive a kill.

They lie in `.fetching-<generation>/NAME/`, where no reader looks. What a killed process leaves in
`.writing-<generation>/` is cleared away by the next holder of the lease; this is not: the next one that fetches
renames the directory to its own, and goes on with the blocks that are right in it. A checkpoint becomes visible by way
of `.writing-<generation>/`, so that a holder that lost its lease publishes nothing.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Collection

from holdfast import files
from holdfast.errors import HoldfastError, StorageError, UsageError
from holdfast.log import logger
from holdfast.mirrors.folder import FolderTarget
from holdfast.store.watch import names_in

_FETCHING = re.compile(r"\.fetching-(\d{6,})(?:\.gone)?")
_GONE = ".gone"


def number(name: str) -> int:
    """The generation of the lease under which a directory of this name was filled; 0 for any other name."""
    found = _FETCHING.fullmatch(name)
    return int(found[1]) if found else 0


def left_in(run: str) -> list[str]:
    """The directories that fetches left in a run, the oldest first."""
    return sorted((name for name in names_in(run) if number(name)), key=number)


def held_in(run: str, name: str) -> int:
    """Bytes on the disk of a checkpoint that was begun, under whichever lease that was."""
    return sum(files.bytes_on_disk(os.path.join(run, place, name)) for place in left_in(run))


def look_for_unfinished(run: str, *, empty: bool) -> None:
    """Nothing is begun in an empty run into which something was being fetched; in any other it is only told.

    Raises:
        UsageError: a fetch was interrupted there, and the run has no checkpoint yet.

    """
    left = left_in(run)
    if left and empty:
        raise UsageError(
            f"{run} has no checkpoint yet, and some were being fetched into it when that was interrupted; a training that "
            f"began anew there would part from them. Next: the same `holdfast pull` again, or the launch with its "
            f"mirrors, which goes on where it was; or, to begin anew all the same, delete {os.path.join(run, left[0])}.",
            path=run,
            found=left,
        )
    if left:
        logger.warning(
            "Checkpoints were being fetched into %s when that was interrupted; the training goes on without them. The same "
            "`holdfast pull` goes on with it.",
            run,
        )


class Arrivals:
    """What one holder of a run's lease fetches.

    Args:
        run: the run's directory.
        writing: the directory that only the holder of its lease has.

    """

    def __init__(self, run: str, writing: str) -> None:
        self.run, self._writing = run, writing
        self.path = os.path.join(run, f".fetching-{os.path.basename(writing).rpartition('-')[2]}")

    def enter(self) -> None:
        """Takes over what earlier holders had begun."""
        others = [os.path.join(self.run, name) for name in left_in(self.run)]
        others = [path for path in others if path != self.path]
        if os.path.islink(self.path):
            files.remove_file(self.path)  # a stranger's; what it leads to is left alone
        if os.path.isdir(self.path):
            pass
        elif others and not os.path.islink(others[-1]) and not others[-1].endswith(_GONE):
            with files.translated(others[-1], "rename"):
                files.rename(others.pop(), self.path)
        else:
            files.make_new_directory(self.path)
        for path in others:
            self._remove(path)
        files.sync_directory(self.run)

    def _remove(self, path: str) -> None:
        """Takes a directory out of use, then empties it: its maker may only have been asleep."""
        away = path if path.endswith(_GONE) else path + _GONE
        if away != path:
            with files.translated(path, "rename"):
                files.rename(path, away)
        files.remove_tree(away)

    def target(self, name: str) -> FolderTarget:
        """Where a checkpoint is built; one that was begun is continued."""
        return FolderTarget(os.path.join(self.path, name))

    def publish(self, name: str) -> None:
        """Makes a finished checkpoint visible, and durable.

        Raises:
            StorageError: it could not be; or the directories of this holder are gone, since it lost its lease.

        """
        draft, final = os.path.join(self._writing, name), os.path.join(self.run, name)
        with files.translated(final, "publish"):
            files.rename(os.path.join(self.path, name), draft)
            files.rename(draft, final)
        try:
            files.sync_directory(self.run)
        except HoldfastError:
            # What is not known to be durable must not be found later.
            with contextlib.suppress(OSError):
                files.rename(final, os.path.join(self.path, name))
            raise

    def forget(self, name: str) -> None:
        """Removes what was begun of a checkpoint."""
        with contextlib.suppress(StorageError):
            files.remove_tree(os.path.join(self.path, name))

    def leave(self, keep: Collection[str] = ()) -> None:
        """Removes what is needed no more, and the directory itself where nothing is left in it."""
        with files.translated(self.path, "list"):
            left = sorted(set(os.listdir(self.path)) - set(keep))
            stays = len(os.listdir(self.path)) > len(left)
        for name in left:
            self.forget(name)
        if not stays:
            files.remove_empty_directory(self.path)
