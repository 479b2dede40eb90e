"""The library's own objects for a bucket, from what the environment says: where it is, how one is let in.

Credentials come from where the other tools of each store find theirs, and go nowhere else.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, NamedTuple

from holdfast.errors import HoldfastError, StorageError, UsageError
from holdfast.objects import tokens
from holdfast.objects.refusals import credentials_of
from holdfast.objects.tokens import Tokens
from holdfast.objects.urls import Address, redacted
from holdfast.objects.waiting import aside

CONNECT_SECONDS = 5.0
QUICK_SECONDS, QUICK_RETRIES = 20.0, 15.0
"""For what is small: seconds for one request, and seconds after which a request that failed is not begun again."""
BULK_SECONDS, BULK_RETRIES = 120.0, 60.0
"""The same for a part of a large file, 16 MiB or more."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 10.0
# botocore renews what runs out within ten minutes; the library asks again five minutes before this is over.
_CREDENTIALS_SECONDS = 600.0
_RELEVANT = ("AWS_", "GOOGLE_", "AZURE_", "AZURITE_", "GCE_", "NO_GCE_", "CLOUDSDK_", "MSI_", "IDENTITY_")


async def _at_once() -> None:
    """There is nothing to prepare."""


class Stores(NamedTuple):
    """A bucket twice: for small requests, and for large ones, which have more time."""

    quick: Any
    bulk: Any
    server: str
    """Where it is, as it may be shown."""
    ready: Callable[[], Awaitable[None]] = _at_once
    """Awaited before each request: what the library would otherwise ask of us where nobody can be called away."""


_refused = 0
"""How often credentials were refused in this process."""


def environment() -> int:
    """Changes when what the environment says of object stores does, or when credentials may have been renewed."""
    relevant = sorted(item for item in os.environ.items() if item[0].startswith(_RELEVANT))
    return hash((_refused, *relevant))


def heed(failure: HoldfastError) -> HoldfastError:
    """The same; where credentials were refused, the next connection looks for them anew, in their files, say."""
    global _refused
    _refused += failure.facts.get("errno") == errno.EACCES
    return failure


def connect(address: Address) -> Stores:
    """The bucket of an address. Nothing is asked of it yet.

    Raises:
        UsageError: a library is not installed.
        StorageError: there are no credentials, or the settings cannot be used.

    """
    try:
        import obstore.store  # noqa: F401
    except ImportError as error:
        raise _not_installed(address, error) from None
    make, server, *more = {"s3": _s3, "gs": _gs, "az": _az}[address.scheme](address)
    problem: str | None = None
    try:
        return Stores(make(QUICK_SECONDS, QUICK_RETRIES), make(BULK_SECONDS, BULK_RETRIES), server, *more)
    except HoldfastError:
        raise
    except Exception as error:
        problem = type(error).__name__
    # Outside of the except block: the library's error may quote a secret, and would be shown as the context.
    raise StorageError(
        f"The settings for {address.url} in the environment cannot be used ({problem}). "
        f"Next: check {credentials_of(address.scheme)}.",
        path=address.url,
        operation="connect to",
        errno=errno.EINVAL,
    )


def _not_installed(address: Address, error: ImportError) -> UsageError:
    return UsageError(
        f"{address.url} needs {error.name or 'a library'}, which is not installed. "
        f"Next: pip install 'holdfast[{address.scheme}]'",
        path=address.url,
    )


def _options(seconds: float, retries: float, *, http: bool) -> dict[str, Any]:
    """The limits of one request: all that may wait is bounded."""
    return {
        "client_options": {
            "connect_timeout": timedelta(seconds=CONNECT_SECONDS),
            "timeout": timedelta(seconds=seconds),
            "allow_http": http,
        },
        "retry_config": {
            "max_retries": 20,
            "retry_timeout": timedelta(seconds=retries),
            "backoff": {
                "init_backoff": timedelta(seconds=_FIRST_PAUSE),
                "max_backoff": timedelta(seconds=_LONGEST_PAUSE),
                "base": 2,
            },
        },
    }


def _plain(url: str) -> bool:
    return url.lower().startswith("http://")


def _truth(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("1", "true", "yes", "on")


def _first(*names: str) -> str:
    return next((value for name in names if (value := os.environ.get(name))), "")


def _checked(endpoint: str, address: Address) -> str:
    """An endpoint that the library can take; at some others it panics, which is shown and may end the process."""
    if endpoint and not re.match(r"https?://[^/?#\s]*[^/?#\s:@]", endpoint, re.IGNORECASE):
        raise StorageError(
            f"Cannot use {address.url}: {redacted(endpoint)!r} is no endpoint. Expected https://HOST:PORT or "
            f"http://HOST:PORT. Next: correct the variable or the profile that names it (docs/mirrors.md).",
            path=address.url,
            operation="connect to",
            errno=errno.EINVAL,
        )
    return endpoint


def _unbroken(address: Address, *names: str) -> None:
    for name in names:
        if re.search(r"\s", os.environ.get(name, "")):  # obstore panics at it, or the signature is wrong
            raise StorageError(
                f"Cannot use {address.url}: {name} has a space or a line break in it. Next: set it without.",
                path=address.url,
                operation="connect to",
                errno=errno.EINVAL,
            )


class Aws(NamedTuple):
    """What the environment and the files of AWS say: who asks, and whom.

    Attributes:
        session: botocore's, with the credentials.
        region: "" where none is set.
        endpoint: "" for Amazon's own.
        anonymous: whether requests are not signed.

    """

    session: Any
    region: str
    endpoint: str
    anonymous: bool


def aws(address: Address) -> Aws:
    """Who asks for an address in S3, and whom; the same for every library.

    Raises:
        UsageError: a library is not installed.
        StorageError: there are no credentials.

    """
    try:
        import botocore.session
    except ImportError as error:
        raise _not_installed(address, error) from None
    endpoint = _first("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
    anonymous = _truth("AWS_SKIP_SIGNATURE")
    _unbroken(address, "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
    problem: str | None = None
    try:
        session = botocore.session.get_session()
        region = session.get_config_variable("region")
        endpoint = endpoint or session.get_scoped_config().get("endpoint_url") or ""
        if not anonymous and session.get_credentials() is None:
            problem = "there are none"
    except Exception as error:
        problem = f"{type(error).__name__}: {error}" if type(error).__name__ == "ProfileNotFound" else ""
        problem = problem or type(error).__name__
    if problem is not None:
        raise StorageError(
            f"Cannot use {address.url}: no AWS credentials ({problem}). Next: set {credentials_of('s3')}; "
            f"for a bucket that is open to all, AWS_SKIP_SIGNATURE=true.",
            path=address.url,
            operation="connect to",
            errno=errno.EACCES,
        )
    return Aws(session, region or "", _checked(endpoint, address), anonymous)


def _s3(address: Address) -> tuple[Any, ...]:
    from obstore.store import S3Store

    found = aws(address)
    try:
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError as error:
        raise _not_installed(address, error) from None
    config: Any = {}
    more: dict[str, Any] = {}
    if not found.anonymous:
        ttl = timedelta(seconds=_CREDENTIALS_SECONDS)
        more["credential_provider"] = Boto3CredentialProvider(found.session, ttl=ttl)
    if found.region:
        config["region"] = found.region
    if found.endpoint:
        config["endpoint"] = found.endpoint

    def make(seconds: float, retries: float) -> Any:
        options = _options(seconds, retries, http=_plain(found.endpoint))
        return S3Store(address.bucket, config=config, **more, **options)

    return make, redacted(found.endpoint) or f"Amazon S3 ({found.region or 'us-east-1'})"


class Google(NamedTuple):
    """What the environment and files say of Google's store: who asks, and whom.

    Attributes:
        tokens: None where the library has to find out by itself.
        endpoint: "" for Google's own.

    """

    tokens: Tokens | None
    endpoint: str


_held: dict[tuple[int, int], tuple[Tokens | None]] = {}
"""By process and environment: the one thing that was found."""


def google(address: Address) -> Google:
    """Who asks for an address in Google's store, and whom; the same for every library.

    Raises:
        StorageError: what holds the credentials means nothing.

    """
    endpoint = _checked(_first("GOOGLE_BASE_URL", "STORAGE_EMULATOR_HOST"), address)
    key = (os.getpid(), environment())
    held = _held.get(key)
    if held is None:
        held = (tokens.find(),)
        _held.clear()
        _held[key] = held
    return Google(held[0], endpoint)


def _gs(address: Address) -> tuple[Any, ...]:
    from obstore.store import GCSStore

    found = google(address)
    config: Any = {"base_url": found.endpoint} if found.endpoint else {}
    given = found.tokens
    more: dict[str, Any] = {} if given is None else {"credential_provider": given}

    async def ready() -> None:
        if given is not None and not given.fresh:
            await aside(given.token)

    def make(seconds: float, retries: float) -> Any:
        options = _options(seconds, retries, http=_plain(found.endpoint))
        return GCSStore(address.bucket, config=config, **more, **options)

    return make, redacted(found.endpoint) or "Google Cloud Storage", ready


class Azure(NamedTuple):
    """What the environment says of Azure.

    Attributes:
        url: of the account, below which its containers are; "" where it is not told.
        account: its name.
        key: "" where there is none.
        sas: a signature that somebody gave, as a query; "" where there is none.
        emulator: whether it is the emulator, as the environment says.

    """

    url: str
    account: str
    key: str
    sas: str
    emulator: bool


_EMULATOR = ("http://127.0.0.1:10000", "devstoreaccount1")
# Printed in the emulator's documentation: no secret.
_EMULATOR_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


def azure(address: Address) -> Azure:
    """Where an address in Azure is, and the secrets that stand in the environment; obstore reads the same.

    Raises:
        StorageError: the endpoint is none, or a token cannot be sent.

    """
    _unbroken(address, "AZURE_STORAGE_TOKEN")
    emulator = _truth("AZURE_STORAGE_USE_EMULATOR") or _truth("AZURE_USE_EMULATOR")
    account = _first("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_ACCOUNT_NAME")
    key = _first("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_ACCESS_KEY", "AZURE_STORAGE_MASTER_KEY")
    sas = _first("AZURE_STORAGE_SAS_TOKEN", "AZURE_STORAGE_SAS_KEY")
    if emulator:
        account = account or _EMULATOR[1]
        url = f"{_checked(_first('AZURITE_BLOB_STORAGE_URL'), address) or _EMULATOR[0]}/{account}"
        key = key or ("" if sas else _EMULATOR_KEY)
    else:
        url = _checked(_first("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"), address)
        if account and not url and not _truth("AZURE_USE_FABRIC_ENDPOINT"):
            url = f"https://{account}.blob.core.windows.net"
    return Azure(url, account, key, sas, emulator)


def _az(address: Address) -> tuple[Any, ...]:
    from obstore.store import AzureStore

    found = azure(address)

    def make(seconds: float, retries: float) -> Any:
        http = found.emulator or _plain(found.url)
        return AzureStore(address.bucket, **_options(seconds, retries, http=http))

    own = not found.url or found.url.endswith(".blob.core.windows.net")
    return make, f"Azure ({found.account or 'no account named'})" if own else redacted(found.url)
