"""The conformance suite against S3 servers as others run them."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from litevfs.testing.client_conformance import ReplicaClientConformance
from litevfs.testing.s3_server import S3Server
from tests.replica_clients.s3_replicas import PART_SIZE, S3Replica
from tests.servers import S3_SERVERS

pytestmark = pytest.mark.servers

BUCKET = "litevfs-test"


@pytest.fixture(scope="module", params=sorted(S3_SERVERS))
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with S3_SERVERS[request.param](tmp_path_factory.mktemp(request.param)) as server:
        yield server


@pytest.fixture
def raw(server: S3Server) -> Iterator[Any]:
    client = server.boto3_client()
    if BUCKET not in [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]:
        client.create_bucket(Bucket=BUCKET)
    yield client
    client.close()


class TestS3Servers(ReplicaClientConformance):
    slow_upload_bytes = 2 * PART_SIZE + 1_000_000

    @pytest.fixture
    def replica(self, server: S3Server, raw: Any, monkeypatch: pytest.MonkeyPatch) -> S3Replica:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        for name in ("AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_ENDPOINT_URL", "LITESTREAM_S3_ENDPOINT"):
            monkeypatch.delenv(name, raising=False)
        path = f"replica-{uuid.uuid4().hex[:12]}"
        return S3Replica(server.url(BUCKET, path), BUCKET, path, raw)
