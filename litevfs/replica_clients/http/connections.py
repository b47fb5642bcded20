"""HTTP connections that another thread can end, and whose answers come in time or not at all.

urllib3 cannot wake a thread that waits in `recv`; so every socket is known from before it connects, and
`LiveSockets.close` shuts them all down. Knows sockets and HTTP, nothing of S3, of URLs or of pools.
"""

from __future__ import annotations

import errno
import functools
import http.client
import io
import os
import socket
import sys
import threading
import time
from typing import Any

import urllib3.connection
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError

from litevfs.concurrency.descriptors import wait_for
from litevfs.errors import StorageClosedError
from litevfs.replica_clients.addresses import connected_socket
from litevfs.replica_clients.idle import LastUse

DRIP_BYTES_PER_S = 1 << 13
"""A server that sends a GET's answer slower than this, beyond the first read timeout, counts as hanging."""

_TIMED_METHODS = ("GET", "PROPFIND")
_LIMIT_SLACK = 1.1

ANSWER_LIMIT_S = 15 * 60.0
"""An answer to a write or delete takes at most so long from its first byte on."""
MAX_WAIT_S = 1e6
"""A socket counts milliseconds in 31 bits; a longer wait has to be made of several."""


def left_s(deadline: float | None) -> float:
    """The seconds that are left until `deadline` (`time.monotonic()`), at most `MAX_WAIT_S`. Raises TimeoutError."""
    if deadline is None:
        return MAX_WAIT_S
    if (left := deadline - time.monotonic()) <= 0:
        raise TimeoutError("no time is left for a request")
    return min(left, MAX_WAIT_S)


class LiveSockets:
    """Handles (duplicates) of all sockets in use. A duplicate is ours alone, so no race can make it another's."""

    def __init__(self) -> None:
        self.closed = False
        self._lock = threading.RLock()  # the collector may end an abandoned answer under this lock
        self._handles: set[socket.socket] = set()
        self._pid = os.getpid()

    def check_open(self) -> None:
        """Raise StorageClosedError after `close`."""
        if self.closed:
            raise StorageClosedError("the replica client is closed")

    def add(self, sock: socket.socket) -> socket.socket:
        """Register a socket; returns the handle to `remove` it by. Raises StorageClosedError after `close`."""
        handle = sock.dup()
        with self._lock:
            if not self.closed:
                self._handles.add(handle)
                return handle
        handle.close()
        raise StorageClosedError("the replica client is closed")

    def remove(self, handle: socket.socket) -> None:
        """Forget a socket that is closed."""
        with self._lock:
            self._handles.discard(handle)
            handle.close()

    def close(self) -> None:
        """Shut all of them down, which ends all waits for them. Idempotent."""
        with self._lock:
            self.closed = True
            handles, self._handles = self._handles, set()
        for handle in handles:
            if self._pid == os.getpid():  # after a fork the connections are the parent's, and a shutdown would reach it
                _shut_down(handle)
            handle.close()


def _shut_down(handle: socket.socket) -> None:
    try:
        handle.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # not connected


class Limits(threading.local):
    """The limits of the request that this thread makes: set before each, so that none remains of the one before."""

    is_total = False  # the socket's read timeout is one for the whole answer


class _TimedAnswer(http.client.HTTPResponse):
    """The answer to a read (GET, PROPFIND) has to come within the read timeout of its socket, counted from now.

    A socket's own timeout starts again with each byte that a server drips. Unless the limit `is_total`, an answer that
    comes faster than that may take longer. Those to other methods have `ANSWER_LIMIT_S`, each of their bytes the
    socket's timeout: S3 sends blanks for minutes while it puts an upload together.
    """

    def __init__(self, limits: Limits, sock: socket.socket, debuglevel: int = 0, method: str | None = None) -> None:
        super().__init__(sock, debuglevel, method)
        timeout_s = sock.gettimeout()
        if timeout_s is None:
            return
        is_read = method in _TIMED_METHODS
        limit_s = timeout_s if is_read else max(timeout_s, ANSWER_LIMIT_S)
        timed = TimedSocket(sock, timeout_s, limit_s, is_total=limits.is_total or not is_read)
        self.fp = io.BufferedReader(TimedStream(timed, owner=self.fp.detach()))


class TimedSocket:
    """The bytes that a socket gets in time; unless the limit `is_total`, each byte earns time for the next ones."""

    __slots__ = ("_deadline", "_earned_s", "_sock", "_timeout_s")

    def __init__(self, sock: socket.socket, timeout_s: float, limit_s: float, *, is_total: bool) -> None:
        self._sock = sock
        self._timeout_s = timeout_s  # of each wait
        self._deadline = time.monotonic() + limit_s
        self._earned_s = 0.0 if is_total else 1 / DRIP_BYTES_PER_S  # with each byte

    def sendall(self, data: bytes) -> None:
        """Send all of the bytes. Raises OSError."""
        self._limit_wait()
        self._sock.sendall(data)

    def recv(self, most: int) -> bytes:
        """The next bytes, none at the end. Raises OSError."""
        self._limit_wait()
        data = self._sock.recv(most)
        self._deadline += len(data) * self._earned_s
        return data

    def recv_into(self, buffer: Any) -> int:
        """Like `recv`; returns the number of bytes."""
        self._limit_wait()
        size = self._sock.recv_into(buffer)
        self._deadline += size * self._earned_s
        return size

    def _limit_wait(self) -> None:
        remaining = self._deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError("the answer takes too long")
        wait_s, now_s = min(remaining, self._timeout_s), self._sock.gettimeout()
        # To set it is a system call, which hands over to other threads: a limit that is little longer stays.
        if now_s is None or not wait_s <= now_s <= wait_s * _LIMIT_SLACK:
            self._sock.settimeout(wait_s)


class TimedStream(io.RawIOBase):
    """A `TimedSocket` for `http.client`, which takes it for a socket; bytes that `came` already are its first.

    Closes its `owner`, if any.
    """

    def __init__(self, timed: TimedSocket, came: bytes = b"", *, owner: io.RawIOBase | None = None) -> None:
        self._timed = timed
        self._came = came
        self._owner = owner

    def readable(self) -> bool:
        """As all such streams."""
        return True

    def makefile(self, mode: str) -> io.BufferedReader:
        """As of a socket."""
        return io.BufferedReader(self)

    def readinto(self, buffer: Any) -> int:
        """The next bytes. Raises OSError."""
        if not self._came:
            return self._timed.recv_into(buffer)
        size = min(len(buffer), len(self._came))
        buffer[:size], self._came = self._came[:size], self._came[size:]
        return size

    def close(self) -> None:
        """Close the owner."""
        if self._owner is not None:
            self._owner.close()
        super().close()


class _Watched:
    """Mixin for urllib3 connections: makes their socket known to `sockets` from before it connects until its end."""

    # Attributes of urllib3's connections, for the type checker.
    host: str
    port: int
    timeout: float | None
    socket_options: Any
    response_class: Any
    _dns_host: str

    def __init__(self, *args: Any, sockets: LiveSockets, limits: Limits, **kwargs: Any) -> None:
        self._sockets = sockets
        self._handle: socket.socket | None = None
        self._last_use = LastUse()
        self.response_class = functools.partial(_TimedAnswer, limits)
        super().__init__(*args, **kwargs)

    @property
    def is_connected(self) -> bool:
        """Whether a kept connection may be used again; urllib3 asks before each use, and closes one that may not."""
        is_fresh = not self._last_use.is_long_ago
        self._last_use.note()
        return is_fresh and super().is_connected  # type: ignore[misc]  # of the connection beside the mixin

    def _new_conn(self) -> socket.socket:
        """Connect to the first address that answers; as urllib3 does, but watched, and with one limit for all."""
        deadline = None if self.timeout is None else time.monotonic() + self.timeout
        try:
            return connected_socket(self._dns_host, self.port, self._connect, deadline)
        except socket.gaierror as exc:
            raise NameResolutionError(self.host, self, exc) from exc  # type: ignore[arg-type]  # a mixin is no connection
        except TimeoutError as exc:
            message = f"Connection to {self.host} timed out (connect timeout={self.timeout})"
            raise ConnectTimeoutError(self, message) from exc
        except OSError as exc:
            raise NewConnectionError(self, f"Failed to establish a new connection: {exc}") from exc  # type: ignore[arg-type]

    def _connect(self, sock: socket.socket, address: Any, timeout_s: float | None) -> None:
        handle = None
        try:
            handle = self._sockets.add(sock)
            for option in self.socket_options or ():
                sock.setsockopt(*option)
            sys.audit("http.client.connect", self, self.host, self.port)
            sock.setblocking(False)
            begun = sock.connect_ex(address)
            # From here on `LiveSockets.close` ends the wait for an answer. Before, its shutdown would have no effect.
            self._sockets.check_open()
            if begun:
                _finish_connecting(sock, begun, timeout_s)
                self._sockets.check_open()
            sock.settimeout(timeout_s)
        except BaseException:
            if handle is not None:
                self._sockets.remove(handle)
            raise
        self._forget()
        self._handle = handle

    def close(self) -> None:
        super().close()  # type: ignore[misc]  # of the connection beside the mixin
        self._forget()

    def _forget(self) -> None:
        handle, self._handle = self._handle, None
        if handle is not None:
            self._sockets.remove(handle)


def _finish_connecting(sock: socket.socket, begun: int, timeout_s: float | None) -> None:
    """Wait for the answer to a connect that has `begun` with this error number. Raises OSError."""
    if begun == errno.EINPROGRESS:
        if not wait_for(writable=[sock.fileno()], timeout_s=timeout_s):
            raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
        begun = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if begun:
        raise OSError(begun, os.strerror(begun))


class HTTPConnection(_Watched, urllib3.connection.HTTPConnection):
    """A connection that `sockets` knows, with answers that `limits` hold for."""


class HTTPSConnection(_Watched, urllib3.connection.HTTPSConnection):
    """An `HTTPConnection` over TLS."""

    def connect(self) -> None:
        """Connect, and shake hands."""
        super().connect()
        # Unverified only because the user said skipVerify: urllib3 need not warn at each connection.
        self.is_verified = True
