"""Where the WAL shows nothing, the next TXID has what differs from the last one, or all of an unknown state."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from litevfs.errors import UnrelatedDatabaseError
from litevfs.replica_clients.file import FileReplicaClient
from litevfs.replicate import Replicator
from litevfs.replicate.changed_pages import ChangedPages
from litevfs.replicate.content import EMPTY_WAL, Content
from litevfs.replicate.known_pages import page_sum
from tests.replicate.support import assert_replicated, failing_client, files_of, written


def sums(app) -> Path:
    return app.path.with_name(f".{app.path.name}-litevfs") / "pages.sums"


def run(app, client) -> int:
    """One run of `litevfs replicate --once`, after the last program has closed the database, and SQLite the WAL."""
    app.close()
    assert not app.path.with_name(f"{app.path.name}-wal").exists()
    is_first = not sums(app).exists()
    with Replicator(app.path, client) as replicator:
        txid = replicator.sync()
        assert replicator.status.snapshots == (1 if is_first else 0)
    assert_replicated(client, app.path)
    app.db = app.connect()
    return txid


def pages(client: FileReplicaClient) -> list[int]:
    """How many pages each file has."""
    return [len(list(file.pages())) for file in files_of(client)]


@pytest.mark.plan("D02")
def test_a_database_that_has_not_changed_is_not_uploaded_again(app, tmp_path: Path):
    app.insert(50, 3000)
    with closing(failing_client(tmp_path / "replica")) as client:
        assert [run(app, client) for _ in range(4)] == [1, 1, 1, 1]
        assert written(client) == [1]


def test_only_pages_that_changed_are_uploaded(app, client):
    app.insert(50, 3000)
    run(app, client)
    app.execute("UPDATE t SET data = randomblob(3000) WHERE id = 20")
    assert run(app, client) == 2
    assert pages(client)[1] <= 3


def test_a_database_that_grew_and_one_that_shrank_are_right(app, client):
    app.insert(50, 3000)
    run(app, client)
    app.insert(20, 3000)
    assert run(app, client) == 2
    app.execute("DELETE FROM t WHERE id > 30")
    app.execute("VACUUM")
    assert run(app, client) == 3
    whole, grown, shrunk = files_of(client)
    assert whole.header.commit < grown.header.commit > shrunk.header.commit
    assert max(pages(client)[1:]) < 30
    app.insert(40, 3000)  # over what was cut off
    assert run(app, client) == 4


def test_an_older_backup_in_the_place_of_the_database_is_the_next_state(app, client, tmp_path: Path):
    app.insert(50, 3000)
    run(app, client)
    app.close()
    shutil.copy(app.path, tmp_path / "backup.db")
    app.db = app.connect()
    app.execute("UPDATE t SET data = randomblob(3000) WHERE id = 20")
    run(app, client)
    app.close()
    app.path.write_bytes((tmp_path / "backup.db").read_bytes())
    assert run(app, client) == 3
    assert pages(client)[2] == pages(client)[1]
    app.close()
    (tmp_path / "backup.db").replace(app.path)  # the same bytes in another file
    assert run(app, client) == 3


def test_a_copy_in_the_place_of_the_database_is_compared_once(app, client, tmp_path: Path):
    app.execute("INSERT INTO t (data) VALUES ('old')")
    run(app, client)
    app.close()
    shutil.copy(app.path, tmp_path / "copy.db")
    (tmp_path / "copy.db").replace(app.path)
    db = app.connect()
    for data in ("new", "old"):  # a WAL that stays, and changes nothing
        db.execute("UPDATE t SET data = ?", (data,))
    for comparisons in (1, 0):
        with Replicator(app.path, client) as replicator:
            assert replicator.sync() == 1
            assert replicator.status.comparisons == comparisons
    assert_replicated(client, app.path)


def test_of_a_database_of_another_size_there_is_always_a_page():
    """LTX files say the size, and have one page at least."""
    pages = [(pgno, bytes([pgno]) * 512) for pgno in (1, 2, 3)]
    content = Content(iter(pages[:2]), 2, 512, EMPTY_WAL, 32, 0)
    changed = ChangedPages(content, bytearray(b"".join(page_sum(page) for _, page in pages)), lambda: None)
    assert not changed.is_empty
    assert list(changed.content.pages) == pages[:1]
    assert changed.sums == b"".join(page_sum(page) for _, page in pages[:2])


def test_sums_are_found_while_nothing_is_written(app, client):
    app.execute("PRAGMA wal_autocheckpoint=0")
    with Replicator(app.path, client) as replicator:
        replicator.sync()
        app.insert(150, 3000)  # more than a capture computes sums of
        replicator.sync()
        app.checkpoint("PASSIVE")
        replicator.sync()
    app.insert()
    assert run(app, client) == 3
    assert pages(client)[2] < 5


def test_a_state_without_sums_gets_them(app, client):
    """As an earlier version left it."""
    app.insert(50, 3000)
    with Replicator(app.path, client) as replicator:
        replicator.sync()
    sums(app).unlink()
    app.checkpoint("PASSIVE")
    with Replicator(app.path, client) as replicator:
        replicator.sync()  # continues in the WAL
        assert replicator.status.snapshots == 0
    assert run(app, client) == 1


def remove(path: Path) -> None:
    path.unlink()


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [remove, flip])
def test_without_sound_sums_the_whole_database_is_uploaded(app, client, damage: Callable[[Path], None]):
    app.insert(50, 3000)
    run(app, client)
    app.insert()
    app.close()
    damage(sums(app))
    with Replicator(app.path, client) as replicator:
        assert replicator.sync() == 2
        assert (replicator.status.snapshots, replicator.status.comparisons) == (1, 0)
    assert pages(client)[1] == files_of(client)[1].header.commit
    assert_replicated(client, app.path)
    app.db = app.connect()
    assert run(app, client) == 2  # and they are there again


def test_sums_of_an_earlier_txid_count_for_nothing(app, client, tmp_path: Path):
    """They would say that an older database in its place is the newest state."""
    app.insert(50, 3000)
    run(app, client)
    app.close()
    for path in (app.path, sums(app)):
        shutil.copy(path, tmp_path / f"kept-{path.name}")
    app.db = app.connect()
    app.insert()
    run(app, client)
    app.close()
    for path in (app.path, sums(app)):
        shutil.copy(tmp_path / f"kept-{path.name}", path)
    sums(app).with_name("pages.log").unlink(missing_ok=True)
    with Replicator(app.path, client) as replicator:
        assert replicator.sync() == 3
        assert replicator.status.snapshots == 1
    assert_replicated(client, app.path)


def test_a_snapshot_that_is_asked_for_holds_all_pages(app, client):
    app.insert(50, 3000)
    run(app, client)
    with Replicator(app.path, client) as replicator:
        replicator.request_snapshot()
        assert replicator.sync() == 2
    assert pages(client)[1] == files_of(client)[1].header.commit


def test_where_another_wrote_since_sums_make_no_database_follow(make_app, client):
    app, other = make_app(), make_app("other.db")
    app.insert(50, 3000)
    run(app, client)
    other.insert()
    with Replicator(other.path, client, new_history=True) as replicator:
        assert replicator.sync() == 2
    app.insert()
    app.close()
    with Replicator(app.path, client) as replicator, pytest.raises(UnrelatedDatabaseError):
        replicator.sync()
    with Replicator(app.path, client, new_history=True) as replicator:
        assert replicator.sync() == 3
        assert replicator.status.snapshots == 1
    assert_replicated(client, app.path)


def test_all_places_get_what_changed_and_one_that_joins_the_whole_database(app, tmp_path: Path):
    with closing(FileReplicaClient(tmp_path / "one")) as one, closing(FileReplicaClient(tmp_path / "two")) as two:
        app.insert(50, 3000)
        for places, txid in (([], 1), ([], 1), ([two], 2), ([two], 2), ([two], 3)):
            if txid == 3:
                app.insert()
            app.close()
            with Replicator(app.path, one, places=places) as replicator:
                assert replicator.sync() == txid
            app.db = app.connect()
        assert [file.header.max_txid for file in files_of(one)] == [1, 2, 3]
        assert [(file.min_txid, file.max_txid) for file in two.list_files(0)] == [(2, 2), (3, 3)]
        assert two.list_files(0)[1].size < 10_000 < two.list_files(0)[0].size
        assert_replicated(one, app.path)
