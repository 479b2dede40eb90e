"""Optimizers: state under parameter names, in its saved dtype."""

from __future__ import annotations

import collections
import copy
import logging
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from holdfast.errors import FormatError, MismatchError, UsageError
from holdfast.state.part import PartState, Plan, SavedPart
from holdfast.state.tree import encode
from holdfast.torch import arrays, modules
from holdfast.torch.partial import Trainable

# State of one parameter that has the parameter's own shape, in torch's optimizers.
_SHAPED = {
    "exp_avg",
    "exp_avg_sq",
    "max_exp_avg_sq",
    "momentum_buffer",
    "square_avg",
    "acc_delta",
    "sum",
    "prev",
}


def native(optimizer: Optimizer) -> bool:
    """Whether torch's own state_dict code serves it: then it is stored by parameter name."""
    kind = type(optimizer)
    return (
        kind.state_dict is Optimizer.state_dict
        and kind.load_state_dict is Optimizer.load_state_dict
        and not optimizer._optimizer_load_state_dict_pre_hooks
        and not optimizer._optimizer_load_state_dict_post_hooks
    )


def parameter_names(optimizer: Optimizer, peers: Mapping[str, Any]) -> list[str] | None:
    """A name for each of the optimizer's parameters, in order; None when a tracked model lacks one.

    With parameters of several tracked models, names start with the model's part: ``critic/fc.weight``.
    """
    names: dict[int, tuple[str, str]] = {}
    for part, peer in peers.items():
        thing = peer.module if isinstance(peer, Trainable) else peer
        if isinstance(thing, torch.nn.Module):
            for name, parameter in modules.parameters(thing):
                names.setdefault(id(parameter), (part, name))
    found = [names.get(id(parameter)) for group in optimizer.param_groups for parameter in group["params"]]
    owners = {item[0] for item in found if item is not None}
    if any(item is None for item in found):
        return None
    return [item[1] if len(owners) == 1 else f"{item[0]}/{item[1]}" for item in found if item is not None]


def capture(optimizer: Optimizer, where: str, peers: Mapping[str, Any]) -> PartState:
    """The optimizer's state_dict with parameter names for numbers where they are known."""
    value = optimizer.state_dict()
    names = parameter_names(optimizer, peers)
    if names is not None:
        state = {names[key] if isinstance(key, int) else key: item for key, item in value["state"].items()}
        value = {**value, "state": state, "param_groups": name_groups(value["param_groups"], names)}
    leaves: dict[str, Any] = {}
    skeleton = encode(value, where, leaves)
    found = {name: arrays.describe(_tensor(leaf), f"{where}{name}") for name, leaf in leaves.items()}
    return PartState("torch.Optimizer", skeleton, found, watch=bool(found))


def name_groups(groups: list[dict[str, Any]], names: list[str] | None) -> list[dict[str, Any]]:
    """The parameter groups of a state_dict, with names for numbers where they are known."""
    if names is None:
        return groups
    return [{**group, "params": [names[i] for i in group["params"]]} for group in groups]


def _tensor(leaf: Any) -> torch.Tensor:
    """A leaf's memory in a tensor of its own: who keeps that does not keep the optimizer's."""
    return leaf.detach() if isinstance(leaf, torch.Tensor) else torch.as_tensor(leaf)


class _Ref:
    """Stands for an array in a decoded skeleton whose bytes have not been read."""

    def __init__(self, name: str) -> None:
        self.name = name


def plan_restore(
    optimizer: Optimizer,
    part: SavedPart,
    plan: Plan,
    peers: Mapping[str, Any],
    *,
    options_only: bool = False,
    keep: Iterable[str] = (),
) -> None:
    """Places saved state into the live optimizer, in the dtype that it was saved in.

    torch's own loader casts state to the parameter's dtype, which ruins fp32 state of a bf16
    parameter. `options_only` restores the options of the parameter groups alone; `keep` names
    options that keep their live values.
    """
    value = part.value(lambda _, name: _Ref(name))
    groups, saved_state = _shape_of(value, part)
    kind = f"{type(optimizer).__module__}.{type(optimizer).__qualname__}"
    own_of_torch = part.made_by.startswith("torch.optim.") and kind.startswith("torch.optim.")
    if own_of_torch and part.made_by != kind:  # another algorithm would take the state, and ignore it
        plan.differ(part.name, "class", part.made_by, kind)
    live = optimizer.param_groups
    if len(groups) != len(live):
        plan.differ(part.name, "param_groups", f"{len(groups)} groups", f"{len(live)} groups")
        return
    for index, (group, own) in enumerate(zip(groups, live, strict=True)):
        if len(group["params"]) != len(own["params"]):
            plan.differ(
                part.name,
                f"param_groups/{index}",
                f"{len(group['params'])} parameters",
                f"{len(own['params'])} parameters",
            )
            return
    kept = set(keep)
    for group, own in zip(groups, live, strict=True):
        _plan_options(group, own, part, plan, kept)
    if options_only:
        return
    keys = _match(groups, optimizer, part, plan, peers)
    if keys is None:
        return
    states: list[tuple[Any, dict[str, Any]]] = []
    for key, parameter, own in keys:
        if key not in saved_state:
            continue
        entry: dict[str, Any] = {}
        for field, item in saved_state[key].items():
            entry[field] = _plan_item(item, field, parameter, own, optimizer, part, plan)
        states.append((parameter, entry))
    own_keys = {key for key, _, _ in keys}
    others = {key: item for key, item in saved_state.items() if key not in own_keys}
    for key, item in others.items():
        if isinstance(key, int) or (isinstance(key, str) and isinstance(item, dict) and item):
            plan.surplus(part.name, f"state/{key}")

    _rehearse(optimizer, states, part)

    def install() -> None:
        state: Any = collections.defaultdict(dict)
        for parameter, entry in states:
            state[parameter] = {field: _finish(item) for field, item in entry.items()}
        optimizer.__setstate__({"state": state, "param_groups": optimizer.param_groups})

    plan.after(install)


def _rehearse(optimizer: Optimizer, states: list[tuple[Any, dict[str, Any]]], part: SavedPart) -> None:
    """Lets a copy take the state, with empty tensors for its arrays: what it misses is found before the first byte."""
    trial: Any = copy.copy(optimizer)
    state: Any = collections.defaultdict(dict)
    empty = torch.empty(0)
    for parameter, entry in states:
        state[parameter] = {field: empty if callable(item) else item for field, item in entry.items()}
    groups = [dict(group) for group in optimizer.param_groups]
    try:
        trial.__setstate__({"state": state, "param_groups": groups})
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        kind = type(optimizer).__name__
        raise MismatchError(
            f"{part.where}: the state of {part.name!r} is not that of a {kind} ({type(error).__name__}: {error}); "
            f"nothing was changed. Next: build the optimizer as it was saved, or, in a run, begin with a new one: "
            f"fresh=[{part.name!r}].",
            missing=[],
            unexpected=[],
            different=[part.name],
        ) from error


def _shape_of(value: Any, part: SavedPart) -> tuple[list[dict[str, Any]], dict[Any, Any]]:
    if not isinstance(value, dict) or not isinstance(value.get("param_groups"), list):
        raise UsageError(
            f"{part.where}: the part {part.name!r} is a {part.kind}, not the state of an optimizer.",
            found=part.kind,
        )
    state = value.get("state", {})
    for group in value["param_groups"]:
        if not isinstance(group, dict) or not isinstance(group.get("params"), list):
            raise FormatError(f"{part.where}: a parameter group of {part.name!r} lists no parameters.")
    return value["param_groups"], state


def _match(
    groups: list[dict[str, Any]], optimizer: Optimizer, part: SavedPart, plan: Plan, peers: Mapping[str, Any]
) -> list[tuple[Any, torch.Tensor, dict[str, Any]]] | None:
    """(saved key, live parameter, its live state) for each parameter: by name, else by position."""
    names = parameter_names(optimizer, peers)
    named = all(isinstance(key, str) for group in groups for key in group["params"])
    by_name = names is not None and named
    if named and names is None and any(group["params"] for group in groups):
        logging.getLogger("holdfast").warning(
            "The state of %r is saved under parameter names, and without its model the names of these parameters "
            "are not known: it is matched by position. Next: restore the model along with it.",
            part.name,
        )
    result: list[tuple[Any, torch.Tensor, dict[str, Any]]] = []
    offset = 0
    for group, own in zip(groups, optimizer.param_groups, strict=True):
        count = len(own["params"])
        keys: list[Any] = list(group["params"])
        if by_name and names is not None:
            here = names[offset : offset + count]
            if set(here) != set(keys):
                for name in here:
                    if name not in keys:
                        plan.lack(part.name, f"param_groups/{name}")
                for name in keys:
                    if name not in here:
                        plan.surplus(part.name, f"param_groups/{name}")
                return None
            keys = list(here)
        for key, parameter in zip(keys, own["params"], strict=True):
            result.append((key, parameter, optimizer.state.get(parameter, {})))
        offset += count
    return result


def _plan_item(
    item: Any,
    field: str,
    parameter: torch.Tensor,
    own: dict[str, Any],
    optimizer: Optimizer,
    part: SavedPart,
    plan: Plan,
) -> Any:
    if isinstance(item, _Ref):
        entry = part.entry(item.name)
        shape = entry.shape
        if field in _SHAPED and parameter.shape != shape:
            plan.differ(part.name, item.name, f"{list(shape)}", f"{list(parameter.shape)}")
            return None
        existing = own.get(field)
        if not _same(existing, entry.dtype, shape, parameter):
            existing = _new(field, entry.dtype, shape, parameter, optimizer)
        return arrays.plan_into(existing, part, item.name, plan) or (lambda: existing)
    if isinstance(item, list):
        return [_plan_item(x, "", parameter, {}, optimizer, part, plan) for x in item]
    if type(item) is tuple:
        return tuple(_plan_item(x, "", parameter, {}, optimizer, part, plan) for x in item)
    if isinstance(item, dict):
        return {key: _plan_item(x, "", parameter, {}, optimizer, part, plan) for key, x in item.items()}
    return item


def _same(existing: Any, dtype: str, shape: tuple[int, ...], parameter: torch.Tensor) -> bool:
    return (
        isinstance(existing, torch.Tensor)
        and arrays.NAMES.get(existing.dtype) == dtype
        and tuple(existing.shape) == shape
        and (existing.device == parameter.device or existing.dim() == 0)
    )


def _new(
    field: str, dtype: str, shape: tuple[int, ...], parameter: torch.Tensor, optimizer: Optimizer
) -> torch.Tensor:
    kind = arrays.torch_dtype(dtype)
    if shape == tuple(parameter.shape) and field != "step":
        return torch.empty_like(parameter, dtype=kind, requires_grad=False)  # keeps channels_last
    device = parameter.device
    if field == "step" and not any(g.get("capturable") or g.get("fused") for g in optimizer.param_groups):
        device = torch.device("cpu")  # where torch keeps step counts, unless a CUDA graph needs them
    return torch.empty(shape, dtype=kind, device=device)


def _plan_options(
    group: dict[str, Any], own: dict[str, Any], part: SavedPart, plan: Plan, kept: set[str]
) -> None:
    for name, value in group.items():
        if name == "params" or name in kept or (name == "initial_lr" and "lr" in kept):
            continue
        finish = _plan_option(value, own.get(name), part, plan)

        def place(name: str = name, finish: Any = finish) -> None:
            own[name] = _finish(finish)

        plan.after(place)


def _plan_option(value: Any, live: Any, part: SavedPart, plan: Plan) -> Any:
    if isinstance(value, _Ref):
        entry = part.entry(value.name)
        shape = tuple(entry.shape)
        if (
            isinstance(live, torch.Tensor)
            and arrays.NAMES.get(live.dtype) == entry.dtype
            and tuple(live.shape) == shape
        ):
            # The same tensor: schedulers hold on to a tensor lr.
            return arrays.plan_into(live, part, value.name, plan) or (lambda: live)
        target = arrays.allocate(entry.dtype, shape)
        plan.read(part, value.name, target.bytes)
        return target.finish
    if isinstance(value, (list, tuple)):
        return type(value)(_plan_option(item, None, part, plan) for item in value)
    return value


def _finish(item: Any) -> Any:
    if isinstance(item, (list, tuple)) and type(item) in (list, tuple):
        return type(item)(_finish(x) for x in item)
    if type(item) is dict:
        return {key: _finish(x) for key, x in item.items()}
    return item() if callable(item) and not isinstance(item, torch.Tensor) else item


def declared(thing: Any) -> dict[str, Any] | None:
    """What a user sets on an optimizer (a value for each group) or a scheduler; None for other things."""
    if isinstance(thing, Optimizer):
        found: dict[str, Any] = {}
        for name in thing.param_groups[0] if thing.param_groups else ():
            if name not in {"params", "param_names", "initial_lr"}:
                values = [_plain(group.get(name)) for group in thing.param_groups]
                if _UNKNOWN not in values:
                    found[name] = values[0] if len(set(map(repr, values))) == 1 else values
        return found
    if isinstance(thing, (LRScheduler, ReduceLROnPlateau)):
        state = thing.state_dict()
        return {
            name: plain
            for name, value in state.items()
            if not name.startswith("_") and name not in _PROGRESS and (plain := _plain(value)) is not _UNKNOWN
        }
    return None


_UNKNOWN = object()
# What a scheduler counts, beside what it was given.
_PROGRESS = {"last_epoch", "T_cur", "T_i", "best", "num_bad_epochs", "cooldown_counter"}


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        return value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)) and all(isinstance(item, (int, float)) for item in value):
        return list(value)
    if isinstance(value, dict) and all(isinstance(item, (int, float)) for item in (*value, *value.values())):
        return dict(value)
    return _UNKNOWN
