"""Tensors as dtypes, shapes and bytes, and back."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from holdfast.errors import FormatError, UsageError
from holdfast.payload.array import Array, Bytes, HostArray, LazyArray
from holdfast.payload.joining import SmallArray
from holdfast.state.arrays import Allocation
from holdfast.state.batches import SMALL, Row
from holdfast.state.part import Plan, SavedPart

_BY_NAME = {
    "bool": "BOOL", "uint8": "U8", "int8": "I8", "float8_e5m2": "F8_E5M2", "float8_e4m3fn": "F8_E4M3",
    "int16": "I16", "uint16": "U16", "float16": "F16", "bfloat16": "BF16", "int32": "I32", "uint32": "U32",
    "float32": "F32", "int64": "I64", "uint64": "U64", "float64": "F64", "float8_e8m0fnu": "F8_E8M0",
    "float8_e4m3fnuz": "F8_E4M3FNUZ", "float8_e5m2fnuz": "F8_E5M2FNUZ", "complex32": "C32",
    "complex64": "C64", "complex128": "C128",
}  # fmt: skip
# Some of these came with later versions of torch than the oldest that is supported.
NAMES: dict[torch.dtype, str] = {
    getattr(torch, name): code for name, code in _BY_NAME.items() if hasattr(torch, name)
}
DTYPES: dict[str, torch.dtype] = {code: dtype for dtype, code in NAMES.items()}
# torch's copies are exact, but of a bool: what is neither 0 nor 1 comes out as 1.
BATCHED = frozenset(DTYPES) - {"BOOL"}
OWN_TYPES = {torch.Tensor, torch.nn.Parameter}
_AS_NUMPY = {torch.float16, torch.float32, torch.float64, torch.int32, torch.int64, torch.uint8}


class TensorArray(SmallArray):
    """A small tensor in contiguous CPU memory; NumPy sees it when it is copied, and not by itself if it can be helped."""

    __slots__ = ("tensor",)

    def __init__(
        self,
        dtype: str,
        shape: tuple[int, ...],
        nbytes: int,
        tensor: torch.Tensor,
        identity: Hashable | None,
        check: bool,
    ) -> None:
        super().__init__(dtype, shape, nbytes, identity, check)
        self.tensor = tensor

    def open(self) -> Bytes:
        data: Bytes = as_bytes(self.tensor)
        return data

    @staticmethod
    def join(arrays: Sequence[Any]) -> Bytes:
        tensors = [array.tensor for array in arrays]
        data: Bytes = as_bytes(torch.cat([one if one.dim() == 1 else one.view(-1) for one in tensors]))
        return data


def describe(tensor: torch.Tensor, where: str, *, check: bool = False) -> Array:
    """A tensor as the payload layer takes it: no copy for contiguous CPU memory.

    Raises:
        UsageError: for tensors without data of their own (meta, sparse, quantized, distributed),
            with the path and the remedy.

    """
    dtype = NAMES.get(tensor.dtype)
    if dtype is not None and _is_plain(tensor):
        shape, size = tuple(tensor.shape), tensor.nbytes
        identity = ("cpu", tensor.data_ptr(), size, dtype, shape, tensor.stride()) if size else None
        if tensor.requires_grad:
            tensor = tensor.detach()
        if size <= SMALL:
            return TensorArray(dtype, shape, size, tensor, identity, check)
        return HostArray(dtype, shape, _bytes(tensor), identity, check)
    return _describe_any(tensor, where, check)


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether it is nothing but contiguous CPU memory: most are, and are asked little else for their number."""
    return (
        type(tensor) in OWN_TYPES
        and tensor.is_cpu
        and tensor.layout is torch.strided
        and not (tensor.is_nested or tensor.is_quantized)
        and tensor.is_contiguous()
        and not (tensor.is_conj() or tensor.is_neg())
    )


def _describe_any(tensor: torch.Tensor, where: str, check: bool) -> Array:
    dtype = _check(tensor, where)
    tensor = tensor.detach()
    if tensor.is_conj():
        tensor = tensor.resolve_conj()
    if tensor.is_neg():
        tensor = tensor.resolve_neg()
    shape, size, plain = tuple(tensor.shape), tensor.nbytes, tensor.is_contiguous()
    identity = None
    if size:
        span, strides = size, tensor.stride()
        if not plain:
            reach = 1 + sum((extent - 1) * stride for extent, stride in zip(shape, strides, strict=True))
            span = reach * tensor.element_size()
        device = "cpu" if tensor.is_cpu else str(tensor.device)
        identity = (device, tensor.data_ptr(), span, dtype, shape, strides)
    if plain and tensor.is_cpu:
        return HostArray(dtype, shape, _bytes(tensor), identity, check)
    return LazyArray(dtype, shape, size, lambda: as_bytes(tensor.contiguous().cpu()), identity, check)


def _check(tensor: torch.Tensor, where: str) -> str:
    problem = None
    if tensor.is_meta:
        problem = "is on the meta device and has no data: materialise the model first (to_empty, then load)"
    elif tensor.is_nested:
        problem = "is a nested tensor: store its .unbind() as a list"
    elif isinstance(tensor, torch.nn.parameter.UninitializedTensorMixin):
        problem = "is a lazy parameter without a shape yet: run one batch through the model first"
    elif tensor.layout is not torch.strided:
        problem = f"has the layout {tensor.layout}: store its indices and values, or .to_dense()"
    elif tensor.is_quantized:
        problem = "is quantized: store the dequantized weights"
    elif type(tensor).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
        kind = f"{type(tensor).__module__}.{type(tensor).__qualname__}"
        problem = f"is a {kind}, a tensor that wraps others: store the plain tensors it is made of"
    elif tensor.dtype not in NAMES:
        problem = f"has the dtype {tensor.dtype}, which the format does not have: store it as uint8"
    if problem is not None:
        raise UsageError(f"{where} {problem}. Nothing was saved.", path=where, type=str(tensor.dtype))
    return NAMES[tensor.dtype]


def as_bytes(tensor: torch.Tensor) -> Any:
    """A contiguous CPU tensor's memory as a 1-D uint8 NumPy array."""
    return _bytes(tensor.detach())


def _bytes(tensor: torch.Tensor) -> Any:
    if tensor.dtype in _AS_NUMPY:  # twice as fast, which counts with tens of thousands of tensors
        array = tensor.numpy()
        return (array if array.ndim == 1 else array.reshape(-1)).view(np.uint8)
    return tensor.reshape(-1).view(torch.uint8).numpy()


def torch_dtype(dtype: str) -> torch.dtype:
    found = DTYPES.get(dtype)
    if found is None:
        raise FormatError(
            f"torch {torch.__version__} has no dtype for {dtype}. Next: load it with arrays='numpy', "
            f"or use a newer torch.",
            found=dtype,
        )
    return found


def allocate(dtype: str, shape: tuple[int, ...]) -> Allocation:
    """A new CPU tensor to read into."""
    tensor = torch.empty(shape, dtype=torch_dtype(dtype))
    return Allocation(_bytes(tensor), lambda: tensor)


def unpack(data: Bytes, base: int, rows: Sequence[Row]) -> list[torch.Tensor]:
    """New tensors, each with memory of its own, from the bytes of a file from byte `base` on."""
    made: list[torch.Tensor] = []
    # Whoever calls, and whichever thread helps: they come out alike.
    with torch.inference_mode(mode=False), torch.no_grad():
        for run, flat, sizes, shape in _runs(data, base, rows):
            if shape is not None:
                made += torch.unbind_copy(flat.view(len(run), *shape))
                continue
            pieces = torch.split_with_sizes_copy(flat, sizes)
            for row, tensor in zip(run, pieces, strict=True):
                if len(row.entry.shape) != 1:
                    tensor.resize_(row.entry.shape)  # in place: a view would keep its base alive
            made += pieces
    return made


def fill(data: Bytes, base: int, rows: Sequence[Row]) -> None:
    """Copies such bytes into the live tensors of the rows."""
    with torch.no_grad():
        for run, flat, sizes, shape in _runs(data, base, rows):
            if shape is not None:
                pieces = flat.view(len(run), *shape).unbind()
            else:
                pieces = tuple(
                    piece if len(row.entry.shape) == 1 else piece.view(row.entry.shape)
                    for row, piece in zip(run, flat.split_with_sizes(sizes), strict=True)
                )
            torch._foreach_copy_([row.into for row in run], pieces)


def _runs(
    data: Bytes, base: int, rows: Sequence[Row]
) -> Iterator[tuple[Sequence[Row], torch.Tensor, list[int], tuple[int, ...] | None]]:
    """Neighbours of one dtype, as (rows, their elements, elements of each, their shape if it is one)."""
    first = 0
    while first < len(rows):
        last, at, dtype = first, rows[first].start, rows[first].entry.dtype
        shapes = set()
        while last < len(rows):
            start, stop, entry, *_ = rows[last]
            if entry.dtype != dtype or start != at:
                break
            at, last = stop, last + 1
            shapes.add(entry.shape)
        run = rows[first:last]
        kind = DTYPES[dtype]
        flat = data[run[0].start - base : at - base]
        if flat.ctypes.data % kind.itemsize:  # not as we write them
            flat = flat.copy()
        sizes = [(row.stop - row.start) // kind.itemsize for row in run]
        yield run, torch.from_numpy(flat).view(kind), sizes, shapes.pop() if len(shapes) == 1 else None
        first = last


def plan_into(
    tensor: torch.Tensor, part: SavedPart, name: str, plan: Plan
) -> Callable[[], torch.Tensor] | None:
    """Reads a saved array into a live tensor of its dtype and shape; the result is what to do after that, if anything."""
    # An inference tensor is written to by no call of torch outside of its mode.
    if _is_plain(tensor) and not tensor.is_inference() and plan.small.fill(part, name, "torch", tensor):
        return None
    entry = part.entry(name)
    target = receive(tensor, entry.dtype, entry.shape)
    plan.read(part, name, target.bytes)
    return target.finish


def receive(tensor: torch.Tensor, dtype: str, shape: tuple[int, ...]) -> Allocation:
    """A buffer whose bytes end up in a live tensor of the same dtype and shape.

    Contiguous CPU memory is read into directly; anything else gets one copy when it is finished.
    """
    live = tensor.detach()
    if live.is_cpu and live.is_contiguous() and not live.is_conj() and not live.is_neg():
        return Allocation(_bytes(live), lambda: tensor)
    aside = torch.empty(shape, dtype=torch_dtype(dtype), pin_memory=live.device.type == "cuda")

    def finish() -> torch.Tensor:
        with torch.no_grad():
            live.copy_(aside)
        return tensor

    return Allocation(as_bytes(aside), finish)
