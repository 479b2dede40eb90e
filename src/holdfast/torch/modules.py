"""Modules: their names without wrappers, their capture, and their restore in place."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from holdfast.errors import MismatchError, UsageError
from holdfast.state.part import FLAT, PartState, Plan, SavedPart
from holdfast.state.tree import encode
from holdfast.torch import arrays


def wrapped(module: nn.Module) -> str | None:
    """The name of the child that a wrapper only wraps, or None; decided by type, never by name."""
    if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return "module"
    compiled = getattr(sys.modules.get("torch._dynamo.eval_frame"), "OptimizedModule", None)
    if compiled is not None and isinstance(module, compiled):
        return "_orig_mod"
    return None


def walk(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """(path, module) for the module and all below it, in torch's order; shared ones once for each path.

    What ``named_modules(remove_duplicate=False)`` gives, several times as fast: saves ask often.
    """
    found: list[tuple[str, nn.Module]] = []
    todo: list[tuple[str, nn.Module]] = [("", module)]
    while todo:
        path, child = todo.pop()
        found.append((path, child))
        prefix = f"{path}." if path else ""
        todo += [(prefix + name, own) for name, own in reversed(child._modules.items()) if own is not None]
    return found


def cleaner(module: nn.Module, paths: list[tuple[str, nn.Module]] | None = None) -> Callable[[str], str]:
    """A function from raw names to names without the prefixes of wrappers, at every depth."""
    cuts: list[tuple[int, str]] = []
    kinds: dict[type, str | None] = {}
    for path, child in walk(module) if paths is None else paths:
        kind = type(child)
        if kind not in kinds:
            kinds[kind] = wrapped(child)
        inner = kinds[kind]
        if inner is not None:
            start = f"{path}." if path else ""
            cuts.append((len(start), f"{start}{inner}."))
    if not cuts:
        return lambda name: name
    cuts.sort(reverse=True)

    def clean(name: str) -> str:
        result = name
        for start, prefix in cuts:  # deepest first, so that the positions before it stay right
            if name.startswith(prefix):
                result = result[:start] + result[len(prefix) :]
        return result

    return clean


def parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters with their clean names; a tied parameter once for each name."""
    paths = walk(module)
    clean = cleaner(module, paths)
    if type(module).named_parameters is not nn.Module.named_parameters:
        for name, parameter in module.named_parameters(remove_duplicate=False):
            yield clean(name), parameter
        return
    for path, child in paths:
        prefix = f"{path}." if path else ""
        for name, own in child._parameters.items():
            if own is not None:
                yield clean(prefix + name), own


def unwrap(module: nn.Module) -> nn.Module:
    while (inner := wrapped(module)) is not None:
        module = getattr(module, inner)
    return module


def capture(module: nn.Module, where: str, only: set[str] | None = None) -> PartState:
    """A module's state_dict; `only` limits the parameters to those named."""
    clean, own = cleaner(module), dict(parameters(module))
    checked = {name for name, parameter in own.items() if parameter.is_floating_point()}
    changing = any(parameter.requires_grad for parameter in own.values())
    found: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    for raw, value in module.state_dict().items():
        name = clean(raw)
        if isinstance(value, torch.Tensor):
            if only is None or name in only:
                found[name] = arrays.describe(value, f"{where}/{name}", check=name in checked)
        else:
            extra[name] = value
    skeleton: Any = {"$": FLAT, "v": "torch"}
    if extra:
        inner: dict[str, Any] = {}
        values = encode(extra, where, inner)
        for name, tensor in inner.items():
            found[name] = arrays.describe(tensor, f"{where}{name}")
        own = {name: {"$": "torch", "v": name} for name in found if name not in inner}
        skeleton = {**own, **values} if "$" not in values else values
    return PartState("torch.Module", skeleton, found, watch=changing)


def plan_restore(module: nn.Module, part: SavedPart, plan: Plan, *, partial: bool = False) -> None:
    """Reads a saved module, or any mapping that fits as its state_dict, into the live one.

    `partial` is for a saved part that deliberately holds some of the parameters only.
    """
    if part.flat is None:
        _check_mapping(part, type(module).__name__)
    if not _writes_through(module) or (part.flat is None and "$" in part.content):
        _plan_through_loader(module, part, plan)
        return
    clean = cleaner(module)
    live = {clean(name): value for name, value in module.state_dict().items()}
    tensors = {name: value for name, value in live.items() if isinstance(value, torch.Tensor)}
    names = [name for name in part.entries if not name.startswith("/")]
    match(part, names, tensors, plan, partial=partial)
    _plan_extra(module, clean, part, live, plan)


def match(
    part: SavedPart, names: list[str], tensors: dict[str, torch.Tensor], plan: Plan, *, partial: bool = False
) -> None:
    """Pairs saved arrays with live tensors of the same name, shape and dtype."""
    for name in names:
        tensor = tensors.get(name)
        if tensor is None:
            plan.surplus(part.name, name)
            continue
        entry = part.entry(name)
        if tensor.shape != entry.shape or arrays.NAMES.get(tensor.dtype) != entry.dtype:
            dtype = arrays.NAMES.get(tensor.dtype, str(tensor.dtype))
            live = f"{dtype} {list(tensor.shape)}"
            plan.differ(part.name, name, f"{entry.dtype} {list(entry.shape)}", live)
            continue
        if tensor.is_meta:
            raise UsageError(
                f"{part.name}/{name} is on the meta device and has no memory to restore into. "
                f"Next: call .to_empty(device=…) on the model first.",
                path=f"{part.name}/{name}",
            )
        finish = arrays.plan_into(tensor, part, name, plan)
        if finish is not None:
            plan.after(finish)
    if not partial:
        known = set(names)
        for name in tensors:
            if name not in known:
                plan.lack(part.name, name)


def _check_mapping(part: SavedPart, target: str) -> None:
    value = part.value(lambda *_: None)
    if not isinstance(value, Mapping) or not all(type(key) is str for key in value):
        raise UsageError(
            f"{part.where}: the part {part.name!r} is a {type(value).__name__}, not the state of a module: a {target} "
            f"cannot take it. Next: load(parts=[{part.name!r}]) returns its value.",
            expected="torch.Module",
            found=part.kind,
        )


def _plan_extra(
    module: nn.Module, clean: Callable[[str], str], part: SavedPart, live: dict[str, Any], plan: Plan
) -> None:
    wanted = [name for name, value in live.items() if not isinstance(value, torch.Tensor)]
    if part.flat is not None:
        for name in wanted:
            plan.lack(part.name, name)
        return
    finish = plan.value(_extra_of(part))
    owners = {
        clean(f"{path}._extra_state" if path else "_extra_state"): child
        for path, child in module.named_modules(remove_duplicate=False)
    }

    def restore() -> None:
        values = finish()
        for name in wanted:
            if name in values and name in owners:
                owners[name].set_extra_state(values[name])

    plan.after(restore)
    for name in wanted:
        if name not in part.content:
            plan.lack(part.name, name)


def _extra_of(part: SavedPart) -> SavedPart:
    extra = {
        name: value
        for name, value in part.content.items()
        if not (isinstance(value, dict) and value.get("$") == "torch" and value.get("v") == name)
    }
    return SavedPart(part.name, part.kind, extra, part.entries, part.where)


def _writes_through(module: nn.Module) -> bool:
    """Whether writing into the tensors of `state_dict()` is all that loading would do."""
    if any(
        isinstance(p, nn.parameter.UninitializedTensorMixin)
        for p in (*module.parameters(), *module.buffers())
    ):
        return False  # a lazy module takes its shapes from what it loads
    memory = {tensor.data_ptr() for tensor in module.parameters()} | {b.data_ptr() for b in module.buffers()}
    for child in module.modules():
        own = type(child)
        if child._load_state_dict_pre_hooks or child._state_dict_hooks or child._load_state_dict_post_hooks:
            return False
        for method in ("_load_from_state_dict", "load_state_dict", "_save_to_state_dict", "state_dict"):
            definer = next(base for base in own.__mro__ if method in vars(base))
            # torch's own overrides only upgrade state_dicts of older versions
            if not definer.__module__.startswith("torch."):
                return False
    for value in module.state_dict().values():
        if isinstance(value, torch.Tensor) and value.numel() and value.data_ptr() not in memory:
            return False
    return True


def _plan_through_loader(module: nn.Module, part: SavedPart, plan: Plan) -> None:
    # The module has loading code of its own: it gets a state_dict, at the price of one copy.
    target = unwrap(module)
    finish = plan.value(part, "torch")

    def restore() -> None:
        try:
            target.load_state_dict(finish())
        except (RuntimeError, KeyError, ValueError) as error:
            raise MismatchError(
                f"{part.where}: part {part.name!r} does not fit {type(target).__name__}, whose own loading "
                f"code says: {error}. Parts of it may have been overwritten already: do not use it. "
                f"Next: build it as it was saved.",
                missing=[],
                unexpected=[],
                different=[],
                target_changed=True,
            ) from error

    plan.after(restore)
