"""What `ModelCheckpoint` leaves under one name: a checkpoint or a file that Keras wrote, and what it says of itself.

Beside the weights each says its number in its folder, its epoch, its metrics and the best so far: a
checkpoint in its manifest, an HDF5 file in an attribute, a .keras archive in its comment, where Keras
and other readers do not look. So what is there, and how good it is, is known to the next process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import glob
import json
import os
import re
import string
import zipfile
from collections.abc import Iterator
from typing import Any

from holdfast import files, stage
from holdfast.errors import HoldfastError, StorageError, UsageError, storage_error
from holdfast.exchange import tensor_bundle
from holdfast.exchange.keras_files import MARK
from holdfast.store import catalog, single

CHECKPOINT, WEIGHTS, ARCHIVE, HDF5 = "checkpoint", "weights", "archive", "hdf5"
_MOST_TEXT = 60_000  # a comment of a ZIP archive has at most 65,535 bytes
_HDF5_SUFFIXES = (".h5", ".hdf5")
_ERRNO = re.compile(r"errno = (\d+)")


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """What a save says of itself.

    Attributes:
        sequence: its number among the saves in its folder, from 1; 0 where nobody counted.
        epoch: completed epochs.
        metrics: what Keras logged.
        best: ``{"metric", "mode", "value", "name"}``: the best so far, this one included.

    """

    sequence: int = 0
    epoch: int = 0
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    best: dict[str, Any] | None = None


def form_of(path: str, *, weights_only: bool) -> str:
    """What a file name means: a checkpoint, or a file of Keras' by its suffix.

    Raises:
        UsageError: with a name that would do.

    """
    if "://" in path:
        raise UsageError(
            f"filepath={path!r} is no path of a file system; what is saved here is renamed into its place, which only "
            f"those can. Next: save to a local or a network file system, and copy it from there.",
            found=path,
        )
    if weights_only:
        if path.endswith(".weights.h5"):
            return WEIGHTS
        if path.endswith((*_HDF5_SUFFIXES, ".keras")):
            stem = path.rpartition(".")[0]
            raise UsageError(
                f"filepath={path!r} with save_weights_only=True: Keras 3 keeps weights in files called *.weights.h5. Next: "
                f"filepath={f'{stem}.weights.h5'!r}; or a name without such a suffix, like {f'{stem}.ckpt'!r}, for a "
                f"Holdfast checkpoint.",
                found=path,
            )
        return CHECKPOINT
    if path.endswith(".keras"):
        return ARCHIVE
    if path.endswith(_HDF5_SUFFIXES):
        return HDF5
    raise UsageError(
        f"filepath={path!r}: Keras 3 saves a whole model as *.keras (or *.h5). Next: filepath={f'{path}.keras'!r}; or "
        f"save_weights_only=True, for a Holdfast checkpoint with weights and optimizer.",
        found=path,
    )


# -- writing -----------------------------------------------------------------------------------


def write(model: Any, path: str, form: str, record: Record) -> None:
    """Saves a model under a name, in the place of what may be there; durable when it returns.

    Raises:
        UsageError: something else of that name is there.
        StorageError: the storage refused; what was there is as it was.

    """
    from holdfast.keras import weights

    target = real_place(path)
    if form == CHECKPOINT:
        weights.save_checkpoint(model, target, record)
        return
    if os.path.islink(target):
        target = os.path.realpath(target)  # what a link points to is what is replaced
    if os.path.isdir(target):
        raise StorageError(
            f"Cannot write {path}: it is a directory. Next: choose another filepath.",
            errno=errno.EISDIR,
            path=path,
            operation="write",
        )
    weights.built_optimizer(model)  # so that what is loaded into a built one has all that it needs
    files.make_directory(os.path.dirname(target))
    with single.beside(target) as writing:
        file = os.path.join(writing, os.path.basename(target))
        with _refusals(path):
            if form == WEIGHTS:
                model.save_weights(file)
            else:
                model.save(file)
            # That it can be opened again is seen here, too, before it gets its name.
            (_stamp_archive if form == ARCHIVE else _stamp_hdf5)(file, _text(record))
        files.sync_file(file)
        single.publish_file(file, target)


@contextlib.contextmanager
def _refusals(path: str) -> Iterator[None]:
    """Turns what the system refused into a `StorageError`, in whatever way HDF5 passes it on."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        told = _ERRNO.search(str(error))
        if error.errno is None and told is None:
            raise
        number = error.errno or int(told[1]) if told else error.errno
        raise storage_error(OSError(number, os.strerror(number or 0)), path, "write") from error
    except RuntimeError as error:
        told = _ERRNO.search(str(error))
        if told is None:
            raise
        raise storage_error(OSError(int(told[1]), os.strerror(int(told[1]))), path, "write") from error


def _text(record: Record) -> str:
    content = dataclasses.asdict(record)
    text = json.dumps(content)
    if len(text) > _MOST_TEXT:
        text = json.dumps({**content, "metrics": {}})
    return text


def _stamp_hdf5(file: str, text: str) -> None:
    import h5py

    with h5py.File(file, "r+") as opened:
        opened.attrs[MARK] = text


def _stamp_archive(file: str, text: str) -> None:
    with zipfile.ZipFile(file, "a") as archive:
        archive.comment = f"{MARK} {text}".encode("ascii")


# -- reading what they say -----------------------------------------------------------------------


def read_record(path: str) -> Record | None:
    """What a checkpoint or a file says of itself; None for what neither Holdfast wrote nor can be read."""
    try:
        if os.path.isdir(path):
            manifest = catalog.read_manifest(path)
            return Record(manifest.sequence, manifest.progress.epoch, best=manifest.best)
        text = _archive_text(path) if path.endswith(".keras") else _hdf5_text(path)
        content = json.loads(text) if text else None
        return (
            Record(**content)
            if isinstance(content, dict) and isinstance(content.get("sequence"), int)
            else None
        )
    except (HoldfastError, OSError, ValueError, TypeError, KeyError, RuntimeError, zipfile.BadZipFile):
        return None


def _hdf5_text(path: str) -> str | None:
    import h5py

    with h5py.File(path, "r") as opened:
        found = opened.attrs.get(MARK)
    return found if isinstance(found, str) else None


def _archive_text(path: str) -> str | None:
    with zipfile.ZipFile(path) as archive:
        mark, _, text = archive.comment.decode("ascii").partition(" ")
    return text if mark == MARK else None


class Sequences:
    """Numbers of the saves in folders: each is looked through once, and counted on from there."""

    def __init__(self) -> None:
        self._last: dict[str, int] = {}

    def next_in(self, folder: str) -> int:
        if folder not in self._last:
            records = (read_record(path) for path in candidates(real_folder(folder)))
            self._last[folder] = max((record.sequence for record in records if record is not None), default=0)
        self._last[folder] += 1
        return self._last[folder]


def latest_checkpoint(
    checkpoint_dir: str | os.PathLike[str], latest_filename: str | None = None
) -> str | None:
    """The newest save in a folder, as `tf.train.latest_checkpoint` says it: a path, or None when there is none.

    Newest is what was saved last by Holdfast's own count, whatever the clock said and whatever the names are:
    Holdfast checkpoints, and ``.weights.h5``, ``.keras`` and ``.h5`` files. Where Holdfast saved nothing yet, it is
    the newest file of Keras' own, or what TensorFlow's file ``checkpoint`` names.

    Args:
        checkpoint_dir: the folder; a Holdfast run stands for its newest whole checkpoint.
        latest_filename: taken for TensorFlow's sake, and not used.

    """
    del latest_filename
    folder = os.fspath(checkpoint_dir)
    place = real_folder(folder)
    if catalog.is_run(place):
        from holdfast.checkpoint import open_checkpoint

        with contextlib.suppress(HoldfastError):
            return open_checkpoint(place).path
        return None
    found = newest(candidates(place))
    return None if found is None else os.path.join(folder, os.path.basename(found))


def candidates(folder: str) -> list[str]:
    """What in a folder may be a save: checkpoints, Keras' files, and TensorFlow's newest."""
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    paths = [os.path.join(folder, name) for name in names if not name.startswith(".")]
    found = [path for path in paths if _is_save(path)]
    prefix = tensor_bundle.newest(folder)
    return [*found, *([prefix] if prefix is not None and prefix not in found else [])]


def _is_save(path: str) -> bool:
    if os.path.isdir(path):
        return catalog.is_checkpoint(path)
    return path.endswith((*_HDF5_SUFFIXES, ".keras"))


def newest(paths: list[str]) -> str | None:
    """The newest of some saves: by number, then by time, then by name. What cannot be read is passed over."""
    ranked = []
    for path in paths:
        record = read_record(path)
        if record is None and os.path.isdir(path):
            continue  # a checkpoint whose manifest cannot be read is none
        ranked.append((record.sequence if record else 0, _time(path), path))
    return max(ranked)[2] if ranked else None


def _time(path: str) -> int:
    for place in (os.path.join(path, "checkpoint.json"), path, f"{path}.index"):
        with contextlib.suppress(OSError):
            return os.stat(place).st_mtime_ns
    return 0


# -- names with braces -----------------------------------------------------------------------------


def matching(pattern: str) -> list[tuple[str, Record | None]]:
    """What lies under the names that a `filepath` with braces can mean, with what each says of itself."""
    place = os.path.dirname(pattern)
    base = os.path.basename(pattern)
    folder = place if "{" in place else real_folder(place or ".")
    text = os.path.join(_wild(folder), _wild(base))
    return [(_named(path, pattern), read_record(path)) for path in sorted(glob.glob(text)) if _is_save(path)]


def newest_of(pattern: str) -> str | None:
    """The newest of what lies under the names that a `filepath` can mean."""
    return newest([path for path, _ in matching(pattern)])


def _wild(text: str) -> str:
    pieces = string.Formatter().parse(text)
    return "".join(glob.escape(literal) + ("" if field is None else "*") for literal, field, _, _ in pieces)


def _named(path: str, pattern: str) -> str:
    """The path as the script would write it."""
    place = os.path.dirname(pattern)
    return path if "{" in place else os.path.join(place, os.path.basename(path))


def real_place(path: str) -> str:
    """Where a save of that name lies: there, or, in a process that is rehearsed, where that keeps it."""
    parent, base = os.path.split(os.path.abspath(path))
    return os.path.join(real_folder(parent), base)


def real_folder(folder: str) -> str:
    """Where the saves of a folder lie, likewise."""
    rehearsed = stage.current()
    place = os.path.abspath(folder)
    return place if rehearsed is None else rehearsed.place(place, stage.SAVES)
