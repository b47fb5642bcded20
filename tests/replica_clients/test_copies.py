"""A replica that goes from storage to storage, and is the same at the end."""

from __future__ import annotations

import asyncio
import getpass
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from litevfs.operations.copy import copy_replica
from litevfs.replica_clients.base import LEVELS
from litevfs.replica_clients.urls import open_replica_client
from tests.replica_clients import store_servers as servers

ORDERS = Path(__file__).parents[1] / "fixtures" / "orders" / "replica"


@pytest.fixture
def urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Empty replicas, one in each storage that has a server here; those whose server is missing are left out."""
    monkeypatch.setenv("LITESTREAM_AZURE_ACCOUNT_KEY", servers.AZURE_KEY)
    monkeypatch.setenv("LITEVFS_WEBDAV_PASSWORD", servers.WEBDAV_PASSWORD)
    monkeypatch.setenv("LITEVFS_NATS_PASSWORD", servers.NATS_PASSWORD)
    found = []
    with ExitStack() as stack:
        for start in (_gs, _webdav, _sftp, _nats):
            work = tmp_path / start.__name__
            work.mkdir()
            try:
                found.append(start(stack, work, monkeypatch))
            except pytest.skip.Exception:
                continue
        yield found


def _gs(stack: ExitStack, work: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", stack.enter_context(servers.fake_gcs(work)))
    return f"gs://{servers.BUCKET}/app"


def _webdav(stack: ExitStack, work: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (work / "dav").mkdir()
    endpoint = stack.enter_context(servers.rclone_webdav(work / "dav", work))
    return f"webdav://{servers.WEBDAV_USER}@{endpoint}/app"


def _sftp(stack: ExitStack, work: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    pytest.importorskip("paramiko")
    port, keys = stack.enter_context(servers.sshd(work))
    options = f"absolute=true&keyPath={keys}/client_key&knownHosts={keys}/known_hosts"
    return f"sftp://{getpass.getuser()}@127.0.0.1:{port}{work}/app?{options}"


def _nats(stack: ExitStack, work: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    nats = pytest.importorskip("nats")
    port = stack.enter_context(servers.nats_server(work))

    async def make_bucket() -> None:
        client = await nats.connect(f"nats://127.0.0.1:{port}", user=servers.NATS_USER, password=servers.NATS_PASSWORD)
        await client.jetstream().create_object_store("app")
        await client.close()

    asyncio.run(make_bucket())
    return f"nats://{servers.NATS_USER}@127.0.0.1:{port}/app"


def content_of(url: str) -> dict[tuple[int, str], bytes]:
    client = open_replica_client(url)
    try:
        return {(file.level, file.name): client.read(file) for level in LEVELS for file in client.list_files(level)}
    finally:
        client.close()


@pytest.mark.servers
def test_a_replica_copied_through_every_storage_is_the_same(urls: list[str], tmp_path: Path):
    source, expected = f"file://{ORDERS}", content_of(f"file://{ORDERS}")
    assert urls
    for url in [*urls, f"file://{tmp_path}/end"]:
        assert copy_replica(source, url).files == len(expected)
        assert copy_replica(source, url).skipped == len(expected)  # a second copy has nothing to do
        assert content_of(url) == expected
        source = url
