"""Tensors as dtypes, shapes and bytes, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from holdfast.errors import FormatError, UsageError
from holdfast.payload.array import Array, HostArray, LazyArray
from holdfast.state.arrays import Allocation

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
_AS_NUMPY = {torch.float16, torch.float32, torch.float64, torch.int32, torch.int64, torch.uint8}


def describe(tensor: torch.Tensor, where: str, *, check: bool = False) -> Array:
    """A tensor as the payload layer takes it: no copy for contiguous CPU memory.

    Raises:
        UsageError: for tensors without data of their own (meta, sparse, quantized, distributed),
            with the path and the remedy.

    """
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
        return tensor.numpy().reshape(-1).view(np.uint8)
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
