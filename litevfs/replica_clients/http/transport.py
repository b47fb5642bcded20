"""HTTP for storage clients: pooled connections that another thread can end, foreign exceptions translated once.

Knows HTTP, TLS and proxies, nothing of S3; `connections` knows how to end a connection.
"""

from __future__ import annotations

import functools
import os
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

import urllib3
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    LocationValueError,
    NewConnectionError,
    ProtocolError,
    ProxyError,
    ReadTimeoutError,
)
from urllib3.util.ssl_ import create_urllib3_context

from litevfs.errors import StorageClosedError, StorageError, StorageTimeoutError, TransientStorageError
from litevfs.replica_clients.http.connections import HTTPConnection, HTTPSConnection, Limits, LiveSockets, left_s
from litevfs.replica_clients.http.plain import Answer, ask, is_plain

_PROXY_HINT = "the environment names the proxy (HTTPS_PROXY, HTTP_PROXY) and the hosts that need none (NO_PROXY)"
_PIECE_BYTES = 1 << 18
"""Of a body that is read in pieces, at most."""
_SOCKET_OPTIONS = [
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
]


class Transport:
    """Sends HTTP requests over up to `max_connections` kept-alive connections (more parallel ones are not kept).

    `verify` is called at the first https connection: True for the usual certificates of authorities, a path to others,
    or False not to verify.
    """

    def __init__(
        self,
        *,
        connect_timeout_s: float,
        read_timeout_s: float,
        max_connections: int,
        verify: Callable[[], bool | str] = lambda: True,
    ) -> None:
        self._connect_timeout_s, self._read_timeout_s = connect_timeout_s, read_timeout_s
        self._timeout = urllib3.Timeout(connect=connect_timeout_s, read=read_timeout_s)
        self._max_connections = max_connections
        self._verify = verify
        self._limits = Limits()
        self._counts: Counter[str] = Counter()
        self._parents: list[object] = []
        self._begin()

    def _begin(self) -> None:
        """Begin without a connection: at first, and in the child of a fork, whose parent goes on using its own."""
        self._pid = os.getpid()
        self._sockets = LiveSockets()
        self._lock = threading.Lock()  # for _pools and _counts
        self._pools: dict[tuple[str, str], tuple[urllib3.HTTPConnectionPool, bool]] = {}

    def _leave_parent(self) -> None:
        is_closed = self._sockets.closed
        # Kept for good: their end would wait for locks that another thread of the parent may have held at the fork.
        self._parents += [self._pools, self._sockets]
        self._begin()
        self._sockets.closed = is_closed

    @property
    def requests(self) -> dict[str, int]:
        """Requests sent so far, by the `kind` they were sent as."""
        with self._lock:
            return dict(self._counts)

    def request(
        self, kind: str, method: str, url: str, headers: Any, body: object = None, *, deadline: float | None = None
    ) -> Answer:
        """Send one request; returns once the answer's head is there. Its body is for `read_body`.

        `deadline` (`time.monotonic()`) bounds a GET with all that it takes: connection, head and body. Without it, the
        limits of the constructor hold for each wait, and an answer to a GET has to come faster than a drip. Raises
        TransientStorageError, StorageTimeoutError, StorageClosedError, or StorageError for a bad certificate.
        """
        if self._pid != os.getpid():
            self._leave_parent()
        self.check_open()
        parts = urlsplit(url)
        with self.translated(url):
            pool, absolute = self._pool(parts.scheme, parts.netloc)
            with self._lock:
                self._counts[kind] += 1
            target = url if absolute else urlunsplit(("", "", parts.path or "/", parts.query, ""))
            total_s = left_s(deadline)
            if is_plain(method, target, body, pool):
                return ask(
                    pool,
                    method,
                    target,
                    headers,
                    connect_timeout_s=self._connect_timeout_s,
                    read_timeout_s=self._read_timeout_s,
                    deadline=deadline,
                )
            self._limits.is_total = deadline is not None
            return pool.urlopen(
                method,
                target,
                body=body,  # type: ignore[arg-type]  # bytes or a file
                headers=headers,
                timeout=self._timeout
                if deadline is None
                else urllib3.Timeout(connect=self._connect_timeout_s, total=total_s),
                retries=False,
                redirect=False,
                assert_same_host=False,
                preload_content=False,
                decode_content=False,
            )

    def read_body(self, response: Answer, url: str, limit: int) -> bytes:
        """Up to `limit` bytes of the body; a connection with more of it to come is dropped.

        Raises TransientStorageError when the body breaks off.
        """
        pieces: list[bytes] = []
        self.read_pieces(pieces.append, response, url, limit)
        return b"".join(pieces)

    def read_pieces(self, take: Callable[[bytes], object], response: Answer, url: str, limit: int) -> int:
        """Like `read_body`, but calls `take` with the bytes as they come. Returns how many there were."""
        came = 0
        with self.translated(url):
            try:
                while came < limit and (piece := response.read(min(limit - came, _PIECE_BYTES))):
                    came += len(piece)
                    take(piece)
                if came < limit and response.length_remaining:
                    raise ProtocolError(f"after {came} bytes, with {response.length_remaining} to come")
            except BaseException:
                response.close()
                raise
            if came < limit or response.length_remaining == 0:
                response.release_conn()
            else:
                response.close()
        return came

    def check_open(self) -> None:
        """Raise StorageClosedError after `close`."""
        self._sockets.check_open()

    def close(self) -> None:
        """End all requests under way and drop all connections. Idempotent."""
        self._sockets.close()
        with self._lock:
            pools = [pool for pool, _ in self._pools.values()]
        for pool in pools:
            pool.close()

    @contextmanager
    def translated(self, url: str) -> Iterator[None]:
        """Turn what urllib3, ssl and socket raise in this block into errors of ours that name the endpoint of `url`."""
        try:
            yield
        except StorageError:
            raise
        except (HTTPError, OSError, ValueError, AttributeError) as exc:
            # The last two are not documented, but closing under a reader makes http.client raise them.
            if self._sockets.closed:
                raise StorageClosedError("the replica client was closed during a request") from exc
            if not isinstance(exc, HTTPError | OSError):
                raise
            raise _translate(exc, endpoint_of(url)) from exc

    def _pool(self, scheme: str, netloc: str) -> tuple[urllib3.HTTPConnectionPool, bool]:
        """The connections to `netloc`, and whether requests on them name the whole URL (to an http proxy)."""
        known = self._pools.get((scheme, netloc))
        if known is not None:
            return known
        with self._lock:
            known = self._pools.get((scheme, netloc))
            if known is None:
                known = self._pools[scheme, netloc] = self._new_pool(scheme, netloc)
            return known

    def _new_pool(self, scheme: str, netloc: str) -> tuple[urllib3.HTTPConnectionPool, bool]:
        url = f"{scheme}://{netloc}"
        options: dict[str, Any] = {
            "timeout": self._timeout,
            "maxsize": self._max_connections,
            "socket_options": _SOCKET_OPTIONS,
            "blocksize": 1 << 17,
        }
        if scheme == "https":
            verify = self._verify()
            options |= {"ssl_context": _ssl_context(verify), "cert_reqs": "CERT_REQUIRED" if verify else "CERT_NONE"}
        proxy = _proxy(scheme, netloc)
        manager = _proxy_manager(proxy, options) if proxy else urllib3.PoolManager(**options)
        pool = manager.connection_from_url(url)
        kind = HTTPSConnection if scheme == "https" else HTTPConnection
        pool.ConnectionCls = functools.partial(kind, sockets=self._sockets, limits=self._limits)  # type: ignore[assignment]
        return pool, bool(proxy) and scheme == "http"


def endpoint_of(url: str) -> str:
    """Scheme and host of a URL: what an error may name."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _proxy(scheme: str, netloc: str) -> str | None:
    """The URL of the proxy that the environment, or the system's settings, name for a server."""
    from urllib.request import getproxies, proxy_bypass  # loaded when a process makes a connection: 4 ms of CPU

    proxy = getproxies().get(scheme)
    return None if proxy is None or proxy_bypass(netloc) else proxy


def _proxy_manager(proxy: str, options: Mapping[str, Any]) -> urllib3.ProxyManager:
    parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    headers = None
    if parts.username:
        # Send exactly the bytes that the URL names: urllib3 encodes to Latin-1.
        user, password = (unquote(part, "latin-1") for part in (parts.username, parts.password or ""))
        headers = urllib3.make_headers(proxy_basic_auth=f"{user}:{password}")
    return urllib3.ProxyManager(endpoint_of(parts.geturl()), proxy_headers=headers, **options)


def _translate(exc: HTTPError | OSError, endpoint: str) -> StorageError:
    if isinstance(exc, NewConnectionError):
        return TransientStorageError(f"cannot connect to {endpoint}: {exc}", hint="check the endpoint and the network")
    if isinstance(exc, ConnectTimeoutError | ReadTimeoutError | TimeoutError):
        return StorageTimeoutError(f"no answer from {endpoint} within the time limit: {exc}")
    if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in (*exc.args, exc, exc.__cause__)):
        hint = "set AWS_CA_BUNDLE to the authority's certificate; an s3:// URL may say skipVerify=true"
        return StorageError(f"the certificate of {endpoint} is not trusted: {exc}", hint=hint)
    if isinstance(exc, LocationValueError):  # the endpoint is a URL: that has been checked
        return StorageError(f"cannot reach {endpoint} by way of a proxy: {exc}", hint=_PROXY_HINT)
    broken_hint = _PROXY_HINT if isinstance(exc, ProxyError) else None
    if "WRONG_VERSION_NUMBER" in str(exc):
        broken_hint = "does it speak TLS? If not, name it by http://, in S3 by endpoint=http://..."
    return TransientStorageError(f"the connection to {endpoint} broke: {exc}", hint=broken_hint)


def _usual_authorities() -> str:
    """The file of authorities that botocore would use."""
    try:
        from certifi import where  # many packages bring it
    except ImportError:
        from botocore.httpsession import where  # its own list
    return str(where())


def _ssl_context(verify: bool | str) -> ssl.SSLContext:
    """One TLS context for all connections: loading certificates costs milliseconds."""
    context = create_urllib3_context(cert_reqs=ssl.CERT_REQUIRED if verify else ssl.CERT_NONE)
    if verify:
        path = _usual_authorities() if verify is True else verify
        try:
            context.load_verify_locations(**{"capath" if Path(path).is_dir() else "cafile": path})
        except OSError as exc:
            message = f"cannot load the certificates of authorities: {exc}"
            raise StorageError(message, key=path, hint="check AWS_CA_BUNDLE") from exc
    return context
