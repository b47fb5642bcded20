"""One database to several places: one capture, an upload for each at its own pace, and none that waits for another."""

from __future__ import annotations

import errno
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import litevfs
from litevfs.errors import (
    OptionError,
    ReplicaConflictError,
    StoragePermissionError,
    UnrelatedDatabaseError,
)
from litevfs.ltx.names import MAX_TXID
from litevfs.maintenance.schedule import Maintenance
from litevfs.operations.restore import restore
from litevfs.replica_clients.base import ReplicaClient
from litevfs.replica_clients.file import FileReplicaClient
from litevfs.replicate import Replicator
from litevfs.testing.faulty import Fault, FaultyReplicaClient
from tests.replicate.conftest import Application
from tests.replicate.support import assert_replicated, failing_client, source_bytes, synced
from tests.support import wait_until

pytestmark = pytest.mark.slow


@pytest.fixture
def here(tmp_path: Path) -> Iterator[FileReplicaClient]:
    client = FileReplicaClient(tmp_path / "here")
    yield client
    client.close()


@pytest.fixture
def there(tmp_path: Path) -> Iterator[FaultyReplicaClient]:
    client = failing_client(tmp_path / "there")
    yield client
    client.faults.clear()
    client.close()


@pytest.fixture
def both(app, here, there) -> Iterator[Callable[..., Replicator]]:
    """Makes replicators to both places, or to those that are named, and closes them."""
    made: list[Replicator] = []

    def make(*clients: ReplicaClient, **options: Any) -> Replicator:
        first, *others = clients or (here, there)
        made.append(Replicator(app.path, first, places=others, **options))
        return made[-1]

    yield make
    for replicator in made:
        replicator.close()


def refuse(client: FaultyReplicaClient) -> None:
    """From now on, the place takes no files, and says so at once; `client.faults.clear()` ends it."""
    client.faults.add(Fault("permission", operations=("write",), txids=(1, MAX_TXID)))


def queue_files(app) -> list[Path]:
    """What waits for its upload, to whatever place."""
    return sorted((app.path.parent / f".{app.path.name}-litevfs").rglob("*.ltx"))


def txids(client: ReplicaClient, level: int = 0) -> list[tuple[int, int]]:
    return [(file.min_txid, file.max_txid) for file in client.list_files(level)]


def assert_restores(app, tmp_path: Path, *clients: ReplicaClient) -> None:
    """Each place restores to just the database that the application has."""
    for number, client in enumerate(clients):
        path = tmp_path / f"restored-{number}.db"
        path.unlink(missing_ok=True)
        restore(client, path, integrity_check=True)
        assert path.read_bytes() == source_bytes(app.path), client.url


def refused(app, replicator: Replicator, syncs: int, *rows: int) -> None:
    """Transactions of which a place that refuses takes none; `rows` as for `app.insert`."""
    for _ in range(syncs):
        app.insert(*rows)
        with pytest.raises(StoragePermissionError):
            replicator.sync()


# --- one capture, several uploads -------------------------------------------------------------------------------------


def test_every_sync_is_on_all_places_and_the_database_is_captured_once(app, here, there, both):
    replicator = both()
    for txid in range(1, 5):
        app.insert()
        assert replicator.sync() == txid
        for client in (here, there):
            assert_replicated(client, app.path)
    status = replicator.status
    assert (status.snapshots, status.txid, status.uploaded_txid, status.files_uploaded) == (1, 4, 4, 8)
    assert [place.replica for place in status.places] == [here.url, there.url]
    assert all(place.has_lease and place.uploaded_txid == 4 for place in status.places)
    assert queue_files(app) == []


def test_a_file_takes_disk_space_once_until_the_slowest_place_has_it(app, here, there, both):
    replicator = synced(app, both(), 1)
    refuse(there)
    app.insert(10, 1000)
    with pytest.raises(StoragePermissionError) as raised:
        replicator.sync()
    assert there.url in str(raised.value)
    assert_replicated(here, app.path)
    (waiting,) = queue_files(app)  # that of the other place is gone
    assert waiting.stat().st_nlink == 1
    there.faults.clear()
    assert replicator.sync() == 2
    assert queue_files(app) == []


def test_files_that_wait_for_several_places_are_one_file(app, tmp_path: Path, both):
    clients = [failing_client(tmp_path / name) for name in ("a", "b", "c")]
    replicator = synced(app, both(*clients), 1)
    for client in clients:
        refuse(client)
    app.insert()
    with pytest.raises(StoragePermissionError):
        replicator.sync()
    waiting = queue_files(app)
    assert len(waiting) == 3
    assert len({path.stat().st_ino for path in waiting}) == 1
    for left, client in zip((2, 1, 0), clients, strict=True):
        client.faults.clear()
        if left:
            with pytest.raises(StoragePermissionError):
                replicator.sync()
        else:
            replicator.sync()
        assert [path.stat().st_nlink for path in queue_files(app)] == [left] * left
    for client in clients:
        assert_replicated(client, app.path)
        client.close()


def test_a_file_system_without_hard_links_gets_copies(app, here, there, both, monkeypatch: pytest.MonkeyPatch):
    def refuse(source: object, target: object, **options: object) -> None:
        if "-litevfs" in str(source):
            raise OSError(errno.EOPNOTSUPP, "not here")
        link(source, target, **options)

    link = os.link
    replicator = both()
    monkeypatch.setattr(os, "link", refuse)
    synced(app, replicator, 3)
    assert_replicated(here, app.path)
    assert_replicated(there, app.path)


# --- one is down ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_first", [False, True])
def test_a_place_that_is_down_delays_no_other_and_gets_everything_in_order_later(
    app, here, there, both, is_first: bool
):
    replicator = both(there, here) if is_first else both()
    synced(app, replicator, 1)
    refuse(there)
    for txid in range(2, 6):
        app.insert()
        with pytest.raises(StoragePermissionError, match="injected fault"):
            replicator.sync()
        assert_replicated(here, app.path)
        assert replicator.status.txid == txid
    status = {place.replica: place for place in replicator.status.places}
    assert (status[here.url].uploaded_txid, status[here.url].pending_files) == (5, 0)
    assert (status[there.url].uploaded_txid, status[there.url].pending_files) == (1, 4)
    assert replicator.status.uploaded_txid == 1
    there.faults.clear()
    assert replicator.sync() == 5
    assert txids(there) == [(n, n) for n in range(1, 6)]
    assert_replicated(there, app.path)
    assert replicator.status.snapshots == 1


def test_a_place_that_hangs_keeps_no_thread_of_another_waiting(app, here, there, both):
    there.faults.add(Fault("hang", operations=("write",)))
    replicator = both(sync_interval_s=0.01)
    replicator.start()
    there.faults.wait_until_waiting()
    for _ in range(3):
        app.insert()
        newest = replicator.status.txid
        wait_until(lambda newest=newest: replicator.status.places[0].uploaded_txid > newest)
    assert replicator.status.places[1].uploaded_txid == 0
    there.faults.clear()
    wait_until(lambda: replicator.status.uploaded_txid == replicator.status.txid)
    assert replicator.status.snapshots == 1
    for client in (here, there):
        assert_replicated(client, app.path)


def test_a_place_that_cannot_be_asked_at_first_joins_when_it_is_there(app, here, there, both, tmp_path: Path):
    there.faults.add(Fault("permission", operations=("list",)))
    replicator = both()
    refused(app, replicator, 3)
    assert_replicated(here, app.path)
    assert queue_files(app) == []
    there.faults.clear()
    assert replicator.sync() == 4
    assert (txids(there), txids(there, 9)) == ([(4, 4)], [(1, 4)])
    assert_replicated(here, app.path)
    synced(app, replicator, 1)
    assert_restores(app, tmp_path, here, there)


# --- one joins late, leaves, comes back -------------------------------------------------------------------------------


def test_a_place_that_joins_late_begins_with_the_whole_database(app, here, there, both, tmp_path: Path):
    synced(app, both(here), 3).close()
    replicator = both()
    assert replicator.sync() == 4
    synced(app, replicator, 2)
    assert_replicated(here, app.path)
    assert (txids(there), txids(there, 9)) == ([(4, 4), (5, 5), (6, 6)], [(1, 4)])
    assert_restores(app, tmp_path, here, there)
    Maintenance(there).run_all()
    assert txids(there, 1) == [(4, 6)]
    assert_restores(app, tmp_path, there)


def test_restarts_change_nothing_whatever_the_order_of_the_places(app, here, there, both):
    for clients in ((here, there), (there, here), (here, there), (there, here)):
        synced(app, both(*clients), 2).close()
    with both() as replicator:
        assert replicator.sync() == 8
    assert_replicated(here, app.path)
    assert_replicated(there, app.path)


def test_files_that_waited_for_a_place_at_the_end_are_uploaded_by_the_next_replicator(app, here, there, both):
    replicator = synced(app, both(), 1)
    refuse(there)
    refused(app, replicator, 3)
    replicator.close()
    there.faults.clear()
    with both() as replicator:
        assert replicator.sync() == 4
        assert replicator.status.snapshots == 0
    assert_replicated(here, app.path)
    assert_replicated(there, app.path)


@pytest.mark.parametrize("lease_ttl_s", [30.0, None])
@pytest.mark.parametrize("is_first", [False, True])
def test_a_place_that_was_left_out_for_a_while_goes_on_with_the_whole_database(
    app, here, there, both, tmp_path: Path, is_first: bool, lease_ttl_s: float | None
):
    stays, leaves = (there, here) if is_first else (here, there)
    synced(app, both(lease_ttl_s=lease_ttl_s), 2).close()
    app.insert()
    with both(stays, lease_ttl_s=lease_ttl_s) as replicator:
        synced(app, replicator, 2)
        assert replicator.status.snapshots == 0
    app.checkpoint("TRUNCATE")  # nothing in the WAL tells where the database comes from
    app.insert()
    with both(lease_ttl_s=lease_ttl_s) as replicator:
        synced(app, replicator, 2)
    assert_replicated(stays, app.path)
    assert_restores(app, tmp_path, stays, leaves)
    assert txids(leaves)[:2] == [(1, 1), (2, 2)]


@pytest.mark.parametrize("seed", [147, 282, *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(50))])
@pytest.mark.slow
def test_places_may_come_and_go_and_fail_in_any_order(app, tmp_path: Path, both, seed: int):
    rng = random.Random(seed)
    clients = [failing_client(tmp_path / name) for name in ("a", "b", "c", "d")]
    options: dict[str, Any] = {
        "lease_ttl_s": rng.choice([30.0, None]),
        "max_pending_bytes": rng.choice([None, 20_000]),
        "look_interval_s": rng.choice([0.0, 300.0]),
    }
    for _ in range(10):
        chosen = rng.sample(clients, rng.randint(1, 4))
        with both(*chosen, **options) as replicator:
            for _ in range(rng.randint(0, 3)):
                failing = rng.choice([*chosen, None, None])
                if failing is not None:
                    failing.faults.add(Fault("permission", operations=(rng.choice(("write", "list")),)))
                app.insert(rng.randint(0, 3), rng.choice((100, 9000)))
                try:
                    replicator.sync()
                    newest = {max(file.max_txid for file in client.list_files(0)) for client in chosen}
                    assert newest == {replicator.status.txid}
                except StoragePermissionError:
                    assert failing is not None
                for client in chosen:
                    client.faults.clear()
        if rng.random() < 0.4:
            app.checkpoint("TRUNCATE")
    with both(*clients, **options) as replicator:
        app.insert()
        replicator.sync()
    assert_restores(app, tmp_path, *clients)
    assert queue_files(app) == []
    for client in clients:
        client.close()


def test_a_place_that_another_wrote_to_meanwhile_is_refused_and_the_other_goes_on(
    app, make_app, here, there, both, tmp_path: Path
):
    synced(app, both(), 2).close()
    synced(app, both(here), 2).close()
    other = make_app("other.db")
    with Replicator(other.path, there, new_history=True) as replicator:
        synced(other, replicator, 1)
    replicator = both()
    replicator.start()
    wait_until(lambda: replicator.status.places[1].last_error is not None)
    app.insert()
    with pytest.raises(UnrelatedDatabaseError, match=f"to {there.url}: the database is not the replica's newest state"):
        replicator.sync()
    replicator.wait(0)  # the other place is no reason to end
    assert_restores(app, tmp_path, here)
    assert_restores(other, tmp_path, there)
    replicator.close()
    with both(new_history=True) as replicator:
        replicator.sync()
    assert_restores(app, tmp_path, here, there)


def test_a_place_that_is_refused_is_not_compared_at_every_sync(app, make_app, here, there, both):
    other = make_app("other.db")
    with Replicator(other.path, there) as replicator:
        synced(other, replicator, 1)
    replicator = both()
    for count in range(3):
        app.insert()
        with pytest.raises(UnrelatedDatabaseError) as raised:
            replicator.sync()
        assert str(raised.value).count(f"to {there.url}: ") == 1
        if count == 0:
            there.faults.reset_counters()
    assert not there.faults.requests
    assert_replicated(here, app.path)


def test_threads_end_when_all_places_are_refused(app, make_app, here, there, both):
    other = make_app("other.db")
    with Replicator(other.path, here, places=[there]) as replicator:
        synced(other, replicator, 1)
    replicator = both()
    replicator.start()
    with pytest.raises(UnrelatedDatabaseError):
        replicator.wait(20)


def test_a_place_whose_txids_are_ahead_takes_all_along_over_a_gap(app, make_app, here, there, both, tmp_path: Path):
    other = make_app("other.db")
    with Replicator(other.path, there) as replicator:
        synced(other, replicator, 9)
    synced(app, both(here), 2).close()
    replicator = both(new_history=True)
    assert replicator.sync() == 10
    synced(app, replicator, 2)
    assert txids(here) == [(1, 1), (2, 2), (10, 10), (11, 11), (12, 12)]
    assert txids(here, 9) == [(1, 10)]
    assert_restores(app, tmp_path, here, there)
    replicator.close()
    with both() as replicator:
        assert synced(app, replicator, 1).status.snapshots == 0
    for client in (here, there):
        Maintenance(client).run_all()
    assert_restores(app, tmp_path, here, there)


def test_a_place_that_is_down_while_another_takes_all_along_over_a_gap_follows(
    app, make_app, here, there, both, tmp_path: Path
):
    other, ahead = make_app("other.db"), FileReplicaClient(tmp_path / "ahead")
    with Replicator(other.path, ahead) as replicator:
        synced(other, replicator, 9)
    replicator = synced(app, both(), 2)
    refuse(there)
    app.insert()
    with pytest.raises(StoragePermissionError):
        replicator.sync()
    replicator.close()
    replicator = both(here, there, ahead, new_history=True)
    refused(app, replicator, 2)
    replicator.close()
    there.faults.clear()
    with both(here, there, ahead) as replicator:
        synced(app, replicator, 1)
    numbers = [first for first, _ in txids(there)]
    assert numbers == [*range(1, numbers.index(10) + 1), *range(10, numbers[-1] + 1)]
    assert_restores(app, tmp_path, here, there, ahead)
    ahead.close()


@pytest.mark.parametrize("restored", ["here", "there"])
def test_a_database_restored_from_one_place_goes_on_to_all(app, here, there, both, tmp_path: Path, restored: str):
    synced(app, both(), 3).close()
    path = tmp_path / "again.db"
    litevfs.restore({"here": here, "there": there}[restored], path)
    again = Application(path)
    again.execute("PRAGMA journal_mode=WAL")
    again.insert()
    with Replicator(path, here, places=[there]) as replicator:
        assert replicator.sync() == 4
    assert_restores(again, tmp_path, here, there)
    again.close()


def test_readers_follow_over_a_gap(app, make_app, here, there, both, tmp_path: Path):
    other = make_app("other.db")
    with Replicator(other.path, there) as replicator:
        synced(other, replicator, 5)
    synced(app, both(here), 1).close()
    reader = litevfs.connect(here.url, poll_interval=0.05)
    try:
        assert reader.execute("SELECT count(*) FROM t").fetchall() == [(1,)]
        with both(new_history=True) as replicator:
            app.insert()
            assert replicator.sync() == 6
            wait_until(lambda: reader.execute("PRAGMA litestream_txid").fetchall() == [(f"{6:016x}",)])
            assert reader.execute("SELECT count(*) FROM t").fetchall() == [(2,)]
            synced(app, replicator, 1)
            wait_until(lambda: reader.execute("SELECT count(*) FROM t").fetchall() == [(3,)])
    finally:
        reader.close()


# --- conflicts, limits, losses ----------------------------------------------------------------------------------------


def test_a_conflict_at_one_place_stops_that_place_only(app, make_app, here, there, both, tmp_path: Path):
    replicator = synced(app, both(lease_ttl_s=None), 2)
    other = make_app("other.db")
    with Replicator(other.path, there, new_history=True, lease_ttl_s=None) as another:
        synced(other, another, 1)
    for _ in range(2):
        app.insert()
        with pytest.raises(ReplicaConflictError, match=f"to {there.url}: another writer uses this replica"):
            replicator.sync()
        assert_replicated(here, app.path)
    assert_restores(other, tmp_path, there)
    replicator.start()
    wait_until(lambda: "another writer" in (replicator.status.places[1].last_error or ""))
    app.insert()
    wait_until(lambda: replicator.status.places[0].uploaded_txid == 5)
    assert replicator.status.places[0].last_error is None
    assert str(replicator.status.last_error).startswith(f"to {there.url}: ")


def test_a_place_for_which_too_much_waits_begins_again_later(app, here, there, both, tmp_path: Path):
    replicator = synced(app, both(max_pending_bytes=100_000), 1)
    refuse(there)
    for _ in range(5):
        refused(app, replicator, 1, 10, 5000)
        assert_replicated(here, app.path)
        assert sum(path.stat().st_size for path in queue_files(app)) < 250_000
    assert replicator.status.snapshots == 1
    assert "more than the 100,000 allowed" in str(replicator.status.places[1].waits_to_begin)
    there.faults.clear()
    replicator.sync()
    assert (replicator.status.places[1].waits_to_begin, queue_files(app)) == (None, [])
    assert_restores(app, tmp_path, here, there)


def test_a_paused_place_that_ended_before_it_joined_again_is_known_at_the_next_start(
    app, here, there, both, tmp_path: Path
):
    """What it uploaded after it was paused is its own, though nothing was captured for it since."""
    replicator = synced(app, both(max_pending_bytes=20_000), 1)
    refuse(there)
    refused(app, replicator, 3, 10, 3000)
    assert replicator.status.places[1].waits_to_begin is not None
    there.faults.clear()
    replicator.upload()
    assert (txids(there), queue_files(app)) == ([(1, 1), (2, 2)], [])
    replicator.close()
    app.checkpoint("TRUNCATE")
    with both() as replicator:
        synced(app, replicator, 1)
    assert_restores(app, tmp_path, here, there)


def test_when_too_much_waits_for_all_places_nothing_is_captured_until_one_is_back(
    app, here, there, both, tmp_path: Path
):
    first = failing_client(tmp_path / "first")
    replicator = synced(app, both(first, there, max_pending_bytes=50_000), 1)
    refuse(there)
    refuse(first)
    refused(app, replicator, 6, 10, 3000)
    assert replicator.status.txid < 7
    first.faults.clear()
    app.insert()
    with pytest.raises(StoragePermissionError):
        replicator.sync()
    assert_restores(app, tmp_path, first)
    there.faults.clear()
    replicator.sync()
    assert_restores(app, tmp_path, first, there)
    first.close()


@pytest.mark.parametrize("name", ["places/*/*.ltx", "places/*/place.json", "places/*", "places", ".", "state.json"])
def test_local_files_of_a_place_that_are_lost_are_made_up_for_by_the_whole_database(
    app, here, there, both, tmp_path: Path, name: str
):
    replicator = synced(app, both(), 2)
    refuse(there)
    app.insert()
    with pytest.raises(StoragePermissionError):
        replicator.sync()
    replicator.close()
    folder = app.path.parent / f".{app.path.name}-litevfs"
    for path in [folder] if name == "." else list(folder.glob(name)):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    there.faults.clear()
    with both() as replicator:
        synced(app, replicator, 2)
    assert_restores(app, tmp_path, here, there)
    assert queue_files(app) == []


@pytest.mark.parametrize("name", ["places", "."])
def test_local_files_that_go_while_it_runs_are_made_again(app, here, there, both, tmp_path: Path, name: str):
    replicator = synced(app, both(), 2)
    shutil.rmtree(app.path.parent / f".{app.path.name}-litevfs" / name)
    app.insert()
    replicator.sync()
    synced(app, replicator, 2)
    assert_restores(app, tmp_path, here, there)


def test_a_place_that_was_emptied_gets_the_whole_database_again(app, here, there, both, tmp_path: Path):
    replicator = synced(app, both(look_interval_s=0.0), 3)
    there.delete(there.list_files(0))
    synced(app, replicator, 2)
    assert_replicated(here, app.path)
    assert_restores(app, tmp_path, here, there)


def test_a_place_with_pages_of_another_size_begins_with_the_whole_database(
    app, make_app, here, there, both, tmp_path: Path
):
    with Replicator(make_app("other.db", page_size=1024).path, there) as replicator:
        replicator.sync()
    synced(app, both(new_history=True), 2)
    assert_restores(app, tmp_path, here, there)


def test_a_database_with_pages_of_another_size_goes_on_at_all_places(app, here, there, both, tmp_path: Path):
    synced(app, both(), 2).close()
    app.execute("PRAGMA journal_mode=DELETE")
    app.execute("PRAGMA page_size=8192")
    app.execute("VACUUM")
    app.execute("PRAGMA journal_mode=WAL")
    with both() as replicator:
        synced(app, replicator, 2)
    assert txids(here, 9) == txids(there, 9) == [(1, 3)]
    assert_restores(app, tmp_path, here, there)


def test_a_place_given_twice_is_refused(app, here):
    with pytest.raises(OptionError, match="is given twice"):
        Replicator(app.path, here, places=[here])
