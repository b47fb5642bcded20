"""Azure Blob Storage, as Azurite speaks it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from litevfs.errors import StorageNotFoundError, StoragePermissionError
from litevfs.replica_clients.azure import AzureReplicaClient
from litevfs.replica_clients.azure_access import string_to_sign
from litevfs.testing.client_conformance import ReplicaClientConformance, silent_endpoint
from litevfs.testing.conformance_base import file_name
from tests.replica_clients.interop import exchange
from tests.replica_clients.store_replicas import AZURE_PART_SIZE, AzureReplica
from tests.replica_clients.store_servers import AZURE_ACCOUNT, AZURE_KEY, BUCKET, azurite


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with azurite(tmp_path_factory.mktemp("azurite")) as endpoint:
        yield endpoint


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> str:
    """The account's key in the environment, and nothing else that counts."""
    for name in ("LITESTREAM_AZURE_SAS_TOKEN", "AZURE_STORAGE_SAS_TOKEN", "AZURE_STORAGE_KEY", "AZURE_STORAGE_ACCOUNT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LITESTREAM_AZURE_ACCOUNT_KEY", AZURE_KEY)
    return AZURE_KEY


@pytest.fixture
def azure_replica(endpoint: str, key: str) -> Iterator[AzureReplica]:
    replica = AzureReplica(endpoint)
    yield replica
    replica.http.clear()


@pytest.mark.servers
class TestAzureReplicaClient(ReplicaClientConformance):
    slow_upload_bytes = 2 * AZURE_PART_SIZE + 10_000

    @pytest.fixture
    def replica(self, azure_replica: AzureReplica) -> AzureReplica:
        return azure_replica

    @pytest.fixture
    def hanging_client(self, key: str) -> Iterator[AzureReplicaClient]:
        with silent_endpoint() as silent:
            client = AzureReplicaClient(f"abs://{AZURE_ACCOUNT}@{BUCKET}/silent?endpoint=http://{silent}")
            yield client
            client.close()


@pytest.mark.servers
def test_a_container_that_does_not_exist_says_so(azure_replica: AzureReplica):
    client = AzureReplicaClient(f"abs://{AZURE_ACCOUNT}@no-such/db?endpoint={azure_replica.endpoint}")
    for call in (lambda: client.list_files(0), lambda: client.write(0, 1, 1, b"", 0)):
        with pytest.raises(StorageNotFoundError, match="hint: is there a container 'no-such'") as caught:
            call()
        assert "\n" not in str(caught.value)
    client.close()


@pytest.mark.servers
def test_a_wrong_key_is_refused_with_a_hint(azure_replica: AzureReplica, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LITESTREAM_AZURE_ACCOUNT_KEY", "c2VjcmV0")
    client = azure_replica.new_client()
    with pytest.raises(StoragePermissionError, match="Storage Blob Data Reader") as caught:
        client.list_files(0)
    assert "c2VjcmV0" not in str(caught.value)
    client.close()


@pytest.mark.servers
def test_litestream_reads_and_continues_what_we_write_and_we_what_it_wrote(azure_replica: AzureReplica, tmp_path: Path):
    replica = {"type": "abs", "bucket": BUCKET, "path": azure_replica.path, "endpoint": azure_replica.endpoint}
    replica |= {"account-name": AZURE_ACCOUNT, "account-key": AZURE_KEY}
    exchange(tmp_path, azure_replica.url, replica)


# --- without a server -------------------------------------------------------------------------------------------------


def test_what_is_signed_is_what_the_reference_says():
    headers = {"x-ms-date": "Fri, 26 Jun 2015 23:39:12 GMT", "x-ms-version": "2015-02-21", "Content-Length": "0"}
    url = "https://myaccount.blob.core.windows.net/mycontainer?restype=container&comp=metadata&timeout=20"
    assert string_to_sign("myaccount", "GET", url, headers) == (
        "GET\n\n\n\n\n\n\n\n\n\n\n\nx-ms-date:Fri, 26 Jun 2015 23:39:12 GMT\nx-ms-version:2015-02-21\n"
        "/myaccount/mycontainer\ncomp:metadata\nrestype:container\ntimeout:20"
    )


def blobs(*names: str) -> bytes:
    found = "".join(
        f"<Blob><Name>{name}</Name><Properties><Content-Length>5</Content-Length><Etag>e</Etag></Properties></Blob>"
        for name in names
    )
    body = f"<EnumerationResults><Blobs>{found}</Blobs><NextMarker/></EnumerationResults>".encode()
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


@pytest.mark.parametrize("is_new", [True, False])
def test_a_listing_starts_at_the_txid_where_the_service_can(key: str, is_new: bool, scripted_server):
    def answer(method: str, target: str, headers: dict[str, str]) -> bytes:
        if headers["x-ms-version"] >= "2026" and not is_new:
            return b"HTTP/1.1 400 The value for one of the HTTP headers is not in the correct format.\r\n\r\n"
        query = parse_qs(urlsplit(target).query)
        start = query.get("startFrom", [""])[0]
        names = [f"db/ltx/{level}/{file_name(txid, txid)}" for level in (0, 1) for txid in range(1, 6)]
        return blobs(*(name for name in names if name >= start and name.startswith(query["prefix"][0])))

    server = scripted_server(answer)
    client = AzureReplicaClient(f"abs://account@container/db?endpoint={server.endpoint}")
    assert [file.min_txid for file in client.list_files(0, 4)] == [4, 5]
    files, are_all = client.list_from(0, 4)
    assert ([(file.level, file.min_txid) for file in files], are_all) == (
        [(0, 4), (0, 5), *((1, txid) for txid in range(1, 6))],
        True,
    )
    assert len(server.requests) == (2 if is_new else 3)
    assert bool(client.workarounds) is not is_new
    client.close()


def test_a_sas_token_is_sent_and_never_shown(key: str, monkeypatch: pytest.MonkeyPatch, scripted_server):
    monkeypatch.setenv("LITESTREAM_AZURE_SAS_TOKEN", "?sv=1&sig=AKIDSECRET")
    body = b"<Error><Code>AuthorizationFailure</Code><Message>no</Message></Error>"
    server = scripted_server(b"HTTP/1.1 403 X\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    client = AzureReplicaClient(f"abs://account@container/db?endpoint={server.endpoint}")
    with pytest.raises(StoragePermissionError, match="answered 403: no") as caught:
        client.list_files(0)
    client.close()
    assert "sig=AKIDSECRET" in server.requests[0][1]
    assert "authorization" not in server.requests[0][2]
    assert "AKIDSECRET" not in str(caught.value) + repr(client) + client.url


def test_a_sas_token_that_has_ended_is_replaced_by_that_of_the_variable_now(
    key: str, monkeypatch: pytest.MonkeyPatch, scripted_server
):
    ended = b"HTTP/1.1 403 X\r\nx-ms-error-code: AuthenticationFailed\r\nContent-Length: 0\r\n\r\n"
    listed = b"<R><Blobs/><NextMarker/></R>"

    def storage(method: str, target: str, headers: dict[str, str]) -> bytes:
        return (
            b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(listed), listed) if "sig=NEW" in target else ended
        )

    monkeypatch.setenv("LITESTREAM_AZURE_SAS_TOKEN", "sv=1&sig=OLD")
    server = scripted_server(storage)
    client = AzureReplicaClient(f"abs://account@container/db?endpoint={server.endpoint}")
    with pytest.raises(StoragePermissionError):
        client.list_files(0)
    assert len(server.requests) == 1
    monkeypatch.setenv("LITESTREAM_AZURE_SAS_TOKEN", "?sv=1&sig=NEW")
    assert client.list_files(0) == []
    client.close()
    assert all(target.count("sig=") == 1 for _, target, _ in server.requests)


def test_a_sas_token_that_permits_too_little_is_kept(key: str, monkeypatch: pytest.MonkeyPatch, scripted_server):
    """The variable may be that of another container by now."""
    monkeypatch.setenv("LITESTREAM_AZURE_SAS_TOKEN", "sv=1&sig=OWN")
    refusal = b"HTTP/1.1 403 X\r\nx-ms-error-code: AuthorizationPermissionMismatch\r\nContent-Length: 0\r\n\r\n"
    server = scripted_server(refusal)
    client = AzureReplicaClient(f"abs://account@container/db?endpoint={server.endpoint}")
    monkeypatch.setenv("LITESTREAM_AZURE_SAS_TOKEN", "sv=1&sig=OTHER")
    for _ in range(2):
        with pytest.raises(StoragePermissionError):
            client.list_files(0)
    client.close()
    assert ["sig=OWN" in target for _, target, _ in server.requests] == [True, True]
