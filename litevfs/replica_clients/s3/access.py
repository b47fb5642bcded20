"""How to reach a bucket: credentials, address, region and signatures. Sends nothing to it.

What the URL and the `environment` do not say, botocore is asked for (`chain`), so its rules for credentials, regions,
addresses, access points and addressing styles hold for every request; only its machinery around a request is left out.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote, urljoin, urlsplit, urlunsplit

from litevfs.concurrency.calls import SharedCall
from litevfs.errors import TransientStorageError
from litevfs.replica_clients.s3 import environment
from litevfs.replica_clients.s3.signing import Credentials, signed
from litevfs.replica_clients.s3.url import S3Location

if TYPE_CHECKING:
    from litevfs.replica_clients.s3.chain import Chain

logger = logging.getLogger(__name__)

DEFAULT_REGION = "us-east-1"
_USER_AGENT = "litevfs"
ADVISORY_S, MANDATORY_S = 15 * 60, 10 * 60
"""So long before credentials expire, botocore looks for others, and no longer uses the present ones."""
_LEAST_OFFSET_S = 5.0  # servers accept a smaller difference


class CredentialsSource(Protocol):
    """Where the credentials of requests come from."""

    def current(self) -> Credentials:
        """Those to sign with now. May ask a service. Raises StorageError."""
        ...

    def expire_within(self, seconds: int) -> bool:
        """Whether they end so soon."""
        ...


@dataclass(frozen=True, slots=True)
class _FixedCredentials:
    """Credentials that do not change."""

    keys: Credentials

    def current(self) -> Credentials:
        return self.keys

    def expire_within(self, seconds: int) -> bool:
        return False


@dataclass(frozen=True, slots=True)
class _Resolved:
    """How to reach a bucket; replaced as a whole when the region turns out to differ."""

    credentials: CredentialsSource | None  # None: requests are not signed
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
        self._keys = Credentials(access_key_id, secret_access_key) if access_key_id and secret_access_key else None
        self._region = location.region
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._used: tuple[Credentials, ...] = ()  # the last ones that requests were signed with, newest last
        self._look = SharedCall(self._look_for_credentials, "litevfs-credentials")
        self._chain: Chain | None = None
        self._resolved: _Resolved | None = None
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

    def credentials(self, deadline: float | None = None) -> Credentials | None:
        """The credentials to sign with now, None for no signature; refreshed if possible when they are about to expire.

        Their source may hang: with a `deadline` (`time.monotonic()`, seconds) a separate thread looks for them, and the
        caller waits for it until then, and only if there are no valid ones. Raises StorageTimeoutError.
        """
        if self._location.anonymous:
            return None
        resolved = self._resolved
        source = None if resolved is None else resolved.credentials
        if deadline is None or (source is not None and not source.expire_within(ADVISORY_S)):
            return self._look_for_credentials()
        is_urgent = source is None or not self._used or source.expire_within(MANDATORY_S)
        try:
            return self._look.result(max(0.0, deadline - time.monotonic()) if is_urgent else 0.0)
        except TransientStorageError:
            if is_urgent:
                raise
            return self._used[-1]

    def _look_for_credentials(self) -> Credentials:
        source = self._resolve().credentials
        assert source is not None  # requests are signed
        credentials = source.current()
        if credentials != next(iter(self._used[-1:]), None):
            self._used = (*self._used[-1:], credentials)
        return credentials

    def renew(self, refused: Credentials | None, deadline: float | None = None) -> bool:
        """Look for other credentials by `deadline`, as the server refused these; whether there are others now."""
        if refused is None:
            return False
        if self._used[-1:] == (refused,):  # otherwise another thread has renewed them
            self._forget()
        return self.credentials(deadline) != refused

    def _forget(self) -> None:
        self._chain = self._resolved = self._home = None

    def headers(
        self, method: str, url: str, headers: dict[str, str], body: bytes, credentials: Credentials | None
    ) -> dict[str, Any]:
        """`headers`, the headers of every request, and the signature, valid for some minutes."""
        headers = {"User-Agent": _USER_AGENT, "Accept-Encoding": "identity", **headers}
        if self._location.requester_pays:
            headers["x-amz-request-payer"] = "requester"
        if credentials is None:
            return headers
        resolved = self._resolve()
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
                self._region, self._resolved, self._home = region, None, None
                logger.info("bucket %s is in region %s", self._location.bucket, region)

    def certificates(self) -> bool | str:
        """Which authorities to trust: False for no check, a path, or True for the usual ones."""
        if self._location.skip_verify:
            return False
        file = environment.certificates()
        if file is None and not environment.is_all():
            file = self._new_chain().certificates()
        return file or True

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

    def _resolve(self) -> _Resolved:
        resolved = self._resolved
        if resolved is None:
            with self._lock:
                resolved = self._resolved
                if resolved is None:
                    resolved = self._resolved = self._newly_resolved()
        return resolved

    def _newly_resolved(self) -> _Resolved:
        """The caller holds the lock."""
        location, region = self._location, self._region_name()
        other_keys = self._keys or environment.other_keys(location.scheme)
        source: CredentialsSource | None = None
        if not location.anonymous:
            keys = other_keys or environment.usual_keys()
            source = _FixedCredentials(keys) if keys else self._known_chain().credentials()
        bucket_url = self._usual_bucket_url(region)
        if bucket_url is not None:
            object_url = f"{bucket_url.rstrip('/')}/{quote(location.prefix, safe='/~')}"
            return _Resolved(source, bucket_url, object_url, region, "s3")
        return _Resolved(source, *self._known_chain().addresses(location, region, other_keys))

    def _usual_bucket_url(self, region: str) -> str | None:
        """The bucket's address where that follows from its name; None where botocore has to be asked."""
        endpoint, bucket = self._location.endpoint, self._location.bucket
        if endpoint and self._location.force_path_style and not bucket.startswith("arn:"):
            return f"{endpoint.rstrip('/')}/{bucket}"
        if endpoint or self._location.force_path_style or not environment.is_all():
            return None
        return environment.bucket_url(bucket, region)

    def _region_name(self) -> str:
        region = self._region or environment.region()
        if region is None and not environment.is_all():
            region = self._known_chain().region()
        return region or os.environ.get("AWS_REGION") or DEFAULT_REGION

    def _known_chain(self) -> Chain:
        """The one that credentials come from. The caller holds the lock."""
        chain = self._chain
        if chain is None:
            chain = self._chain = self._new_chain()
        return chain

    def _new_chain(self) -> Chain:
        from litevfs.replica_clients.s3.chain import Chain  # loads botocore

        return Chain(self.endpoint, self._timeout_s, redacted=self.redacted, forget=self._forget)
