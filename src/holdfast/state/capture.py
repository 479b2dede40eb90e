"""Tracked things and plain values → captured parts, and the way back into live things."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Mapping
from typing import Any

from holdfast.errors import FormatError, HoldfastError, MismatchError, UsageError
from holdfast.state import adapters, tree
from holdfast.state.known import Known
from holdfast.state.part import FLAT, PartState, Plan, SavedPart


def kind_of(thing: Any) -> str | None:
    """What a thing is that can be restored in place; None when it is a plain value."""
    framework = adapters.home_framework(type(thing))
    if framework is not None:
        kind: str | None = adapters.edge(framework).serves(thing)
        if kind is not None:
            return kind
    if isinstance(thing, random.Random):
        return "random.Random"
    if type(thing).__module__.partition(".")[0] == "numpy" and hasattr(thing, "bit_generator"):
        return "numpy.Generator"
    if callable(getattr(thing, "state_dict", None)) and callable(getattr(thing, "load_state_dict", None)):
        return "object"
    return None


def capture(name: str, thing: Any, peers: Mapping[str, Any], known: Known | None = None) -> PartState:
    """A part's state as it is now; arrays are described, not copied.

    Args:
        name: the part's name, for errors.
        thing: a tracked thing, or a plain value (kind "mapping" or "value").
        peers: all things of this checkpoint, so that an optimizer knows its parameters' names.
        known: spares the description of what looks as it did at the saves before.

    """
    kind = kind_of(thing)
    if kind is not None and kind.partition(".")[0] in adapters.FRAMEWORKS:
        edge, framework_kind = adapters.edge(kind.partition(".")[0]), kind

        def describe() -> PartState:
            state: PartState = edge.capture(thing, framework_kind, name, peers)
            return state

        if known is None:
            return describe()
        return known.part(name, edge.sight_of(thing, kind, name, peers), describe)
    if kind == "random.Random":
        return PartState(kind, _arrays().python_state(thing), {})
    if kind == "numpy.Generator":
        return PartState(kind, _arrays().generator_state(thing), {})
    return capture_value(name, thing.state_dict() if kind == "object" else thing, kind)


def capture_value(name: str, value: Any, kind: str | None = None) -> PartState:
    """A nested value; one flat mapping of strings to arrays keeps its own keys as array names."""
    framework = _flat_framework(value)
    if framework is not None:
        edge = adapters.edge(framework)
        found = {key: edge.describe(item, f"{name}/{key}") for key, item in value.items()}
        return PartState(kind or "mapping", {"$": FLAT, "v": framework}, found)
    leaves: dict[str, Any] = {}
    skeleton = tree.encode(value, name, leaves)
    described = {}
    for pointer, leaf in leaves.items():
        framework = adapters.array_framework(type(leaf)) or "numpy"
        described[pointer] = adapters.edge(framework).describe(leaf, f"{name}{pointer}")
    return PartState(kind or "value", skeleton, described)


def _flat_framework(value: Any) -> str | None:
    if not isinstance(value, Mapping) or not value:
        return None
    kinds = set(map(type, value.values()))
    frameworks = {adapters.array_framework(kind) for kind in kinds}
    if len(frameworks) != 1 or not all(_plain_key(key) for key in value):
        return None
    return frameworks.pop()


def _plain_key(key: Any) -> bool:
    return type(key) is str and key != "" and not key.startswith(("/", "__metadata__"))


def plan_restore(
    thing: Any, part: SavedPart, plan: Plan, peers: Mapping[str, Any], *, keep: tuple[str, ...] = ()
) -> None:
    """Adds to `plan` what brings a saved part back into a live thing.

    Args:
        thing: what `kind_of` knows, an array, or a mapping of names to arrays.
        keep: option names of an optimizer that keep their live values.

    """
    kind = kind_of(thing)
    if kind is not None and kind.partition(".")[0] in adapters.FRAMEWORKS:
        with _reading(part):
            adapters.edge(kind.partition(".")[0]).plan_restore(thing, kind, part, plan, peers, keep=keep)
    elif kind in ("random.Random", "numpy.Generator"):
        _check_kind(part, kind)
        _set_generator(_another(thing), kind, part)  # tried before anything live is touched
        plan.after(lambda: _set_generator(thing, kind, part))
    elif kind == "object":
        finish = plan.value(part)
        plan.after(lambda: _load(thing, finish(), part, keep))
    elif (framework := adapters.array_framework(type(thing))) is not None:
        _plan_arrays({"": thing}, {"": (framework, _only_array(part))}, part, plan)
    elif isinstance(thing, Mapping) and (part.flat is not None):
        flat = part.flat
        _plan_arrays(thing, {name: (flat, name) for name in part.entries}, part, plan)
    else:
        raise UsageError(
            f"{part.name!r} cannot be restored in place into a {type(thing).__name__}: pass a model, an optimizer, "
            f"anything with load_state_dict, an array, or a mapping of names to arrays; plain values are "
            f"returned by restore() and load().",
            found=type(thing).__name__,
        )


def _another(generator: Any) -> Any:
    if isinstance(generator, random.Random):
        return random.Random()  # noqa: S311 (no secret is drawn from it)
    return type(generator)(type(generator.bit_generator)())


def _set_generator(thing: Any, kind: str, part: SavedPart) -> None:
    with _reading(part):
        if kind == "random.Random":
            _arrays().set_python_state(part.skeleton, thing)
        else:
            _arrays().set_generator_state(thing, part.skeleton)


@contextlib.contextmanager
def _reading(part: SavedPart) -> Iterator[None]:
    """Turns what Python raises over a strange skeleton into a `FormatError` that names the part."""
    try:
        yield
    except HoldfastError:
        raise
    except tree.WRONG_CONTENT as error:
        raise FormatError(
            f"{part.where}: the part {part.name!r} is not what a {part.kind} is stored as "
            f"({type(error).__name__}: {error}). Next: load(parts=[{part.name!r}]) shows what it holds.",
            path=part.where,
            found=part.kind,
        ) from error


def _load(thing: Any, state: Any, part: SavedPart, keep: tuple[str, ...]) -> None:
    """Hands a saved state to a thing's own loading code; the options in `keep` stay as they are."""
    if keep and isinstance(state, dict):
        live = thing.state_dict()
        state.update({name: live[name] for name in keep if name in live})
    try:
        thing.load_state_dict(state)
    except HoldfastError:
        raise
    except Exception as error:
        raise MismatchError(
            f"{part.where}: the part {part.name!r} does not fit: load_state_dict of "
            f"{type(thing).__module__}.{type(thing).__qualname__} says: {type(error).__name__}: {error}. Other objects "
            f"may already be restored: do not use them. Next: build it as at the save, or leave it out with "
            f"fresh=[{part.name!r}].",
            missing=[],
            unexpected=[],
            different=[part.name],
            target_changed=True,
        ) from error


def _check_kind(part: SavedPart, kind: str) -> None:
    if part.kind != kind:
        raise UsageError(
            f"{part.where}: the part {part.name!r} is a {part.kind}; a {kind} cannot take it.",
            expected=kind,
            found=part.kind,
        )


def _only_array(part: SavedPart) -> str:
    leaves = part.leaves()
    if len(leaves) != 1 or not isinstance(part.content, dict) or part.content.get("v") != leaves[0][1]:
        raise UsageError(f"{part.where}: the part {part.name!r} is no single array.", found=part.kind)
    return leaves[0][1]


def _plan_arrays(
    live: Mapping[str, Any], saved: Mapping[str, tuple[str, str]], part: SavedPart, plan: Plan
) -> None:
    import numpy as np

    others: dict[str, dict[str, Any]] = {}  # framework → name → live array
    for key, (_, name) in saved.items():
        if key not in live:
            plan.surplus(part.name, key)
            continue
        target = live[key]
        framework = adapters.array_framework(type(target))
        if framework == "numpy":
            entry = part.entry(name)
            into = _arrays().destination(target, entry.dtype, tuple(entry.shape))
            if into is None:
                plan.differ(
                    part.name,
                    key,
                    f"{entry.dtype} {list(entry.shape)}",
                    f"{np.asarray(target).dtype} {list(np.shape(target))}, or not contiguous or writable",
                )
            elif not plan.small.fill(part, name, "numpy", into):
                plan.read(part, name, into)
        elif framework in adapters.FRAMEWORKS:
            others.setdefault(framework, {})[name] = target
        else:
            plan.differ(part.name, key, "an array", f"a {type(target).__name__}")
    for framework, targets in others.items():
        adapters.edge(framework).plan_arrays(targets, part, plan)
    for key in live:
        if key not in saved:
            plan.lack(part.name, key)


def _arrays() -> Any:
    from holdfast.state import arrays

    return arrays
