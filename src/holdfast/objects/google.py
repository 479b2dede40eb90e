"""Google Cloud Storage by boto3's client: its XML interface has S3's words for multipart uploads, with a token.

What is different, its headers, is changed on the way there and back.
"""

from __future__ import annotations

import os
from typing import Any

from holdfast.errors import UsageError
from holdfast.objects import stores
from holdfast.objects.access import Objects
from holdfast.objects.amazon import Amazon, config
from holdfast.objects.refusals import Said
from holdfast.objects.urls import Address

_GOOGLES = "https://storage.googleapis.com"
_META = {"x-amz-meta-": "x-goog-meta-"}
_AMAZONS = ("x-amz-", "amz-sdk-")
"""Google knows these headers only in requests that are signed in Amazon's way."""


def reachable(address: Address) -> bool:
    """Whether there is such a client, and a token for it."""
    try:
        import botocore  # noqa: F401
    except ImportError:
        return False
    return stores.google(address).tokens is not None


class Google(Amazon):
    """The bucket that some objects lie in, at Google's.

    Args:
        objects: below which prefix, and `reachable`; its check calls away whoever waits.

    """

    def __init__(self, objects: Objects) -> None:
        tokens, self._endpoint = stores.google(objects.address)
        if tokens is None:
            raise UsageError(f"{objects.url} has no token for this client.", path=objects.url)
        self._tokens = tokens
        super().__init__(objects)

    def _request(self, method: Any, **words: Any) -> Any:
        """One request; a second one with a new token where that of the first was refused."""
        token = self._tokens.token()
        try:
            return method(**words)
        except Exception as error:
            if Said.of(error).status != 401 or not self._tokens.refused(token):
                raise
        if "Body" in words:
            words["Body"].seek(0)
        return method(**words)

    def _connect(self) -> Any:
        import botocore.session
        from botocore import UNSIGNED

        tokens = self._tokens
        # Nothing that is set for Amazon applies here: neither a profile nor what its files say.
        nowhere = {"config_file": os.devnull, "credentials_file": os.devnull, "profile": None}
        session = botocore.session.Session(
            session_vars={name: (None, None, value, None) for name, value in nowhere.items()}
        )
        client = session.create_client(
            "s3",
            region_name="auto",
            endpoint_url=self._endpoint or _GOOGLES,
            config=config(
                signature_version=UNSIGNED,
                s3={"addressing_style": "path"},
                use_dualstack_endpoint=False,
                use_fips_endpoint=False,
            ),
        )

        def let_in(request: Any, **_: Any) -> None:
            headers = request.headers
            for name, value in list(headers.items()):
                for amazons, googles in _META.items():
                    if name.lower().startswith(amazons):
                        headers[googles + name[len(amazons) :]] = value
                if name.lower().startswith(_AMAZONS):
                    del headers[name]
            headers["Authorization"] = f"Bearer {tokens.token().text}"

        def understand(response_dict: Any, **_: Any) -> None:
            headers = response_dict["headers"]
            for name, value in list(headers.items()):
                for amazons, googles in _META.items():
                    if name.lower().startswith(googles):
                        headers[amazons + name[len(googles) :]] = value

        client.meta.events.register("before-send.s3", let_in)
        client.meta.events.register_first("before-parse.s3", understand)
        return client
