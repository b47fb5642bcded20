from __future__ import annotations

import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from litevfs.errors import ReplicaEmptyError, StoragePermissionError, TXIDGapError
from litevfs.files.plan import newest_state
from litevfs.maintenance.compaction import compact_level, snapshot
from litevfs.maintenance.retention import (
    are_spare,
    enforce_level_0_retention,
    enforce_snapshot_retention,
    plan_level_0_retention,
    plan_snapshot_retention,
)
from litevfs.operations.restore import restore
from litevfs.replica_clients.base import LTXFileInfo, ReplicaClient
from litevfs.replica_clients.file import FileReplicaClient
from litevfs.replica_clients.memory import MemoryReplicaClient, MemoryStore
from litevfs.replica_clients.s3.client import S3ReplicaClient
from litevfs.testing.faulty import Fault, Faults, FaultyReplicaClient
from tests.histories import START_MS, History
from tests.support import in_threads, wait_until

FUTURE_MS = START_MS * 2


def memory_client() -> MemoryReplicaClient:
    return MemoryReplicaClient(MemoryStore("retention"))


def listed(client: ReplicaClient) -> list[LTXFileInfo]:
    return [file for level in range(10) for file in client.list_files(level)]


def file(level: int, first: int, last: int, time: int = 0) -> LTXFileInfo:
    return LTXFileInfo(level, first, last, 1, time)


def ranges(files: list[LTXFileInfo]) -> list[tuple[int, int, int]]:
    return [(f.level, f.min_txid, f.max_txid) for f in files]


# --- level 0 ----------------------------------------------------------------------------------------------------------


def test_level_0_files_go_when_level_1_covers_them_and_they_are_old() -> None:
    files = [file(0, n, n, time=n) for n in range(1, 11)] + [file(1, 1, 4, 4), file(1, 5, 7, 7)]
    assert ranges(plan_level_0_retention(files, 100)) == [(0, n, n) for n in range(1, 8)]  # 8 to 10 are not covered
    assert ranges(plan_level_0_retention(files, 6)) == [(0, n, n) for n in range(1, 7)]  # 7 is young
    assert plan_level_0_retention(files, 0) == []


def test_old_level_0_files_stay_while_younger_states_are_made_of_them_and_those_before_go() -> None:
    files = [file(0, n, n, time=n) for n in range(1, 13)] + [file(1, 1, 4, 4), file(1, 5, 8, 8), file(1, 9, 12, 12)]
    for horizon, last in ((3, 3), (4, 4), (5, 4), (6, 4), (7, 7), (8, 8), (9, 8), (10, 8), (11, 11)):
        gone = plan_level_0_retention(files, horizon)
        assert ranges(gone) == [(0, n, n) for n in range(1, last + 1)]
        assert are_spare(files, gone)


def test_newest_level_0_file_stays_even_if_covered_and_old() -> None:
    files = [file(0, 1, 1), file(0, 2, 2), file(1, 1, 2)]
    assert ranges(plan_level_0_retention(files, 100)) == [(0, 1, 1)]
    assert plan_level_0_retention([file(0, 1, 1), file(1, 1, 1)], 100) == []


def test_a_file_that_a_listing_shows_twice_is_one_file() -> None:
    files = [LTXFileInfo(0, n, n, 100, n) for n in (1, 2, 3)] + [LTXFileInfo(1, 1, 3, 200, 3)]
    assert plan_level_0_retention([*files, files[2]], 10) == files[:2]
    replaced = LTXFileInfo(0, 3, 3, 101, 5)
    assert plan_level_0_retention([replaced, *files], 10) == files[:2]


def test_level_0_file_in_a_hole_of_level_1_stays_with_all_after_it() -> None:
    files = [file(0, n, n) for n in range(1, 10)] + [file(1, 1, 3), file(1, 5, 9)]
    assert ranges(plan_level_0_retention(files, 100)) == [(0, 1, 1), (0, 2, 2), (0, 3, 3)]


def test_level_1_files_of_two_compactions_at_once_cover_what_the_longer_one_does() -> None:
    files = [file(0, n, n) for n in range(1, 11)] + [file(1, 1, 10), file(1, 2, 5)]
    assert ranges(plan_level_0_retention(files, 100)) == [(0, n, n) for n in range(1, 10)]


def test_snapshots_and_higher_levels_do_not_cover_level_0() -> None:
    files = [file(0, n, n) for n in range(1, 5)] + [file(2, 1, 4), file(9, 1, 4)]
    assert plan_level_0_retention(files, 100) == []
    assert ranges(plan_level_0_retention(files, 100, level=2)) == [(0, 1, 1), (0, 2, 2), (0, 3, 3)]


# --- snapshots --------------------------------------------------------------------------------------------------------


def test_old_snapshots_go_with_the_files_that_lead_up_to_the_newest_of_them() -> None:
    files = [
        *(file(9, 1, n, n) for n in (10, 20, 30)),
        *(file(1, n + 1, n + 5, n + 5) for n in range(0, 35, 5)),
        *(file(2, n + 1, n + 10, n + 10) for n in range(0, 30, 10)),
    ]
    gone = ranges(plan_snapshot_retention(files, horizon_ms=25))
    assert sorted(gone) == [(1, 1, 5), (1, 6, 10), (1, 11, 15), (1, 16, 20), (2, 1, 10), (2, 11, 20), (9, 1, 10)]


def test_newest_snapshot_and_the_newest_file_of_each_level_stay_however_old() -> None:
    files = [file(9, 1, 10), file(9, 1, 20), file(1, 1, 20), file(0, 19, 19), file(0, 20, 20), file(2, 1, 9)]
    assert sorted(ranges(plan_snapshot_retention(files, 100))) == [(0, 19, 19), (9, 1, 10)]


def test_nothing_goes_without_a_snapshot_older_than_the_retention() -> None:
    files = [file(0, 1, 1, 1), file(1, 1, 5, 5), file(9, 1, 5, 50), file(1, 6, 9, 60)]
    assert plan_snapshot_retention(files, 20) == []


def test_a_file_of_level_9_that_does_not_begin_with_the_first_txid_is_no_snapshot() -> None:
    files = [file(0, 1, 1), file(9, 1, 4), file(0, 5, 5), file(9, 5, 8), file(9, 9, 9), file(0, 9, 9)]
    assert ranges(plan_snapshot_retention(files, 20)) == [(0, 1, 1)]


@pytest.mark.parametrize(("ahead_ms", "is_old"), [(60_000, False), (7_200_000, True)])
def test_a_file_of_a_clock_that_is_a_little_ahead_is_young_and_one_of_the_far_future_is_old(
    ahead_ms: int, *, is_old: bool
) -> None:
    day, now = 86_400_000, 100 * 86_400_000
    files = [file(0, 1, 1, now + ahead_ms), file(1, 1, 5, now), file(0, 5, 5, now), file(0, 6, 6, now)]
    assert ranges(plan_level_0_retention(files, now, now_ms=now)) == ([(0, 1, 1), (0, 5, 5)] if is_old else [])
    snapshots = [file(9, 1, txid, now + ahead_ms) for txid in (1, 2, 3)]
    assert ranges(plan_snapshot_retention(snapshots, now - day, now)) == ([(9, 1, 1)] if is_old else [])


# --- the proof --------------------------------------------------------------------------------------------------------


def reachable(files: list[LTXFileInfo]) -> set[int]:
    """TXIDs whose state the files can make, by trying everything."""
    states = {0}
    while more := {f.max_txid for f in files if any(f.min_txid - 1 <= s < f.max_txid for s in states)} - states:
        states |= more
    return states - {0}


FILES = st.lists(
    st.tuples(st.sampled_from([0, 0, 1, 1, 2, 9]), st.integers(1, 9), st.integers(0, 5), st.integers(0, 20)),
    min_size=1,
    max_size=14,
    unique_by=lambda f: f[:3],
).map(lambda many: [file(lv, 1 if lv == 9 else first, first + more, time) for lv, first, more, time in many])


@pytest.mark.slow
@settings(max_examples=150)
@given(FILES, st.integers(-1, 20), st.data())
def test_proof_holds_exactly_when_no_young_state_of_a_remaining_file_is_lost(
    files: list[LTXFileInfo], horizon: int, data
) -> None:
    files = list({(f.level, f.min_txid, f.max_txid): f for f in files}.values())
    doomed = data.draw(st.lists(st.sampled_from(files), unique=True))
    rest = [f for f in files if f not in doomed]
    try:
        same_newest = newest_state(rest).txid == newest_state(files).txid
    except (TXIDGapError, ReplicaEmptyError):
        same_newest = False
    young = {f.max_txid for f in rest if f.modified_ms > horizon}
    assert are_spare(files, doomed, horizon) == (same_newest and reachable(files) & young <= reachable(rest))


@pytest.mark.slow
@settings(max_examples=150)
@given(FILES, st.integers(0, 20))
def test_what_is_deleted_is_old_and_every_younger_state_stays(files: list[LTXFileInfo], horizon: int) -> None:
    store = memory_client()
    for f in files:
        store.write(f.level, f.min_txid, f.max_txid, b"x", f.modified_ms)
    before = listed(store)
    deleted = enforce_level_0_retention(store, horizon) + enforce_snapshot_retention(store, horizon)
    after = listed(store)
    assert set(before) - set(after) == set(deleted)
    assert all(f.modified_ms <= horizon for f in deleted)
    young = {f.max_txid for f in before if f.modified_ms > horizon}
    assert young & reachable(before) == young & reachable(after)
    assert max(f.max_txid for f in after) == max(f.max_txid for f in before)


@pytest.mark.parametrize("missing", [4, 9])
def test_replica_with_a_gap_loses_nothing(missing: int) -> None:
    client = memory_client()
    History(seed=1).run(10).upload_all(client)
    compact_level(client, 1)
    client.delete([f for f in client.list_files(1) if f.max_txid == 10])
    client.delete([f for f in client.list_files(0) if f.min_txid == missing])
    client.write(1, 1, 3, b"", 0)
    before = listed(client)
    assert enforce_level_0_retention(client, FUTURE_MS) == []
    assert enforce_snapshot_retention(client, FUTURE_MS) == []
    assert listed(client) == before


# --- deletion ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.plan("D08")
@pytest.mark.parametrize("storage", ["memory", "file", pytest.param("s3", marks=pytest.mark.s3)])
def test_exactly_the_files_that_retention_returns_are_gone(storage: str, tmp_path: Path, request) -> None:
    client: ReplicaClient
    if storage == "memory":
        client = memory_client()
    elif storage == "file":
        client = FileReplicaClient(tmp_path / "replica")
    else:
        client = S3ReplicaClient(request.getfixturevalue("s3_url")())
    history = History(seed=2)
    for txid in range(1, 31):
        history.step()
        history.upload(client, txid)
        if txid % 5 == 0:
            compact_level(client, 1)
        if txid % 10 == 0:
            snapshot(client)
    before = listed(client)
    first = enforce_level_0_retention(client, FUTURE_MS)
    between = listed(client)
    second = enforce_snapshot_retention(client, FUTURE_MS)
    after = listed(client)
    assert len(first) == 29
    assert set(before) - set(between) == set(first)
    assert len(second) == 7  # five of six files on level 1, two of three snapshots
    assert set(between) - set(after) == set(second)
    assert set(after) <= set(before)
    restore(client, tmp_path / "o.db")
    assert (tmp_path / "o.db").read_bytes() == history.images[30]
    assert enforce_level_0_retention(client, FUTURE_MS) == enforce_snapshot_retention(client, FUTURE_MS) == []
    client.close()


@pytest.mark.parametrize(("time_ms", "is_kept"), [(5, False), (12, True), (START_MS, False)])
def test_what_leads_to_an_old_state_that_cannot_be_made_otherwise_goes_and_what_leads_to_a_young_one_stays(
    time_ms: int, *, is_kept: bool
) -> None:
    """The newest file of a level stays, however old, but not for the sake of its state; nor does a wrong clock's."""
    client = memory_client()
    for level, first, last, time in ((0, 1, 9, 5), (0, 10, 10, time_ms), (9, 1, 20, 5)):
        client.write(level, first, last, b"", time)
    gone = enforce_snapshot_retention(client, 10, now_ms=15)
    assert ranges(gone) == ([] if is_kept else [(0, 1, 9)])


def test_deletion_that_is_refused_is_an_error() -> None:
    client = memory_client()
    History(seed=3).run(5).upload_all(client)
    compact_level(client, 1)
    faults = Faults("faulty://retention")
    faults.add(Fault("permission", operations=("delete",)))
    with pytest.raises(StoragePermissionError):
        enforce_level_0_retention(FaultyReplicaClient(client, faults), FUTURE_MS)
    assert len(client.list_files(0)) == 5


class Everything:
    """A writer, and until it is done compactors, retention and restores, all on one replica."""

    def __init__(self, history: History, folder: Path) -> None:
        self.history = history
        self.folder = folder
        self.store = MemoryStore("everything")
        self.done = threading.Event()
        self.restored: list[int] = []
        self.deleted, self.counting = 0, threading.Lock()

    def run(self, which: str) -> None:
        client = MemoryReplicaClient(self.store)
        if which == "write":
            self.write(client)
            return
        while not self.done.is_set():
            getattr(self, which)(client)

    def write(self, client: MemoryReplicaClient) -> None:
        try:
            for txid in range(2, self.history.txid + 1):
                self.history.upload(client, txid)
                if txid % 10 == 0:  # let the others have a turn
                    wanted = len(self.restored) + 1, txid // 2 - 10
                    wait_until(lambda wanted=wanted: self.has_done(*wanted), "a restore, and retention")
        finally:
            self.done.set()

    def has_done(self, restored: int, deleted: int) -> bool:
        return (len(self.restored) >= restored and self.deleted >= deleted) or self.done.is_set()

    def compact(self, client: MemoryReplicaClient) -> None:
        for level in (1, 2):
            compact_level(client, level)
        snapshot(client)

    def retain(self, client: MemoryReplicaClient) -> None:
        for enforce in (enforce_level_0_retention, enforce_snapshot_retention):
            count = len(enforce(client, FUTURE_MS))
            with self.counting:
                self.deleted += count

    def restore(self, client: MemoryReplicaClient) -> None:
        path = self.folder / f"{len(self.restored)}.db"
        try:
            txid = restore(client, path).txid
            assert path.read_bytes() == self.history.images[txid]
            self.restored.append(txid)
        except BaseException:
            self.done.set()
            raise


@pytest.mark.plan("D05")
def test_newest_state_can_be_restored_at_every_moment_while_everything_runs_at_once(tmp_path: Path) -> None:
    history = History(seed=4).run(150)
    everything = Everything(history, tmp_path)
    client = MemoryReplicaClient(everything.store)
    history.upload(client, 1)
    work = ["write", "compact", "compact", "retain", "retain", "restore"]
    in_threads(len(work), lambda i: everything.run(work[i]))
    assert everything.restored == sorted(everything.restored)
    assert len(everything.restored) >= 14
    assert everything.deleted > 50
    restore(client, tmp_path / "last.db")
    assert (tmp_path / "last.db").read_bytes() == history.images[150]
