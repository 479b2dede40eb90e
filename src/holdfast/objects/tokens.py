"""Bearer tokens for Google Cloud Storage, from where Google's own tools find credentials, renewed before they run out.

Every client of that store is given the same ones. What a credentials file means, `google-auth` knows; the machine is
asked here, since that library asks it at length also where there is no machine of Google's.
"""

from __future__ import annotations

import errno
import http.client
import json
import os
import re
import threading
import time
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, NamedTuple

from holdfast.errors import StorageError
from holdfast.objects.refusals import credentials_of

SECONDS = 10.0
"""So long an answer to one request for a token may take."""
_EARLY = 360.0
"""So many seconds before its end a token is renewed; the library asks for a new one 300 before."""
_PAUSES = (0.2, 1.0, 3.0)
_MACHINE = "169.254.169.254"
"""By number: where nobody knows its name, to look that up may take half a minute."""
_MACHINE_SECONDS = 1.0
"""Within so many seconds a machine of Google's is reached; it is next door."""
_SCOPE = "https://www.googleapis.com/auth/devstorage.read_write"
_WORD = re.compile(r"[a-z_]{1,60}")
_HEADER = re.compile(r"[!-~]+")


class Token(NamedTuple):
    """A token, and when it runs out, in seconds of the clock; None for never."""

    text: str
    end: float | None


class Tokens:
    """The tokens that one place gives.

    Args:
        fetch: asks for a new one, which may take `SECONDS` several times.
        fixed: whether it always gives the same.

    """

    def __init__(self, fetch: Callable[[], Token], *, fixed: bool = False) -> None:
        self._fetch, self._fixed = fetch, fixed
        self._lock = threading.Lock()
        self._held: Token | None = None
        self._renewal = 0.0

    @property
    def fresh(self) -> bool:
        """Whether a token is at hand that need not be renewed yet."""
        held = self._held
        return held is not None and (held.end is None or time.time() < self._renewal)

    def token(self) -> Token:
        """A token that is valid as far as is known; others wait while one thread asks for it.

        Raises:
            StorageError: none is given.

        """
        if (held := self._held) is not None and self.fresh:
            return held
        with self._lock:
            held = self._held
            if held is not None and self.fresh:
                return held
            try:
                found = self._fetch()
            except StorageError:
                if held is not None and held.end is not None and time.time() < held.end:
                    return held  # it was only to be renewed in time
                raise
            self._held = found
            if found.end is not None:
                # Where a token lives shorter than that, it is renewed at half of its life.
                left = found.end - time.time()
                self._renewal = found.end - min(_EARLY, left / 2)
            return found

    def refused(self, token: Token) -> bool:
        """Forgets a token that the store did not accept; whether another one can be had."""
        with self._lock:
            if self._held == token and not self._fixed:
                self._held = None
        return not self._fixed

    def __call__(self) -> dict[str, Any]:
        """The token as obstore takes it."""
        text, end = self.token()
        return {"token": text, "expires_at": None if end is None else datetime.fromtimestamp(end, UTC)}


def find() -> Tokens | None:
    """The tokens by what the environment and files say; nothing is asked of anybody yet.

    Returns:
        None where credentials lie in a file and `google-auth` is not installed to read it, and where the file says
        that none are needed.

    Raises:
        StorageError: a file cannot be read, or means nothing.

    """
    if text := os.environ.get("GOOGLE_BEARER_TOKEN"):
        if not _HEADER.fullmatch(
            text
        ):  # no client can send it, and either says so in its own way, after a while
            raise _none("GOOGLE_BEARER_TOKEN has a space, a line break or a letter beyond ASCII in it")
        return Tokens(lambda: Token(text, None), fixed=True)
    info = _written()
    if info is None:
        return Tokens(_of_machine)
    if info.get("disable_oauth"):
        return None
    try:
        import google.auth.transport.requests as transport
    except ImportError:
        return None
    credentials, problem = None, ""
    try:
        credentials = _credentials(info)
    except Exception as error:
        problem = type(error).__name__
    # Outside of the except block: the library's error may quote the file.
    if credentials is None:
        raise _none(f"the credentials file means nothing ({problem})")
    request = transport.Request()

    def bounded(
        url: str, method: str = "GET", body: Any = None, headers: Any = None, timeout: Any = None, **more: Any
    ) -> Any:
        """One request of the library's, which may ask for two minutes."""
        return request(
            url=url,
            method=method,
            body=body,
            headers=headers,
            timeout=min(timeout or SECONDS, SECONDS),
            **more,
        )

    return Tokens(lambda: _of_file(credentials, bounded))


# -- from files ----------------------------------------------------------------------------------------


def _written() -> dict[str, Any] | None:
    """The credentials that a file or the environment holds; None where there are none."""
    first = os.environ.get
    path = first("GOOGLE_SERVICE_ACCOUNT") or first("GOOGLE_SERVICE_ACCOUNT_PATH")
    text, kind = first("GOOGLE_SERVICE_ACCOUNT_KEY"), {"type": "service_account"}
    if path and text:
        raise _none("GOOGLE_SERVICE_ACCOUNT and GOOGLE_SERVICE_ACCOUNT_KEY are both set")
    if not path and not text:
        path, kind = first("GOOGLE_APPLICATION_CREDENTIALS"), {}
    if not path and not text:
        place = first("CLOUDSDK_CONFIG") or os.path.join(os.path.expanduser("~"), ".config", "gcloud")
        path = os.path.join(place, "application_default_credentials.json")
        if not os.path.isfile(path):
            return None
    problem = ""
    try:
        if not text:
            with open(path or "", encoding="utf-8") as file:
                text = file.read()
        info = json.loads(text)
        if isinstance(info, dict):
            return {**kind, **info}
    except OSError as error:
        problem = f" ({error.strerror or type(error).__name__})"
    except ValueError:
        pass
    shown = path or "GOOGLE_SERVICE_ACCOUNT_KEY"
    raise _none(f"{shown} is no credentials file{problem}")


def _credentials(info: dict[str, Any]) -> Any:
    import google.auth
    import google.auth.credentials
    import google.oauth2.credentials
    import google.oauth2.service_account

    match info.get("type"):
        case "service_account":
            return google.oauth2.service_account.Credentials.from_service_account_info(info, scopes=[_SCOPE])
        case "authorized_user":
            return google.oauth2.credentials.Credentials.from_authorized_user_info(info)
    with warnings.catch_warnings():
        # It warns of files from strangers; this one is named by whoever runs us.
        warnings.simplefilter("ignore", DeprecationWarning)
        # Without scopes at first: with them some kinds would ask the network for a project already.
        found, _ = google.auth.load_credentials_from_dict(info)
    return google.auth.credentials.with_scopes_if_required(found, [_SCOPE])


def _of_file(credentials: Any, request: Callable[..., Any]) -> Token:
    for pause in (*_PAUSES, None):
        problem, passes = "", False
        try:
            credentials.refresh(request)
        except Exception as error:
            passes = type(error).__name__ == "TransportError" or bool(getattr(error, "retryable", False))
            problem = _said(error)
        # Outside of the except block: the library's error quotes the answer.
        if not problem:
            end = credentials.expiry
            return Token(credentials.token, None if end is None else end.replace(tzinfo=UTC).timestamp())
        if not passes:
            raise _none(f"Google's server gives none for the credentials: {problem}")
        if pause is None:
            break
        time.sleep(pause)
    raise StorageError(
        f"No token for Google Cloud Storage: Google's server for them does not answer ({problem}). Next: check the "
        f"network.",
        errno=errno.EHOSTUNREACH,
        operation="ask for a token for",
        may_pass=True,
    )


def _said(error: BaseException) -> str:
    """The word for what is wrong, such as `invalid_grant`, from an answer which may hold more."""
    for said in error.args:
        if isinstance(said, dict) and _WORD.fullmatch(str(said.get("error", ""))):
            return str(said["error"])
    return type(error).__name__


# -- from the machine ----------------------------------------------------------------------------------


def _of_machine() -> Token:
    """The token of the account that a machine of Google's has."""
    why = "there are no credentials, and this is no machine of Google's"
    if os.environ.get("NO_GCE_CHECK", "").lower() == "true":
        raise _none("there are no credentials, and NO_GCE_CHECK is set")
    # What stands for the machine in a container may begin to listen a little later than the container.
    for pause in (*(_PAUSES if _is_googles() else ()), None):
        answer = _ask_machine()
        if isinstance(answer, Token):
            return answer
        if answer is not None:
            why = f"this machine gives none ({answer})"
        if pause is not None:
            time.sleep(pause)
    raise _none(why)


def _ask_machine() -> Token | int | None:
    """The machine's token, or the status of its answer in refusal; None where no such machine answers."""
    first = os.environ.get
    host = first("GCE_METADATA_HOST") or first("GCE_METADATA_ROOT") or first("GCE_METADATA_IP") or _MACHINE
    way = http.client.HTTPConnection(host, timeout=_MACHINE_SECONDS)
    try:
        way.connect()
        way.sock.settimeout(SECONDS)
        way.request(
            "GET",
            "/computeMetadata/v1/instance/service-accounts/default/token",
            headers={"Metadata-Flavor": "Google"},
        )
        answer = way.getresponse()
        if answer.getheader("Metadata-Flavor") != "Google":
            return None  # other clouds' machines answer at that address as well
        if answer.status != http.client.OK:
            return answer.status
        said = json.loads(answer.read(1 << 20))
        return Token(str(said["access_token"]), time.time() + float(said["expires_in"]))
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
        return None
    finally:
        way.close()


def _is_googles() -> bool:
    try:
        with open("/sys/class/dmi/id/product_name", encoding="ascii", errors="replace") as file:
            return file.read(100).startswith("Google")
    except OSError:
        return False


def _none(why: str) -> StorageError:
    return StorageError(
        f"No token for Google Cloud Storage: {why}. Next: set {credentials_of('gs')}.",
        errno=errno.EACCES,
        operation="ask for a token for",
    )
