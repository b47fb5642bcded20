"""The conformance suite against S3 servers as others run them, and what `litevfs doctor` finds there."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import closing

import pytest

from litevfs.operations.doctor import Outcome, examine
from litevfs.testing.client_conformance import ReplicaClientConformance
from litevfs.testing.s3_server import S3Server
from tests.replica_clients.s3_replicas import PART_SIZE, S3Replica
from tests.servers import S3_SERVERS

pytestmark = pytest.mark.servers


@pytest.fixture(scope="module", params=sorted(S3_SERVERS))
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with S3_SERVERS[request.param](tmp_path_factory.mktemp(request.param)) as server:
        yield server


@pytest.fixture
def replica(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Replica]:
    """An empty replica in a bucket of its own: rclone reads all files of a bucket to list some."""
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_ENDPOINT_URL", "LITESTREAM_S3_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    bucket = f"litevfs-{uuid.uuid4().hex[:12]}"
    with closing(server.boto3_client()) as raw:
        raw.create_bucket(Bucket=bucket)
        # The end of an upload in parts is at times never answered by `rclone serve s3`.
        part_size = 256 << 20 if server.kind == "rclone" else PART_SIZE
        yield S3Replica(server.url(bucket, "a replica"), bucket, "a replica", raw, part_size)
        for one in raw.list_objects_v2(Bucket=bucket).get("Contents", ()):
            raw.delete_object(Bucket=bucket, Key=one["Key"])


_WRITERS_OF_ONE_KEY = ("test_of_several_writers_with_one", "test_of_writers_at_once_that_are_exclusive")


class TestS3Servers(ReplicaClientConformance):
    slow_upload_bytes = 2 * PART_SIZE + 1_000_000

    @pytest.fixture(autouse=True)
    def _skip_what_a_server_cannot(self, request: pytest.FixtureRequest, server: S3Server) -> None:
        if server.kind == "rclone" and request.node.name.startswith(_WRITERS_OF_ONE_KEY):
            pytest.skip("`rclone serve s3` never answers several writers of one key")


def test_the_doctor_finds_what_a_reader_and_a_primary_need(server: S3Server, replica: S3Replica):
    checks = examine(replica.url)
    assert [check for check in checks if check.outcome is Outcome.FAILED] == []
    assert {"write", "read back", "condition", "delete"} <= {check.name for check in checks}
    assert replica.raw.list_objects_v2(Bucket=replica.bucket).get("Contents", []) == []
    if server.kind in ("minio", "versitygw"):
        assert {check.name: check.outcome for check in checks}["condition"] is Outcome.OK
