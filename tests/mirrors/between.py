"""A server in between a client and an object store: it counts what is given, and spoils, cuts or holds it on demand."""

import contextlib
import http.client
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


class Between:
    """Stands before the server at an endpoint; its own is `endpoint`.

    Attributes:
        given: (method, path, bytes of the body) of each answer.
        spoil: for the end of a path, in how many answers to come the last byte is wrong.
        cut: likewise, in how many the connection breaks off half way.
        refuse: likewise, how many are answered with 500.
        before: called with method and path before a request is passed on; may wait.
        most: how many requests for ranges were under way at once.

    """

    def __init__(self, endpoint):
        self.given, self.spoil, self.cut, self.refuse = [], {}, {}, {}
        self.before = lambda method, path: None
        self.now = self.most = 0
        self.lock = threading.Lock()
        between, target = self, urlsplit(endpoint)

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self):
                path = unquote(urlsplit(self.path).path)
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                ranged = "range" in self.headers
                with between.lock:
                    between.now += ranged
                    between.most = max(between.most, between.now)
                try:
                    self.pass_on(path, body)
                finally:
                    with between.lock:
                        between.now -= ranged

            def pass_on(self, path, body):
                between.before(self.command, path)
                if between.take(between.refuse, path):
                    self.send_response(500)
                    self.send_header("content-length", "0")
                    self.end_headers()
                    return
                onward = http.client.HTTPConnection(target.hostname, target.port)
                onward.request(self.command, self.path, body or None, dict(self.headers))
                answer = onward.getresponse()
                data = answer.read()
                onward.close()
                if data and between.take(between.spoil, path):
                    data = data[:-1] + bytes([data[-1] ^ 1])
                between.given.append((self.command, path, len(data)))
                self.send_response(answer.status)
                for name, value in answer.getheaders():
                    if name.lower() not in (
                        "connection",
                        "date",
                        "server",
                        "content-length",
                        "transfer-encoding",
                    ):
                        self.send_header(name, value)
                length = len(data) if self.command != "HEAD" else int(answer.getheader("content-length") or 0)
                self.send_header("content-length", str(length))
                self.end_headers()
                if between.take(between.cut, path):
                    self.wfile.write(data[: len(data) // 2])
                    self.close_connection = True
                    return
                self.wfile.write(data)

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer

            def log_message(self, *words):
                pass

            def handle(self):
                with contextlib.suppress(OSError):  # the client has gone
                    super().handle()

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05})
        self.thread.start()

    def take(self, wanted, path):
        with self.lock:
            for end, count in wanted.items():
                if path.endswith(end) and count > 0:
                    wanted[end] = count - 1
                    return True
        return False

    def bytes_of(self, end):
        """The bytes that were given of all objects whose path ends so."""
        return sum(count for method, path, count in self.given if method == "GET" and path.endswith(end))

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()
