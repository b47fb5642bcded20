"""The conformance suite against S3 servers as others run them, and what `litevfs doctor` finds there."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from litevfs.operations.doctor import Outcome, examine
from litevfs.testing.client_conformance import ReplicaClientConformance
from litevfs.testing.s3_server import S3Server, running_s3_server
from tests.replica_clients.s3_replicas import PART_SIZE, S3Replica
from tests.servers import running_minio, running_rclone, running_versitygw

pytestmark = pytest.mark.servers


@pytest.fixture(scope="module")
def minio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with running_minio(tmp_path_factory.mktemp("minio")) as server:
        yield server


@pytest.fixture(scope="module")
def versitygw(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with running_versitygw(tmp_path_factory.mktemp("versitygw")) as server:
        yield server


@pytest.fixture(scope="module")
def moto() -> Iterator[S3Server]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LITEVFS_TEST_S3_SERVER", "moto")
        with running_s3_server() as server:
            yield server


@pytest.fixture
def rclone(tmp_path: Path) -> Iterator[S3Server]:
    """Without buckets."""
    with running_rclone(tmp_path) as server:
        yield server


@pytest.fixture(params=["minio", "versitygw", "rclone", "moto"])
def server(request: pytest.FixtureRequest) -> S3Server:
    return request.getfixturevalue(request.param)


@pytest.fixture
def replica(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Replica]:
    """An empty replica in a bucket of its own."""
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_ENDPOINT_URL", "LITESTREAM_S3_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    bucket = f"litevfs-{uuid.uuid4().hex[:12]}"
    with closing(server.boto3_client()) as raw:
        raw.create_bucket(Bucket=bucket)
        yield S3Replica(server.url(bucket, "a replica"), bucket, "a replica", raw)
        for one in raw.list_objects_v2(Bucket=bucket).get("Contents", ()):
            raw.delete_object(Bucket=bucket, Key=one["Key"])


class TestS3Servers(ReplicaClientConformance):
    slow_upload_bytes = 2 * PART_SIZE + 1_000_000


def test_the_doctor_finds_what_a_reader_and_a_primary_need(server: S3Server, replica: S3Replica):
    checks = examine(replica.url)
    assert [check for check in checks if check.outcome is Outcome.FAILED] == []
    assert {"write", "read back", "condition", "delete"} <= {check.name for check in checks}
    assert replica.raw.list_objects_v2(Bucket=replica.bucket).get("Contents", []) == []
    assert {check.name: check.outcome for check in checks}["condition"] is Outcome.OK
