"""Small arrays that are opened together: one call for many is what makes tens of thousands of them cheap."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from holdfast.format import dtypes
from holdfast.payload.array import Array, Bytes

_MOST_BYTES = 128 * 1024  # half of what is gathered at once
_MOST_ELEMENTS = 32_000  # for more than 32,768 torch would start threads of its own


class SmallArray(Array):
    """Contiguous memory of a few KiB, which shows its bytes only when asked.

    `join` does so for several of one class and dtype at once.
    """

    __slots__ = ()

    @staticmethod
    def join(arrays: Sequence[Array]) -> Bytes:
        """The bytes of the arrays one after the other, in new memory."""
        raise NotImplementedError


class Joined(Array):
    """Neighbours in a file as one array, of which nothing is told one by one."""

    __slots__ = ("_arrays", "_kind")

    def __init__(self, kind: type[SmallArray], arrays: Sequence[Array]) -> None:
        nbytes = sum(array.nbytes for array in arrays)
        super().__init__("U8", (nbytes,), nbytes)
        self._kind, self._arrays = kind, arrays

    def open(self) -> Bytes:
        return self._kind.join(self._arrays)


def bundles(
    arrays: Sequence[Array], alone: Sequence[bool], late: Sequence[bool]
) -> Iterator[tuple[int, int, Array]]:
    """(first, last, array) for arrays in the order of a file: neighbours that can be opened together as one.

    Args:
        arrays: each of at least one byte.
        alone: for each whether it must stay one by itself.
        late: for each whether it is copied late: only what is copied together is opened together.

    """
    kinds = [
        None if single or not isinstance(array, SmallArray) else (type(array), array.dtype, behind)
        for array, single, behind in zip(arrays, alone, late, strict=True)
    ]
    first = 0
    for kind, same in groupby(kinds):
        end = first + sum(1 for _ in same)
        if kind is None:
            yield from ((index, index + 1, arrays[index]) for index in range(first, end))
            first = end
            continue
        most = min(_MOST_BYTES, _MOST_ELEMENTS * dtypes.item_size(kind[1]))
        while first < end:
            last, nbytes = first + 1, arrays[first].nbytes
            while last < end and nbytes + arrays[last].nbytes <= most:
                nbytes += arrays[last].nbytes
                last += 1
            yield first, last, arrays[first] if last == first + 1 else Joined(kind[0], arrays[first:last])
            first = last
