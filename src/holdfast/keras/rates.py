"""What a training has made of an optimizer's settings, so that a later launch in this process does not take it for the script's.

In a notebook a cell that was interrupted is run again: a new run on the same path, with the same compiled model,
whose learning rate a callback has changed meanwhile. It declares what was declared when that training began.
"""

from __future__ import annotations

import dataclasses
import weakref
from typing import Any

from holdfast import hyperparameters


@dataclasses.dataclass(slots=True)
class _Known:
    """What is known of an optimizer.

    Attributes:
        path: the run that it was trained in.
        declared: its settings where that training began.
        seen: its settings where that training was seen last.

    """

    path: str
    declared: dict[str, Any]
    seen: dict[str, Any]


_known: weakref.WeakKeyDictionary[Any, _Known] = weakref.WeakKeyDictionary()


def declared(optimizer: Any, path: str) -> dict[str, Any] | None:
    """The settings of an optimizer as the script says them, where it is about to be trained in a run."""
    now = hyperparameters.declare(optimizer)
    known = _known.get(optimizer)
    if now is not None and (known is None or (known.path, known.seen) != (path, now)):
        known = _known[optimizer] = _Known(path, now, now)
    return known.declared if known is not None and now is not None else None


def look_at(optimizer: Any) -> None:
    """Notes the settings as the training has them now."""
    known, now = _known.get(optimizer), hyperparameters.declare(optimizer)
    if known is not None and now is not None:
        known.seen = now
