"""Replicas that lie in another layout than their storage usually has, and those of Litestream 0.3."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from litevfs.errors import ReplicaError
from litevfs.replica_clients.file import FileReplicaClient
from litevfs.replica_clients.s3.client import S3ReplicaClient
from litevfs.replica_clients.urls import open_replica_client
from litevfs.testing.odd_s3_server import BUCKET, PAGE_KEYS, OddS3Server, running_odd_s3_server
from litevfs.testing.s3_oddities import ODDITIES
from tests.primary import Primary
from tests.support import connected, rows


def name(txid: int) -> str:
    return f"{txid:016x}-{txid:016x}.ltx"


@pytest.fixture
def server(credentials: object, monkeypatch: pytest.MonkeyPatch) -> Iterator[OddS3Server]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "ODDACCESSKEY")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "an/odd+secret")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "an-odd-token")
    with running_odd_s3_server(ODDITIES[0]) as server:
        yield server


@pytest.fixture
def connect(server: OddS3Server) -> Iterator[Callable[[], S3ReplicaClient]]:
    clients: list[S3ReplicaClient] = []

    def connect() -> S3ReplicaClient:
        clients.append(S3ReplicaClient(f"s3://{BUCKET}/db?endpoint={server.endpoint}"))
        return clients[-1]

    yield connect
    for client in clients:
        client.close()


@pytest.mark.s3
def test_a_file_replica_copied_to_s3_is_read_and_continued(server: OddS3Server, connect: Callable[[], S3ReplicaClient]):
    for key in (f"db/ltx/0/{name(4)}", f"db/ltx/1/{name(3)}", f"db/ltx/9/{name(1)}"):
        server.put(key, b"content")
    client = connect()
    assert [file.min_txid for file in client.list_files(9)] == [1]
    assert [file.min_txid for file in client.list_files(0)] == [4]
    assert client.list_files(2) == []
    assert client.read(client.list_files(1)[0]) == b"content"
    assert any("another layout" in text for text in client.workarounds)
    client.write(0, 5, 5, b"more", 0, exclusive=True)
    assert f"db/ltx/0/{name(5)}" in server.objects


@pytest.mark.s3
def test_the_layout_costs_no_request_where_all_levels_come_in_one(
    server: OddS3Server, connect: Callable[[], S3ReplicaClient]
):
    server.put(f"db/ltx/0/{name(1)}", b"content")
    client = connect()
    files, are_all = client.list_from(0)
    assert ([(file.level, file.min_txid) for file in files], are_all) == ([(0, 1)], True)
    assert client.read(files[0]) == b"content"
    assert client.requests == {"LIST": 1, "GET": 1}


@pytest.mark.s3
def test_a_page_of_the_other_layout_is_not_taken_for_all(server: OddS3Server, connect: Callable[[], S3ReplicaClient]):
    for txid in range(1, PAGE_KEYS + 2):
        server.put(f"db/ltx/2/{name(txid)}", b"content")
    files, are_all = connect().list_from(0)
    assert ([file.level for file in files], are_all) == ([2] * PAGE_KEYS, False)
    for key in list(server.objects)[:2]:
        del server.objects[key]
    server.put("db/ltx/other", b"sorts after the levels")
    server.put("db/zzz", b"another page")
    files, are_all = connect().list_from(0)
    assert ([file.min_txid for file in files], are_all) == ([PAGE_KEYS + 1], True)


@pytest.mark.s3
@pytest.mark.parametrize("where", ["ltx/0", "generations"])
def test_other_files_in_the_place_hide_no_layout(
    server: OddS3Server, connect: Callable[[], S3ReplicaClient], where: str
):
    for number in range(PAGE_KEYS + 1):
        server.put(f"db/a-file-{number}", b"x")
    server.put(f"db/{where}/{name(1)}", b"content")
    client = connect()
    if where == "generations":
        with pytest.raises(ReplicaError, match=r"Litestream 0\.3"):
            client.list_files(0)
    else:
        assert [file.min_txid for file in client.list_files(0)] == [1]


@pytest.mark.s3
def test_the_layout_of_s3_counts_where_there_are_both(server: OddS3Server, connect: Callable[[], S3ReplicaClient]):
    server.put(f"db/0009/{name(1)}", b"right")
    server.put(f"db/ltx/0/{name(2)}", b"wrong")
    client = connect()
    assert client.list_files(0) == []
    assert [client.read(file) for file in client.list_files(9)] == [b"right"]
    assert client.workarounds == ()


@pytest.mark.s3
def test_an_empty_place_stays_undecided_until_there_is_a_file(
    server: OddS3Server, connect: Callable[[], S3ReplicaClient]
):
    client = connect()
    assert client.list_files(0) == []
    server.put(f"db/ltx/0/{name(1)}", b"content")
    assert [file.min_txid for file in client.list_files(0)] == [1]
    other = connect()
    other.write(0, 2, 2, b"x", 0)  # before it has listed anything
    assert f"db/0000/{name(2)}" in server.objects


@pytest.mark.s3
def test_a_replica_of_litestream_03_on_s3_is_refused_by_name(
    server: OddS3Server, connect: Callable[[], S3ReplicaClient]
):
    server.put("db/generations/b16ddcf5c697540f/snapshots/00000000.snapshot.lz4", b"x")
    with pytest.raises(ReplicaError, match=r"Litestream 0\.3.*replicate the database with Litestream 0\.5"):
        connect().list_files(0)
    with pytest.raises(ReplicaError, match=r"Litestream 0\.3"):
        connect().list_from(0)


def test_a_replica_of_litestream_03_in_a_folder_is_refused_without_a_wait(tmp_path: Path):
    (tmp_path / "generations" / "b16ddcf5c697540f" / "wal").mkdir(parents=True)
    with (
        pytest.raises(ReplicaError, match=r"Litestream 0\.3.*generations/"),
        connected(tmp_path.as_uri(), open_timeout="1h"),
    ):
        pass


@pytest.fixture
def s3_layout(tmp_path: Path) -> Path:
    """A folder with a replica as it lies on S3."""
    with closing(FileReplicaClient(tmp_path / "replica")) as client, Primary(client) as primary:
        primary.commit("CREATE TABLE t (a)")
        primary.commit("INSERT INTO t VALUES (1), (2)")
    root = tmp_path / "copied from S3"
    for folder in (tmp_path / "replica" / "ltx").iterdir():
        shutil.copytree(folder, root / f"{int(folder.name):04x}")
    return root


def test_a_replica_copied_from_s3_to_a_folder_is_read_and_continued(s3_layout: Path):
    with connected(s3_layout.as_uri()) as connection:
        assert rows(connection, "SELECT a FROM t") == [(1,), (2,)]
    with closing(FileReplicaClient(s3_layout)) as client:
        client.write(3, 7, 7, b"x", 0)
    assert (s3_layout / "0003" / name(7)).exists()
    assert not (s3_layout / "ltx").exists()


def test_a_url_of_a_folder_in_either_layout_is_the_same_client(s3_layout: Path):
    with closing(open_replica_client(str(s3_layout))) as client:
        assert client.url.startswith("file:///")
        assert client.list_files(0)
