"""What is saved and loaded: GPT-2 with AdamW, built by hand, and many small arrays."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from benchmarks.sizes import Size


def gpt2(size: Size) -> Any:
    """The parameters of a GPT-2 with a tied head; GPT-2-small has 148 arrays of 124 million numbers."""
    width = size.width

    def block() -> Any:
        attention = {"c_attn": nn.Linear(width, 3 * width), "c_proj": nn.Linear(width, width)}
        mlp = {"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)}
        return nn.ModuleDict(
            {
                "ln_1": nn.LayerNorm(width),
                "attn": nn.ModuleDict(attention),
                "ln_2": nn.LayerNorm(width),
                "mlp": nn.ModuleDict(mlp),
            }
        )

    net = nn.ModuleDict(
        {
            "wte": nn.Embedding(size.vocabulary, width),
            "wpe": nn.Embedding(size.context, width),
            "h": nn.ModuleList([block() for _ in range(size.layers)]),
            "ln_f": nn.LayerNorm(width),
            "lm_head": nn.Linear(width, size.vocabulary, bias=False),
        }
    )
    net["lm_head"].weight = net["wte"].weight
    return net


def adamw(net: Any) -> Any:
    return torch.optim.AdamW(net.parameters(), lr=3e-4)


def trained(size: Size, seed: int = 1) -> tuple[Any, Any]:
    """A network and its optimizer as a training leaves them: two moments and a step count for each."""
    torch.manual_seed(seed)
    net = gpt2(size)
    optimizer = adamw(net)
    for parameter in net.parameters():
        optimizer.state[parameter] = {
            "step": torch.tensor(1000.0),
            "exp_avg": torch.rand_like(parameter),
            "exp_avg_sq": torch.rand_like(parameter),
        }
    return net, optimizer


def fresh(size: Size) -> tuple[Any, Any]:
    """A network and its optimizer as a script builds them before it resumes."""
    torch.manual_seed(2)
    net = gpt2(size)
    return net, adamw(net)


def fingerprint(net: Any, optimizer: Any) -> list[float]:
    """A few numbers by which a loaded state is known to be the saved one."""
    parameters = list(net.parameters())
    chosen = [parameters[0], parameters[len(parameters) // 2], parameters[-1]]
    found = [float(parameter.detach().double().sum()) for parameter in chosen]
    for parameter in chosen:
        own = optimizer.state[parameter]
        found += [float(own[name].double().sum()) for name in ("step", "exp_avg", "exp_avg_sq")]
    return found


def touch(net: Any, optimizer: Any) -> None:
    """Writes one number of each page, as the first step of a training does.

    What is only mapped into memory until then has to be read for that, and to become memory.
    """
    for tensor in _tensors(net, optimizer):
        tensor.detach().reshape(-1)[::1024].mul_(1)


def nbytes(net: Any, optimizer: Any) -> int:
    """Bytes of all arrays, tied ones once."""
    return sum(tensor.numel() * tensor.element_size() for tensor in _tensors(net, optimizer))


def _tensors(net: Any, optimizer: Any) -> list[Any]:
    return [*net.parameters(), *(t for own in optimizer.state.values() for t in own.values())]


def small_arrays(size: Size) -> dict[str, Any]:
    """Arrays of 1 KiB, each with memory of its own."""
    torch.manual_seed(3)
    return {f"layer_{number:06d}.weight": torch.rand(256) for number in range(size.arrays)}
