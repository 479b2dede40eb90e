"""What a rehearsal notes of a checkpoint, small enough to note it of each: a digest for every array."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from holdfast.checkpoint import Checkpoint
from holdfast.format import dtypes
from holdfast.state.part import Plan, SavedPart

# Arrays are read back in groups of about so many bytes.
GROUP = 128 << 20
_LONG = 64  # characters; longer strings become their digest
_MANY = 1 << 16  # characters of JSON; larger values become one digest
_NO_STATE = frozenset({"probe"})


def describe(path: str) -> dict[str, Any]:
    """Progress, metrics and parts of a checkpoint: kind, plain values, and array → dtype, shape, digest.

    Every byte is read back from the storage and checked on the way.
    """
    checkpoint = Checkpoint(path)
    parts: dict[str, Any] = {}
    saved = [checkpoint.saved(name) for name in checkpoint.arrays().parts if name not in _NO_STATE]
    for part in saved:
        parts[part.name] = {"kind": part.kind, "values": compact(part.skeleton), "arrays": {}}
    for group in _groups(saved):
        plan = Plan()
        arrays = [(part, key, plan.allocate(part, "numpy", key)) for part, key in group]
        checkpoint.read(plan)
        for part, key, array in arrays:
            entry = part.entry(key)
            text = f"{entry.dtype} {list(entry.shape)} {digest(array().tobytes())}"
            parts[part.name]["arrays"][key] = text
    progress = checkpoint.progress
    return {
        "name": checkpoint.name,
        "epoch": progress.epoch,
        "step": progress.step,
        "batch": progress.batch,
        "entered": progress.entered,
        "metrics": checkpoint.manifest.metrics,
        "parts": parts,
    }


def _groups(parts: list[SavedPart]) -> Iterator[list[tuple[SavedPart, str]]]:
    group: list[tuple[SavedPart, str]] = []
    held = 0
    for part in parts:
        for key, entry in part.entries.items():
            count = dtypes.byte_count(entry.dtype, entry.shape)
            if group and held + count > GROUP:
                yield group
                group, held = [], 0
            group.append((part, key))
            held += count
    if group:
        yield group


def compact(value: Any) -> Any:
    """A plain value with long strings, and itself if it is very large, replaced by their digests."""
    short = _shorten(value)
    text = json.dumps(short, default=repr)
    return short if len(text) <= _MANY else {"digest": digest(text.encode())}


def _shorten(value: Any) -> Any:
    if isinstance(value, str):
        return value if len(value) <= _LONG else f"{len(value)} characters, {digest(value.encode())}"
    if isinstance(value, dict):
        return {str(key): _shorten(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_shorten(item) for item in value]
    return value


def digest(data: bytes | memoryview) -> str:
    import xxhash

    return xxhash.xxh3_64_hexdigest(data)
