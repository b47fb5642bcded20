"""One replica, two programs: what litevfs writes Litestream restores and continues, and the other way round.

Facts about Litestream 0.5.18 that the reader meets, as observed here and read in its source:

- a snapshot (level 9) carries the time at which it was made, not that of its last transaction (`db.go`,
  `snapshotReader`); compaction keeps the time of its last input (`ltx`, `Compactor.Compact`);
- a snapshot can be on the replica before the level-0 file of its last transaction (`db.go`, `Snapshot`);
- its file client sets the mtime after the rename and after the fsync of the folder (`file/replica_client.go`), so a
  listing may see a new file with the time of its writing first;
- it continues a replica whose TXIDs are ahead of its own local state: it fetches the newest level-0 file and reads on
  in the WAL behind the place named in that file's header; if the WAL is not the same any more, it takes the whole
  database as the next TXID (`db.go`, `checkDatabaseBehindReplica` and `verify`).
"""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import apsw
import pytest

import litevfs
from litevfs.cli import main
from litevfs.errors import UnrelatedDatabaseError
from litevfs.ltx.decoder import decode_file
from litevfs.ltx.format import Header
from litevfs.maintenance.compaction import compact_level, snapshot
from litevfs.maintenance.retention import enforce_level_0_retention
from litevfs.maintenance.schedule import Maintenance, MaintenanceConfig
from litevfs.replica_clients.base import LEVELS, LTXFileInfo, ReplicaClient
from litevfs.replica_clients.urls import open_replica_client
from litevfs.replicate import Replicator
from litevfs.testing.s3_server import S3Server
from tests.peer import litestream_binary as litestream
from tests.support import connected, one, rows, txid_of, wait_until

pytestmark = pytest.mark.peer
needs_litestream = pytest.mark.skipif(not litestream.LITESTREAM, reason="there is no litestream on the PATH")

FUTURE_MS = 1 << 42
DATA = "SELECT id, v, hex(data) FROM t ORDER BY id"
SUMMARY = "SELECT count(*), sum(v), sum(length(data)) FROM t"
INSERT = (
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 40) "
    "INSERT INTO t (v, data) SELECT abs(random()) % 1000, randomblob(abs(random()) % 3000) FROM n"
)
EVENTS = (
    INSERT,
    "UPDATE t SET v = v + 1 WHERE id % 3 = 0",
    "INSERT INTO t (v, data) VALUES (1, randomblob(300000))",
    "DELETE FROM t WHERE id % 4 = 0",
    "PRAGMA incremental_vacuum(20)",
    "CREATE INDEX i ON t (v)",
    INSERT,
    "DELETE FROM t WHERE id > 5",
    "VACUUM",
    INSERT,
)


class Application:
    """A program that uses its database; Litestream and our replicator both work beside it."""

    def __init__(self, path: Path, *, page_size: int = 4096) -> None:
        self.path = path
        self.db = apsw.Connection(str(path))
        self.db.set_busy_timeout(10_000)
        for sql in (
            f"PRAGMA page_size={page_size}",
            "PRAGMA auto_vacuum=INCREMENTAL",
            "PRAGMA journal_mode=WAL",
            "CREATE TABLE t (id INTEGER PRIMARY KEY, v INTEGER, data BLOB)",
        ):
            self.run(sql)

    def run(self, sql: str) -> list[tuple[Any, ...]]:
        return self.db.execute(sql).fetchall()

    def close(self) -> None:
        self.db.close()


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Application]:
    with closing(Application(tmp_path / "app.db")) as app:
        yield app


@pytest.fixture
def client(tmp_path: Path) -> Iterator[ReplicaClient]:
    (tmp_path / "replica").mkdir()
    with closing(open_replica_client((tmp_path / "replica").as_uri())) as client:
        yield client


@contextmanager
def opened(path: Path) -> Iterator[apsw.Connection]:
    with closing(apsw.Connection(str(path))) as connection:
        yield connection


def restored(url: str, folder: Path, *options: object, sql: str = DATA) -> list[tuple[Any, ...]]:
    """The rows of what Litestream restores and finds sound; the same bytes as what litevfs restores."""
    number = len(list(folder.glob("restored-*.db")))
    path = litestream.restore(url, folder / f"restored-{number}.db", *options)
    if not options:
        litevfs.restore(url, folder / f"ours-{number}.db")
        assert (folder / f"ours-{number}.db").read_bytes() == path.read_bytes()
    with opened(path) as connection:
        return rows(connection, sql)


def all_files(client: ReplicaClient) -> list[LTXFileInfo]:
    return [file for level in LEVELS for file in client.list_files(level)]


def header(client: ReplicaClient, file: LTXFileInfo) -> Header:
    return decode_file(client.read(replace(file, etag=""))).header  # its mtime may have been set since it was listed


def assert_listed_by_litestream(client: ReplicaClient, url: str) -> None:
    listed = [
        (f["level"], int(f["min_txid"], 16), int(f["max_txid"], 16), f["size"]) for f in litestream.list_files(url)
    ]
    assert sorted(listed) == sorted((f.level, f.min_txid, f.max_txid, f.size) for f in all_files(client))


def assert_verified(url: str) -> None:
    assert main(["verify", url]) == 0


def assert_no_gap(client: ReplicaClient) -> None:
    files = client.list_files(0)
    assert [f.min_txid for f in files] == list(range(files[0].min_txid, files[-1].max_txid + 1))


# --- what litevfs writes, Litestream reads ---------------------------------------------------------------------------


@needs_litestream
@pytest.mark.parametrize("page_size", [512, 4096, 65536])
def test_litestream_restores_every_txid_that_our_replicator_wrote(tmp_path: Path, page_size: int) -> None:
    with closing(Application(tmp_path / "app.db", page_size=page_size)) as app:
        url = (tmp_path / "replica").as_uri()
        expected: dict[int, list[tuple[Any, ...]]] = {}
        with Replicator(app.path, url) as replicator:
            for sql in EVENTS:
                app.run(sql)
                expected[replicator.sync()] = app.run(DATA)
            assert_listed_by_litestream(replicator.client, url)
        newest = max(expected)  # with large pages, there may be none for the incremental vacuum to free
        assert list(expected) == list(range(1, newest + 1))
        assert newest >= len(EVENTS) - 1
        assert restored(url, tmp_path) == expected[newest]
        for txid in (1, 4, 5, newest - 1):
            assert restored(url, tmp_path, "-txid", f"{txid:016x}") == expected[txid]


@needs_litestream
def test_litestream_restores_what_our_compaction_snapshots_and_retention_leave(
    tmp_path: Path, app: Application, client: ReplicaClient
) -> None:
    def write(*events: str) -> None:
        with Replicator(app.path, client) as replicator:
            for sql in events:
                app.run(sql)
                replicator.sync()

    write(*EVENTS[:4])
    for level in (1, 2, 3):
        assert compact_level(client, level) is not None
    write(*EVENTS[4:7])
    assert compact_level(client, 1) is not None
    assert len(enforce_level_0_retention(client, FUTURE_MS)) > 3
    assert {f.level for f in all_files(client)} == {0, 1, 2, 3}
    assert_listed_by_litestream(client, client.url)
    assert restored(client.url, tmp_path) == app.run(DATA)
    assert restored(client.url, tmp_path, "-txid", f"{4:016x}") != app.run(DATA)

    write(*EVENTS[7:])
    at_snapshot = app.run(DATA)
    newest = snapshot(client)
    assert newest is not None
    write(INSERT)
    report = Maintenance(client, MaintenanceConfig(level_0_retention_s=0, snapshot_retention_s=0)).run_all()
    assert report.errors == ()
    assert len(report.written) >= 3
    assert len(report.deleted) > 3
    assert_listed_by_litestream(client, client.url)
    assert restored(client.url, tmp_path) == app.run(DATA)
    assert_verified(client.url)

    client.delete([f for f in all_files(client) if f.level != 9])  # from the snapshot alone
    assert restored(client.url, tmp_path) == app.run(DATA) != at_snapshot


# --- what Litestream writes, litevfs reads and continues; and back ---------------------------------------------------


class Writer:
    """Transactions without a pause, from a thread, each of which keeps the sum of `v` in `ledger`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="test-writer")
        self.error: BaseException | None = None

    def __enter__(self) -> Writer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)
        assert not self._thread.is_alive()
        assert self.error is None

    def _run(self) -> None:
        try:
            with opened(self._path) as db:
                db.set_busy_timeout(10_000)
                count = 0
                while not self._stop.wait(0.01):
                    count += 1
                    db.execute("BEGIN IMMEDIATE")
                    db.execute("INSERT INTO t (v, data) VALUES (?, randomblob(?))", (count % 100, count * 37 % 3000))
                    db.execute("DELETE FROM t WHERE id % 50 = ? AND id < ?", (count % 50, count))
                    db.execute("UPDATE ledger SET total = (SELECT sum(v) FROM t)")
                    db.execute("COMMIT")
                    if count % 60 == 0:
                        db.execute("PRAGMA incremental_vacuum(10)").fetchall()
        except BaseException as error:  # noqa: BLE001 - handed to the test
            self.error = error


def assert_follows(reader: apsw.Connection, app: Application) -> None:
    """The reader sees what the application sees, soon."""
    wait_until(lambda: rows(reader, SUMMARY) == app.run(SUMMARY), "the reader's rows being the application's", 20)
    assert rows(reader, DATA) == app.run(DATA)
    assert rows(reader, "PRAGMA integrity_check") == [("ok",)]


def assert_one_state(reader: apsw.Connection) -> None:
    """A transaction sees one commit of the writer, and a sound database."""
    with reader:
        assert one(reader, "SELECT total FROM ledger") == one(reader, "SELECT sum(v) FROM t")
        assert rows(reader, "PRAGMA integrity_check") == [("ok",)]


def went_through_everything(client: ReplicaClient, seen: set[LTXFileInfo]) -> bool:
    """Whether there were files of every level by now, and retention deleted some of levels 0 and 9."""
    files = all_files(client)
    gone = {file.level for file in seen if file.name not in {f.name for f in files if f.level == file.level}}
    seen.update(files)
    return {0, 1, 2, 3, 9} <= {f.level for f in seen} and {0, 9} <= gone


@needs_litestream
def test_litestream_and_our_replicator_continue_each_others_replica_beside_a_reader(
    tmp_path: Path, app: Application, client: ReplicaClient, caplog: pytest.LogCaptureFixture
) -> None:
    app.run("CREATE TABLE ledger (total INTEGER)")
    app.run("INSERT INTO ledger VALUES (0)")
    app.run(INSERT)
    caplog.set_level(logging.WARNING, "litevfs")
    with ExitStack() as stack:
        with litestream.replicating(tmp_path, app.path, client.url) as theirs:
            reader = stack.enter_context(connected(client.url, poll_interval="20ms", cache_size="200KB"))
            with Writer(app.path):
                seen: set[LTXFileInfo] = set()

                def is_done() -> bool:
                    assert theirs.is_running, theirs.log
                    if rows(reader, "SELECT name FROM sqlite_schema WHERE name = 'ledger'") and txid_of(reader) > 1:
                        assert_one_state(reader)
                    return went_through_everything(client, seen)

                wait_until(is_done, "a replica with every level, and files that retention deleted", 40)
            assert_follows(reader, app)
        their_txid = txid_of(reader)
        assert restored(client.url, tmp_path) == app.run(DATA)
        assert_verified(client.url)

        with Replicator(app.path, client) as ours:
            for n, sql in enumerate((INSERT, "DELETE FROM t WHERE id % 2", INSERT), 1):
                app.run(sql)
                assert ours.sync() == their_txid + n
        assert_follows(reader, app)
        assert_no_gap(client)
        assert restored(client.url, tmp_path) == app.run(DATA)
        our_txid = txid_of(reader)

        with litestream.replicating(tmp_path, app.path, client.url) as theirs:
            app.run(INSERT)
            assert_follows(reader, app)
            assert "detected database behind replica" in theirs.log
        assert txid_of(reader) > our_txid
        assert_no_gap(client)
        assert_verified(client.url)
        assert restored(client.url, tmp_path) == app.run(DATA)
    assert "the replica was replaced" not in caplog.text


@needs_litestream
def test_our_restore_and_copy_take_what_litestream_wrote(
    tmp_path: Path, app: Application, client: ReplicaClient
) -> None:
    states: dict[int, list[tuple[Any, ...]]] = {}
    quiet = {"levels": [{"interval": "1h"}], "snapshot": {"interval": "1h", "retention": "24h"}}
    with litestream.replicating(tmp_path, app.path, client.url, **quiet):
        for sql in EVENTS:
            app.run(sql)
            with connected(client.url, poll_interval="10ms") as reader:
                wait_until(lambda: one(reader, "SELECT count(*) FROM sqlite_schema WHERE name = 't'"), "the table")
                assert_follows(reader, app)
                states[txid_of(reader)] = app.run(DATA)
    assert main(["copy", client.url, str(tmp_path / "copy")]) == 0
    for number, replica in enumerate((client.url, (tmp_path / "copy").as_uri())):
        assert_verified(replica)
        assert restored(replica, tmp_path) == app.run(DATA)
        for txid, expected in states.items():
            path = tmp_path / f"{number}-{txid}.db"
            assert main(["restore", replica, "--txid", f"{txid:x}", "-o", str(path)]) == 0
            with opened(path) as restored_db:
                assert rows(restored_db, DATA) == expected
    for file in all_files(client):  # Litestream's file client and ours keep the same times
        assert file.modified_ms == header(client, file).timestamp_ms


@needs_litestream
def test_litestream_continues_after_a_file_of_ours_that_holds_the_whole_database(
    tmp_path: Path, app: Application, client: ReplicaClient
) -> None:
    """Litestream 0.5.18 looks for the last frame before `wal_offset + wal_size` of the newest level-0 file.

    With 0 there, all its syncs fail for ever: "cannot verify wal state: prev WAL offset is less than the header size".
    """
    app.run(INSERT)
    with Replicator(app.path, client) as ours:
        assert ours.sync() == 1
    with litestream.replicating(tmp_path, app.path, client.url) as theirs:
        app.run(INSERT)
        wait_until(lambda: client.list_files(0)[-1].max_txid > 1 or "sync error" in theirs.log, "a sync", 20)
        assert "sync error" not in theirs.log
    assert restored(client.url, tmp_path) == app.run(DATA)


@needs_litestream
@pytest.mark.parametrize("is_known", [True, False])
def test_our_replicator_follows_litestream_by_its_files_where_the_wal_was_started_over(
    tmp_path: Path, app: Application, client: ReplicaClient, is_known: bool
) -> None:
    """As under load: the application writes and checkpoints between the end of the one and the start of the other."""
    app.run(INSERT)
    with litestream.replicating(tmp_path, app.path, client.url):
        wait_until(lambda: bool(client.list_files(0)), "a first sync", 20)
    app.run(INSERT)
    app.run("PRAGMA wal_checkpoint(TRUNCATE)")
    app.run(INSERT)
    if not is_known:
        shutil.rmtree(tmp_path / f".{app.path.name}-litestream")
    with Replicator(app.path, client) as ours:
        if is_known:
            ours.sync()
            assert restored(client.url, tmp_path) == app.run(DATA)
        else:
            with pytest.raises(UnrelatedDatabaseError):
                ours.sync()


@needs_litestream
def test_litestream_restores_and_continues_a_replica_whose_pages_have_changed_their_size(
    tmp_path: Path, app: Application, client: ReplicaClient
) -> None:
    """Of its own replicas Litestream 0.5.18 syncs nothing more then: "unaligned wal offset ... for page size"."""
    app.run(INSERT)
    with Replicator(app.path, client) as ours:
        assert ours.sync() == 1
    for sql in ("PRAGMA journal_mode=DELETE", "PRAGMA page_size=8192", "VACUUM", "PRAGMA journal_mode=WAL", INSERT):
        app.run(sql)
    with Replicator(app.path, client) as ours:
        assert ours.sync() == 2
        app.run(INSERT)
        assert ours.sync() == 3
    assert restored(client.url, tmp_path) == app.run(DATA)
    with litestream.replicating(tmp_path, app.path, client.url, l0_retention="1h") as theirs:
        app.run(INSERT)
        wait_until(lambda: client.list_files(0)[-1].max_txid > 3 or "sync error" in theirs.log, "a sync", 20)
        assert "sync error" not in theirs.log
    assert restored(client.url, tmp_path) == app.run(DATA)


# --- S3 --------------------------------------------------------------------------------------------------------------


@needs_litestream
@pytest.mark.s3
def test_litestream_restores_from_s3_what_our_replicator_wrote(
    tmp_path: Path, app: Application, s3_server: S3Server, s3_url: Callable[[], str]
) -> None:
    url = s3_url()
    with Replicator(app.path, url) as replicator:
        for sql in EVENTS[:4]:
            app.run(sql)
            replicator.sync()
        expected, moment = app.run(DATA), datetime.now(UTC)
        wait_until(lambda: datetime.now(UTC).timestamp() > moment.timestamp() + 0.05, "a later time")
        for sql in EVENTS[4:]:
            app.run(sql)
            replicator.sync()
        assert compact_level(replicator.client, 1) is not None
        assert_listed_by_litestream(replicator.client, url)
        assert restored(url, tmp_path) == app.run(DATA)
        replicator.client.delete(replicator.client.list_files(1))
        if s3_server.kind != "moto":  # with which Litestream finds no times
            # Litestream takes the times for this from the metadata that we wrote.
            assert restored(url, tmp_path, "-timestamp", moment.isoformat(timespec="milliseconds")) == expected


@needs_litestream
@pytest.mark.s3
def test_a_reader_follows_what_litestream_writes_to_s3(
    tmp_path: Path, app: Application, s3_url: Callable[[], str], s3_client: Any
) -> None:
    url = s3_url()
    app.run(INSERT)
    with closing(open_replica_client(url)) as client:
        with (
            litestream.replicating(tmp_path, app.path, url) as theirs,
            connected(url, poll_interval="50ms") as reader,
        ):
            seen: set[LTXFileInfo] = set()

            def is_done() -> bool:
                assert theirs.is_running, theirs.log
                app.run("INSERT INTO t (v, data) VALUES (1, randomblob(500))")
                assert rows(reader, "PRAGMA integrity_check") == [("ok",)]
                return went_through_everything(client, seen)

            wait_until(is_done, "a replica with every level, and files that retention deleted", 40)
            assert_follows(reader, app)
        assert_verified(url)
        assert restored(url, tmp_path) == app.run(DATA)
        assert main(["copy", url, str(tmp_path / "copy")]) == 0
        assert restored((tmp_path / "copy").as_uri(), tmp_path) == app.run(DATA)
        bucket = url.removeprefix("s3://").split("/")[0]
        for file in all_files(client):
            metadata = s3_client.head_object(Bucket=bucket, Key=client.key(file).removeprefix(f"s3://{bucket}/"))[
                "Metadata"
            ]
            written = datetime.fromisoformat(metadata["litestream-timestamp"])
            assert round(written.timestamp() * 1000) == header(client, file).timestamp_ms


@needs_litestream
def test_compaction_keeps_the_time_of_its_last_transaction_and_a_snapshot_has_that_of_its_making(
    tmp_path: Path, app: Application, client: ReplicaClient
) -> None:
    app.run(INSERT)
    every_second = [{"interval": "1s"}, {"interval": "1s"}, {"interval": "1s"}]
    keep = {"levels": every_second, "l0_retention": "1h", "snapshot": {"interval": "1s", "retention": "1h"}}
    with litestream.replicating(tmp_path, app.path, client.url, **keep):

        def times() -> list[tuple[LTXFileInfo, int, int]]:
            """(file of a higher level, its time, that of its last transaction), in milliseconds."""
            app.run("UPDATE t SET v = v + 1")
            higher = [f for f in all_files(client) if f.level]
            by_txid = {f.max_txid: header(client, f).timestamp_ms for f in client.list_files(0)}
            # A snapshot can reach further than level 0 yet: it is of what is local, which is uploaded a moment later.
            return [(f, header(client, f).timestamp_ms, by_txid[f.max_txid]) for f in higher if f.max_txid in by_txid]

        def later_snapshots() -> list[LTXFileInfo]:
            return [file for file, made, committed in times() if file.level == 9 and made > committed]

        wait_until(lambda: {1, 2, 3, 9} <= {file.level for file, _, _ in times()} and later_snapshots(), "levels", 20)
        found = times()
    assert all(made == committed for file, made, committed in found if file.level != 9)
    assert all(made >= committed for file, made, committed in found if file.level == 9)
