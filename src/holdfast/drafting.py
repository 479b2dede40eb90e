"""A state on its way into a checkpoint: what `checkpoint.json` says of it, and saves without a run."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from holdfast import files, stage
from holdfast.checkpoint import Checkpoint
from holdfast.errors import StorageError, UsageError
from holdfast.format import card, names
from holdfast.format.manifest import CONFIG_LIMIT, NOTE_LIMIT, Manifest, Progress
from holdfast.state import adapters, capture, environment, garbage, tree
from holdfast.state.known import Known
from holdfast.state.part import PartState
from holdfast.storage import NO_ROOM, Room
from holdfast.store import book, catalog, scratch, sources
from holdfast.store.publish import Draft, replace

if TYPE_CHECKING:
    from holdfast.overlap import Behind
    from holdfast.payload.layout import Layout


@garbage.paused()
def save(
    path: str | os.PathLike[str],
    parts: Any,
    *,
    note: str = "",
    config: Any = None,
    extra: Mapping[str, bytes] | None = None,
) -> Checkpoint:
    """Saves parts as one checkpoint at `path`: the safe ``torch.save``. Durable when it returns.

    A checkpoint that is already there is replaced, so that at every instant the old or the new
    one can be read; anything else of that name is a `UsageError`. Extra memory: a few blocks.

    Args:
        path: where; the parent directory is made if it is missing.
        parts: name → model, optimizer, anything with state_dict, or a plain nested value with arrays.
        note, config: recorded in the checkpoint and its card.
        extra: further small files of the checkpoint, name → bytes.

    """
    if not isinstance(parts, Mapping) or not parts:
        raise UsageError(
            'save() takes a mapping of names to parts, like {"model": net}.', found=type(parts).__name__
        )
    check_note(note)
    numbers = {
        key: parts[key]
        for key in ("epoch", "step")
        if type(parts.get(key)) is int and 0 <= parts[key] < 2**63
    }
    manifest = Manifest(
        name="",
        sequence=0,
        created="",
        progress=Progress(**numbers),
        note=note,
        config=encode_config(config),
    )
    target = sources.local(path, "a save", "save into a directory, and copy that")
    rehearsed = stage.current()
    if rehearsed is not None:
        target = rehearsed.place(target, stage.SAVES)
    return save_at(target, parts, manifest, extra=extra)


@garbage.paused()
def save_at(
    path: str, parts: Mapping[str, Any], manifest: Manifest, *, extra: Mapping[str, bytes] | None = None
) -> Checkpoint:
    """Saves parts at a place, as `save` does; `manifest` brings what else is known, and gets what is found out."""
    target = os.path.realpath(path) if os.path.exists(path) else path
    # What a link points to is what is replaced; the link stays a link.
    for name in parts:
        names.check_part_name(name)
    for name in extra or {}:
        names.check_extra_name(name)
    if os.path.lexists(target) and not catalog.is_checkpoint(target):
        raise UsageError(
            f"{target} exists and is not a checkpoint; it was left alone. Next: choose another name, or remove it.",
            path=target,
        )
    parent, base = os.path.split(target)
    if names.parse_checkpoint_name(base) is not None and catalog.is_run(parent):
        raise UsageError(
            f"{target} is a checkpoint of the run {parent}, which alone writes such names; it was left alone. "
            f"Next: choose another name.",
            path=target,
        )
    states = {name: capture.capture(name, thing, parts) for name, thing in parts.items()}
    files.make_directory(parent)
    scratch.sweep(parent, base)
    writing = os.path.join(parent, scratch.name_for(base))
    files.make_new_directory(writing)
    try:
        draft = draft_of(writing, base, states, extra=extra)
        draft.begin()
        with draft.discarding():  # while the blocks are being written
            manifest.name, manifest.created = base, book.now()
            manifest.parts = describe_parts(states, parts)
            manifest.environment = tree.encode(environment.gather(), "environment")
        draft.complete(manifest, card.render, lambda _: None)
        replace(draft, target)
    except BaseException:
        with contextlib.suppress(StorageError):  # the failure on its way is the one to tell
            files.remove_tree(writing)
        raise
    files.remove_tree(writing)
    return Checkpoint(target)


@garbage.paused()
def draft_of(
    parent: str,
    name: str,
    states: Mapping[str, PartState],
    *,
    staging: int = 0,
    extra: Mapping[str, bytes] | None = None,
    behind: Behind | None = None,
    known: Known | None = None,
    room: Room = NO_ROOM,
) -> Draft:
    parts = {part: (state.kind, state.skeleton, state.arrays) for part, state in states.items()}
    planned = _plan(states, behind, known)
    confirm = behind.confirm if behind is not None else None
    return Draft(parent, name, parts, planned, staging=staging, extra=extra, confirm=confirm, room=room)


def _plan(states: Mapping[str, PartState], behind: Behind | None, known: Known | None) -> Layout:
    """Where the arrays will lie: where those of the last save lie, if they are known to be the same."""
    from holdfast.payload import layout

    formats = {part: "pt" for part, state in states.items() if state.kind.startswith("torch.")}
    late = behind.arrays if behind is not None else ()

    def plan() -> Layout:
        return layout.plan(
            {part: state.arrays for part, state in states.items() if state.arrays}, formats, late=late
        )

    return plan() if known is None else known.derive("layout", states, (formats, late), plan)


def describe_parts(
    states: Mapping[str, PartState],
    things: Mapping[str, Any],
    outlines: dict[str, dict[str, Any]] | None = None,
) -> dict[str, dict[str, Any]]:
    """What `checkpoint.json` and the card say of each part: kind, arrays, bytes, outline.

    `outlines` keeps those that were made, since a training saves the same things many times.
    """
    outlines = {} if outlines is None else outlines
    found: dict[str, dict[str, Any]] = {}
    for name, state in states.items():
        info: dict[str, Any] = {
            "kind": state.kind,
            "arrays": len(state.arrays),
            "bytes": sum(array.nbytes for array in state.arrays.values()),
        }
        thing = things.get(name)
        framework = adapters.home_framework(type(thing))
        if framework is not None:
            if name not in outlines:
                outlines[name] = adapters.edge(framework).outline(thing) or {}
            if outlines[name]:
                info["outline"] = outlines[name]
        found[name] = info
    return found


def check_note(note: Any) -> None:
    """Refuses what is no text, or one that is too long to stand in every checkpoint."""
    if not isinstance(note, str):
        raise UsageError(f"note={note!r}: expected a text.", found=note)
    if len(note) > NOTE_LIMIT:
        raise UsageError(
            f"note has {len(note):,} characters; at most {NOTE_LIMIT:,} are stored with each checkpoint. "
            f"Next: a sentence here, and the rest in a file.",
            found=len(note),
            expected=NOTE_LIMIT,
        )


def encode_config(config: Any) -> Any:
    """A config as it is stored and compared; `UsageError` with the key when it holds what it cannot."""
    if config is None:
        return None
    if not isinstance(config, Mapping):
        raise UsageError(
            f"config is a {type(config).__name__}; pass a mapping, like vars(args).",
            found=type(config).__name__,
        )
    encoded = tree.encode(dict(config), "config")
    size = len(json.dumps(encoded))
    if size > CONFIG_LIMIT:
        raise UsageError(
            f"config has {size:,} bytes; at most {CONFIG_LIMIT:,} are stored with each checkpoint. "
            f"Next: leave the large values out, or keep them in a file and put its name into config.",
            found=size,
            expected=CONFIG_LIMIT,
        )
    return encoded
