"""Google Cloud Storage for tests: its XML interface, in front of a server that speaks S3.

The two have the same words; where they differ, this answers as Google documents it:

- a request brings a token, and headers of Google's alone; Amazon's, its checksums included, are refused;
- a body that is not what its `Content-MD5` says is refused;
- an object that was put together of parts has a CRC32C and no MD5, and an etag that is made of neither;
- generations, which are made of etags here, compare equal as they should and mean nothing else.
"""

import asyncio
import base64
import hashlib
import re
from urllib.parse import quote, unquote

from servers.relay import Head, Relay, read_head

_SIGNATURE = (
    "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
)
_NAMES = {"x-goog-meta-": "x-amz-meta-", "x-goog-copy-source": "x-amz-copy-source"}
_WHOLE = re.compile(r"([0-9a-f]{32})-\d+")


class GoogleShim(Relay):
    """Answers as Google Cloud Storage does, with what an S3 server holds.

    Attributes:
        valid: the token that is accepted; None for any.
        refused: how many requests brought another.

    """

    valid, refused = None, 0

    async def exchange(self, head, reader, writer):
        method, target, version = head.line.split(" ")
        path, question, query = target.partition("?")
        length = int(head.get("content-length") or 0)
        body = await reader.readexactly(length)
        if (wrong := self._wrong(head, body)) is not None:
            return await _refuse(writer, method, *wrong)
        # obstore writes every hyphen as %2D, which some servers take for the name of another bucket.
        head.line = f"{method} {quote(unquote(path), safe='/-_.~')}{question}{query} {version}"
        head.headers = [
            ("Authorization", _SIGNATURE),
            *(_to_s3(*pair) for pair in head.without("authorization").headers),
        ]
        again = asyncio.StreamReader()
        again.feed_data(body)
        again.feed_eof()
        answer = await self.forward(head, again)
        given = await read_head(answer)
        etag = given.get("etag").strip('"')
        given.headers = [_from_s3(*pair) for pair in given.headers if not _amazons(pair[0])]
        if etag:
            given.headers.append(("x-goog-generation", etag))
            whole = _WHOLE.fullmatch(etag)
            # Of one that was put together Google knows the CRC32C, which nobody here computes.
            given.headers.append(("x-goog-hash", "crc32c=AAAAAA==" if whole else f"md5={_base64(etag)}"))
        await self.give(given, answer, writer)
        return False

    def _wrong(self, head, body):
        """The status, code and message with which a request is refused; None where it is right."""
        kind, _, token = head.get("authorization").partition(" ")
        if kind != "Bearer" or not token or self.valid not in (None, token):
            self.refused += 1
            return 401, "AuthenticationRequired", "Authentication required."
        for name, value in head.headers:
            if name.lower().startswith(("x-amz-", "amz-")) or "aws-chunked" in value:
                return 400, "InvalidArgument", f"Invalid argument: {name}"
        md5 = head.get("content-md5")
        if md5 and md5 != base64.b64encode(hashlib.md5(body).digest()).decode():
            return 400, "BadDigest", "The Content-MD5 you specified did not match what we received."
        return None


async def _refuse(writer, method, status, code, message):
    body = f"<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code><Message>{message}</Message></Error>"
    headers = [
        ("Content-Type", "application/xml"),
        ("Content-Length", str(len(body))),
        ("Connection", "close"),
    ]
    if status == 401:
        headers.append(("WWW-Authenticate", 'Bearer realm="https://accounts.google.com/"'))
    head = Head(f"HTTP/1.1 {status} Refused", headers).encode()
    writer.write(head + (b"" if method == "HEAD" else body.encode()))
    await writer.drain()
    return False


def _to_s3(name, value):
    lower = name.lower()
    if lower == "x-goog-if-generation-match":
        return ("If-None-Match", "*") if value == "0" else ("If-Match", value)
    for google, amazon in _NAMES.items():
        if lower.startswith(google):
            return amazon + lower.removeprefix(google), value
    return name, value


def _amazons(name):
    return name.lower().startswith("x-amz-") and not name.lower().startswith("x-amz-meta-")


def _from_s3(name, value):
    lower = name.lower()
    if lower == "etag":
        # Google's are opaque there: no MD5, and no number of parts.
        return name, _WHOLE.sub(lambda found: _base64(found[1])[:-2] + "=", value)
    return (f"x-goog-meta-{lower[11:]}" if lower.startswith("x-amz-meta-") else name), value


def _base64(digest):
    return (
        base64.b64encode(bytes.fromhex(digest)).decode() if re.fullmatch("[0-9a-f]{32}", digest) else digest
    )
