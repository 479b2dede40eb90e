"""The values of a skeleton that name a class of the program, and moments in time.

Looking a class up imports nothing and runs nothing: it must be loaded already.
"""

from __future__ import annotations

import datetime
import functools
import operator
import sys
import types
from collections.abc import Mapping
from typing import Any

from holdfast.errors import FormatError


def class_name(value: Any) -> str:
    """``module:Qualified.name`` of a value's class."""
    return f"{type(value).__module__}:{type(value).__qualname__}"


def loaded_class(name: str) -> Any:
    """What a name that `class_name` gave leads to, or None where its module is not loaded."""
    module, _, qualname = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in qualname.split("."):
        # Past __getattr__ and __getattribute__: a lookup must not run a module's or a descriptor's
        # code, nor load a module that was put off until its first use.
        found = _names_of(found).get(part)
    return found


def _names_of(found: Any) -> Mapping[str, Any]:
    kind = type(found)  # isinstance would ask the module for its __class__
    if issubclass(kind, type):
        return type.__dict__["__dict__"].__get__(found)  # type: ignore[no-any-return]
    return object.__getattribute__(found, "__dict__") if issubclass(kind, types.ModuleType) else {}


def combined_flags(kind: Any, name: str | None, value: Any) -> Any:
    """A combination of flags, put together from its members; its plain value if one is not there."""
    members = kind.__members__
    if not name:
        first = next(iter(members.values()), None)
        return value if first is None else first ^ first
    if not all(word in members for word in name.split("|")):
        return value
    return functools.reduce(operator.or_, (members[word] for word in name.split("|")))


TIMES = {"datetime", "date", "time", "timedelta"}


def encode_time(value: Any) -> Any:
    """A date, time or duration as a tagged object; None for a subclass, or a zone without a name."""
    kind = type(value)
    if kind is datetime.timedelta:
        return {"$": "timedelta", "v": [value.days, value.seconds, value.microseconds]}
    if kind is datetime.date:
        return {"$": "date", "v": value.isoformat()}
    if kind in (datetime.datetime, datetime.time):
        zone = value.tzinfo
        key = getattr(zone, "key", None)
        if zone is not None and key is None and not isinstance(zone, datetime.timezone):
            return None
        if key is None and not value.fold:
            return {"$": kind.__name__, "v": value.isoformat()}
        if key is None:
            return {"$": kind.__name__, "v": [value.isoformat(), None, value.fold]}
        return {"$": kind.__name__, "v": [value.replace(tzinfo=None).isoformat(), key, value.fold]}
    return None


def decode_time(tag: str, content: Any) -> Any:
    """The value of one of `TIMES`; `FormatError` for a zone that is not known here."""
    if tag == "timedelta":
        return datetime.timedelta(content[0], content[1], content[2])
    kind: Any = getattr(datetime, tag)
    if isinstance(content, list):
        import zoneinfo

        text, key, fold = content
        if key is None:
            return kind.fromisoformat(text).replace(fold=fold)
        try:
            zone: datetime.tzinfo = zoneinfo.ZoneInfo(key)
        except (zoneinfo.ZoneInfoNotFoundError, ValueError, TypeError, OSError) as error:
            raise FormatError(f"The time zone {key!r} is not known here.", found=key) from error
        return kind.fromisoformat(text).replace(tzinfo=zone, fold=fold)
    return kind.fromisoformat(content)
