"""The random streams of this process: Python's, NumPy's, and those of every framework in use."""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping
from typing import Any

from holdfast.errors import UsageError
from holdfast.state import adapters


def capture() -> dict[str, Any]:
    """All global streams, as plain values. NumPy's only if the process has imported NumPy's random module."""
    from holdfast.state import arrays

    found: dict[str, Any] = {"python": arrays.python_state()}
    if "numpy.random" in sys.modules:
        found["numpy"] = arrays.global_state()
    for name, edge in adapters.loaded_edges():
        found[name] = edge.streams()
    return found


def restore(value: Mapping[str, Any]) -> None:
    """Sets the global streams to captured ones; streams of frameworks not in use here are left out."""
    from holdfast.state import arrays

    arrays.set_python_state(value["python"])
    if "numpy" in value:
        arrays.set_global_state(value["numpy"])
    for name, edge in adapters.loaded_edges():
        if name in value:
            edge.set_streams(value[name])


def seed(number: Any) -> None:
    """Seeds every stream of this process with one number."""
    if not isinstance(number, int) or not 0 <= number < 2**32:
        raise UsageError(f"seed={number!r}: a seed is a whole number from 0 to 2**32 - 1.", found=number)
    random.seed(number)
    import numpy as np

    np.random.seed(number)
    for _, edge in adapters.loaded_edges():
        edge.seed(number)


def capture_generators(generators: Mapping[str, Any]) -> dict[str, Any]:
    """The states of single generators, by the path that they were found under."""
    from holdfast.state import arrays

    found: dict[str, Any] = {}
    for path, generator in generators.items():
        framework = adapters.home_framework(type(generator))
        if framework is not None:
            found[path] = {"kind": framework, "state": adapters.edge(framework).generator_state(generator)}
        elif isinstance(generator, random.Random):
            found[path] = {"kind": "python", "state": arrays.python_state(generator)}
        elif hasattr(generator, "get_state"):
            found[path] = {"kind": "numpy.RandomState", "state": arrays.global_state(generator)}
        else:
            found[path] = {"kind": "numpy", "state": arrays.generator_state(generator)}
    return found


def restore_generators(generators: Mapping[str, Any], states: Mapping[str, Any]) -> None:
    """Gives single generators their states back; a path that is no longer there is left out."""
    from holdfast.state import arrays

    for path, generator in generators.items():
        saved = states.get(path)
        if saved is None:
            continue
        if saved["kind"] == "python":
            arrays.set_python_state(saved["state"], generator)
        elif saved["kind"] == "numpy.RandomState":
            arrays.set_global_state(saved["state"], generator)
        elif saved["kind"] == "numpy":
            arrays.set_generator_state(generator, saved["state"])
        else:
            adapters.edge(saved["kind"]).set_generator_state(generator, saved["state"])
