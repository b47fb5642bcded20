"""pytest fixtures: a running S3 server and fresh replica URLs on it. Use: `from litevfs.testing.fixtures import *`."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from litevfs.testing.s3_server import S3Server, running_s3_server

__all__ = ["TEST_BUCKET", "s3_client", "s3_server", "s3_url"]

TEST_BUCKET = "litevfs-test"
"""The bucket that `s3_url` puts replicas in."""


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """An S3 server for the whole test run, with the bucket `TEST_BUCKET`."""
    with running_s3_server() as server:
        client = server.boto3_client()
        client.create_bucket(Bucket=TEST_BUCKET)
        client.close()
        yield server


@pytest.fixture
def s3_client(s3_server: S3Server) -> Iterator[Any]:
    """A plain boto3 client of the server, to read it without the code under test."""
    client = s3_server.boto3_client()
    yield client
    client.close()


@pytest.fixture
def s3_url(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Callable[[], str]:
    """Makes the URL of a new, empty replica at each call; the server's credentials are in the environment."""
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    for name in ("LITESTREAM_ACCESS_KEY_ID", "LITESTREAM_SECRET_ACCESS_KEY", "LITESTREAM_S3_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    return lambda: s3_server.url(TEST_BUCKET, f"replica-{uuid.uuid4().hex[:12]}")
