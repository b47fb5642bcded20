"""Replicas behind a plain web server: listings it makes, and the index that is written for it."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from litevfs.errors import ReplicaError, StorageError, StorageNotFoundError, StoragePermissionError, StorageTimeoutError
from litevfs.replica_clients.base import LTXFileInfo
from litevfs.replica_clients.http.client import HTTPReplicaClient
from litevfs.replica_clients.http.index import parse_index, write_index
from litevfs.testing.client_conformance import ReplicaClientConformance
from litevfs.testing.conformance_base import TIMESTAMP_MS, file_name, txids_of
from litevfs.testing.s3_proxy import running_s3_proxy
from tests.replica_clients.store_replicas import FolderReplica
from tests.replica_clients.store_servers import QuietHandler, nginx, static_server


class ReadOnlyConformance(ReplicaClientConformance):
    """What of the suite needs no write by the client."""

    test_writes_bytes_and_streams = None
    test_keeps_the_timestamp = None
    test_replaces_an_existing_file = None
    test_an_exclusive_write_replaces_nothing = None
    test_of_writers_at_once_that_are_exclusive_one_succeeds = None
    test_slow_upload_is_seen_whole_or_not_at_all = None
    test_concurrent_reads_see_one_version_while_a_file_is_replaced = None
    test_failed_upload_leaves_nothing = None
    test_keeps_order_and_names_of_the_largest_txids = None
    test_deletes_files_listed_before_and_after = None
    test_deleting_what_is_not_there_is_no_error = None
    test_after_close_every_call_says_so = None

    def test_writing_and_deleting_are_refused(self, client: HTTPReplicaClient, replica: FolderReplica):
        with pytest.raises(StoragePermissionError, match=r"read only.*own URL"):
            client.write(0, 1, 1, b"x", TIMESTAMP_MS)
        with pytest.raises(StoragePermissionError, match=r"read only.*own URL"):
            client.delete([])


class TestListedByThePythonServer(ReadOnlyConformance):
    """Names only, no Range, no ETag."""

    test_rounds_of_open_read_close_leak_no_descriptor = None  # the server is in this process
    test_etag_differs_when_the_content_does = None  # what is known of a file is not asked again
    test_never_reads_new_content_as_the_file_listed_before = None

    @pytest.fixture
    def replica(self, tmp_path: Path) -> Iterator[FolderReplica]:
        with static_server(tmp_path) as endpoint:
            yield FolderReplica(f"{endpoint}/app", tmp_path / "app", is_indexed=False)

    def test_a_file_that_was_replaced_is_said_to_be_gone_once(self, client: HTTPReplicaClient, replica: FolderReplica):
        replica.put(0, file_name(1, 1), b"old old old")
        (listed,) = client.list_files(0)
        replica.put(0, file_name(1, 1), b"new new new")
        with pytest.raises(StorageNotFoundError, match="replaced"):
            client.read(listed, 0, 3)
        (again,) = client.list_files(0)
        assert again.etag != listed.etag
        assert client.read(again, 0, 3) == b"new"


class TestIndexedBehindThePythonServer(ReadOnlyConformance):
    test_reads_a_file_by_its_name_that_was_not_listed = None  # the index says which files there are
    test_rounds_of_open_read_close_leak_no_descriptor = None  # the server is in this process
    test_never_reads_new_content_as_the_file_listed_before = None  # an index is not the server's word of the file

    @pytest.fixture
    def replica(self, tmp_path: Path) -> Iterator[FolderReplica]:
        with static_server(tmp_path) as endpoint:
            yield FolderReplica(f"{endpoint}/app", tmp_path / "app", is_indexed=True)

    def test_two_reads_of_a_file_are_of_one_version(self, client: HTTPReplicaClient, replica: FolderReplica):
        replica.put(0, file_name(1, 1), b"old old old")
        (listed,) = client.list_files(0)
        assert client.read(listed, 0, 3) == b"old"
        replica.put(0, file_name(1, 1), b"new new new")
        with pytest.raises(StorageNotFoundError, match="replaced"):
            client.read(listed, 4, 3)
        (again,) = client.list_files(0)
        assert client.read(again, 0, 3) == b"new"


@pytest.mark.servers
class TestListedByNginx(TestListedByThePythonServer):
    test_rounds_of_open_read_close_leak_no_descriptor = (
        ReplicaClientConformance.test_rounds_of_open_read_close_leak_no_descriptor
    )

    @pytest.fixture
    def replica(self, tmp_path: Path) -> Iterator[FolderReplica]:
        (tmp_path / "work").mkdir()
        with nginx(tmp_path, tmp_path / "work") as endpoint:
            yield FolderReplica(f"{endpoint}/app", tmp_path / "app", is_indexed=False)


@pytest.mark.servers
class TestIndexedBehindNginx(TestIndexedBehindThePythonServer):
    test_rounds_of_open_read_close_leak_no_descriptor = (
        ReplicaClientConformance.test_rounds_of_open_read_close_leak_no_descriptor
    )

    @pytest.fixture
    def replica(self, tmp_path: Path) -> Iterator[FolderReplica]:
        (tmp_path / "work").mkdir()
        with nginx(tmp_path, tmp_path / "work", autoindex=False) as endpoint:
            yield FolderReplica(f"{endpoint}/app", tmp_path / "app", is_indexed=True)


def test_the_layout_of_s3_is_read_too(tmp_path: Path):
    folder = tmp_path / "app" / "0001"
    folder.mkdir(parents=True)
    (folder / file_name(1, 3)).write_bytes(b"abc")
    with static_server(tmp_path) as endpoint:
        client = HTTPReplicaClient(f"{endpoint}/app")
        (file,) = client.list_files(1)
        assert client.read(file, 1) == b"bc"
        assert client.list_files(0) == []
        assert "no index.json" in client.workarounds[0]
        client.close()


def test_an_index_names_either_layout():
    files = [LTXFileInfo(level, 1, level + 1, 5, TIMESTAMP_MS, "e") for level in (0, 9)]
    for hex_levels, folders in ((False, {0: "ltx/0", 9: "ltx/9"}), (True, {0: "0000", 9: "0009"})):
        index = parse_index(write_index(files, 7, hex_levels=hex_levels), "key")
        assert index.files == {0: files[:1], 9: files[1:]}
        assert (index.folders, index.written_ms) == (folders, 7)


@pytest.mark.parametrize(
    "index",
    [
        b"",
        b"[]",
        b"{}",
        b'{"format":"x","version":1,"written_ms":1,"files":{}}',
        b'{"format":"litevfs-index","version":1,"written_ms":"x","files":{}}',
        b'{"format":"litevfs-index","version":1,"written_ms":1,"files":[]}',
        b'{"format":"litevfs-index","version":1,"written_ms":1,"files":{"0":[["a"]]}}',
    ],
)
def test_what_is_no_index_is_refused_by_name(index: bytes):
    with pytest.raises(StorageError, match=r"not an index.*http://x/index.json"):
        parse_index(index, "http://x/index.json")


def test_an_index_of_a_later_version_is_refused():
    with pytest.raises(StorageError, match=r"version 2.*newer litevfs"):
        parse_index(b'{"format":"litevfs-index","version":2,"files":{}}', "k")


def test_a_server_without_index_or_listing_says_what_to_do(tmp_path: Path):
    with static_server(tmp_path) as endpoint:
        client = HTTPReplicaClient(f"{endpoint}/nothing")
        with pytest.raises(StorageNotFoundError, match=r"/nothing/.*litevfs copy --index"):
            client.list_files(0)
        (tmp_path / "nothing").mkdir()
        assert client.list_files(0) == []
        client.close()


class _Replayed(QuietHandler):
    """A cache that holds old indexes: answers with the one that `shown` names."""

    shown: bytes = b""

    def do_GET(self) -> None:
        if not self.path.endswith("index.json"):
            return super().do_GET()
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.shown)))
        self.end_headers()
        self.wfile.write(self.shown)
        return None


def test_a_cache_that_answers_with_an_older_index_takes_nothing_back(tmp_path: Path):
    (tmp_path / "ltx").mkdir()
    files = [LTXFileInfo(0, txid, txid, 5, TIMESTAMP_MS, "") for txid in (1, 2)]
    old, new = write_index(files[:1], 1000), write_index(files, 2000)
    with static_server(tmp_path, _Replayed) as endpoint:
        client = HTTPReplicaClient(endpoint)
        seen = []
        for shown in (old, new, old, new, old):
            _Replayed.shown = shown
            seen.append(len(client.list_files(0)))
        assert "1.0 s older" in client.workarounds[0]
        client.close()
    assert seen == [1, 2, 2, 2, 2]


@pytest.mark.servers
def test_an_index_that_has_not_changed_costs_no_bytes(tmp_path: Path):
    (tmp_path / "work").mkdir()
    replica_folder = tmp_path / "app"
    with nginx(tmp_path, tmp_path / "work") as endpoint, running_s3_proxy(endpoint) as proxy:
        replica = FolderReplica(f"{proxy.endpoint}/app", replica_folder, is_indexed=True)
        replica.put(0, file_name(1, 1), b"x")
        os.utime(replica_folder / "index.json", (0, TIMESTAMP_MS // 1000))
        client = replica.new_client()
        for _ in range(3):
            assert txids_of(client.list_files(0)) == [(1, 1)]
        assert "if-none-match" in proxy.requests[-1].headers
        client.close()


def test_levels_listed_at_once_share_the_index(tmp_path: Path):
    with static_server(tmp_path) as endpoint:
        replica = FolderReplica(f"{endpoint}/app", tmp_path / "app", is_indexed=True)
        replica.put(3, file_name(1, 1), b"x")
        client = replica.new_client()
        assert client.list_files(0) == []
        assert client.requests == {"LIST": 1}
        before = client.requests["LIST"]
        with ThreadPoolExecutor(10) as pool:
            assert sum(map(len, pool.map(client.list_files, range(10)))) == 1
        assert client.requests["LIST"] - before < 10
        client.close()


def test_a_redirect_is_followed_without_the_credentials_of_the_first_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("LITEVFS_HTTP_PASSWORD", "hunter2secret")
    shutil.copytree(Path(__file__).parents[1] / "fixtures" / "orders" / "replica", tmp_path / "app")

    with static_server(tmp_path) as behind, running_s3_proxy(behind) as watched:

        class Redirects(QuietHandler):
            seen: list[str | None] = []

            def do_GET(self) -> None:
                self.seen.append(self.headers["Authorization"])
                self.send_response(302)
                self.send_header("Location", f"{watched.endpoint}{self.path}")
                self.send_header("Content-Length", "0")
                self.end_headers()

        with static_server(tmp_path, Redirects) as endpoint:
            client = HTTPReplicaClient(f"{endpoint.replace('//', '//user@')}/app")
            files = client.list_files(0)
            assert len(files) == 12
            assert len(client.read(files[0])) == files[0].size
            assert "hunter2secret" not in repr(client) + client.url
            client.close()
            assert all(Redirects.seen)
        assert watched.requests
        assert not any("authorization" in request.headers for request in watched.requests)


def test_a_file_whose_name_is_known_is_read_where_there_is_no_index(tmp_path: Path):
    with static_server(tmp_path) as endpoint:
        listed = FolderReplica(f"{endpoint}/listed", tmp_path / "listed", is_indexed=False)
        indexed = FolderReplica(f"{endpoint}/indexed", tmp_path / "indexed", is_indexed=True)
        for replica in (listed, indexed):
            replica.put(0, file_name(1, 1), b"one")
        client = listed.new_client()
        assert len(client.list_files(0)) == 1
        before = client.requests
        assert client.read_named(0, 2, 2, 100) is None
        listed.put(0, file_name(2, 2), b"two")
        found = client.read_named(0, 2, 2, 100)
        assert found is not None
        assert found[1] == b"two"
        assert {kind: count - before.get(kind, 0) for kind, count in client.requests.items()} == {
            **dict.fromkeys(before, 0),
            "GET": 2,
        }
        assert found[0] in client.list_files(0)
        client.close()
        client = indexed.new_client()
        with pytest.raises(StoragePermissionError, match="index"):
            client.read_named(0, 2, 2, 100)
        client.close()


def test_a_replica_of_litestream_03_is_refused_by_name(tmp_path: Path):
    (tmp_path / "app" / "generations").mkdir(parents=True)
    with static_server(tmp_path) as endpoint:
        client = HTTPReplicaClient(f"{endpoint}/app")
        with pytest.raises(ReplicaError, match=r"Litestream 0\.3"):
            client.list_files(0)
        client.close()


def test_the_time_limit_of_a_read_by_name_holds_for_finding_the_folders_too():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/app"
        with closing(HTTPReplicaClient(url, read_timeout_s=600)) as client, pytest.raises(StorageTimeoutError):
            client.read_named(0, 1, 1, 100, timeout_s=0.2)
