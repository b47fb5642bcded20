"""Signature version 4 of a request to S3. Signs only headers that no hop may change.

Source: Amazon S3 API reference, "Authenticating Requests (AWS Signature Version 4)": the host and all `x-amz-*` have to
be signed. Proxies rewrite others (Google's rewrites Accept-Encoding), so those are not signed. botocore signs the same,
in four times the CPU: it makes the key of a day for each request, and goes by an `email.message` for the headers.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import time
from typing import NamedTuple
from urllib.parse import SplitResult, urlsplit

from litevfs.replica_clients.http.plain import DEFAULT_PORTS

_ALGORITHM = "AWS4-HMAC-SHA256"
_EMPTY_SHA256 = hashlib.sha256().hexdigest()


class Credentials(NamedTuple):
    """What a request is signed with."""

    access_key: str
    secret_key: str
    token: str | None = None  # of keys that are temporary

    def __repr__(self) -> str:
        return f"Credentials(access_key={self.access_key!r})"


def signed(
    method: str,
    url: str,
    headers: dict[str, str],
    body: bytes,
    credentials: Credentials,
    *,
    service: str,
    region: str,
    offset_s: float,
) -> dict[str, str]:
    """`headers` and the signature, valid for some minutes. `offset_s`: how far the server's clock is ahead of ours."""
    timestamp = _timestamp(int(time.time() + offset_s))
    body_hash = hashlib.sha256(body).hexdigest() if body else _EMPTY_SHA256
    headers = {**headers, "X-Amz-Date": timestamp, "X-Amz-Content-SHA256": body_hash}
    if credentials.token:
        headers["X-Amz-Security-Token"] = credentials.token
    what = tuple((name, value) for name, value in headers.items() if _is_signed(name))
    headers["Authorization"] = _authorization(method, url, what, body_hash, timestamp, credentials, region, service)
    return headers


@functools.lru_cache(maxsize=4)
def _timestamp(seconds: int) -> str:
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(seconds))


@functools.lru_cache(maxsize=64)
def _is_signed(name: str) -> bool:
    return (lower := name.lower()).startswith("x-amz-") or lower in ("content-md5", "host")


@functools.lru_cache(maxsize=64)
def _authorization(
    method: str,
    url: str,
    headers: tuple[tuple[str, str], ...],
    body_hash: str,
    timestamp: str,
    credentials: Credentials,
    region: str,
    service: str,
) -> str:
    """The header that signs these `headers`. Reads of one object that differ in their range share it for a second."""
    parts = urlsplit(url)
    values = {"host": _host(parts)}
    values.update((name.lower(), " ".join(value.split())) for name, value in headers)
    names = sorted(values)
    lines = [method, parts.path or "/", _query(parts.query), *(f"{name}:{values[name]}" for name in names)]
    request = "\n".join([*lines, "", ";".join(names), body_hash])
    day = timestamp[:8]
    scope = f"{day}/{region}/{service}/aws4_request"
    text = f"{_ALGORITHM}\n{timestamp}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
    signature = _hmac(_key(credentials.secret_key, day, region, service), text).hex()
    credential = f"{credentials.access_key}/{scope}"
    return f"{_ALGORITHM} Credential={credential}, SignedHeaders={';'.join(names)}, Signature={signature}"


@functools.lru_cache(maxsize=16)
def _key(secret_key: str, day: str, region: str, service: str) -> bytes:
    """What signs the requests of a day."""
    return functools.reduce(_hmac, (day, region, service, "aws4_request"), f"AWS4{secret_key}".encode())


def _hmac(key: bytes, text: str) -> bytes:
    return hmac.digest(key, text.encode(), "sha256")


def _query(query: str) -> str:
    pairs = sorted(pair.partition("=")[::2] for pair in query.split("&")) if query else []
    return "&".join(f"{name}={value}" for name, value in pairs)


def _host(parts: SplitResult) -> str:
    """The Host header that goes over the line."""
    host, port = parts.hostname or "", parts.port
    host = f"[{host}]" if ":" in host else host
    return host if port in (None, DEFAULT_PORTS.get(parts.scheme)) else f"{host}:{port}"
