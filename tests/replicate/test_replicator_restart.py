"""Restarts, and replicas that are not what the local state says: go on where that is right, else a snapshot."""

from __future__ import annotations

import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import litevfs
from litevfs.errors import ReplicatorError, UnrelatedDatabaseError
from litevfs.ltx.encoder import encode_file
from litevfs.ltx.format import Header
from litevfs.maintenance.compaction import compact_level
from litevfs.replica_clients.file import FileReplicaClient
from litevfs.replicate import Replicator
from litevfs.testing.faulty import Fault
from tests.replicate.support import (
    LARGE,
    assert_replicated,
    fail_writes,
    failing_client,
    files_of,
    replicated,
    source_bytes,
    state_folder,
    states,
    written,
)

FIXTURE = Path(__file__).parents[1] / "fixtures" / "orders" / "replica"


# --- continuing -------------------------------------------------------------------------------------------------------


@pytest.mark.plan("D02")
def test_five_restarts_in_a_row_change_nothing(app, client):
    replicated(app, client)
    before = {info.name: client.read(info) for info in client.list_files(0)}
    for _ in range(5):
        with Replicator(app.path, client) as replicator:
            assert replicator.sync() == 1
            assert replicator.status.snapshots == 0
        assert_replicated(client, app.path)
    assert {info.name: client.read(info) for info in client.list_files(0)} == before


@pytest.mark.parametrize("starts_over", [False, True])
def test_what_was_committed_while_it_was_down_is_read_from_the_wal(app, client, starts_over: bool):
    app.insert(20)
    app.checkpoint("PASSIVE")
    app.insert(3)
    replicated(app, client)
    if not starts_over:
        app.insert()
        replicated(app, client)
    txid = len(client.list_files(0))
    app.insert(3)
    with Replicator(app.path, client) as replicator:
        assert replicator.sync() == txid + 1
        assert replicator.status.snapshots == 0
    assert len(list(files_of(client)[txid].pages())) < 3
    assert_replicated(client, app.path)


@pytest.mark.parametrize("cut", [0, 10, 24])
def test_what_was_committed_while_it_was_down_is_not_lost_with_the_end_of_the_wal(app, client, cut: int):
    """An application with `journal_size_limit` cuts the WAL when it starts over, here where we stood."""
    app.execute("PRAGMA wal_autocheckpoint=0")
    app.insert(10, 3000)
    with Replicator(app.path, client) as replicator:
        replicator.sync()
        app.insert(20, 3000)
        replicator.sync()
    frames = app.checkpoint("NOOP")[1]
    app.execute("UPDATE t SET data = 'changed while it was down'")
    assert app.checkpoint("NOOP")[1] > frames + 5
    app.execute(f"PRAGMA journal_size_limit={32 + frames * 4120 + cut}")
    app.checkpoint("RESTART")
    app.execute("UPDATE t SET data = 'and after it started over' WHERE id = 1")
    with Replicator(app.path, client) as replicator:
        replicator.sync()
    assert_replicated(client, app.path)


def test_closing_leaves_the_wal_as_it_is_even_after_the_application(app, client):
    app.insert(20)
    replicator = Replicator(app.path, client)
    replicator.sync()
    app.insert()
    replicator.sync()
    app.insert(3)
    app.close()
    replicator.close()
    assert app.path.with_name("app.db-wal").stat().st_size > 0
    with Replicator(app.path, client) as replicator:
        assert replicator.sync() == 3
        assert replicator.status.snapshots == 0
    assert_replicated(client, app.path)


@pytest.mark.parametrize("mode", ["RESTART", "TRUNCATE"])
def test_a_wal_that_was_started_over_while_it_was_down_leads_to_a_comparison(app, client, mode: str):
    app.insert(100)
    replicated(app, client)
    app.insert()
    app.checkpoint(mode)
    app.insert()
    with Replicator(app.path, client) as replicator:
        assert replicator.sync() == 2
        assert "started over" in replicator.status.last_comparison_reason
        app.insert()
        assert replicator.sync() == 3
        assert (replicator.status.comparisons, replicator.status.snapshots) == (1, 0)
    changed = files_of(client)[1]
    assert (changed.header.min_txid, changed.header.max_txid) == (2, 2)
    assert 0 < len(list(changed.pages())) < changed.header.commit - 2
    assert_replicated(client, app.path)


@pytest.mark.parametrize("writes", [0, 1])
def test_a_backup_copied_into_the_file_beside_a_wal_that_stayed_is_found(app, client, tmp_path: Path, writes: int):
    """A replicator that ends last leaves the WAL; with it, the backup is a database that is in no TXID."""
    app.insert(20)
    app.checkpoint("TRUNCATE")
    backup = app.path.read_bytes()
    with Replicator(app.path, client) as replicator:
        for mode in ("RESTART", "PASSIVE"):
            replicator.sync()
            app.execute("UPDATE t SET data = randomblob(500)")
            replicator.sync()
            app.checkpoint(mode)
        app.insert()
        replicator.sync()
        app.close()
    app.path.write_bytes(backup)
    app.db = app.connect()
    app.insert(writes)
    with Replicator(app.path, client) as replicator:
        replicator.sync()
        assert (replicator.status.comparisons, replicator.status.snapshots) == (1, 0)
    with Replicator(app.path, client) as replicator:
        replicator.sync()
        assert replicator.status.comparisons == 0
    assert_replicated(client, app.path)


def test_an_application_that_ended_while_it_was_down_leads_to_a_comparison(app, client):
    replicated(app, client)
    app.insert()
    app.close()  # SQLite removes the WAL
    assert not app.path.with_name("app.db-wal").exists()
    with Replicator(app.path, client) as replicator:
        assert replicator.sync() == 2
        assert (replicator.status.comparisons, replicator.status.snapshots) == (1, 0)
    assert_replicated(client, app.path)


@pytest.mark.parametrize(("writes", "reason"), [(0, "power failure"), (4, "overwritten")])
def test_a_wal_that_lost_its_end_leads_to_a_comparison(app, client, writes: int, reason: str):
    """As after a power failure: transactions that were replicated are gone, or others have taken their place."""
    app.execute("PRAGMA wal_autocheckpoint=0")
    replicated(app, client, syncs=5)
    path, wal = app.path, app.path.with_name(app.path.name + "-wal")
    database, frames = path.read_bytes(), wal.read_bytes()
    app.close()
    path.write_bytes(database)
    wal.write_bytes(frames[: -2 * 4120])
    if writes:
        app.db = app.connect()
        app.insert(writes)
    with Replicator(path, client) as replicator:
        assert replicator.sync() == 6
        assert reason in replicator.status.last_comparison_reason
    assert_replicated(client, path)


# --- the database is another one --------------------------------------------------------------------------------------


@pytest.mark.parametrize("running", [True, False])
def test_a_database_that_was_replaced_by_another_file_leads_to_a_comparison(make_app, client, running: bool):
    app, other = make_app(), make_app("other.db")
    other.execute("CREATE TABLE other (x)")
    other.insert(200)
    other.close()
    replicator = Replicator(app.path, client)
    app.insert()
    replicator.sync()
    if not running:
        replicator.close()
    app.close()
    for suffix in ("-wal", "-shm"):
        app.path.with_name(app.path.name + suffix).unlink(missing_ok=True)
    other.path.replace(app.path)
    if not running:
        replicator = Replicator(app.path, client)
    db = app.connect()
    assert replicator.sync() == 2
    assert replicator.status.last_comparison_reason.startswith("the database file ")
    db.execute("INSERT INTO other VALUES (1)")
    assert replicator.sync() == 3
    replicator.close()
    assert_replicated(client, app.path)
    with Replicator(app.path, client) as replicator:  # which knows the file now
        assert replicator.sync() == 3


def test_a_database_that_is_gone_is_an_error_until_it_is_back(app, client):
    with Replicator(app.path, client) as replicator:
        replicator.sync()
        app.path.rename(app.path.with_name("moved.db"))
        with pytest.raises(ReplicatorError, match="no database to replicate"):
            replicator.sync()
        app.path.with_name("moved.db").rename(app.path)
        app.insert()
        assert replicator.sync() == 2
        assert replicator.status.snapshots == 1


def test_a_large_wal_of_a_database_that_was_moved_away_is_not_kept(app, client):
    """Its application goes on with it, and would fill the disk."""
    app.execute("PRAGMA wal_autocheckpoint=0")
    app.db.set_busy_timeout(0)
    with Replicator(app.path, client, checkpoint_pages=20) as replicator:
        replicator.sync()
        app.insert()
        replicator.sync()
        for suffix in ("", "-wal", "-shm"):
            app.path.with_name(f"app.db{suffix}").rename(app.path.with_name(f"moved.db{suffix}"))
        app.insert(20)
        assert app.checkpoint("RESTART")[0] == 1  # the replicator keeps the WAL
        with pytest.raises(ReplicatorError, match="no database to replicate"):
            replicator.sync()
        assert app.checkpoint("RESTART")[0] == 0


@pytest.mark.parametrize("is_gone", [False, True])
def test_between_syncs_nothing_is_read_from_the_wal_of_another_database(make_app, client, is_gone: bool):
    app, other = make_app(), make_app("other.db")
    other.insert(50)
    other.close()
    with Replicator(app.path, client, sync_interval_s=3600) as replicator:
        app.insert()
        replicator.sync()
        app.insert()
        replicator.sync()
        app.close()
        for suffix in ("", "-wal", "-shm"):
            app.path.with_name(app.path.name + suffix).unlink()
        if not is_gone:
            other.path.rename(app.path)
            app.connect().execute("INSERT INTO t (data) VALUES ('a WAL of its own')")
        for _ in range(3):
            replicator.capturing.capture.settle()
        if is_gone:
            with pytest.raises(ReplicatorError, match="no database to replicate"):
                replicator.sync()
        else:
            assert replicator.sync() == 3
            assert_replicated(client, app.path)


def test_a_database_with_pages_of_another_size_goes_on_with_a_snapshot(make_app, client, tmp_path: Path):
    """So does a reader that was open before, and nothing needs older files."""
    app = make_app()
    app.insert(30, 3000)
    replicated(app, client, syncs=2)
    reader = litevfs.connect(client.url)
    assert reader.execute("SELECT count(*) FROM t").get == 32
    for page_size, txid in ((1024, 3), (65536, 5)):
        change_page_size(app, page_size)
        replicated(app, client)
        assert [(file.min_txid, file.max_txid) for file in client.list_files(9)][-1] == (1, txid)
        replicated(app, client)
        litevfs.wait_for(reader, txid + 1, timeout=10)
        assert reader.execute("SELECT * FROM t").fetchall() == app.execute("SELECT * FROM t")
    compact_level(client, 1)
    for name in ("all.db", "without.db"):
        litevfs.restore(client, tmp_path / name, integrity_check=True)
        assert (tmp_path / name).read_bytes() == source_bytes(app.path)
        client.delete(file for level in (0, 1) for file in client.list_files(level) if file.min_txid < 5)
    reader.close()


def change_page_size(app, page_size: int) -> None:
    """As its user does it, with no other program on the database; leaves a commit in the new WAL."""
    for sql in ("journal_mode=DELETE", f"page_size={page_size}"):
        app.execute(f"PRAGMA {sql}")
    app.execute("VACUUM")
    app.execute("PRAGMA journal_mode=WAL")
    app.insert()


# --- the replica is another one ---------------------------------------------------------------------------------------


def test_told_to_it_goes_on_after_the_newest_txid_of_a_replica_that_litestream_wrote(make_app, tmp_path: Path):
    shutil.copytree(FIXTURE, tmp_path / "orders")
    client = FileReplicaClient(tmp_path / "orders")
    page_size = files_of(client)[0].header.page_size
    newest_ms = files_of(client)[-1].header.timestamp_ms
    app = make_app(page_size=page_size)
    app.insert(5)
    with Replicator(app.path, client) as replicator, pytest.raises(UnrelatedDatabaseError, match="no local state"):
        replicator.sync()
    with Replicator(app.path, client, new_history=True) as replicator:
        assert replicator.sync() == 13
        assert "no local state" in replicator.status.last_snapshot_reason
        app.insert()
        assert replicator.sync() == 14
    assert files_of(client)[12].header.timestamp_ms >= newest_ms
    assert_replicated(client, app.path)
    client.close()


def test_a_new_history_may_have_pages_of_another_size(make_app, client, tmp_path: Path):
    replicated(make_app(), client)
    other = make_app("other.db", page_size=1024)
    with Replicator(other.path, client) as replicator, pytest.raises(UnrelatedDatabaseError, match="--new-history"):
        replicator.sync()
    with Replicator(other.path, client, new_history=True) as replicator:
        assert replicator.sync() == 2
    litevfs.restore(client, tmp_path / "restored.db")
    assert (tmp_path / "restored.db").read_bytes() == source_bytes(other.path)


def test_a_new_history_is_no_earlier_than_the_replica_it_follows(app, client):
    for clock_ms in (9_000, 5_000):
        with Replicator(app.path, client, clock_ms=lambda clock_ms=clock_ms: clock_ms) as replicator:
            replicator.sync()
        shutil.rmtree(app.path.with_name(".app.db-litevfs"))
    assert [file.header.timestamp_ms for file in files_of(client)] == [9_000, 9_000]


def test_a_replica_that_is_ahead_gets_a_snapshot_as_its_next_txid_only_when_told_to(app, client):
    replicated(app, client)
    page_size = files_of(client)[0].header.page_size
    for txid in (2, 3):
        data = encode_file(Header(page_size, 2, txid, txid, 1), [(1, bytes(page_size))])
        client.write(0, txid, txid, data, 1)
    app.insert()
    with Replicator(app.path, client) as replicator:
        with pytest.raises(UnrelatedDatabaseError, match="holds TXID 0000000000000003, newer than 0000000000000001"):
            replicator.sync()
        assert len(client.list_files(0)) == 3
    with Replicator(app.path, client, new_history=True) as replicator:
        assert replicator.sync() == 4
        assert "holds TXID 0000000000000003, newer than 0000000000000001" in replicator.status.last_snapshot_reason
    assert_replicated(client, app.path)
    assert [(file.min_txid, file.max_txid) for file in client.list_files(9)] == [(1, 4)]  # needs no file before it


def test_a_replica_that_lost_files_gets_a_snapshot_without_a_gap(app, client):
    replicated(app, client, syncs=5)
    client.delete(client.list_files(0)[3:])
    with Replicator(app.path, client) as replicator:
        assert replicator.sync() == 4
        assert "ends at TXID 0000000000000003, but 0000000000000005 was uploaded" in (
            replicator.status.last_snapshot_reason
        )
    assert_replicated(client, app.path)


def test_a_replica_that_was_emptied_starts_again_at_txid_1(app, client, tmp_path: Path):
    replicated(app, client, syncs=3)
    shutil.rmtree(tmp_path / "replica")
    with Replicator(app.path, client) as replicator:
        assert replicator.sync() == 1
    assert_replicated(client, app.path)


@pytest.mark.parametrize("same_size", [False, True])
def test_a_replica_with_another_file_of_the_same_txid_is_not_continued(app, client, same_size: bool):
    replicated(app, client, syncs=2)
    newest, data = files_of(client)[1], client.read(client.list_files(0)[-1])
    pages = newest.pages() if same_size else [(2, bytes(4096))]
    other = encode_file(replace(newest.header, timestamp_ms=newest.header.timestamp_ms + 1), pages)
    assert (len(other) == len(data)) is same_size
    client.write(0, 2, 2, other, 1)
    app.insert()
    with Replicator(app.path, client) as replicator:
        assert replicator.sync() == 3
        assert "holds another file of TXID 0000000000000002" in replicator.status.last_snapshot_reason
    assert_replicated(client, app.path)


def test_a_compacted_replica_is_continued(app, client):
    """Level 0 is gone, level 1 reaches as far: nothing is missing."""
    replicated(app, client, syncs=2)
    *_, (_, data) = states(files_of(client))
    pages = [(n + 1, data[n * 4096 : (n + 1) * 4096]) for n in range(len(data) // 4096)]
    client.write(1, 1, 2, encode_file(Header(4096, len(pages), 1, 2, 1), pages), 1)
    client.delete(client.list_files(0))
    app.insert()
    with Replicator(app.path, client) as replicator:
        assert replicator.sync() == 3
        assert replicator.status.snapshots == 0


def test_another_url_gets_a_snapshot_even_when_the_txids_would_fit(app, client, tmp_path: Path):
    replicated(app, client, syncs=2)
    other = FileReplicaClient(tmp_path / "other")
    (state_folder(app)).rename(tmp_path / "kept")
    replicated(app, other, syncs=2)
    shutil.rmtree(state_folder(app))
    (tmp_path / "kept").rename(state_folder(app))
    with Replicator(app.path, other) as replicator:
        assert replicator.sync() == 3
        assert f"was replicated to {client.url} before" in replicator.status.last_snapshot_reason
    assert_replicated(other, app.path)
    other.close()


# --- the local state --------------------------------------------------------------------------------------------------


@pytest.mark.plan("D01")
def test_what_a_killed_replicator_left_half_done_is_rolled_back(app, client):
    replicated(app, client, syncs=2)
    folder = state_folder(app)
    (folder / "pending" / "0000000000000003-0000000000000003.tmp").write_bytes(b"half a file")
    (folder / "pending" / "0000000000000003-0000000000000003.ltx").write_bytes(b"not counted by state.json")
    (folder / "state.tmp").write_bytes(b'{"vers')
    app.insert()
    with Replicator(app.path, client) as replicator:
        assert replicator.status.pending_files == 0
        assert replicator.sync() == 3
        assert replicator.status.snapshots == 0
    names = ["lock", "owner.json", "pages.log", "pages.sums", "pending", "state.json"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert list((folder / "pending").iterdir()) == []
    assert_replicated(client, app.path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"version": 2}', b'{"version": 1, "position": {}}', None])
def test_a_state_that_cannot_be_understood_leads_to_a_snapshot(app, client, content: bytes | None):
    replicated(app, client)
    path = state_folder(app) / "state.json"
    path.unlink() if content is None else path.write_bytes(content)
    with Replicator(app.path, client) as replicator:
        assert replicator.sync() == 2
        assert "no local state" in replicator.status.last_snapshot_reason
    assert_replicated(client, app.path)


def test_a_state_with_a_flipped_bit_leads_to_a_snapshot(app, client):
    """The first digit of the newest file's time, say, would make all times of the future wrong."""
    replicated(app, client)
    path = state_folder(app) / "state.json"
    newest_ms, data = files_of(client)[0].header.timestamp_ms, path.read_bytes()
    start, rng = data.index(b":"), random.Random(8)
    for txid, at in enumerate([data.index(b"%d" % newest_ms), *rng.sample(range(start, data.rindex(b"}") + 1), 20)], 2):
        flipped = bytearray(path.read_bytes())
        flipped[at] ^= 8
        path.write_bytes(flipped)
        with Replicator(app.path, client) as replicator:
            assert replicator.sync() == txid
            assert "no local state" in replicator.status.last_snapshot_reason
    assert files_of(client)[-1].header.timestamp_ms < newest_ms + 3_600_000
    assert_replicated(client, app.path)


@pytest.mark.plan("D01", "D03")
def test_files_that_waited_at_the_end_are_uploaded_first_and_in_order(app, tmp_path: Path):
    client = failing_client(tmp_path / "replica")
    with Replicator(app.path, client) as replicator:
        replicator.sync()
        for _ in range(3):
            fail_writes(client)
            app.insert()
            with pytest.raises(Exception, match="injected fault"):
                replicator.sync(timeout_s=0)
        assert replicator.status.pending_files == 3
    assert len(files_of(client)) == 1
    client.faults.reset_counters()
    with Replicator(app.path, client) as replicator:
        assert replicator.sync() == 4
        assert replicator.status.snapshots == 0
    assert written(client) == [2, 3, 4]
    assert_replicated(client, app.path)
    client.close()


def test_an_upload_whose_answer_was_lost_is_done_again(app, tmp_path: Path):
    client = failing_client(tmp_path / "replica")
    with Replicator(app.path, client) as replicator:
        replicator.sync()
        client.faults.add(Fault("lost_answer", count=1))
        app.insert()
        with pytest.raises(Exception, match="injected fault"):
            replicator.sync(timeout_s=0)
        before = files_of(client)[1].data
    with Replicator(app.path, client) as replicator:
        assert replicator.sync() == 2
        assert replicator.status.snapshots == 0
    assert written(client) == [1, 2, 2]
    assert files_of(client)[1].data == before
    client.close()


def test_a_folder_that_cannot_be_written_is_an_error_and_loses_nothing(app, client):
    app.db.set_busy_timeout(0)
    with Replicator(app.path, client) as replicator:
        replicator.sync()
        pending = state_folder(app) / "pending"
        pending.rename(state_folder(app) / "away")
        app.insert(20, size=LARGE)
        with pytest.raises(ReplicatorError, match=r"local state cannot be kept.*hint: "):
            replicator.sync()
        app.checkpoint("TRUNCATE")
        app.insert()
        (state_folder(app) / "away").rename(pending)
        assert replicator.sync() == 2
        assert replicator.status.snapshots == 1
    assert_replicated(client, app.path)
