"""Google's multipart uploads, which are S3's but for how bytes are checked.

A part goes along with its MD5, which the store compares, and has that as its etag. The whole object has none: it gets
an etag of another kind, and a CRC32C, which takes a library of its own to compute. So it is judged by its size, its
digest and its parts.
"""

from __future__ import annotations

from holdfast.objects.amazon_parts import AmazonParts


class GoogleParts(AmazonParts):
    """The parts of an object in Google Cloud Storage."""

    whole_etags = False
    by_md5 = True

    def _note(self, number: int, etag: str) -> None:
        super()._note(number, f'"{etag}"')  # as Google writes it; S3 takes either
