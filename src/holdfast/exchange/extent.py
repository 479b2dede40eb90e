"""How much a foreign file's content would become: what refers to itself over and over has no end on disk."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from holdfast.errors import FormatError
from holdfast.payload.array import Array
from holdfast.state import adapters

_DEEPEST = 200
_MOST_VALUES = 5_000_000
_ROOM = 64 << 20
_TIMES = 16  # so much larger than the file may be what it holds: views that repeat their elements

_SPACES = ("argparse", "types")


def check(content: Any, path: str, size: int) -> None:
    """Refuses what would take far more memory, or far more entries, than the file's size tells.

    A list that holds another ten times over, which holds a third ten times over, is small in a
    pickle and without end when it is written out; so is a tensor that repeats one element.

    Raises:
        FormatError: naming the limit.

    """
    values, texts = _Count(path).of(content, 0)
    limit = _ROOM + _TIMES * size
    if values > _MOST_VALUES:
        raise FormatError(
            f"{path} of {size:,} bytes unfolds into {values:,} values; at most {_MOST_VALUES:,} are imported.",
            path=path,
            expected=_MOST_VALUES,
            found=values,
        )
    arrays: dict[Any, int] = {}
    _find_arrays(content, arrays, set())
    claimed = texts + sum(arrays.values())
    if claimed > limit:
        raise FormatError(
            f"{path} of {size:,} bytes unfolds into {claimed:,} bytes; at most {limit:,} are imported from it. "
            f"Next: save it again with tensors that do not repeat their elements (.contiguous()).",
            path=path,
            expected=limit,
            found=claimed,
        )


def _children(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return (*value, *value.values())
    if isinstance(value, (list, tuple, set, frozenset)):
        return value
    if type(value).__module__ in _SPACES and hasattr(value, "__dict__"):
        return tuple(vars(value).values())
    return ()


class _Count:
    """Values and bytes of text, each counted as often as it would be written; shared ones are looked at once."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._known: dict[int, tuple[int, int] | None] = {}

    def of(self, value: Any, depth: int) -> tuple[int, int]:
        if isinstance(value, (str, bytes, bytearray)):
            return 1, len(value)
        children = _children(value)
        if not children:
            return 1, 0
        if depth > _DEEPEST:
            raise self._endless(f"is nested deeper than {_DEEPEST}")
        key = id(value)
        if key in self._known:
            found = self._known[key]
            if found is None:
                raise self._endless("holds a value that contains itself")
            return found
        self._known[key] = None
        counts = [self.of(child, depth + 1) for child in children]
        total = (1 + sum(values for values, _ in counts), sum(texts for _, texts in counts))
        self._known[key] = total
        return total

    def _endless(self, what: str) -> FormatError:
        return FormatError(f"{self._path} {what}; that cannot be imported.", path=self._path)


def _find_arrays(value: Any, found: dict[Any, int], seen: set[int]) -> None:
    """The bytes of each array, those that are one counted once."""
    framework = adapters.array_framework(type(value))
    if isinstance(value, Array):
        found[id(value)] = value.nbytes
    elif framework == "torch":
        if str(value.layout) == "torch.strided" and not value.is_meta:  # no other kind is stored
            found[value.data_ptr(), value.dtype, value.shape, value.stride()] = value.nbytes
    elif framework is not None:
        found[id(value)] = getattr(value, "nbytes", 0)
    elif id(value) not in seen:
        seen.add(id(value))
        for child in _children(value):
            _find_arrays(child, found, seen)
