"""A replica that lost files, is damaged, or has another writer; and files that are lost before their upload."""

from __future__ import annotations

import logging
import re
import shutil
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import apsw
import pytest

from litevfs.errors import (
    LTXFormatError,
    ReplicaConflictError,
    ReplicatorError,
    TransientStorageError,
    TXIDGapError,
    UnrelatedDatabaseError,
)
from litevfs.ltx import encode_file
from litevfs.ltx.format import HEADER_SIZE, TRAILER_SIZE, Header
from litevfs.ltx.names import MAX_TXID
from litevfs.maintenance.compaction import compact_level
from litevfs.maintenance.schedule import Maintenance, MaintenanceConfig
from litevfs.operations.restore import restore
from litevfs.replica_clients.base import LTXFileInfo, ReplicaClient
from litevfs.replica_clients.file import FileReplicaClient
from litevfs.replicate import Replicator
from litevfs.replicate.marks import state_folder
from litevfs.testing.faulty import Fault, Faults, FaultyReplicaClient
from tests.replicate.support import LARGE, failing_client, rebuilt, refuse_writes, source_bytes, synced
from tests.support import wait_until

pytestmark = pytest.mark.slow


def path_of(client: ReplicaClient, level: int, first: int, last: int | None = None) -> Path:
    return Path(client.key(LTXFileInfo(level, first, last or first, 0, 0)))


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[150] ^= 1
    path.write_bytes(data)


def assert_restores_to_the_source(client: FileReplicaClient, app, tmp_path: Path) -> None:
    """With the tests' own comparison: pages are stored as they are on the primary."""
    path = tmp_path / "restored.db"
    path.unlink(missing_ok=True)
    restore(client, path, integrity_check=True)
    assert path.read_bytes() == source_bytes(app.path)


# --- lost and damaged files of the replica ----------------------------------------------------------------------------


def lose_one(client: FileReplicaClient) -> None:
    path_of(client, 0, 3).unlink()


def lose_the_first(client: FileReplicaClient) -> None:
    path_of(client, 0, 1).unlink()


def lose_the_newest(client: FileReplicaClient) -> None:
    path_of(client, 0, 5).unlink()


def lose_everything(client: FileReplicaClient) -> None:
    shutil.rmtree(client.root)


def truncate_the_newest(client: FileReplicaClient) -> None:
    path_of(client, 0, 5).write_bytes(b"")


HARM = [lose_one, lose_the_first, lose_the_newest, lose_everything, truncate_the_newest]


@pytest.mark.slow
@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize("restarted", [False, True])
def test_the_next_look_finds_what_a_replica_lacks_and_mends_it(
    app, client, replicate, tmp_path: Path, harm: Callable[[FileReplicaClient], None], *, restarted: bool
):
    replicator = synced(app, replicate(app, look_interval_s=0), 5)
    harm(client)
    if restarted:
        replicator.close()
        replicator = replicate(app)
    synced(app, replicator, 1)
    assert_restores_to_the_source(client, app, tmp_path)
    assert replicator.status.snapshots == 1 + (not restarted)
    synced(app, replicator, 2)
    assert replicator.status.snapshots == 1 + (not restarted)  # once is enough
    assert_restores_to_the_source(client, app, tmp_path)
    assert Maintenance(client).run_all().errors == ()
    assert_restores_to_the_source(client, app, tmp_path)


def test_the_first_look_is_never_put_off(app, client, replicate):
    """Also where the machine has been up for less time than is between two looks."""
    synced(app, replicate(app, look_interval_s=1e9), 2).close()
    lose_everything(client)
    replicator = synced(app, replicate(app, look_interval_s=1e9), 1)
    assert replicator.status.snapshots == 1
    assert rebuilt(client) == source_bytes(app.path)


def test_files_that_came_after_a_loss_do_not_hide_it(app, client, replicate, tmp_path: Path, caplog):
    """As when the folder is emptied between two looks."""
    replicator = synced(app, replicate(app, look_interval_s=3600), 3)
    lose_everything(client)
    synced(app, replicator, 2)
    with pytest.raises(TXIDGapError, match="litevfs replicate --snapshot on the primary"):
        restore(client, tmp_path / "none.db")
    replicator.close()
    assert caplog.text == ""
    replicator = synced(app, replicate(app), 1)
    for said in (replicator.status.last_snapshot_reason, caplog.text):
        assert "the replica has no complete state: no files for TXIDs 0000000000000001-0000000000000003" in said
    assert [(file.min_txid, file.max_txid) for file in client.list_files(9)] == [(1, 6)]
    assert_restores_to_the_source(client, app, tmp_path)


def test_a_listing_that_is_behind_is_no_loss(app, client, replicate):
    faults = Faults("faulty://behind")
    behind = FaultyReplicaClient(FileReplicaClient(client.root), faults)
    synced(app, replicate(app, behind, look_interval_s=0), 2).close()
    faults.add(Fault("hide_newest", levels=(0,), count=4))  # two looks of two listings
    replicator = replicate(app, behind, look_interval_s=0)
    assert synced(app, replicator, 1).status.uploaded_txid == 3
    assert replicator.status.snapshots == 0
    faults.add(Fault("hide_newest", levels=(0,)))
    with pytest.raises(TransientStorageError, match="a listing does not show"):
        replicator.sync(timeout_s=0)
    assert replicator.status.snapshots == 0
    behind.close()


def test_a_gap_in_one_listing_is_no_loss(app, client, replicate, monkeypatch: pytest.MonkeyPatch):
    """As when compaction and retention move files while the levels are listed, one after the other."""
    replicator = synced(app, replicate(app, look_interval_s=0), 3)
    list_files, listings = client.list_files, 0

    def list_with_a_gap(level: int, min_txid: int = 1) -> list[LTXFileInfo]:
        nonlocal listings
        listings += level == 0
        return [file for file in list_files(level, min_txid) if listings > 1 or file.max_txid != 2]

    monkeypatch.setattr(client, "list_files", list_with_a_gap)
    replicator.sync()
    assert listings == 2
    assert synced(app, replicator, 1).status.snapshots == 1


def test_a_compaction_of_just_the_newest_txid_is_not_taken_for_the_file_of_another(app, client, replicate):
    """It has the TXID of the file uploaded from here, and other bytes."""
    replicator = replicate(app, look_interval_s=0)
    for _ in range(3):
        synced(app, replicator, 1)
        compact_level(client, 1)
    assert [(file.min_txid, file.max_txid) for file in client.list_files(1)] == [(1, 1), (2, 2), (3, 3)]
    assert synced(app, replicator, 1).status.uploaded_txid == 4
    assert replicator.status.snapshots == 1


def test_a_waiting_file_whose_txid_another_wrote_meanwhile_begins_a_new_history(app, tmp_path: Path, replicate, caplog):
    client = failing_client(tmp_path / "waiting")
    replicator = synced(app, replicate(app, client), 1)
    refuse_writes(client, 2)
    app.insert()
    with pytest.raises(TransientStorageError):
        replicator.sync(timeout_s=0)
    replicator.close()
    client.faults.clear()
    other = encode_file(Header(4096, 2, 2, 2, 1), [(1, bytes(4096))])
    client.write(0, 2, 2, other, 1)
    replicator = replicate(app, client)
    with pytest.raises(UnrelatedDatabaseError, match="holds another file of TXID 0000000000000002"):
        replicator.sync()
    assert "beginning again" not in caplog.text
    replicator.close()
    replicator = replicate(app, client, new_history=True)
    assert replicator.sync() == 3
    assert "beginning again after TXID 0000000000000002 of the replica: " in caplog.text
    assert "holds another file of TXID 0000000000000002" in (replicator.status.last_snapshot_reason or "")
    assert client.read(client.list_files(0, 2)[0]) == other
    client.close()


def test_the_snapshot_that_mends_is_as_litestreams_and_the_level_0_file_stays_for_those_who_follow(
    app, client, replicate
):
    replicator = synced(app, replicate(app, look_interval_s=0), 4)
    lose_one(client)
    synced(app, replicator, 1)
    (snapshot,) = client.list_files(9)
    (level_0,) = client.list_files(0, 5)
    headers = [Header.unpack(client.read(file)) for file in (snapshot, level_0)]
    assert [(h.min_txid, h.max_txid) for h in headers] == [(1, 5), (5, 5)]
    assert headers[0].timestamp_ms == headers[1].timestamp_ms == snapshot.modified_ms
    assert headers[0].commit == headers[1].commit == len(source_bytes(app.path)) // 4096
    assert (headers[0].wal_offset, headers[0].wal_size, headers[0].wal_salt1) == (0, 0, 0)


def test_a_file_damaged_in_the_middle_is_found_by_compaction_and_mended_once(
    app, client, replicate, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.CRITICAL, "litevfs")
    config = MaintenanceConfig(levels={1: 0.05, 2: 0.1}, snapshot_interval_s=3600, snapshot_retention_s=3600)
    synced(app, replicate(app), 5).close()
    flip_a_bit(path_of(client, 0, 3))
    replicator = replicate(app, sync_interval_s=0.02, maintenance=config)
    replicator.start()
    wait_until(lambda: client.list_files(9))
    app.insert()
    wait_until(lambda: client.list_files(2))
    replicator.sync()
    assert "the file is damaged" in replicator.status.last_maintenance_error
    assert "cannot be compacted" in replicator.status.last_snapshot_reason
    assert replicator.status.snapshots == 1
    assert_restores_to_the_source(client, app, tmp_path)


def test_one_snapshot_is_taken_for_each_place_that_cannot_be_compacted(app, client, replicate):
    """Lest it does not help; and none for what may pass."""
    replicator = synced(app, replicate(app), 1)
    places = [(0, 2, 3), (1, 2, 3), (0, 1, 3), (0, 2, 4)]
    snapshots = 1
    for kind, due in ((TransientStorageError, 0), (TXIDGapError, 1), (LTXFormatError, 0)):
        for level, min_txid, max_txid in places:
            replicator.places[0].upkeep.mend(kind("an error", level=level, min_txid=min_txid, max_txid=max_txid))
            replicator.sync()
            snapshots += due
            assert replicator.status.snapshots == snapshots
    replicator.places[0].upkeep.mend(LTXFormatError("an error", level=2, min_txid=2, max_txid=3))
    replicator.sync()
    assert replicator.status.snapshots == snapshots + 1


def test_a_snapshot_can_be_asked_for(app, client, replicate, tmp_path: Path):
    replicator = synced(app, replicate(app), 4)
    flip_a_bit(path_of(client, 0, 2))
    replicator.request_snapshot()
    assert replicator.sync() == 5
    assert replicator.status.last_snapshot_reason == "a snapshot was asked for"
    assert [(file.min_txid, file.max_txid) for file in client.list_files(9)] == [(1, 5)]
    assert_restores_to_the_source(client, app, tmp_path)
    assert replicator.sync() == 5
    status = replicator.status
    assert (status.files_uploaded, status.snapshots) == (6, 2)
    assert status.bytes_uploaded == sum(file.size for level in (0, 9) for file in client.list_files(level))


@pytest.mark.plan("D15")
@pytest.mark.parametrize("restarted", [False, True])
def test_a_snapshot_whose_upload_failed_is_uploaded_later(app, tmp_path: Path, replicate, *, restarted: bool):
    """Also by the next replicator, after one that was killed with the file on level 0 but not yet on level 9."""

    client = failing_client(tmp_path / "replica")
    client.faults.add(Fault("transient", operations=("write",), levels=(9,)))
    replicator = synced(app, replicate(app, client), 3)
    flip_a_bit(path_of(client, 0, 2))
    replicator.request_snapshot()
    with pytest.raises(TransientStorageError):
        replicator.sync(timeout_s=0)
    assert [file.max_txid for file in client.list_files(0)] == [1, 2, 3, 4]
    client.faults.clear()
    if restarted:
        replicator.close()
        replicator = replicate(app, client)
    assert replicator.sync() == 4
    assert [(file.min_txid, file.max_txid) for file in client.list_files(9)] == [(1, 4)]
    assert_restores_to_the_source(client, app, tmp_path)
    client.close()


@pytest.mark.slow
def test_a_large_snapshot_is_stored_in_full(app, client, replicate, tmp_path: Path):
    app.insert(600, 4000)
    replicator = replicate(app)
    replicator.sync()
    replicator.request_snapshot()
    replicator.sync()
    (snapshot,) = client.list_files(9)
    assert snapshot.size > 2_000_000
    client.delete(client.list_files(0))
    assert_restores_to_the_source(client, app, tmp_path)


def test_the_greatest_txid_there_is_ends_a_replica(app, client, replicate):
    page = source_bytes(app.path)[:4096]
    client.write(9, 1, MAX_TXID, encode_file(Header(4096, 1, 1, MAX_TXID, 1), [(1, page)]), 1)
    with pytest.raises(ReplicatorError, match=r"greatest TXID.*-ffffffffffffffff.ltx.*hint: replicate to another URL"):
        replicate(app).sync()


@pytest.mark.parametrize("is_checkpointed", [True, False])
def test_a_copy_over_the_file_is_found_while_it_runs(app, client, replicate, tmp_path: Path, is_checkpointed: bool):
    """Where the WAL still has frames, SQLite puts them over the copy; the replica has what SQLite reads."""
    app.insert(30, 3000)
    app.checkpoint("TRUNCATE")
    backup = app.path.read_bytes()
    replicator = synced(app, replicate(app), 2)
    app.execute("UPDATE t SET data = randomblob(3000) WHERE id < 20")
    if is_checkpointed:
        app.checkpoint("PASSIVE")
    for _ in range(3):
        replicator.sync()
    assert (replicator.status.comparisons, replicator.status.snapshots) == (0, 1)
    app.path.write_bytes(backup)
    for _ in range(3):
        replicator.sync()
    assert (replicator.status.comparisons, replicator.status.snapshots) == (1, 1)
    assert rebuilt(client) == source_bytes(app.path)
    app.connect().execute("INSERT INTO t (data) VALUES ('since')")
    for _ in range(3):
        replicator.sync()
    assert replicator.status.comparisons == 1
    assert rebuilt(client) == source_bytes(app.path)


def test_checkpoints_are_no_copies(app, client, replicate, tmp_path: Path):
    replicator = replicate(app)
    app.db.set_busy_timeout(0)
    for mode in ("PASSIVE", "FULL", "RESTART", "TRUNCATE") * 3:
        app.insert(3, 3000)
        replicator.sync()
        app.checkpoint(mode)
        replicator.sync()
        replicator.sync()
    assert (replicator.status.comparisons, replicator.status.snapshots) == (0, 1)
    assert_restores_to_the_source(client, app, tmp_path)


# --- another writer ---------------------------------------------------------------------------------------------------


def test_two_primaries_of_one_replica_never_mix(make_app, client, replicate, tmp_path: Path):
    one, other = make_app("one.db"), make_app("other.db")
    first = replicate(one, lease_ttl_s=None)
    second = replicate(other, lease_ttl_s=None, new_history=True)
    synced(one, first, 2)
    synced(other, second, 1)  # told to, it takes over a replica that it does not know
    before = {path: path.read_bytes() for path in client.root.rglob("*.ltx")}
    one.insert()
    for _ in range(2):
        with pytest.raises(ReplicaConflictError, match=r"another writer uses this replica.*hint: .*another URL"):
            first.sync()
    assert {path: path.read_bytes() for path in client.root.rglob("*.ltx")} == before
    synced(other, second, 3)
    assert_restores_to_the_source(client, other, tmp_path)
    first.close()
    assert synced(one, replicate(one, lease_ttl_s=None, new_history=True), 1).status.uploaded_txid == 7
    assert_restores_to_the_source(client, one, tmp_path)
    other.insert()
    with pytest.raises(ReplicaConflictError):
        second.sync()
    assert_restores_to_the_source(client, one, tmp_path)


def test_a_sync_during_which_a_thread_begins_again_ends_when_that_is_on_the_replica(
    app, client, replicate, monkeypatch: pytest.MonkeyPatch
):
    replicator = replicate(app, look_interval_s=0.0)
    replicator.sync()
    app.insert()
    capture_step, steps = replicator.capturing.step, 0

    def then_the_replica_is_found_empty(deadline: float) -> int:
        nonlocal steps
        txid, steps = capture_step(deadline), steps + 1
        if steps == 1:
            client.delete(client.list_files(0))
            replicator.places[0].look(deadline)  # as the thread does that uploads
        return txid

    monkeypatch.setattr(replicator.capturing, "step", then_the_replica_is_found_empty)
    assert replicator.sync() == 1
    assert steps == 2
    assert rebuilt(client) == source_bytes(app.path)


def test_what_was_captured_before_a_new_history_began_does_not_count_as_on_the_replica(app, client, replicate):
    now, deadline = 1_000, time.monotonic() + 20
    replicator = replicate(app, look_interval_s=0.0, clock_ms=lambda: now)
    replicator.sync()
    app.insert()
    now = 2_000
    replicator.capturing.step(deadline)
    client.delete(client.list_files(0))
    replicator.places[0].look(deadline)
    replicator.places[0].upload(deadline)
    assert client.list_files(0) == []
    assert replicator.status.last_sync_ms == 1_000


def test_a_waiting_file_that_is_lost_does_not_count_as_on_the_replica(app, client, replicate, caplog):
    now, deadline = 1_000, time.monotonic() + 20
    replicator = replicate(app, clock_ms=lambda: now)
    replicator.sync()
    app.insert(size=LARGE)
    now = 2_000
    replicator.capturing.step(deadline)
    (waiting,) = replicator._folder.queues[0].pending()
    waiting.path.unlink()
    replicator.places[0].upload(deadline)
    assert "is gone: TXID 0000000000000002" in caplog.text
    assert replicator.status.last_sync_ms == 1_000
    replicator.sync()
    assert replicator.status.last_sync_ms == 2_000
    assert rebuilt(client) == source_bytes(app.path)


def test_a_writer_that_has_nothing_to_upload_hears_of_another_at_its_next_look(make_app, client, replicate):
    one, other = make_app("one.db"), make_app("other.db")
    first = synced(one, replicate(one, look_interval_s=0, lease_ttl_s=None), 2)
    synced(other, replicate(other, lease_ttl_s=None, new_history=True), 1)
    with pytest.raises(ReplicaConflictError, match="holds TXID 0000000000000003, newer than 0000000000000002"):
        first.sync()
    assert first.status.uploaded_txid == 2


def test_a_replica_that_comes_back_under_a_running_writer_is_not_written_to(app, client, replicate, tmp_path: Path):
    """A mount that was missing when the replicator was started."""
    synced(app, replicate(app), 4).close()
    client.root.rename(tmp_path / "away")
    replicator = synced(app, replicate(app), 1)
    shutil.rmtree(client.root)
    (tmp_path / "away").rename(client.root)
    app.insert()
    with pytest.raises(ReplicaConflictError):
        replicator.sync()
    replicator.close()
    synced(app, replicate(app, new_history=True), 1)
    assert_restores_to_the_source(client, app, tmp_path)


def test_a_running_thread_says_so_again_and_again_and_goes_on_when_the_other_is_gone(make_app, client, replicate):
    one, other = make_app("one.db"), make_app("other.db")
    first = synced(one, replicate(one, sync_interval_s=0.01, look_interval_s=0, lease_ttl_s=None), 1)
    synced(other, replicate(other, lease_ttl_s=None, new_history=True), 1)
    first.start()
    wait_until(lambda: "another writer" in (first.status.last_error or ""))
    for file in [*client.list_files(0, 2), *client.list_files(9)]:
        client.delete([file])
    one.insert()
    wait_until(lambda: first.status.uploaded_txid == 2 and first.status.last_error is None)


# --- files that wait for their upload ---------------------------------------------------------------------------------


@pytest.fixture
def waiting(app, tmp_path: Path, replicate):
    """A replica at TXID 1, and files of TXIDs 2 to 4 that wait; (client, replicator, folder of the files)."""
    client = failing_client(tmp_path / "replica")
    replicator = synced(app, replicate(app, client), 1)
    refuse_writes(client)
    for _ in range(3):
        app.insert(size=LARGE)
        with pytest.raises(TransientStorageError):
            replicator.sync(timeout_s=0)
    client.faults.clear()
    yield client, replicator, app.path.with_name(".app.db-litevfs") / "pending"
    client.close()


def flip(path: Path) -> None:
    flip_a_bit(path)


def truncate(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("txid", [2, 3, 4])
@pytest.mark.parametrize("harm", [Path.unlink, flip, truncate])
@pytest.mark.parametrize("restarted", [False, True])
def test_a_waiting_file_that_is_lost_or_damaged_is_made_up_for_by_the_whole_database(
    app, waiting, replicate, tmp_path: Path, txid: int, harm: Callable[[Path], None], *, restarted: bool
):
    client, replicator, folder = waiting
    harm(folder / f"{txid:016x}-{txid:016x}.ltx")
    if restarted:
        replicator.close()
        replicator = replicate(app, client)
    assert replicator.sync() == txid
    reason = replicator.status.last_snapshot_reason
    if harm is Path.unlink:
        assert re.search(rf"is gone: TXID {txid:016x}|ends at TXID {txid - 1:016x}, but \w+ was uploaded", reason)
    else:
        assert "is damaged: LTX file" in reason
        assert str(folder / f"{txid:016x}-{txid:016x}.ltx") in reason
    assert replicator.status.pending_files == 0
    assert [(file.min_txid, file.max_txid) for file in client.list_files(0)] == [(n, n) for n in range(1, txid + 1)]
    assert_restores_to_the_source(client, app, tmp_path)
    synced(app, replicator, 1)
    assert_restores_to_the_source(client, app, tmp_path)


def test_a_sync_that_has_no_time_to_begin_again_says_so(app, waiting, tmp_path: Path):
    client, replicator, folder = waiting
    (folder / f"{2:016x}-{2:016x}.ltx").unlink()
    with pytest.raises(ReplicatorError, match="no time was left to begin again"):
        replicator.sync(timeout_s=0)
    assert replicator.sync() == 2
    assert_restores_to_the_source(client, app, tmp_path)


def test_the_thread_begins_again_as_well_and_at_once(app, waiting, tmp_path: Path, replicate):
    client, replicator, folder = waiting
    replicator.close()
    (folder / f"{3:016x}-{3:016x}.ltx").unlink()
    replicator = replicate(app, client, sync_interval_s=3600)
    replicator.start()
    wait_until(lambda: replicator.status.uploaded_txid == 3 and replicator.status.pending_files == 0)
    assert_restores_to_the_source(client, app, tmp_path)


# --- the clock --------------------------------------------------------------------------------------------------------


def test_a_clock_that_was_set_back_far_is_told_once(app, replicate, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.WARNING, "litevfs")
    now = 0
    replicator = replicate(app, clock_ms=lambda: now)
    for now in (10_000_000, 9_990_000, 1_000_000, 2_000_000, 11_000_000):
        app.insert()
        replicator.sync()
        assert replicator.status.last_sync_ms == now
    assert caplog.text.count("the clock is 9000 s behind") == caplog.text.count("the clock is") == 1


# --- answers that are damaged on their way ----------------------------------------------------------------------------


class Garbling(FileReplicaClient):
    """Flips one bit in the next answer to a read of so many bytes."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.size, self.at = 0, 0

    def read(
        self, file: LTXFileInfo, offset: int = 0, size: int | None = None, *, timeout_s: float | None = None
    ) -> bytes:
        data = super().read(file, offset, size, timeout_s=timeout_s)
        if size != self.size:
            return data
        self.size = 0
        return data[: self.at] + bytes([data[self.at] ^ 64]) + data[self.at + 1 :]


def test_a_trailer_that_is_read_wrong_once_is_no_other_writers(app, tmp_path: Path):
    client = Garbling(tmp_path / "replica")
    with Replicator(app.path, client, look_interval_s=0, lease_ttl_s=None) as replicator:
        synced(app, replicator, 2)
        before = replicator.status.snapshots
        client.size = TRAILER_SIZE
        synced(app, replicator, 1)
        assert not client.size
        assert (replicator.status.snapshots, replicator.status.txid) == (before, 3)


@pytest.mark.parametrize("size", [100, 2_000_000], ids=["a small file", "a large file"])
def test_a_time_that_is_read_wrong_once_is_not_that_of_all_later_files(app, tmp_path: Path, size: int):
    client = Garbling(tmp_path / "replica")
    with Replicator(app.path, client, lease_ttl_s=None) as replicator:
        app.insert(size=size)
        replicator.sync()
    shutil.rmtree(state_folder(app.path))
    client.size, client.at = HEADER_SIZE, 33  # of the time, so that it lies millions of years ahead
    with Replicator(app.path, client, lease_ttl_s=None) as replicator:
        replicator.sync()
        assert not client.size
    newest = client.list_files(0)[-1]
    assert newest.max_txid == 2
    header = Header.unpack(client.read(newest, 0, HEADER_SIZE))
    assert abs(header.timestamp_ms / 1000 - time.time()) < 3600


def test_a_time_that_is_read_wrong_once_refuses_no_restored_database(app, tmp_path: Path):
    client = Garbling(tmp_path / "replica")
    with Replicator(app.path, client, lease_ttl_s=None) as replicator:
        synced(app, replicator, 2)
    restore(client, path := tmp_path / "restored.db")
    with closing(apsw.Connection(str(path))) as connection:
        connection.execute("INSERT INTO t (data) VALUES (1)")
    client.size, client.at = HEADER_SIZE, 39
    with Replicator(path, client, lease_ttl_s=None) as replicator:
        assert replicator.sync() == 3
        assert not client.size
