"""Servers in processes of their own, which end with the tests, however those end."""

import os
import random
import select
import signal
import socket
import subprocess
import tempfile
import time

import pytest

CACHE = os.path.join(
    os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache"), "holdfast-tests"
)
"""Where `fetch.sh` puts what is not installed."""

# It ends the server when its own input ends: also when these tests are killed, interrupted or out of time.
_GUARD = """trap "" INT HUP; exec 3<&0; "$@" </dev/null 3<&- & server=$!
{ cat <&3 >/dev/null; kill -KILL $server; } 2>/dev/null & wait $server"""


class Process:
    """A server that tells by a line of its output that it is ready.

    Args:
        command: what starts it.
        ready: a word of the line by which it says that it can be asked; the line is in `said`.
        itself: whether it ends by itself when its input does.
        environ: further variables.

    """

    def __init__(self, command, ready, *, itself=False, environ=None):
        self._errors = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            command if itself else ["sh", "-c", _GUARD, "guard", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, **(environ or {})},
            start_new_session=True,
            text=True,
            bufsize=1,
        )
        self.said = self._await(ready)

    def _await(self, ready, patience=60):
        end, lines = time.monotonic() + patience, []
        while time.monotonic() < end and self._process.poll() is None:
            if select.select([self._process.stdout], [], [], 0.1)[0]:
                line = self._process.stdout.readline()
                lines.append(line)
                if ready in line:
                    return line
        self.stop()
        self._errors.seek(0)
        pytest.fail(f"{self._process.args} did not start:\n{''.join(lines)}{self._errors.read()[-2000:]}")
        return None

    def stop(self):
        self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._process.stdout.close()


def free_ports(number):
    """The first of so many free ports, below those that the system gives to connections."""
    while True:
        first = random.SystemRandom().randrange(20000, 32000 - number)
        try:
            for port in range(first, first + number):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first
