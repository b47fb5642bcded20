"""A host of several addresses: what is said if none of them answers in time."""

from __future__ import annotations

import socket
import time
from typing import Any

import pytest

from litevfs.replica_clients.addresses import connected_socket


def two_addresses(*_: object, **__: object) -> list[Any]:
    return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (f"127.0.0.{n}", 9)) for n in (1, 2)]


def test_an_address_that_refuses_counts_for_more_than_the_time_that_is_left_for_the_next(monkeypatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", two_addresses)
    deadline = time.monotonic() + 0.05
    tried = []

    def refuse(_sock: socket.socket, address: Any, _left_s: float | None) -> None:
        tried.append(address)
        while time.monotonic() < deadline:
            pass
        raise ConnectionRefusedError

    with pytest.raises(ConnectionRefusedError):
        connected_socket("host", 9, refuse, deadline)
    with pytest.raises(TimeoutError, match="no time is left"):
        connected_socket("host", 9, refuse, deadline)
    assert tried == [("127.0.0.1", 9)]


def test_the_next_address_is_tried_and_a_host_without_one_is_named(monkeypatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", two_addresses)

    def refuse_first(_sock: socket.socket, address: Any, _left_s: float | None) -> None:
        if address[0] == "127.0.0.1":
            raise ConnectionRefusedError

    with connected_socket("host", 9, refuse_first, None) as sock:
        assert sock.fileno() >= 0
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [])
    with pytest.raises(OSError, match="host has no address"):
        connected_socket("host", 9, refuse_first, None)
