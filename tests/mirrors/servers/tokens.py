"""Azure's blob storage for whoever has a token: in front of the emulator, which would want TLS for that.

A token is taken as it is. What was signed with a key that was given for one is looked at for what it allows, and not
for whether it is signed rightly.
"""

from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit

from servers.relay import Relay, read_head

TOKEN = "planted-token"
_KEY = """<?xml version="1.0" encoding="utf-8"?><UserDelegationKey><SignedOid>oid</SignedOid><SignedTid>tid</SignedTid>
<SignedStart>2026-01-01T00:00:00Z</SignedStart><SignedExpiry>2036-01-01T00:00:00Z</SignedExpiry>
<SignedService>b</SignedService><SignedVersion>2023-11-03</SignedVersion><Value>a2V5</Value></UserDelegationKey>"""
_NEEDED = {"GET": "r", "HEAD": "r", "PUT": "w", "DELETE": "d"}


class TokenShim(Relay):
    """Lets in who brings the token, or a signature made with what was given for it.

    Args:
        server: the emulator.
        gives: whether it gives keys to sign with.

    """

    def __init__(self, server, *, gives=True):
        super().__init__(server.endpoint)
        self._emulator, self._gives = server, gives
        self.seen = []
        """Of each request that was let in: its method, and "token" or "signature"."""

    async def exchange(self, head, reader, writer):
        method, target, version = head.line.split(" ")
        url = urlsplit(target)
        query = parse_qs(url.query)
        by_token = head.get("authorization") == f"Bearer {TOKEN}"
        if by_token and query.get("comp") == ["userdelegationkey"]:
            await reader.readexactly(int(head.get("content-length") or 0))
            self._answer(writer, "200 OK" if self._gives else "403 Forbidden", _KEY if self._gives else "")
            return False
        allowed = query.get("skoid") == ["oid"] and _NEEDED.get(method, "?") in query["sp"][0]
        if query.get("restype") == ["container"] and not by_token:
            allowed = False  # what is signed is one blob
        if not by_token and not allowed:
            self._answer(
                writer, "403 Forbidden", "<Error><Code>AuthorizationPermissionMismatch</Code></Error>"
            )
            return False
        self.seen.append((method, "token" if by_token else "signature"))
        own = ("sv", "st", "se", "sr", "sp", "sig", "skoid", "sktid", "skt", "ske", "sks", "skv")
        kept = [(name, value) for name, value in parse_qsl(url.query) if name not in own]
        head.line = f"{method} {url.path}?{urlencode(kept)}&{self._emulator.signature()} {version}"
        answer = await self.forward(head.without("authorization"), reader)
        await self.give(await read_head(answer), answer, writer)
        return False

    @staticmethod
    def _answer(writer, status, text):
        writer.write(
            f"HTTP/1.1 {status}\r\nContent-Length: {len(text)}\r\nConnection: close\r\n\r\n{text}".encode()
        )
