"""What the saves of a training found out about its parts, for those after them that find the same.

Describing an array takes some microseconds of Python, planning where it will lie takes some more, and
nearly every save finds each array where the one before found it. So an edge tells, in one quick pass
over a part, what its description follows from: its *sight*. Of equal sights the descriptions are equal.

A description holds the memory of the arrays that it describes, which therefore is nobody else's while it
is kept: an address that is seen again is the same memory. What is kept is dropped as soon as one of the
things dies that the arrays belong to; and nothing is kept that was not seen twice in succession, so that
a training which makes its arrays anew at each step has no more of them than without this.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

from holdfast.state.part import PartState

Value = TypeVar("Value")


class Sight(NamedTuple):
    """How a part looks.

    Attributes:
        key: all that the part's arrays, and what is not renewed of its skeleton, follow from.
        owners: objects with weak references, at the end of one of which the memory may go.
        fits: whether a description is the one that follows from the key.
        renew: a description of this key with all that the key says nothing about as it is now.

    """

    key: Any
    owners: Iterable[Any]
    fits: Callable[[PartState], bool]
    renew: Callable[[PartState], PartState]


@dataclasses.dataclass(frozen=True, slots=True)
class _Kept:
    key: Any
    state: PartState
    ends: list[weakref.ref[Any]]


@dataclasses.dataclass(frozen=True, slots=True)
class _Derived:
    arrays: dict[str, Any]
    basis: Any
    value: Any


class Known:
    """The memory of one training; used by its thread, and emptied by any."""

    def __init__(self) -> None:
        self._seen: dict[str, Any] = {}  # part → the key of its last sight: no array's memory is in it
        self._kept: dict[str, _Kept] = {}
        self._derived: dict[str, _Derived] = {}

    def part(self, name: str, sight: Sight | None, describe: Callable[[], PartState]) -> PartState:
        """A part as `describe()` gives it, without calling that where its description is known."""
        kept = self._kept.get(name)
        if sight is None:
            self._seen.pop(name, None)
            self._forget(name)
            return describe()
        if kept is not None and kept.key == sight.key:
            return sight.renew(kept.state)
        self._forget(name)
        twice = name in self._seen and self._seen[name] == sight.key
        self._seen[name] = sight.key
        state = describe()
        if twice and sight.fits(state):
            forget = _forgetting(self, name)
            self._kept[name] = _Kept(sight.key, state, [weakref.ref(one, forget) for one in sight.owners])
        return state

    def derive(
        self, what: str, states: Mapping[str, PartState], basis: Any, make: Callable[[], Value]
    ) -> Value:
        """The value of `make()`, which follows from the parts' arrays and from `basis` alone.

        Args:
            what: tells such values apart.
            states: parts; those without arrays have no part in it.
            basis: compared by equality.
            make: is called unless the same was made of the same arrays.

        """
        arrays = {part: state.arrays for part, state in states.items() if state.arrays}
        known = self._derived.get(what)
        if known is not None and known.basis == basis and _same(known.arrays, arrays):
            return known.value  # type: ignore[no-any-return]
        self._derived.pop(what, None)
        value = make()
        kept = {part: self._kept[part].state.arrays for part in arrays if part in self._kept}
        if _same(kept, arrays):
            self._derived[what] = _Derived(arrays, basis, value)
        return value

    def forget(self) -> None:
        """Lets go of everything: there will be no more saves."""
        self._seen.clear()
        self._kept.clear()
        self._derived.clear()

    def _forget(self, name: str) -> None:
        """Lets go of the memory of a part's arrays."""
        if self._kept.pop(name, None) is not None:
            self._derived.clear()


def _same(some: Mapping[str, Any], others: Mapping[str, Any]) -> bool:
    """Whether these are the very same mappings of arrays, in the same order."""
    return list(some) == list(others) and all(some[part] is own for part, own in others.items())


def _forgetting(known: Known, name: str) -> Callable[[Any], None]:
    """What to do when an owner of a part's arrays has died; in itself no reason for anything to live on."""
    reference = weakref.ref(known)

    def forget(_: Any) -> None:
        found = reference()
        if found is not None:
            found._forget(name)

    return forget
