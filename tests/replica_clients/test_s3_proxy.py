"""The test tools themselves: a proxy that miscounts would make every request count worthless."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from litevfs.replica_clients.s3.client import S3ReplicaClient
from litevfs.testing.fixtures import TEST_BUCKET
from litevfs.testing.s3_proxy import running_s3_proxy
from litevfs.testing.s3_server import S3Server

pytestmark = pytest.mark.s3


def test_records_every_request_and_changes_no_byte(s3_server: S3Server, s3_url: Callable[[], str], s3_client: Any):
    with running_s3_proxy(s3_server.endpoint) as proxy:
        client = S3ReplicaClient(s3_url().replace(s3_server.endpoint, proxy.endpoint))
        data = bytes(range(256)) * 8192
        file = client.write(0, 1, 1, data, 1)
        assert client.read(file) == data
        assert client.read(file, 1000, 50) == data[1000:1050]
        assert s3_client.get_object(Bucket=TEST_BUCKET, Key=client.key(file))["Body"].read() == data
        path = f"/{TEST_BUCKET}/{client.key(file)}"
        seen = [(one.method, one.path, one.range) for one in proxy.requests]
        assert seen == [("PUT", path, None), ("GET", path, None), ("GET", path, "bytes=1000-1049")]
        client.list_files(0)
        assert "list-type=2" in proxy.requests[-1].query
        proxy.clear()
        assert proxy.requests == []
        client.close()


def test_delays_each_request_once_and_parallel_ones_together(s3_server: S3Server, s3_url: Callable[[], str]):
    with running_s3_proxy(s3_server.endpoint, delay_s=0.05) as proxy:
        client = S3ReplicaClient(s3_url().replace(s3_server.endpoint, proxy.endpoint))
        file = client.write(0, 1, 1, bytes(1000), 1)
        started = time.monotonic()
        for _ in range(4):
            client.read(file, 0, 10)
        assert time.monotonic() - started >= 4 * 0.05
        proxy.delay_s = 0.2  # much more than what a loaded machine adds to all of them
        with ThreadPoolExecutor(8) as pool:
            started = time.monotonic()
            list(pool.map(lambda _: client.read(file, 0, 10), range(32)))
            elapsed = time.monotonic() - started
        assert 4 * 0.2 <= elapsed < 32 * 0.2
        client.close()


def test_requests_reach_the_server_through_an_http_proxy_of_the_environment(
    s3_server: S3Server, s3_url: Callable[[], str], monkeypatch: pytest.MonkeyPatch
):
    """A forward proxy gets whole URLs as targets; MinIO takes those too, so that any relay serves as one."""
    url = s3_url()
    with running_s3_proxy(s3_server.endpoint) as proxy:
        monkeypatch.setenv("http_proxy", proxy.endpoint.replace("http://", "http://user:pass-word@"))
        monkeypatch.setenv("no_proxy", "")
        monkeypatch.setenv("NO_PROXY", "")
        client = S3ReplicaClient(url)
        file = client.write(0, 1, 1, b"content", 1)
        assert client.read(file, 3, 4) == b"tent"
        assert [one.path.startswith(f"{s3_server.endpoint}/") for one in proxy.requests] == [True, True]
        assert "pass-word" not in client.url
        client.close()
