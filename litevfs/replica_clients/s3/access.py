"""How to reach a bucket: credentials, endpoint, region and signatures, all of them botocore's. Sends nothing itself.

The URLs of reads and listings are cut from URLs that botocore presigns, so its rules for endpoints, access points and
addressing styles hold for every request; only botocore's machinery around a request is left out.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, quote

import botocore.session
from botocore import exceptions
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
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
from litevfs.replica_clients.s3.url import S3Location

logger = logging.getLogger(__name__)

DEFAULT_REGION = "us-east-1"
_USER_AGENT = f"litevfs botocore/{botocore.__version__}"
ADVISORY_S, MANDATORY_S = 15 * 60, 10 * 60
"""So long before credentials expire, botocore looks for others; and takes those that there are for no good any more."""
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
    """How to reach a bucket; replaced as a whole when the region turns out to be another."""

    credentials: Any  # refresh themselves
    bucket_url: str
    object_url: str  # ends with the prefix of the location
    region: str  # of the signature
    service: str  # of the signature


class S3Access:
    """Access to the bucket of `location`. Everything is found out at the first use, once, from whatever thread.

    Credentials are looked for again when the server says that those it got are no good any more. `send` gets each HTTP
    request botocore itself makes (writes, deletes), as its `before-send` event has it. Explicit keys win over AWS_* in
    the environment, those over LITESTREAM_*, those over the rest of the AWS credential chain; `timeout_s` bounds each
    wait for a service of that chain.
    """

    def __init__(
        self,
        location: S3Location,
        send: Callable[..., Any],
        access_key_id: str | None,
        secret_access_key: str | None,
        *,
        timeout_s: float,
    ) -> None:
        self._location = location
        self._send = send
        self._keys = (access_key_id, secret_access_key) if access_key_id and secret_access_key else None
        self._region = location.region
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._used: tuple[ReadOnlyCredentials, ...] = ()  # the last ones that requests were signed with, newest last
        self._look = SharedCall(self._look_for_credentials, "litevfs-credentials")
        self._session: botocore.session.Session | None = None
        self._resolved: _Resolved | None = None
        self._client: Any = None

    @property
    def client(self) -> Any:
        """A botocore S3 client."""
        self.credentials()  # the client signs with the same, and `redacted` has to know them
        with self._lock, self.translated():
            return self._get_client()

    @property
    def endpoint(self) -> str:
        """What errors call the server before a request was made."""
        return self._location.endpoint or "Amazon S3"

    def bucket_url(self) -> str:
        """Where a listing is asked for; the query is to be added."""
        return self._resolve().bucket_url

    def object_url(self, key: str) -> str:
        """Where the object `key` lies, one of those below the prefix of the location, named by plain characters."""
        return self._resolve().object_url + key.removeprefix(self._location.prefix)

    def credentials(self, deadline: float | None = None) -> ReadOnlyCredentials:
        """What to sign with now; refreshed where they can be and are about to expire.

        What gives them out may hang: with a `deadline` (`time.monotonic()`, seconds) they are looked for in a thread of
        its own, which is waited for until then, and only if there are no good ones. Raises StorageTimeoutError.
        """
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
            except RuntimeError as exc:  # botocore's word for new ones that have expired
                raise StoragePermissionError(f"no credentials: {exc}", hint=CREDENTIALS_HINT) from exc
        if credentials != next(iter(self._used[-1:]), None):
            self._used = (*self._used[-1:], credentials)
        return credentials

    def renew(self, refused: ReadOnlyCredentials, deadline: float | None = None) -> bool:
        """Look for credentials anew, by `deadline`, as the server did not take these; whether there are others now."""
        if self._used[-1:] == (refused,):  # else another thread has renewed them
            self._forget()
        return self.credentials(deadline) != refused

    def _forget(self) -> None:
        self._session = self._resolved = self._client = None

    def signed_headers(
        self, method: str, url: str, headers: dict[str, str], credentials: ReadOnlyCredentials
    ) -> dict[str, Any]:
        """`headers` and the signature of a request without a body, valid for some minutes."""
        resolved = self._resolve()
        request = AWSRequest(method, url, {"User-Agent": _USER_AGENT, "Accept-Encoding": "identity", **headers})
        with self.translated():
            S3SigV4Auth(credentials, resolved.service, resolved.region).add_auth(request)
        return dict(request.headers.items())

    @property
    def region(self) -> str:
        """The region requests are signed for."""
        return self._resolve().region

    def use_region(self, region: str) -> None:
        """Sign for `region` from now on."""
        with self._lock:
            if self._resolved is None or self._resolved.region != region:
                self._region, self._resolved, self._client = region, None, None
                logger.info("bucket %s is in region %s", self._location.bucket, region)

    def certificates(self) -> bool | str:
        """Which authorities to trust: False for none asked, a path, or True for the usual ones."""
        if self._location.skip_verify:
            return False
        with self.translated():
            return _new_session(self._timeout_s).get_config_variable("ca_bundle") or True

    def redacted(self, text: str) -> str:
        """`text` without any secret: a server may repeat in an error what it was sent."""
        secrets: list[str | None] = [self._keys[1]] if self._keys else []
        if self._location.sse:
            secrets.append(self._location.sse.key_base64)
        for used in self._used:  # not those of now: to get them can fail, and this is for messages of failures
            secrets += [used.access_key, used.secret_key, used.token]
        for secret in secrets:
            if secret:
                text = text.replace(secret, "***")
        return text

    @contextmanager
    def translated(self, key: str | None = None, *, endpoint: str | None = None) -> Iterator[None]:
        """Turn what botocore raises in this block, where `endpoint` is asked, into errors of ours."""
        try:
            yield
        except exceptions.ClientError as exc:
            error, meta = exc.response.get("Error", {}), exc.response.get("ResponseMetadata", {})
            code = str(error.get("Code", ""))
            if code in STALE_CREDENTIALS:
                self._forget()
            raise error_from_answer(
                meta.get("HTTPStatusCode", 0),
                "" if code.isdecimal() else code,  # a number is the status, for want of an S3 error
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
        except ResponseParserError as exc:  # which is no BotoCoreError
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
        session = self._get_session()
        keys = self._keys or _litestream_keys()
        credentials = Credentials(*keys) if keys else session.get_credentials()
        if credentials is None:
            raise exceptions.NoCredentialsError
        location, bucket = self._location, self._location.bucket
        if location.endpoint and location.force_path_style and not bucket.startswith("arn:"):
            # Nothing to find out. A client takes as long to make as all else that opening a replica takes.
            bucket_url = f"{location.endpoint.rstrip('/')}/{bucket}"
            object_url = f"{bucket_url}/{quote(location.prefix, safe='/~')}"
            return _Resolved(credentials, bucket_url, object_url, self._region_name(session), "s3")
        client = self._get_client()
        bucket_url, scope = _url_and_scope(client, "list_objects_v2", Bucket=bucket)
        object_url, _ = _url_and_scope(client, "get_object", Bucket=bucket, Key=f"{location.prefix}x")
        # A credential is <access key>/<date>/<region>/<service>/aws4_request, and an access key may have slashes.
        _, _, region, service, _ = scope.rsplit("/", 4)
        return _Resolved(credentials, bucket_url, object_url.removesuffix("x"), region, service)

    def _get_client(self) -> Any:
        """The client, made when it is first needed; with the lock held."""
        client = self._client
        if client is None:
            session = self._get_session()
            keys = self._keys or _litestream_keys()
            client = session.create_client(
                "s3",
                endpoint_url=self._location.endpoint,
                region_name=self._region_name(session),
                aws_access_key_id=keys[0] if keys else None,
                aws_secret_access_key=keys[1] if keys else None,
                config=_config(path_style=self._location.force_path_style),
            )
            client.meta.events.register("before-send.s3", self._send)
            self._client = client
        return client

    def _get_session(self) -> botocore.session.Session:
        """One for all, so that there is one set of credentials; with the lock held."""
        session = self._session
        if session is None:
            session = self._session = _new_session(self._timeout_s)
        return session

    def _region_name(self, session: botocore.session.Session) -> str:
        configured = self._region or session.get_config_variable("region") or os.environ.get("AWS_REGION")
        return str(configured or DEFAULT_REGION)


def _expire_within(credentials: Any, seconds: int) -> bool:
    return isinstance(credentials, RefreshableCredentials) and bool(credentials.refresh_needed(seconds))


def _url_and_scope(client: Any, operation: str, **parameters: str) -> tuple[str, str]:
    url, _, query = client.generate_presigned_url(operation, Params=parameters).partition("?")
    return url, parse_qs(query)["X-Amz-Credential"][0]


def _litestream_keys() -> tuple[str, str] | None:
    if os.environ.get("AWS_ACCESS_KEY_ID"):
        return None
    keys = os.environ.get("LITESTREAM_ACCESS_KEY_ID"), os.environ.get("LITESTREAM_SECRET_ACCESS_KEY")
    return (keys[0], keys[1]) if keys[0] and keys[1] else None


def _config(*, path_style: bool) -> Config:
    return Config(
        signature_version="s3v4",
        # "auto" would presign for the global endpoint, which answers for new buckets with a redirect.
        s3={"addressing_style": "path" if path_style else "virtual"},
        retries={"total_max_attempts": 1},  # whoever calls us knows what a retry is worth
        # LTX files carry a checksum of their own, and not every server knows S3's newer ones.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        user_agent_extra="litevfs",
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
