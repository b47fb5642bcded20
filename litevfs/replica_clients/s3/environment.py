"""What AWS's environment variables say, for processes that only they configure, such as functions and containers.

botocore finds the same, but loading it takes as much CPU as the rest of opening a replica; `chain` asks it for more.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from litevfs.replica_clients.s3.signing import Credentials
from litevfs.texts import expand_home

_get = os.environ.get
_FILES = {"AWS_CONFIG_FILE": "~/.aws/config", "AWS_SHARED_CREDENTIALS_FILE": "~/.aws/credentials"}
_PROFILES = ("AWS_PROFILE", "AWS_DEFAULT_PROFILE")
_ADDRESSES = ("AWS_ENDPOINT_URL", "AWS_USE_", "AWS_S3_")
"""Variables that begin so change the addresses of services."""
_REGION = re.compile(r"(us|eu|ap|sa|ca|me|af|il|mx)-[a-z]+-\d+")
"""Regions below amazonaws.com: those of AWS's first partition (botocore's `partitions.json`)."""
_BUCKET = re.compile(r"(?!.*--)[a-z0-9][a-z0-9-]{1,61}[a-z0-9]")
"""Buckets whose names can begin a host name; directory buckets, which have servers of their own, have two hyphens in it
(Amazon S3 User Guide, bucket naming rules)."""
_GLOBAL_REGION = "us-east-1"


def usual_keys() -> Credentials | None:
    """AWS_* keys that do not expire."""
    key, secret = _get("AWS_ACCESS_KEY_ID"), _get("AWS_SECRET_ACCESS_KEY")
    if not key or not secret or _get("AWS_CREDENTIAL_EXPIRATION"):
        return None
    return Credentials(key, secret, _get("AWS_SECURITY_TOKEN") or _get("AWS_SESSION_TOKEN") or None)


def other_keys(scheme: str) -> Credentials | None:
    """Alibaba's or LITESTREAM_* keys, with a session token if they are temporary; AWS_* keys win over the latter."""
    if scheme == "oss" and _get("OSS_ACCESS_KEY_ID") and _get("OSS_ACCESS_KEY_SECRET"):
        return Credentials(_get("OSS_ACCESS_KEY_ID", ""), _get("OSS_ACCESS_KEY_SECRET", ""), _get("OSS_SESSION_TOKEN"))
    if _get("AWS_ACCESS_KEY_ID"):
        return None
    key, secret = _get("LITESTREAM_ACCESS_KEY_ID"), _get("LITESTREAM_SECRET_ACCESS_KEY")
    token = _get("LITESTREAM_SESSION_TOKEN") or _get("AWS_SESSION_TOKEN")
    return Credentials(key, secret, token or None) if key and secret else None


def is_all() -> bool:
    """Whether AWS is configured by variables alone: there is no file, and no profile of one is asked for."""
    return not any(map(_get, _PROFILES)) and not any(path.exists() for path in _files())


def _files() -> Iterator[Path]:
    for variable, usual in _FILES.items():
        yield expand_home(os.path.expandvars(_get(variable) or usual))


def region() -> str | None:
    """The region that a variable names."""
    return _get("AWS_DEFAULT_REGION")


def certificates() -> str | None:
    """The file of authorities that a variable names."""
    return _get("AWS_CA_BUNDLE")


def bucket_url(bucket: str, region: str) -> str | None:
    """The address of a bucket of Amazon S3 where it is the usual one."""
    if any(name.startswith(_ADDRESSES) for name in os.environ):
        return None
    if not _BUCKET.fullmatch(bucket) or not _REGION.fullmatch(region):
        return None
    host = f"{bucket}.s3.amazonaws.com" if region == _GLOBAL_REGION else f"{bucket}.s3.{region}.amazonaws.com"
    return f"https://{host}/"
