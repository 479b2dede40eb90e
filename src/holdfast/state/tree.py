"""Nested Python values ⇄ a skeleton that JSON can hold, and the arrays that it leaves out.

What JSON has (None, true, false, whole numbers, finite floats, strings, lists, objects with
string keys) stands for itself. All else is an object with the key ``"$"``, which says what it is:

    {"$":"torch","v":NAME}           an array: NAME in the part's table, "torch" | "numpy" | …
    {"$":"float","v":"nan"}          nan, inf, -inf
    {"$":"tuple","v":[…]}            also list-like: "set", "frozenset"
    {"$":"dict","v":[[key,value],…]} a dict whose keys are not plain strings, or that has a key "$"
    …

Nothing here imports a module or calls anything that a checkpoint names: an enum member or a
named tuple comes back as its own class only when that class is already loaded, else as its plain
value. `encode` refuses what it cannot give back exactly, with the path and the type.
"""

from __future__ import annotations

import base64
import collections
import datetime
import enum
import math
import pathlib
import sys
from collections.abc import Callable, Iterable
from typing import Any

from holdfast.errors import FormatError, UsageError
from holdfast.format.sealed import MAX_DEPTH
from holdfast.state import adapters, classes

Json = Any
Leaf = Callable[[str, str], Any]
"""Gives the array of (framework, name)."""

# Each container of the value adds up to two levels of JSON (the tag and its list), and the
# skeleton itself lies four deep in arrays.json.
MAX_VALUE_DEPTH = (MAX_DEPTH - 6) // 2

_FACTORIES: dict[str, Any] = {"list": list, "dict": dict, "set": set, "int": int, "float": float, "str": str}
_ARRAY_TAGS = adapters.ARRAYS
_LISTED = {"tuple", "set", "frozenset", "slice", "deque", "namedtuple", "range", "torch.Size", "numpy.scalar"}
_BIG = 1 << 63
_DECIMAL_BITS = 4096


def encode(value: Any, where: str = "", arrays: dict[str, Any] | None = None) -> Json:
    """The skeleton of `value`; its arrays are put into `arrays` under their JSON Pointers.

    Args:
        value: what to encode.
        where: the path to name in errors, like ``run.state``.
        arrays: takes the arrays as they are, not copied. None refuses arrays.

    """
    return _Encoder(where, arrays).encode(value, "", 0)


class _Encoder:
    def __init__(self, where: str, arrays: dict[str, Any] | None) -> None:
        self.where, self.arrays = where, arrays

    def encode(self, value: Any, path: str, depth: int) -> Json:
        kind = type(value)
        if value is None or kind is bool or kind is str:
            return value
        if kind is int:
            if -_BIG <= value < _BIG:
                return value
            # Python turns no number of more than 4300 digits into decimals.
            return {"$": "int", "v": str(value) if value.bit_length() <= _DECIMAL_BITS else hex(value)}
        if kind is float:
            return value if math.isfinite(value) else {"$": "float", "v": repr(value)}
        if depth > MAX_VALUE_DEPTH:
            raise UsageError(
                f"{self._at(path)} is nested deeper than {MAX_VALUE_DEPTH} levels (or contains itself); "
                f"a checkpoint holds at most that.",
                path=path,
            )
        if kind is list:
            return [self.encode(item, f"{path}/{index}", depth + 1) for index, item in enumerate(value)]
        if kind is dict:
            return self._mapping(value, path, depth)
        framework = adapters.array_framework(kind)
        if framework is not None:
            return self._array(value, framework, path)
        return self._tagged(value, path, depth)

    def _mapping(self, value: dict[Any, Any], path: str, depth: int) -> Json:
        if all(type(key) is str for key in value) and "$" not in value:
            return {
                key: self.encode(item, f"{path}/{_escape(key)}", depth + 1) for key, item in value.items()
            }
        return {"$": "dict", "v": self._pairs(value.items(), path, depth)}

    def _pairs(self, items: Iterable[tuple[Any, Any]], path: str, depth: int) -> Json:
        pairs = []
        for key, item in items:
            if adapters.array_framework(type(key)) is not None or isinstance(key, (list, dict, set)):
                raise self._refusal(key, f"{path} (a key)")
            pairs.append(
                [
                    self.encode(key, f"{path} (a key)", depth + 1),
                    self.encode(item, f"{path}/{_escape(str(key))}", depth + 1),
                ]
            )
        return pairs

    def _array(self, value: Any, framework: str, path: str) -> Json:
        if self.arrays is None:
            raise UsageError(f"{self._at(path)} is an array; only plain values can stand here.", path=path)
        name, number = path or "/", 2
        while name in self.arrays:  # two keys that print alike, such as 1 and "1"
            name, number = f"{path}~{number}", number + 1
        self.arrays[name] = value
        return {"$": framework, "v": name}

    def _tagged(self, value: Any, path: str, depth: int) -> Json:
        if isinstance(value, enum.Enum):
            content = self.encode(value.value, path, depth + 1)
            return {"$": "enum", "class": classes.class_name(value), "name": value.name, "v": content}
        for plain in (bool, int, float, str):
            if isinstance(value, plain) and type(value).__module__.partition(".")[0] != "numpy":
                raise self._refusal(value, path)
        if isinstance(value, tuple):
            return self._tuple(value, path, depth)
        kind = type(value)
        if kind is collections.OrderedDict:
            return {"$": "OrderedDict", "v": self._pairs(value.items(), path, depth)}
        if kind is collections.Counter:
            return {"$": "Counter", "v": self._pairs(value.items(), path, depth)}
        if kind is collections.defaultdict:
            factory = value.default_factory
            if factory is None or _FACTORIES.get(getattr(factory, "__name__", "")) is factory:
                name = None if factory is None else factory.__name__
                return {"$": "defaultdict", "factory": name, "v": self._pairs(value.items(), path, depth)}
            raise self._refusal(
                value, path, "use a plain dict, or one of list, dict, set, int, float, str as factory"
            )
        if kind is collections.deque:
            return {"$": "deque", "maxlen": value.maxlen, "v": self.encode(list(value), path, depth + 1)}
        if kind is set or kind is frozenset:
            items = sorted(value, key=lambda item: (type(item).__name__, repr(item)))
            return {"$": kind.__name__, "v": self.encode(items, path, depth + 1)}
        if kind is bytes or kind is bytearray:
            return {"$": kind.__name__, "v": base64.b64encode(value).decode("ascii")}
        if kind is complex:
            return {"$": "complex", "v": [repr(value.real), repr(value.imag)]}
        if kind is range:
            parts = [value.start, value.stop, value.step]
            return {"$": "range", "v": self.encode(parts, path, depth + 1)}
        if kind is slice:
            parts = [value.start, value.stop, value.step]
            return {"$": "slice", "v": self.encode(parts, path, depth + 1)}
        if kind is type(pathlib.Path()):
            return {"$": "path", "v": str(value)}
        if isinstance(value, (datetime.date, datetime.time, datetime.timedelta)):
            return classes.encode_time(value) or self._refuse(value, path)
        return self._of_framework(value, path, depth)

    def _of_framework(self, value: Any, path: str, depth: int) -> Json:
        root = type(value).__module__.partition(".")[0]
        if root == "numpy" or root in adapters.FRAMEWORKS:
            special = adapters.edge(root).special(value)
            if special is not None:
                tag, content = special
                return {"$": tag, "v": self.encode(content, path, depth + 1)}
        raise self._refusal(value, path)

    def _tuple(self, value: tuple[Any, ...], path: str, depth: int) -> Json:
        items = [self.encode(item, f"{path}/{index}", depth + 1) for index, item in enumerate(value)]
        if type(value) is tuple:
            return {"$": "tuple", "v": items}
        if type(value).__module__ == "torch" and type(value).__name__ == "Size":
            return {"$": "torch.Size", "v": items}
        fields = getattr(type(value), "_fields", None)
        if isinstance(fields, tuple) and len(fields) == len(value):
            return {"$": "namedtuple", "class": classes.class_name(value), "fields": list(fields), "v": items}
        raise self._refusal(value, path)

    def _refuse(self, value: Any, path: str) -> Json:
        raise self._refusal(value, path)

    def _refusal(self, value: Any, path: str, remedy: str = "") -> UsageError:
        kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
        if not remedy:
            if hasattr(value, "state_dict") and hasattr(value, "load_state_dict"):
                remedy = "it has a state_dict: hand it to run.track(name=…) instead"
            elif hasattr(value, "__dataclass_fields__"):
                remedy = "store dataclasses.asdict(…) of it"
            elif callable(value):
                remedy = "code is not state: leave it out, and build it again in the script"
            else:
                remedy = "turn it into numbers, strings, lists, dicts or arrays"
        return UsageError(
            f"{self._at(path)} is a {kind}, which a checkpoint cannot hold: {remedy}. Nothing was saved.",
            path=path,
            type=kind,
        )

    def _at(self, path: str) -> str:
        return f"{self.where}{path}" or "the value"


def decode(skeleton: Json, leaf: Leaf, where: str = "the checkpoint") -> Any:
    """The value of a skeleton; `leaf(framework, name)` gives its arrays. `FormatError` for what is none."""
    if type(skeleton) is list:
        return [decode(item, leaf, where) for item in skeleton]
    if type(skeleton) is not dict:
        return skeleton
    if "$" not in skeleton:
        return {key: decode(item, leaf, where) for key, item in skeleton.items()}
    tag, content = skeleton["$"], skeleton.get("v")
    try:
        if tag in _ARRAY_TAGS and type(content) is str:
            return leaf(tag, content)
        return _decode_tagged(tag, content, skeleton, leaf, where)
    except FormatError:
        raise
    except WRONG_CONTENT as error:
        raise FormatError(
            f"{where}: a value tagged {tag!r} is not what that tag holds: {error}.", found=tag
        ) from error


# What Python, NumPy and torch raise when they are given something else than they expect
# (RuntimeError: torch; SyntaxError: NumPy, of a dtype like "f4,(").
WRONG_CONTENT = (
    TypeError,
    ValueError,
    KeyError,
    AttributeError,
    IndexError,
    OverflowError,
    RuntimeError,
    SyntaxError,
)


def leaves(skeleton: Json) -> list[tuple[str, str]]:
    """The (framework, name) of each array in a skeleton, in order."""
    found: list[tuple[str, str]] = []
    _find_leaves(skeleton, found)
    return found


def _find_leaves(skeleton: Json, found: list[tuple[str, str]]) -> None:
    if type(skeleton) is list:
        for item in skeleton:
            _find_leaves(item, found)
    elif type(skeleton) is dict:
        tag, name = skeleton.get("$"), skeleton.get("v")
        if type(tag) is str and tag in _ARRAY_TAGS and type(name) is str:
            found.append((tag, name))
        else:
            for item in skeleton.values():
                _find_leaves(item, found)


def _decode_tagged(tag: str, content: Json, skeleton: dict[str, Any], leaf: Leaf, where: str) -> Any:
    if tag in _ARRAY_TAGS:
        raise FormatError(f"{where}: an array has the name {content!r}.", found=content)
    if tag == "float":
        return {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}[content]
    if tag == "int":
        return int(content, 0)
    if tag == "complex":
        return complex(float(content[0]), float(content[1]))
    if tag in {"bytes", "bytearray"}:
        data = base64.b64decode(content, validate=True)
        return data if tag == "bytes" else bytearray(data)
    if tag in {"dict", "OrderedDict", "Counter", "defaultdict"}:
        pairs = [(decode(key, leaf, where), decode(item, leaf, where)) for key, item in content]
        if tag == "defaultdict":
            factory = skeleton["factory"]
            return collections.defaultdict(None if factory is None else _FACTORIES[factory], pairs)
        if tag == "Counter":
            counter: collections.Counter[Any] = collections.Counter()
            counter.update(dict(pairs))
            return counter
        return dict(pairs) if tag == "dict" else collections.OrderedDict(pairs)
    if tag in _LISTED and type(content) is not list:  # a range in its place would become all of its numbers
        raise FormatError(
            f"{where}: a value tagged {tag!r} is not what that tag holds: expected a list, found a "
            f"{type(content).__name__}.",
            found=tag,
        )
    if tag == "range":
        start, stop, step = decode(content, leaf, where)
        return range(start, stop, step)
    if tag == "path":
        return pathlib.Path(content)
    if tag in classes.TIMES:
        return classes.decode_time(tag, content)
    value = decode(content, leaf, where)
    if tag == "enum":
        kind = classes.loaded_class(skeleton["class"])
        name = skeleton["name"]
        if isinstance(kind, enum.EnumMeta) and name in kind.__members__:
            return kind.__members__[name]
        if isinstance(kind, enum.EnumMeta) and issubclass(kind, enum.Flag):
            return classes.combined_flags(kind, name, value)
        return value
    if tag == "namedtuple":
        kind = classes.loaded_class(skeleton["class"])
        known = isinstance(kind, type) and issubclass(kind, tuple)
        if (
            known
            and list(getattr(kind, "_fields", ())) == skeleton["fields"]
            and len(value) == len(kind._fields)
        ):
            return tuple.__new__(kind, value)
        return tuple(value)
    if tag == "deque":
        return collections.deque(value, skeleton["maxlen"])
    simple: dict[str, Callable[[Any], Any]] = {
        "tuple": tuple,
        "set": set,
        "frozenset": frozenset,
        "slice": lambda parts: slice(*parts),
    }
    if tag in simple:
        return simple[tag](value)
    framework = tag.partition(".")[0]
    if framework == "numpy" or (framework in adapters.FRAMEWORKS and framework in sys.modules):
        return adapters.edge(framework).revive(tag, value)
    if framework in adapters.FRAMEWORKS:
        return value  # its framework is not loaded: the plain value
    raise FormatError(
        f"{where} holds a value tagged {tag!r}, which this version of Holdfast does not know. "
        f"Upgrade with: pip install --upgrade holdfast",
        found=tag,
    )


def _escape(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1") if "/" in key or "~" in key else key
