"""What the layers above hand over to be written: a dtype, a shape, and bytes when asked."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import numpy as np

Bytes = np.ndarray[Any, np.dtype[np.uint8]]


class Array:
    """An array of any framework.

    Attributes:
        dtype: a name from `format.dtypes`.
        shape: its extents; `()` for a scalar.
        nbytes: item size times all extents.
        identity: arrays of equal identity (same memory, dtype, shape, strides) are stored once.
        check: whether NaN and infinities are looked for (floating parameters).

    """

    __slots__ = ("check", "dtype", "identity", "nbytes", "shape")

    def __init__(
        self,
        dtype: str,
        shape: tuple[int, ...],
        nbytes: int,
        identity: Hashable | None = None,
        check: bool = False,
    ) -> None:
        self.dtype, self.shape, self.nbytes, self.identity, self.check = dtype, shape, nbytes, identity, check

    def open(self) -> Bytes:
        """The bytes in C order, one-dimensional and contiguous.

        Called in a worker thread right before the first byte is needed; the result is dropped
        after the last one was copied. Not called for an array of no bytes.
        """
        raise NotImplementedError


class HostArray(Array):
    """Memory that is contiguous already: `view` shows its bytes, and nothing is copied."""

    __slots__ = ("view",)

    def __init__(
        self,
        dtype: str,
        shape: tuple[int, ...],
        view: Bytes,
        identity: Hashable | None = None,
        check: bool = False,
    ) -> None:
        super().__init__(dtype, shape, view.nbytes, identity, check)
        self.view = view

    def open(self) -> Bytes:
        return self.view


class LazyArray(Array):
    """Memory that must be copied to be shown (strided, or on a device): `make` does so, once."""

    __slots__ = ("make",)

    def __init__(
        self,
        dtype: str,
        shape: tuple[int, ...],
        nbytes: int,
        make: Callable[[], Bytes],
        identity: Hashable | None = None,
        check: bool = False,
    ) -> None:
        super().__init__(dtype, shape, nbytes, identity, check)
        self.make = make

    def open(self) -> Bytes:
        return self.make()
