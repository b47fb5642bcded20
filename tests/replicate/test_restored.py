"""A database that was just restored goes on from there, in whatever order it was restored and is replicated."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from litevfs.commands.restoring import restore_with_leases
from litevfs.errors import UnrelatedDatabaseError
from litevfs.ltx.decoder import decode_file
from litevfs.ltx.encoder import encode_file
from litevfs.operations.restore import restore, restore_if_missing
from litevfs.replica_clients.base import LEVELS, ReplicaClient
from litevfs.replica_clients.file import FileReplicaClient
from litevfs.replicate import Replicator
from litevfs.replicate.restored import read_restored_state
from tests.replicate.support import assert_replicated, source_bytes


@pytest.fixture
def places(tmp_path: Path) -> Iterator[list[FileReplicaClient]]:
    clients = [FileReplicaClient(tmp_path / name) for name in ("one", "two", "three")]
    yield clients
    for client in clients:
        client.close()


def run(app, *clients: ReplicaClient, **options: object) -> int:
    """One run of `litevfs replicate --once`, after the last program has closed the database."""
    app.close()
    with Replicator(app.path, clients[0], places=clients[1:], **options) as replicator:
        txid = replicator.sync()
    app.db = app.connect()
    return txid


def files(*clients: ReplicaClient) -> list[tuple[str, str, int]]:
    return [(client.url, file.name, file.size) for client in clients for n in LEVELS for file in client.list_files(n)]


def clear_disk(app) -> None:
    app.close()
    for path in app.path.parent.glob(f"*{app.path.name}*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def assert_restores(app, *clients: ReplicaClient) -> None:
    for client in clients:
        path = app.path.parent / "check" / "restored.db"
        path.parent.mkdir()
        restore(client, path, integrity_check=True)
        assert path.read_bytes() == source_bytes(app.path), client.url
        shutil.rmtree(path.parent)


def by_command(app, clients: list[FileReplicaClient]) -> None:
    restore_if_missing(clients[-1], app.path)


def at_the_start(app, clients: list[FileReplicaClient]) -> None:
    restore_with_leases(app.path, clients, 30.0)


def over_a_database(app, clients: list[FileReplicaClient]) -> None:
    app.path.write_bytes(b"no database")
    restore(clients[0], app.path, force=True)


def over_state_that_is_left(app, clients: list[FileReplicaClient]) -> None:
    """Of a run that ended before the replica's last TXIDs were made elsewhere."""
    restore_if_missing(clients[0], app.path)
    run(app, clients[0])
    other = app.path.with_name("other.db")
    restore_if_missing(clients[0], other)
    with Replicator(other, clients[0], places=clients[1:]) as replicator:
        app.db = type(app)(other).db
        app.db.execute("UPDATE t SET data = randomblob(3000) WHERE id = 22")
        app.db.close()
        replicator.sync()
    app.close()
    restore(clients[0], app.path, force=True)


def restored_and_written(app, places: list[FileReplicaClient]) -> list[FileReplicaClient]:
    """Two places; the application has written since the database was restored from the first, to the WAL alone."""
    clients = places[:2]
    app.insert(50, 3000)
    run(app, *clients)
    clear_disk(app)
    restore_if_missing(clients[0], app.path)
    app.db = app.connect()
    app.execute("UPDATE t SET data = randomblob(3000) WHERE id = 30")
    return clients


@pytest.mark.parametrize("how", [by_command, at_the_start, over_a_database, over_state_that_is_left])
@pytest.mark.parametrize("count", [1, 2])
def test_of_a_restored_database_only_what_was_written_since_is_uploaded(
    app, places, how: Callable[..., None], count: int
):
    clients = places[:count]
    app.insert(50, 3000)
    run(app, *clients)
    app.execute("UPDATE t SET data = randomblob(3000) WHERE id = 20")
    run(app, *clients)
    clear_disk(app)
    how(app, clients)
    before = files(*clients)
    txid = run(app, *clients)
    assert files(*clients) == before
    assert run(app, *clients) == txid
    assert files(*clients) == before
    app.execute("UPDATE t SET data = randomblob(3000) WHERE id = 30")
    assert run(app, *clients) == txid + 1
    new = [file for file in files(*clients) if file not in before]
    assert len(new) == count
    assert sum(size for *_, size in new) < count * 10_000
    app.execute("DELETE FROM t WHERE id > 20")
    app.execute("VACUUM")
    assert run(app, *clients) == txid + 2
    assert_restores(app, *clients)


def test_what_was_written_between_restore_and_replication_is_uploaded_alone(app, places):
    clients = restored_and_written(app, places)
    before = files(*clients)
    with Replicator(app.path, clients[1], places=[clients[0]]) as replicator:
        assert replicator.sync() == 2
    assert sum(size for *_, size in files(*clients)) - sum(size for *_, size in before) < 20_000
    assert_restores(app, *clients)


def test_the_sums_of_a_restore_are_kept_once(app, client):
    app.insert(50, 3000)
    run(app, client)
    clear_disk(app)
    restore_if_missing(client, app.path)
    assert read_restored_state(app.path) is not None
    run(app, client)
    assert read_restored_state(app.path) is None


def test_damaged_sums_of_a_restore_count_for_nothing(app, client):
    app.insert(50, 3000)
    run(app, client)
    clear_disk(app)
    restore_if_missing(client, app.path)
    mark = app.path.with_name(f".{app.path.name}-litevfs-restored")
    data = bytearray(mark.read_bytes())
    data[-5] ^= 1
    mark.write_bytes(data)
    assert run(app, client) == 2
    assert_replicated(client, app.path)


@pytest.mark.parametrize("what", ["a newer TXID", "another file", "no file of level 0"])
def test_a_restore_that_is_not_the_newest_state_any_more_is_no_beginning(app, client, what: str):
    app.insert(50, 3000)
    run(app, client)
    clear_disk(app)
    restore_if_missing(client, app.path)
    info = client.list_files(0)[-1]
    if what == "a newer TXID":
        header = replace(decode_file(client.read(info)).header, min_txid=2, max_txid=2)
        client.write(0, 2, 2, encode_file(header, decode_file(client.read(info)).pages()), header.timestamp_ms)
    elif what == "another file":
        app.path.with_name("other.db").write_bytes(app.path.read_bytes())
        app.path.with_name("other.db").replace(app.path)
    else:
        client.write(9, 1, 1, client.read(info), info.modified_ms)
        client.delete([info])
        assert run(app, client) == 2
        return
    app.db = app.connect()
    app.execute("UPDATE t SET data = randomblob(3000) WHERE id = 20")
    app.close()
    with Replicator(app.path, client) as replicator, pytest.raises(UnrelatedDatabaseError):
        replicator.sync()


def test_an_older_state_is_left_without_sums(app, client, tmp_path: Path):
    app.insert(50, 3000)
    run(app, client)
    app.insert()
    run(app, client)
    restore_if_missing(client, tmp_path / "older.db", txid=1)
    assert read_restored_state(tmp_path / "older.db") is None


def test_a_restore_beside_the_primary_computes_no_sums(app, client, tmp_path: Path):
    app.insert(50, 3000)
    run(app, client)
    restore(client, tmp_path / "copy.db")
    assert read_restored_state(tmp_path / "copy.db") is None
    assert (tmp_path / ".copy.db-litevfs-restored").stat().st_size < 500


def test_a_place_that_comes_back_with_the_newest_txid_begins_with_nothing(app, places):
    """And so does one that was copied there."""
    one, two, three = places
    app.insert(50, 3000)
    run(app, one, two)
    run(app, one)
    shutil.copytree(app.path.parent / "one", app.path.parent / "three")
    before = files(*places)
    assert run(app, one, two, three) == 1
    assert files(*places) == before
    app.insert()
    assert run(app, one, two, three) == 2
    assert_restores(app, *places)


def test_a_copied_place_that_is_behind_begins_with_the_whole_database(app, places):
    one, two, _ = places
    app.insert(50, 3000)
    run(app, one)
    shutil.copytree(app.path.parent / "one", app.path.parent / "two")
    app.insert()
    run(app, one)
    with pytest.raises(UnrelatedDatabaseError):
        run(app, one, two)
    run(app, one, two, new_history=True)
    assert_restores(app, one, two)


def test_while_it_runs_all_places_of_a_restored_database_get_the_same_file(app, places):
    clients = restored_and_written(app, places)
    with closing(Replicator(app.path, clients[0], places=clients[1:])) as replicator:
        replicator.start()
        assert replicator.sync() == 2
    assert [file.max_txid for file in clients[0].list_files(0)] == [1, 2]
    assert clients[0].list_files(0)[1].size < 10_000
    assert files(clients[0])[1][1:] == files(clients[1])[1][1:]
