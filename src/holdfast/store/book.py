"""What a run writes down beside its checkpoints: run.json (small, replaced whole) and history.jsonl."""

from __future__ import annotations

import datetime
import json
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from holdfast import files
from holdfast.errors import DamagedError, FormatError, HoldfastError, NotFoundError
from holdfast.format import sealed
from holdfast.format.fields import VERSION, check_version
from holdfast.store.sources import source_of

RUN_FILE, HISTORY_FILE = "run.json", "history.jsonl"
PINS, ABANDONED = "pins", "abandoned"
"""Where a run keeps its marks: an empty file for each, named as the checkpoint is."""
LIMIT = 4 << 20
"""Bytes that a run.json has at most."""
_EVENTS_LIMIT, _LINE_LIMIT = 64 << 20, 1 << 20


class RunBook(msgspec.Struct, kw_only=True):
    """The content of `run.json`."""

    format: str = "holdfast-run"
    version: tuple[int, int] = VERSION
    id: str
    created: str
    note: str = ""
    config: Any = None
    keep: dict[str, Any] | None = None
    init: Any = None
    goals: dict[str, Any] = {}
    reached: dict[str, Any] | None = None
    restarts: dict[str, Any] | None = None
    mirrors: list[dict[str, Any]] | None = None
    rewound: str | None = None
    used: int = 0
    """The highest number of a checkpoint that the run had in a place that it was pulled from."""


def new_run() -> RunBook:
    import uuid

    return RunBook(id=uuid.uuid4().hex, created=now())


def read_run(run: str) -> RunBook:
    """The run's book; `NotFoundError` when there is no run in the directory, or at the URL."""
    try:
        data = source_of(run).small(RUN_FILE, LIMIT)
    except NotFoundError:
        raise NotFoundError(f"{run} is not a run: it has no {RUN_FILE}.", path=run, candidates=[]) from None
    return decode_run(data, run)


def decode_run(data: bytes, run: str) -> RunBook:
    """The book of the run in a directory, or at a URL, from the bytes of its run.json."""
    path = os.path.join(run, RUN_FILE)
    try:
        content = sealed.decode(data, path)
    except DamagedError as error:
        raise DamagedError(
            f"{path} is damaged: its last line is not the digest of what is before it. Next: put a copy of it back (a "
            f"mirror or a backup has one). Without one each checkpoint in {run} still opens by its own path, and a new "
            f"run can start from one with init={{…}}.",
            **{**error.facts, "path": run},
        ) from error
    check_version(content, "holdfast-run", path)
    try:
        return msgspec.convert(content, RunBook, strict=True)
    except (msgspec.ValidationError, UnicodeEncodeError) as error:  # the latter of text with half a character
        raise FormatError(f"{path} is not as the format says: {error}.", path=path) from error


def write_run(run: str, book: RunBook, writing: str) -> None:
    """Replaces run.json by a rename out of the holder's own directory, which a lost lease makes fail."""
    scratch = os.path.join(writing, RUN_FILE)
    files.remove_file(scratch)
    files.create_file(scratch, sealed.encode(msgspec.to_builtins(book, str_keys=True)))
    with files.translated(os.path.join(run, RUN_FILE), "write"):
        files.rename(scratch, os.path.join(run, RUN_FILE))
    files.sync_directory(run)


def note_event(run: str, event: str, /, **facts: Any) -> None:
    """Adds a line to history.jsonl. Nothing is decided from it; a torn last line is skipped by readers.

    A history that cannot be written is a warning: it never fails what it tells of.
    """
    note_events(run, [{"time": now(), "event": event, **facts}])


def note_events(run: str, events: Sequence[Mapping[str, Any]]) -> None:
    """Adds a line for each event, in one write."""
    lines = [json.dumps(event, allow_nan=False, default=str) + "\n" for event in events]
    try:
        files.append(os.path.join(run, HISTORY_FILE), "".join(lines).encode("ascii"))
    except HoldfastError as error:
        logging.getLogger("holdfast").warning("The history could not be written: %s", error)


def read_events(run: str, limit: int = _EVENTS_LIMIT) -> list[dict[str, Any]]:
    """The events so far, oldest first; of a longer history those in its last `limit` bytes.

    Lines that are not whole JSON objects are left out.
    """
    events = []
    try:
        for line in files.read_lines(os.path.join(run, HISTORY_FILE), limit, _LINE_LIMIT):
            try:
                event = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(event, dict):
                events.append(event)
    except HoldfastError:
        return []
    return events


def now() -> str:
    """The time as in every file of a run: UTC, ISO 8601, milliseconds."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
