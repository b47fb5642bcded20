"""Against a real S3 server."""

from __future__ import annotations

import io
import os
import subprocess
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from litevfs.errors import StorageNotFoundError, StoragePermissionError, TransientStorageError
from litevfs.replica_clients.base import LTXFileInfo
from litevfs.replica_clients.s3.client import S3ReplicaClient
from litevfs.testing.client_conformance import ReplicaClientConformance, silent_endpoint
from litevfs.testing.fixtures import TEST_BUCKET
from litevfs.testing.s3_proxy import running_s3_proxy
from litevfs.testing.s3_server import S3Server, find_minio, running_s3_server
from tests.replica_clients.s3_replicas import PART_SIZE, S3Replica
from tests.support import wait_until

pytestmark = pytest.mark.s3

SSE_KEY = "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE%3D"


@pytest.fixture
def replica(s3_url: Callable[[], str], s3_client: Any) -> S3Replica:
    url = s3_url()
    return S3Replica(url, TEST_BUCKET, url.split("?")[0].removeprefix(f"s3://{TEST_BUCKET}/"), s3_client)


@pytest.fixture
def client(replica: S3Replica) -> Iterator[S3ReplicaClient]:
    client = replica.new_client()
    yield client
    client.close()


class TestS3ReplicaClient(ReplicaClientConformance):
    slow_upload_bytes = 2 * PART_SIZE + 1_000_000  # its first part is on the server when the stream blocks

    @pytest.fixture
    def replica(self, s3_url: Callable[[], str], s3_client: Any) -> S3Replica:
        url = s3_url()
        return S3Replica(url, TEST_BUCKET, url.split("?")[0].removeprefix(f"s3://{TEST_BUCKET}/"), s3_client)

    @pytest.fixture
    def hanging_client(self, replica: S3Replica) -> Iterator[S3ReplicaClient]:  # `replica` brings the credentials
        with silent_endpoint() as endpoint:
            client = S3ReplicaClient(f"s3://{TEST_BUCKET}/silent?endpoint=http://{endpoint}")
            yield client
            client.close()


def test_writes_the_layout_and_the_metadata_of_litestream(client: S3ReplicaClient, replica: S3Replica):
    file = client.write(9, 1, 255, b"content", 1_767_323_045_670)
    key = f"{replica.path}/0009/0000000000000001-00000000000000ff.ltx"
    assert client.key(file) == key
    head = replica.raw.head_object(Bucket=TEST_BUCKET, Key=key)
    assert head["Metadata"] == {"litestream-timestamp": "2026-01-02T03:04:05.67Z"}
    assert head["ContentLength"] == 7
    assert abs(head["LastModified"].timestamp() * 1000 - file.modified_ms) <= 2000
    (listed,) = client.list_files(9)
    assert head["LastModified"].timestamp() == listed.modified_ms // 1000


def test_a_replica_may_lie_in_the_root_of_a_bucket(s3_server: S3Server, s3_client: Any, s3_url: Callable[[], str]):
    s3_url()  # for the credentials
    bucket = f"root-{uuid.uuid4().hex[:12]}"
    s3_client.create_bucket(Bucket=bucket)
    client = S3ReplicaClient(s3_server.url(bucket))
    client.write(0, 1, 1, b"x", 1)
    keys = [one["Key"] for one in s3_client.list_objects_v2(Bucket=bucket)["Contents"]]
    assert keys == ["0000/0000000000000001-0000000000000001.ltx"]
    (file,) = client.list_files(0)
    assert client.read(file) == b"x"
    client.delete([file])
    client.close()


def test_a_path_may_have_any_characters(s3_server: S3Server, s3_client: Any, s3_url: Callable[[], str]):
    s3_url()
    path = f"a b/ü+%41&=?#/{uuid.uuid4().hex[:8]}"
    client = S3ReplicaClient(s3_server.url(TEST_BUCKET, path))
    client.write(1, 1, 2, b"x", 1)
    listed = s3_client.list_objects_v2(Bucket=TEST_BUCKET, Prefix=f"{path}/")["Contents"]
    assert [one["Key"] for one in listed] == [f"{path}/0001/0000000000000001-0000000000000002.ltx"]
    (file,) = client.list_files(1)
    assert client.read(file, 0, 1) == b"x"
    client.close()


@pytest.mark.servers  # a thousand writes: what a listing of several pages is, `test_s3_answers.py` shows in small
def test_lists_more_files_than_a_page_holds_and_starts_after_the_old_ones(
    s3_server: S3Server, replica: S3Replica, client: S3ReplicaClient
):
    for txid in range(1, 1006):  # by our client: boto3 waits for leave before it sends a body
        client.write(0, txid, txid, b"x", 1)
    with running_s3_proxy(s3_server.endpoint) as proxy:
        proxied = S3ReplicaClient(replica.url.replace(s3_server.endpoint, proxy.endpoint))
        assert [file.min_txid for file in proxied.list_files(0)] == list(range(1, 1006))
        assert len(proxy.requests) == 2
        proxy.clear()
        assert [file.min_txid for file in proxied.list_files(0, 1004)] == [1004, 1005]
        assert len(proxy.requests) == 1
        assert proxied.requests == {"LIST": 3}
        proxied.close()
    client.delete(client.list_files(0))
    assert replica.names(0) == set()
    assert client.requests["DELETE"] == 2


def test_counts_its_requests_as_a_proxy_does(s3_server: S3Server, replica: S3Replica):
    with running_s3_proxy(s3_server.endpoint) as proxy:
        client = S3ReplicaClient(replica.url.replace(s3_server.endpoint, proxy.endpoint), part_size=PART_SIZE)
        file = client.write(0, 1, 1, io.BytesIO(bytes(2 * PART_SIZE)), 1)
        client.list_files(0)
        for offset in range(7):
            client.read(file, offset, 100)
        client.delete([file])
        seen = [request.method for request in proxy.requests]
        assert client.requests == {"PUT": 4, "LIST": 1, "GET": 7, "DELETE": 1}
        assert (seen.count("PUT"), seen.count("POST"), seen.count("GET"), seen.count("DELETE")) == (2, 2, 8, 1)
        assert [request.range for request in proxy.requests if request.range] == [
            f"bytes={offset}-{offset + 99}" for offset in range(7)
        ]
        client.close()


def test_an_upload_that_fails_leaves_no_parts_behind(client: S3ReplicaClient, replica: S3Replica):
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() >= PART_SIZE:
                raise OSError("the disk broke")
            return super().read(size)

    with pytest.raises(OSError, match="the disk broke"):
        client.write(0, 1, 1, Failing(bytes(2 * PART_SIZE)), 1)
    key = replica.key(0, "0000000000000001-0000000000000001.ltx")  # MinIO lists the uploads of a whole key only
    assert "Uploads" not in replica.raw.list_multipart_uploads(Bucket=TEST_BUCKET, Prefix=key)
    assert client.list_files(0) == []


def test_a_bucket_that_does_not_exist_is_not_an_empty_replica(s3_server: S3Server, s3_url: Callable[[], str]):
    s3_url()
    client = S3ReplicaClient(s3_server.url("no-such-bucket", "db"))
    calls: list[Callable[[], object]] = [
        lambda: client.list_files(0),
        lambda: client.read(LTXFileInfo(0, 1, 1, 9, 0), 0, 4),
        lambda: client.write(0, 1, 1, b"x", 1),
        lambda: client.delete([LTXFileInfo(0, 1, 1, 9, 0)]),
    ]
    for call in calls:
        with pytest.raises(StorageNotFoundError, match=r"NoSuchBucket.*hint: check the bucket"):
            call()
    client.close()


@pytest.mark.skipif(find_minio() is None, reason="moto checks no credentials")
@pytest.mark.plan("K09")
@pytest.mark.parametrize("wrong", ["access", "secret"])
def test_wrong_credentials_are_refused_and_never_shown(s3_server: S3Server, replica: S3Replica, wrong: str):
    access = "an-access-key-that-is-wrong" if wrong == "access" else s3_server.access_key
    client = S3ReplicaClient(replica.url, access_key_id=access, secret_access_key="a-wrong-secret")
    file = LTXFileInfo(0, 1, 1, 9, 0)
    calls: list[Callable[[], object]] = [
        lambda: client.list_files(0),
        lambda: client.read(file),
        lambda: client.write(0, 1, 1, b"x", 1),
        lambda: client.delete([file]),
    ]
    for call in calls:
        with pytest.raises(StoragePermissionError, match="credentials come from AWS_ACCESS_KEY_ID") as caught:
            call()
        assert "a-wrong-secret" not in f"{caught.value!r} {caught.value} {client!r} {vars(caught.value)}"
    client.close()


def test_credentials_of_litestream_count_where_aws_has_none(
    s3_server: S3Server, replica: S3Replica, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("LITESTREAM_ACCESS_KEY_ID", s3_server.access_key)
    monkeypatch.setenv("LITESTREAM_SECRET_ACCESS_KEY", s3_server.secret_key)
    monkeypatch.setenv("LITESTREAM_S3_ENDPOINT", s3_server.endpoint)
    client = S3ReplicaClient(replica.url.split("?")[0])
    assert client.list_files(0) == []
    assert s3_server.endpoint in client.url
    client.close()


def test_no_credentials_at_all_says_where_they_are_looked_for(
    replica: S3Replica, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    client = S3ReplicaClient(replica.url)
    with pytest.raises(StoragePermissionError, match=r"no credentials.*AWS_ACCESS_KEY_ID"):
        client.list_files(0)
    client.close()


def test_parallel_reads_share_few_connections(s3_server: S3Server, replica: S3Replica):
    from concurrent.futures import ThreadPoolExecutor

    replica.put(0, "0000000000000001-0000000000000001.ltx", bytes(100_000))
    client = S3ReplicaClient(replica.url, max_connections=4)
    (file,) = client.list_files(0)
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(lambda offset: client.read(file, offset, 100) == bytes(100), range(0, 80_000, 1000)))
    assert len(connections_to(s3_server)) <= 4 + 1  # one more: the plain client that looks past ours
    client.close()


def test_a_forked_child_drops_the_client_without_harm_to_its_parent(
    s3_server: S3Server, replica: S3Replica, client: S3ReplicaClient
):
    replica.put(0, "0000000000000001-0000000000000001.ltx", b"content")
    (file,) = client.list_files(0)
    before = connections_to(s3_server)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            client.close()
            own = replica.new_client()
            status = 0 if own.read(file) == b"content" else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert client.read(file) == b"content"
    assert connections_to(s3_server) == before  # no new one: the child ended none of them


@pytest.mark.skipif(find_minio() is None, reason="needs MinIO: moto speaks no TLS here")
def test_tls_certificates_are_checked_unless_told_and_customer_keys_work(tmp_path: Path):
    make_certificate(tmp_path)
    with running_s3_server(certs_dir=tmp_path) as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment().items():
            patch.setenv(name, value)
        raw = server.boto3_client(verify=str(tmp_path / "public.crt"))
        raw.create_bucket(Bucket="encrypted")
        url = server.url("encrypted", "db")
        patch.delenv("AWS_CA_BUNDLE", raising=False)
        strict = S3ReplicaClient(url)
        with pytest.raises(Exception, match=r"is not trusted.*skipVerify"):
            strict.list_files(0)
        strict.close()

        patch.setenv("AWS_CA_BUNDLE", str(tmp_path / "public.crt"))
        trusting = S3ReplicaClient(url, part_size=PART_SIZE)
        assert trusting.list_files(0) == []
        trusting.close()

        patch.delenv("AWS_CA_BUNDLE")
        encrypted = S3ReplicaClient(f"{url}&skipVerify=true&sseCustomerKey={SSE_KEY}", part_size=PART_SIZE)
        small = encrypted.write(0, 1, 1, b"secret content", 1)
        large = encrypted.write(0, 2, 2, bytes(PART_SIZE + 10), 1)
        assert encrypted.read(small, 7) == b"content"
        assert encrypted.read(large, PART_SIZE - 1, 5) == bytes(5)
        assert [file.size for file in encrypted.list_files(0)] == [14, PART_SIZE + 10]
        plain = S3ReplicaClient(f"{url}&skipVerify=true")
        with pytest.raises(Exception, match="answered 400"):
            plain.read(small)
        with pytest.raises(raw.exceptions.ClientError):
            raw.get_object(Bucket="encrypted", Key=encrypted.key(small))
        for client in (encrypted, plain, raw):
            client.close()


@pytest.mark.plan("L11")
def test_close_ends_a_request_that_a_slow_server_holds(s3_server: S3Server, replica: S3Replica):
    replica.put(0, "0000000000000001-0000000000000001.ltx", b"content")
    with running_s3_proxy(s3_server.endpoint, delay_s=60.0) as proxy:
        client = S3ReplicaClient(replica.url.replace(s3_server.endpoint, proxy.endpoint))
        errors: list[BaseException] = []

        def list_files() -> None:
            try:
                client.list_files(0)
            except BaseException as error:  # noqa: BLE001 - looked at below
                errors.append(error)

        thread = threading.Thread(target=list_files)
        thread.start()
        wait_until(lambda: proxy.requests)
        client.close()
        thread.join(1.0)
        assert not thread.is_alive()
        assert "closed" in str(errors[0])


def test_a_server_that_is_gone_is_transient(replica: S3Replica):
    with running_s3_proxy("http://127.0.0.1:1") as proxy:
        endpoint = proxy.endpoint
    client = S3ReplicaClient(f"s3://bucket/db?endpoint={endpoint}")
    with pytest.raises(TransientStorageError, match=f"cannot connect to {endpoint}"):
        client.list_files(0)
    client.close()


def connections_to(server: S3Server) -> set[int]:
    """The local ports of this process's connections to the server."""
    import psutil

    port = int(server.endpoint.rpartition(":")[2])
    connections = psutil.Process().net_connections("tcp")
    return {one.laddr.port for one in connections if one.raddr and one.raddr.port == port}


def make_certificate(folder: Path) -> None:
    subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(folder / "private.key"), "-out", str(folder / "public.crt")]
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    subprocess.run(["openssl", "req", "-x509", *kind, *subject, *files], check=True, capture_output=True)
