"""The variables of the script that hold a state of their own: what a resumed launch may lack.

A rehearsal notes them beside each checkpoint. A variable that is not the same in the straight and in
the resumed training, at the same progress, is what a person wants to be told: `total`, which is
summed up outside `run.state`; `rng`, which nobody tracks. Only looked at, never changed: from objects
that could answer with a side effect (a loader's `state_dict`) nothing is asked.
"""

from __future__ import annotations

import os
import random
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any

from holdfast.state import adapters, capture, streams
from holdfast.trail import digest

_NUMBERS = (int, float, complex)
_MANY = 10_000
_LARGE = 1 << 22  # bytes; larger arrays outside of modules are data
# What of the kind "object" answers state_dict() without doing anything.
_HARMLESS = ("torch.optim.", "torch.amp.", "torch.cuda.amp.")
_DEEPEST = 50


def look(tracked: Mapping[str, Any], own: tuple[Any, ...]) -> dict[str, dict[str, Any]]:
    """The variables of the script's functions that are running, and of its modules, by ``place:name``.

    Args:
        tracked: what the run saves: its parts, and all that belongs to them, are left out.
        own: further objects to leave out (the run, its state).

    """
    known = {id(thing) for thing in (*own, *_with_modules(tracked))}
    found: dict[str, dict[str, Any]] = {}
    seen: set[int] = set()
    for where, names in _scopes(sys._getframe(1)):
        for name, value in list(names.items()):
            if name.startswith("__") or id(value) in known:
                continue
            _note(f"{where}:{name}", value, known, seen, found, deep=True)
    return found


def _scopes(frame: FrameType | None) -> Iterator[tuple[str, dict[str, Any]]]:
    modules: dict[str, dict[str, Any]] = {}
    depth = 0
    while frame is not None and depth < _DEEPEST:
        depth += 1
        code = frame.f_code
        if not _foreign(code.co_filename, str(frame.f_globals.get("__name__", ""))):
            file = os.path.basename(code.co_filename)
            modules.setdefault(file, frame.f_globals)
            if code.co_name != "<module>":
                yield f"{file}:{code.co_name}", frame.f_locals
        frame = frame.f_back
    for file, names in modules.items():
        yield f"{file}:", names


def _foreign(file: str, module: str) -> bool:
    """Whether code belongs to a library: ours, Python's, or an installed one."""
    return module.partition(".")[0] == "holdfast" or file.startswith(("<", *_LIBRARIES))


_LIBRARIES = tuple({path + os.sep for key, path in sysconfig.get_paths().items() if key.endswith("lib")})


def _with_modules(tracked: Mapping[str, Any]) -> Iterator[Any]:
    for thing in tracked.values():
        yield thing
        modules = getattr(thing, "modules", None)
        if adapters.home_framework(type(thing)) is not None and callable(modules):
            yield from modules()


def _note(
    key: str,
    value: Any,
    known: set[int],
    seen: set[int],
    found: dict[str, dict[str, Any]],
    *,
    deep: bool,
) -> None:
    if isinstance(value, bool | str | bytes | type(None)):
        return
    if isinstance(value, _NUMBERS):
        found[key] = {"kind": "number", "value": repr(value)}
        return
    if id(value) in seen:  # the same object under another name
        return
    seen.add(id(value))
    try:
        fact = _state(value)
    except Exception as error:  # a stranger's code: the training must not end by being watched
        fact = {"kind": _name(type(value)), "failed": f"{type(error).__name__}: {error}"}
    if fact is not None:
        found[key] = fact
    elif deep and _of_the_user(type(value)) and hasattr(value, "__dict__"):
        for name, item in list(vars(value).items()):
            if id(item) not in known:
                _note(f"{key}.{name}", item, known, seen, found, deep=False)


def _of_the_user(kind: type) -> bool:
    module = sys.modules.get(kind.__module__)
    file = getattr(module, "__file__", None)
    return isinstance(file, str) and not _foreign(file, kind.__module__)


def _state(value: Any) -> dict[str, Any] | None:
    """What is noted of an object: its kind, a digest, and whether it could be tracked."""
    kind = type(value)
    if kind in (list, tuple) or kind.__name__ == "deque":
        items = list(value) if len(value) <= _MANY else []
        if items and all(type(item) in _NUMBERS for item in items):
            return {"kind": f"{len(items)} numbers", "value": digest(repr(items).encode())}
        return None
    if kind is dict:
        if 0 < len(value) <= _MANY and all(type(item) in _NUMBERS for item in value.values()):
            return {"kind": f"{len(value)} numbers", "value": digest(repr(value).encode())}
        return None
    framework = adapters.array_framework(kind)
    if framework is not None:
        return _array(value, framework)
    if isinstance(value, random.Random) or _is_generator(value):
        (text,) = streams.digests({"": value}).values()
        return {"kind": _name(kind), "value": text, "trackable": _name(kind) != "numpy.random.RandomState"}
    what = capture.kind_of(value)
    if what is None or (what == "object" and not _name(kind).startswith(_HARMLESS)):
        return None
    state = capture.capture("watched", value, {})
    pieces = [repr(state.skeleton)]
    for name, array in state.arrays.items():
        pieces.append(f"{name} {array.dtype} {array.shape}")
        if array.nbytes:
            pieces.append(digest(memoryview(array.open())))
    return {"kind": _name(kind), "value": digest("\n".join(pieces).encode()), "trackable": True}


def _array(value: Any, framework: str) -> dict[str, Any] | None:
    array = adapters.edge(framework).describe(value, "watched")
    if array.nbytes > _LARGE:
        return None
    content = digest(memoryview(array.open())) if array.nbytes else ""
    return {"kind": f"{_name(type(value))} {list(array.shape)}", "value": content}


def _is_generator(value: Any) -> bool:
    return _name(type(value)) in (
        "numpy.random._generator.Generator",
        "numpy.random.mtrand.RandomState",
        "torch._C.Generator",
        "torch.Generator",
    )


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
