"""What a card says about torch things, and about the machine they ran on."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import Optimizer

from holdfast.torch import modules
from holdfast.torch.partial import Trainable

MAX_LAYERS = 200


def outline(thing: Any) -> dict[str, Any] | None:
    """Class, layers with parameter counts, and totals of a module; class and size of an optimizer."""
    if isinstance(thing, Trainable):
        thing = thing.module
    if isinstance(thing, torch.nn.Module):
        return _outline_module(modules.unwrap(thing))
    if isinstance(thing, Optimizer):
        count = sum(len(group["params"]) for group in thing.param_groups)
        return {"class": _class(thing), "tensors": count}
    return None


def _outline_module(module: torch.nn.Module) -> dict[str, Any]:
    layers: list[list[Any]] = []
    for name, child in module.named_modules():
        own = sum(_count(parameter) for parameter in child.parameters(recurse=False))
        if (own or not list(child.children())) and child is not module:
            layers.append([name, f"{type(child).__name__}({child.extra_repr()})", own])
    parameters = list(module.parameters())
    return {
        "class": _class(module),
        "parameters": sum(_count(p) for p in parameters),
        "trainable": sum(_count(p) for p in parameters if p.requires_grad),
        "layers": layers[:MAX_LAYERS],
        "more_layers": max(0, len(layers) - MAX_LAYERS),
    }


def _count(parameter: torch.Tensor) -> int:
    return 0 if isinstance(parameter, torch.nn.parameter.UninitializedTensorMixin) else parameter.numel()


def _class(thing: Any) -> str:
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


def environment() -> dict[str, Any]:
    """Torch's version, threads and devices: what decides whether results can be equal to the bit."""
    found: dict[str, Any] = {"torch": str(torch.__version__), "threads": torch.get_num_threads()}
    if torch.version.cuda is not None:
        found["cuda"] = torch.version.cuda
    if torch.cuda.is_available():
        found["gpu"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return found
