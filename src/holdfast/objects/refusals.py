"""What an object store, or the way to it, says in refusal, in Holdfast's words: what, where, and what helps.

Nothing of the library's own text is passed on but a status and the store's code for the error: the rest may hold
what was signed, and with what.
"""

from __future__ import annotations

import errno
import re
from typing import NamedTuple

from holdfast.errors import HoldfastError, NotFoundError, StorageError
from holdfast.objects.urls import Address

_CODE = re.compile(r"<Code>([A-Za-z0-9]{1,60})</Code>|\"reason\": ?\"([A-Za-z0-9]{1,60})\"")
_STATUS = re.compile(r"non-2xx status code: (\d{3})|status code: (\d{3})|status: (\d{3})")
_KIND = re.compile(r"kind: (Connect|Timeout|Builder|Request|Decode|Body|Interrupted)\b")
_NAME = re.compile(r'Path "([^"\n]{1,1024})"')
_WORD = re.compile(r"[^A-Za-z0-9]")
_BOTOCORE = {
    "EndpointConnectionError": "Connect",
    "ConnectTimeoutError": "Connect",
    "ProxyConnectionError": "Connect",
    "SSLError": "Connect",
    "ReadTimeoutError": "Timeout",
    "ConnectionClosedError": "Interrupted",
    "HTTPClientError": "Interrupted",
    "ResponseStreamingError": "Interrupted",
}
"""What botocore's errors without an answer mean."""
_AZURE = {
    "ServiceRequestError": "Connect",
    "ServiceRequestTimeoutError": "Connect",
    "ServiceResponseError": "Interrupted",
    "ServiceResponseTimeoutError": "Timeout",
    "ReadTimeout": "Timeout",  # in older ones, within a ServiceResponseError
    "IncompleteReadError": "Interrupted",
    "HttpResponseError": "Decode",
    "DecodeError": "Decode",
}
"""The same for those of Microsoft's client."""

_PASSING = frozenset([408, 429, 500, 502, 503, 504])
_PASSING_CODES = frozenset(
    [
        *(
            "BadDigest",
            "InternalError",
            "RequestTimeout",
            "SlowDown",
            "Throttling",
            "XAmzContentSHA256Mismatch",
        ),
        *("Md5Mismatch", "InvalidOperation"),  # the second is what the emulator says of the first
    ]
)

_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or the role of this machine",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, GOOGLE_SERVICE_ACCOUNT, `gcloud auth application-default login`, or the account of this machine",
    "az": "AZURE_STORAGE_ACCOUNT_NAME with AZURE_STORAGE_ACCOUNT_KEY, AZURE_STORAGE_SAS_TOKEN, or AZURE_CLIENT_ID, "
    "AZURE_TENANT_ID and AZURE_CLIENT_SECRET",
}
_BUCKET_CODES = ("NoSuchBucket", "ContainerNotFound", "ContainerBeingDeleted")
_WRONG_KEYS = ("InvalidAccessKeyId", "SignatureDoesNotMatch", "AuthenticationFailed", "authError")
_OLD_KEYS = ("ExpiredToken", "TokenRefreshRequired", "RequestExpired", "InvalidToken")
_FULL = ("QuotaExceeded", "AccountBeingDisabled", "InsufficientStorage", "EntityTooLarge")


class Said(NamedTuple):
    """What an error of the library says: HTTP status (0 for none), the store's code, what failed on the way."""

    status: int
    code: str
    kind: str

    @classmethod
    def of(cls, error: BaseException) -> Said:
        if isinstance(error, HoldfastError):  # told already
            return cls(0, "", "Connect" if error.facts.get("may_pass") else "")
        if isinstance(error, TimeoutError):
            return cls(0, "", "Timeout")
        response = getattr(error, "response", None)
        if isinstance(response, dict):  # botocore's
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            return cls(status, _WORD.sub("", str(response.get("Error", {}).get("Code", "")))[:60], "")
        if type(error).__name__ in _BOTOCORE:
            return cls(0, "", _BOTOCORE[type(error).__name__])
        if type(error).__module__.startswith("azure."):
            status = getattr(error, "status_code", None) or 0
            code = getattr(error, "error_code", None) or ""
            inner = type(getattr(error, "inner_exception", None)).__name__
            return cls(
                status,
                _WORD.sub("", str(getattr(code, "value", code)))[:60],
                "" if status else _AZURE.get(inner, _AZURE.get(type(error).__name__, "")),
            )
        if type(error).__module__.startswith(
            "botocore."
        ):  # its way to the credentials failed, before any request
            return cls(401, type(error).__name__, "")
        text = str(error)
        status, code, kind = (pattern.search(text) for pattern in (_STATUS, _CODE, _KIND))
        if "BadScheme" in text:
            return cls(0, "", "BadScheme")
        if "redirect without LOCATION" in text:  # the library follows all others
            return cls(301, "", "")
        return cls(
            int(next(filter(None, status.groups()))) if status else 0,
            next(filter(None, code.groups())) if code else "",
            kind[1] if kind and not status else "",
        )

    @property
    def may_pass(self) -> bool:
        """Whether the same request may be answered otherwise, a little later."""
        return (
            self.broke_off or self.kind == "Connect" or self.status in _PASSING or self.code in _PASSING_CODES
        )

    @property
    def broke_off(self) -> bool:
        """Whether there was an answer, or a request, that did not come to its end."""
        return self.kind in ("Timeout", "Request", "Decode", "Body", "Interrupted")


def credentials_of(scheme: str) -> str:
    """Where the credentials for a kind of store are looked for."""
    return _CREDENTIALS[scheme]


def refusal(error: BaseException, address: Address, operation: str, name: str, server: str) -> HoldfastError:
    """The error to raise in the place of one of the library's.

    Args:
        error: the library's; one of Holdfast's is given back.
        address: the bucket and prefix.
        operation: what was tried, like "read".
        name: the object, relative to the address; "" for the whole.
        server: where the store was looked for, as it may be shown.

    """
    if isinstance(error, HoldfastError):
        return error
    said = Said.of(error)
    shown = f"{address.url}/{name}" if name else address.url
    kind = type(error).__name__
    if isinstance(error, FileNotFoundError) and said.code not in _BUCKET_CODES and operation != "write":
        return NotFoundError(f"There is no {shown}.", path=shown, candidates=[])
    number, why, advice = (
        _unlistable(str(error)) if kind == "InvalidPathError" else _reason(said, kind, address, server)
    )
    return StorageError(
        f"Cannot {operation} {shown}: {why}. {advice}".rstrip(),
        errno=number,
        path=shown,
        operation=operation,
        status=said.status or None,
        code=said.code or None,
        may_pass=said.may_pass,
    )


def _unlistable(text: str) -> tuple[int, str, str]:
    found = _NAME.search(text)
    which = f", {found[1]!r}" if found else ""
    why = f"an object there has a name that cannot be listed{which}"
    return (
        errno.EINVAL,
        f"{why}: it has an empty part, '.', '..' or a control character",
        "Next: delete or rename it with the tools of the store; no object of Holdfast's is named like that.",
    )


def _reason(said: Said, kind: str, address: Address, server: str) -> tuple[int, str, str]:
    scheme, bucket = address.scheme, address.bucket
    own = "container" if scheme == "az" else "bucket"
    if said.code in _BUCKET_CODES or kind == "FileNotFoundError":
        return (
            errno.ENOENT,
            f"there is no {own} {bucket} at {server}",
            f"Next: make it with the tools of the store, or correct the name; Holdfast makes no {own}s.",
        )
    if said.code in _OLD_KEYS:
        return errno.EACCES, f"the credentials have run out ({said.code})", "Next: renew them."
    if said.code == "RequestTimeTooSkewed":
        return errno.EACCES, "the clock of this machine is wrong (RequestTimeTooSkewed)", "Next: set it."
    if said.code in _WRONG_KEYS or kind == "UnauthenticatedError" or said.status == 401:
        return (
            errno.EACCES,
            f"the store does not accept the credentials ({said.code or said.status})",
            f"Next: check {_CREDENTIALS[scheme]}; and that they belong to {server}.",
        )
    if said.code in _FULL or said.status == 507:
        return (
            errno.EDQUOT,
            f"there is no room ({said.code or said.status})",
            "Next: free some, or keep fewer.",
        )
    if kind == "PermissionDeniedError" or said.status == 403:
        needed = f"they must allow to list, read, write and delete in the {own} {bucket}"
        return (
            errno.EACCES,
            f"the credentials do not allow it ({said.code or 'AccessDenied'})",
            f"Next: {needed}; check that they are those that are meant ({_CREDENTIALS[scheme]}).",
        )
    if said.code in ("PermanentRedirect", "AuthorizationHeaderMalformed") or said.status in (301, 307):
        return (
            errno.EREMOTE,
            f"the {own} {bucket} lies in another region",
            "Next: set AWS_REGION to its region.",
        )
    if said.kind == "BadScheme":
        return errno.EINVAL, f"{server} is asked without TLS", "Next: https://… as the endpoint."
    if said.kind == "Connect":
        return (
            errno.EHOSTUNREACH,
            f"nothing answers at {server}",
            "Next: check the network, the name of the server and its port.",
        )
    if said.kind == "Timeout":
        return errno.ETIMEDOUT, f"{server} did not answer in time", "Next: check the network; it may be slow."
    if said.status in (429, 503):
        return errno.EAGAIN, f"the store is overloaded ({said.code or said.status})", "Next: try again later."
    if said.status:
        detail = f"{said.status} {said.code}".strip()
        return errno.EIO, f"the store answered {detail}", ""
    return errno.EIO, f"the request failed on its way to {server} ({said.kind or kind})", ""
