"""Which framework a thing belongs to, read off its type's own module; there is no registry.

An edge module (`holdfast.torch.edge`, …) offers the same verbs for each framework:

    describe(leaf, where, check)        an array of that framework as a `payload.array.Array`
    allocate(dtype, shape)              a new array to read into, as `Allocation`
    BATCHED                             dtypes whose small arrays are read together, by
    unpack(data, base, rows)            … new arrays, and
    fill(data, base, rows)              … live ones
    special(leaf) / revive(tag, value)  the framework's small values (a dtype, a device, a size)
    serves(thing)                       the kind of a thing that can be tracked, or None
    capture(thing, kind, context)       a tracked thing as a `state.part.PartState`
    sight_of(thing, kind, …)            what a capture follows from, as `state.known.Sight`; None: it is made anew
    plan_restore(thing, kind, …)        what must be read where, to bring it back
    streams() / set_streams(value)      the framework's random streams
    environment()                       versions and devices
    late(things, states, known)         the arrays that only tracked optimizers write, as `overlap.Late`
    before_step(things, notify)         calls `notify` before any optimizer of the process steps
"""

from __future__ import annotations

import functools
import importlib
import re
import sys
from typing import Any

from holdfast.errors import UsageError

FRAMEWORKS = ("torch", "jax", "tensorflow", "keras")
"""Frameworks with an edge module in this release; NumPy is part of the core."""

ARRAYS = ("numpy", "torch", "jax", "tensorflow")
"""Whose arrays there are; Keras has none of its own, but those of its backend."""

OLDEST = {"tensorflow": (2, 16), "keras": (3, 15)}
"""The oldest versions that their edges are written for, where older ones are about and are other libraries."""

_ARRAY_TYPES = {
    ("torch", "Tensor"),
    ("numpy", "ndarray"),
    ("jax", "Array"),
    ("jaxlib", "ArrayImpl"),
    ("tensorflow", "EagerTensor"),
}


_array_homes: dict[type, str | None] = {}
_homes: dict[type, str | None] = {}


def array_framework(kind: type) -> str | None:
    """The framework ("torch", "numpy", …) that objects of this type are arrays of, else None."""
    if kind not in _array_homes:
        bases = ((base.__module__.partition(".")[0], base.__name__) for base in kind.__mro__)
        found = next((root for root, name in bases if (root, name) in _ARRAY_TYPES), None)
        _array_homes[kind] = "jax" if found == "jaxlib" else found
    return _array_homes[kind]


def home_framework(kind: type) -> str | None:
    """The framework among `FRAMEWORKS` that a type or one of its bases comes from.

    Types of our own edges (`holdfast.torch.…`) belong to the framework that they are the edge of.
    """
    if kind not in _homes:
        modules = (base.__module__.removeprefix("holdfast.") for base in kind.__mro__)
        roots = (module.partition(".")[0] for module in modules)
        _homes[kind] = next((root for root in roots if root in FRAMEWORKS), None)
    return _homes[kind]


@functools.cache
def edge(framework: str) -> Any:
    """The edge module of a framework: `holdfast.torch.edge` for "torch"; "numpy" is in the core.

    Raises:
        UsageError: the framework that this process has imported is older than what its edge is written for.

    """
    if framework == "numpy":
        return importlib.import_module("holdfast.state.arrays")
    if framework in sys.modules and not is_loaded(framework):
        expected = ".".join(map(str, OLDEST[framework]))
        found = getattr(sys.modules[framework], "__version__", "without a version")
        raise UsageError(
            f"{framework} {found} is too old for Holdfast, which needs {framework} {expected} or later. Next: pip install "
            f"'{framework}>={expected}', or leave what belongs to it out.",
            expected=expected,
            found=found,
        )
    return importlib.import_module(f"holdfast.{framework}.edge")


def is_loaded(framework: str) -> bool:
    """Whether this process has imported a framework, and not one that is too old.

    An old Keras may have come with something else: a torch training beside it is none of its business.
    """
    module = sys.modules.get(framework)
    if module is None or framework not in OLDEST:
        return module is not None
    return _version(str(getattr(module, "__version__", ""))) >= OLDEST[framework]


@functools.cache
def _version(text: str) -> tuple[int, ...]:
    found = re.match(r"(\d+)\.(\d+)", text)
    return tuple(map(int, found.groups())) if found else ()


def loaded_edges() -> list[tuple[str, Any]]:
    """The edges of the frameworks that this process has imported, but for those that are too old."""
    return [(name, edge(name)) for name in FRAMEWORKS if is_loaded(name)]
