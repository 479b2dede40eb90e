"""Values as other tools take them: what `torch.load(…, weights_only=True)` accepts, and nothing else."""

from __future__ import annotations

import collections
import os
from typing import Any

from holdfast.errors import UsageError
from holdfast.log import logger
from holdfast.state import adapters

_SIMPLE = (bool, int, float, str)


class _Unplain(Exception):  # noqa: N818 (it never leaves this module)
    """A value that has no plain form; carries its path and type."""


def keep_plain(value: Any, where: str) -> Any:
    """The value in types that torch's careful reader accepts; entries that have none are left out, loudly."""
    if type(value) is not dict and not isinstance(value, collections.OrderedDict):
        try:
            return _plain(value, where)
        except _Unplain as error:
            raise UsageError(f"{error}, which a torch file for others cannot hold.", path=where) from error
    found: dict[Any, Any] = {}
    for key, item in value.items():
        try:
            found[_plain(key, f"{where} (a key)")] = _plain(item, f"{where}[{key!r}]")
        except _Unplain as error:
            logger.warning("Left out of the export: %s, which torch.load does not take without trust.", error)
    return found


def _plain(value: Any, where: str) -> Any:
    kind = type(value)
    if value is None or kind in _SIMPLE or adapters.array_framework(kind) == "torch":
        return value
    if kind in (dict, collections.OrderedDict, collections.Counter, collections.defaultdict):
        items = {_plain(k, where): _plain(v, f"{where}[{k!r}]") for k, v in value.items()}
        return collections.Counter(items) if kind is collections.Counter else items
    if isinstance(value, (list, collections.deque)):
        return [_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, tuple):
        items_ = [_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
        return kind(items_) if kind.__module__ == "torch" else tuple(items_)
    if isinstance(value, (set, frozenset)):
        return {_plain(item, where) for item in value}
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    root = kind.__module__.partition(".")[0]
    if root == "torch" and kind.__name__ in ("dtype", "device"):
        return value
    if root == "numpy" and hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
        return _plain(value.item(), where)
    raise _Unplain(f"{where} is a {kind.__module__}.{kind.__qualname__}")


def by_number(value: Any) -> Any:
    """An optimizer's state_dict with numbers for parameter names, as torch's own is.

    The numbers count the parameters through the groups, in the order in which the groups list
    them: the order that the optimizer was built with.
    """
    if not isinstance(value, dict) or not isinstance(value.get("param_groups"), list):
        return value
    listed = [name for group in value["param_groups"] for name in group["params"]]
    if all(type(name) is int for name in listed):
        return value
    number = {name: index for index, name in enumerate(listed)}
    groups = [{**g, "params": [number[name] for name in g["params"]]} for g in value["param_groups"]]
    state = {number.get(key, key): item for key, item in value["state"].items()}
    return {**value, "state": state, "param_groups": groups}


def as_numpy(dtype: str, shape: tuple[int, ...], data: Any) -> Any:
    """An array of NumPy's over bytes that were read; bfloat16 comes as that of ml_dtypes."""
    from holdfast.format import dtypes

    if dtype == "BF16":
        import ml_dtypes

        return data.view(ml_dtypes.bfloat16).reshape(shape)
    return data.view(dtypes.numpy_name(dtype)).reshape(shape)
