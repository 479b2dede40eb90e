"""A small HTTP/1.1 server that passes requests on to another one: a thread of this process, stdlib alone.

Each request goes on over a connection of its own, and each answer ends its connection: slower than it could be,
and simple enough to do odd things at every byte.
"""

import asyncio
import dataclasses
import socket
import struct
import threading
from urllib.parse import urlsplit

_PIECE = 1 << 18
_LONGEST_HEAD = 1 << 20


@dataclasses.dataclass
class Head:
    """The first line and the headers of a request or of an answer; the names' case is kept."""

    line: str
    headers: list

    @classmethod
    def parse(cls, data):
        line, *rest = data[:-4].decode("latin-1").split("\r\n")
        pairs = [text.partition(":") for text in rest]
        return cls(line, [(name.strip(), value.strip()) for name, _, value in pairs])

    def get(self, name, default=""):
        return next((value for key, value in self.headers if key.lower() == name), default)

    def without(self, *names):
        self.headers = [(key, value) for key, value in self.headers if key.lower() not in names]
        return self

    def encode(self):
        lines = [self.line, *(f"{key}: {value}" for key, value in self.headers)]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


async def read_head(reader):
    return Head.parse(await reader.readuntil(b"\r\n\r\n"))


class Relay:
    """Passes requests on to a server; to be entered. What it does to them is up to `exchange`.

    Args:
        upstream: where the server is, such as ``http://127.0.0.1:5000``.

    """

    def __init__(self, upstream):
        parts = urlsplit(upstream)
        self._upstream = parts.hostname, parts.port
        self._path = parts.path
        self._writers = set()
        self._port = 0

    @property
    def url(self):
        return f"http://127.0.0.1:{self._port}{self._path}"

    async def exchange(self, head, reader, writer):
        """One request and its answer; False where the connection ends with it."""
        answer = await self.forward(head, reader)
        await self.give(await read_head(answer), answer, writer)
        return False

    async def forward(self, head, reader, pace=0.0, bad=None):
        """Sends a request on; gives what its answer is read from.

        Args:
            head: its head.
            reader: where its body comes from.
            pace: seconds for each byte.
            bad: the byte of its body in which a bit is flipped.

        """
        answer, out = await asyncio.open_connection(*self._upstream, limit=_LONGEST_HEAD)
        self._writers.add(out)
        head.without("connection", "expect").headers.append(("Connection", "close"))
        out.write(head.encode())
        length = left = int(head.get("content-length") or 0)
        while left:
            data = await reader.read(min(left, _PIECE))
            if not data:
                raise asyncio.IncompleteReadError(b"", left)
            start = length - left
            if bad is not None and start <= bad < start + len(data):
                data = data[: bad - start] + bytes([data[bad - start] ^ 4]) + data[bad - start + 1 :]
            left -= len(data)
            await asyncio.sleep(len(data) * pace)
            out.write(data)
            await out.drain()
        return answer

    async def give(self, head, answer, writer, pace=0.0, limit=None):
        """Passes an answer on, at most `limit` bytes of its body; whether that was all."""
        writer.write(head.without("connection").encode()[:-2] + b"Connection: close\r\n\r\n")
        sent = 0
        while data := await answer.read(_PIECE):
            if limit is not None and sent + len(data) > limit:
                writer.write(data[: limit - sent])
                await writer.drain()
                return False
            await asyncio.sleep(len(data) * pace)
            writer.write(data)
            sent += len(data)
            await writer.drain()
        return True

    @staticmethod
    def reset(writer):
        """Ends a connection as a machine does that has crashed and come back: with RST."""
        try:
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        except OSError:
            pass
        writer.transport.abort()

    # -- the thread ----------------------------------------------------------------------------------

    async def _client(self, reader, writer):
        self._writers.add(writer)
        try:
            while True:
                head = await read_head(reader)
                if head.get("expect").lower() == "100-continue":
                    writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                if not await self.exchange(head, reader, writer):
                    return
        except (asyncio.IncompleteReadError, asyncio.CancelledError, OSError):
            pass  # one of the two has gone
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _listen(self):
        self._server = await asyncio.start_server(
            self._client, "127.0.0.1", self._port, limit=_LONGEST_HEAD, reuse_address=True
        )
        self._port = self._server.sockets[0].getsockname()[1]

    async def _die(self):
        self._server.close()
        for writer in list(self._writers):
            self.reset(writer)
        self._writers.clear()

    def _call(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)

    def die(self):
        """From now on nobody listens, and every open connection is reset."""
        self._call(self._die())

    def revive(self):
        """Listens again, at the same port."""
        self._call(self._listen())

    def __enter__(self):
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="relay", daemon=True)
        self._thread.start()
        self._call(self._listen())
        return self

    async def _end(self):
        await self._die()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def __exit__(self, *_):
        self._call(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
