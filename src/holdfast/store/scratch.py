"""Where `holdfast.save` builds a checkpoint that belongs to no run, and what a kill leaves of it.

The directory's name says which process made it, so that the next save of the same checkpoint can
remove what a dead one left, and leaves a living one's alone.
"""

from __future__ import annotations

import contextlib
import os
import uuid

from holdfast import files
from holdfast.errors import StorageError
from holdfast.store.holder import Holder, judge, myself


def _prefix(base: str) -> str:
    return f".{base}.writing-"


def name_for(base: str) -> str:
    """A new name, beside the checkpoint `base`, that names this process."""
    me = myself(0)
    identity = f"{me.boot_id}_{me.pid_namespace}_{me.pid}_{me.process_start}"
    return f"{_prefix(base)}{identity}_{uuid.uuid4().hex[:8]}"


def sweep(parent: str, base: str) -> None:
    """Removes what dead processes of this machine left; what cannot be judged or removed stays."""
    prefix = _prefix(base)
    me = myself(0)
    for name in os.listdir(parent):
        fields = name.removeprefix(prefix).split("_")
        if not name.startswith(prefix) or len(fields) != 5 or not (fields[1] + fields[2]).isdigit():
            continue
        maker = Holder(
            generation=0,
            boot_id=fields[0],
            pid_namespace=int(fields[1]),
            pid=int(fields[2]),
            process_start=fields[3],
        )
        if maker.pid != me.pid and judge(maker, me, ()) == "dead":
            with contextlib.suppress(StorageError):
                files.remove_tree(os.path.join(parent, name))
