"""Signature version 4 of a request to S3, by botocore. Signs only headers that no hop may change.

Source: Amazon S3 API reference, "Authenticating Requests (AWS Signature Version 4)": the host and all `x-amz-*` have to
be signed. Proxies rewrite others (Google's rewrites Accept-Encoding), so those are not signed.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from botocore.auth import SIGV4_TIMESTAMP, S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import ReadOnlyCredentials


class _Signer(S3SigV4Auth):
    """Signs with a given time."""

    def __init__(self, credentials: ReadOnlyCredentials, service: str, region: str, offset_s: float) -> None:
        super().__init__(credentials, service, region)
        self._offset_s = offset_s

    def add_auth(self, request: AWSRequest) -> None:
        # botocore's own method logs the signed text, with a session token in it.
        now = datetime.now(UTC) + timedelta(seconds=self._offset_s)
        request.context["timestamp"] = now.strftime(SIGV4_TIMESTAMP)
        self._modify_request_before_signing(request)  # type: ignore[attr-defined]  # the stubs leave it out
        text = self.string_to_sign(request, self.canonical_request(request))
        signature = self.signature(text, request)
        self._inject_signature_to_request(request, signature)  # type: ignore[attr-defined]  # the stubs leave it out


def signed(
    method: str,
    url: str,
    headers: dict[str, str],
    body: bytes,
    credentials: ReadOnlyCredentials,
    *,
    service: str,
    region: str,
    offset_s: float,
) -> dict[str, Any]:
    """`headers` and the signature, valid for some minutes. `offset_s`: how far the server's clock is ahead of ours."""
    request = AWSRequest(method, url, {n: value for n, value in headers.items() if _is_signed(n.lower())}, data=body)
    _Signer(credentials, service, region, offset_s).add_auth(request)
    return headers | dict(request.headers.items())


def _is_signed(name: str) -> bool:
    return name in ("host", "content-md5") or name.startswith("x-amz-")
