"""Azure's blobs by Microsoft's own client, for what obstore cannot ask: which blocks of a file lie there already.

Who asks is decided by obstore alone: a signature that it makes, without a request where it has the account's key,
tells what it has. Where that is a token (of a client's secret, a workload, a machine, the command line), Microsoft's
client gets URLs that obstore signed, each for one blob and one kind of request.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Literal, NamedTuple, TypeVar
from urllib.parse import parse_qs, quote, unquote, urlsplit

from holdfast.objects import calls, stores
from holdfast.objects.access import Objects
from holdfast.objects.calls import Body, Call
from holdfast.objects.parts import AT_ONCE
from holdfast.objects.waiting import Request

_SIGNED = timedelta(days=1)
"""So long a signed URL lets its holder in. A file that takes longer is gone on with by a new attempt."""
_SIGNATURE = re.compile(r"(\bsig=)[^&\s\"']+")
_Method = Literal["GET", "PUT", "DELETE"]
_T = TypeVar("_T")


class _Connection(NamedTuple):
    """Microsoft's client for an account.

    Attributes:
        url: of the account.
        settings: for each client that is made beside it.
        service: the client; None where obstore signs each URL.

    """

    url: str
    settings: dict[str, Any]
    service: Any


class Azure:
    """The container that some objects lie in, as Microsoft's client sees it: same place, same credentials.

    Attributes:
        objects: below which prefix; its check calls away whoever waits.

    """

    def __init__(self, objects: Objects, connection: _Connection) -> None:
        self.objects, self._connection = objects, connection
        self._signed: dict[tuple[str, str], Any] = {}

    @classmethod
    def of(cls, objects: Objects) -> Azure | None:
        """The container; None where Microsoft's client is not installed, or obstore's credentials are not for it."""
        key = (os.getpid(), stores.environment())
        with _lock:
            connection = _connections.get(key)
        if connection is None:
            connection = _connect(objects)
            if connection is None:
                return None
            with _lock:
                _connections.clear()
                _connections[key] = connection
        return cls(objects, connection)

    def key(self, name: str) -> str:
        return self.objects.address.key(name)

    def blob(self, method: _Method, name: str) -> Any:
        """The client for an object, and one kind of request; None where obstore cannot sign for it."""
        bucket = self.objects.address.bucket
        if self._connection.service is not None:
            return self._connection.service.get_blob_client(bucket, self.key(name))
        if (method, name) not in self._signed:
            from azure.core.credentials import AzureSasCredential
            from azure.storage.blob import BlobClient

            signed, (url, settings, _) = _sign(self.objects, method, self.key(name)), self._connection
            self._signed[method, name] = signed and BlobClient(
                url, bucket, self.key(name), credential=AzureSasCredential(urlsplit(signed).query), **settings
            )
        return self._signed[method, name]

    def container(self) -> Any:
        """The client for the container, which lists; None where obstore cannot sign for that."""
        bucket = self.objects.address.bucket
        if self._connection.service is not None:
            return self._connection.service.get_container_client(bucket)
        from azure.core.credentials import AzureSasCredential
        from azure.storage.blob import ContainerClient

        query = urlsplit(_sign(self.objects, "GET", "") or "").query
        if "l" not in parse_qs(query).get("sp", [""])[0]:
            return None  # what some versions of obstore sign allows to read alone
        url, settings, _ = self._connection
        return ContainerClient(url, bucket, credential=AzureSasCredential(query), **settings)

    def begin(
        self,
        work: Callable[[Body | None], _T],
        name: str,
        operation: str,
        data: memoryview | None = None,
        after: Callable[[], None] = lambda: None,
    ) -> Call[_T]:
        """Begins a call of one of the clients, see `calls.begin`."""
        return calls.begin(self.objects, work, name, operation, data, after)

    def ask(self, work: Callable[[], _T], name: str, operation: str) -> _T:
        """The answer to a call without a body.

        Raises:
            StorageError: none came, or a refusal; its facts are `status` and `code`.

        """
        return self.begin(lambda _: work(), name, operation).wait()


def _connect(objects: Objects) -> _Connection | None:
    try:
        from azure.core.credentials import AzureNamedKeyCredential, AzureSasCredential
        from azure.storage.blob import BlobServiceClient
    except ImportError:
        return None
    found = stores.azure(objects.address)
    if not found.url or os.environ.get("AZURE_STORAGE_ENCRYPTION_KEY"):
        return None
    url, settings = _sign(objects, "PUT", objects.address.key("any")), _settings()
    credential: Any
    if url is None:  # it cannot sign with what is a signature itself
        if not found.sas:
            return None
        credential = AzureSasCredential(_query(found.sas))
    elif not _below(url, f"{found.url.rstrip('/')}/{objects.address.bucket}/"):
        return None  # what is set is not known here
    elif "skoid=" in url or not found.key:
        return _Connection(found.url, settings, None)
    else:
        credential = AzureNamedKeyCredential(found.account, found.key)
    return _Connection(found.url, settings, BlobServiceClient(found.url, credential=credential, **settings))


def _sign(objects: Objects, method: _Method, key: str) -> str | None:
    """A URL for one kind of request, with obstore's credentials; None where it makes none."""

    async def work() -> str | None:
        import obstore

        try:
            store: Any = objects._stores.quick
            return str(await obstore.sign_async(store, method, key, _SIGNED))
        except Exception:  # it may quote a secret, and nothing is lost but continuation
            return None

    with contextlib.suppress(TimeoutError):
        return Request(work, stores.QUICK_SECONDS + stores.QUICK_RETRIES, objects._check).wait()
    return None


def _below(url: str, other: str) -> bool:
    """Whether a URL lies below another one, however that was written."""
    one, two = urlsplit(url), urlsplit(other)
    ports = [parts.port or {"http": 80, "https": 443}.get(parts.scheme) for parts in (one, two)]
    same = one.scheme == two.scheme and one.hostname == two.hostname and ports[0] == ports[1]
    return same and one.path.startswith(two.path)


def _query(sas: str) -> str:
    """A signature in a query, whether it was given encoded or not."""
    pairs = (pair.partition("=") for pair in unquote(sas.strip().lstrip("?")).split("&") if pair.strip())
    return "&".join(f"{name.strip()}={quote(value.strip(), safe='')}" for name, _, value in pairs)


def _settings() -> dict[str, Any]:
    import requests
    from azure.core.pipeline.transport import RequestsTransport
    from requests.adapters import HTTPAdapter

    session = requests.Session()
    session.auth = _as_it_is  # else ~/.netrc may replace what was signed
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(pool_maxsize=4 * AT_ONCE))
    # It shows what it sends at the level DEBUG, and a signature in a URL lets anybody in.
    logging.getLogger("urllib3.connectionpool").addFilter(_without_signature)
    return {
        # While a body is sent, the first bounds each piece.
        "transport": RequestsTransport(
            session=session,
            session_owner=False,
            connection_timeout=stores.QUICK_SECONDS,
            read_timeout=calls.SILENT_SECONDS,
        ),
        "retry_total": 0,
        "permit_redirects": False,
        "logger": _silent,  # else each request is ten lines at the level INFO
    }


def _as_it_is(request: _T) -> _T:
    return request


def _without_signature(record: logging.LogRecord) -> bool:
    text = record.getMessage()
    if "sig=" in text:
        record.msg, record.args = _SIGNATURE.sub(r"\1…", text), ()
    return True


_silent = logging.Logger("holdfast.azure", logging.CRITICAL + 1)  # noqa: LOG001 (nobody else finds it)
_lock = threading.Lock()
_connections: dict[tuple[int, int], _Connection] = {}


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
