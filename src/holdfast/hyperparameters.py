"""Declared hyperparameters and config: what a launch says, compared with what the saving launch said."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from holdfast.errors import UsageError, nearest
from holdfast.state import adapters, tree

Declared = dict[str, dict[str, Any]]
"""part → option → value, encoded."""


def declare(thing: Any) -> dict[str, Any] | None:
    """The hyperparameters of a thing as it stands now, encoded; None for things that have none."""
    framework = adapters.home_framework(type(thing))
    if framework is None:
        return None
    found = adapters.edge(framework).declared(thing)
    return None if found is None else {name: tree.encode(value, name) for name, value in found.items()}


def check_fresh(fresh: Iterable[str], things: Mapping[str, Any], declared: Declared) -> None:
    """Refuses names in `fresh` that name nothing."""
    for name in fresh:
        part, _, option = name.partition(".")
        if part not in things:
            near = nearest(part, things)
            raise UsageError(
                f"fresh={name!r}: no part {part!r} is tracked{f'; {near}' if near else '.'} "
                f"Tracked are: {', '.join(things) or 'none'}.",
                found=name,
            )
        if option and option not in declared.get(part, {}):
            options = declared.get(part, {})
            near = nearest(option, options)
            raise UsageError(
                f"fresh={name!r}: the part {part!r} declares no {option!r}{f'; {near}' if near else '.'} "
                f"It declares: {', '.join(options) or 'nothing'}.",
                found=name,
            )


def value_of(name: str, declared: Declared) -> Any:
    """The declared value that a name in `fresh` stands for."""
    part, _, option = name.partition(".")
    return declared.get(part, {}).get(option) if option else declared.get(part, True)


def to_apply(fresh: Iterable[str], declared: Declared, applied: Mapping[str, Any]) -> set[str]:
    """The names in `fresh` whose declared value has not been taken over already, by an earlier launch."""
    return {name for name in fresh if name not in applied or applied[name] != value_of(name, declared)}


def check_declared(
    saved: Mapping[str, Any] | None, declared: Declared, fresh: Iterable[str], where: str
) -> None:
    """Raises `UsageError` with both values where this launch declares something else than the saving one."""
    if saved is None:
        return
    lines, remedies = [], []
    covered = set(fresh)
    for part, options in declared.items():
        before = saved.get(part)
        if before is None or part in covered:
            continue
        for option, value in options.items():
            name = f"{part}.{option}"
            if option in before and before[option] != value and name not in covered:
                lines.append(f"  {name}: {_show(before[option])} when saved, {_show(value)} here")
                remedy = name if _is_option(part, saved) else part
                if remedy not in remedies:
                    remedies.append(remedy)
    if lines:
        raise UsageError(
            f"The hyperparameters differ from those of {where}; nothing was restored:\n"
            + "\n".join(lines)
            + f"\n  Next: undo the change, or take the new values over once with fresh={remedies!r}.",
            different=lines,
            remedy=remedies,
        )


def _is_option(part: str, saved: Mapping[str, Any]) -> bool:
    return not {"lr", "learning_rate"}.isdisjoint(
        saved.get(part, {})
    )  # an optimizer's; a scheduler is taken over as a whole


def check_config(saved: Any, config: Any, changed: Iterable[str], where: str) -> None:
    """Raises `UsageError` with every key of config that differs and is not in `changed`."""
    if not isinstance(saved, dict):
        return
    config = config or {}
    for name in changed:
        if name != "loader" and name not in saved and name not in config:
            near = nearest(name, {*saved, *config, "loader"})
            raise UsageError(
                f"changed={name!r}: config has no such key{f'; {near}' if near else '.'} "
                f"It has: {', '.join(map(str, {**saved, **config})) or 'none'}; and there is 'loader'.",
                found=name,
            )
    missing = object()
    lines, keys = [], []
    for key in sorted({*saved, *config}):
        before, here = saved.get(key, missing), config.get(key, missing)
        if before != here and key not in set(changed):
            shown = ["(none)" if value is missing else _show(value) for value in (before, here)]
            lines.append(f"  {key}: {shown[0]} when saved, {shown[1]} here")
            keys.append(key)
    if lines:
        raise UsageError(
            f"config differs from that of {where}; nothing was restored:\n"
            + "\n".join(lines)
            + f"\n  Next: undo the change, or, if it is meant, say so with changed={keys!r}.",
            different=lines,
            remedy=keys,
        )


def _show(value: Any) -> str:
    text = repr(tree.decode(value, lambda framework, name: f"<{framework} {name}>"))
    return text if len(text) <= 80 else f"{text[:77]}…"
