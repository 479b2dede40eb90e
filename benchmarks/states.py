"""What is saved and loaded: GPT-2 with AdamW, built by hand, and many small arrays."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from benchmarks.sizes import Size

_TILE = 1 << 20
HEAD = 32  # numbers in one head of the attention: divides every width that is used


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


def adamw(net: Any, *, fused: bool | None = None) -> Any:
    return torch.optim.AdamW(net.parameters(), lr=3e-4, fused=fused)


def trained(size: Size, *, device: str = "cpu") -> tuple[Any, Any]:
    """A network and its optimizer as a training leaves them: two moments and a step count for each."""
    net = _filled(size, seed=1).to(device)
    optimizer = adamw(net)
    for number, parameter in enumerate(net.parameters()):
        optimizer.state[parameter] = {
            "step": torch.tensor(1000.0),
            "exp_avg": _fill(torch.empty_like(parameter), 2 * number + 2000),
            "exp_avg_sq": _fill(torch.empty_like(parameter), 2 * number + 2001),
        }
    return net, optimizer


def fresh(size: Size) -> tuple[Any, Any]:
    """A network and its optimizer as a script builds them before it resumes."""
    net = _filled(size, seed=2)
    return net, adamw(net)


def _filled(size: Size, seed: int) -> Any:
    """A network with numbers that come from no initialization, which would take longer than a save."""
    with torch.device("meta"):
        net = gpt2(size)
    net.to_empty(device="cpu")
    net["lm_head"].weight = net["wte"].weight
    for number, parameter in enumerate(net.parameters()):
        _fill(parameter.detach(), seed * 500 + number)
    return net


@functools.cache
def _random() -> Any:
    return torch.rand(2 * _TILE, generator=torch.Generator().manual_seed(1))


def _fill(tensor: Any, number: int) -> Any:
    """Random numbers, other ones for each number; the tensor itself."""
    flat = tensor.detach().view(-1)
    start = number * 4099 % _TILE
    tile = _random()[start : start + _TILE].to(flat.device)
    whole = len(flat) // _TILE * _TILE
    flat[:whole].view(-1, _TILE).copy_(tile)
    flat[whole:].copy_(tile[: len(flat) - whole])
    return tensor


def loss(net: Any, tokens: Any) -> Any:
    """Cross-entropy of the next token; `tokens` has the shape (batch, length)."""
    places = torch.arange(tokens.shape[1])
    hidden = net["wte"](tokens) + net["wpe"](places)
    for block in net["h"]:
        query, key, value = (
            part.unflatten(-1, (-1, HEAD)).transpose(1, 2)
            for part in block["attn"]["c_attn"](block["ln_1"](hidden)).chunk(3, dim=-1)
        )
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        hidden = hidden + block["attn"]["c_proj"](mixed.transpose(1, 2).flatten(-2))
        wide = functional.gelu(block["mlp"]["c_fc"](block["ln_2"](hidden)))
        hidden = hidden + block["mlp"]["c_proj"](wide)
    logits = net["lm_head"](net["ln_f"](hidden))
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


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


def expected_bytes(size: Size) -> int:
    """What `nbytes` says of a trained network of that size, without making one."""
    with torch.device("meta"):
        parameters = list(gpt2(size).parameters())
    return sum(3 * parameter.numel() * parameter.element_size() + 4 for parameter in parameters)


def _tensors(net: Any, optimizer: Any) -> list[Any]:
    return [*net.parameters(), *(t for own in optimizer.state.values() for t in own.values())]


def small_arrays(count: int) -> dict[str, Any]:
    """Arrays of 1 KiB, each with memory of its own."""
    torch.manual_seed(3)
    return {f"layer_{number:06d}.weight": torch.rand(256) for number in range(count)}


# torch imports much at the first optimizer; here, so that no measuring process has to.
adamw(nn.Linear(1, 1))
