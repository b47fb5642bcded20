"""S3 replica URLs: text to a checked `S3Location` and back. Does no I/O and makes no client.

`s3://bucket/path?endpoint=&region=&forcePathStyle=&skipVerify=&sseCustomerAlgorithm=&sseCustomerKey=&sseCustomerKeyMD5=`,
as Litestream 0.5 reads them, and `anonymous=`, `requestPayer=`, `storageClass=`, `sseKmsKeyId=`, `acl=`. A bucket may
be the ARN of an access point, or the host of a provider that has it (see `hosts`). `oss://bucket/path` is Alibaba's.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from litevfs.errors import ReplicaURLError
from litevfs.options import hint_if_option, nearest
from litevfs.replica_clients.layouts import HEX, LTX_FOLDER, Layout
from litevfs.replica_clients.location import clean_path
from litevfs.replica_clients.s3.hosts import Host, parse_host, parse_oss_host

_PARAMETERS = (
    "endpoint",
    "region",
    "forcePathStyle",
    "skipVerify",
    "sseCustomerAlgorithm",
    "sseCustomerKey",
    "sseCustomerKeyMD5",
    "anonymous",
    "requestPayer",
    "storageClass",
    "sseKmsKeyId",
    "acl",
)
_NOT_NEEDED = (
    "signPayload",
    "signAcceptEncoding",
    "requireContentMD5",
    "putObjectContentMD5",
    "concurrency",
    "partSize",
)
"""Litestream's parameters for what is always so here, or for its own uploads: accepted, without effect."""
_BY_FOLDED_NAME = {name.lower(): name for name in _PARAMETERS + _NOT_NEEDED}
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,62}", re.ASCII)
# `arn:aws:s3:<region>:<account>:accesspoint/<name>` or `arn:aws:s3-outposts:...:outpost/<id>/accesspoint/<name>`; `:`
# stands for `/` in either. Source: Amazon S3 user guide, "Using access points".
_ARN = re.compile(
    r"(arn:[^/:]+:s3[^/:]*:[^/:]*:[^/:]*:(?:outpost[/:][^/:]+[/:])?accesspoint[/:][^/]+)(?:/(.*))?", re.ASCII
)
_WORD = re.compile(r"[A-Za-z0-9_.:/-]{1,300}", re.ASCII)
_TRUE, _FALSE = ("true", "1", "t"), ("false", "0", "f", "")
_SSE_KEY_BYTES = 32  # AES-256


@dataclass(frozen=True, slots=True)
class SSECustomerKey:
    """A key of the user's own that S3 encrypts objects with (SSE-C)."""

    key_base64: str = field(repr=False)
    md5: str  # base64 of the key's MD5

    def headers(self) -> dict[str, str]:
        """The request headers that carry it."""
        prefix = "x-amz-server-side-encryption-customer-"
        return {f"{prefix}algorithm": "AES256", f"{prefix}key": self.key_base64, f"{prefix}key-MD5": self.md5}


@dataclass(frozen=True, slots=True)
class S3Location:
    """Where a replica lies in S3."""

    bucket: str  # a name, or the ARN of an access point
    path: str  # no slash at either end; "" is the root of the bucket
    endpoint: str | None = None  # scheme://host[:port][/path], None for AWS itself
    region: str | None = None
    force_path_style: bool = False
    skip_verify: bool = False
    sse: SSECustomerKey | None = None
    scheme: str = "s3"  # or "oss"
    anonymous: bool = False  # requests are not signed
    requester_pays: bool = False
    storage_class: str | None = None  # of what is written, as S3 names it
    kms_key_id: str | None = None  # of what is written
    acl: str | None = None  # of what is written, one of S3's canned ones

    @property
    def layout(self) -> Layout:
        """Where Litestream puts the files of such a replica."""
        return HEX if self.scheme == "s3" else LTX_FOLDER

    @property
    def write_headers(self) -> dict[str, str]:
        """The headers of written objects that the URL asks for."""
        headers = self.sse.headers() if self.sse else {}
        if self.storage_class:
            headers["x-amz-storage-class"] = self.storage_class
        if self.kms_key_id:
            headers["x-amz-server-side-encryption"] = "aws:kms"
            headers["x-amz-server-side-encryption-aws-kms-key-id"] = self.kms_key_id
        if self.acl:
            headers["x-amz-acl"] = self.acl
        return headers

    @property
    def prefix(self) -> str:
        """What every key of the replica starts with."""
        return f"{self.path}/" if self.path else ""

    @property
    def url(self) -> str:
        """The URL without the encryption key (its MD5 tells two keys apart); equal for equal locations."""
        parameters = {
            "endpoint": self.endpoint,
            "region": self.region,
            "forcePathStyle": _shown(self.force_path_style, default=self.endpoint is not None),
            "skipVerify": _shown(self.skip_verify, default=False),
            "sseCustomerKeyMD5": self.sse.md5 if self.sse else None,
            "anonymous": _shown(self.anonymous, default=False),
            "requestPayer": "requester" if self.requester_pays else None,
            "storageClass": self.storage_class,
            "sseKmsKeyId": self.kms_key_id,
            "acl": self.acl,
        }
        query = urlencode({name: value for name, value in parameters.items() if value is not None}, safe=":/")
        path = f"/{quote(self.path)}" if self.path else ""
        return f"{self.scheme}://{self.bucket}{path}" + (f"?{query}" if query else "")


def parse_s3_url(url: str, default_endpoint: str | None = None) -> S3Location:
    """The location `url` names; `default_endpoint` (LITESTREAM_S3_ENDPOINT) counts when the URL has none.

    Raises ReplicaURLError, whose message never repeats credentials or an encryption key.
    """
    parts = urlsplit(url)
    if "@" in parts.netloc:
        raise ReplicaURLError(
            "credentials do not belong in a replica URL",
            hint="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or use any other part of the AWS credential chain",
        )
    if parts.fragment:
        raise ReplicaURLError("a replica URL has no fragment", hint="write # in a path as %23")
    scheme = parts.scheme.lower()
    host, path = _host_and_path(parts.netloc, parts.path, scheme)
    parameters = _parameters(parts.query)
    named = _endpoint(parameters.get("endpoint")) or (host.endpoint or _endpoint(default_endpoint))
    return S3Location(
        bucket=host.bucket,
        path=path,
        endpoint=named,
        region=parameters.get("region") or host.region,
        force_path_style=_boolean(parameters, "forcePathStyle", default=_is_path_style(named, host)),
        skip_verify=_boolean(parameters, "skipVerify", default=False),
        sse=_sse(parameters),
        scheme=scheme,
        anonymous=_boolean(parameters, "anonymous", default=False),
        requester_pays=_requester_pays(parameters),
        storage_class=_word(parameters, "storageClass"),
        kms_key_id=_word(parameters, "sseKmsKeyId"),
        acl=_word(parameters, "acl"),
    )


def _is_path_style(endpoint: str | None, host: Host) -> bool:
    """A user's own endpoint takes the bucket in the path, as in Litestream; a provider's as the provider does."""
    return host.force_path_style if endpoint == host.endpoint else endpoint is not None


def _host_and_path(netloc: str, path: str, scheme: str) -> tuple[Host, str]:
    if netloc.startswith("arn:"):
        bucket, path = _bucket_and_path(netloc, path)
        return Host(bucket), path
    host = parse_host(netloc) if scheme == "s3" else parse_oss_host(netloc)
    if not host.bucket and netloc:  # the provider's host alone: the bucket comes first in the path
        bucket, _, path = path.strip("/").partition("/")
        host = replace(host, bucket=unquote(bucket))
    bucket, path = _bucket_and_path(host.bucket, path)
    return replace(host, bucket=bucket), path


def _requester_pays(parameters: Mapping[str, str]) -> bool:
    value = parameters.get("requestPayer", "")
    if value.lower() not in ("", "requester"):
        raise ReplicaURLError(f"requestPayer is not requester: {value!r}")
    return bool(value)


def _word(parameters: Mapping[str, str], name: str) -> str | None:
    value = parameters.get(name)
    if value and not _WORD.fullmatch(value):
        raise ReplicaURLError(f"{name} holds characters that a header cannot", hint="letters, digits and -_.:/")
    return value or None


def _bucket_and_path(netloc: str, path: str) -> tuple[str, str]:
    if netloc.startswith("arn:"):
        match = _ARN.fullmatch(netloc + path)
        if match is None:
            raise ReplicaURLError(
                f"not the ARN of an access point: {netloc}",
                hint="for example s3://arn:aws:s3:eu-west-1:123456789012:accesspoint/name/path",
            )
        return match[1], clean_path(match[2] or "")
    if netloc.endswith("--x-s3"):
        raise ReplicaURLError(
            f"directory bucket (S3 Express): {netloc}",
            hint="use a general purpose bucket: a directory bucket lists its keys in no order",
        )
    if not _BUCKET.fullmatch(netloc):
        hint = "a replica URL is s3://bucket/path, and a bucket's name has 3 to 63 letters, digits, dots and hyphens"
        if ":" in netloc:
            hint = "the host of a server goes into the query: s3://bucket/path?endpoint=http://host:port"
        raise ReplicaURLError(f"not a bucket name: {netloc!r}", hint=hint)
    return netloc, clean_path(path)


def _parameters(query: str) -> Mapping[str, str]:
    """The query by Litestream's names; `force-path-style` and the like are read too."""
    found: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        known = _BY_FOLDED_NAME.get(name.replace("-", "").lower())
        if known is None:
            raise ReplicaURLError(
                f"unknown parameter {name!r} in an S3 replica URL", hint=hint_if_option(name) or _nearest(name)
            )
        if known in found:
            raise ReplicaURLError(f"parameter {known!r} is given twice in an S3 replica URL")
        found[known] = value
    return found


def _nearest(name: str) -> str:
    near = nearest(name.replace("-", ""), _BY_FOLDED_NAME.values())
    return f"did you mean {near}?" if near else f"known are {', '.join(_PARAMETERS)}"


def _endpoint(text: str | None) -> str | None:
    if not text:
        return None
    bad = ReplicaURLError("not an S3 endpoint", hint="an endpoint is http://host:port or https://host")
    try:
        parts = urlsplit(text if "://" in text else f"https://{text}")
        has_host = bool(parts.hostname) and (parts.port or 1) >= 1
    except ValueError:  # half an IPv6 address, or a port that is no number
        raise bad from None
    if parts.scheme not in ("http", "https") or not has_host or "@" in parts.netloc or parts.query or parts.fragment:
        raise bad
    return f"{parts.scheme}://{parts.netloc.lower()}{parts.path.rstrip('/')}"


def _boolean(parameters: Mapping[str, str], name: str, *, default: bool) -> bool:
    if name not in parameters:
        return default
    value = parameters[name].lower()
    if value not in _TRUE + _FALSE:
        raise ReplicaURLError(f"{name} is neither true nor false: {value!r}")
    return value in _TRUE


def _sse(parameters: Mapping[str, str]) -> SSECustomerKey | None:
    algorithm = parameters.get("sseCustomerAlgorithm")
    text = parameters.get("sseCustomerKey")
    given_md5 = parameters.get("sseCustomerKeyMD5")
    if not text:
        if algorithm or given_md5:
            raise ReplicaURLError("sseCustomerKey is missing", hint="the key is base64 of 32 bytes, percent-encoded")
        return None
    if algorithm and algorithm != "AES256":
        raise ReplicaURLError(f"unknown sseCustomerAlgorithm {algorithm!r}", hint="S3 knows AES256")
    key = _base64(text)
    if len(key) != _SSE_KEY_BYTES:
        raise ReplicaURLError("sseCustomerKey is not base64 of 32 bytes")
    md5 = base64.b64encode(hashlib.md5(key, usedforsecurity=False).digest()).decode()
    if given_md5 and given_md5.replace(" ", "+") != md5:
        raise ReplicaURLError("sseCustomerKeyMD5 does not belong to sseCustomerKey")
    return SSECustomerKey(base64.b64encode(key).decode(), md5)


def _base64(text: str) -> bytes:
    try:
        # A plus sign that was not percent-encoded arrives as a space, which base64 does not have.
        return base64.b64decode(text.replace(" ", "+"), validate=True)
    except binascii.Error:
        return b""


def _shown(value: bool, *, default: bool) -> str | None:
    return None if value == default else str(value).lower()
