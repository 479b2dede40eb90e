"""What the JSON files of a checkpoint and of a run have in common: version, sizes, digests."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, TypeVar

import msgspec

from holdfast.errors import FormatError

VERSION = (1, 0)
MAX_SIZE = 2**63 - 1
_DIGEST = re.compile(r"[0-9a-f]{32}\Z")
_T = TypeVar("_T")


def check_version(content: dict[str, Any], kind: str, path: str) -> None:
    """Refuses what is not of this kind, or is of a newer major version."""
    found = content.get("format")
    if found != kind:
        raise FormatError(f"{path} is not a {kind} file: its format is {found!r}.", path=path, found=found)
    version = content.get("version")
    if (
        not isinstance(version, list)
        or len(version) != 2
        or not all(isinstance(number, int) and number >= 0 for number in version)
    ):
        raise FormatError(f"{path} has no format version.", path=path, found=version)
    if version[0] > VERSION[0]:
        raise FormatError(
            f"{path} has format {version[0]}.{version[1]}; this Holdfast reads up to {VERSION[0]}.x. "
            f"Upgrade with: pip install --upgrade holdfast",
            path=path,
            expected=list(VERSION),
            found=version,
            newer=True,
        )


def convert(content: dict[str, Any], kind: type[_T], path: str) -> _T:
    """The struct of that kind; `FormatError` with the place in the file where it is not one."""
    try:
        return msgspec.convert(content, kind, strict=True)
    except (msgspec.ValidationError, UnicodeEncodeError) as error:  # the latter of text with half a character
        raise FormatError(f"{path} is not as the format says: {error}.", path=path) from error


def check_digests(digests: Iterable[str], path: str) -> None:
    for digest in digests:
        if not _DIGEST.match(digest):
            raise FormatError(
                f"{path} holds the digest {digest[:40]!r}; a digest is 32 lower-case hexadecimal digits.",
                path=path,
                found=digest,
            )


def check_sizes(sizes: list[int], path: str) -> None:
    for size in sizes:
        if not 0 <= size <= MAX_SIZE:
            raise FormatError(f"{path} holds the size {size:,}, which no file has.", path=path, found=size)
