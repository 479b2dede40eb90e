"""The checkpoints in a directory, looked at again and again: each manifest is read once."""

from __future__ import annotations

from collections.abc import Callable

from holdfast.store import catalog
from holdfast.store.entry import Entry


class Listing:
    """A run's directory, or a mirror's.

    Args:
        directory: where it lies.
        examine: called once with each of the newest checkpoints; sets what is the matter with it.

    """

    def __init__(self, directory: str, examine: Callable[[Entry], None] | None = None) -> None:
        self._directory, self._examine = directory, examine
        self._known: dict[str, Entry] = {}

    def scan(self) -> list[Entry]:
        """The checkpoints, oldest first, with the marks of this moment. A damaged one is read anew."""
        found = catalog.scan(self._directory)
        for place, entry in enumerate(found):
            known = self._known.get(entry.folder)
            if known is not None and known.was_read and known.whole:
                known.pinned, known.abandoned = entry.pinned, entry.abandoned
                found[place] = known
            elif self._examine is not None and place >= len(found) - _LOOKED_AT:
                self._examine(entry)
        self._known = {entry.folder: entry for entry in found}
        return found

    def forget(self, name: str) -> None:
        """What is known of a checkpoint counts no more: another one takes its name."""
        self._known.pop(name, None)


_LOOKED_AT = 20
"""So many of the newest are looked at for missing and cut files; to read them is the business of `verify`."""
