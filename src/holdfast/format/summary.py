"""What a list of checkpoints shows of each, read from very many `checkpoint.json` without parsing all of it.

The checkpoints of a run say the same again and again: config, environment, parts, and rows of the
history that the one before had as well. `Reader` takes the file apart where its own writer began a
new line, and parses only what it has not seen before. Nothing is accepted that `decode_manifest`
would refuse, and what is not laid out as expected is left to `decode_manifest`:

- The digest is compared first, always.
- Each piece is a complete value by itself, strictly valid, so the whole is.
- In a flat object of n keys, all of them different, are n colons at least; where there are exactly n, no
  key was given twice and no text holds a colon.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

import msgspec

from holdfast.errors import FormatError
from holdfast.format import names, sealed
from holdfast.format.fields import VERSION
from holdfast.format.manifest import Manifest, Progress, decode_manifest

_MOST_SHARED = 64  # a run has one such piece for each launch, or little more

_NUMBER = r"(?:0|[1-9]\d{0,17})"
_FLAT = r"\{[^\n{}\[\]\\]*\}"
_HEAD = re.compile(
    (
        r'\{"format":"holdfast-checkpoint",\n'
        rf'"version":\[{VERSION[0]},{VERSION[1]}\],\n'
        r'"run":"([0-9a-f]+)",\n'
        r'"name":"([\w.-]+)",\n'
        rf'"sequence":({_NUMBER}),\n'
        r'"created":"([\w:.+-]*)",\n'
        rf'"progress":(\{{"epoch":{_NUMBER},"step":{_NUMBER},"batch":{_NUMBER},"samples":{_NUMBER},'
        r'"entered":(?:true|false),"exhausted":(?:true|false)\}),\n'
        rf'"metrics":({_FLAT}),\n'
        rf'"best":(null|{_FLAT}),\n'
    ).encode()
)
_FILES, _HISTORY = b',\n"files":', b',\n"history":['
_END = b"],\n"  # after which stands the line with the digest
_END_LENGTH = 50


class Summary(msgspec.Struct, frozen=True, gc=False):
    """What decides of a checkpoint's place in its run, and what lists show; `size` is in bytes, of all files listed."""

    run: str | None
    name: str
    sequence: int
    created: str
    progress: Progress
    metrics: dict[str, Any]
    nan: list[str]
    size: int


class _File(msgspec.Struct, gc=False):
    size: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
    digest: Annotated[str, msgspec.Meta(min_length=32, max_length=32)]


_decode_progress = msgspec.json.Decoder(Progress).decode
_decode_files = msgspec.json.Decoder(dict[str, _File]).decode
_decode_rows = msgspec.json.Decoder(list[dict[str, int | float | bool | str | None]]).decode
_decode = msgspec.json.Decoder().decode


def summarize(manifest: Manifest) -> Summary:
    """The summary of a manifest that was read as a whole, or is about to be written."""
    return Summary(
        manifest.run,
        manifest.name,
        manifest.sequence,
        manifest.created,
        manifest.progress,
        manifest.metrics,
        manifest.nan,
        sum(file.size for file in manifest.files.values()),
    )


class Reader:
    """Reads the summaries of one run's checkpoints, the older before the newer if all are read."""

    def __init__(self) -> None:
        self._shared: dict[bytes, list[str]] = {}
        """What stands between the best and the files, where it was found in order, and the NaN marks in it."""
        self._rows = b""
        """The rows of the history that were found in order last."""
        self._file_names: set[str] = set()

    def read(self, data: bytes, path: str) -> Summary:
        """What `decode_manifest` finds, in short; raises what it raises."""
        sealed.check_digest(data, path)
        pieces = self._take_apart(data)
        if pieces is None:
            return summarize(decode_manifest(data, path))
        head, metrics, size, shared, rows = pieces
        if not self._know_rows(rows):
            return summarize(decode_manifest(data, path))
        nan = self._shared.get(shared)
        if nan is None:
            manifest = decode_manifest(data, path)
            # With complete values before it and behind it, so is this piece, wherever it occurs.
            if len(self._shared) >= _MOST_SHARED:
                self._shared.clear()
            self._shared[shared] = manifest.nan
            return summarize(manifest)
        run, name, sequence, created, progress, _, _ = head.groups()
        return Summary(
            run.decode(),
            name.decode(),
            int(sequence),
            created.decode(),
            _decode_progress(progress),
            metrics,
            nan,
            size,
        )

    def _take_apart(self, data: bytes) -> tuple[re.Match[bytes], dict[str, Any], int, bytes, bytes] | None:
        """The head, the metrics and the size of all files, strictly valid each; and the shared piece and the rows."""
        head = _HEAD.match(data)
        if head is None:
            return None
        files = data.find(_FILES, head.end() - 2)
        history = data.find(_HISTORY, files)
        end = len(data) - _END_LENGTH
        if files < 0 or history < 0 or data[end : end + len(_END)] != _END:
            return None
        metrics, best = _flat(head[6]), _flat(head[7])
        size = self._size_of(data[files + len(_FILES) : history])
        if metrics is None or best is None or size is None:
            return None
        return head, metrics, size, data[head.end() : files], data[history + len(_HISTORY) : end]

    def _size_of(self, text: bytes) -> int | None:
        """The bytes of all files that a table lists; None when it is not plainly in order."""
        try:
            found = _decode_files(text)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return None
        listed = found.values()
        digits = "".join([file.digest for file in listed])
        if text.count(b":") != 3 * len(found) or b"\\" in text or digits.strip("0123456789abcdef"):
            return None
        if not self._file_names.issuperset(found):
            try:
                for name in found:
                    names.check_file_name(name, "")
            except FormatError:
                return None
            self._file_names.update(found)
        return sum([file.size for file in listed])

    def _know_rows(self, rows: bytes) -> bool:
        """Whether rows are in order: those that the last history ended with are, so only others are parsed."""
        known, new = self._rows, rows
        place = known.find(rows[: rows.find(b"}") + 1]) if rows else -1
        if place == 0 or (place > 0 and known[place - 2 : place + 1] == b"},{"):
            common = known[place:]
            if rows == common:
                new = b""
            elif rows.startswith(common) and rows[len(common) : len(common) + 1] == b",":
                new = rows[len(common) + 1 :]
        if new and not _are_flat(new):
            return False
        self._rows = rows
        return True


def _flat(text: bytes) -> dict[str, Any] | None:
    """The object that a text without brackets and backslashes inside is; empty for null, None when it is not in order."""
    try:
        found = _decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    if found is None:
        return {}
    return found if text.count(b":") == len(found) else None


def _are_flat(rows: bytes) -> bool:
    """Whether rows, separated by commas, are flat objects, each beginning where a brace is."""
    try:
        found = _decode_rows(b"[%s]" % rows)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return False
    return rows.count(b"{") == len(found) and rows.count(b":") == sum(map(len, found)) and b"\\" not in rows
