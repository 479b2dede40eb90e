"""How modules and optimizers look: what their captures follow from, told in one quick pass over their tensors.

A few calls that run over all tensors in C take a tenth of the time of describing them one by one. Only what is
plain is looked at: modules and optimizers whose `state_dict` is torch's own, without hooks, and whose
tensors are ordinary ones in the CPU's memory (what is kept holds it, which a device may be short of). Everything else is captured anew at each save.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from operator import attrgetter
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from holdfast.state.known import Sight
from holdfast.state.part import PartState
from holdfast.state.tree import encode
from holdfast.torch import arrays, modules, optimizers

_OWN = ("state_dict", "_save_to_state_dict", "get_extra_state", "named_parameters")
_on_cpu, _nested = attrgetter("is_cpu"), attrgetter("is_nested")
_dtype, _layout, _trains = attrgetter("dtype"), attrgetter("layout"), attrgetter("requires_grad")


def of(thing: Any, kind: str, where: str, peers: Mapping[str, Any]) -> Sight | None:
    """The sight of a tracked thing; None for one that is captured anew each time."""
    if kind == "torch.Module":
        return _of_module(thing)
    if kind == "torch.Optimizer":
        return _of_optimizer(thing, where, peers)
    return None


def _of_module(module: nn.Module) -> Sight | None:
    paths = modules.walk(module)
    if not all(map(_is_plain, {type(child) for _, child in paths})):
        return None
    names: list[str] = []
    tensors: list[torch.Tensor] = []
    learned: list[int] = []  # the places of parameters among them
    for path, child in paths:
        if (
            child._state_dict_hooks
            or child._state_dict_pre_hooks
            or not child.__dict__.keys().isdisjoint(_OWN)
        ):
            return None
        prefix = f"{path}." if path else ""
        for name, parameter in child._parameters.items():
            if parameter is not None:
                learned.append(len(names))
                names.append(prefix + name)
                tensors.append(parameter)
        for name, buffer in child._buffers.items():
            if buffer is not None and name not in child._non_persistent_buffers_set:
                names.append(prefix + name)
                tensors.append(buffer)
    seen = look(tensors)
    if seen is None:
        return None
    # Of the modules their classes, which say what is a wrapper.
    key = (names, learned, [type(child) for _, child in paths], seen)

    def fits(state: PartState) -> bool:
        clean = modules.cleaner(module, paths)
        return _fits(state, [clean(name) for name in names], seen)

    return Sight(key, tensors, fits, lambda state: state)


def _is_plain(kind: type) -> bool:
    return not issubclass(kind, torch.jit.ScriptModule) and all(
        getattr(kind, name) is getattr(nn.Module, name) for name in _OWN
    )


def _of_optimizer(optimizer: Optimizer, where: str, peers: Mapping[str, Any]) -> Sight | None:
    if not arrays.OWN_TYPES.issuperset(map(type, optimizer.state)):
        return None
    value = optimizer.state_dict()
    if list(value) != ["state", "param_groups"] or set(map(type, value["state"].values())) - {dict}:
        return None
    names = optimizers.parameter_names(optimizer, peers)
    keys = [(key, *item) for key, item in value["state"].items()]
    if set(map(type, chain.from_iterable(keys))) - {int, str}:
        return None
    tensors = list(chain.from_iterable(item.values() for item in value["state"].values()))
    seen = look(tensors)
    if seen is None:
        return None
    # The options change with every schedule: they are no part of the key, and encoded each time.
    leaves: dict[str, Any] = {}
    options = {"param_groups": optimizers.name_groups(value["param_groups"], names)}
    groups = encode(options, where, leaves)["param_groups"]
    if leaves:
        return None

    def fits(state: PartState) -> bool:
        return list(state.skeleton) == ["state", "param_groups"] and _fits(state, None, seen)

    def renew(state: PartState) -> PartState:
        return PartState(state.kind, {**state.skeleton, "param_groups": groups}, state.arrays, state.watch)

    return Sight((names, keys, seen), tensors, fits, renew)


def look(tensors: Sequence[torch.Tensor]) -> tuple[Any, ...] | None:
    """All that the descriptions of tensors follow from but their names; None when one of them is not ordinary.

    The addresses come first.
    """
    if not arrays.OWN_TYPES.issuperset(map(type, tensors)):
        return None
    if not all(map(_on_cpu, tensors)) or any(map(_nested, tensors)):
        return None
    if any(layout is not torch.strided for layout in map(_layout, tensors)):
        return None
    if any(map(torch.Tensor.is_conj, tensors)) or any(map(torch.Tensor.is_neg, tensors)):
        return None
    return (
        list(map(torch.Tensor.data_ptr, tensors)),
        list(map(torch.Tensor.size, tensors)),
        list(map(torch.Tensor.stride, tensors)),
        list(map(_dtype, tensors)),
        list(map(_trains, tensors)),
    )


def _fits(state: PartState, names: list[str] | None, seen: tuple[Any, ...]) -> bool:
    """Whether a capture has found the very tensors that were looked at, in their order."""
    if names is not None and list(state.arrays) != names:
        return False
    found = [array.identity[1] if array.identity is not None else 0 for array in state.arrays.values()]
    return found == [
        place if nonempty else 0
        for place, nonempty in zip(seen[0], map(torch.Size.numel, seen[1]), strict=True)
    ]
