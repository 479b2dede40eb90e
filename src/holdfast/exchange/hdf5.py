"""HDF5 files, read as far as they can be believed: numbers that lie in the file itself, and its texts.

HDF5 can point into other files (links, virtual data, data kept outside), load code to unpack itself,
refer to itself, and claim sizes that nothing stands behind. None of that is followed here.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
from collections.abc import Iterator
from typing import Any

from holdfast.errors import FormatError, HoldfastError, UsageError
from holdfast.payload.array import Array, LazyArray

_DEEPEST = 64
_MOST_OBJECTS = 200_000
_MOST_TEXT = 16 << 20  # bytes of one attribute: names of layers, the config of a model
_ROOM, _TIMES = 64 << 20, 16  # so much more than the file may be what it holds
_SHUFFLES = {1, 2, 3, 32000}  # deflate, shuffle, checksums, lzf: what h5py brings itself
# What h5py raises over files that are not as they should be.
WRONG_FILE = (
    OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError, IndexError, MemoryError, OverflowError,
)  # fmt: skip


class Window(io.RawIOBase):
    """A part of an open file as a file of its own, so that HDF5 sees no path and opens nothing."""

    def __init__(self, file: io.BufferedReader, start: int, size: int) -> None:
        super().__init__()
        self._file, self._start, self._size, self._place = file, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        self._place = max(0, base + offset)
        return self._place

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")[: max(0, self._size - self._place)]
        self._file.seek(self._start + self._place)
        count = self._file.readinto(view)
        self._place += count
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


class Tree:
    """An HDF5 file: its arrays by path, in the file's order, and the texts of its groups.

    Args:
        file: an open file; it stays open as long as arrays of this may be read.
        start, size: where in it the HDF5 file lies.
        path: for messages.

    """

    def __init__(self, file: io.BufferedReader, start: int, size: int, path: str) -> None:
        self.path, self._size = path, size
        h5py = import_h5py(path)
        with self._reading():
            self._file = h5py.File(Window(file, start, size), "r")
        self.arrays: dict[str, Array] = {}
        self.groups: dict[str, Any] = {"": self._file}
        self._claimed = 0
        with self._reading():
            for name, item in self._walk(h5py):
                self.arrays[name] = self._array(name, item)

    def _walk(self, h5py: Any) -> Iterator[tuple[str, Any]]:
        waiting = [("", self._file, 0)]
        seen = {h5py.h5o.get_info(self._file["/"].id).addr}
        while waiting:
            prefix, group, depth = waiting.pop()
            inner = []
            for number, name in enumerate(group):
                where = f"{prefix}{name}"
                if number > _MOST_OBJECTS or len(seen) > _MOST_OBJECTS:
                    raise self._wrong(f"it holds more than {_MOST_OBJECTS:,} objects")
                kind = group.get(name, getlink=True)
                if type(kind).__name__ != "HardLink":
                    raise self._wrong(
                        f"{where!r} is a {type(kind).__name__}, which leads elsewhere; it was not followed"
                    )
                item = group[name]
                address = h5py.h5o.get_info(item.id).addr
                if address in seen:
                    raise self._wrong(f"{where!r} is an object that has another name, too")
                seen.add(address)
                if isinstance(item, h5py.Dataset):
                    yield where, item
                elif isinstance(item, h5py.Group):
                    if depth >= _DEEPEST:
                        raise self._wrong(f"{where[:100]!r} is nested deeper than {_DEEPEST}")
                    self.groups[where] = item
                    inner.append((f"{where}/", item, depth + 1))
                else:
                    raise self._wrong(f"{where!r} is a {type(item).__name__}")
            waiting += reversed(inner)

    def _array(self, name: str, item: Any) -> Array:
        import numpy as np

        if item.is_virtual or item.external:
            raise self._wrong(f"the data of {name!r} lie in another file; it was not opened")
        layout = item.id.get_create_plist()
        filters = {layout.get_filter(number)[0] for number in range(layout.get_nfilters())}
        if filters - _SHUFFLES:
            raise self._wrong(
                f"{name!r} is packed by the filter {min(filters - _SHUFFLES)}, which was not loaded"
            )
        if item.shape is None:
            raise self._wrong(f"{name!r} holds nothing")
        kind, bfloat = item.dtype, _is_bfloat16(item)
        if kind.kind not in "biufc" and not bfloat:
            raise self._wrong(f"{name!r} holds {kind}, and no numbers")
        # Where it needs more room than its file, something else than numbers tells what it holds.
        nbytes = math.prod(item.shape) * kind.itemsize
        self._claimed += nbytes
        limit = _ROOM + _TIMES * self._size
        if self._claimed > limit:
            raise self._wrong(
                f"it claims to hold more than {limit:,} bytes of numbers in a file of {self._size:,}"
            )
        if bfloat:
            code = "BF16"
        else:
            from holdfast.state import arrays

            code = arrays.describe(np.empty(0, kind.newbyteorder("<")), name).dtype

        def read() -> Any:
            with self._reading():
                found = np.empty(item.shape, kind)
                item.read_direct(found)
            return (
                np.ascontiguousarray(found.astype(kind.newbyteorder("<"), copy=False))
                .reshape(-1)
                .view(np.uint8)
            )

        return LazyArray(code, tuple(item.shape), nbytes, read)

    # -- texts -----------------------------------------------------------------------------------

    def text(self, group: str, name: str) -> str | None:
        """A text attribute of a group, None where there is none."""
        found = self._attribute(group, name)
        if isinstance(found, bytes):
            found = found.decode("utf-8", "replace")
        return found if isinstance(found, str) else None

    def json(self, group: str, name: str) -> Any:
        """A text attribute that holds JSON, decoded; None where there is none."""
        text = self.text(group, name)
        if text is None:
            return None
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise self._wrong(f"its attribute {name!r} is no JSON: {error}") from error

    def texts(self, group: str, name: str) -> list[str] | None:
        """A list of texts; Keras splits a long one into name0, name1, …"""
        found = self._list(group, name)
        if found is not None:
            return found
        pieces: list[str] = []
        for number in range(_MOST_OBJECTS):
            piece = self._list(group, f"{name}{number}")
            if piece is None:
                return pieces if number else None
            pieces += piece
        return pieces

    def _list(self, group: str, name: str) -> list[str] | None:
        found = self._attribute(group, name)
        if found is None:
            return None
        with self._reading():
            items = [item.decode("utf-8") if isinstance(item, bytes) else item for item in list(found)]
        if not all(isinstance(item, str) for item in items):
            raise self._wrong(f"its attribute {name!r} is no list of texts")
        return [str(item) for item in items]

    def _attribute(self, group: str, name: str) -> Any:
        with self._reading():
            attributes = self.groups[group].attrs
            if name not in attributes:
                return None
            kept = attributes.get_id(name)
            if math.prod(kept.shape) * kept.dtype.itemsize > _MOST_TEXT:
                raise self._wrong(f"its attribute {name!r} has more than {_MOST_TEXT:,} bytes")
            return attributes[name]

    # -- errors -----------------------------------------------------------------------------------

    def _reading(self) -> Any:
        return reading(self.path)

    def _wrong(self, what: str) -> FormatError:
        return FormatError(f"{self.path} cannot be imported: {what}.", path=self.path)


def _is_bfloat16(item: Any) -> bool:
    if item.dtype.itemsize != 2 or item.dtype.kind not in "Vu":
        return False
    mark = item.attrs.get("dtype")
    return mark in ("bfloat16", b"bfloat16")


def import_h5py(path: str) -> Any:
    """h5py, or a `UsageError` that says how to get it."""
    try:
        import h5py
    except ImportError as error:
        raise UsageError(
            f"{path} is an HDF5 file, and h5py, which reads them, is not installed. Next: pip install h5py.",
            path=path,
        ) from error
    return h5py


@contextlib.contextmanager
def reading(path: str) -> Iterator[None]:
    """Turns what h5py raises over a file into a `FormatError` that names it."""
    try:
        yield
    except HoldfastError:
        raise
    except WRONG_FILE as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise FormatError(
            f"{path} is no HDF5 file that can be read, or it was cut: {reason}. Next: copy it again.",
            path=path,
        ) from error
