"""JAX's edge: the verbs listed in `holdfast.state.adapters`.

JAX has no things to restore in place and no global random streams: parameters, optimizer states
and keys are values in `run.state`, and come back as JAX arrays on the default device.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from holdfast.errors import FormatError, UsageError
from holdfast.payload.array import Array
from holdfast.state import extended
from holdfast.state.arrays import Allocation

BATCHED: frozenset[str] = frozenset()  # each array goes to its device by a call of its own


def describe(leaf: jax.Array, where: str, *, check: bool = False) -> Array:
    """An array as the payload layer takes it. JAX arrays never change, so no copy is needed for that."""
    if not leaf.is_fully_addressable:
        raise UsageError(
            f"{where} is spread over several processes; this version of Holdfast saves trainings of one process. "
            f"Nothing was saved.",
            path=where,
            type="jax.Array",
        )
    return extended.describe(np.asarray(leaf), where, check=check)


def allocate(dtype: str, shape: tuple[int, ...]) -> Allocation:
    """Host memory to read into; the finished array is on JAX's default device."""
    allocation = extended.allocate(dtype, shape)
    host = allocation.finish()
    if host.dtype.itemsize == 8 and not jax.config.jax_enable_x64 and host.dtype.kind in "iuf":
        raise FormatError(
            f"A JAX array of {host.dtype} cannot be made while 64-bit types are off. Next: "
            f'jax.config.update("jax_enable_x64", True), or load it with arrays="numpy".',
            found=dtype,
        )
    return Allocation(allocation.bytes, lambda: jax.numpy.asarray(host))


def serves(_thing: Any) -> str | None:
    return None


def special(value: Any) -> tuple[str, Any] | None:
    """Typed random keys as (tag, [implementation, key data])."""
    if jax.dtypes.issubdtype(getattr(value, "dtype", None), jax.dtypes.prng_key):
        return "jax.key", [str(jax.random.key_impl(value)), jax.random.key_data(value)]
    return None


def revive(tag: str, value: Any) -> Any:
    """The value of a tag that `special` made."""
    if tag == "jax.key":
        return jax.random.wrap_key_data(value[1], impl=value[0])
    raise FormatError(f"A value tagged {tag!r} is not known to this version of Holdfast.", found=tag)


def streams() -> dict[str, Any]:
    return {}


def set_streams(_value: Mapping[str, Any]) -> None:
    """JAX has no global stream."""


def seed(_number: int) -> None:
    """JAX has no global stream."""


def gradients(_things: Mapping[str, Any], _stepped: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    return {}, False


def set_gradients(_things: Mapping[str, Any], _values: Mapping[str, Any], _zeros: Any) -> None:
    """JAX's gradients are values."""


def flags(_thing: Any) -> dict[str, bool]:
    return {}


def set_flags(_thing: Any, _values: Mapping[str, bool]) -> None:
    """JAX's models have none."""


def on_step(_thing: Any, _notify: Any) -> None:
    return None


def sight_of(_thing: Any, _kind: str, _where: str, _peers: Mapping[str, Any]) -> None:
    """Everything is captured anew at each save."""


def late(_things: Mapping[str, Any], _states: Mapping[str, Any], _known: Any) -> None:
    """JAX's arrays never change: nothing has to wait for them."""


def before_step(_things: Mapping[str, Any], _notify: Any) -> None:
    return None


def declared(_thing: Any) -> None:
    return None


def outline(_thing: Any) -> None:
    return None


def source(_loader: Any, *, shuffle: bool) -> None:  # noqa: ARG001 (as every edge)
    return None


def process_group_size() -> int:
    """How many processes this one computes with, without starting a backend."""
    state = getattr(jax._src.distributed, "global_state", None)
    return int(getattr(state, "num_processes", None) or 1)


def environment() -> dict[str, Any]:
    return {"jax": jax.__version__}
