"""Which of a run's checkpoints are meant, wherever they lie."""

from __future__ import annotations

import os
from collections.abc import Sequence

from holdfast.errors import NotFoundError, UsageError
from holdfast.format import names
from holdfast.mirrors.mirror import Mirror, checked
from holdfast.policy.keep import Keep, best_of
from holdfast.store import catalog
from holdfast.store.entry import Entry

WORDS = "best, latest, newest, a checkpoint's name, step=N, epoch=N, seq=N or -N"


def apart(url: str, run: str) -> str:
    """The place that a URL or a directory means, as `Mirror.path` gives it.

    Raises:
        UsageError: it is no place, or is the run, lies in it or holds it.

    """
    path = Mirror(url).path
    if os.path.realpath(path) == os.path.realpath(run):
        raise UsageError(f"{url} and {run} are the same place; nothing was changed.", found=url)
    return checked([url], run)[0].path


def choose(entries: Sequence[Entry], keep: Keep | None, words: Sequence[str], where: str) -> list[Entry]:
    """The checkpoints that some words mean, each once, oldest first.

    Args:
        entries: all that lie there.
        keep: the run's own, for `best`.
        words: as `WORDS` says.
        where: the run or the place, for messages.

    Raises:
        UsageError: a word means nothing.
        NotFoundError: there is no such checkpoint.

    """
    found = {entry.folder: entry for word in words for entry in [_one(entries, keep, word, where)]}
    return sorted(found.values(), key=lambda entry: (entry.sequence, entry.folder))


def _one(entries: Sequence[Entry], keep: Keep | None, word: str, where: str) -> Entry:
    named = next((entry for entry in entries if entry.folder == word), None)
    if named is not None:
        return named
    if names.parse_checkpoint_name(word) is not None:
        raise _none(entries, word, where)
    if word == "best":
        return _best(entries, keep, where)
    reference = names.parse_reference(f"{where}@{word.removeprefix('@')}")
    if word == "newest":
        reference = names.Reference(where)
    elif reference.which == "newest":
        raise UsageError(f"{word!r} means no checkpoint. Expected: {WORDS}.", found=word)
    return catalog.find(where, entries, reference)


def _best(entries: Sequence[Entry], keep: Keep | None, where: str) -> Entry:
    if keep is None or keep.metric is None:
        raise UsageError(
            f"{where} has no best checkpoint: its Keep names no metric. Next: --only newest, or a name.",
            path=where,
        )
    record = best_of(keep, [entry.record() for entry in entries])
    found = next((entry for entry in entries if record is not None and entry.folder == record.name), None)
    if found is None:
        raise _none(entries, "best", where)
    return found


def _none(entries: Sequence[Entry], word: str, where: str) -> NotFoundError:
    there = [entry.folder for entry in entries]
    shown = "".join(f"\n  {name}" for name in there[-10:])
    return NotFoundError(
        f"{where} has no checkpoint {word}.{f' It has:{shown}' if there else ' It has none.'}",
        path=where,
        candidates=there,
    )
