"""A proxy that does to requests what networks and busy servers do.

    with FaultProxy(server.url) as proxy:
        proxy.inject(status(503), method="PUT", times=2)
        proxy.inject(lost_answer(), path="checkpoint.json")

A fault strikes the first requests that its conditions fit, by default one. All requests are in `proxy.log`.
"""

import asyncio
import dataclasses
import re
from collections.abc import Callable

from servers.relay import Relay, read_head

_PIECE = 1 << 18


@dataclasses.dataclass(frozen=True)
class Fault:
    """What befalls a request; made by the functions below."""

    kind: str
    value: float = 0
    code: str = ""


def status(number, code="SlowDown"):
    """The server answers with this status and does nothing; 429 and 503 ask for slowness."""
    return Fault("status", number, code)


def hang():
    """The request is taken and never answered."""
    return Fault("hang")


def reset(after=0):
    """The connection breaks when so many bytes of the request's body have arrived; the server sees nothing."""
    return Fault("reset", after)


def cut(after=0):
    """The connection breaks when so many bytes of the answer's body have been given."""
    return Fault("cut", after)


def stall(after=0):
    """After so many bytes of its body the answer stands still."""
    return Fault("stall", after)


def lost_answer():
    """The server does what it is asked, and the answer never arrives."""
    return Fault("lost_answer")


def corrupt(at=0):
    """The bit that is wrong is in this byte of the request's body."""
    return Fault("corrupt", at)


def throttle(rate):
    """So many bytes per second, there and back."""
    return Fault("throttle", rate)


def delay(seconds):
    """The request goes on so much later."""
    return Fault("delay", seconds)


@dataclasses.dataclass(frozen=True)
class Request:
    """A request as it came. `number` counts from 0 over all connections; `length` is that of its body."""

    number: int
    method: str
    target: str
    length: int
    fault: Fault | None


@dataclasses.dataclass
class _Rule:
    fault: Fault
    fits: Callable[[int, str, str], bool]
    left: float


class FaultProxy(Relay):
    """Passes requests on to a server, but for the faults that were injected."""

    def __init__(self, upstream):
        super().__init__(upstream)
        self.log = []
        self._rules = []

    def inject(self, fault, *, method="", path="", number=None, times=1):
        """Lets a fault strike.

        Args:
            fault: which one.
            method: the requests' method, such as ``PUT``; empty for any.
            path: what is searched in their path and query, a regular expression.
            number: of which request on; None for the next.
            times: how many of them; None for all.

        """

        def fits(this, its_method, target):
            return method in ("", its_method) and re.search(path, target) and (number or 0) <= this

        self._rules.append(_Rule(fault, fits, float("inf") if times is None else times))

    def heal(self):
        """From now on nothing strikes."""
        self._rules.clear()

    def sent(self, method="PUT", path=""):
        """Bytes of the bodies of requests that came."""
        return sum(request.length for request in self.requests(method, path))

    def requests(self, method="", path=""):
        """The requests that came, of this method and with this in their path or query."""
        return [one for one in self.log if method in ("", one.method) and re.search(path, one.target)]

    def _strike(self, number, method, target):
        for rule in self._rules:
            if rule.left > 0 and rule.fits(number, method, target):
                rule.left -= 1
                return rule.fault
        return None

    async def exchange(self, head, reader, writer):
        method, target, _ = head.line.split(" ")
        length = int(head.get("content-length") or 0)
        fault = self._strike(len(self.log), method, target) or Fault("")
        self.log.append(Request(len(self.log), method, target, length, fault if fault.kind else None))
        match fault.kind:
            case "hang":
                await asyncio.Event().wait()
            case "reset":
                await _drop(reader, min(int(fault.value), length))
                return self.reset(writer)
            case "status":
                await _drop(reader, length)
                writer.write(_answer(int(fault.value), fault.code, body=method != "HEAD"))
                await writer.drain()
                return True
            case "delay":
                await asyncio.sleep(fault.value)
        pace = 1 / fault.value if fault.kind == "throttle" else 0.0
        bad = int(fault.value) if fault.kind == "corrupt" else None
        answer = await self.forward(head, reader, pace, bad)
        if fault.kind == "lost_answer":
            while await answer.read(_PIECE):
                pass
            return self.reset(writer)
        limit = int(fault.value) if fault.kind in ("cut", "stall") else None
        whole = await self.give(await read_head(answer), answer, writer, pace, limit)
        if not whole and fault.kind == "stall":
            await asyncio.Event().wait()
        return None if whole else self.reset(writer)


async def _drop(reader, length):
    while length:
        data = await reader.read(min(length, _PIECE))
        if not data:
            return
        length -= len(data)


def _answer(number, code, *, body):
    text = (
        f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>injected</Message></Error>' if body else ""
    )
    return (
        f"HTTP/1.1 {number} Injected\r\nContent-Type: application/xml\r\nContent-Length: {len(text)}\r\n\r\n{text}"
    ).encode()
