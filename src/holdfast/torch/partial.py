"""`trainable(net)`: a part that stores what trains, and proves that the rest is the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from holdfast.errors import MismatchError, UsageError
from holdfast.state.part import PARTIAL, PartState, Plan, SavedPart
from holdfast.torch import arrays, modules


class Trainable:
    """A module of which only parameters with requires_grad, and buffers, are stored.

    Of the frozen arrays a checkpoint keeps one digest; a restore compares it with the base that
    the script has loaded.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        if not isinstance(module, torch.nn.Module):
            raise UsageError(
                f"trainable() takes a torch module, not a {type(module).__name__}.",
                found=type(module).__name__,
            )
        self.module = module
        self._digest: tuple[Any, str] | None = None

    def frozen(self) -> list[str]:
        trains = {id(p) for p in self.module.parameters() if p.requires_grad}
        return [name for name, p in modules.parameters(self.module) if id(p) not in trains]

    def digest(self) -> str:
        """xxh3-128 over names, dtypes, shapes and bytes of the frozen parameters.

        Computed again only when one of them was written to or moved since.
        """
        found = dict(modules.parameters(self.module))
        names = tuple(self.frozen())
        key = [(name, found[name]._version, found[name].data_ptr()) for name in names]
        if self._digest is not None and self._digest[0] == key:
            return self._digest[1]
        self._digest = (key, _digest_of(found, names))
        return self._digest[1]

    def capture(self, where: str) -> PartState:
        frozen = set(self.frozen())
        clean = modules.cleaner(self.module)
        names = {clean(name) for name in self.module.state_dict()}
        state = modules.capture(self.module, where, names - frozen)
        skeleton = {
            "$": PARTIAL,
            "v": state.skeleton,
            "frozen": {"count": len(frozen), "digest": self.digest()},
        }
        return PartState("torch.Trainable", skeleton, state.arrays, watch=True)

    def plan_restore(self, part: SavedPart, plan: Plan) -> None:
        if part.kind != "torch.Trainable":
            modules.plan_restore(self.module, part, plan)
            return
        self._digest = None  # what was written through .data left no trace that the cache could see
        _check_base(part, self.digest(), len(self.frozen()))
        inner = SavedPart(part.name, "torch.Module", part.skeleton["v"], part.entries, part.where)
        clean = modules.cleaner(self.module)
        wanted = {clean(name) for name, v in self.module.state_dict().items() if isinstance(v, torch.Tensor)}
        modules.plan_restore(self.module, inner, plan, partial=True)
        for name in sorted(wanted - set(self.frozen()) - set(inner.entries)):
            plan.lack(part.name, name)


def plan_restore_plain(module: torch.nn.Module, part: SavedPart, plan: Plan) -> None:
    """Restores a part that stored what trains into a plain module, whose other parameters must be its base."""
    found = dict(modules.parameters(module))
    base = [name for name in found if name not in part.entries]
    _check_base(part, _digest_of(found, base), len(base))
    modules.plan_restore(module, part, plan, partial=True)


def _digest_of(found: Mapping[str, torch.Tensor], names: Iterable[str]) -> str:
    import xxhash

    whole = xxhash.xxh3_128()
    for name in sorted(names):
        array = arrays.describe(found[name], name)
        whole.update(f"{name}\0{array.dtype}\0{array.shape}\0".encode())
        whole.update(array.open().data)
    return str(whole.hexdigest())


def _check_base(part: SavedPart, here: str, count: int) -> None:
    saved = part.skeleton["frozen"]
    if saved["digest"] != here:
        raise MismatchError(
            f"{part.where}: the frozen part of {part.name!r} is not the one that was trained with: its digest "
            f"is {here} over {count} arrays, saved was {saved['digest']} over "
            f"{saved['count']}. Next: load the same base weights, and freeze the same parameters, "
            f"before the checkpoint is restored.",
            missing=[],
            unexpected=[],
            different=[part.name],
            expected=saved["digest"],
            found=here,
        )


def trainable(module: torch.nn.Module) -> Trainable:
    """A part for `run.track` that leaves out what is frozen: ``run.track(model=trainable(net))``.

    Stored are the parameters with requires_grad and all buffers; of the frozen parameters one
    digest, so that a restore onto another base is a `MismatchError`, not a silent mixture.
    """
    return Trainable(module)
