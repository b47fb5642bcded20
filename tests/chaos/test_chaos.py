"""Everything at once, from one seed: sixteen readers, a jittery writer, compaction, retention, storage that fails.

Only faults that a checksum or a length can notice: a bit flipped in a range that is read again is shown elsewhere.
"""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections import Counter
from typing import Any

import apsw
import pytest

import litevfs
from litevfs.replica_clients.memory import MemoryReplicaClient, drop_memory_store, memory_store
from litevfs.testing.faulty import Fault, Faults, faulty_replica
from tests.primary import Primary
from tests.support import one, rows, txid_of

QUERY = "SELECT count(*), sum(balance), sum(balance * id), max(moves), sum(length(note)) FROM account"
ACCOUNTS = 400
TOTAL = 1000 * ACCOUNTS

FAULTS = (
    Fault("slow", probability=0.3, jitter_s=0.02),
    Fault("timeout", probability=0.08, jitter_s=0.02),
    Fault("transient", probability=0.08),
    Fault("transient", probability=0.02, retry_after_s=0.05),
    Fault("partial", probability=0.08),
    Fault("hide_newest", probability=0.1, files=2),
    Fault("repeat", probability=0.05),
    Fault("show_deleted", probability=0.05),
)


class Writer:
    """The primary: transactions at random, each noted before it is uploaded; compaction and retention now and then."""

    def __init__(self, primary: Primary, seed: int) -> None:
        self.answers: dict[int, list[tuple[Any, ...]]] = {}
        self._primary = primary
        self._random = random.Random(seed)
        primary.commit("CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER, moves INTEGER, note)")
        self.answers[primary.txid] = primary.con.execute(QUERY).fetchall()  # seen where a listing comes late
        primary.run(
            f"WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < {ACCOUNTS}) "
            "INSERT INTO account SELECT n, 1000, 0, hex(randomblob(100)) FROM s"
        )
        self._note_and_upload()

    @property
    def txid(self) -> int:
        return self._primary.txid

    def _note_and_upload(self) -> None:
        self.answers[self.txid] = self._primary.con.execute(QUERY).fetchall()
        self._primary.upload()
        self._primary.images.pop(self.txid - 60, None)

    def step(self) -> None:
        a, b = self._random.sample(range(1, ACCOUNTS + 1), 2)
        self._primary.run(
            "UPDATE account SET moves = moves + 1, note = hex(randomblob(?4)), "
            "balance = balance + CASE id WHEN ?1 THEN -?3 ELSE ?3 END WHERE id IN (?1, ?2)",
            (a, b, self._random.randrange(100), self._random.choice((10, 100, 3000))),
        )
        self._note_and_upload()
        if self.txid % 20 == 0:
            self._primary.compact(1, self.txid - 19, self.txid)
        if self.txid % 100 == 0:
            self._primary.compact(9, 1, self.txid)
            self._primary.delete(9, [self.txid - 200])
            self._primary.delete(0, range(1, self.txid - 40))
            self._primary.delete(1, range(1, self.txid - 150))

    def pause_s(self) -> float:
        return self._random.choice((0.0, 0.0, 0.001, 0.005, 0.05))


class Reader(threading.Thread):
    """Reads in transactions of random length, compares each answer, and keeps count of what it met."""

    def __init__(self, url: str, writer: Writer, seed: int) -> None:
        super().__init__(name=f"chaos-reader-{seed}")
        self.outcomes: Counter[str] = Counter()
        self.error: BaseException | None = None
        self.txid = 0  # read last; no connection of one process goes back behind another
        self.stop = threading.Event()
        self._writer = writer
        self._random = random.Random(seed)
        self._url = url

    def run(self) -> None:
        try:
            while not self.stop.is_set():
                self._session()
        except BaseException as error:  # noqa: BLE001 - handed to the test
            self.error = error

    def _session(self) -> None:
        """One connection's life."""
        try:
            connection = litevfs.connect(
                self._url,
                poll_interval=self._random.choice(("5ms", "20ms", "100ms")),
                cache_size=self._random.choice((0, 20_000, 60_000)),
                read_timeout="3s",
                open_timeout="3s",
            )
        except litevfs.LitevfsError as error:
            self.outcomes[f"open: {type(error).__name__}"] += 1
            return
        try:
            for _ in range(self._random.randrange(5, 60)):
                if self.stop.is_set():
                    return
                self._transaction(connection)
        finally:
            connection.close()

    def _transaction(self, connection: apsw.Connection) -> None:
        try:
            connection.execute("BEGIN")
            for _ in range(self._random.randrange(1, 4)):
                answer = rows(connection, QUERY)
                txid = txid_of(connection)
                assert answer == self._writer.answers[txid], f"wrong rows at TXID {txid}"
                if txid > 1:  # the first one makes the table alone
                    assert answer[0][1] == TOTAL
                    self._point(connection)
                assert txid_of(connection) == txid, "the state changed within a transaction"
            connection.execute("COMMIT")
            assert txid >= self.txid, f"a reader went back from TXID {self.txid} to {txid}"
            self.txid = txid
            self.outcomes["right"] += 1
        except litevfs.LitevfsError as error:
            self.outcomes[type(error).__name__] += 1
        if connection.in_transaction:
            connection.execute("ROLLBACK")

    def _point(self, connection: apsw.Connection) -> None:
        id_ = self._random.randrange(1, ACCOUNTS + 1)
        assert one(connection, "SELECT count(*) FROM account WHERE id = ?", id_) == 1


HAPPENS = {"slow", "timeout", "transient", "partial"}
"""Faults that every run meets."""
FEW_TRANSACTIONS, FEW_READS = 45, 40


def run_chaos(faults: Faults, writer: Writer, seed: int, seconds: float, *, is_short: bool = False) -> Counter[str]:
    """Chaos for so many seconds, or, if it is to be short, until something of everything has happened."""

    def is_enough() -> bool:
        right = sum(reader.outcomes["right"] for reader in readers)
        return is_short and writer.txid > FEW_TRANSACTIONS and right > FEW_READS and faults.injected.keys() >= HAPPENS

    readers = [Reader(faults.url, writer, seed * 100 + number) for number in range(16)]
    pause = threading.Event()
    for reader in readers:
        reader.start()
    faults.add(*FAULTS)
    end = time.monotonic() + seconds
    try:
        while time.monotonic() < end and not is_enough() and not any(reader.error for reader in readers):
            writer.step()
            pause.wait(writer.pause_s())
    finally:
        faults.clear()
        for reader in readers:
            reader.stop.set()
        for reader in readers:
            reader.join(60)
    assert not [reader.name for reader in readers if reader.is_alive()]
    for reader in readers:
        if reader.error is not None:
            raise reader.error
    return sum((reader.outcomes for reader in readers), Counter())


STORAGES = pytest.mark.parametrize(
    ("block_size", "reads_named"),
    [(0, False), (1 << 14, False), (1 << 14, True)],
    ids=["local", "remote", "by name"],
)


@pytest.mark.chaos
@pytest.mark.plan("L34")
@pytest.mark.timeout(300)
@STORAGES
@pytest.mark.parametrize("seed", range(5))
def test_chaos(seed: int, block_size: int, reads_named: bool) -> None:
    assert_survives(seed, block_size, reads_named=reads_named, seconds=20)


@pytest.mark.plan("L34")
@pytest.mark.parametrize(("block_size", "reads_named"), [(0, False), (1 << 14, True)], ids=["local", "by name"])
def test_a_little_chaos(block_size: int, reads_named: bool) -> None:
    assert_survives(99, block_size, reads_named=reads_named, seconds=15, is_short=True)


def assert_survives(seed: int, block_size: int, seconds: float, *, reads_named: bool, is_short: bool = False) -> None:
    name = f"chaos-{uuid.uuid4().hex[:12]}"
    with (
        faulty_replica(f"memory://{name}", seed=seed, block_size=block_size, reads_named=reads_named) as faults,
        Primary(MemoryReplicaClient(memory_store(name)), page_size=1024) as primary,
    ):
        writer = Writer(primary, seed)
        last = litevfs.connect(faults.url, poll_interval="10ms", cache_size=0)  # lives through all of it
        try:
            outcomes = run_chaos(faults, writer, seed, seconds, is_short=is_short)
            assert litevfs.wait_for(last, writer.txid, timeout=30) == writer.txid, "it did not catch up"
            assert rows(last, QUERY) == writer.answers[writer.txid]
            assert rows(last, "PRAGMA integrity_check") == [("ok",)]
        finally:
            last.close()
        print(f"seed {seed}: TXID {writer.txid}, {dict(faults.injected)}, {dict(outcomes)}")
        assert outcomes["right"] > 16
        assert faults.injected.keys() >= HAPPENS
        # Where the next file is asked for by its name, there may be too few listings for one of them to go wrong.
        assert reads_named or {"hide_newest", "repeat", "show_deleted"} & faults.injected.keys()
        expected = {
            "right",
            "StorageTimeoutError",
            "TransientStorageError",
            "StorageNotFoundError",
            "PageUnavailableError",
        }
        assert {name.removeprefix("open: ") for name in outcomes} <= expected
        assert faults.open_clients == 0
    drop_memory_store(name)
