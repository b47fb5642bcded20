"""Connections that rested for long, and that a router or a server has forgotten without a word meanwhile."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from litevfs.replica_clients import idle
from litevfs.replica_clients.base import ReplicaClient
from litevfs.replica_clients.idle import MAX_IDLE_S, LastUse
from litevfs.replica_clients.urls import open_replica_client
from litevfs.testing.tcp_proxy import TCPProxy
from tests.replica_clients.store_replicas import NATSReplica, url_at
from tests.replica_clients.store_servers import NATS_PASSWORD, nats_server, sshd, static_server

FEW_S = 8.0
"""Of the 30 seconds that a client waits for an answer."""


@pytest.mark.parametrize("frozen", [0, 1])
def test_each_clock_alone_says_that_something_has_rested(frozen: int):
    """The wall clock stands still in no pause of a machine, the others may; and it is put back and forward by hand."""
    times = [100.0, 1e9]
    last_use = LastUse((lambda: times[0], lambda: times[1]))
    times[1 - frozen] += MAX_IDLE_S - 1
    times[frozen] -= 1000
    assert not last_use.is_long_ago
    times[1 - frozen] += 1
    assert last_use.is_long_ago
    last_use.note()
    assert not last_use.is_long_ago


def through_http(stack: ExitStack, folder: Path) -> tuple[TCPProxy, str]:
    level = folder / "files" / "ltx" / "0"
    level.mkdir(parents=True)
    (level / f"{1:016x}-{1:016x}.ltx").write_bytes(b"x")
    port = int(stack.enter_context(static_server(folder / "files")).rpartition(":")[2])
    proxy = stack.enter_context(TCPProxy(("127.0.0.1", port)))
    return proxy, f"http://127.0.0.1:{proxy.port}"


def through_sftp(stack: ExitStack, folder: Path) -> tuple[TCPProxy, str]:
    pytest.importorskip("paramiko", reason="pip install litevfs[sftp]")
    port, keys = stack.enter_context(sshd(folder))
    proxy = stack.enter_context(TCPProxy(("127.0.0.1", port)))
    return proxy, url_at(proxy.port, keys, folder / "files")


def through_nats(stack: ExitStack, folder: Path) -> tuple[TCPProxy, str]:
    pytest.importorskip("nats", reason="pip install litevfs[nats]")
    replica = NATSReplica(stack.enter_context(nats_server(folder)))
    server = urlsplit(replica.url)
    proxy = stack.enter_context(TCPProxy(("127.0.0.1", server.port or 0)))
    return proxy, replica.url.replace(f":{server.port}", f":{proxy.port}")


@pytest.fixture(params=[through_http, through_sftp, through_nats])
def behind(request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[TCPProxy, ReplicaClient]]:
    monkeypatch.setenv("LITEVFS_NATS_PASSWORD", NATS_PASSWORD)
    with ExitStack() as stack:
        proxy, url = request.param(stack, tmp_path)
        client = open_replica_client(url)
        stack.callback(client.close)
        yield proxy, client


@pytest.mark.servers
def test_a_connection_that_was_forgotten_meanwhile_is_not_waited_for(behind, monkeypatch: pytest.MonkeyPatch):
    proxy, client = behind
    listed = client.list_files(0)
    proxy.forget()
    monkeypatch.setattr(idle, "MAX_IDLE_S", 0.3)
    time.sleep(0.4)
    began = time.monotonic()
    assert client.list_files(0) == listed
    assert time.monotonic() - began < FEW_S


@pytest.mark.servers
def test_a_connection_in_use_is_kept(behind):
    proxy, client = behind
    listed = client.list_files(0)
    made = len(proxy._sockets)
    for _ in range(5):
        assert client.list_files(0) == listed
    assert len(proxy._sockets) == made
