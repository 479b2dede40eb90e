"""A small input whose output certifies a restored model."""

from __future__ import annotations

import dataclasses
from typing import Any

from holdfast.errors import ProbeError, UsageError
from holdfast.state import adapters, streams

# Relative to the largest magnitude of the saved output, by dtype of the arrays compared.
_TOLERANCE = {"float64": 1e-9, "float32": 1e-4, "float16": 2e-2, "bfloat16": 5e-2}


@dataclasses.dataclass(slots=True)
class Record:
    """What a probe answered: its output (a nested value of arrays) and what it depends on."""

    output: Any
    facts: dict[str, Any]


class Probe:
    """Certifies a restored model: the same small input must give the same output.

    The module runs in evaluation mode without gradients; its mode and all random streams are as
    before afterwards. On the same kind of device and the same versions the output must be equal
    to the bit; otherwise within a tolerance by dtype, and a difference is a warning.

    Args:
        module: the tracked model (or any callable).
        *inputs: what it is called with: a small batch.

    """

    def __init__(self, module: Any, *inputs: Any) -> None:
        if not callable(module):
            raise UsageError(f"Probe() takes a model to call, not a {type(module).__name__}.")
        if not inputs:
            raise UsageError("Probe() needs an input to call the model with: Probe(net, sample_batch).")
        self.module, self.inputs = module, inputs

    def run(self) -> Record:
        """The model's answer now."""
        import contextlib

        before = streams.capture()
        framework = adapters.home_framework(type(self.module))
        with contextlib.ExitStack() as stack:
            stack.callback(streams.restore, before)
            if framework is not None:
                stack.enter_context(adapters.edge(framework).probing(self.module))
            output = self.module(*self.inputs)
            return Record(_copied(output), {"platform": platform_of(output)})

    def check(self, saved: Any, facts: dict[str, Any], *, same_environment: bool) -> str | None:
        """Compares the answer now with a saved one.

        Returns:
            None when it is as it must be, else a warning (only where devices or versions differ).

        Raises:
            ProbeError: on the same device and versions the answer is another.

        """
        import numpy as np

        record = self.run()
        here, there = _arrays_of(record.output), _arrays_of(saved)
        kinds = [_kind(leaf) for leaf in _leaves(record.output)]
        exact = same_environment and facts.get("platform") == record.facts["platform"]
        if len(here) != len(there) or any(a.shape != b.shape for a, b in zip(here, there, strict=True)):
            raise ProbeError(
                f"The restored model answers its probe with {_shapes(here)}; the saved one answered {_shapes(there)}. "
                f"Next: check that the script builds the model and the probe's input as before.",
                expected=_shapes(there),
                found=_shapes(here),
            )
        if all(a.tobytes() == b.tobytes() for a, b in zip(here, there, strict=True)):
            return None
        worst, allowed = 0.0, 0.0
        for a, b, kind in zip(here, there, kinds, strict=True):
            scale = float(np.max(np.abs(b), initial=0.0)) or 1.0
            error = float(np.max(np.abs(a.astype(np.float64) - b.astype(np.float64)), initial=0.0)) / scale
            worst = max(worst, error if error == error else float("inf"))  # noqa: PLR0124 (NaN)
            allowed = max(allowed, _TOLERANCE.get(kind, 0.0))
        text = f"The restored model does not answer its probe as the saved one did: relative difference {worst:.3g}"
        if exact:
            raise ProbeError(
                f"{text}, on the same device and versions, where it must be 0. Next: is the probe's input the same as "
                f"at the save, and is all of the model tracked?",
                expected=0.0,
                found=worst,
            )
        if worst > allowed:
            return f"{text}; {allowed:g} is usual between devices and versions. Evaluate before trusting it."
        return None


def platform_of(output: Any) -> str:
    """The kind of device that an output lives on: "cpu", "cuda", …"""
    for leaf in _leaves(output):
        device = getattr(leaf, "device", None)
        if device is not None:
            return str(getattr(device, "type", device))
    return "cpu"


def _leaves(value: Any) -> list[Any]:
    if adapters.array_framework(type(value)) is not None:
        return [value]
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in _leaves(item)]
    if isinstance(value, (list, tuple)):
        return [leaf for item in value for leaf in _leaves(item)]
    if dataclasses.is_dataclass(value):
        return _leaves(vars(value))
    return []


def _arrays_of(value: Any) -> list[Any]:
    import numpy as np

    found = []
    for leaf in _leaves(value):
        array = leaf
        if hasattr(leaf, "detach"):
            array = leaf.detach().cpu()
            array = array.float() if "float" in str(array.dtype) and array.element_size() < 4 else array
        found.append(np.asarray(array))
    return found


def _copied(output: Any) -> list[Any]:
    # A model may answer with a buffer of its own: the record must not change with it.
    leaves = _leaves(output)
    if not leaves:
        raise UsageError(
            f"The probe's model answered with a {type(output).__name__}; it must answer with arrays."
        )
    return [_copy(leaf) for leaf in leaves]


def _copy(leaf: Any) -> Any:
    if hasattr(leaf, "detach"):
        return leaf.detach().clone()
    return leaf.copy() if hasattr(leaf, "copy") else leaf  # TensorFlow's tensors never change


def _kind(leaf: Any) -> str:
    """The name of an array's dtype, as `_TOLERANCE` has it."""
    return str(getattr(leaf.dtype, "name", leaf.dtype)).rpartition(".")[2]


def _shapes(arrays: list[Any]) -> str:
    return ", ".join(f"{array.dtype} {list(array.shape)}" for array in arrays)
