"""The name of a place in an object store, such as `s3://bucket/prefix`, and how it is shown."""

from __future__ import annotations

import re
from typing import NamedTuple

from holdfast.errors import UsageError

SCHEMES = ("s3", "gs", "az")
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_VERSION_6 = re.compile(r"^\[[0-9A-Fa-f:.]+\]")
_BUCKET = re.compile(r"[A-Za-z0-9$][A-Za-z0-9._$-]{0,221}")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")


class Address(NamedTuple):
    """A bucket (in Azure: a container) and a prefix in it, which may be empty."""

    scheme: str
    bucket: str
    prefix: str

    @property
    def url(self) -> str:
        """As it is written: without a slash at the end, and without secrets."""
        return f"{self.scheme}://{self.bucket}{'/' if self.prefix else ''}{self.prefix}"

    def key(self, name: str) -> str:
        """The key of an object below the prefix; of the prefix itself where `name` is empty."""
        return f"{self.prefix}/{name}" if self.prefix and name else self.prefix or name


def is_url(text: str) -> bool:
    """Whether a text names something by a scheme, `x://…`, rather than by a path."""
    return _URL.match(text) is not None


def redacted(url: str) -> str:
    """A URL without user, password, query and fragment, which may be secrets; a path is given back as it is."""
    found = _URL.match(url)
    if found is None:
        return url
    scheme, rest = found.groups()
    rest, mark, _ = rest.partition("?")
    if not mark:
        rest, mark, _ = rest.partition("#")
    server = rest.partition("/")[0]
    if "@" in server or (":" in server and "@" in rest):  # a password may hold a slash
        rest = "…@" + rest.rpartition("@")[2]
    elif re.search(r":(?!\d+$)", _VERSION_6.sub("", server)):
        rest = "…"
    return f"{scheme}://{rest}{'?…' if mark else ''}"


def parse(url: str) -> Address:
    """The address that a URL means.

    Raises:
        UsageError: it is of no kind that is supported, is no bucket's name, or brings credentials along.

    """
    found, shown = _URL.match(url), redacted(url)
    scheme = found[1].lower() if found else ""
    if found is None or scheme not in SCHEMES:
        raise UsageError(
            f"{shown} is not in an object store that is supported. Expected s3://bucket/prefix, gs://bucket/prefix "
            f"or az://container/prefix.",
            path=shown,
        )
    if shown != url:
        raise UsageError(
            f"{shown} brings credentials or parameters along; it would be written into run.json and into logs. "
            f"Next: name bucket and prefix alone; credentials are taken from where the other tools of that store find "
            f"theirs (docs/mirrors.md).",
            path=shown,
        )
    bucket, _, prefix = found[2].partition("/")
    prefix = prefix.rstrip("/")
    parts = prefix.split("/") if prefix else []
    wrong = not _BUCKET.fullmatch(bucket) or _CONTROL.search(prefix)
    if wrong or any(part in ("", ".", "..") for part in parts):
        raise UsageError(
            f"{shown} names no place in an object store. Expected {scheme}://BUCKET/PREFIX, where the prefix has no "
            f"empty parts, '.' or '..', like {scheme}://my-bucket/runs/digits.",
            path=shown,
        )
    return Address(scheme, bucket, prefix)
