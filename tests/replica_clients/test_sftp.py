"""SFTP, as OpenSSH speaks it."""

from __future__ import annotations

import getpass
import os
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from litevfs.errors import (
    OptionError,
    ReplicaURLError,
    StorageClosedError,
    StorageError,
    StoragePermissionError,
    StorageTimeoutError,
    TransientStorageError,
)
from litevfs.replica_clients.base import LTXFileInfo
from litevfs.replica_clients.sftp import SFTPReplicaClient
from litevfs.replica_clients.urls import canonical_url, open_replica_client
from litevfs.testing.client_conformance import ReplicaClientConformance, silent_endpoint
from litevfs.testing.conformance_base import TIMESTAMP_MS, file_name
from litevfs.testing.tcp_proxy import TCPProxy
from tests.replica_clients.interop import exchange
from tests.replica_clients.store_servers import sshd

pytest.importorskip("paramiko", reason="pip install litevfs[sftp]")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Path]]:
    with sshd(tmp_path_factory.mktemp("sshd")) as server:
        yield server


def url_at(port: int, keys: Path, path: Path, known_hosts: str = "known_hosts") -> str:
    options = f"absolute=true&keyPath={keys}/client_key&knownHosts={keys}/{known_hosts}"
    return f"sftp://{getpass.getuser()}@127.0.0.1:{port}{path}?{options}"


class SFTPReplica:
    def __init__(self, port: int, keys: Path, folder: Path) -> None:
        self.port, self.keys, self.folder = port, keys, folder
        self.url = url_at(port, keys, folder)
        self._puts = 0

    def new_client(self) -> SFTPReplicaClient:
        return SFTPReplicaClient(self.url)

    def path(self, level: int, name: str) -> Path:
        return self.folder / "ltx" / str(level) / name

    def put(self, level: int, name: str, data: bytes) -> None:
        path = self.path(level, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{name}.{uuid.uuid4().hex}")
        temporary.write_bytes(data)
        self._puts += 1  # times are whole seconds
        os.utime(temporary, (0, TIMESTAMP_MS // 1000 + self._puts))
        temporary.replace(path)

    def get(self, level: int, name: str) -> bytes | None:
        path = self.path(level, name)
        return path.read_bytes() if path.exists() else None

    def names(self, level: int) -> set[str]:
        folder = self.path(level, "")
        return {path.name for path in folder.iterdir()} if folder.exists() else set()

    def timestamp_ms(self, level: int, name: str) -> int:
        return self.path(level, name).stat().st_mtime_ns // 1_000_000


@pytest.fixture
def sftp_replica(server: tuple[int, Path], tmp_path: Path) -> SFTPReplica:
    return SFTPReplica(*server, tmp_path / "replica")


@pytest.mark.servers
class TestSFTPReplicaClient(ReplicaClientConformance):
    @pytest.fixture
    def replica(self, sftp_replica: SFTPReplica) -> SFTPReplica:
        return sftp_replica

    @pytest.fixture
    def hanging_client(self, server: tuple[int, Path]) -> Iterator[SFTPReplicaClient]:
        with silent_endpoint() as silent:
            client = SFTPReplicaClient(url_at(int(silent.rpartition(":")[2]), server[1], Path("/silent")))
            yield client
            client.close()

    def test_keeps_the_timestamp(self, client, replica) -> None:
        """In whole seconds: the protocol has no finer ones."""
        for txid, timestamp_ms in enumerate([TIMESTAMP_MS, 0, 1_767_323_045_000], start=1):
            client.write(0, txid, txid, b"x", timestamp_ms)
            assert replica.timestamp_ms(0, file_name(txid, txid)) == timestamp_ms // 1000 * 1000


@pytest.fixture
def behind_proxy(sftp_replica: SFTPReplica, tmp_path: Path) -> Iterator[tuple[SFTPReplica, TCPProxy]]:
    with TCPProxy(("127.0.0.1", sftp_replica.port)) as proxy:
        known = (sftp_replica.keys / "known_hosts").read_text().replace(str(sftp_replica.port), str(proxy.port))
        (sftp_replica.keys / f"known_{proxy.port}").write_text(known)
        sftp_replica.url = url_at(proxy.port, sftp_replica.keys, sftp_replica.folder, f"known_{proxy.port}")
        yield sftp_replica, proxy


@pytest.mark.servers
def test_a_dropped_connection_is_transient_and_made_again(behind_proxy: tuple[SFTPReplica, TCPProxy]):
    replica, proxy = behind_proxy
    replica.put(0, file_name(1, 1), b"x" * 500_000)
    client = replica.new_client()
    (file,) = client.list_files(0)
    assert len(client.read(file)) == 500_000
    proxy.cut_after(100_000)
    with pytest.raises(TransientStorageError) as caught:
        client.read(file)
    assert file_name(1, 1) in str(caught.value)
    assert len(client.read(file)) == 500_000
    proxy.drop()
    with pytest.raises(TransientStorageError):
        client.list_files(0)
    assert client.list_files(0) == [file]
    client.close()


@pytest.mark.servers
def test_a_broken_connection_is_made_again_before_its_thread_has_seen_it(behind_proxy: tuple[SFTPReplica, TCPProxy]):
    replica, proxy = behind_proxy
    replica.put(0, file_name(1, 1), b"x")
    client = replica.new_client()
    (file,) = client.list_files(0)
    transport = client._connection._ssh.get_transport()
    proxy.drop()
    with pytest.raises(TransientStorageError):
        client.list_files(0)
    transport.is_active = lambda: True  # as long as the thread that receives has not run
    assert client.list_files(0) == [file]
    client.close()


@pytest.mark.servers
def test_an_upload_that_breaks_off_leaves_what_was_there(behind_proxy: tuple[SFTPReplica, TCPProxy]):
    replica, proxy = behind_proxy
    client = replica.new_client()
    client.write(0, 1, 1, b"before", TIMESTAMP_MS)
    proxy.cut_after(200_000)
    with pytest.raises(TransientStorageError):
        client.write(0, 1, 1, b"y" * 2_000_000, TIMESTAMP_MS)
    assert replica.get(0, file_name(1, 1)) == b"before"
    assert [file.size for file in client.list_files(0)] == [6]
    client.close()


@pytest.mark.servers
def test_a_server_that_hangs_ends_no_later_than_asked_and_closing_ends_it(behind_proxy: tuple[SFTPReplica, TCPProxy]):
    replica, proxy = behind_proxy
    replica.put(0, file_name(1, 1), b"x" * 500_000)
    client = replica.new_client()
    (file,) = client.list_files(0)
    assert client.read(file, 0, 5) == b"xxxxx"
    proxy.hold()
    began = time.monotonic()
    with pytest.raises(StorageTimeoutError):
        client.read(file, timeout_s=0.3)
    assert time.monotonic() - began < 5
    raised: list[StorageError] = []

    def read() -> None:
        try:
            client.read(file)
        except StorageError as error:
            raised.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    thread.join(0.3)
    began = time.monotonic()
    client.close()
    thread.join(10)
    assert time.monotonic() - began < 1
    assert [type(error) for error in raised] == [StorageClosedError]


@pytest.mark.servers
def test_a_host_key_that_is_not_known_is_refused(sftp_replica: SFTPReplica, tmp_path: Path):
    (tmp_path / "client_key").write_bytes((sftp_replica.keys / "client_key").read_bytes())
    (tmp_path / "client_key").chmod(0o600)
    other = (sftp_replica.keys / "client_key.pub").read_text()
    for known in ("", f"[127.0.0.1]:{sftp_replica.port} {other}"):
        (tmp_path / "known_hosts").write_text(known)
        client = SFTPReplicaClient(url_at(sftp_replica.port, tmp_path, sftp_replica.folder))
        with pytest.raises(StoragePermissionError, match=r"host key.*known_hosts"):
            client.list_files(0)
        client.close()


@pytest.mark.servers
def test_a_host_key_may_be_named_in_the_url(sftp_replica: SFTPReplica):
    key = " ".join((sftp_replica.keys / "host_key.pub").read_text().split()[:2])
    replica = SFTPReplica(sftp_replica.port, sftp_replica.keys, sftp_replica.folder)
    client = SFTPReplicaClient(f"{replica.url.partition('&knownHosts')[0]}&hostKey={quote(key, safe='')}")
    assert client.list_files(0) == []
    client.close()


@pytest.mark.servers
def test_a_key_that_is_refused_says_where_keys_come_from(sftp_replica: SFTPReplica):
    client = SFTPReplicaClient(sftp_replica.url.replace("client_key", "host_key"))
    with pytest.raises(StoragePermissionError, match=r"refuses to log in.*keyPath"):
        client.list_files(0)
    client.close()


@pytest.mark.servers
def test_a_client_goes_on_in_the_child_of_a_fork_and_in_its_parent(sftp_replica: SFTPReplica):
    sftp_replica.put(0, file_name(1, 1), b"content")
    client = sftp_replica.new_client()
    (file,) = client.list_files(0)
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if client.read(file) == b"content" else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert client.read(file) == b"content"
    client.close()


@pytest.mark.servers
def test_litestream_reads_and_continues_what_we_write_and_we_what_it_wrote(sftp_replica: SFTPReplica, tmp_path: Path):
    replica = {"type": "sftp", "host": f"127.0.0.1:{sftp_replica.port}", "user": getpass.getuser()}
    replica |= {"key-path": str(sftp_replica.keys / "client_key"), "path": str(sftp_replica.folder)}
    replica["host-key"] = (sftp_replica.keys / "host_key.pub").read_text()
    exchange(tmp_path, sftp_replica.url, replica)


# --- without a server -------------------------------------------------------------------------------------------------


def test_without_its_package_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "paramiko", None)
    with pytest.raises(OptionError, match=r"pip install litevfs\[sftp\]"):
        SFTPReplicaClient("sftp://user@host/db")


def test_paths_are_relative_to_the_folder_of_the_login_as_litestreams():
    for url, key in (("sftp://u@h/a//b/", "a/b/ltx/9/"), ("sftp://u@h/a/b?absolute=true", "/a/b/ltx/9/")):
        client = SFTPReplicaClient(url)
        assert client.key(LTXFileInfo(9, 1, 255, 1, TIMESTAMP_MS)) == key + file_name(1, 255)
        client.close()


@pytest.mark.parametrize(
    ("url", "canonical"),
    [
        ("SFTP://user@HOST:22/a//b/../c/", "sftp://user@host/a/c"),
        ("sftp://user@host:2222", "sftp://user@host:2222"),
        ("sftp://us%40er@[::1]/a?keyPath=/k", "sftp://us%40er@[::1]/a?keyPath=/k"),
    ],
)
def test_urls_that_mean_the_same_are_spelled_the_same(url: str, canonical: str):
    assert canonical_url(url) == canonical == canonical_url(canonical)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("sftp://host/db", "without a user"),
        ("sftp://user@/db", "names no place"),
        ("sftp://user:AKIDSECRET@host/db", r"a password.*LITEVFS_SFTP_PASSWORD"),
        ("sftp://user@host/db?keypath=x", "did you mean keyPath"),
        ("sftp://user@host/db?absolute=1", "neither true nor false"),
    ],
)
def test_bad_urls_are_refused_with_a_hint(url: str, message: str):
    with pytest.raises(ReplicaURLError, match=message) as caught:
        open_replica_client(url)
    assert "AKIDSECRET" not in str(caught.value)
