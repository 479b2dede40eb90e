"""Entire models: the weights as an ordinary checkpoint, the structure as a pickle without them.

`structure.pickle` holds the module with a reference in the place of each tensor, so nothing is
copied and the live module is not touched; `structure.json` says, for readers who do not trust it,
which code it would import. The state_dict is the part `model`; tensors of the module that are no
part of its state_dict (non-persistent buffers, plain attributes) are the part `attributes`.
"""

from __future__ import annotations

import io
import os
from typing import Any

import torch
from torch import nn

from holdfast.checkpoint import Checkpoint, open_checkpoint
from holdfast.drafting import save
from holdfast.errors import FormatError, HoldfastError, MismatchError, UntrustedError, UsageError
from holdfast.format import sealed
from holdfast.torch import modules
from holdfast.torch.structure import (
    ATTRIBUTES,
    MODEL,
    STRUCTURE_FACTS,
    STRUCTURE_FILE,
    StructurePickler,
    StructureUnpickler,
    unpicklable,
)

_LIMIT = 4 << 30
_SHOWN = 8


def save_model(net: nn.Module, path: str | os.PathLike[str], note: str = "") -> Checkpoint:
    """Saves an entire model, structure and weights, as one checkpoint. Durable when it returns.

    The module is not modified, and no second copy of its weights is made. The weights can be
    restored by anyone (`holdfast.restore(path, {"model": net})`); the structure, only by
    `load_model` with ``trust=True`` where the model's classes can be imported.

    Raises:
        UsageError: something in the module cannot be pickled (a lambda as a hook, a class defined
            inside a function); the message names its path. Nothing was saved.

    """
    if not isinstance(net, nn.Module):
        raise UsageError(
            f"save_model() takes a torch module, not a {type(net).__name__}. Next: holdfast.save(path, "
            f"{{…}}) for other things.",
            found=type(net).__name__,
        )
    net = modules.unwrap(net)
    buffer = io.BytesIO()
    pickler = StructurePickler(buffer, net)
    try:
        pickler.dump(net)
    except HoldfastError:
        raise
    except Exception as error:
        raise unpicklable(net, error) from error
    pickler.check_overlaps()
    parts: dict[str, Any] = {MODEL: net}
    if pickler.attributes:
        parts[ATTRIBUTES] = pickler.attributes
    extra = {STRUCTURE_FILE: buffer.getvalue(), STRUCTURE_FACTS: sealed.encode(pickler.facts(net))}
    return save(path, parts, note=note, extra=extra)


def load_model(
    path: str | os.PathLike[str],
    trust: bool = False,
    map_location: str | torch.device | None = None,
) -> nn.Module:
    """The entire model that `save_model` saved: structure, weights, mode and requires_grad as they were.

    Every byte is checked before any code runs.

    Args:
        path: the checkpoint, by path or reference.
        trust: True says that the code which the structure names may be imported and run.
        map_location: the device for all of its tensors; default: the CPU.

    Raises:
        UntrustedError: without ``trust=True``; nothing was run.
        DamagedError: a byte is not as written; nothing was run.
        FormatError: the checkpoint holds no structure.
        MismatchError: a class cannot be imported, or no longer takes the saved state.

    """
    checkpoint = open_checkpoint(path)
    facts = _facts(checkpoint)
    if trust is not True:
        raise UntrustedError(
            f"{checkpoint.path} holds an entire model ({facts['class']}). To open it means to import and run code "
            f"that its {STRUCTURE_FILE} names: {_shown(facts)}. Nothing was run. Next: if you trust whoever made it, "
            f"load_model(path, trust=True); or build the model yourself and holdfast.restore(path, "
            f'{{"model": net}}), which runs no code.',
            path=checkpoint.path,
            names=sorted(facts["names"]),
        )
    text = checkpoint._read_small(STRUCTURE_FILE, _LIMIT)
    values = checkpoint.load([name for name in (MODEL, ATTRIBUTES) if name in checkpoint.parts], "torch")
    unpickler = StructureUnpickler(io.BytesIO(text), values, map_location, checkpoint.path, facts)
    try:
        net = unpickler.load()
    except HoldfastError:
        raise
    except Exception as error:
        raise MismatchError(
            f"{checkpoint.path}: the model could not be built from its {STRUCTURE_FILE}: {type(error).__name__}: "
            f"{error}. The code of its classes has probably changed since ({_shown(facts)}). Next: use the code as "
            f'it was, or build the model and holdfast.restore(path, {{"model": net}}).',
            path=checkpoint.path,
            missing=[],
            unexpected=[],
            different=[facts["class"]],
        ) from error
    if not isinstance(net, nn.Module):
        raise FormatError(
            f"{checkpoint.path}: {STRUCTURE_FILE} holds a {type(net).__name__}, not a torch module.",
            path=checkpoint.path,
        )
    _set_extra_state(net, values[MODEL])
    return net


def _set_extra_state(net: nn.Module, values: dict[str, Any]) -> None:
    clean = modules.cleaner(net)
    for path, module in net.named_modules():
        name = clean(f"{path}._extra_state" if path else "_extra_state")
        if name in values:
            module.set_extra_state(values[name])


def _facts(checkpoint: Checkpoint) -> dict[str, Any]:
    """What `structure.json` says, digest checked; plain JSON, no code."""
    listed = checkpoint.manifest.files
    if STRUCTURE_FILE not in listed or STRUCTURE_FACTS not in listed:
        raise FormatError(
            f"{checkpoint.path} holds no structure of a model, only {', '.join(checkpoint.parts) or 'no parts'}: "
            f"save_model did not make it. Next: build the model and holdfast.restore(path, "
            f'{{"model": net}}).',
            path=checkpoint.path,
        )
    path = os.path.join(checkpoint.path, STRUCTURE_FACTS)
    facts = sealed.decode(checkpoint._read_small(STRUCTURE_FACTS, _LIMIT), path)
    if not isinstance(facts.get("names"), dict) or not isinstance(facts.get("class"), str):
        raise FormatError(f"{path} is not as the format says.", path=path)
    return facts


def _shown(facts: dict[str, Any]) -> str:
    """The names of the code that is not torch's own, then how many more there are."""
    own = [name for name in facts["names"] if not name.startswith(("torch.", "collections.", "builtins."))]
    shown = [f"{name} ({facts['names'][name]})" if facts["names"][name] else name for name in own[:_SHOWN]]
    more = len(facts["names"]) - len(shown)
    if not shown:
        return f"{more} names of torch and Python"
    return ", ".join(shown) + (f" and {more} more" if more else "")
