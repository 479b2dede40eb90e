"""The JSON files of a checkpoint: one object each, whose last line is a digest of all before it.

    {"format":"holdfast-checkpoint",
    "version":[1,0],
    …
    "xxh3-128":"0123456789abcdef0123456789abcdef"}

The digest is compared as bytes before anything is parsed. Keys given twice, nesting deeper than
100 and non-finite numbers are refused; non-finite floats are written as tagged strings by
`holdfast.state.tree`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from holdfast.errors import DamagedError, FormatError

MAX_DEPTH = 100
_LINE = b'"xxh3-128":"%s"}\n'
_LINE_LENGTH = 47
_SPACED = re.compile(rb'"\s+:')


def digest(data: bytes | memoryview) -> str:
    """The xxh3-128 of `data`: 32 lower-case hexadecimal digits, most significant first."""
    import xxhash

    return xxhash.xxh3_128_hexdigest(data)


def dump(value: Any) -> bytes:
    """Compact JSON in ASCII; `msgspec.Raw` stands for JSON that was made before."""
    return bytes(value) if type(value) is msgspec.Raw else _dump(value).encode("ascii")


_dump = json.JSONEncoder(ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode


def encode(content: Mapping[str, Any]) -> bytes:
    """The bytes of a sealed file: a line for each key, in the given order, then the digest."""
    lines = b",\n".join(b"%s:%s" % (dump(key), dump(value)) for key, value in content.items())
    body = b"{%s,\n" % lines
    return body + _LINE % digest(body).encode("ascii")


def decode(data: bytes, path: str) -> dict[str, Any]:
    """The content of a sealed file; `DamagedError` when its digest is wrong, `FormatError` when it is not one."""
    check_digest(data, path)
    content = parse(data, path)
    del content["xxh3-128"]
    return content


def check_digest(data: bytes, path: str) -> None:
    """Compares the digest in the last line, as bytes; `DamagedError` when it is not that of the others."""
    line = data[-_LINE_LENGTH:]
    if len(line) < _LINE_LENGTH or not line.startswith(b'"xxh3-128":"') or not line.endswith(b'"}\n'):
        directory, _, file = path.rpartition("/")
        raise DamagedError(
            f"{path} is truncated or was changed: its last line is not its digest. "
            f"Next: holdfast verify on the checkpoint, or use an older one.",
            path=directory,
            file=file,
            block=None,
            arrays=[],
            expected='a last line "xxh3-128":"…"}',
            found=line[-60:].decode("ascii", "replace"),
        )
    expected, found = line[12:44].decode("ascii", "replace"), digest(memoryview(data)[:-_LINE_LENGTH])
    if expected != found:
        directory, _, file = path.rpartition("/")
        raise DamagedError(
            f"{path} is damaged: its digest is {found}, and {expected} was written. "
            f"Next: holdfast verify on the checkpoint, or use an older one.",
            path=directory,
            file=file,
            block=None,
            arrays=[],
            expected=expected,
            found=found,
        )


def parse(data: bytes, path: str) -> dict[str, Any]:
    """Strict JSON: one object, no key twice, no NaN, no nesting deeper than 100."""
    content = _parse_compact(data, path)
    return content if content is not None else _parse_strictly(data, path)


def _parse_compact(data: bytes, path: str) -> dict[str, Any] | None:
    """Several times faster, for what is plainly in order; None leaves the judgement to the other."""
    try:
        content = msgspec.json.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    if type(content) is not dict or is_spaced(data):
        return None
    # Every key is followed by `":` here, so one given twice (of which one is lost) makes these
    # more than the keys that were found. A text that holds `":` does so too: hence None.
    return content if data.count(b'":') == check_depth(content, path) else None


def is_spaced(data: bytes) -> bool:
    """Whether a key may not be followed by its colon at once; texts may look so, too."""
    return _SPACED.search(data) is not None


def _parse_strictly(data: bytes, path: str) -> dict[str, Any]:
    def no_constant(word: str) -> Any:
        raise FormatError(f"{path} holds the number {word}, which JSON does not have.", path=path, found=word)

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise FormatError(f"{path} has the key {twice!r} twice.", path=path, found=twice)
        return result

    def finite(text: str) -> float:
        number = float(text)
        if math.isinf(number):  # 1e400 is valid JSON, and would come as infinity
            no_constant(text)
        return number

    try:
        content = json.loads(
            data.decode(), object_pairs_hook=unique, parse_constant=no_constant, parse_float=finite
        )
    except FormatError:
        raise
    except RecursionError as error:
        raise FormatError(
            f"{path} is nested deeper than {MAX_DEPTH}.", path=path, expected=MAX_DEPTH
        ) from error
    except (ValueError, UnicodeDecodeError) as error:
        raise FormatError(f"{path} is not valid JSON: {error}.", path=path) from error
    if not isinstance(content, dict):
        raise FormatError(f"{path} holds a {type(content).__name__}, not a JSON object.", path=path)
    check_depth(content, path)
    return content


def check_depth(content: Any, path: str) -> int:
    """The number of keys in all objects; `FormatError` when one lies too deep."""
    level, keys = [content], 0
    for _ in range(MAX_DEPTH + 1):
        keys += sum(len(container) for container in level if type(container) is dict)
        level = [
            value
            for container in level
            for value in (container.values() if type(container) is dict else container)
            if type(value) is dict or type(value) is list
        ]
        if not level:
            return keys
    raise FormatError(f"{path} is nested deeper than {MAX_DEPTH}.", path=path, expected=MAX_DEPTH)
