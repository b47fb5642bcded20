"""Signatures are those that botocore makes of the same request at the same moment."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import ReadOnlyCredentials
from hypothesis import given, settings
from hypothesis import strategies as st

from litevfs.replica_clients.s3.signing import signed

HOSTS = ["https://bucket.s3.eu-west-1.amazonaws.com", "http://127.0.0.1:9000", "http://[::1]:9000", "https://Host:443"]
QUERIES = ["", "uploads", "list-type=2&prefix=a%2Fb&start-after=a%2Fb%2F00", "partNumber=10&uploadId=x%3D&b=2&b=1"]
HEADERS = {
    "Range": "bytes=1-2",
    "x-amz-request-payer": "requester",
    "X-Amz-Meta-Litestream-Timestamp": "2026-01-02T03:04:05Z",
    "x-amz-server-side-encryption-customer-key": " a  b ",
    "Content-MD5": "abc=",
    "User-Agent": "litevfs",
    "If-None-Match": "*",
}


@settings(max_examples=60)
@given(
    st.sampled_from(["GET", "PUT", "POST", "DELETE", "HEAD"]),
    st.sampled_from(HOSTS),
    st.sampled_from(["/", "/bucket/db/0000/a.ltx", "/bucket/a%20b/~c%C3%A9/%2B"]),
    st.sampled_from(QUERIES),
    st.lists(st.sampled_from(sorted(HEADERS)), unique=True),
    st.binary(max_size=3),
    st.sampled_from([None, "a/token=="]),
)
def test_a_signature_is_that_of_botocore(method, host, path, query, names, body, token):
    url = f"{host}{path}" + (f"?{query}" if query else "")
    headers = {name: HEADERS[name] for name in names}
    credentials = ReadOnlyCredentials("an/access-key", "the-secret", token)
    ours = signed(method, url, headers, body, credentials, service="s3", region="eu-west-1", offset_s=3600.0)
    names_to_sign = [name for name in names if name.lower().startswith("x-amz-") or name == "Content-MD5"]
    theirs = _signed_by_botocore(
        AWSRequest(method, url, {name: headers[name] for name in names_to_sign}, data=body),
        credentials,
        ours["X-Amz-Date"],
    )
    assert ours == headers | theirs
    ahead_s = datetime.strptime(ours["X-Amz-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC) - datetime.now(UTC)
    assert ahead_s.total_seconds() == pytest.approx(3600, abs=600)


def _signed_by_botocore(request: AWSRequest, credentials: ReadOnlyCredentials, timestamp: str) -> dict[str, str]:
    signer = S3SigV4Auth(credentials, "s3", "eu-west-1")
    request.context["timestamp"] = timestamp
    signer._modify_request_before_signing(request)
    text = signer.string_to_sign(request, signer.canonical_request(request))
    signer._inject_signature_to_request(request, signer.signature(text, request))
    return dict(request.headers.items())
