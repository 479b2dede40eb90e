"""NumPy's side of the arrays: the verbs of an edge, for the framework that is always there."""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np

from holdfast.errors import FormatError, UsageError
from holdfast.format import dtypes
from holdfast.payload.array import Array, Bytes, HostArray, LazyArray
from holdfast.payload.joining import SmallArray
from holdfast.state.batches import SMALL, Row

_NAMES = {
    "|b1": "BOOL", "|u1": "U8", "|i1": "I8", "<i2": "I16", "<u2": "U16", "<f2": "F16", "<i4": "I32",
    "<u4": "U32", "<f4": "F32", "<i8": "I64", "<u8": "U64", "<f8": "F64", "<c8": "C64", "<c16": "C128",
}  # fmt: skip
_DTYPES = {name: np.dtype(code) for code, name in _NAMES.items()}
BATCHED = frozenset(_DTYPES)
"""Dtypes that `unpack` and `fill` take."""


class Allocation(NamedTuple):
    """A new array to read into: its bytes, and the finished array once they are there."""

    bytes: np.ndarray[Any, np.dtype[np.uint8]]
    finish: Callable[[], Any]


class SmallHostArray(SmallArray):
    """A small NumPy array, contiguous."""

    __slots__ = ("array",)

    def __init__(
        self, dtype: str, array: np.ndarray[Any, Any], identity: Hashable | None, check: bool
    ) -> None:
        super().__init__(dtype, array.shape, array.nbytes, identity, check)
        self.array = array

    def open(self) -> Bytes:
        return _bytes(self.array)

    @staticmethod
    def join(arrays: Sequence[Any]) -> Bytes:
        # As bytes: numbers would come out in this machine's order of bytes.
        return np.concatenate([_bytes(one.array) for one in arrays])


def describe(leaf: Any, where: str, *, check: bool = False) -> Array:
    """An array as the payload layer takes it; object arrays are refused with their path."""
    array = np.asarray(leaf)
    if array.dtype.hasobject:
        raise UsageError(
            f"{where} is a NumPy array of Python objects, which a checkpoint cannot hold: store numbers, or a list. "
            f"Nothing was saved.",
            path=where,
            type="numpy.ndarray[object]",
        )
    dtype = _NAMES.get(array.dtype.str) or f"numpy:{array.dtype.str}"
    if array.dtype.fields is not None:
        raise UsageError(
            f"{where} is a structured NumPy array; store its fields as a dict of arrays. Nothing was saved.",
            path=where,
            type="numpy.ndarray[structured]",
        )
    identity = None
    whole = array.flags.c_contiguous
    if array.nbytes and whole:
        pointer = array.__array_interface__["data"][0]
        identity = ("cpu", pointer, array.nbytes, dtype, array.shape, array.strides)
    elif array.nbytes:
        pointer = array.__array_interface__["data"][0]
        reaches = [(extent - 1) * stride for extent, stride in zip(array.shape, array.strides, strict=True)]
        low = pointer + sum(reach for reach in reaches if reach < 0)
        span = pointer + sum(reach for reach in reaches if reach > 0) + array.itemsize - low
        identity = ("cpu", low, span, dtype, array.shape, array.strides)
    if whole and array.nbytes <= SMALL:
        return SmallHostArray(dtype, array, identity, check)
    if whole:
        return HostArray(dtype, array.shape, _bytes(array), identity, check)
    return LazyArray(
        dtype, array.shape, array.nbytes, lambda: _bytes(np.ascontiguousarray(array)), identity, check
    )


def _bytes(array: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    if array.nbytes == 0:
        return np.empty(0, np.uint8)
    return (array if array.ndim == 1 else array.reshape(-1)).view(np.uint8)


def allocate(dtype: str, shape: tuple[int, ...]) -> Allocation:
    """A new NumPy array. What NumPy lacks comes as unsigned integers of that width."""
    array = np.empty(shape, numpy_dtype(dtype))
    return Allocation(_bytes(array), lambda: array)


def code_of(dtype: np.dtype[Any]) -> str | None:
    """The format's own name of a dtype; None where it has none."""
    return _NAMES.get(dtype.str)


def destination(leaf: Any, dtype: str, shape: tuple[int, ...]) -> Any | None:
    """The bytes of a live array when one can read straight into it, else None."""
    fits = leaf.dtype == numpy_dtype(dtype) and leaf.shape == shape
    if fits and leaf.flags.c_contiguous and leaf.flags.writeable:
        return _bytes(leaf)
    return None


def unpack(data: Bytes, base: int, rows: Sequence[Row]) -> list[np.ndarray[Any, Any]]:
    """New arrays from the bytes of a file from byte `base` on, a row for each."""
    made = []
    for start, stop, entry, *_ in rows:
        flat = data[start - base : stop - base].view(_DTYPES[entry.dtype])
        made.append((flat if len(entry.shape) == 1 else flat.reshape(entry.shape)).copy())
    return made


def fill(data: Bytes, base: int, rows: Sequence[Row]) -> None:
    """Copies such bytes into the arrays of the rows, given by their bytes as `destination` shows them."""
    for start, stop, _, _, _, into in rows:
        into[:] = data[start - base : stop - base]


def numpy_dtype(dtype: str) -> np.dtype[Any]:
    if dtype in _DTYPES:
        return _DTYPES[dtype]
    if dtype.startswith("numpy:"):
        try:
            found = np.dtype(dtype.removeprefix("numpy:"))
        except (TypeError, ValueError, SyntaxError, OverflowError) as error:
            raise FormatError(f"{dtype!r} is no NumPy dtype.", found=dtype) from error
        if found.hasobject:
            raise FormatError(f"{dtype!r} holds Python objects, which no checkpoint does.", found=dtype)
        return found
    return (
        np.dtype(f"u{dtypes.item_size(dtype)}") if dtypes.item_size(dtype) in (1, 2, 4, 8) else np.dtype("V4")
    )


# -- small values and streams ----------------------------------------------------------------


def special(value: Any) -> tuple[str, Any] | None:
    """NumPy scalars, dtypes and generators as (tag, plain value)."""
    if isinstance(value, np.generic):
        if value.dtype.hasobject or value.dtype.fields is not None:
            return None
        return "numpy.scalar", [value.dtype.str, value.tobytes().hex()]
    # `str` of a dtype with fields or an inner shape says only how many bytes it has.
    if isinstance(value, np.dtype) and not value.hasobject and np.dtype(value.str) == value:
        return "numpy.dtype", value.str
    if type(value) is np.random.Generator:
        return "numpy.Generator", generator_state(value)
    return None


def revive(tag: str, value: Any) -> Any:
    """The value of a tag that `special` made."""
    if tag == "numpy.scalar":
        dtype = _named_dtype(value[0])
        raw = bytes.fromhex(value[1])
        # Texts and bytes by hand: an array would cut zeros off their end, and holds none of no length.
        if dtype.kind == "S":
            return np.bytes_(raw[: dtype.itemsize])
        if dtype.kind == "U":
            order = "be" if dtype.byteorder == ">" else "le"
            return np.str_(raw[: dtype.itemsize].decode(f"utf-32-{order}", "surrogatepass"))
        return np.frombuffer(raw, dtype)[0]
    if tag == "numpy.dtype":
        return _named_dtype(value)
    if tag == "numpy.Generator":
        name = value["bit_generator"]
        kind = getattr(np.random, name, None) if name in _BIT_GENERATORS else None
        if kind is None:
            raise FormatError(f"There is no NumPy bit generator {name!r}.", found=name)
        generator = np.random.Generator(kind())
        set_generator_state(generator, value)
        return generator
    raise FormatError(f"A value tagged {tag!r} is not known to this version of Holdfast.", found=tag)


def _named_dtype(text: str) -> np.dtype[Any]:
    """A dtype by its `str`: one kind and one size. NumPy's own reading takes lists of fields, too."""
    name = f"{dtypes.NUMPY_PREFIX}{text}"
    dtypes.item_size(name)
    return numpy_dtype(name)


_BIT_GENERATORS = {"MT19937", "PCG64", "PCG64DXSM", "Philox", "SFC64"}


def generator_state(generator: Any) -> dict[str, Any]:
    """The state of a `numpy.random.Generator` as plain values (arrays become lists of integers)."""
    return _plain(generator.bit_generator.state)  # type: ignore[no-any-return]


def set_generator_state(generator: Any, state: dict[str, Any]) -> None:
    found, own = state["bit_generator"], type(generator.bit_generator).__name__
    if found != own:
        raise UsageError(
            f"The saved generator is a {found}, this one a {own}; build it as before.", found=own
        )
    generator.bit_generator.state = _checked(_arrays(state))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return {"dtype": value.dtype.str, "data": value.tobytes().hex()}
    return int(value) if isinstance(value, np.integer) else value


def _arrays(value: Any) -> Any:
    if isinstance(value, dict) and set(value) == {"dtype", "data"}:
        return np.frombuffer(bytes.fromhex(value["data"]), _named_dtype(value["dtype"])).copy()
    if isinstance(value, dict):
        return {key: _arrays(item) for key, item in value.items()}
    return value


# NumPy takes any number for these and reads its memory there at the next draw.
_PLACES = {"pos": 624, "buffer_pos": 4}


def _checked(state: dict[str, Any]) -> dict[str, Any]:
    """The state of a bit generator, if its places lie inside their buffers."""
    for name, most in _PLACES.items():
        for holder in (state, state["state"]):
            place = holder.get(name, 0)
            if type(place) is not int or not 0 <= place <= most:
                raise FormatError(
                    f"The saved state of a NumPy generator has {name} = {place!r}; expected is 0 to {most}.",
                    expected=most,
                    found=place,
                )
    return state


def python_state(generator: random.Random | Any = random) -> dict[str, Any]:
    """The state of Python's `random` module, or of one `random.Random`."""
    version, words, gauss = generator.getstate()
    return {"version": version, "words": np.array(words, np.uint32).tobytes().hex(), "gauss": gauss}


def set_python_state(state: dict[str, Any], generator: random.Random | Any = random) -> None:
    words = np.frombuffer(bytes.fromhex(state["words"]), np.uint32)
    generator.setstate((state["version"], tuple(int(word) for word in words), state["gauss"]))


def global_state(stream: Any = np.random) -> dict[str, Any]:
    """The state of NumPy's global random stream, or of one `numpy.random.RandomState`."""
    return _plain(stream.get_state(legacy=False))  # type: ignore[no-any-return]


def set_global_state(state: dict[str, Any], stream: Any = np.random) -> None:
    stream.set_state(_checked(_arrays(state)))


def environment() -> dict[str, Any]:
    return {"numpy": np.__version__}
