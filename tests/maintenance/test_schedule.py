from __future__ import annotations

import errno
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import apsw
import pytest

import litevfs
from litevfs.concurrency.turns import OwnThreads, Task, Turn
from litevfs.errors import OptionError, StorageClosedError, TransientStorageError
from litevfs.maintenance.schedule import RETRY_S, Maintenance, MaintenanceConfig
from litevfs.operations.restore import restore
from litevfs.replica_clients.base import LTXFileInfo
from litevfs.replica_clients.file import FileReplicaClient
from litevfs.replica_clients.memory import MemoryReplicaClient, MemoryStore
from litevfs.replicate.replicator import Replicator
from litevfs.testing.faulty import Fault, Faults, FaultyReplicaClient, Request
from tests.histories import START_MS, History
from tests.replicate.support import failing_client, refuse_writes
from tests.support import wait_until

HOUR_S = 3600
START_S = -(-START_MS // 86_400_000) * 24 * HOUR_S  # midnight, UTC


def memory_client() -> MemoryReplicaClient:
    return MemoryReplicaClient(MemoryStore("schedule"))


def write(client: MemoryReplicaClient, history: History, now_s: float) -> None:
    """One more transaction, at this time in the storage's eyes."""
    txid = history.step()
    client.write(0, txid, txid, history.files[txid], int(now_s * 1000))


def counts(client: MemoryReplicaClient) -> dict[int, int]:
    return {level: len(files) for level in range(10) if (files := client.list_files(level))}


@pytest.mark.slow
def test_two_hours_of_transactions_keep_litestreams_timetable(tmp_path: Path) -> None:
    history, client = History(seed=1, interval_ms=10_000), memory_client()
    maintenance = Maintenance(client)
    written: list[tuple[float, int]] = []
    shift_ms = START_S * 1000 - START_MS
    history.timestamp_ms = lambda txid: START_MS + shift_ms + txid * 10_000  # type: ignore[method-assign]
    for second in range(10, 2 * HOUR_S + 10, 10):
        now_s = START_S + second
        write(client, history, now_s)
        report = maintenance.run_due(now_s + 0.5)
        assert report.errors == ()
        written += [(now_s, file.level) for file in report.written]
        if second % 600 == 0:
            restore(client, tmp_path / f"{second}.db")
            assert (tmp_path / f"{second}.db").read_bytes() == history.images[history.txid]
            oldest_s = client.list_files(0)[0].modified_ms / 1000
            assert now_s - 300 - 60 - 30 <= oldest_s <= now_s - 0
    times = {level: [at for at, which in written if which == level] for level in (1, 2, 3, 9)}
    assert len(times[1]) == 241
    assert len(times[2]) == 25
    assert len(times[3]) == 3
    assert len(times[9]) == 1
    assert all(at % 30 == 0 for at in times[1][1:])
    assert all(at % 300 == 0 for at in times[2][1:])
    assert all(at % HOUR_S == 0 for at in times[3][1:])


@pytest.mark.slow
@pytest.mark.parametrize(("every_s", "runs"), [(17, 50), (70, 12), (HOUR_S, 2)])
def test_compaction_at_any_time_deletes_old_level_0_files_but_no_young_state(
    tmp_path: Path, every_s: int, runs: int
) -> None:
    """`litevfs compact` from a timer, beside a primary that never pauses: retention ends within a compacted file."""
    history, client = History(seed=10), memory_client()
    history.timestamp_ms = lambda txid: (START_S + 5 * txid) * 1000  # type: ignore[method-assign]
    for run in range(1, runs + 1):
        passed_s = run * every_s + 3
        while 5 * (history.txid + 1) <= passed_s:
            write(client, history, START_S + 5 * (history.txid + 1))
        report = Maintenance(client, MaintenanceConfig(level_0_retention_s=300)).run_all(START_S + passed_s)
        assert report.errors == ()
        oldest_s = client.list_files(0)[0].modified_ms / 1000 - START_S
        assert passed_s - 300 - every_s - 10 <= max(oldest_s, every_s)  # the range that is not old as a whole stays
    for txid in (history.txid, history.txid - 20, history.txid - 59):
        restore(client, tmp_path / f"{txid}.db", txid=txid)
        assert (tmp_path / f"{txid}.db").read_bytes() == history.images[txid]


@pytest.mark.slow
def test_days_of_snapshots_leave_those_that_a_day_back_needs() -> None:
    history, client = History(seed=2), memory_client()
    maintenance = Maintenance(client)
    for hour in range(24 * 3):
        now_s = START_S + hour * HOUR_S
        history.timestamp_ms = lambda txid, now_s=now_s: now_s * 1000  # type: ignore[method-assign]
        write(client, history, now_s)
        assert maintenance.run_due(now_s + 1).errors == ()
    now_ms = (now_s + 1) * 1000
    snapshots = client.list_files(9)
    assert 2 <= len(snapshots) <= 3
    assert snapshots[0].modified_ms <= now_ms - 24 * HOUR_S * 1000 < snapshots[1].modified_ms
    assert all(f.max_txid > snapshots[0].max_txid for level in (1, 2, 3) for f in client.list_files(level))
    assert counts(client)[0] <= 2


def test_where_deleting_is_the_storages_business_all_is_compacted_and_nothing_is_deleted() -> None:
    history, client = History(seed=2), memory_client()
    maintenance = Maintenance(client, MaintenanceConfig(delete_files=False))
    deleted: list[LTXFileInfo] = []
    client.delete = deleted.extend  # type: ignore[method-assign]
    for hour in range(72):
        now_s = START_S + hour * HOUR_S
        history.timestamp_ms = lambda txid, now_s=now_s: now_s * 1000  # type: ignore[method-assign]
        write(client, history, now_s)
        assert maintenance.run_due(now_s + 1).errors == ()
    assert deleted == []
    assert counts(client)[0] == history.txid
    assert len(client.list_files(9)) >= 3


def test_second_process_finds_the_work_of_a_window_done() -> None:
    history, client = History(seed=3), memory_client()
    history.timestamp_ms = lambda txid: (START_S + 40 + txid) * 1000  # type: ignore[method-assign]
    for n in range(3):
        write(client, history, START_S + 41 + n)
    one, other = Maintenance(client), Maintenance(client)
    assert {file.level for file in one.run_due(START_S + 45).written} == {1, 2, 3, 9}
    write(client, history, START_S + 46)
    assert other.run_due(START_S + 47).written == ()
    assert [file.level for file in other.run_due(START_S + 61).written] == [1]
    assert one.run_due(START_S + 62).written == ()


def test_next_due_time_is_the_end_of_the_shortest_window() -> None:
    maintenance = Maintenance(memory_client())
    assert maintenance.next_due_in_s(START_S + 5) == 0
    maintenance.run_due(START_S + 5)
    assert maintenance.next_due_in_s(START_S + 5) == 25
    assert maintenance.next_due_in_s(START_S + 30) == 0
    maintenance.run_due(START_S + 30)
    assert maintenance.next_due_in_s(START_S - 10 * HOUR_S) == 0  # the clock was set back


class TimedHistory(History):
    """Transactions at these seconds after START_S."""

    def __init__(self, seconds: Sequence[int]) -> None:
        super().__init__(seed=7)
        self._seconds = seconds

    def timestamp_ms(self, txid: int) -> int:
        return (START_S + self._seconds[txid - 1]) * 1000


def hour_of_files(late: float) -> list[tuple[int, int, int]]:
    """(level, min_txid, max_txid) of the files made in an hour, with a transaction at the begin of each half minute."""
    history, client, made = TimedHistory(range(30, HOUR_S + 60, 30)), memory_client(), []
    maintenance = Maintenance(client, late=late)
    for second in range(30, HOUR_S + 60, 30):
        write(client, history, START_S + second)
        for passed_s in range(30):
            report = maintenance.run_due(START_S + second + passed_s)
            assert report.errors == ()
            made += [(passed_s, file.level, file.min_txid, file.max_txid) for file in report.written]
    assert {passed_s for passed_s, *_ in made[5:]} == {int(30 * late)}  # but for those of the first start
    return [(level, first, last) for _, level, first, last in made]


@pytest.mark.slow
def test_a_replica_that_begins_late_in_each_window_makes_the_same_files() -> None:
    by_the_clock = hour_of_files(0.0)
    levels = [level for level, *_ in by_the_clock]
    assert (levels.count(1), levels.count(2), levels.count(3)) == (121, 13, 2)
    assert hour_of_files(0.5) == by_the_clock


def test_work_that_has_waited_in_its_window_does_not_cost_the_next() -> None:
    history, client = TimedHistory((10, 57, 75)), memory_client()
    maintenance = Maintenance(client, late=0.5)
    write(client, history, START_S + 10)
    maintenance.run_due(START_S + 10)
    assert maintenance.next_due_in_s(START_S + 10) == 5
    write(client, history, START_S + 57)
    assert [file.level for file in maintenance.run_due(START_S + 58).written] == [1]
    assert maintenance.next_due_in_s(START_S + 58) == 17
    write(client, history, START_S + 75)
    assert [file.level for file in maintenance.run_due(START_S + 75).written] == [1]


def test_a_process_that_goes_by_the_clock_has_done_the_work_of_a_late_window() -> None:
    history, client = TimedHistory(range(1, HOUR_S)), memory_client()
    write(client, history, START_S + 1)
    one, late = Maintenance(client), Maintenance(client, late=0.5)
    one.run_due(START_S + 2)
    late.run_due(START_S + 3)
    for window in range(1, 5):
        write(client, history, START_S + 30 * window)
        assert [file.level for file in one.run_due(START_S + 30 * window + 1).written] == [1]
        assert late.run_due(START_S + 30 * window + 15).written == ()


def test_failure_is_reported_and_tried_again_soon_without_stopping_the_rest() -> None:
    history, client = History(seed=4).run(3), memory_client()
    history.upload_all(client)
    faults = Faults("faulty://schedule")
    faults.add(Fault("transient", operations=("write",), levels=(9,), count=1))
    maintenance = Maintenance(FaultyReplicaClient(client, faults))
    report = maintenance.run_due(START_S + 1)
    assert [type(error) for error in report.errors] == [TransientStorageError]
    assert {file.level for file in report.written} == {1, 2, 3}
    assert maintenance.run_due(START_S + 2).written == ()
    assert [file.level for file in maintenance.run_due(START_S + 1 + RETRY_S).written] == [9]


def test_run_all_compacts_whatever_the_time() -> None:
    history, client = History(seed=5), memory_client()
    maintenance = Maintenance(client, MaintenanceConfig(level_0_retention_s=0, snapshot_retention_s=0))
    for n in range(4):
        write(client, history, START_S + n)
        report = maintenance.run_all(START_S + 10 + n / 10)
        assert [file.level for file in report.written] == [1, 2, 3, 9]
        assert report.errors == ()
    assert counts(client) == {0: 1, 1: 1, 2: 1, 3: 1, 9: 1}


def test_empty_replica_is_no_error_and_a_closed_client_ends_it() -> None:
    client = memory_client()
    assert Maintenance(client).run_all(START_S).errors == ()
    client.close()
    with pytest.raises(StorageClosedError):
        Maintenance(client).run_all(START_S)


def test_idle_replica_costs_few_listings() -> None:
    history, client = History(seed=6).run(5), memory_client()
    history.upload_all(client)
    faults = Faults("faulty://schedule")
    maintenance = Maintenance(FaultyReplicaClient(client, faults))
    maintenance.run_due(START_S + 1)
    maintenance.run_due(START_S + 10 * 60)
    faults.reset_counters()
    for second in range(601, 601 + 240, 5):  # four minutes without an end of five
        maintenance.run_due(START_S + second)
    assert faults.calls["read"] == 0
    assert faults.calls["list"] <= 8 * 3 + 4


@pytest.mark.plan("K01")
@pytest.mark.parametrize(
    "options",
    [
        {"levels": {}},
        {"levels": {0: 30.0}},
        {"levels": {9: 30.0}},
        {"levels": {2: 30.0, 1: 60.0}},
        {"levels": {1: 60.0, 2: 30.0}},
        {"levels": {1: 0.0}},
        {"snapshot_interval_s": 0.0},
        {"snapshot_interval_s": float("inf")},
        {"level_0_retention_s": -1.0},
        {"level_0_retention_s": 100_000.0},
        {"snapshot_retention_s": float("nan")},
    ],
)
def test_timetables_that_make_no_sense_are_refused(options) -> None:
    with pytest.raises(OptionError):
        MaintenanceConfig(**options)


def test_levels_can_be_chosen() -> None:
    history, client = History(seed=7).run(3), memory_client()
    history.upload_all(client)
    config = MaintenanceConfig(levels={2: 10.0, 5: 60.0}, level_0_retention_s=0, snapshot_retention_s=START_S * 2)
    assert len(Maintenance(client, config).run_due(START_S * 2).deleted) == 2
    assert counts(client) == {0: 1, 2: 1, 5: 1, 9: 1}


def test_a_started_replicator_keeps_its_replica_compacted(tmp_path: Path) -> None:
    path = tmp_path / "app.db"
    with closing(apsw.Connection(str(path))) as app:
        app.execute("PRAGMA journal_mode=WAL; CREATE TABLE t (a)").fetchall()
        config = MaintenanceConfig(levels={1: 0.05, 2: 0.1}, snapshot_interval_s=0.1)
        (tmp_path / "replica").mkdir()
        client = FileReplicaClient(tmp_path / "replica")
        with Replicator(path, client, sync_interval_s=0.02, maintenance=config) as replicator:
            replicator.start()
            deadline = time.monotonic() + 20
            while not all(client.list_files(level) for level in (0, 1, 2, 9)):
                assert time.monotonic() < deadline, "no compaction, or no snapshot"
                app.execute("INSERT INTO t VALUES (1)")
                threading.Event().wait(0.01)
            replicator.sync()
        client.close()
        with closing(litevfs.connect(str(tmp_path / "replica"))) as reader:
            query = "SELECT count(*) FROM t"
            assert reader.execute(query).get == app.execute(query).get


class NotedTurns(OwnThreads):
    """Notes what each turn of the maintenance says: when the next one is due, in seconds."""

    def __init__(self) -> None:
        self.pauses: list[float | None] = []

    def start(self, turn: Turn, name: str, group: str = "") -> Task:
        def noted() -> float | None:
            pause_s = turn()
            if name == "litevfs-maintain":
                self.pauses.append(pause_s)
            return pause_s

        return super().start(noted, name, group)


def test_the_thread_begins_with_the_first_file_and_waits_until_something_is_due(tmp_path: Path) -> None:
    """A window that found an empty replica would count as done: nothing would be compacted before the next."""
    client, path, turns = failing_client(tmp_path / "replica"), tmp_path / "app.db", NotedTurns()
    refuse_writes(client)
    (tmp_path / "replica").mkdir()
    with closing(apsw.Connection(str(path))) as app:
        app.execute("PRAGMA journal_mode=WAL; CREATE TABLE t (a)").fetchall()
        config = MaintenanceConfig(levels={1: 86_400.0})
        with Replicator(path, client, sync_interval_s=0.02, maintenance=config) as replicator:
            replicator.start(turns)
            wait_until(lambda: len(turns.pauses) > 3)
            assert turns.pauses[:3] == [0.02, 0.02, 0.02]
            client.faults.clear()
            wait_until(lambda: client.list_files(1))
            wait_until(lambda: turns.pauses[-1] > 1)
    client.close()


# --- what goes wrong --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_one_transaction_of_a_wrong_clock_stops_neither_compaction_nor_retention(tmp_path: Path) -> None:
    """In a folder, a file's time is its transaction's, and no transaction's is earlier than the one before."""
    history, client = History(seed=8), FileReplicaClient(tmp_path / "replica")
    years_ahead_ms = START_S * 1000 + 10 * 365 * 24 * HOUR_S * 1000
    maintenance = Maintenance(client)
    for hour in range(24 * 4):
        now_s = START_S + hour * HOUR_S
        time_ms = now_s * 1000 if hour < 2 else years_ahead_ms
        history.timestamp_ms = lambda txid, time_ms=time_ms: time_ms  # type: ignore[method-assign]
        for _ in range(3):
            history.upload(client, history.step())
        assert maintenance.run_due(now_s + 1).errors == ()
    for level in (1, 2, 3):
        assert client.list_files(level)[-1].max_txid == history.txid, "compaction stopped"
        assert len(client.list_files(level)) <= 24 * 2 + 1
    assert len(client.list_files(0)) <= 3
    assert 2 <= len(client.list_files(9)) <= 3
    restore(client, tmp_path / "restored.db")
    assert (tmp_path / "restored.db").read_bytes() == history.images[history.txid]
    client.close()


def broken_client(error: Exception, times: int) -> FaultyReplicaClient:
    """Has a defect: so many writes of level 1 raise what no client may raise."""
    faults = Faults("faulty://broken")
    faults.add(Fault("defect", operations=("write",), levels=(1,), count=times, error=error))
    return FaultyReplicaClient(MemoryReplicaClient(MemoryStore("broken")), faults)


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), ZeroDivisionError("division by zero")])
def test_an_error_of_any_kind_is_reported_with_its_traceback_and_tried_again(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    client = broken_client(error, 1)
    History(seed=9).run(3).upload_all(client)
    maintenance = Maintenance(client)
    report = maintenance.run_due(START_S + 1)
    assert [file.level for file in report.written] == [9]
    assert len(report.errors) == 1
    assert str(error).rpartition("]")[2] in maintenance.last_error
    assert "compaction into level 1" in maintenance.last_error
    if not isinstance(error, OSError):  # what a disk does is translated
        assert "Traceback" in caplog.text
    assert [file.level for file in maintenance.run_due(START_S + 1 + RETRY_S).written] == [1]
    assert maintenance.last_error is None


def test_the_thread_outlives_an_error_of_any_kind_and_the_status_has_it(tmp_path: Path) -> None:
    client = broken_client(ZeroDivisionError("division by zero"), 3)
    path = tmp_path / "app.db"
    with closing(apsw.Connection(str(path))) as app:
        app.execute("PRAGMA journal_mode=WAL; CREATE TABLE t (a)").fetchall()
        config = MaintenanceConfig(levels={1: 0.05})
        with Replicator(path, client, sync_interval_s=0.02, maintenance=config) as replicator:
            replicator.start()
            wait_until(lambda: "division by zero" in (replicator.status.last_maintenance_error or ""))
            wait_until(lambda: client.list_files(1))
            wait_until(lambda: replicator.status.last_maintenance_error is None)


def test_the_thread_waits_quietly_when_the_client_was_closed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def close_to_maintenance(request: Request) -> None:
        if threading.current_thread().name == "litevfs-maintain":
            raise StorageClosedError("the client is closed")

    client, path, turns = failing_client(tmp_path / "replica"), tmp_path / "app.db", NotedTurns()
    client.faults.add(Fault("act", operations=("list",), action=close_to_maintenance))
    with closing(apsw.Connection(str(path))) as app:
        app.execute("PRAGMA journal_mode=WAL; CREATE TABLE t (a)").fetchall()
        with Replicator(path, client, sync_interval_s=0.02, maintenance=MaintenanceConfig()) as replicator:
            replicator.start(turns)
            wait_until(lambda: None in turns.pauses)
            assert replicator.sync() == 1
    client.close()
    assert caplog.text == ""
