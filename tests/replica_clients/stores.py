"""Every storage with its real server on this machine, with a proxy that delays and injects faults before it."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from litevfs.testing.conformance_base import ReplicaUnderTest
from litevfs.testing.s3_proxy import HTTPProxy, running_s3_proxy
from litevfs.testing.s3_server import running_s3_server
from litevfs.testing.tcp_proxy import TCPProxy
from tests.replica_clients import store_servers as servers
from tests.replica_clients.s3_replicas import S3Replica
from tests.replica_clients.store_replicas import (
    AzureReplica,
    FolderReplica,
    GSReplica,
    NATSReplica,
    SFTPReplica,
    WebDAVReplica,
)

Proxy = HTTPProxy | TCPProxy
_SETTINGS: dict[str, tuple[str, ...]] = {
    "s3": (
        *("AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"),
        *("LITESTREAM_ACCESS_KEY_ID", "LITESTREAM_SECRET_ACCESS_KEY", "LITESTREAM_S3_ENDPOINT"),
    ),
    "abs": (*("LITESTREAM_AZURE_SAS_TOKEN", "AZURE_STORAGE_SAS_TOKEN", "AZURE_STORAGE_KEY", "AZURE_STORAGE_ACCOUNT"),),
}
"""Of the environment, that would lead a client elsewhere."""


@dataclass(frozen=True)
class Store:
    """A storage of this machine. Its replicas look at it by `address`, and their clients reach it by any other, too."""

    address: str  # host:port
    is_http: bool
    new_replica: Callable[[str], ReplicaUnderTest]  # an empty one, whose clients use the given host:port

    @contextmanager
    def behind_proxy(self, delay_s: float = 0.0) -> Iterator[Proxy]:
        """A proxy before the server; `address_of` it is for `new_replica`."""
        if self.is_http:
            with running_s3_proxy(f"http://{self.address}", delay_s=delay_s) as http:
                yield http
            return
        host, _, port = self.address.partition(":")
        with TCPProxy((host, int(port)), delay_s=delay_s) as tcp:
            yield tcp


def address_of(proxy: Proxy | str) -> str:
    """host:port of a proxy or of an endpoint's URL."""
    if isinstance(proxy, TCPProxy):
        return f"127.0.0.1:{proxy.port}"
    endpoint = proxy if isinstance(proxy, str) else proxy.endpoint
    return endpoint.rpartition("//")[2].partition("/")[0]


def _path() -> str:
    return f"replicas/{uuid.uuid4().hex[:12]}"


@contextmanager
def _http(work: Path, patch: pytest.MonkeyPatch) -> Iterator[Store]:
    """nginx with an index; the standard library's server where there is no nginx."""
    served = work / "served"
    served.mkdir()
    try:
        servers.need_program("nginx")
        server = servers.nginx(served, work)
    except pytest.skip.Exception:
        server = servers.static_server(served)

    def new(address: str) -> ReplicaUnderTest:
        path = _path()
        return FolderReplica(f"http://{address}/{path}", served / path, is_indexed=True)

    with server as endpoint:
        yield Store(address_of(endpoint), True, new)


@contextmanager
def _s3(work: Path, patch: pytest.MonkeyPatch) -> Iterator[Store]:
    with running_s3_server() as server:
        for name, value in server.environment().items():
            patch.setenv(name, value)
        raw = server.boto3_client()
        raw.create_bucket(Bucket=servers.BUCKET)

        def new(address: str) -> ReplicaUnderTest:
            path = _path()
            return S3Replica(server.url(servers.BUCKET, path, endpoint=f"http://{address}"), servers.BUCKET, path, raw)

        try:
            yield Store(address_of(server.endpoint), True, new)
        finally:
            raw.close()


@contextmanager
def _gs(work: Path, patch: pytest.MonkeyPatch) -> Iterator[Store]:
    with servers.fake_gcs(work) as endpoint:

        def new(address: str) -> ReplicaUnderTest:
            patch.setenv("STORAGE_EMULATOR_HOST", f"http://{address}")
            return GSReplica(endpoint)

        yield Store(address_of(endpoint), True, new)


@contextmanager
def _azure(work: Path, patch: pytest.MonkeyPatch) -> Iterator[Store]:
    patch.setenv("LITESTREAM_AZURE_ACCOUNT_KEY", servers.AZURE_KEY)
    with servers.azurite(work) as endpoint:

        def new(address: str) -> ReplicaUnderTest:
            replica = AzureReplica(endpoint)
            replica.url = replica.url_at(f"http://{address}/{servers.AZURE_ACCOUNT}")
            return replica

        yield Store(address_of(endpoint), True, new)


@contextmanager
def _webdav(work: Path, patch: pytest.MonkeyPatch) -> Iterator[Store]:
    patch.setenv("LITEVFS_WEBDAV_PASSWORD", servers.WEBDAV_PASSWORD)
    (work / "dav").mkdir()
    with servers.rclone_webdav(work / "dav", work) as server:

        def new(address: str) -> ReplicaUnderTest:
            replica = WebDAVReplica(server, work / "dav")
            replica.url = replica.url_at(address)
            return replica

        yield Store(server, True, new)


@contextmanager
def _sftp(work: Path, patch: pytest.MonkeyPatch) -> Iterator[Store]:
    pytest.importorskip("paramiko", reason="pip install litevfs[sftp]")
    with servers.sshd(work) as (port, keys):
        yield Store(f"127.0.0.1:{port}", False, lambda address: SFTPReplica(int(address[10:]), keys, work / _path()))


@contextmanager
def _nats(work: Path, patch: pytest.MonkeyPatch) -> Iterator[Store]:
    pytest.importorskip("nats", reason="pip install litevfs[nats]")
    patch.setenv("LITEVFS_NATS_PASSWORD", servers.NATS_PASSWORD)
    with servers.nats_server(work) as port:
        server = f"127.0.0.1:{port}"

        def new(address: str) -> ReplicaUnderTest:
            replica = NATSReplica(port)
            replica.url = replica.url.replace(server, address)
            return replica

        yield Store(server, False, new)


STORES: dict[str, Callable[[Path, pytest.MonkeyPatch], AbstractContextManager[Store]]] = {
    "http": _http,
    "s3": _s3,
    "gs": _gs,
    "abs": _azure,
    "webdav": _webdav,
    "sftp": _sftp,
    "nats": _nats,
}
"""By scheme."""


@contextmanager
def running_store(scheme: str, work: Path) -> Iterator[Store]:
    """The storage, with what its clients need in the environment. Skips where its server or package is missing."""
    with pytest.MonkeyPatch.context() as patch:
        for name in _SETTINGS.get(scheme, ()):
            patch.delenv(name, raising=False)
        with STORES[scheme](work, patch) as store:
            yield store
