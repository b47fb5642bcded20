"""Many readers while writers never stop: each read has one TXID, and what it says is what the primary had then."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Any

import apsw
import pytest

import litevfs
from litevfs.replica_clients.memory import MemoryReplicaClient
from tests.primary import Primary
from tests.stress.conftest import MakePrimary
from tests.support import one, rows, txid_of

PAGES = 10_000


class History:
    """What a query answered at each TXID, told by the primary before the transaction is uploaded."""

    def __init__(self, primary: Primary, query: str) -> None:
        self.query = query
        self.answers: dict[int, list[tuple[Any, ...]]] = {}
        self._primary = primary
        self.note()

    def note(self) -> None:
        self.answers[self._primary.txid] = self._primary.con.execute(self.query).fetchall()

    def commit(self, sql: str, bindings: tuple[Any, ...] = ()) -> int:
        """One transaction; of the images only the newest is kept."""
        txid = self._primary.run(sql, bindings)
        self.note()
        del self._primary.images[txid - 1]
        self._primary.upload()
        del self._primary.changes[txid]
        return txid


class Reader(threading.Thread):
    """Reads in transactions until told to stop, over a connection of its own."""

    def __init__(self, url: str, read: Callable[[apsw.Connection], int], **options: Any) -> None:
        super().__init__()
        self.reads = 0
        self.txids: set[int] = set()
        self.error: BaseException | None = None
        self._url, self._options, self._read = url, options, read
        self.stop = threading.Event()

    def run(self) -> None:
        try:
            connection = litevfs.connect(self._url, **self._options)
            try:
                last = 0
                while not self.stop.is_set():
                    connection.execute("BEGIN")
                    txid = self._read(connection)
                    assert txid_of(connection) == txid
                    connection.execute("COMMIT")
                    assert txid >= last, "a reader went back"
                    last = txid
                    self.txids.add(txid)
                    self.reads += 1
            finally:
                connection.close()
        except BaseException as error:  # noqa: BLE001 - handed to the test
            self.error = error


def run_beside(readers: list[Reader], write: Callable[[], Any], seconds: float, pause_s: float = 0.0) -> int:
    """Run the readers while `write()` is called over and over; how often. Every reader has read when this returns."""
    pause = threading.Event()
    for reader in readers:
        reader.start()
    writes = 0
    end = time.monotonic() + seconds
    patience = end + 60
    try:
        while time.monotonic() < end or (any(not r.reads for r in readers) and time.monotonic() < patience):
            if any(reader.error for reader in readers):
                break
            write()
            writes += 1
            pause.wait(pause_s)
    finally:
        for reader in readers:
            reader.stop.set()
        for reader in readers:
            reader.join(60)
    assert not [reader for reader in readers if reader.is_alive()], "readers hang"
    for reader in readers:
        if reader.error is not None:
            raise reader.error
    assert all(reader.reads for reader in readers)
    return writes


def checked(history: History) -> Callable[[apsw.Connection], int]:
    """A read that compares its answer with the primary's at the TXID it says it has."""

    def read(connection: apsw.Connection) -> int:
        answer = rows(connection, history.query)
        txid = txid_of(connection)
        assert answer == history.answers[txid], f"wrong rows at TXID {txid}"
        return txid

    return read


@pytest.fixture
def large(make_primary: MakePrimary) -> Primary:
    """A database of 10,000 pages."""
    primary = make_primary(page_size=512)
    primary.commit("CREATE TABLE t (id INTEGER PRIMARY KEY, data BLOB, n INTEGER)")
    primary.commit(
        f"WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < {PAGES}) "
        "INSERT INTO t SELECT n, randomblob(440), 0 FROM s"
    )
    assert len(primary.images[primary.txid]) >= PAGES * 512
    return primary


@pytest.mark.plan("L01")
@pytest.mark.parametrize(
    ("readers", "seconds"), [(20, 2.0), pytest.param(100, 10.0, marks=[pytest.mark.soak, pytest.mark.timeout(300)])]
)
def test_readers_see_whole_states_while_a_writer_never_stops(large, url, readers, seconds):
    """One row in 500 holds the transaction's number, so a mix of two states gives two numbers."""
    picks = random.Random(11)
    history = History(large, "SELECT count(*), min(n), max(n), sum(n) FROM t WHERE id % 500 = 7")

    def write() -> None:
        history.commit("UPDATE t SET n = ? WHERE id % 500 IN (7, ?)", (large.txid, picks.randrange(500)))

    threads = [Reader(url, checked(history), poll_interval="10ms") for _ in range(readers)]
    writes = run_beside(threads, write, seconds)
    assert writes > 10
    assert len(set().union(*(thread.txids for thread in threads))) > 1, "the readers never saw anything new"


class Overlapping:
    """Two writers of one replica, as an old primary that lives on beside a new one: the same transactions, uploaded
    by both, one of them in files of two transactions that overlap the other's.
    """

    def __init__(self, primary: Primary, history: History) -> None:
        self._primary = primary
        self._history = history
        self._clients = [MemoryReplicaClient(primary.client.store) for _ in range(2)]  # type: ignore[attr-defined]
        self._picks = random.Random(12)

    def write(self) -> None:
        primary = self._primary
        accounts = self._picks.sample(range(1, 201), 2)
        amount = self._picks.randint(1, 50)
        txid = primary.run(
            "UPDATE account SET balance = balance + CASE id WHEN ?1 THEN -?3 ELSE ?3 END WHERE id IN (?1, ?2)",
            (*accounts, amount),
        )
        self._history.note()
        del primary.images[txid - 1]
        first, second = self._picks.sample(self._clients, 2)
        for client, min_txid in ((first, txid), (second, max(txid - 1, 3))):
            content = self._file(min_txid, txid)
            client.write(0, min_txid, txid, content, primary.timestamp_ms(txid))
        primary.changes.pop(txid - 1, None)

    def _file(self, min_txid: int, max_txid: int) -> bytes:
        return self._primary.file_bytes(min_txid, max_txid)


@pytest.mark.plan("L09")
@pytest.mark.parametrize("seconds", [1.5, pytest.param(10.0, marks=pytest.mark.soak)])
def test_a_ledger_adds_up_in_every_read_while_two_writers_upload_overlapping_files(primary, url, seconds):
    primary.commit("CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER, note)")
    primary.commit(
        "WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < 200) "
        "INSERT INTO account SELECT n, 1000, hex(randomblob(100)) FROM s"
    )
    history = History(primary, "SELECT count(*), sum(balance), sum(balance * id) FROM account")
    compare = checked(history)

    def read(connection: apsw.Connection) -> int:
        assert one(connection, "SELECT sum(balance) FROM account") == 200_000
        return compare(connection)

    threads = [Reader(url, read, poll_interval="25ms") for _ in range(4)]
    writes = run_beside(threads, Overlapping(primary, history).write, seconds, pause_s=0.001)
    assert writes > 30
    assert len(set().union(*(thread.txids for thread in threads))) > 1


@pytest.mark.plan("L32")
@pytest.mark.parametrize("seconds", [1.0, pytest.param(20.0, marks=[pytest.mark.soak, pytest.mark.timeout(300)])])
def test_64_readers_beside_a_tight_writer_loop(make_primary, url, seconds):
    primary = make_primary(page_size=1024)
    primary.commit("CREATE TABLE t (id INTEGER PRIMARY KEY, n INTEGER, data); CREATE INDEX i ON t (n)")
    primary.commit(
        "WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < 500) "
        "INSERT INTO t SELECT n, n, hex(randomblob(50)) FROM s"
    )
    history = History(primary, "SELECT count(*), sum(n), max(id), min(n) FROM t INDEXED BY i WHERE n >= 0")
    picks = random.Random(13)

    def write() -> None:
        action = picks.choice(
            (
                "UPDATE t SET n = n + 1 WHERE id % 37 = ?",
                "INSERT INTO t (n, data) VALUES (?, hex(randomblob(200)))",
                "DELETE FROM t WHERE id % 211 = ?",
            )
        )
        history.commit(action, (picks.randrange(37),))

    threads = [Reader(url, checked(history), poll_interval="5ms") for _ in range(64)]
    assert run_beside(threads, write, seconds) > 5
    assert len(set().union(*(thread.txids for thread in threads))) > 1
