"""From arrays to a visible checkpoint: the write protocol.

A checkpoint is built in a directory that no reader looks into, made durable there, and becomes
visible by one rename. Readers therefore see it whole or not at all, and a writer that lost its
lease finds its directory gone and publishes nothing.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from holdfast import files, storage
from holdfast.errors import LeaseError, StorageError, UsageError, storage_error
from holdfast.format import manifest as manifests
from holdfast.format import sealed
from holdfast.format.manifest import CARD_FILE, CHECKPOINT_FILE, Manifest, SmallFile
from holdfast.format.table import ARRAYS_FILE, Arrays, Part, PayloadRecord, encode_arrays
from holdfast.storage import NO_ROOM, Room

if TYPE_CHECKING:
    from holdfast.payload.layout import Layout

# Room for the small files and for directory blocks, beside the payload itself.
_OVERHEAD = 1 << 20


class Draft:
    """A checkpoint being written; `begin`, `wait_early`, then `complete`.

    Args:
        parent: an existing directory on the file system of the final place.
        name: the checkpoint's name; the draft is `parent/name`.
        parts: part name → (kind, skeleton, {array name: payload Array}).
        planned: where these arrays will lie.
        staging: bytes of memory that may hold a copy of the state; 0 streams.
        extra: further small files, name → bytes.
        confirm: what must hold once all arrays are copied, late ones too; it raises what fails the save.
        room: makes room where the disk is full in the middle of it.

    """

    def __init__(
        self,
        parent: str,
        name: str,
        parts: Mapping[str, tuple[str, Any, Mapping[str, Any]]],
        planned: Layout,
        *,
        staging: int = 0,
        extra: Mapping[str, bytes] | None = None,
        confirm: Callable[[], None] | None = None,
        room: Room = NO_ROOM,
    ) -> None:
        from holdfast.payload import writer

        self.directory = os.path.join(parent, name)
        self.name = name
        self._parts = parts
        self._extra = dict(extra or {})
        self._layout, self._room = planned, room
        self._parent, self._needed = parent, self._layout.total_bytes + _OVERHEAD
        storage.check_space(parent, self._needed)
        try:
            files.make_new_directory(self.directory)
        except StorageError as error:
            if error.errno == errno.ENOENT:
                raise _lost(error, parent) from error
            raise self._explained(error, storage.out_of_files(parent)) from error
        self._save = writer.Save(self._layout, self.directory, staging=staging, confirm=confirm, room=room)

    def begin(self) -> None:
        """Starts to copy and write the arrays."""
        with self.discarding():
            self._save.start()

    def wait_early(self) -> None:
        """Returns when the arrays may change again; those marked as late only after `pending.settle`."""
        with self.discarding():
            self._save.wait_early()

    @property
    def overlapped(self) -> bool:
        """Whether some arrays are late."""
        return self._save.overlapped

    @property
    def waited(self) -> float:
        """Seconds for which somebody waited until the late arrays were copied."""
        return self._save.waited

    def complete(
        self, manifest: Manifest, card: Callable[[Manifest], str], check: Callable[[Manifest], None]
    ) -> Manifest:
        """Writes everything else and syncs it all; the draft is then ready for its rename.

        `check` may look at the finished manifest (its NaN marks) and raise, which discards the draft.
        """
        with self.discarding():
            return self._complete(manifest, card, check)

    @contextlib.contextmanager
    def discarding(self) -> Iterator[None]:
        """Stops the writing and removes what was written when the block raises."""
        try:
            yield
        except StorageError as error:
            full = storage.out_of_files(self._parent)  # before what was written goes
            self.discard()
            told = self._explained(error, full)
            raise told from (error if told is not error else error.__cause__)
        except BaseException:
            self.discard()
            raise

    def _explained(self, error: StorageError, out_of_files: bool) -> StorageError:
        return storage.explain(error, self._parent, self._needed, out_of_files=out_of_files)

    def _complete(
        self, manifest: Manifest, card: Callable[[Manifest], str], check: Callable[[Manifest], None]
    ) -> Manifest:
        written = self._save.wait()  # payload: written and synced
        manifest.nan = sorted({*manifest.nan, *(f"{part}/{name}" for part, name in written.nonfinite)})
        check(manifest)
        listed = {name: SmallFile(file.size, file.digest) for name, file in written.files.items()}
        texts = {
            **self._extra,
            CARD_FILE: card(manifest).encode("utf-8", "backslashreplace"),
            ARRAYS_FILE: encode_arrays(self._table(written.files)),
        }
        for name, data in texts.items():
            self._create(os.path.join(self.directory, name), data)
            listed[name] = SmallFile(len(data), sealed.digest(data))
        manifest.files = dict(sorted(listed.items()))
        path, data = os.path.join(self.directory, CHECKPOINT_FILE), manifests.encode_manifest(manifest)
        # What no reader would take must not come into the place of a checkpoint that can be read.
        manifests.decode_manifest(data, path)
        # Last: a draft without it is no checkpoint, whatever else is there.
        self._create(path, data)
        files.sync_directory(self.directory)
        return manifest

    def _create(self, path: str, data: bytes) -> None:
        self._room.write(lambda: files.create_file(path, data))

    def _table(self, written: Mapping[str, Any]) -> Arrays:
        from holdfast.format.safetensors import BLOCK

        table = self._layout.table
        return Arrays(
            block_size=BLOCK,
            files={
                name: PayloadRecord(file.size, tuple(block.hex() for block in file.blocks))
                for name, file in written.items()
            },
            overlaps=_overlaps({part: arrays for part, (_, _, arrays) in self._parts.items()}),
            parts={
                part: Part(kind=kind, skeleton=skeleton, arrays=table.get(part, {}))
                for part, (kind, skeleton, _) in self._parts.items()
            },
        )

    def discard(self) -> None:
        """Stops the writing and removes what was written, as far as the storage still lets us."""
        self._save.cancel()
        with contextlib.suppress(OSError):
            files.remove_tree(self.directory)


def _overlaps(parts: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Pairs of arrays that share a part of their memory: stored separately, and noted."""
    named = [
        (identity, part, name)
        for part, arrays in parts.items()
        for name, array in arrays.items()
        if isinstance(identity := array.identity, tuple) and len(identity) >= 3
    ]
    named.sort(key=_span_of)
    found: list[list[str]] = []
    widest, device, reach = 0, None, 0  # of those so far on their device, the one that reaches furthest
    for index, (identity, part, name) in enumerate(named):
        start, stop = identity[1], identity[1] + identity[2]
        if identity[0] == device and start < reach:
            other, other_part, other_name = named[widest]
            if other != identity:
                found.append([f"{other_part}/{other_name}", f"{part}/{name}"])
            if stop <= reach:
                continue
        widest, device, reach = index, identity[0], stop
    return found


def _span_of(named: tuple[tuple[Any, ...], str, str]) -> tuple[Any, ...]:
    return named[0][:3]


def publish(draft: Draft, run: str) -> str:
    """Makes a finished draft visible in a run directory: one rename, then it is durable.

    Raises `LeaseError` when the draft's directory was taken away: another process took the run over.
    """
    final = os.path.join(run, draft.name)
    try:
        files.rename(draft.directory, final)
    except OSError as error:
        draft.discard()
        raise _lost(error, draft.directory) from error
    try:
        files.sync_directory(run)
    except BaseException:
        # The save fails, so nothing of it may be found later: it goes back to where nobody looks.
        with contextlib.suppress(OSError):
            files.rename(final, draft.directory)
        draft.discard()
        raise
    return final


def _lost(error: OSError, path: str) -> Exception:
    if error.errno == errno.ENOENT:
        return LeaseError(
            f"This process no longer holds the run: {path} was taken away by a process that took the run over. "
            f"Nothing was published or deleted.",
            holder=None,
        )
    return storage_error(error, path, "publish")


def previous_name(path: str) -> str:
    """Where an older checkpoint waits while a newer one takes its place, on systems without exchange."""
    return os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.previous")


def replace(draft: Draft, target: str) -> None:
    """Puts a finished draft at `target`, in the place of a checkpoint that may be there.

    At every instant either the old or the new checkpoint is at `target`, or, where the system
    cannot exchange two names, the old one is at `.NAME.previous`, which readers know.
    """
    parent = os.path.dirname(target)
    if not os.path.lexists(target):
        with files.translated(target, "publish"):
            files.rename(draft.directory, target)
        with _undone(lambda: files.rename(target, draft.directory)):
            files.sync_directory(parent)
        _clear(previous_name(target))
        return
    if not os.path.isfile(os.path.join(target, CHECKPOINT_FILE)):
        raise UsageError(
            f"{target} exists and is not a checkpoint; it was left alone. Next: choose another name, or remove it.",
            path=target,
        )
    try:
        files.exchange(draft.directory, target)
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
            raise storage_error(error, target, "replace") from error
        _replace_by_two_renames(draft, target)
        return
    with _undone(lambda: files.exchange(draft.directory, target)):
        files.sync_directory(parent)
    files.remove_tree(draft.directory)  # by now the old checkpoint
    _clear(previous_name(target))


def _replace_by_two_renames(draft: Draft, target: str) -> None:
    parent, aside = os.path.dirname(target), previous_name(target)
    with files.translated(target, "replace"):
        _clear(aside)
        files.rename(target, aside)
        with _undone(lambda: files.rename(aside, target)):
            files.sync_directory(parent)
            files.rename(draft.directory, target)
            with _undone(lambda: files.rename(target, draft.directory)):
                files.sync_directory(parent)
    files.remove_tree(aside)


@contextlib.contextmanager
def _undone(undo: Callable[[], None]) -> Iterator[None]:
    """Takes a step back when what makes it durable fails: a save that failed must not be found later."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            undo()
        raise


def _clear(path: str) -> None:
    if os.path.lexists(path):
        files.remove_tree(path)
