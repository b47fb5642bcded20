"""Connects to the first address of a host that answers, and makes the error if none does. Knows no protocol."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Callable
from typing import Any

from litevfs.errors import TransientStorageError


def connected_socket(
    host: str, port: int, connect: Callable[[socket.socket, Any, float | None], object], deadline: float | None
) -> socket.socket:
    """A socket for which `connect(socket, address, seconds left)` raised nothing, by `deadline` (`time.monotonic()`).

    Raises what it raised for the last address; TimeoutError if no time was left for the first, and other OSErrors.
    """
    error: OSError | None = None
    for family, kind, protocol, _, address in socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM):
        left_s = None if deadline is None else deadline - time.monotonic()
        if left_s is not None and left_s <= 0:
            raise error or TimeoutError(errno.ETIMEDOUT, "no time is left to connect")
        sock = socket.socket(family, kind, protocol)
        try:
            connect(sock, address, left_s)
            return sock
        except OSError as exc:
            sock.close()
            error = exc
        except BaseException:
            sock.close()
            raise
    raise error or OSError(errno.EHOSTUNREACH, f"{host} has no address")


def connection_error(where: str, exc: Exception, key: str) -> TransientStorageError:
    """The error for a connection to `where` (host:port) that could not be made, or ended."""
    said = str(exc) or type(exc).__name__
    if isinstance(exc, ConnectionRefusedError | socket.gaierror):
        hint = "check the server's address and the network"
        return TransientStorageError(f"cannot connect to {where}: {said}", key=key, hint=hint)
    return TransientStorageError(f"the connection to {where} broke: {said}", key=key)
