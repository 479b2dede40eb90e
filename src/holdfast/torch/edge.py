"""PyTorch's edge: the verbs listed in `holdfast.state.adapters`."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch.optim import Optimizer

from holdfast.errors import FormatError, UsageError
from holdfast.state import adapters
from holdfast.state.part import PartState, Plan, SavedPart
from holdfast.torch import arrays, modules, optimizers, overlapping, partial, sight
from holdfast.torch.partial import Trainable

describe = arrays.describe
allocate = arrays.allocate
BATCHED, unpack, fill = arrays.BATCHED, arrays.unpack, arrays.fill


def serves(thing: Any) -> str | None:
    """The kind of a thing that this edge captures itself."""
    if isinstance(thing, Trainable):
        return "torch.Trainable"
    if isinstance(thing, torch.nn.Module):
        return "torch.Module"
    if isinstance(thing, Optimizer) and optimizers.native(thing):
        return "torch.Optimizer"
    if isinstance(thing, torch.Generator):
        return "torch.Generator"
    return None


def capture(thing: Any, kind: str, where: str, peers: Mapping[str, Any]) -> PartState:
    """A tracked thing's state; `peers` are all tracked things, for parameter names."""
    if kind == "torch.Trainable":
        return thing.capture(where)  # type: ignore[no-any-return]
    if kind == "torch.Module":
        return modules.capture(thing, where)
    if kind == "torch.Optimizer":
        return optimizers.capture(thing, where, peers)
    return PartState(kind, {"state": _hex(thing.get_state()), "device": str(thing.device)}, {})


sight_of = sight.of


def plan_restore(
    thing: Any,
    kind: str,
    part: SavedPart,
    plan: Plan,
    peers: Mapping[str, Any],
    *,
    keep: tuple[str, ...] = (),
) -> None:
    """Plans the restore of a saved part into a live thing; see the modules for what fits."""
    if kind == "torch.Trainable":
        thing.plan_restore(part, plan)
    elif kind == "torch.Module":
        if part.kind == "torch.Trainable":
            partial.plan_restore_plain(thing, part, plan)
        else:
            modules.plan_restore(thing, part, plan)
    elif kind == "torch.Optimizer":
        optimizers.plan_restore(thing, part, plan, peers, keep=keep)
    else:
        state = _unhex(part.skeleton["state"])
        thing.clone_state().set_state(state)  # tried on another first: nothing live has been touched yet
        plan.after(lambda: thing.set_state(state))


def plan_restore_options(
    thing: Any, part: SavedPart, plan: Plan, peers: Mapping[str, Any], *, keep: tuple[str, ...] = ()
) -> None:
    """Plans the restore of what is small in an optimizer: the options of its parameter groups."""
    optimizers.plan_restore(thing, part, plan, peers, options_only=True, keep=keep)


def plan_arrays(tensors: dict[str, torch.Tensor], part: SavedPart, plan: Plan) -> None:
    """Plans the restore of arrays into live tensors, given by the arrays' names."""
    modules.match(part, list(tensors), tensors, plan, partial=True)


# -- small values --------------------------------------------------------------------------


def special(value: Any) -> tuple[str, Any] | None:
    """Dtypes, devices and layouts as (tag, plain value)."""
    if isinstance(value, torch.dtype):
        return "torch.dtype", str(value).removeprefix("torch.")
    if isinstance(value, torch.device):
        return "torch.device", str(value)
    if isinstance(value, torch.Generator):
        return "torch.Generator", [str(value.device), _hex(value.get_state())]
    return None


def revive(tag: str, value: Any) -> Any:
    """The value of a tag that `special` made."""
    if tag == "torch.Size":
        if not all(type(extent) is int and abs(extent) < 2**63 for extent in value):
            raise FormatError("A torch.Size in a checkpoint holds what is no size.", found=tag)
        return torch.Size(value)
    if tag == "torch.dtype":
        found = vars(torch).get(value)  # not getattr, which would import what torch loads on demand
        if isinstance(found, torch.dtype):
            return found
        raise FormatError(f"torch {torch.__version__} has no dtype {value!r}.", found=value)
    if tag == "torch.device":
        return torch.device(value)
    if tag == "torch.Generator":
        generator = torch.Generator(device=value[0])
        generator.set_state(_unhex(value[1]))
        return generator
    raise FormatError(f"A value tagged {tag!r} is not known to this version of Holdfast.", found=tag)


# -- random streams ------------------------------------------------------------------------


def streams() -> dict[str, Any]:
    """The states of torch's global random streams, on all devices in use."""
    found: dict[str, Any] = {"cpu": _hex(torch.get_rng_state())}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        found["cuda"] = [_hex(state) for state in torch.cuda.get_rng_state_all()]
    if torch.backends.mps.is_available():
        found["mps"] = _hex(torch.mps.get_rng_state())
    return found


def set_streams(value: Mapping[str, Any]) -> None:
    """Sets the streams that `streams` gave; those of devices that are not here are left out."""
    torch.set_rng_state(_unhex(value["cpu"]))
    if "cuda" in value and torch.cuda.is_available():
        states = [_unhex(state) for state in value["cuda"]][: torch.cuda.device_count()]
        torch.cuda.set_rng_state_all(states)
    if "mps" in value and torch.backends.mps.is_available():
        torch.mps.set_rng_state(_unhex(value["mps"]))


def seed(number: int) -> None:
    torch.manual_seed(number)


def generator_state(generator: torch.Generator) -> str:
    return _hex(generator.get_state())


def set_generator_state(generator: torch.Generator, state: str) -> None:
    generator.set_state(_unhex(state))


def freshly_seeded(generator: torch.Generator) -> bool:
    """Whether nothing was drawn from a generator since it was seeded."""
    other = torch.Generator(device=generator.device).manual_seed(generator.initial_seed())
    return bool(torch.equal(other.get_state(), generator.get_state()))


def _hex(state: torch.Tensor) -> str:
    text: str = state.cpu().numpy().tobytes().hex()
    return text


def _unhex(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)


# -- the training's side -------------------------------------------------------------------


def gradients(
    things: Mapping[str, Any], stepped: Mapping[str, Any]
) -> tuple[dict[str, torch.Tensor], list[str] | bool]:
    """The gradients that tracked parameters gather, by part and parameter name, and which others hold one.

    The others are those that an optimizer among `stepped` has used and, if there is one, those that
    no tracked optimizer uses: their values count no more, but ``zero_grad(set_to_none=False)`` makes
    zeros of them, and an optimizer moves a parameter whose gradient is zero. True stands for all
    parameters that train.
    """
    users: dict[int, bool] = {}
    gathered: set[int] = set()
    for part, thing in things.items():
        if isinstance(thing, Optimizer):
            again = part in stepped and not _untouched(stepped[part])
            for group in thing.param_groups:
                for parameter in group["params"]:
                    users[id(parameter)] = users.get(id(parameter), False) or part in stepped
                    if again:
                        gathered.add(id(parameter))
    pending: dict[str, torch.Tensor] = {}
    used, complete = [], True
    for name, parameter in _owned(things):
        complete = complete and parameter.requires_grad == (parameter.grad is not None)
        if parameter.grad is None:
            continue
        known = users.get(id(parameter), bool(stepped))
        # Nothing gathered is nothing pending: a launch that has only restored zeros saves what it found.
        if (known and id(parameter) not in gathered) or not bool(parameter.grad.any()):
            used.append(name)
        else:
            pending[name] = parameter.grad
    return pending, used if not (complete and used) else True


def set_gradients(
    things: Mapping[str, Any], values: Mapping[str, torch.Tensor], zeros: Collection[str] | bool
) -> None:
    """Gives tracked parameters these gradients, those named in `zeros` zeros, and all the others none."""
    for name, parameter in _owned(things):
        value = values.get(name)
        if value is not None:
            parameter.grad = value.to(parameter.device)
        elif parameter.requires_grad if zeros is True else zeros and name in zeros:
            parameter.grad = torch.zeros_like(parameter)
        else:
            parameter.grad = None


def flags(thing: Any) -> dict[str, bool]:
    """Which parameters of a module train, and which of its modules are in training mode."""
    module = thing.module if isinstance(thing, Trainable) else thing
    if not isinstance(module, torch.nn.Module):
        return {}
    found = {f"requires_grad:{name}": p.requires_grad for name, p in modules.parameters(module)}
    inner = modules.unwrap(module)
    return found | {f"training:{name}": child.training for name, child in modules.walk(inner)}


def set_flags(thing: Any, values: Mapping[str, bool]) -> None:
    """Sets those of a module's flags that are named; names that it does not have are left out."""
    module = thing.module if isinstance(thing, Trainable) else thing
    if not isinstance(module, torch.nn.Module):
        return
    for name, parameter in modules.parameters(module):
        parameter.requires_grad_(values.get(f"requires_grad:{name}", parameter.requires_grad))
    if "training:" in values:  # a wrapper is in the mode of what it wraps
        module.training = values["training:"]
    for name, child in modules.walk(modules.unwrap(module)):
        child.training = values.get(f"training:{name}", child.training)


def _owned(things: Mapping[str, Any]) -> Iterator[tuple[str, torch.nn.Parameter]]:
    seen: set[int] = set()
    stepped = {
        id(parameter)
        for thing in things.values()
        if isinstance(thing, Optimizer)
        for group in thing.param_groups
        for parameter in group["params"]
    }
    for part, thing in things.items():
        if isinstance(thing, Trainable):
            pairs = [(name, p) for name, p in modules.parameters(thing.module)]
        elif isinstance(thing, torch.nn.Module):
            pairs = list(modules.parameters(thing))
            if adapters.home_framework(type(thing)) == "keras":
                # What a Keras optimizer leaves in .grad, its next step throws away.
                pairs = [(name, p) for name, p in pairs if id(p) in stepped]
        elif isinstance(thing, Optimizer):
            flat = [p for group in thing.param_groups for p in group["params"]]
            pairs = [(str(index), p) for index, p in enumerate(flat)]
        else:
            continue
        for name, parameter in pairs:
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield f"{part}/{name}", parameter


def on_step(thing: Any, notify: Any) -> Any | None:
    """Calls `notify(mark)` after each step of an optimizer; the handle removes it. None for other things.

    The mark tells later whether gradients were gathered since: the smallest gradient that the
    optimizer used, and its version.
    """
    if not isinstance(thing, Optimizer):
        return None
    return thing.register_step_post_hook(lambda optimizer, *_: notify(_mark(optimizer)))


def _mark(optimizer: Optimizer) -> tuple[torch.Tensor, torch.Tensor, int] | None:
    smallest: torch.Tensor | None = None
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None and (smallest is None or parameter.numel() < smallest.numel()):
                smallest = parameter
    if smallest is None or smallest.grad is None:
        return None
    return smallest, smallest.grad, smallest.grad._version


def _untouched(mark: tuple[torch.Tensor, torch.Tensor, int] | None) -> bool:
    return mark is not None and mark[0].grad is mark[1] and mark[1]._version == mark[2]


declared = optimizers.declared
late = overlapping.late
before_step = overlapping.before_step


def process_group_size() -> int:
    """How many processes this one trains with."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return int(distributed.get_world_size())
    return 1


def source(loader: Any, *, shuffle: bool) -> Any:  # noqa: ARG001 (a DataLoader shuffles by itself)
    """The resumable source of a torch DataLoader; None when the thing is none."""
    from holdfast.torch import loader as loaders

    return loaders.source(loader) if isinstance(loader, torch.utils.data.DataLoader) else None


def outline(thing: Any) -> dict[str, Any] | None:
    """What the card says of a tracked thing: class, layers, parameter counts."""
    from holdfast.torch import describing

    return describing.outline(thing)


def environment() -> dict[str, Any]:
    """Versions and devices of this process."""
    from holdfast.torch import describing

    return describing.environment()


@contextlib.contextmanager
def probing(module: Any) -> Iterator[None]:
    """Evaluation mode without gradients; mode and random streams are as before afterwards."""
    modes = (
        [(child, child.training) for child in module.modules()] if isinstance(module, torch.nn.Module) else []
    )
    before = streams()
    versions = _versions(module) if isinstance(module, torch.nn.Module) else {}
    try:
        for child, _ in modes:
            child.training = False
        with torch.no_grad():
            yield
        if isinstance(module, torch.nn.Module):
            _check_unchanged(module, versions)
    finally:
        for child, mode in modes:
            child.training = mode
        set_streams(before)


def _versions(module: torch.nn.Module) -> dict[str, int]:
    tensors = [*module.named_parameters(), *module.named_buffers()]
    return {name: tensor._version for name, tensor in tensors if not tensor.is_inference()}


def _check_unchanged(module: torch.nn.Module, versions: dict[str, int]) -> None:
    changed = [name for name, version in _versions(module).items() if versions.get(name, version) != version]
    if changed:
        raise UsageError(
            f"The probe changed {', '.join(changed[:5])} of the model, although it ran in evaluation mode: a training with "
            f"this probe would not be the same as one without. Next: probe a part of the model that only reads, or "
            f"leave the probe out.",
            found=changed,
        )
