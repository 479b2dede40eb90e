"""Carrying out what a `Keep` decides, the links for people, pins and abandoned marks."""

from __future__ import annotations

import contextlib
import glob
import logging
import os
import time
from collections.abc import Sequence

from holdfast import files
from holdfast.errors import HoldfastError, LeaseError, NotFoundError
from holdfast.policy.keep import Keep, Record, Verdict, best_of, decide
from holdfast.store import catalog
from holdfast.store.catalog import ABANDONED, PINS
from holdfast.store.entry import Entry

_told: set[str] = set()  # links whose failure was said


def verdicts(keep: Keep, entries: Sequence[Entry], *, prune: bool = False) -> list[Verdict]:
    """What would stay, what would go, and why; nothing is changed."""
    return decide(keep, [entry.record() for entry in entries], prune=prune)


def best_record(keep: Keep, entries: Sequence[Entry]) -> Record | None:
    """The best clean checkpoint by the metric of `keep`."""
    return best_of(keep, [entry.record() for entry in entries])


def delete(run: str, name: str, writing: str) -> bool:
    """Deletes a checkpoint of a run, unless it was pinned meanwhile. False when it was left.

    The rename into the holder's own directory takes it away at once and whole; a process that
    lost its lease has no such directory any more and deletes nothing.
    """
    if name in catalog.marks(run, PINS):
        return False
    source, trash = os.path.join(run, name), os.path.join(writing, f"{name}.trash")
    with files.translated(source, "delete"):
        try:
            files.rename(source, trash)
        except FileNotFoundError:
            if os.path.isdir(writing):
                return True  # somebody else deleted it
            raise LeaseError(
                f"This process no longer holds the run: {writing} was taken away by a process that took the run "
                f"over. Nothing was deleted.",
                holder=None,
            ) from None
    if name in catalog.marks(run, PINS):
        with files.translated(source, "put back"):
            files.rename(trash, source)
        files.sync_directory(run)
        return False
    files.sync_directory(run)
    files.remove_tree(trash)
    return True


def bring_back(run: str, writing: str) -> None:
    """Puts back what a former holder was about to delete when it ended, if a pin had come meanwhile.

    The pin was reported to hold, and only `delete` itself would have put it back. What is not
    whole any more was being removed before the pin came, and stays where it is.
    """
    found = False
    for name in sorted(catalog.marks(run, PINS)):
        trash, place = os.path.join(writing, f"{name}.trash"), os.path.join(run, name)
        if _is_whole(trash) and not os.path.lexists(place):
            with files.translated(place, "put back"), contextlib.suppress(FileNotFoundError):
                files.rename(trash, place)
            found = True
    if found:
        files.sync_directory(run)


def _is_whole(path: str) -> bool:
    """Whether a checkpoint's manifest can be read and every file is there, in its size."""
    if not catalog.is_checkpoint(path):
        return False
    try:
        listed = catalog.read_manifest(path).files
        return all(os.path.getsize(os.path.join(path, name)) == file.size for name, file in listed.items())
    except (HoldfastError, OSError):
        return False


def point_links(run: str, writing: str, latest: str | None, best: str | None) -> None:
    """`latest` and `best`, for people: never read by the program, so a failure is not one of the save.

    It is a warning, once in a process: some file systems have no links.
    """
    for link, target in (("latest", latest), ("best", best)):
        path = os.path.join(run, link)
        try:
            with files.translated(path, "link"):
                if target is None:
                    if os.path.islink(path):
                        files.remove_file(path)
                elif not os.path.islink(path) or os.readlink(path) != target:
                    files.point_link(path, target, os.path.join(writing, f"{link}.link"))
        except HoldfastError as error:
            if path not in _told:
                _told.add(path)
                logging.getLogger("holdfast").warning("%s It may point to an older checkpoint.", error)


def mark(run: str, kind: str, name: str) -> None:
    """Pins or abandons a checkpoint: an empty file of its name."""
    directory = catalog.marks_directory(run, kind)
    files.make_directory(directory)
    with contextlib.suppress(FileExistsError):
        try:
            files.create_file(os.path.join(directory, name), b"")
        except OSError as error:
            if not isinstance(error.__cause__, FileExistsError):
                raise
    files.sync_directory(directory)


def unmark(run: str, kind: str, name: str) -> None:
    directory = catalog.marks_directory(run, kind)
    if os.path.isdir(directory):
        files.remove_file(os.path.join(directory, name))
        files.sync_directory(directory)


def pin(run: str, name: str) -> None:
    """Keeps a checkpoint whatever the policy says; `NotFoundError` when it was deleted meanwhile."""
    mark(run, PINS, name)
    if not _stays(run, name):
        unmark(run, PINS, name)
        raise NotFoundError(
            f"{os.path.join(run, name)} is gone, so it was not pinned: the policy has deleted it meanwhile. "
            f"Next: holdfast ls {run}",
            path=os.path.join(run, name),
            candidates=[],
        )


def _stays(run: str, name: str) -> bool:
    """Whether a checkpoint that was just pinned is there, or is being brought back from its deletion."""
    for _ in range(50):
        if catalog.is_checkpoint(os.path.join(run, name)):
            return True
        if not glob.glob(os.path.join(glob.escape(run), ".writing-*", f"{name}.trash")):
            return catalog.is_checkpoint(os.path.join(run, name))
        time.sleep(0.01)
    return False


def unpin(run: str, name: str) -> None:
    unmark(run, PINS, name)


def abandon(run: str, name: str) -> None:
    mark(run, ABANDONED, name)
