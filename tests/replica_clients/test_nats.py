"""A NATS object store, of nats-server; looked at by nats-py's own object store."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from litevfs.errors import StorageNotFoundError, StoragePermissionError, TransientStorageError
from litevfs.testing.client_conformance import ReplicaClientConformance, silent_endpoint
from litevfs.testing.conformance_base import TIMESTAMP_MS, file_name
from litevfs.testing.server_process import free_port
from tests.replica_clients.interop import exchange
from tests.replica_clients.store_replicas import NATSReplica
from tests.replica_clients.store_servers import NATS_PASSWORD, NATS_USER, nats_server

nats = pytest.importorskip("nats", reason="pip install litevfs[nats]")

from litevfs.replica_clients.nats import NATSReplicaClient  # noqa: E402 - after the package is looked for


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with nats_server(tmp_path_factory.mktemp("nats")) as port:
        yield port


@pytest.fixture
def nats_replica(port: int, monkeypatch: pytest.MonkeyPatch) -> NATSReplica:
    monkeypatch.setenv("LITEVFS_NATS_PASSWORD", NATS_PASSWORD)
    return NATSReplica(port)


@pytest.mark.servers
class TestNATSReplicaClient(ReplicaClientConformance):
    @pytest.fixture
    def replica(self, nats_replica: NATSReplica) -> NATSReplica:
        return nats_replica

    @pytest.fixture
    def hanging_client(self) -> Iterator[NATSReplicaClient]:
        with silent_endpoint() as silent:
            client = NATSReplicaClient(f"nats://{silent}/silent")
            yield client
            client.close()


@pytest.mark.servers
def test_a_later_listing_asks_for_what_was_stored_since(nats_replica: NATSReplica):
    client = nats_replica.new_client()
    files = [client.write(0, txid, txid, b"x", TIMESTAMP_MS) for txid in range(1, 6)]
    asked = []
    descriptions = client._listing._descriptions

    async def noted(js: Any, sequence: int) -> Any:
        found = await descriptions(js, sequence)
        asked.append((sequence, len(found)))
        return found

    client._listing._descriptions = noted
    assert [file.min_txid for file in client.list_files(0)] == [1, 2, 3, 4, 5]
    assert asked == [(0, 5)]
    assert len(client.list_files(0)) == 5
    assert len(asked) == 1  # nothing was stored
    nats_replica.put(0, file_name(6, 6), b"new")
    client.delete(files[:1])
    assert [file.min_txid for file in client.list_files(0)] == [2, 3, 4, 5, 6]
    assert asked[1][0] > 0
    assert asked[1][1] == 2
    # An object that goes without a mark is noticed when it is read.
    subject = f"$O.{nats_replica.bucket}.>"
    nats_replica.run(lambda js: js.purge_stream(f"OBJ_{nats_replica.bucket}", subject=subject))
    with pytest.raises(StorageNotFoundError):
        client.read(files[1])
    assert client.list_files(0) == []
    client.close()


@pytest.mark.servers
def test_a_replica_below_another_one_lists_its_own_files_only(nats_replica: NATSReplica):
    nats_replica.put(0, file_name(1, 1), b"of the bucket")
    nats_replica.put_path(f"below/ltx/0/{file_name(2, 2)}", b"of the path")
    for url, txid, content in [
        (nats_replica.url, 1, b"of the bucket"),
        (f"{nats_replica.url}/below", 2, b"of the path"),
        (f"{nats_replica.url}/other", None, b""),
    ]:
        client = NATSReplicaClient(url)
        files = client.list_files(0)
        assert [file.min_txid for file in files] == ([] if txid is None else [txid])
        assert [client.read(file) for file in files] == ([] if txid is None else [content])
        client.close()


@pytest.mark.servers
def test_a_bucket_that_does_not_exist_says_so(nats_replica: NATSReplica):
    client = NATSReplicaClient(f"nats://{NATS_USER}@127.0.0.1:{nats_replica.port}/no-such")
    with pytest.raises(StorageNotFoundError, match="no-such"):
        client.list_files(0)
    with pytest.raises(TransientStorageError, match=r"no such bucket.*nats object add"):
        client.write(0, 1, 1, b"", 0)
    client.close()


def test_a_server_that_does_not_listen_is_named_at_once():
    client = NATSReplicaClient(f"nats://127.0.0.1:{free_port()}/bucket")
    began = time.monotonic()
    with pytest.raises(TransientStorageError, match=r"cannot connect to 127\.0\.0\.1:\d+: .*; hint: check the server"):
        client.list_files(0)
    assert time.monotonic() - began < 1.5  # nats-py by itself tries for minutes
    client.close()


@pytest.mark.servers
def test_a_wrong_password_is_refused_with_a_hint(nats_replica: NATSReplica, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LITEVFS_NATS_PASSWORD", "AKIDSECRET")
    client = nats_replica.new_client()
    with pytest.raises(StoragePermissionError, match="LITEVFS_NATS_PASSWORD") as caught:
        client.list_files(0)
    client.close()
    assert "AKIDSECRET" not in str(caught.value) + repr(client)


@pytest.mark.servers
def test_litestream_reads_and_continues_what_we_write_and_we_what_it_wrote(nats_replica: NATSReplica, tmp_path: Path):
    replica = {"type": "nats", "url": f"nats://127.0.0.1:{nats_replica.port}/{nats_replica.bucket}"}
    replica |= {"username": NATS_USER, "password": NATS_PASSWORD}
    exchange(tmp_path, nats_replica.url, replica)
