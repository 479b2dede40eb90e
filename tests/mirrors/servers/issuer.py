"""Gives tokens, as Google's server does for a key, and as Google's machines do for their account."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Issuer:
    """A server for tokens: they are `token-1`, `token-2` and so on; to be entered.

    Attributes:
        given: how many were given.
        lives: seconds that each is valid for.
        flavor: of which cloud the machine is.
        refusals: (status, answer) of the next answers, which bring no token.
        asked: set with the first request.
        open: cleared, requests hang until it is set.

    """

    def __init__(self):
        self.given, self.lives, self.flavor, self.refusals = 0, 3600, "Google", []
        self.asked, self.open = threading.Event(), threading.Event()
        self.open.set()
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self):
                self.rfile.read(int(self.headers.get("content-length") or 0))
                issuer.asked.set()
                issuer.open.wait()
                status, said = issuer.refusals.pop(0) if issuer.refusals else (200, issuer.token())
                data = json.dumps(said).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.send_header("Metadata-Flavor", issuer.flavor)
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = answer

            def log_message(self, *words):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.host = f"127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    def token(self):
        self.given += 1
        return {
            "access_token": f"token-{self.given}",
            "expires_in": self.lives,
            "token_type": "Bearer",
            "issued_token_type": "urn:ietf:params:oauth:token-type:access_token",
        }

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.open.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
