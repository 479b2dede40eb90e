"""The order in which things are done when the process ends: runs are closed while their mirrors can still be asked.

Handlers of `atexit` are called in the reverse order of their registration. This module's own is registered when it is
imported: so before all that is registered through it, and before what a script registers later.
"""

from __future__ import annotations

import atexit
from collections.abc import Callable

_calls: list[Callable[[], object]] = []


def at_exit(call: Callable[[], object]) -> None:
    """Has `call` called when the process ends."""
    atexit.register(call)


def lastly(call: Callable[[], object]) -> None:
    """Has `call` called after all that `at_exit` was given."""
    _calls.append(call)


@atexit.register
def _call_all() -> None:
    while _calls:
        _calls.pop()()
