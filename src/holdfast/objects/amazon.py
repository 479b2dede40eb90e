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
        self._client = _client(objects)

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
            return getattr(self._client, method)(Bucket=self.bucket, **words, **more)

        return calls.begin(self.objects, work, name, operation, data, after)

    def ask(self, method: str, name: str, operation: str, **words: Any) -> Any:
        """The answer to a call without a body.

        Raises:
            StorageError: none came, or a refusal; its facts are `status` and `code`.

        """
        return self.begin(method, name, operation, **words).wait()


def _client(objects: Objects) -> Any:
    key = (os.getpid(), stores.environment())
    with _lock:
        client = _clients.get(key)
        if client is None:
            client = _connect(objects)
            _clients.clear()
            _clients[key] = client
    return client


def _connect(objects: Objects) -> Any:
    from botocore import UNSIGNED
    from botocore.config import Config

    found = stores.aws(objects.address)
    return found.session.create_client(
        "s3",
        region_name=found.region or "us-east-1",
        endpoint_url=found.endpoint or None,
        config=Config(
            # While a body is sent, this one bounds each piece.
            connect_timeout=stores.QUICK_SECONDS,
            read_timeout=calls.SILENT_SECONDS,
            retries={"total_max_attempts": 1},
            max_pool_connections=2 * AT_ONCE,
            signature_version=UNSIGNED if found.anonymous else None,
            s3={"addressing_style": "path"} if found.endpoint else None,
            ignore_configured_endpoint_urls=True,
            # Checksums go along as headers; as trailers, which is the default, older servers do not know them.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            tcp_keepalive=True,
        ),
    )


_lock = threading.Lock()
_clients: dict[tuple[int, int], Any] = {}


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
