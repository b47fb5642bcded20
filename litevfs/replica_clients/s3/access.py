"""How to reach a bucket: credentials, endpoint, region and signatures, all from botocore. Sends nothing itself.

The URLs of reads and listings are cut from URLs that botocore presigns, so its rules for endpoints, access points and
addressing styles hold for every request; only botocore's machinery around a request is left out.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import parse_qs, quote, urljoin, urlsplit, urlunsplit

import botocore.session
from botocore import UNSIGNED, exceptions
from botocore.config import Config
from botocore.credentials import Credentials, ReadOnlyCredentials, RefreshableCredentials
from botocore.parsers import ResponseParserError

from litevfs.concurrency.calls import SharedCall
from litevfs.errors import StorageError, StoragePermissionError, TransientStorageError
from litevfs.replica_clients.s3.errors import (
    CREDENTIALS_HINT,
    MESSAGE_LIMIT,
    NO_S3_HINT,
    STALE_CREDENTIALS,
    error_from_answer,
)
from litevfs.replica_clients.s3.signing import signed
from litevfs.replica_clients.s3.url import S3Location

logger = logging.getLogger(__name__)

DEFAULT_REGION = "us-east-1"
_USER_AGENT = f"litevfs botocore/{botocore.__version__}"
ADVISORY_S, MANDATORY_S = 15 * 60, 10 * 60
"""So long before credentials expire, botocore looks for others, and no longer uses the present ones."""
_LEAST_OFFSET_S = 5.0  # servers accept a smaller difference
_CREDENTIALS_SERVICE = "the service that gives out credentials"
_CREDENTIAL_ERRORS = (
    exceptions.CredentialRetrievalError,
    exceptions.MetadataRetrievalError,
    exceptions.NoAuthTokenError,
    exceptions.NoCredentialsError,
    exceptions.PartialCredentialsError,
    exceptions.ProfileNotFound,
    exceptions.SSOError,
    exceptions.TokenRetrievalError,
)


@dataclass(frozen=True, slots=True)
class _Resolved:
    """How to reach a bucket; replaced as a whole when the region turns out to differ."""

    credentials: Any  # they refresh themselves; None: requests are not signed
    bucket_url: str
    object_url: str  # ends with the prefix of the location
    region: str  # of the signature
    service: str  # of the signature


class S3Access:
    """Access to the bucket of `location`. The first use, in any thread, finds out everything once.

    When the server says that credentials are no longer valid, this looks for others. Explicit keys win over
    AWS_* in the environment, those over LITESTREAM_*, those over the rest of the AWS credential chain; `timeout_s`
    bounds each wait for a service of that chain. An `anonymous` location needs none, and its requests are not signed.
    """

    def __init__(
        self,
        location: S3Location,
        access_key_id: str | None,
        secret_access_key: str | None,
        *,
        timeout_s: float,
    ) -> None:
        self._location = location
        self._keys = (access_key_id, secret_access_key, None) if access_key_id and secret_access_key else None
        self._region = location.region
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._used: tuple[ReadOnlyCredentials, ...] = ()  # the last ones that requests were signed with, newest last
        self._look = SharedCall(self._look_for_credentials, "litevfs-credentials")
        self._session: botocore.session.Session | None = None
        self._resolved: _Resolved | None = None
        self._client: Any = None
        self._home: _Resolved | None = None  # where the bucket was before a redirect
        self._offset_s = 0.0  # how far the server's clock is ahead

    @property
    def endpoint(self) -> str:
        """The name of the server in errors before the first request."""
        return self._location.endpoint or "Amazon S3"

    def bucket_url(self) -> str:
        """The URL of a listing, without its query."""
        return self._resolve().bucket_url

    def object_url(self, key: str) -> str:
        """The URL of the object `key`, which lies below the location's prefix and has plain characters."""
        return self._resolve().object_url + key.removeprefix(self._location.prefix)

    def credentials(self, deadline: float | None = None) -> ReadOnlyCredentials | None:
        """The credentials to sign with now, None for no signature; refreshed if possible when they are about to expire.

        Their source may hang: with a `deadline` (`time.monotonic()`, seconds) a separate thread looks for them, and the
        caller waits for it until then, and only if there are no valid ones. Raises StorageTimeoutError.
        """
        if self._location.anonymous:
            return None
        resolved = self._resolved
        if deadline is None or (resolved is not None and not _expire_within(resolved.credentials, ADVISORY_S)):
            return self._look_for_credentials()
        is_urgent = resolved is None or not self._used or _expire_within(resolved.credentials, MANDATORY_S)
        try:
            return self._look.result(max(0.0, deadline - time.monotonic()) if is_urgent else 0.0)
        except TransientStorageError:
            if is_urgent:
                raise
            return self._used[-1]

    def _look_for_credentials(self) -> ReadOnlyCredentials:
        resolved = self._resolve()
        with self.translated(endpoint=_CREDENTIALS_SERVICE):
            try:
                credentials: ReadOnlyCredentials = resolved.credentials.get_frozen_credentials()
            except RuntimeError as exc:  # botocore's error for new credentials that have expired
                raise StoragePermissionError(f"no credentials: {exc}", hint=CREDENTIALS_HINT) from exc
        if credentials != next(iter(self._used[-1:]), None):
            self._used = (*self._used[-1:], credentials)
        return credentials

    def renew(self, refused: ReadOnlyCredentials | None, deadline: float | None = None) -> bool:
        """Look for other credentials by `deadline`, as the server refused these; whether there are others now."""
        if refused is None:
            return False
        if self._used[-1:] == (refused,):  # otherwise another thread has renewed them
            self._forget()
        return self.credentials(deadline) != refused

    def _forget(self) -> None:
        self._session = self._resolved = self._client = self._home = None

    def headers(
        self, method: str, url: str, headers: dict[str, str], body: bytes, credentials: ReadOnlyCredentials | None
    ) -> dict[str, Any]:
        """`headers`, the headers of every request, and the signature, valid for some minutes."""
        headers = {"User-Agent": _USER_AGENT, "Accept-Encoding": "identity", **headers}
        if self._location.requester_pays:
            headers["x-amz-request-payer"] = "requester"
        if credentials is None:
            return headers
        resolved = self._resolve()
        with self.translated():
            return signed(
                method,
                url,
                headers,
                body,
                credentials,
                service=resolved.service,
                region=resolved.region,
                offset_s=self._offset_s,
            )

    def set_clock(self, date: str | None) -> bool:
        """Sign by the server's time, from a Date header, from now on; returns whether that changes the clock."""
        try:
            offset_s = parsedate_to_datetime(date or "").timestamp() - time.time()
        except ValueError:
            return False
        if abs(offset_s - self._offset_s) < _LEAST_OFFSET_S:
            return False
        logger.warning(
            "the clock here differs from that of %s by %.0f s: signing by the latter", self.endpoint, offset_s
        )
        self._offset_s = offset_s
        return True

    def follow(self, url: str, target: str) -> str | None:
        """The URL that a redirect of `url` leads to, also for later requests; None if it must not lead there.

        Signatures and session tokens go where the redirect leads, so never from TLS to plain text.
        """
        resolved, there = self._resolve(), urljoin(url, target)
        old, new = urlsplit(url), urlsplit(there)
        if (
            new.scheme not in ("http", "https")
            or (old.scheme == "https") > (new.scheme == "https")
            or "@" in new.netloc
        ):
            return None
        bucket_path = urlsplit(resolved.bucket_url).path
        rest = old.path.removeprefix(bucket_path)
        if old.path.startswith(bucket_path) and new.path.endswith(rest):
            base = f"{new.scheme}://{new.netloc}{new.path[: len(new.path) - len(rest)]}"
            self._move(resolved, base)
        return urlunsplit((new.scheme, new.netloc, new.path, new.query or old.query, ""))

    def _move(self, resolved: _Resolved, bucket_url: str) -> None:
        with self._lock:
            if self._resolved is resolved and resolved.object_url.startswith(resolved.bucket_url):
                object_url = bucket_url + resolved.object_url.removeprefix(resolved.bucket_url)
                self._home = self._home or resolved
                self._resolved = replace(resolved, bucket_url=bucket_url, object_url=object_url)

    def return_home(self) -> None:
        """Use the URL's own address again, as the address from a redirect fails."""
        with self._lock:
            if self._home is not None:
                self._resolved, self._home = self._home, None

    @property
    def region(self) -> str:
        """The region requests are signed for."""
        return self._resolve().region

    def use_region(self, region: str) -> None:
        """Sign for `region` from now on."""
        with self._lock:
            if self._resolved is None or self._resolved.region != region:
                self._region, self._resolved, self._client, self._home = region, None, None, None
                logger.info("bucket %s is in region %s", self._location.bucket, region)

    def certificates(self) -> bool | str:
        """Which authorities to trust: False for no check, a path, or True for the usual ones."""
        if self._location.skip_verify:
            return False
        with self.translated():
            return _new_session(self._timeout_s).get_config_variable("ca_bundle") or True

    def redacted(self, text: str) -> str:
        """`text` without any secret: a server may repeat a request in an error."""
        secrets: list[str | None] = list(self._keys[1:]) if self._keys else []
        if self._location.sse:
            secrets.append(self._location.sse.key_base64)
        for used in self._used:  # not the present ones: to get them can fail, and this is for messages of failures
            secrets += [used.access_key, used.secret_key, used.token]
        for secret in secrets:
            if secret:
                text = text.replace(secret, "***")
        return text

    @contextmanager
    def translated(self, key: str | None = None, *, endpoint: str | None = None) -> Iterator[None]:
        """Turn botocore's errors in this block into errors of ours; `endpoint` is the server of its requests."""
        try:
            yield
        except exceptions.ClientError as exc:
            error, meta = exc.response.get("Error", {}), exc.response.get("ResponseMetadata", {})
            code = str(error.get("Code", ""))
            if code in STALE_CREDENTIALS:
                self._forget()
            raise error_from_answer(
                meta.get("HTTPStatusCode", 0),
                "" if code.isdecimal() else code,  # a number is the status of an answer without an S3 error
                self.redacted(str(error.get("Message", ""))),
                meta.get("HTTPHeaders", {}),
                endpoint or self.endpoint,
                key=key,
            ) from exc
        except _CREDENTIAL_ERRORS as exc:
            raise StoragePermissionError(f"no credentials: {exc}", key=key, hint=CREDENTIALS_HINT) from exc
        except (exceptions.ConnectionError, exceptions.HTTPClientError) as exc:
            # All requests to the bucket itself go over our own transport.
            kind = StorageError if isinstance(exc, exceptions.SSLError) else TransientStorageError
            raise kind(f"{_CREDENTIALS_SERVICE} does not answer: {self.redacted(str(exc))}", key=key) from exc
        except ResponseParserError as exc:  # not a BotoCoreError
            message = f"{self.endpoint} gave no answer of an S3 server: {self.redacted(str(exc))[:MESSAGE_LIMIT]}"
            raise StorageError(message, key=key, hint=NO_S3_HINT) from exc
        except exceptions.BotoCoreError as exc:
            raise StorageError(f"cannot ask {self.endpoint}: {self.redacted(str(exc))}", key=key) from exc

    def _resolve(self) -> _Resolved:
        resolved = self._resolved
        if resolved is None:
            with self._lock, self.translated(endpoint=_CREDENTIALS_SERVICE):
                resolved = self._resolved
                if resolved is None:
                    resolved = self._resolved = self._newly_resolved()
        return resolved

    def _newly_resolved(self) -> _Resolved:
        credentials = None if self._location.anonymous else self._find_credentials()
        location, bucket = self._location, self._location.bucket
        if location.endpoint and location.force_path_style and not bucket.startswith("arn:"):
            # Needs no botocore client. To make one takes as long as the rest of opening a replica.
            bucket_url = f"{location.endpoint.rstrip('/')}/{bucket}"
            object_url = f"{bucket_url}/{quote(location.prefix, safe='/~')}"
            return _Resolved(credentials, bucket_url, object_url, self._region_name(), "s3")
        client = self._get_client()
        bucket_url, scope = _url_and_scope(client, "list_objects_v2", Bucket=bucket)
        object_url, _ = _url_and_scope(client, "get_object", Bucket=bucket, Key=f"{location.prefix}x")
        if not scope:
            return _Resolved(credentials, bucket_url, object_url.removesuffix("x"), self._region_name(), "s3")
        # A credential is <access key>/<date>/<region>/<service>/aws4_request, and an access key may have slashes.
        _, _, region, service, _ = scope.rsplit("/", 4)
        return _Resolved(credentials, bucket_url, object_url.removesuffix("x"), region, service)

    def _find_credentials(self) -> Any:
        keys = self._keys or _environment_keys(self._location.scheme) or _usual_keys()
        credentials = Credentials(*keys) if keys else self._get_session().get_credentials()
        if credentials is None:
            raise exceptions.NoCredentialsError
        return credentials

    def _get_client(self) -> Any:
        """A botocore client, which knows the addresses of buckets. The caller holds the lock."""
        client = self._client
        if client is None:
            session = self._get_session()
            keys = self._keys or _environment_keys(self._location.scheme)
            client = session.create_client(
                "s3",
                endpoint_url=self._location.endpoint,
                region_name=self._region_name(),
                aws_access_key_id=keys[0] if keys else None,
                aws_secret_access_key=keys[1] if keys else None,
                config=_config(path_style=self._location.force_path_style, anonymous=self._location.anonymous),
            )
            self._client = client
        return client

    def _get_session(self) -> botocore.session.Session:
        """The one session, so that there is one set of credentials. The caller holds the lock."""
        session = self._session
        if session is None:
            session = self._session = _new_session(self._timeout_s)
        return session

    def _region_name(self) -> str:
        configured = self._region or self._get_session().get_config_variable("region") or os.environ.get("AWS_REGION")
        return str(configured or DEFAULT_REGION)


def _expire_within(credentials: Any, seconds: int) -> bool:
    return isinstance(credentials, RefreshableCredentials) and bool(credentials.refresh_needed(seconds))


def _url_and_scope(client: Any, operation: str, **parameters: str) -> tuple[str, str]:
    url, _, query = client.generate_presigned_url(operation, Params=parameters).partition("?")
    return url, next(iter(parse_qs(query).get("X-Amz-Credential", ())), "")


def _environment_keys(scheme: str) -> tuple[str, str, str | None] | None:
    """Alibaba's or LITESTREAM_* keys, with a session token if they are temporary; botocore finds AWS_*."""
    get = os.environ.get
    if scheme == "oss" and get("OSS_ACCESS_KEY_ID") and get("OSS_ACCESS_KEY_SECRET"):
        return get("OSS_ACCESS_KEY_ID", ""), get("OSS_ACCESS_KEY_SECRET", ""), get("OSS_SESSION_TOKEN")
    if get("AWS_ACCESS_KEY_ID"):
        return None
    key, secret = get("LITESTREAM_ACCESS_KEY_ID"), get("LITESTREAM_SECRET_ACCESS_KEY")
    token = get("LITESTREAM_SESSION_TOKEN") or get("AWS_SESSION_TOKEN")
    return (key, secret, token or None) if key and secret else None


def _usual_keys() -> tuple[str, str, str | None] | None:
    """AWS_* keys that do not expire: botocore would find the same, but to make its session takes 15 ms of CPU."""
    get = os.environ.get
    key, secret = get("AWS_ACCESS_KEY_ID"), get("AWS_SECRET_ACCESS_KEY")
    if not key or not secret or get("AWS_CREDENTIAL_EXPIRATION"):
        return None
    return key, secret, get("AWS_SECURITY_TOKEN") or get("AWS_SESSION_TOKEN") or None


def _config(*, path_style: bool, anonymous: bool) -> Config:
    return Config(
        signature_version=UNSIGNED if anonymous else "s3v4",
        # "auto" would presign for the global endpoint, which answers for new buckets with a redirect.
        s3={"addressing_style": "path" if path_style else "virtual"},
    )


def _new_session(timeout_s: float) -> botocore.session.Session:
    session = botocore.session.Session()
    session.set_default_client_config(Config(connect_timeout=timeout_s, read_timeout=timeout_s))
    session.register_component("data_loader", _shared_loader())
    return session


@functools.cache
def _shared_loader() -> Any:
    """botocore's description of S3, read once per process: it makes the second client five times as fast."""
    return botocore.session.Session().get_component("data_loader")
