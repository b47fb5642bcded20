"""Google Cloud Storage, as fake-gcs-server speaks it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from litevfs.errors import StorageClosedError, StorageError, StorageNotFoundError, StoragePermissionError
from litevfs.operations.doctor import Outcome, examine
from litevfs.replica_clients.gs import GSReplicaClient
from litevfs.testing.client_conformance import ReplicaClientConformance, silent_endpoint
from litevfs.testing.conformance_base import file_name
from litevfs.testing.s3_proxy import HTTPProxy, running_s3_proxy
from tests.replica_clients.interop import exchange
from tests.replica_clients.store_replicas import GS_PART_SIZE, GSReplica
from tests.replica_clients.store_servers import BUCKET, fake_gcs


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with fake_gcs(tmp_path_factory.mktemp("gcs")) as endpoint:
        yield endpoint


@pytest.fixture
def gs_replica(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[GSReplica]:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", endpoint)
    replica = GSReplica(endpoint)
    yield replica
    replica.http.clear()


@pytest.mark.servers
class TestGSReplicaClient(ReplicaClientConformance):
    slow_upload_bytes = 2 * GS_PART_SIZE + 10_000

    @pytest.fixture
    def replica(self, gs_replica: GSReplica) -> GSReplica:
        return gs_replica

    @pytest.fixture
    def hanging_client(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[GSReplicaClient]:
        with silent_endpoint() as silent:
            monkeypatch.setenv("STORAGE_EMULATOR_HOST", silent)
            client = GSReplicaClient(f"gs://{BUCKET}/silent")
            yield client
            client.close()


@pytest.fixture
def behind_proxy(gs_replica: GSReplica, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[GSReplica, HTTPProxy]]:
    with running_s3_proxy(gs_replica.endpoint) as proxy:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.endpoint.removeprefix("http://"))
        yield gs_replica, proxy


@pytest.mark.servers
def test_a_listing_is_one_request_and_starts_at_the_txid(behind_proxy: tuple[GSReplica, HTTPProxy]):
    replica, proxy = behind_proxy
    for txid in range(1, 6):
        replica.put(0, file_name(txid, txid), b"x")
    client = replica.new_client()
    proxy.clear()
    assert [file.min_txid for file in client.list_files(0, 4)] == [4, 5]
    assert len(proxy.requests) == 1
    assert "startOffset" in proxy.requests[0].query
    client.close()


@pytest.mark.servers
def test_a_bucket_that_does_not_exist_says_so(gs_replica: GSReplica):
    client = GSReplicaClient("gs://no-such-bucket/db")
    for call in (lambda: client.list_files(0), lambda: client.write(0, 1, 1, b"", 0)):
        with pytest.raises(StorageNotFoundError, match="hint: is there a bucket 'no-such-bucket'"):
            call()
    client.close()


@pytest.mark.servers
def test_litestream_reads_and_continues_what_we_write_and_we_what_it_wrote(gs_replica: GSReplica, tmp_path: Path):
    replica = {"type": "gs", "bucket": BUCKET, "path": gs_replica.path}
    exchange(tmp_path, gs_replica.url, replica, {"STORAGE_EMULATOR_HOST": gs_replica.endpoint})


# --- without a server of theirs ---------------------------------------------------------------------------------------


def credentials_file(folder: Path, token_url: str) -> Path:
    """Workload identity federation: a token of another service, in a file, is exchanged for one of Google's."""
    pytest.importorskip("google.auth", reason="pip install litevfs[gs]")
    (folder / "subject").write_text("AKIDSECRET")
    path = folder / "credentials.json"
    source = {
        "type": "external_account",
        "audience": "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/x",
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
        "token_url": token_url,
        "credential_source": {"file": str(folder / "subject")},
    }
    path.write_text(json.dumps(source))
    return path


def http_answer(status: int, body: bytes) -> bytes:
    return b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
        status,
        len(body),
        body,
    )


def test_a_token_that_is_refused_is_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scripted_server):
    """What Google's own library takes from a file; the server that gives out tokens gives two."""
    tokens = iter(["first", "second"])
    used = []

    def answer(method: str, target: str, headers: dict[str, str]) -> bytes:
        if target == "/token":
            body = {"access_token": next(tokens), "expires_in": 3600, "token_type": "Bearer"}
            body["issued_token_type"] = "urn:ietf:params:oauth:token-type:access_token"
            return http_answer(200, json.dumps(body).encode())
        used.append(headers["authorization"])
        if headers["authorization"] == "Bearer first" and len(used) > 1:
            return http_answer(401, b'{"error": {"message": "expired"}}')
        return http_answer(200, b"{}")

    server = scripted_server(answer)
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setattr("litevfs.replica_clients.gs._ENDPOINT", server.endpoint)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(credentials_file(tmp_path, f"{server.endpoint}/token")))
    client = GSReplicaClient("gs://bucket/db")
    assert client.list_files(0) == []
    assert client.list_files(0) == []
    client.close()
    assert used == ["Bearer first", "Bearer first", "Bearer second", "Bearer second"]


def test_refused_credentials_say_where_they_come_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scripted_server):
    server = scripted_server(lambda *_: http_answer(400, b'{"error": "invalid_grant"}'))
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(credentials_file(tmp_path, f"{server.endpoint}/token")))
    client = GSReplicaClient("gs://bucket/db")
    with pytest.raises(StoragePermissionError, match=r"GOOGLE_APPLICATION_CREDENTIALS") as caught:
        client.list_files(0)
    client.close()
    assert "AKIDSECRET" not in str(caught.value)


def service_account_file(folder: Path, private_key: str, token_url: str) -> Path:
    path = folder / "account.json"
    fields = {"type": "service_account", "client_email": "reader@p.iam", "private_key": private_key}
    path.write_text(json.dumps({**fields, "project_id": "p", "token_uri": token_url}))
    return path


def test_a_key_that_was_replaced_is_read_from_its_file_once_the_old_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scripted_server
):
    pytest.importorskip("google.auth", reason="pip install litevfs[gs]")
    rsa = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.rsa")
    forms = pytest.importorskip("cryptography.hazmat.primitives.serialization")
    private_key = rsa.generate_private_key(65537, 2048).private_bytes(
        forms.Encoding.PEM, forms.PrivateFormat.PKCS8, forms.NoEncryption()
    )

    def answer(method: str, target: str, headers: dict[str, str]) -> bytes:
        if target == "/old":
            return http_answer(400, b'{"error": "invalid_grant"}')
        if target == "/new":
            return http_answer(200, b'{"access_token": "t", "expires_in": 3600, "token_type": "Bearer"}')
        return http_answer(200, b"{}")

    server = scripted_server(answer)
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setattr("litevfs.replica_clients.gs._ENDPOINT", server.endpoint)
    path = service_account_file(tmp_path, private_key.decode(), f"{server.endpoint}/old")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
    client = GSReplicaClient("gs://bucket/db")
    with pytest.raises(StoragePermissionError, match="invalid_grant") as caught:
        client.list_files(0)
    assert "PRIVATE KEY" not in str(caught.value)
    service_account_file(tmp_path, private_key.decode(), f"{server.endpoint}/new")
    assert client.list_files(0) == []
    client.close()


@pytest.mark.parametrize(("refused", "name"), [("list", "list"), ("get", "read")])
def test_the_doctor_names_what_google_refuses(
    monkeypatch: pytest.MonkeyPatch, scripted_server, refused: str, name: str
):
    item = {
        "name": f"db/ltx/0/{file_name(1, 1)}",
        "size": "7",
        "generation": "1",
        "timeCreated": "2026-01-01T00:00:00Z",
    }

    def answer(method: str, target: str, headers: dict[str, str]) -> bytes:
        if ("prefix=" in target) == (refused == "list"):
            said = f"reader@p.iam.gserviceaccount.com does not have storage.objects.{refused} access"
            return http_answer(403, json.dumps({"error": {"message": said}}).encode())
        return http_answer(200, json.dumps({"items": [item]}).encode())

    monkeypatch.setenv("STORAGE_EMULATOR_HOST", scripted_server(answer).endpoint)
    failed = [check for check in examine("gs://bucket/db", with_writes=False) if check.outcome is Outcome.FAILED]
    assert failed[0].name == name
    assert f"does not have storage.objects.{refused} access" in failed[0].detail
    assert f"allow storage.objects.{refused} on bucket bucket" in str(failed[0].mend)


def test_closing_ends_a_wait_for_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with silent_endpoint() as silent:
        monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
        path = credentials_file(tmp_path, f"http://{silent}/token")
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
        assert min(closed_under_a_wait() for _ in range(3)) < 1  # load only adds to it


def closed_under_a_wait() -> float:
    """How long closing takes, seconds, while a listing waits for a token."""
    client = GSReplicaClient("gs://bucket/db")
    raised: list[StorageError] = []

    def call() -> None:
        try:
            client.list_files(0)
        except StorageError as error:
            raised.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join(0.3)
    began = time.monotonic()
    client.close()
    thread.join(20)
    took = time.monotonic() - began
    assert [type(error) for error in raised] == [StorageClosedError]
    return took
