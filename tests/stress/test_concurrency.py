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

WRITES_A_ROUND = 5
PATIENCE_S = 60.0


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
        return txid


class Readers:
    """Threads that read in transactions until told to stop, each over a connection of its own."""

    def __init__(self, count: int, url: str, read: Callable[[apsw.Connection], int], **options: Any) -> None:
        self.txids: set[int] = set()  # of all states that any of them saw
        self.reads = [0] * count
        self._url, self._options, self._read = url, options, read
        self._errors: list[BaseException] = []
        self._progress = threading.Condition()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(i,), name=f"reader-{i}") for i in range(count)]

    def __enter__(self) -> Readers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(PATIENCE_S)
        assert not [thread for thread in self._threads if thread.is_alive()], "readers hang"
        self.check()

    def check(self) -> None:
        """Raise what a reader failed with."""
        if self._errors:
            raise self._errors[0]

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for the readers to come that far; raise what a reader failed with."""
        with self._progress:
            arrived = self._progress.wait_for(lambda: self._errors or condition(), PATIENCE_S)
        self.check()
        assert arrived, f"waited in vain for {what}"

    def _run(self, i: int) -> None:
        try:
            connection = litevfs.connect(self._url, **self._options)
            try:
                self._read_on(connection, i)
            finally:
                connection.close()
        except BaseException as error:  # noqa: BLE001 - handed to the test
            with self._progress:
                self._errors.append(error)
                self._progress.notify_all()

    def _read_on(self, connection: apsw.Connection, i: int) -> None:
        last = 0
        while not self._stop.is_set():
            connection.execute("BEGIN")
            txid = self._read(connection)
            assert txid_of(connection) == txid
            connection.execute("COMMIT")
            assert txid >= last, "a reader went back"
            last = txid
            with self._progress:
                self.reads[i] += 1
                self.txids.add(txid)
                self._progress.notify_all()


def run_beside(readers: Readers, write: Callable[[], int], *, rounds: int, seconds: float = 0.0) -> int:
    """Let the readers read while `write()`, which returns its TXID, is called over and over; how often it was.

    It is called without a pause, but for this: after each round of WRITES_A_ROUND the writer waits until a reader has
    seen what it wrote last. So at least as many states are seen as there are rounds, however busy the machine is, and
    however unevenly it hands out its time. There are more than `rounds` while the `seconds` are not over. When this
    returns, every reader has read.
    """
    end = time.monotonic() + seconds
    done = 0
    with readers:
        while done < rounds or time.monotonic() < end:
            for _ in range(WRITES_A_ROUND):
                readers.check()
                txid = write()
            readers.wait_until(lambda txid=txid: txid in readers.txids, f"a reader to see TXID {txid}")
            done += 1
        readers.wait_until(lambda: all(readers.reads), "every reader to read")
    return done * WRITES_A_ROUND


def checked(history: History) -> Callable[[apsw.Connection], int]:
    """A read that compares its answer with the primary's at the TXID it says it has."""

    def read(connection: apsw.Connection) -> int:
        answer = rows(connection, history.query)
        txid = txid_of(connection)
        assert answer == history.answers[txid], f"wrong rows at TXID {txid}"
        return txid

    return read


@pytest.fixture
def large(make_primary: MakePrimary, pages: int) -> Primary:
    """A database of so many pages."""
    primary = make_primary(page_size=512)
    primary.commit("CREATE TABLE t (id INTEGER PRIMARY KEY, data BLOB, n INTEGER)")
    primary.commit(
        f"WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < {pages}) "
        "INSERT INTO t SELECT n, randomblob(440), 0 FROM s"
    )
    assert len(primary.images[primary.txid]) >= pages * 512
    return primary


@pytest.mark.plan("L01")
@pytest.mark.parametrize(
    ("readers", "pages", "seconds"),
    [(12, 2500, 0.0), pytest.param(100, 10_000, 10.0, marks=[pytest.mark.soak, pytest.mark.timeout(300)])],
)
def test_readers_see_whole_states_while_a_writer_never_stops(large, url, readers, seconds):
    """One row in 500 holds the transaction's number, so a mix of two states gives two numbers."""
    picks = random.Random(11)
    history = History(large, "SELECT count(*), min(n), max(n), sum(n) FROM t WHERE id % 500 = 7")

    def write() -> int:
        return history.commit("UPDATE t SET n = ? WHERE id % 500 IN (7, ?)", (large.txid, picks.randrange(500)))

    threads = Readers(readers, url, checked(history), poll_interval="10ms")
    assert run_beside(threads, write, rounds=4, seconds=seconds) >= 20
    assert len(threads.txids) >= 4


class Overlapping:
    """Two writers of one replica, as an old primary that lives on beside a new one: the same transactions, uploaded
    by both, one of them in files of two transactions that overlap the other's.
    """

    def __init__(self, primary: Primary, history: History) -> None:
        self._primary = primary
        self._history = history
        self._clients = [MemoryReplicaClient(primary.client.store) for _ in range(2)]  # type: ignore[attr-defined]
        self._picks = random.Random(12)

    def write(self) -> int:
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
            client.write(0, min_txid, txid, primary.file_bytes(min_txid, txid), primary.timestamp_ms(txid))
        return txid


@pytest.mark.plan("L09")
@pytest.mark.parametrize("seconds", [0.0, pytest.param(10.0, marks=pytest.mark.soak)])
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

    threads = Readers(4, url, read, poll_interval="25ms")
    assert run_beside(threads, Overlapping(primary, history).write, rounds=10, seconds=seconds) >= 50
    assert len(threads.txids) >= 10


@pytest.mark.plan("L32")
@pytest.mark.parametrize("seconds", [0.0, pytest.param(20.0, marks=[pytest.mark.soak, pytest.mark.timeout(300)])])
def test_64_readers_beside_a_tight_writer_loop(make_primary, url, seconds):
    primary = make_primary(page_size=1024)
    primary.commit("CREATE TABLE t (id INTEGER PRIMARY KEY, n INTEGER, data); CREATE INDEX i ON t (n)")
    primary.commit(
        "WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < 500) "
        "INSERT INTO t SELECT n, n, hex(randomblob(50)) FROM s"
    )
    history = History(primary, "SELECT count(*), sum(n), max(id), min(n) FROM t INDEXED BY i WHERE n >= 0")
    picks = random.Random(13)

    def write() -> int:
        action = picks.choice(
            (
                "UPDATE t SET n = n + 1 WHERE id % 37 = ?",
                "INSERT INTO t (n, data) VALUES (?, hex(randomblob(200)))",
                "DELETE FROM t WHERE id = (SELECT min(id) FROM t WHERE id > ?)",
            )
        )
        return history.commit(action, (picks.randrange(37),))

    threads = Readers(64, url, checked(history), poll_interval="5ms")
    assert run_beside(threads, write, rounds=5, seconds=seconds) >= 25
    assert len(threads.txids) >= 5
