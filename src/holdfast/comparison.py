"""Two checkpoints compared bit by bit: arrays, plain values, progress; and what surrounds them.

*State* is what a training continues from: the parts (random streams included), the progress and
the best so far. *Metadata* is everything else: when, where and by which command it was saved, the
metrics, the config. Equal means that the state is equal, bit for bit: two NaN of different
payload differ, and so do 0.0 and -0.0. The part `probe`, which certifies a model and is written
by some saves only, is no state.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from typing import Any

from holdfast.checkpoint import Checkpoint
from holdfast.errors import FormatError, HoldfastError
from holdfast.format import dtypes
from holdfast.format.table import ArrayEntry
from holdfast.state import adapters, tree
from holdfast.state.part import Plan, SavedPart

# Arrays are read in groups of about so many bytes, so that a block that holds many small ones is
# read once; a larger array is a group of its own.
GROUP = 128 << 20

_NO_STATE = frozenset({"probe"})
_MAPPINGS = frozenset({"dict", "OrderedDict", "Counter", "defaultdict"})
_ARRAYS = frozenset(adapters.ARRAYS)
# What two checkpoints of equal state may well differ in.
_METADATA = (
    "run", "name", "sequence", "created", "metrics", "goal", "stopped", "nan", "note", "config", "declared",
    "fresh", "init", "loader", "environment",
)  # fmt: skip


class _Absent:
    def __repr__(self) -> str:
        return "ABSENT"


ABSENT: Any = _Absent()
"""Stands for a value that one side lacks."""


@dataclasses.dataclass(frozen=True)
class ArrayDifference:
    """An array that is not the same on both sides.

    Attributes:
        name: ``part/name``.
        left, right: dtype and shape, such as ``F32 [128, 64]``.
        elements: how many it has; None when dtype or shape differ, and nothing else is known then.
        differing: how many elements differ in their bits.
        max_abs, max_rel: the largest absolute difference, and the largest relative to the larger
            magnitude, over the pairs that are finite; None when there are none.
        nonfinite: how many of the differing pairs have a NaN or an infinity.

    """

    name: str
    left: str
    right: str
    elements: int | None = None
    differing: int | None = None
    max_abs: float | None = None
    max_rel: float | None = None
    nonfinite: int = 0


@dataclasses.dataclass(frozen=True)
class ValueDifference:
    """A plain value that differs: where (``state/loss``), and both, as encoded; `ABSENT` for none."""

    name: str
    left: Any
    right: Any


@dataclasses.dataclass
class Comparison:
    """What `compare` found.

    Attributes:
        left, right: paths of the two checkpoints.
        parts: names of the parts that both have, as far as they are state.
        arrays, bytes, values: how much of their state was compared.
        array_differences: state arrays that differ.
        value_differences: plain values of the state that differ; progress and best so far among them.
        only_left, only_right: parts (``ema``) and arrays (``model/head.weight``) of one side.
        metadata: differences that are no state.

    """

    left: str
    right: str
    parts: list[str] = dataclasses.field(default_factory=list)
    arrays: int = 0
    bytes: int = 0
    values: int = 0
    array_differences: list[ArrayDifference] = dataclasses.field(default_factory=list)
    value_differences: list[ValueDifference] = dataclasses.field(default_factory=list)
    only_left: list[str] = dataclasses.field(default_factory=list)
    only_right: list[str] = dataclasses.field(default_factory=list)
    metadata: list[ValueDifference] = dataclasses.field(default_factory=list)

    @property
    def equal(self) -> bool:
        """Whether the states are equal, bit for bit."""
        return not (self.array_differences or self.value_differences or self.only_left or self.only_right)


def compare(a: Checkpoint, b: Checkpoint, progress: Callable[[int], None] | None = None) -> Comparison:
    """Compares two checkpoints; every byte of their state is read and checked.

    Memory: one array of each side, or 128 MiB of smaller ones.

    Args:
        a, b: the left and the right one.
        progress: told how many bytes were just read; `bytes_to_read` gives their sum.

    Raises:
        DamagedError: a byte of either is not as written, so nothing can be said of it.

    """
    try:
        return _compare(a, b, progress)
    except HoldfastError:
        raise
    except tree.WRONG_CONTENT as error:
        raise FormatError(
            f"{a.path} and {b.path} cannot be compared: one of them holds something else than the format says "
            f"({type(error).__name__}: {error}). Next: holdfast verify on each.",
            path=a.path,
        ) from error


def _compare(a: Checkpoint, b: Checkpoint, progress: Callable[[int], None] | None) -> Comparison:
    found = Comparison(a.path, b.path)
    _compare_manifests(a, b, found)
    left, right = _state_parts(a), _state_parts(b)
    found.only_left += [name for name in left if name not in right]
    found.only_right += [name for name in right if name not in left]
    pairs: list[tuple[SavedPart, SavedPart, str]] = []
    for name in left:
        if name not in right:
            continue
        found.parts.append(name)
        one, other = a.saved(name), b.saved(name)
        _note_kinds(one, other, found)
        for path, x, y in walk(one.skeleton, other.skeleton, name):
            found.values += 1
            if not same(x, y):
                found.value_differences.append(ValueDifference(path, x, y))
        found.only_left += [f"{name}/{key}" for key in one.entries if key not in other.entries]
        found.only_right += [f"{name}/{key}" for key in other.entries if key not in one.entries]
        pairs += [(one, other, key) for key in one.entries if key in other.entries]
    _compare_arrays(a, b, pairs, found, progress)
    return found


def bytes_to_read(a: Checkpoint, b: Checkpoint) -> int:
    """About how many bytes `compare` reads."""
    return sum(a.saved(name).nbytes() for name in _state_parts(a)) + sum(
        b.saved(name).nbytes() for name in _state_parts(b)
    )


def _state_parts(checkpoint: Checkpoint) -> list[str]:
    return [name for name in checkpoint.arrays().parts if name not in _NO_STATE]


def _compare_manifests(a: Checkpoint, b: Checkpoint, found: Comparison) -> None:
    import msgspec

    one, other = msgspec.to_builtins(a.manifest), msgspec.to_builtins(b.manifest)
    state = found.value_differences
    for path, x, y in walk(one["progress"], other["progress"], "progress"):
        found.values += 1
        if not same(x, y):
            state.append(ValueDifference(path, x, y))
    best, second = one["best"], other["best"]
    if best is not None and second is not None:
        for key in ("metric", "mode", "value"):
            found.values += 1
            if not same(best[key], second[key]):
                state.append(ValueDifference(f"best/{key}", best[key], second[key]))
    elif best is not second:
        found.metadata.append(ValueDifference("best", best, second))
    for field in _METADATA:
        for path, x, y in walk(one[field], other[field], field):
            if not same(x, y):
                found.metadata.append(ValueDifference(path, x, y))


def _note_kinds(one: SavedPart, other: SavedPart, found: Comparison) -> None:
    if one.kind != other.kind:
        found.metadata.append(ValueDifference(f"parts/{one.name}/kind", one.kind, other.kind))


# -- plain values ----------------------------------------------------------------------------


def walk(a: Any, b: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    """The leaves of two encoded values side by side: (path, left, right); arrays are left out.

    A branch that only one side has, or that is of another kind there, is one leaf.
    """
    if isinstance(a, dict) and isinstance(b, dict) and a.get("$") == b.get("$"):
        tag = a.get("$")
        if tag in _ARRAYS and a.get("v") == b.get("v"):
            return
        if tag == "flat" and a == b:
            return
        if tag in _MAPPINGS:
            yield from _walk_pairs(a.get("v") or [], b.get("v") or [], path)
            a, b = ({key: item for key, item in side.items() if key != "v"} for side in (a, b))
        for key in [*a, *(key for key in b if key not in a)]:
            if key != "$":
                step = path if tag is not None and key == "v" else f"{path}/{key}"
                yield from walk(a.get(key, ABSENT), b.get(key, ABSENT), step)
    elif isinstance(a, list) and isinstance(b, list):
        for index in range(max(len(a), len(b))):
            x = a[index] if index < len(a) else ABSENT
            y = b[index] if index < len(b) else ABSENT
            yield from walk(x, y, f"{path}/{index}")
    else:
        yield path, a, b


def _walk_pairs(a: list[Any], b: list[Any], path: str) -> Iterator[tuple[str, Any, Any]]:
    # Keys may be numbers or tuples, so they are compared as they are written.
    left, right = ({json.dumps(key): (key, item) for key, item in side} for side in (a, b))
    for text in [*left, *(text for text in right if text not in left)]:
        key = (left.get(text) or right[text])[0]
        x, y = (side[text][1] if text in side else ABSENT for side in (left, right))
        yield from walk(x, y, f"{path}/{key if isinstance(key, (str, int)) else text}")


def same(a: Any, b: Any) -> bool:
    """Whether two encoded values are the same in kind and bits: 1, 1.0 and True differ, 0.0 and -0.0 too."""
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return bool(a.hex() == b.hex())
    if isinstance(a, dict):
        return set(a) == set(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


# -- arrays ----------------------------------------------------------------------------------


def _compare_arrays(
    a: Checkpoint,
    b: Checkpoint,
    pairs: list[tuple[SavedPart, SavedPart, str]],
    found: Comparison,
    progress: Callable[[int], None] | None,
) -> None:
    differences: dict[str, ArrayDifference] = {}
    fitting: list[tuple[SavedPart, SavedPart, str]] = []
    for one, other, key in pairs:
        x, y = one.entry(key), other.entry(key)
        found.arrays += 1
        if (x.dtype, x.shape) == (y.dtype, y.shape):
            found.bytes += dtypes.byte_count(x.dtype, x.shape)
            fitting.append((one, other, key))
        else:
            label = f"{one.name}/{key}"
            differences[label] = ArrayDifference(label, describe(x), describe(y))
    for group in _groups(fitting):
        for difference in _compare_group(a, b, group, progress):
            differences[difference.name] = difference
    order = [f"{one.name}/{key}" for one, _, key in pairs]
    found.array_differences = [differences[label] for label in order if label in differences]


def _groups(
    pairs: list[tuple[SavedPart, SavedPart, str]],
) -> Iterator[list[tuple[SavedPart, SavedPart, str]]]:
    """Arrays that lie near one another, in groups that fit into memory."""

    def place(pair: tuple[SavedPart, SavedPart, str]) -> tuple[str, int]:
        chunks = pair[0].entry(pair[2]).chunks
        return (chunks[0].file, chunks[0].bytes[0]) if chunks else ("", 0)

    group: list[tuple[SavedPart, SavedPart, str]] = []
    held = 0
    for pair in sorted(pairs, key=place):
        entry = pair[0].entry(pair[2])
        count = dtypes.byte_count(entry.dtype, entry.shape)
        if group and held + count > GROUP:
            yield group
            group, held = [], 0
        group.append(pair)
        held += count
    if group:
        yield group


def _compare_group(
    a: Checkpoint,
    b: Checkpoint,
    group: list[tuple[SavedPart, SavedPart, str]],
    progress: Callable[[int], None] | None,
) -> Iterator[ArrayDifference]:
    from holdfast.payload import difference

    sides: list[list[Callable[[], Any]]] = []
    for checkpoint, saved in (
        (a, [(one, key) for one, _, key in group]),
        (b, [(o, key) for _, o, key in group]),
    ):
        plan = Plan()
        sides.append([plan.allocate(part, "numpy", key) for part, key in saved])
        checkpoint.read(plan, progress)
    for place, (one, _, key) in enumerate(group):
        label, entry = f"{one.name}/{key}", one.entry(key)
        result = difference.measure(sides[0][place](), sides[1][place](), entry.dtype)
        if result is not None:
            text = describe(entry)
            yield ArrayDifference(label, text, text, *result)


def describe(entry: ArrayEntry) -> str:
    """``F32 [128, 64]``."""
    return f"{entry.dtype} {list(entry.shape)}"
