"""The index that a primary or a copy keeps for readers behind a web server."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import litevfs
from litevfs.cli import main
from litevfs.errors import OptionError, StorageClosedError, TransientStorageError
from litevfs.replica_clients.base import LTXFileInfo, SideObjects
from litevfs.replica_clients.file import FileReplicaClient
from litevfs.replica_clients.http.client import HTTPReplicaClient
from litevfs.replica_clients.http.indexed import IndexedReplicaClient
from litevfs.replica_clients.memory import MemoryReplicaClient, MemoryStore
from litevfs.testing.client_conformance import ReplicaClientConformance
from litevfs.testing.conformance_base import TIMESTAMP_MS, txids_of
from tests.primary import Primary
from tests.replica_clients.store_replicas import FolderOfFiles, store_whole
from tests.replica_clients.store_servers import static_server

ORDERS = Path(__file__).parents[1] / "fixtures" / "orders" / "replica"
WAIT_S = 30.0


def index_of(folder: Path) -> dict[str, list[str]]:
    index = json.loads((folder / "index.json").read_bytes())
    return {folder: [row[0] for row in rows] for folder, rows in index["files"].items()}


class TestIndexed(ReplicaClientConformance):
    """It is a client like the one it stands before."""

    test_opening_the_url_again_gives_an_equal_client = None

    @pytest.fixture
    def replica(self, tmp_path: Path) -> Any:
        class Replica(FolderOfFiles):
            folder = tmp_path

            def new_client(self) -> IndexedReplicaClient:
                return IndexedReplicaClient(FileReplicaClient(tmp_path))

            def put(self, level: int, name: str, data: bytes) -> None:
                self.file_path(level, name).parent.mkdir(parents=True, exist_ok=True)
                store_whole(self.file_path(level, name), data)

        tmp_path.mkdir(exist_ok=True)
        return Replica()


def test_the_index_shows_what_was_written_and_not_what_is_deleted(tmp_path: Path):
    client = IndexedReplicaClient(FileReplicaClient(tmp_path))
    assert isinstance(client, SideObjects)
    files = [client.write(0, txid, txid, b"x", TIMESTAMP_MS) for txid in (1, 2, 3)]
    client.flush(WAIT_S)
    assert index_of(tmp_path) == {"ltx/0": [file.name for file in files]}
    client.delete(files[:1])
    assert index_of(tmp_path) == {"ltx/0": [file.name for file in files[1:]]}
    client.close()


def test_no_file_is_deleted_that_the_index_still_shows(tmp_path: Path):
    seen: list[bool] = []

    class Watched(FileReplicaClient):
        def delete(self, files: Any) -> None:
            shown = {name for names in index_of(tmp_path).values() for name in names}
            seen.extend(file.name in shown for file in files)
            super().delete(files)

    client = IndexedReplicaClient(Watched(tmp_path))
    file = client.write(0, 1, 1, b"x", TIMESTAMP_MS)
    client.flush(WAIT_S)
    client.delete([file])
    client.close()
    assert seen == [False]


@pytest.mark.parametrize("error", [TransientStorageError("busy"), MemoryError()])
def test_an_index_that_cannot_be_written_is_written_later(tmp_path: Path, error: Exception):
    class Fails(FileReplicaClient):
        left = 2

        def put_object(self, *args: Any, **options: Any) -> str:
            if self.left:
                self.left -= 1
                raise error
            return super().put_object(*args, **options)

    client = IndexedReplicaClient(Fails(tmp_path))
    file = client.write(0, 1, 1, b"x", TIMESTAMP_MS)
    client.flush(WAIT_S)
    assert index_of(tmp_path) == {"ltx/0": [file.name]}
    client.close()


def test_times_of_indexes_grow_whatever_the_clock_says(tmp_path: Path):
    ahead = 4_000_000_000_000
    (tmp_path / "index.json").write_text(f'{{"format":"litevfs-index","version":1,"written_ms":{ahead},"files":{{}}}}')
    client = IndexedReplicaClient(FileReplicaClient(tmp_path))
    times = []
    for txid in (1, 2):
        client.write(0, txid, txid, b"x", TIMESTAMP_MS)
        client.flush(WAIT_S)
        times.append(json.loads((tmp_path / "index.json").read_bytes())["written_ms"])
    client.close()
    assert ahead < times[0] < times[1]


def test_a_storage_without_objects_is_refused():
    class Plain:
        url = "plain://x"
        block_size = 0

    with pytest.raises(OptionError, match="no index can be written to plain://x"):
        IndexedReplicaClient(Plain())  # type: ignore[arg-type]


def test_after_close_nothing_is_waited_for(tmp_path: Path):
    client = IndexedReplicaClient(FileReplicaClient(tmp_path))
    client.close()
    with pytest.raises(StorageClosedError):
        client.update()


def test_what_a_copy_indexes_is_read_behind_a_server_without_listings(tmp_path: Path, capsys: pytest.CaptureFixture):
    assert main(["copy", str(ORDERS), str(tmp_path / "app"), "--index"]) == 0
    shutil.rmtree(tmp_path / "app" / "ltx" / "1", ignore_errors=True)
    with static_server(tmp_path) as endpoint:
        assert main(["query", f"{endpoint}/app", "SELECT count(*) AS orders FROM orders"]) == 0
        client = HTTPReplicaClient(f"{endpoint}/app")
        assert len(client.list_files(0)) == 12
        client.close()
    assert "2667" in capsys.readouterr().out


def test_a_reader_behind_a_web_server_follows_an_indexed_primary(tmp_path: Path):
    (tmp_path / "app").mkdir()
    target = IndexedReplicaClient(FileReplicaClient(tmp_path / "app"))
    with static_server(tmp_path) as endpoint, Primary(target) as primary:
        primary.commit("CREATE TABLE t(x)")
        target.flush(WAIT_S)
        connection = litevfs.connect(f"{endpoint}/app", poll_interval="20ms")
        for number in range(3):
            txid = primary.commit(f"INSERT INTO t VALUES ({number})")
            litevfs.wait_for(connection, txid, timeout=WAIT_S)
            assert connection.execute("SELECT max(x) FROM t").fetchall() == [(number,)]
        connection.close()
    target.close()


def test_the_layout_of_s3_is_indexed_as_it_lies():
    class Hex(MemoryReplicaClient):
        def key(self, file: LTXFileInfo) -> str:
            return f"prefix/{file.level:04x}/{file.name}"

        def list_files(self, level: int, min_txid: int = 1) -> list[LTXFileInfo]:
            return [LTXFileInfo(0, 1, 1, 5, TIMESTAMP_MS)] if level == 0 else []

    client = IndexedReplicaClient(Hex(MemoryStore("hex")))
    client.update()
    client.flush(WAIT_S)
    stored = client.read_object("index.json")
    assert list(json.loads(stored.data)["files"]) == ["0000"]
    assert txids_of(client.list_files(0)) == [(1, 1)]
    client.close()
