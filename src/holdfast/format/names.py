"""Names: of checkpoints, of parts, of files inside a checkpoint, and references to checkpoints."""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass
from typing import NamedTuple

from holdfast.errors import FormatError, UsageError

RESERVED_PARTS = frozenset({"state", "random", "grads", "probe"})

_PART = re.compile(r"[a-z][a-z0-9_]{0,99}\Z")  # with room for the rest of a file's name
_LONGEST = 200
LAST_SEQUENCE = 10**18 - 1
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")
_OWN = frozenset({"checkpoint.json", "arrays.json", "README.md"})
# Without zeros that nobody writes: one checkpoint, one name. `0000012_…` would be taken for
# `000012_…`, and that be deleted for it.
_CHECKPOINT = re.compile(
    r"(\d{6}|[1-9]\d{6,17})_epoch-(\d{4}|[1-9]\d{4,17})_step-(\d{8}|[1-9]\d{8,17})"
    r"_([1-9]\d{7}T(?:[01]\d|2[0-3])\d{4}Z)\Z",
    re.ASCII,  # else other alphabets' digits are digits
)
_SELECTOR = re.compile(
    r"(?P<word>best|latest)\Z|(?P<key>step|epoch|seq)=(?P<value>\d{1,18})\Z|-(?P<back>[1-9]\d{0,8})\Z",
    re.ASCII,
)


class CheckpointName(NamedTuple):
    """What a checkpoint's name says: its sequence, progress and time of saving (UTC)."""

    sequence: int
    epoch: int
    step: int
    created: datetime.datetime

    def __str__(self) -> str:
        time = self.created.astimezone(datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
        return f"{self.sequence:06d}_epoch-{self.epoch:04d}_step-{self.step:08d}_{time}"


def parse_checkpoint_name(name: str) -> CheckpointName | None:
    """The parts of a checkpoint's name, or None when it is not one, or has zeros that nobody writes."""
    found = _CHECKPOINT.match(name)
    if found is None:
        return None
    sequence, epoch, step, time = found.groups()
    try:
        created = datetime.datetime.fromisoformat(time)
    except ValueError:
        return None
    return CheckpointName(int(sequence), int(epoch), int(step), created)


def check_part_name(name: object) -> str:
    """A part name as given, or a `UsageError` that says what such a name looks like."""
    if not isinstance(name, str) or not _PART.match(name):
        raise UsageError(
            f"{_cut(repr(name))} cannot name a part: a name is a lower-case letter followed by at most 99 lower-case "
            f"letters, digits and underscores, like 'model' or 'optimizer_d'.",
            found=name,
        )
    if name in RESERVED_PARTS:
        raise UsageError(
            f"The part name {name!r} is used by Holdfast itself; choose another, like 'my_{name}'.",
            found=name,
        )
    return name


def check_extra_name(name: object) -> str:
    """The name of a further small file as given, or a `UsageError` where no reader would take it."""
    if not isinstance(name, str) or not _is_file_name(name) or name.endswith(".safetensors") or name in _OWN:
        raise UsageError(
            f"extra={{{_cut(repr(name))}: …}}: a further file has a plain name of letters, digits, dots, underscores and "
            f"hyphens, at most {_LONGEST} of them, like 'notes.txt'; it does not end in .safetensors and is none of "
            f"{', '.join(sorted(_OWN))}.",
            found=name,
        )
    return name


def _is_file_name(name: str) -> bool:
    return bool(_FILE.match(name)) and ".." not in name and len(name) <= _LONGEST


def _cut(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:99]}…"


def check_file_name(name: str, where: str) -> str:
    """A plain file name as found in a manifest, or a `FormatError`: nothing may point outside."""
    if not _is_file_name(name):
        raise FormatError(
            f"{where} names the file {name[:100]!r}; files of a checkpoint are plain names inside its folder. "
            f"Nothing was read from there.",
            path=where,
            found=name,
        )
    return name


@dataclass(frozen=True, slots=True)
class Reference:
    """Where (a path of a run or a checkpoint) and which one of the run's checkpoints.

    `which` is "newest", "latest", "best", "step", "epoch", "seq" or "back"; `value` is the number.
    """

    place: str
    which: str = "newest"
    value: int = 0

    def __str__(self) -> str:
        if self.which == "newest":
            return self.place
        if self.which == "back":
            return f"{self.place}@-{self.value}"
        return f"{self.place}@{self.which}" + (
            f"={self.value}" if self.which not in {"best", "latest"} else ""
        )


def parse_reference(text: str) -> Reference:
    """``RUN``, ``RUN@best``, ``RUN@latest``, ``RUN@step=4690``, ``RUN@epoch=3``, ``RUN@seq=12``, ``RUN@-2``.

    An ``@`` that is not followed by one of these belongs to the path.
    """
    if "\0" in text:
        raise UsageError(f"The reference {text!r} holds a zero byte, which no path does.", found=text)
    place, at, selector = text.rpartition("@")
    if not at:
        return Reference(text)
    found = _SELECTOR.match(selector)
    if found is None:
        return Reference(text)
    if not place:
        raise UsageError(f"The reference {text!r} names no run; write RUN@{selector}.", found=text)
    if found["word"]:
        return Reference(place, found["word"])
    if found["key"]:
        return Reference(place, found["key"], int(found["value"]))
    return Reference(place, "back", int(found["back"]))


SELECTORS = "@best, @latest, @step=N, @epoch=N, @seq=N or @-N"
