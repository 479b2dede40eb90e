"""S3 by boto3's own client, for what obstore cannot ask: which parts of a file lie there already."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

from holdfast.objects import calls, stores
from holdfast.objects.access import Objects
from holdfast.objects.calls import Body, Call
from holdfast.objects.parts import AT_ONCE


class Amazon:
    """The bucket that some objects lie in, as boto3's client sees it: same place, same credentials, same limits.

    Args:
        objects: below which prefix; its check calls away whoever waits.

    """

    def __init__(self, objects: Objects) -> None:
        self.objects = objects
        self.bucket = objects.address.bucket
        self._client = self._connected()

    def key(self, name: str) -> str:
        return self.objects.address.key(name)

    def begin(
        self,
        method: str,
        name: str,
        operation: str,
        data: memoryview | None = None,
        after: Callable[[], None] = lambda: None,
        **words: Any,
    ) -> Call[Any]:
        """Begins a call.

        Args:
            method: the client's, such as ``upload_part``.
            name: the object that it is about.
            operation: what an error says was tried.
            data: the body.
            after: called when it has ended, and nobody reads the body any more.
            words: the method's arguments, beside those for the bucket and the body.

        """

        def work(body: Body | None) -> Any:
            more = {"Body": body} if body is not None else {}
            return self._request(getattr(self._client, method), Bucket=self.bucket, **words, **more)

        return calls.begin(self.objects, work, name, operation, data, after)

    def ask(self, method: str, name: str, operation: str, **words: Any) -> Any:
        """The answer to a call without a body.

        Raises:
            StorageError: none came, or a refusal; its facts are `status` and `code`.

        """
        return self.begin(method, name, operation, **words).wait()

    def _request(self, method: Callable[..., Any], **words: Any) -> Any:
        """One request, in a thread that may wait for it."""
        return method(**words)

    def _connected(self) -> Any:
        """The client of this process for what the environment says."""
        key, scheme = (os.getpid(), stores.environment()), self.objects.address.scheme
        with _lock:
            held = _clients.get(scheme)
            if held is None or held[0] != key:
                held = _clients[scheme] = (key, self._connect())
            return held[1]

    def _connect(self) -> Any:
        from botocore import UNSIGNED

        found = stores.aws(self.objects.address)
        return found.session.create_client(
            "s3",
            region_name=found.region or "us-east-1",
            endpoint_url=found.endpoint or None,
            config=config(
                signature_version=UNSIGNED if found.anonymous else None,
                s3={"addressing_style": "path"} if found.endpoint else None,
            ),
        )


def config(**more: Any) -> Any:
    """The client's settings: its limits, and words that every server understands."""
    from botocore.config import Config

    return Config(
        # While a body is sent, this one bounds each piece.
        connect_timeout=stores.QUICK_SECONDS,
        read_timeout=calls.SILENT_SECONDS,
        retries={"total_max_attempts": 1},
        max_pool_connections=2 * AT_ONCE,
        ignore_configured_endpoint_urls=True,
        # Checksums go along as headers; as trailers, which is the default, older servers do not know them.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        tcp_keepalive=True,
        **more,
    )


_lock = threading.Lock()
_clients: dict[str, tuple[tuple[int, int], Any]] = {}
"""By the kind of store: the client, and what it was made for."""


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
