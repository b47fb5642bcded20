"""SFTP, as OpenSSH speaks it."""

from __future__ import annotations

import getpass
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

import pytest

from litevfs.errors import StorageNotFoundError, StoragePermissionError, StorageTimeoutError, TransientStorageError
from litevfs.operations.doctor import Outcome, examine
from litevfs.replica_clients.base import LTXFileInfo
from litevfs.replica_clients.sftp import SFTPReplicaClient
from litevfs.testing.client_conformance import ReplicaClientConformance, silent_endpoint
from litevfs.testing.conformance_base import TIMESTAMP_MS, file_name
from litevfs.testing.tcp_proxy import TCPProxy
from tests.replica_clients.interop import exchange
from tests.replica_clients.store_replicas import SFTPReplica, url_at
from tests.replica_clients.store_servers import sshd

pytest.importorskip("paramiko", reason="pip install litevfs[sftp]")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Path]]:
    with sshd(tmp_path_factory.mktemp("sshd")) as server:
        yield server


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
def behind_proxy(sftp_replica: SFTPReplica) -> Iterator[tuple[SFTPReplica, TCPProxy]]:
    with TCPProxy(("127.0.0.1", sftp_replica.port)) as proxy:
        sftp_replica.url = url_at(proxy.port, sftp_replica.keys, sftp_replica.folder)
        yield sftp_replica, proxy


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
def test_a_host_key_that_is_not_known_is_refused(sftp_replica: SFTPReplica, tmp_path: Path):
    (tmp_path / "client_key").write_bytes((sftp_replica.keys / "client_key").read_bytes())
    (tmp_path / "client_key").chmod(0o600)
    other = (sftp_replica.keys / "client_key.pub").read_text()
    for known in ("", f"[127.0.0.1]:{sftp_replica.port} {other}"):
        (tmp_path / "known_hosts").write_text(known)
        client = SFTPReplicaClient(url_at(sftp_replica.port, tmp_path, sftp_replica.folder, "known_hosts"))
        with pytest.raises(StoragePermissionError, match=r"host key.*known_hosts"):
            client.list_files(0)
        client.close()


@pytest.mark.servers
def test_a_host_key_is_in_a_file_or_in_the_url(sftp_replica: SFTPReplica):
    port, keys, folder = sftp_replica.port, sftp_replica.keys, sftp_replica.folder
    for url in (url_at(port, keys, folder), url_at(port, keys, folder, "known_hosts")):
        client = SFTPReplicaClient(url)
        assert client.list_files(0) == []
        client.close()


@pytest.mark.servers
def test_a_key_that_is_refused_says_where_keys_come_from(sftp_replica: SFTPReplica):
    client = SFTPReplicaClient(sftp_replica.url.replace("client_key", "host_key"))
    with pytest.raises(StoragePermissionError, match=r"refuses to log in.*keyPath"):
        client.list_files(0)
    client.close()


@pytest.mark.servers
def test_a_file_of_the_url_that_cannot_be_used_is_named(
    sftp_replica: SFTPReplica, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """paramiko passes over a key that it cannot read, and the server refuses the log-in."""
    key = str(sftp_replica.keys / "client_key")
    locked = str(shutil.copy(key, tmp_path / "locked"))
    subprocess.run(
        ["ssh-keygen", "-q", "-p", "-P", "", "-N", "a passphrase", "-f", locked], check=True, capture_output=True
    )
    (tmp_path / "text").write_text("text")
    for name, message in (
        ("locked", "has a passphrase: "),
        ("text", "is no private key: "),
        ("none", "none, which is"),
    ):
        client = SFTPReplicaClient(sftp_replica.url.replace(key, str(tmp_path / name)))
        with pytest.raises(StoragePermissionError, match=message):
            client.list_files(0)
        client.close()
    monkeypatch.setenv("LITEVFS_SFTP_PASSWORD", "a passphrase")
    client = SFTPReplicaClient(sftp_replica.url.replace(key, locked))
    assert client.list_files(0) == []
    client.close()
    monkeypatch.setenv("HOME", str(sftp_replica.keys))
    client = SFTPReplicaClient(sftp_replica.url.replace(key, "~/client_key"))
    assert client.list_files(0) == []
    client.close()
    client = SFTPReplicaClient(url_at(sftp_replica.port, sftp_replica.keys, sftp_replica.folder, "no_hosts"))
    with pytest.raises(StoragePermissionError, match="no_hosts, which is needed"):
        client.list_files(0)
    client.close()


@pytest.mark.servers
def test_the_doctor_leaves_no_folder(sftp_replica: SFTPReplica):
    assert all(check.outcome is not Outcome.FAILED for check in examine(sftp_replica.url))
    assert not [path for path in sftp_replica.folder.rglob("*") if "doctor" in path.name]


@pytest.mark.servers
def test_litestream_reads_and_continues_what_we_write_and_we_what_it_wrote(sftp_replica: SFTPReplica, tmp_path: Path):
    replica = {"type": "sftp", "host": f"127.0.0.1:{sftp_replica.port}", "user": getpass.getuser()}
    replica |= {"key-path": str(sftp_replica.keys / "client_key"), "path": str(sftp_replica.folder)}
    replica["host-key"] = (sftp_replica.keys / "host_key.pub").read_text()
    exchange(tmp_path, sftp_replica.url, replica)


# --- without a server -------------------------------------------------------------------------------------------------


@pytest.mark.servers
def test_a_log_in_that_takes_too_long_is_no_refusal(behind_proxy: tuple[SFTPReplica, TCPProxy]):
    replica, proxy = behind_proxy
    replica.put(0, file_name(1, 1), b"content")
    for held_after in (0, 100, 2000, 2500, 3000, 3500):  # bytes: within each step of it
        client = replica.new_client()
        proxy.hold_after(held_after)
        with pytest.raises(StorageTimeoutError):
            client.read(LTXFileInfo(0, 1, 1, 7, 0), timeout_s=0.3)
        proxy.drop()
        proxy.release()
        client.close()


@pytest.mark.servers
def test_a_file_that_is_read_in_parts_stays_open_until_it_is_replaced_or_deleted(sftp_replica: SFTPReplica):
    client = sftp_replica.new_client()
    sent = []
    file = client.write(0, 1, 1, b"x" * 100_000, TIMESTAMP_MS)
    with client._connection.channel("") as channel:
        send = channel.requests._send
        channel.requests._send = lambda kind, *arguments: sent.append(kind) or send(kind, *arguments)
    assert client.read(file, 10, 5) == b"x" * 5
    assert client.read(file, 50_000, 5) == b"x" * 5
    assert sent.count(3) == 1  # SSH_FXP_OPEN
    other = client.write(0, 1, 1, b"y" * 100_000, TIMESTAMP_MS + 5000)
    assert client.read(other, 10, 5) == b"y" * 5
    with pytest.raises(StorageNotFoundError, match="replaced"):
        client.read(file, 10, 5)
    client.delete([other])
    with pytest.raises(StorageNotFoundError):
        client.read(other, 10, 5)
    client.close()


# --- servers that keep a client waiting -------------------------------------------------------------------------------

LIMIT_S = 2.0


@contextmanager
def odd_server(talk: Callable[[socket.socket], object]) -> Iterator[int]:
    """The port of a server that talks so with each client, in a thread of its own."""
    listening = socket.create_server(("127.0.0.1", 0))
    threads, socks = [], []

    def accept() -> None:
        with suppress(OSError):
            while True:
                sock, _ = listening.accept()
                socks.append(sock)
                threads.append(threading.Thread(target=talk_to, args=(sock,)))
                threads[-1].start()

    def talk_to(sock: socket.socket) -> None:
        with suppress(OSError, EOFError), sock:
            talk(sock)

    threads.append(threading.Thread(target=accept))
    threads[0].start()
    try:
        yield listening.getsockname()[1]
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        for sock in socks:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(10)


def seconds_until_given_up(url: str) -> float:
    client = SFTPReplicaClient(url, read_timeout_s=LIMIT_S)
    began = time.monotonic()
    try:
        with pytest.raises(StorageTimeoutError):
            client.list_files(0)
        return time.monotonic() - began
    finally:
        client.close()


@pytest.mark.parametrize("first", [b"", b"a line before the banner\r\n" * 5, b"SSH-2.0-odd\r\n"])
def test_all_steps_of_connecting_share_one_limit(first: bytes, capfd: pytest.CaptureFixture[str]):
    """paramiko starts its limit again for each line before the banner, for the exchange of keys, and to log in."""

    def talk(sock: socket.socket) -> None:
        sock.sendall(first)
        while not first.startswith(b"SSH"):
            sock.sendall(b"wait\r\n")
            time.sleep(0.1)
        while sock.recv(1000):
            pass

    with odd_server(talk) as port:
        assert seconds_until_given_up(f"sftp://user@127.0.0.1:{port}/x") < 1.5 * LIMIT_S
    assert capfd.readouterr().err == ""  # paramiko logs a traceback, too


@pytest.mark.parametrize("step", ["log in", "start SFTP"])
def test_a_server_that_is_late_and_then_silent_is_given_up_in_time(step: str, monkeypatch: pytest.MonkeyPatch):
    import paramiko

    key, over = paramiko.ECDSAKey.generate(), threading.Event()

    class Slow(paramiko.ServerInterface):
        def check_auth_password(self, username: str, password: str) -> int:
            if step == "log in":
                over.wait(30)
            return int(paramiko.AUTH_SUCCESSFUL)

        def check_channel_request(self, kind: str, chanid: int) -> int:
            return int(paramiko.OPEN_SUCCEEDED)

        def check_channel_subsystem_request(self, channel: paramiko.Channel, name: str) -> bool:
            return over.wait(30) and False

    def talk(sock: socket.socket) -> None:
        time.sleep(0.7 * LIMIT_S)
        transport = paramiko.Transport(sock)
        transport.add_server_key(key)
        with suppress(paramiko.SSHException):
            transport.start_server(server=Slow())
            over.wait(30)
        transport.close()

    monkeypatch.setenv("LITEVFS_SFTP_PASSWORD", "secret")
    with odd_server(talk) as port:
        host_key = quote(f"{key.get_name()} {key.get_base64()}", safe="")
        took = seconds_until_given_up(f"sftp://user@127.0.0.1:{port}/x?hostKey={host_key}")
        over.set()
    assert took < 1.5 * LIMIT_S


def test_a_password_that_was_changed_is_taken_from_the_variable_once_the_old_one_is_refused(
    monkeypatch: pytest.MonkeyPatch,
):
    import paramiko

    key, tried = paramiko.ECDSAKey.generate(), []

    class Server(paramiko.ServerInterface):
        def check_auth_password(self, username: str, password: str) -> int:
            tried.append(password)
            return int(paramiko.AUTH_FAILED)

    def talk(sock: socket.socket) -> None:
        transport = paramiko.Transport(sock)
        transport.add_server_key(key)
        with suppress(paramiko.SSHException, EOFError):
            transport.start_server(server=Server())
            transport.join(10)
        transport.close()

    monkeypatch.setenv("LITEVFS_SFTP_PASSWORD", "old")
    with odd_server(talk) as port:
        host_key = quote(f"{key.get_name()} {key.get_base64()}", safe="")
        client = SFTPReplicaClient(f"sftp://user@127.0.0.1:{port}/x?hostKey={host_key}")
        for password in ("old", "new", "new"):
            monkeypatch.setenv("LITEVFS_SFTP_PASSWORD", password)
            with pytest.raises(StoragePermissionError, match="refuses to log in") as caught:
                client.list_files(0)
            assert password not in str(caught.value)
        client.close()
    assert [password for password in tried if password in ("old", "new")] == ["old", "old", "new"]
