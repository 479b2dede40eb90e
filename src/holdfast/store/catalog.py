"""A run's directory as a list of checkpoints, and what a reference means in it. Reads only."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import itertools
import os
import stat
from collections.abc import Iterator, Sequence

from holdfast import files
from holdfast.errors import (
    CheckpointError,
    DamagedError,
    FormatError,
    NotFoundError,
    StorageError,
    UsageError,
    nearest,
    storage_error,
)
from holdfast.format import names
from holdfast.format.manifest import (
    CHECKPOINT_FILE,
    READ_LIMIT_CHECKPOINT,
    Manifest,
    decode_manifest,
)
from holdfast.format.names import Reference
from holdfast.format.summary import Reader
from holdfast.format.table import ARRAYS_FILE
from holdfast.objects import urls
from holdfast.policy.keep import Keep, best_of
from holdfast.store import book, sources
from holdfast.store.entry import Entry
from holdfast.store.publish import previous_name

PINS, ABANDONED, SUBMITTED = book.PINS, book.ABANDONED, "submitted"


def is_run(path: str) -> bool:
    """Whether there is a run; `StorageError` when the storage does not say."""
    return _holds(path, book.RUN_FILE)


def is_checkpoint(path: str) -> bool:
    """Whether there is a checkpoint, whole or not; `StorageError` when the storage does not say."""
    return _holds(path, CHECKPOINT_FILE)


def _holds(folder: str, name: str) -> bool:
    if urls.is_url(folder):
        from holdfast.store import distant

        return distant.holds(folder, name)
    # Not os.path.isfile: it takes an I/O error for an answer, and a run would be begun over another.
    path = os.path.join(folder, name)
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENAMETOOLONG):
            return False
        raise storage_error(error, path, "look at") from error


def _seems(path: str) -> bool:
    """Whether a run or a checkpoint can be seen there: good enough for a suggestion."""
    with contextlib.suppress(StorageError):
        return is_run(path) or is_checkpoint(path)
    return False


def read_manifest(path: str) -> Manifest:
    """A checkpoint's manifest, checked as far as it can be by itself."""
    source, file = sources.source_of(path), os.path.join(path, CHECKPOINT_FILE)
    try:
        return decode_manifest(source.small(CHECKPOINT_FILE, READ_LIMIT_CHECKPOINT), file)
    except DamagedError:
        if not source.distant:
            raise
        # The way may be at fault.
        return decode_manifest(source.small(CHECKPOINT_FILE, READ_LIMIT_CHECKPOINT), file)


def marks(run: str, kind: str) -> set[str]:
    """The names marked in `pins/` or `abandoned/`."""
    directory = marks_directory(run, kind)
    with files.translated(directory, "list"):
        try:
            return set(os.listdir(directory))
        except (FileNotFoundError, NotADirectoryError):
            return set()


def marks_directory(run: str, kind: str) -> str:
    """Where marks of a kind lie. A link is a `FormatError`: marks are made and deleted in there."""
    directory = os.path.join(run, kind)
    if os.path.islink(directory):
        raise FormatError(
            f"{directory} is a symbolic link; a run keeps its marks in a folder of its own. Nothing was changed. "
            f"Next: remove the link.",
            path=directory,
        )
    return directory


def scan(run: str) -> list[Entry]:
    """All checkpoints of a run, oldest first; each is read when it is asked for more than its name says."""
    if urls.is_url(run):
        from holdfast.store import distant

        return distant.scan(run)
    source = (book.read_run(run).id, Reader())
    pinned, abandoned = marks(run, PINS), marks(run, ABANDONED)
    with files.translated(run, "list"):
        listing = os.listdir(run)
    start = os.path.join(run, "")
    entries = [
        Entry(
            start + text,
            text,
            name,
            pinned=text in pinned,
            abandoned=text in abandoned,
            source=source,
        )
        for text in listing
        if (name := names.parse_checkpoint_name(text)) is not None
    ]
    entries.sort(key=lambda entry: (entry.name.sequence, entry.folder))
    return entries


def newest(entries: Sequence[Entry]) -> Iterator[Entry]:
    """What a run resumes from, best candidate first: clean ones by sequence, then NaN-marked ones.

    No more are read than are asked for, and the damaged ones among them.
    """
    marked = []
    for entry in reversed(entries):
        if entry.usable:
            if entry.clean:
                yield entry
            else:
                marked.append(entry)
    yield from (entry for entry in marked if entry.usable)


def resolve(text: str) -> str:
    """The directory, or the URL, of the checkpoint that a reference means.

    Raises:
        NotFoundError: with what is there instead. Nothing is ever created.

    """
    reference = names.parse_reference(text)
    place = sources.absolute(reference.place)
    if is_run(place):
        return find(place, scan(place), reference).path
    for path in (place,) if urls.is_url(place) else (place, previous_name(place)):
        if is_checkpoint(path):
            if reference.which != "newest":
                raise UsageError(
                    f"{reference.place} is a checkpoint, not a run; write it without "
                    f"{str(reference)[len(reference.place) :]}.",
                    path=place,
                )
            if path != place:
                _say_previous(place, path)
            return path
    raise _nothing_at(reference, place)


def _say_previous(place: str, path: str) -> None:
    import logging

    logging.getLogger("holdfast").warning(
        "%s is missing; its predecessor %s is whole and is used: a save was interrupted between two renames.",
        place,
        path,
    )


def _nothing_at(reference: Reference, place: str) -> CheckpointError:
    if urls.is_url(place):
        return _nothing_below(place)
    if os.path.isdir(place):
        children = sorted(name for name in _list(place) if _seems(os.path.join(place, name)))
        hint = f" It holds the runs {', '.join(children[:10])}." if children else ""
        if os.path.lexists(os.path.join(place, ARRAYS_FILE)):
            hint = f" It holds {ARRAYS_FILE}, though: a checkpoint that lost its {CHECKPOINT_FILE} cannot be read."
        return NotFoundError(
            f"{place} is neither a run nor a checkpoint: it has no run.json and no checkpoint.json.{hint}",
            path=place,
            candidates=children,
        )
    if os.path.exists(place):
        return FormatError(f"{place} is a file; a run and a checkpoint are directories.", path=place)
    parent = os.path.dirname(place)
    siblings = [name for name in _list(parent) if _seems(os.path.join(parent, name))]
    near = nearest(os.path.basename(place), siblings)
    listing = f" In {parent} there are: {', '.join(sorted(siblings)[:10])}." if siblings else ""
    selector = f" (selectors are {names.SELECTORS})" if "@" in reference.place else ""
    return NotFoundError(
        f"There is no run or checkpoint {place}{selector}.{f' {near[0].upper()}{near[1:]}' if near else ''}{listing}",
        path=place,
        candidates=siblings,
    )


def _nothing_below(url: str) -> NotFoundError:
    """What is said where a URL leads to neither a run nor a checkpoint."""
    from holdfast.store import distant

    below = distant.runs(url, 1)
    hint = f" Below it are the runs {', '.join(below[:10])}." if below else ""
    parent, near = url.rpartition("/")[0], ""
    if not below and not parent.endswith("/"):
        beside = distant.runs(parent, 1)
        near = nearest(url, beside)
        hint = f" Beside it there are: {', '.join(beside[:10])}." if beside else ""
        below = beside
    return NotFoundError(
        f"There is no run or checkpoint at {url}: it has no run.json and no checkpoint.json."
        f"{f' {near[0].upper()}{near[1:]}' if near else ''}{hint}",
        path=url,
        candidates=below,
    )


def _list(path: str) -> list[str]:
    with contextlib.suppress(OSError):
        return os.listdir(path)
    return []


def find(run: str, entries: Sequence[Entry], reference: Reference) -> Entry:
    """The entry that a reference means in a scanned run; `NotFoundError` lists what there is."""
    usable = (entry for entry in reversed(entries) if entry.usable)  # newest first, read one by one
    which, value = reference.which, reference.value
    found: Entry | None = None
    if which == "newest":
        found = next(newest(entries), None)
    elif which == "latest":
        found = next(usable, None)
    elif which == "back":
        found = next(itertools.islice(usable, value - 1, None), None)
    elif which == "seq":
        found = next((e for e in entries if e.sequence == value), None)
        if found is not None and found.problem is not None:
            raise found.problem
    elif which in ("step", "epoch"):
        named = [e for e in entries if (e.name.step if which == "step" else e.name.epoch) == value]
        right = (e for e in reversed(named) if e.usable)
        found = next(
            (e for e in right if which == "step" or (e.summary and e.summary.progress.batch == 0)), None
        )
        if found is None:  # better to hear what is the matter with it
            unread = [e.problem for e in named if e.summary is None]
            if unread and unread[-1] is not None:
                raise unread[-1]
    elif which == "best":
        found = best_entry(run, entries)
    if found is None:
        raise _no_such(run, entries, reference)
    return found


def best_entry(run: str, entries: Sequence[Entry]) -> Entry | None:
    """The best checkpoint by the run's own Keep; `UsageError` when the run has no metric."""
    keep = run_keep(run)
    if keep is None or keep.metric is None:
        raise UsageError(
            f"{run} has no best checkpoint: its Keep names no metric. "
            f'Next: Run(…, keep=Keep(best=1, metric="val_accuracy", mode="max")).',
            path=run,
        )
    record = best_of(keep, [entry.record() for entry in entries])
    return next((entry for entry in entries if record and entry.folder == record.name), None)


def run_keep(run: str) -> Keep | None:
    """The Keep that run.json records."""
    return keep_of(book.read_run(run), run)


def keep_of(owner: book.RunBook, run: str) -> Keep | None:
    """The Keep that a run.json records; `run` is where it lies, for messages."""
    stored = owner.keep
    known = {field.name for field in dataclasses.fields(Keep)}
    try:
        return Keep(**{name: value for name, value in stored.items() if name in known}) if stored else None
    except UsageError as error:
        raise FormatError(f"{os.path.join(run, book.RUN_FILE)}: {error}", path=run, found=stored) from error


def _no_such(run: str, entries: Sequence[Entry], reference: Reference) -> NotFoundError:
    if not entries:
        return NotFoundError(f"The run {run} has no checkpoint yet.", path=run, candidates=[])
    lines = [
        f"The run {run} has no checkpoint for {str(reference)[len(reference.place) :] or 'resuming'}. It has:"
    ]
    for entry in entries[-10:]:
        state = "damaged or foreign" if entry.problem else "abandoned" if entry.abandoned else ""
        lines.append(f"  {entry.folder}{f'  ({state})' if state else ''}")
    if len(entries) > 10:
        lines.insert(1, f"  … {len(entries) - 10} older ones")
    return NotFoundError("\n".join(lines), path=run, candidates=[e.folder for e in entries])
