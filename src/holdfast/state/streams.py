"""The random streams of this process: Python's, NumPy's, and those of every framework in use."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from holdfast.errors import FormatError, HoldfastError, UsageError
from holdfast.state import adapters, tree


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

    with _setting():
        arrays.set_python_state(value["python"])
        if "numpy" in value:
            arrays.set_global_state(value["numpy"])
        for name, edge in adapters.loaded_edges():
            if name in value:
                edge.set_streams(value[name])


@contextlib.contextmanager
def _setting() -> Iterator[None]:
    """Turns what Python raises over a state that is none into a `FormatError`."""
    try:
        yield
    except HoldfastError:
        raise
    except tree.WRONG_CONTENT as error:
        raise FormatError(
            f"the random streams that it holds cannot be set here ({type(error).__name__}: {error})."
        ) from error


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


def digests(generators: Mapping[str, Any]) -> dict[str, str]:
    """A digest of each generator's state: enough to see whether somebody drew from it or seeded it."""
    import xxhash

    states = capture_generators(generators)
    return {path: xxhash.xxh3_64_hexdigest(repr(state).encode()) for path, state in states.items()}


def restore_untouched(generators: Mapping[str, Any], random: Mapping[str, Any], tracked: Any) -> list[str]:
    """Between two epochs: restores those of the loader's generators that this launch left alone.

    A loader is known only when its batches are entered, after the top of the epoch's body ran,
    which may have seeded a generator for this epoch. `random` says whether the top did that before
    the last epoch (`touched`); after one epoch that is not known, and a generator that is not as it
    was at the run's first epoch (`first`) was seeded. Tracked ones were restored before.

    Returns:
        Those that were restored although `touched` does not know them.

    """
    first, touched, here = random.get("first", {}), random.get("touched", {}), digests(generators)
    own = {id(thing) for thing in tracked}
    untouched = {
        path: generator
        for path, generator in generators.items()
        if not touched.get(path, first.get(path, here[path]) != here[path]) and id(generator) not in own
    }
    restore_generators(untouched, random.get("generators", {}))
    return [path for path in untouched if path not in touched]


def drawn_from(generators: Mapping[str, Any], before: Mapping[str, str], tracked: Any) -> list[str]:
    """The generators that changed since `before` without having been seeded, and are not tracked."""
    own = {id(thing) for thing in tracked}
    return [
        path
        for path, digest in digests(generators).items()
        if before.get(path, digest) != digest
        and id(generators[path]) not in own
        and (framework := adapters.home_framework(type(generators[path]))) is not None
        and not adapters.edge(framework).freshly_seeded(generators[path])
    ]


def restore_generators(generators: Mapping[str, Any], states: Mapping[str, Any]) -> None:
    """Gives single generators their states back; a path that is no longer there is left out."""
    from holdfast.state import arrays

    for path, generator in generators.items():
        saved = states.get(path)
        if saved is None:
            continue
        with _setting():
            framework = adapters.home_framework(type(generator))
            if saved["kind"] == "python":
                arrays.set_python_state(saved["state"], generator)
            elif saved["kind"] == "numpy.RandomState":
                arrays.set_global_state(saved["state"], generator)
            elif saved["kind"] == "numpy":
                arrays.set_generator_state(generator, saved["state"])
            elif saved["kind"] == framework:  # by the generator's own home, not by what a checkpoint names
                adapters.edge(framework).set_generator_state(generator, saved["state"])
            else:
                raise ValueError(f"a {type(generator).__name__} has no state of the kind {saved['kind']!r}")
