"""Google Cloud Storage for tests: its XML interface, in front of a server that speaks S3.

The two are the same but for the names of some headers. Generations are made of etags, so they compare equal as they
should and mean nothing else. No signature is looked at.
"""

from urllib.parse import quote, unquote

from servers.relay import Relay, read_head

_SIGNATURE = (
    "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
)
_NAMES = {"x-goog-meta-": "x-amz-meta-", "x-goog-copy-source": "x-amz-copy-source"}


class GoogleShim(Relay):
    """Answers as Google Cloud Storage does, with what an S3 server holds."""

    async def exchange(self, head, reader, writer):
        method, target, version = head.line.split(" ")
        path, question, query = target.partition("?")
        # This client writes every hyphen as %2D, which some servers take for the name of another bucket.
        head.line = f"{method} {quote(unquote(path), safe='/-_.~')}{question}{query} {version}"
        head.headers = [
            ("Authorization", _SIGNATURE),
            *(_to_s3(*pair) for pair in head.without("authorization").headers),
        ]
        answer = await self.forward(head, reader)
        given = await read_head(answer)
        etag = given.get("etag").strip('"')
        given.headers = [_from_s3(*pair) for pair in given.headers]
        if etag:
            given.headers.append(("x-goog-generation", etag))
        await self.give(given, answer, writer)
        return False


def _to_s3(name, value):
    lower = name.lower()
    if lower == "x-goog-if-generation-match":
        return ("If-None-Match", "*") if value == "0" else ("If-Match", value)
    for google, amazon in _NAMES.items():
        if lower.startswith(google):
            return amazon + lower.removeprefix(google), value
    return name, value


def _from_s3(name, value):
    lower = name.lower()
    return (f"x-goog-meta-{lower[11:]}" if lower.startswith("x-amz-meta-") else name), value
