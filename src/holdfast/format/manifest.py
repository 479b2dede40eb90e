"""`checkpoint.json`: what it holds, and what makes it acceptable."""

from __future__ import annotations

from typing import Any

import msgspec

from holdfast.errors import UsageError
from holdfast.format import names, sealed
from holdfast.format.fields import VERSION, check_digests, check_sizes, check_version, convert

CHECKPOINT_FILE = "checkpoint.json"
CARD_FILE = "README.md"

CHECKPOINT_LIMIT = 64 * 1024
CONFIG_LIMIT = 32 * 1024
NOTE_LIMIT = 16 * 1024
HISTORY_ROWS = 100
MAX_MARKS = 100
# What a reader takes: larger is refused before it is read into memory.
READ_LIMIT_CHECKPOINT = 16 << 20


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """Where a training stands: completed epochs, steps and, in the current epoch, batches and samples.

    `epoch` is also the index of the next epoch. `entered` says whether the epoch's `batches` had
    been entered, `exhausted` whether they had all been handed out.
    """

    epoch: int = 0
    step: int = 0
    batch: int = 0
    samples: int = 0
    entered: bool = False
    exhausted: bool = False

    def key(self) -> tuple[int, int, int]:
        return (self.epoch, self.step, self.batch)


class SmallFile(msgspec.Struct, frozen=True):
    """Size in bytes and xxh3-128 of a file (for a payload file: of its block digests)."""

    size: int
    digest: str


class Goal(msgspec.Struct, frozen=True):
    """What a loop was asked for: `kind` is "epochs" or "steps"."""

    kind: str
    value: int


class Manifest(msgspec.Struct, kw_only=True):
    """The content of `checkpoint.json`; nested values are encoded by `holdfast.state.tree`."""

    format: str = "holdfast-checkpoint"
    version: tuple[int, int] = VERSION
    run: str | None = None
    name: str
    sequence: int
    created: str
    progress: Progress
    metrics: dict[str, Any] = {}
    best: dict[str, Any] | None = None
    goal: Goal | None = None
    stopped: bool = False
    nan: list[str] = []
    note: str = ""
    config: Any = None
    init: dict[str, dict[str, Any]] | None = None
    declared: dict[str, dict[str, Any]] | None = None
    fresh: dict[str, Any] = {}
    loader: dict[str, Any] | None = None
    parts: dict[str, dict[str, Any]] = {}
    probe: dict[str, Any] | None = None
    environment: dict[str, Any] = {}
    files: dict[str, SmallFile] = {}
    history: list[dict[str, Any]] = []


def encode_manifest(manifest: Manifest) -> bytes:
    """The bytes of `checkpoint.json`, at most 64 KiB: what only people read gives way.

    First the oldest rows of the history, then the layers of the outlines.
    """
    content = msgspec.to_builtins(manifest, str_keys=True)
    marks = content["nan"]
    if len(marks) > MAX_MARKS:
        content["nan"] = [*marks[:MAX_MARKS], f"… and {len(marks) - MAX_MARKS} more"]
    rows: list[Any] = content["history"][-HISTORY_ROWS:]
    while True:
        content["history"] = rows
        data = sealed.encode(content)
        if len(data) <= CHECKPOINT_LIMIT:
            return data
        if not rows:
            break
        rows = rows[max(1, len(rows) // 8) :]
    for part in content["parts"].values():
        outline = part.get("outline", {})
        outline["more_layers"] = outline.get("more_layers", 0) + len(outline.pop("layers", []))
    data = sealed.encode(content)
    if len(data) > READ_LIMIT_CHECKPOINT:
        sizes = {key: len(sealed.dump(value)) for key, value in content.items()}
        largest = max(sizes, key=sizes.__getitem__)
        raise UsageError(
            f"{CHECKPOINT_FILE} would have {len(data):,} bytes, {sizes[largest]:,} of them in {largest!r}; a reader takes "
            f"{READ_LIMIT_CHECKPOINT:,}. Nothing was saved. Next: keep what is large in run.state.",
            expected=READ_LIMIT_CHECKPOINT,
            found=len(data),
        )
    return data


def decode_manifest(data: bytes, path: str) -> Manifest:
    """Checks digest, format version and every field; `DamagedError` or `FormatError`."""
    content = sealed.decode(data, path)
    check_version(content, "holdfast-checkpoint", path)
    manifest = convert(content, Manifest, path)
    for name in manifest.files:
        names.check_file_name(name, path)
    check_sizes([file.size for file in manifest.files.values()], path)
    check_digests((file.digest for file in manifest.files.values()), path)
    progress = manifest.progress
    check_sizes([manifest.sequence, progress.epoch, progress.step, progress.batch, progress.samples], path)
    return manifest
