"""Places that several primaries write to: a replica's URL on each storage that can be written to, with its server."""

from __future__ import annotations

import asyncio
import getpass
import os
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import urllib3

from litevfs.replica_clients.azure_access import AzureAccess
from litevfs.testing import odd_s3_server
from litevfs.testing.s3_oddities import Oddity
from litevfs.testing.s3_server import S3Server
from tests.replica_clients import store_servers as stores
from tests.servers import running_minio, running_versitygw


@dataclass(frozen=True, slots=True)
class Place:
    """Where the primaries write, and how its lease is kept."""

    url: str
    lease: str  # "conditions" or "read-back"
    environment: dict[str, str] = field(default_factory=dict)
    settle_s: float = 0.2  # the pause after a claim, where the lease is read back; longer than a request takes


def _file(folder: Path) -> Iterator[Place]:
    yield Place((folder / "replica").as_uri(), "conditions")


def _ignoring_file(folder: Path) -> Iterator[Place]:
    yield Place(f"ignoring://{folder / 'replica'}", "read-back")


def _memory(folder: Path) -> Iterator[Place]:
    yield Place(f"memory://{uuid.uuid4().hex}", "conditions")


def _s3(server: S3Server) -> Iterator[Place]:
    environment = {"AWS_EC2_METADATA_DISABLED": "true", "AWS_SESSION_TOKEN": ""} | server.environment()
    with closing(server.boto3_client()) as raw:
        raw.create_bucket(Bucket="contended")
    yield Place(server.url("contended", "db"), "conditions", environment)


def _minio(folder: Path) -> Iterator[Place]:
    with running_minio(folder) as server:
        yield from _s3(server)


def _versitygw(folder: Path) -> Iterator[Place]:
    with running_versitygw(folder) as server:
        yield from _s3(server)


def _ignoring_s3(folder: Path) -> Iterator[Place]:
    environment = {
        "AWS_ACCESS_KEY_ID": odd_s3_server.ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": odd_s3_server.SECRET_KEY,
        "AWS_SESSION_TOKEN": odd_s3_server.SESSION_TOKEN,
    }
    with odd_s3_server.running_odd_s3_server(Oddity(name="odd", seen="here", condition="ignored")) as server:
        url = f"s3://{odd_s3_server.BUCKET}/db?endpoint={server.endpoint}"
        yield Place(url, "read-back", environment, settle_s=0.5)


def _gs(folder: Path) -> Iterator[Place]:
    pytest.importorskip("google.auth", reason="needs the extra `gs` (pip install 'litevfs[gs]')")
    with stores.fake_gcs(folder) as endpoint:
        yield Place(f"gs://{stores.BUCKET}/db", "conditions", {"STORAGE_EMULATOR_HOST": endpoint})


def _azure(folder: Path) -> Iterator[Place]:
    with stores.azurite(folder) as endpoint, pytest.MonkeyPatch.context() as patch:
        environment = {"LITESTREAM_AZURE_ACCOUNT_KEY": stores.AZURE_KEY}
        patch.setenv(*environment.copy().popitem())
        url = f"{endpoint}/{stores.BUCKET}?restype=container"
        signed = AzureAccess(stores.AZURE_ACCOUNT).authorize("PUT", url, {"Content-Length": "0"}, None)
        with urllib3.PoolManager() as http:
            assert http.request("PUT", url, headers=signed).status == 201
        place = f"abs://{stores.AZURE_ACCOUNT}@{stores.BUCKET}/db?endpoint={endpoint}"
        yield Place(place, "conditions", environment)


def _sftp(folder: Path) -> Iterator[Place]:
    pytest.importorskip("paramiko", reason="needs the extra `sftp` (pip install 'litevfs[sftp]')")
    keys = folder / "keys"
    keys.mkdir()
    with stores.sshd(keys) as (port, _):
        options = f"absolute=true&keyPath={keys}/client_key&knownHosts={keys}/known_hosts"
        url = f"sftp://{getpass.getuser()}@127.0.0.1:{port}{folder / 'replica'}?{options}"
        yield Place(url, "read-back", settle_s=0.5)


def _webdav(folder: Path) -> Iterator[Place]:
    (folder / "data").mkdir()
    with stores.rclone_webdav(folder / "data", folder) as endpoint:
        url = f"webdav://{stores.WEBDAV_USER}@{endpoint}/db"
        yield Place(url, "read-back", {"LITEVFS_WEBDAV_PASSWORD": stores.WEBDAV_PASSWORD}, settle_s=0.5)


def _nats(folder: Path) -> Iterator[Place]:
    nats = pytest.importorskip("nats", reason="needs the extra `nats` (pip install 'litevfs[nats]')")

    async def make_bucket(port: int) -> None:
        client = await nats.connect(f"nats://127.0.0.1:{port}", user=stores.NATS_USER, password=stores.NATS_PASSWORD)
        await client.jetstream().create_object_store("contended")
        await client.close()

    with stores.nats_server(folder) as port:
        asyncio.run(make_bucket(port))
        environment = {"LITEVFS_NATS_PASSWORD": stores.NATS_PASSWORD}
        yield Place(f"nats://{stores.NATS_USER}@127.0.0.1:{port}/contended", "conditions", environment)


_PLACES = {
    "file": _file,
    "ignoring file": _ignoring_file,
    "memory": _memory,
    "minio": _minio,
    "versitygw": _versitygw,
    "ignoring s3": _ignoring_s3,
    "gs": _gs,
    "azure": _azure,
    "sftp": _sftp,
    "webdav": _webdav,
    "nats": _nats,
}
WITH_SERVERS = tuple(name for name in _PLACES if name not in ("file", "ignoring file", "memory", "ignoring s3"))


@contextmanager
def environment_of(place: Place) -> Iterator[None]:
    """The place's environment for this process too, which looks at what came out."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(("AWS_", "LITESTREAM_")):
                patch.delenv(name)
        for name, value in place.environment.items():
            if value:
                patch.setenv(name, value)
        yield


def place(kind: str, folder: Path) -> AbstractContextManager[Place]:
    """A place of this kind, empty. Skips the test where its server or package is missing."""
    folder.mkdir()
    return contextmanager(_PLACES[kind])(folder)
