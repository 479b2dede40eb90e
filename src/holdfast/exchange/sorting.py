"""What a foreign dictionary holds: which entry is a model, an optimizer, progress, or just a value."""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from holdfast.errors import FormatError, UsageError
from holdfast.format.names import RESERVED_PARTS
from holdfast.state import adapters, capture

_NAMES = {
    "model": ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights"),
    "optimizer": ("optimizer", "optimizer_state_dict", "optimizer_states", "optim", "optim_state_dict", "opt"),
    "scheduler": (
        "scheduler", "scheduler_state_dict", "lr_scheduler", "lr_scheduler_state_dict", "lr_schedulers", "sched",
    ),
    "scaler": ("scaler", "scaler_state_dict", "grad_scaler", "amp_scaler"),
}  # fmt: skip
_PART_OF = {key: part for part, keys in _NAMES.items() for key in keys}
_EPOCHS = ("epoch", "epochs", "completed_epochs")
_STEPS = ("step", "global_step", "iteration", "iter", "steps", "it", "num_updates")
_PREFIXES = ("module.", "_orig_mod.")
_LIMIT = 10**17
_MOST_PARTS = 500
_MOST_PREFIXES = 8


@dataclasses.dataclass(slots=True)
class Sorted:
    """A foreign file's content as Holdfast takes it.

    Attributes:
        parts: part name → a state, a mapping of names to arrays, or an object with state_dict.
        kinds: part name → what a restore takes it for.
        state: what goes into `run.state`.
        metrics: numbers that rank the checkpoint.
        epoch, step: completed ones.
        lines: what became what, one sentence each.
        left_out: what a checkpoint cannot hold, and why.

    """

    parts: dict[str, Any] = dataclasses.field(default_factory=dict)
    kinds: dict[str, str] = dataclasses.field(default_factory=dict)
    state: dict[Any, Any] = dataclasses.field(default_factory=dict)
    metrics: dict[str, Any] = dataclasses.field(default_factory=dict)
    epoch: int = 0
    step: int = 0
    lines: list[str] = dataclasses.field(default_factory=list)
    left_out: list[str] = dataclasses.field(default_factory=list)

    def add(self, part: str, value: Any, kind: str, origin: str) -> None:
        cut = ""
        if kind == "torch.Module" and isinstance(value, dict):
            value, cut = _strip(value)
        self.parts[part], self.kinds[part] = value, kind
        self.lines.append(f"{origin} became the part {part!r}{cut}.")


def sort(content: Any, path: str) -> Sorted:
    """Sorts a file's content; `FormatError` lists what was there when no model or optimizer is."""
    content = _plain(content)
    found = Sorted()
    if _is_module(content):
        found.add("model", content, "torch.Module", "The entire model")
        return found
    if not isinstance(content, dict):
        raise FormatError(
            f"{path} holds a {type(content).__name__}; expected a state_dict, a dictionary with a model or an "
            f"optimizer, or an entire model.",
            path=path,
            found=type(content).__name__,
        )
    if _is_optimizer(content):
        found.add("optimizer", content, "torch.Optimizer", "The state of an optimizer")
        return found
    if _is_state_dict(content, whole=True):
        found.add("model", content, "torch.Module", f"The state_dict ({len(content)} entries)")
        return found
    _sort_entries(content, found)
    if not found.parts:
        listing = ", ".join(f"{key!r} ({type(value).__name__})" for key, value in list(content.items())[:20])
        raise FormatError(
            f"{path} holds no model and no optimizer. Its entries are: {listing or 'none'}. Expected is a state_dict, "
            f"or a dictionary with one under a name like 'state_dict', 'model_state_dict', 'model' or 'net'.",
            path=path,
            found=list(content),
        )
    return found


def _sort_entries(content: dict[Any, Any], found: Sorted) -> None:
    waiting: list[tuple[str, Any, str]] = []  # parts whose names are still to be made up
    for key, value in content.items():
        text = key if isinstance(key, str) else ""
        kind = _kind_of(text, value)
        if kind is not None and isinstance(value, (list, tuple)):
            waiting += [
                (f"{text}_{index}" if len(value) > 1 else text, item, kind)
                for index, item in enumerate(value)
            ]
        elif kind is not None:
            waiting.append((text, value, kind))
        elif text in _EPOCHS and _count(value) is not None and not found.epoch:
            found.epoch = _count(value) or 0
            found.lines.append(
                f"{key!r} = {found.epoch} was taken as the number of completed epochs, so the next is epoch index "
                f"{found.epoch}."
            )
        elif text in _STEPS and _count(value) is not None and not found.step:
            found.step = _count(value) or 0
            found.lines.append(f"{key!r} = {found.step} was taken as the number of steps done.")
        elif text == "metrics" and _are_metrics(value):
            found.metrics = dict(value)
            found.lines.append(f"{key!r} became the metrics of the checkpoint.")
        elif text == "state" and isinstance(value, dict) and "metrics" in content:  # an export of ours
            for name, item in value.items():
                _keep_value(name, item, found)
        else:
            _keep_value(key, value, found)
    _name_parts(waiting, found)


def _name_parts(waiting: list[tuple[str, Any, str]], found: Sorted) -> None:
    if len(waiting) > _MOST_PARTS:
        raise FormatError(
            f"The file holds {len(waiting):,} models, optimizers and the like; at most {_MOST_PARTS:,} are imported.",
            expected=_MOST_PARTS,
            found=len(waiting),
        )
    # Well-known names first, so that 'state_dict' is the model whatever stands before it.
    known = [(key, value, kind) for key, value, kind in waiting if key in _PART_OF]
    others = [(key, value, kind) for key, value, kind in waiting if key not in _PART_OF]
    alone = {kind: sum(1 for _, _, k in waiting if k == kind) == 1 for _, _, kind in waiting}
    for key, value, kind in [*known, *others]:
        part = _PART_OF.get(key) or (_DEFAULT.get(kind) if alone[kind] else None)
        if part is None or part in found.parts:
            part = part_name(key, found.parts)
        found.add(part, value, kind, repr(key))


_DEFAULT = {"torch.Module": "model", "torch.Optimizer": "optimizer"}


def part_name(key: str, taken: Mapping[str, Any]) -> str:
    """A part name made from a key: ``netG_state_dict`` becomes ``net_g``."""
    text = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", key).lower()
    text = re.sub(r"[^a-z0-9]+", "_", text).strip("_")
    text = re.sub(r"_state_dict\Z|_state\Z", "", text)
    if not text[:1].isalpha() or not text.isascii() or text in RESERVED_PARTS:
        text = f"part_{text}".rstrip("_")
    name, number = text, 2
    while name in taken:
        name, number = f"{text}_{number}", number + 1
    return name


def _keep_value(key: Any, value: Any, found: Sorted) -> None:
    if isinstance(value, Mapping) and not value:
        return
    try:
        capture.capture_value("state", {key: value})
    except UsageError as error:
        found.left_out.append(f"{key!r}: {error.message.removesuffix(' Nothing was saved.')}")
        return
    found.state[key] = value
    found.lines.append(f"{key!r} went into run.state[{key!r}].")


# -- what a value is -------------------------------------------------------------------------


def _kind_of(key: str, value: Any) -> str | None:
    """The kind of part that an entry is, None when it is a plain value."""
    if isinstance(value, (list, tuple)) and value:
        kinds = {_kind_of(key, item) for item in value if not isinstance(item, (list, tuple))}
        return kinds.pop() if len(kinds) == 1 else None
    if _is_module(value) or (_PART_OF.get(key) == "model" and _is_state_dict(value, whole=True)):
        return "torch.Module"
    if _is_state_dict(value) and (key.endswith("state_dict") or _looks_like_weights(value)):
        return "torch.Module"
    if _is_optimizer(value):
        return "torch.Optimizer"
    if _PART_OF.get(key) in ("scheduler", "scaler") and isinstance(value, dict) and value:
        return "object"
    if isinstance(value, dict) and "last_epoch" in value and "scheduler" in key:
        return "object"
    return None


def _is_module(value: Any) -> bool:
    return capture.kind_of(value) == "torch.Module"


def _is_array(value: Any) -> bool:
    from holdfast.payload.array import Array

    return isinstance(value, Array) or adapters.array_framework(type(value)) == "torch"


def _is_state_dict(value: Any, *, whole: bool = False) -> bool:
    """A mapping of names to tensors; `whole` also takes one with other entries called _extra_state."""
    if not isinstance(value, dict) or not value or not all(type(key) is str for key in value):
        return False
    others = [key for key, item in value.items() if not _is_array(item)]
    return (
        len(others) < len(value)
        and all(key.endswith("_extra_state") for key in others)
        and (whole or not others)
    )


def _looks_like_weights(value: dict[str, Any]) -> bool:
    return any(name.rpartition(".")[2] in ("weight", "bias") for name in value)


def _is_optimizer(value: Any) -> bool:
    return isinstance(value, dict) and {"state", "param_groups"} <= set(value)


def _are_metrics(value: Any) -> bool:
    return isinstance(value, dict) and all(
        type(name) is str and type(item) in (bool, int, float) for name, item in value.items()
    )


def _count(value: Any) -> int | None:
    """A count as it may be stored: an integer, or an array of one."""
    if _is_array(value) and getattr(value, "ndim", 1) == 0 and hasattr(value, "item"):
        value = value.item()
    if type(value).__module__ == "numpy" and hasattr(value, "item"):
        value = value.item() if getattr(value, "ndim", 1) == 0 else value
    return value if type(value) is int and 0 <= value < _LIMIT else None


def _plain(value: Any, depth: int = 0) -> Any:
    """The value with namespaces as dictionaries, and objects that have a state_dict as that."""
    if capture.kind_of(value) == "torch.Module" or _is_array(value):
        return value
    kind = type(value)
    if kind.__name__ in ("Namespace", "SimpleNamespace") and kind.__module__ in ("argparse", "types"):
        return _plain(dict(vars(value)), depth)
    if callable(getattr(value, "state_dict", None)) and not isinstance(value, type):
        return value.state_dict()
    if depth < 2 and kind in (dict, collections.OrderedDict):
        return {key: _plain(item, depth + 1) for key, item in value.items()}
    return value


def _strip(value: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Without the prefixes of wrappers, but only those that every name has."""
    cut = ""
    for _ in range(_MOST_PREFIXES):
        prefix = next((p for p in _PREFIXES if all(key.startswith(p) for key in value)), None)
        if prefix is None:
            break
        value, cut = {key[len(prefix) :]: item for key, item in value.items()}, cut + prefix
    return value, f", without the prefix {cut!r} that every name had" if cut else ""
