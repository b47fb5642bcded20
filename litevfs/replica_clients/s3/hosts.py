"""Hosts of known providers in the place of a bucket: what bucket, region and endpoint they mean. Pure.

Source: Litestream 0.5, `s3/replica_client.go` (ParseHost), and `oss/replica_client.go` for Alibaba's. Providers that it
does not know, and a bucket as the first part of the path, follow the same pattern.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Host:
    """What a host in a replica URL means."""

    bucket: str  # "": the first part of the path
    region: str | None = None
    endpoint: str | None = None  # None: Amazon's
    force_path_style: bool = False


# (hosts, endpoint, whether it takes the bucket in the path only); "bucket" and "region" are groups of the first.
_PROVIDERS = [
    (r"(?:(?P<bucket>.+)\.)?s3(?:[.-](?P<region>[a-z]+-[a-z0-9-]+))?\.amazonaws\.com", None, False),
    (
        r"(?:(?P<bucket>.+)\.)?(?P<region>[^.]+)\.digitaloceanspaces\.com",
        "https://{region}.digitaloceanspaces.com",
        False,
    ),
    (r"(?:(?P<bucket>.+)\.)?s3\.(?P<region>[^.]+)\.backblazeb2\.com", "https://s3.{region}.backblazeb2.com", True),
    (r"(?:(?P<bucket>.+)\.)?s3\.filebase\.com", "https://s3.filebase.com", False),
    (r"(?:(?P<bucket>.+)\.)?s3\.(?P<region>[^.]+)\.scw\.cloud", "https://s3.{region}.scw.cloud", False),
    (
        r"(?P<bucket>.+)\.(?P<host>br-[^.]+\.storage\.[^.]+\.(?P<region>[^.]+)\.[^.]+\.neon\.tech)",
        "https://{host}",
        True,
    ),
    (r"(?:(?P<bucket>.+)\.)?s3\.wasabisys\.com", "https://s3.wasabisys.com", False),
    (r"(?:(?P<bucket>.+)\.)?s3\.(?P<region>[^.]+)\.wasabisys\.com", "https://s3.{region}.wasabisys.com", False),
    (r"(?:(?P<bucket>.+)\.)?(?P<region>[^.]+)\.linodeobjects\.com", "https://{region}.linodeobjects.com", False),
    (
        r"(?:(?P<bucket>.+)\.)?(?P<region>[^.]+)\.your-objectstorage\.com",
        "https://{region}.your-objectstorage.com",
        False,
    ),
    (r"(?:(?P<bucket>.+)\.)?(?P<region>[^.]+)\.vultrobjects\.com", "https://{region}.vultrobjects.com", False),
    (r"(?:(?P<bucket>.+)\.)?(?P<host>fly\.storage\.tigris\.dev|t3\.storage\.dev)", "https://{host}", False),
    (r"(?P<host>[0-9a-f]{32}(?:\.(?:eu|us|fedramp))?\.r2\.cloudflarestorage\.com)", "https://{host}", True),
    (r"(?P<host>storage\.googleapis\.com)", "https://{host}", True),
]
_KNOWN = [(re.compile(pattern, re.ASCII), endpoint, path_style) for pattern, endpoint, path_style in _PROVIDERS]
_OSS = re.compile(
    r"(?:(?P<bucket>[^.]+)\.)?(?:s3\.)?oss-(?P<region>.+?)(?P<internal>-internal)?\.aliyuncs\.com", re.ASCII
)
DEFAULT_OSS_REGION = "cn-hangzhou"
_AUTO_REGION_HOSTS = ("tigris.dev", "storage.dev", "r2.cloudflarestorage.com", "storage.googleapis.com")


def parse_host(netloc: str) -> Host:
    """What `netloc`, host and port of an `s3://` URL, means; any other name is a bucket of Amazon's."""
    host = netloc.lower()
    if host.startswith("arn:"):
        return Host(netloc)
    if ":" in netloc and ".com" not in host:
        return _parse_local(netloc)
    for pattern, endpoint, path_style in _KNOWN:
        match = pattern.fullmatch(host)
        if match is not None:
            groups = match.groupdict()
            region = groups.get("region") or ("auto" if host.endswith(_AUTO_REGION_HOSTS) else None)
            bucket = groups.get("bucket") or ""
            return Host(bucket, region, endpoint.format_map(groups) if endpoint else None, path_style)
    return Host(netloc)


def parse_oss_host(netloc: str) -> Host:
    """What the host of an `oss://` URL means: Alibaba's endpoint that speaks S3, which takes the bucket in the host."""
    match = _OSS.fullmatch(netloc.lower())
    bucket, region, internal = match.group("bucket", "region", "internal") if match else (netloc, None, None)
    region = region or DEFAULT_OSS_REGION
    return Host(bucket or "", region, f"https://s3.oss-{region}{internal or ''}.aliyuncs.com")


def _parse_local(netloc: str) -> Host:
    """`bucket.host:port`, or `host:port` with the bucket in the path, as MinIO is often reached: over plain HTTP."""
    bucket, _, rest = netloc.partition(".")
    if not rest or _is_address(netloc.rpartition(":")[0]):
        bucket, rest = "", netloc
    return Host(bucket, "us-east-1", f"http://{rest}", force_path_style=True)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True
