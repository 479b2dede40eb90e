"""Why two trainings differ, as far as what was noted tells: the likely cause first, with its evidence."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from holdfast.comparison import ABSENT, ArrayDifference, ValueDifference
from holdfast.rehearsal.ends import Ends, Variable, differing_variables, unused_streams
from holdfast.rehearsal.partings import Parting
from holdfast.rehearsal.trails import Trail

_SMALL = 1e-3  # relative; kernels that add in another order differ by less
_STREAM = re.compile(r"random/streams/(\w+)")
_RATE = re.compile(r"\w+/+param_groups/\d+/(lr|initial_lr|momentum|betas|weight_decay)\b")
_SHOWN = 5


def explain_straight(first: Trail, second: Trail, ends: Ends) -> list[str]:
    """Why two straight trainings differ."""
    causes = []
    for run in first.runs():
        streams = _streams_at_start(first, second, run)
        if streams:
            causes.append(
                f"Likely: no seed is set. The random streams of {_list(streams)} begin differently at each launch "
                f"where the loop is entered. Next: Run(…, seed=0), before anything is drawn."
            )
    if causes or not ends.ends:
        return causes or [
            "The two made different runs or checkpoints: does the script name them by the time?"
        ]
    variables = _variables(first, second)
    generators = [variable for variable in variables if variable.trackable]
    if generators:
        causes.append(
            f"Likely: {_list(generators)} {_is(generators)} not the same in two straight launches: seeded by nothing, "
            f"or filled from something that changes. Next: give it a fixed seed."
        )
    arrays = [difference for end in ends.ends for difference in end.found.array_differences]
    if arrays:
        causes.append(_kernels(arrays))
    elif not generators:
        names = [d.name for end in ends.ends for d in (*end.found.value_differences, *end.records)]
        causes.append(
            f"Likely: {_list(names)} {_is(names)} taken from something that changes: a time, the order of a set or a "
            f"directory, a file. The arrays are equal. Next: leave it out of run.state, or make it fixed."
        )
    return causes


def _streams_at_start(first: Trail, second: Trail, run: str) -> list[str]:
    one, other = (trail.of("loop", run) or trail.checkpoints(run).values() for trail in (first, second))
    mine, theirs = (next(iter(lines), None) for lines in (one, other))
    if mine is None or theirs is None or "streams" not in mine or "streams" not in theirs:
        return []
    unused = unused_streams(first, run) & unused_streams(second, run)
    return [
        name
        for name, value in mine["streams"].items()
        if name not in unused and value != theirs["streams"].get(name)
    ]


def _variables(first: Trail, second: Trail) -> list[Variable]:
    found: dict[str, Variable] = {}
    for run in first.runs():
        for place in first.variables(run):
            for variable in differing_variables(first, second, run, place, place):
                found.setdefault(variable.key, variable)
    return list(found.values())


def _kernels(arrays: Sequence[ArrayDifference]) -> str:
    largest = max((d.max_rel or 0.0 for d in arrays), default=0.0)
    size = f"The largest relative difference is {largest:.1g}"
    if largest <= _SMALL:
        return (
            f"Likely: a kernel that is not deterministic, or threads that add in another order. {size}, and the random "
            f"streams are equal. Next: torch.use_deterministic_algorithms(True); on CUDA also "
            f"CUBLAS_WORKSPACE_CONFIG=:4096:8 in the environment."
        )
    return (
        f"Likely: random numbers from a generator that nobody seeds, the order of a set or a directory, or a kernel that "
        f"is not deterministic (torch.use_deterministic_algorithms(True) tells). {size}; the global random streams are "
        f"equal."
    )


def explain_interrupted(
    ends: Ends, partings: Sequence[Parting], other: Trail, *, straight_once: bool
) -> list[str]:
    """Why an interrupted training differs from the straight one."""
    causes: list[str] = []
    for parted in partings:
        causes += [cause for cause in _at_parting(parted, other) if cause not in causes]
    for end in ends.ends:
        new = [v for v in end.untracked if not any(v.name in cause for cause in causes)]
        if new:
            causes.append(_untracked(new))
    if not causes and not ends.equal:
        causes.append(
            "What was noted does not tell why. Likely: something that changes while it trains, and is neither tracked "
            "nor in run.state."
        )
    if straight_once and causes:
        causes.append(
            "Two straight trainings were not compared (--once): the script may not be deterministic by itself."
        )
    return causes


def _at_parting(parted: Parting, other: Trail) -> list[str]:
    names = [difference.name for difference in parted.differences]
    arrays = [name for name in names if not name.startswith(("state", "metrics/", "random/")) and "/" in name]
    rates = [d for d in parted.differences if _RATE.match(d.name)]
    streams = sorted({match[1] for name in names if (match := _STREAM.match(name))})
    things = [variable for variable in parted.variables if variable.trackable]
    sums = [variable for variable in parted.variables if not variable.trackable]
    causes = []
    if things:
        causes.append(_untracked(things))
    if rates and not things:
        causes.append(
            f"Likely: a scheduler that is not tracked. {_values(rates[:2])}. Next: run.track(scheduler=…)."
        )
    said = other.warnings(parted.launch)
    inexact = [
        text for text in said if "cannot be replayed" in text or "not exactly" in text or "only if" in text
    ]
    if inexact and arrays and not things and not rates:
        causes.append(
            f"Likely: what the resumed launch warned of: {inexact[0]}"
            f"{_data(sums)} The global random streams are equal."
            if not streams
            else f"Likely: what the resumed launch warned of: {inexact[0]}"
        )
    if streams and not causes:
        causes.append(
            f"Likely: the random stream of {_list(streams)} is drawn from in one launch and not in the other: by "
            f"something that is done once at the start of a launch inside the loop, or that depends on a variable "
            f"that a resumed launch lacks.{_data(sums)}"
        )
    if not causes and sums and not arrays:
        causes.append(_accumulated(sums, names))
    if not causes and not arrays:
        causes.append(_plain(names))
    counters = [variable for variable in sums if variable.left.get("kind") == "number" and _whole(variable)]
    if not causes and counters:
        causes.append(
            f"Likely: {_list(counters)} {_is(counters)} neither tracked nor in run.state, and the training depends on it: "
            f'{_both(counters)}. Next: keep it in run.state["{counters[0].name.rpartition(".")[2]}"].'
        )
    if not causes:
        causes.append(
            f"Likely: something that decides how it trains is neither tracked nor in run.state: a counter, a "
            f"generator, a second model.{_data(sums)} The random streams are equal, so it is no stream of "
            f"Python, NumPy or the framework."
        )
    return causes


def _untracked(things: Sequence[Variable]) -> str:
    words = ", ".join(
        f"{re.sub(r'[^a-z0-9_]', '_', thing.name.lower())}={thing.name}" for thing in things[:_SHOWN]
    )
    return (
        f"Likely: {_list(things)} {_is(things)} not tracked: a resumed launch makes it anew. At the same place "
        f"the straight training had another. Next: run.track({words})."
    )


def _accumulated(sums: Sequence[Variable], names: Sequence[str]) -> str:
    first = sums[0].name.rpartition(".")[2]
    return (
        f"Likely: what is summed up outside of run.state. Only {_list(names)} {_differ(names)}, and {_both(sums)}. "
        f'Next: keep it in run.state["{first}"].'
    )


def _plain(names: Sequence[str]) -> str:
    metrics = [name for name in names if name.startswith("metrics/")]
    if len(metrics) == len(names):
        return (
            f"Likely: {_list(metrics)} is summed up outside of run.state; no other thing differs. "
            f"Next: keep what it is made of in run.state."
        )
    return (
        f"Likely: {_list(names)} depends on a variable that is kept outside of run.state; no array and no random stream "
        f"differs. Next: keep that variable in run.state."
    )


def _data(sums: Sequence[Variable]) -> str:
    return f" The script's variables {_list(sums)} differ there, too." if sums else ""


def _values(differences: Sequence[ValueDifference]) -> str:
    return ", ".join(
        f"{difference.name.replace('//', '/')} is {_value(difference.left)} in the straight training and "
        f"{_value(difference.right)} in the resumed one"
        for difference in differences
    )


def _value(value: object) -> str:
    return "absent" if value is ABSENT else repr(value)


def _whole(variable: Variable) -> bool:
    return all(str(side.get("value", "")).lstrip("-").isdigit() for side in (variable.left, variable.right))


def _both(variables: Sequence[Variable]) -> str:
    return "; ".join(
        f"{variable} is {_short(variable.left)} in the straight training and {_short(variable.right)} in the resumed one"
        for variable in variables[:_SHOWN]
    )


def _short(fact: Mapping[str, Any]) -> str:
    return str(fact["value"]) if fact["kind"] == "number" else str(fact["kind"])


def _list(items: Sequence[object]) -> str:
    shown = [str(item).replace("//", "/") for item in items[:_SHOWN]]
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(shown) + more


def _is(items: Sequence[object]) -> str:
    return "is" if len(items) == 1 else "are"


def _differ(items: Sequence[object]) -> str:
    return "differs" if len(items) == 1 else "differ"
