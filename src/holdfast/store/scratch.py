"""Where `holdfast.save` builds a checkpoint that belongs to no run, and what a kill leaves of it.

The directory's name says which process made it, so that the next save of the same checkpoint can
remove what a dead one left, and leaves a living one's alone. Of a process on another machine, or
before a reboot of this one, the name proves nothing; what nobody has touched for a day is a dead one's.
"""

from __future__ import annotations

import contextlib
import os
import time
import uuid

from holdfast import files
from holdfast.errors import StorageError
from holdfast.store.holder import judge, myself, signature, signed

_SILENT_SECONDS = 24 * 3600  # no save goes on for so long without making or writing a file


def _prefix(base: str) -> str:
    return f".{base}.writing-"


def name_for(base: str) -> str:
    """A new name, beside the checkpoint `base`, that names this process."""
    return f"{_prefix(base)}{signature()}_{uuid.uuid4().hex[:8]}"


def sweep(parent: str, base: str) -> None:
    """Removes what dead processes left; what cannot be judged yet, or cannot be removed, stays."""
    prefix = _prefix(base)
    me = myself(0)
    for name in os.listdir(parent):
        fields = name.removeprefix(prefix).split("_")
        maker = signed(fields[:-1]) if name.startswith(prefix) else None
        if maker is None:
            continue
        path = os.path.join(parent, name)
        life = judge(maker, me, ())
        if life == "unknown" and _last_touched(path) < time.time() - _SILENT_SECONDS:
            life = "dead"
        elif maker.pid == me.pid:  # another thread may be at it
            continue
        if life == "dead":
            with contextlib.suppress(StorageError):
                files.remove_tree(path)


def _last_touched(path: str) -> float:
    """When something in a folder was last made, removed or written."""
    latest = 0.0
    for place, _, names in os.walk(path):
        for one in (place, *(os.path.join(place, name) for name in names)):
            with contextlib.suppress(FileNotFoundError):
                latest = max(latest, os.lstat(one).st_mtime)
    return latest
