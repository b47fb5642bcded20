"""Reads while the storage times out, fails, cuts short and damages: a right answer or a typed error, nothing else."""

from __future__ import annotations

import random
import re
from typing import Any

import apsw
import pytest

import litevfs
from litevfs.fetch import WHOLE_FILE_BYTES
from litevfs.replica_clients.memory import MemoryStore, StoredFile
from litevfs.testing.faulty import Fault, Faults
from tests.primary import Primary
from tests.stress.conftest import MakePrimary
from tests.support import connected, one, rows

ROWS = 2000
NUMBERS = f"WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < {ROWS}) "
TYPED_ERRORS = (litevfs.LitevfsError, apsw.BusyError)
NO_PAGE_CHECKSUM = "a range read is checked by nothing that a flipped bit in an LZ4 literal would offend: a wrong row"

FAILURES = (
    Fault("timeout", probability=0.5),
    Fault("transient", probability=0.25),
    Fault("partial", probability=0.1),
)
CORRUPTION = Fault("corrupt", probability=0.05)


@pytest.fixture
def primary(make_primary: MakePrimary) -> Primary:
    """Rows whose text compresses badly, over some hundred pages, in small files; small pages make more requests."""
    primary = make_primary(page_size=1024)
    primary.commit("CREATE TABLE t (id INTEGER PRIMARY KEY, text TEXT, n INTEGER)")
    primary.commit(f"{NUMBERS} INSERT INTO t SELECT n, 'row-' || n || '-' || hex(randomblob(30)), n * 7 FROM s")
    for _ in range(8):
        primary.commit("UPDATE t SET n = n + 1 WHERE id % 97 = abs(random() % 97)")
    return primary


def point_query(id_: int) -> str:
    return f"SELECT id, text, n FROM t WHERE id BETWEEN {id_} AND {id_ + 20}"


class Asked:
    """What came of the queries of one test."""

    def __init__(self, primary: Primary) -> None:
        self._primary = primary
        self.answers = 0
        self.errors: list[Exception] = []
        self.wrong: list[str] = []

    def ask(self, connection: apsw.Connection, sql: str) -> None:
        try:
            answer = rows(connection, sql)
        except TYPED_ERRORS as error:
            self.errors.append(error)
            return
        if answer == self._primary.rows(sql):
            self.answers += 1
        else:
            self.wrong.append(sql)


@pytest.mark.plan("L02")
@pytest.mark.parametrize("storage", ["faults", "remote_faults"])
@pytest.mark.parametrize(("read_timeout", "queries"), [("100ms", 25), ("5s", 2)])
def test_failing_reads_end_in_the_right_answer_or_in_a_typed_error(request, primary, storage, read_timeout, queries):
    """Timeouts 50 %, errors 25 %, partial data 10 % of all reads; a short patience shows errors, a long one retries."""
    faults: Faults = request.getfixturevalue(storage)
    picks = random.Random(5)
    asked = Asked(primary)
    with connected(faults.url, poll_interval=0, cache_size="20KB", read_timeout=read_timeout) as connection:
        faults.add(*(Fault(f.kind, f.probability, ("read",)) for f in FAILURES))
        for _ in range(queries):
            asked.ask(connection, point_query(picks.randrange(ROWS)))
        assert not asked.wrong
        assert asked.answers
        assert sum(faults.injected.values()) > 5
        if read_timeout == "5s":
            assert not asked.errors
        faults.clear()
        everything = "SELECT * FROM t ORDER BY id"
        assert rows(connection, everything) == primary.rows(everything)
        assert rows(connection, "PRAGMA integrity_check") == [("ok",)]


@pytest.mark.plan("L02")
@pytest.mark.parametrize("storage", ["faults", "remote_faults"])
def test_following_a_primary_through_all_faults_publishes_verified_files_only(request, primary, storage):
    """Every file here comes whole: its checksum refuses what was damaged on the way, and the next look repairs it."""
    faults: Faults = request.getfixturevalue(storage)
    counts = "SELECT count(*), sum(n) FROM t"
    with connected(faults.url, poll_interval=0, read_timeout="200ms") as connection:
        for _ in range(12):
            primary.commit("UPDATE t SET n = n + 1 WHERE id % 97 = abs(random() % 97)")
            faults.add(Fault("timeout", 0.2), Fault("transient", 0.1), Fault("partial", 0.3), Fault("corrupt", 0.4))
            for _ in range(4):
                try:
                    one(connection, "PRAGMA litestream_poll")
                except TYPED_ERRORS:
                    continue
            faults.clear()
            txid = int(one(connection, "PRAGMA litestream_poll"), 16)
            assert txid == primary.txid
            assert rows(connection, counts) == primary.rows(counts)
        assert {"timeout", "transient", "partial", "corrupt"} <= faults.injected.keys()
        assert rows(connection, "SELECT * FROM t") == primary.rows("SELECT * FROM t")


@pytest.mark.plan("L02")
def test_opening_over_damaged_bytes_gives_the_right_rows_or_a_typed_error(primary, remote_faults):
    """Opening reads whole files, verifies them, and keeps what it verified."""
    query = "SELECT * FROM t"
    expected = primary.rows(query)
    remote_faults.add(Fault("corrupt", probability=0.2))
    opened = 0
    for _ in range(20):
        try:
            with connected(remote_faults.url, poll_interval=0, cache_size="10MB", open_timeout="1s") as connection:
                opened += 1
                assert rows(connection, query) == expected
        except litevfs.LTXFormatError:
            continue
    assert opened
    assert remote_faults.injected["corrupt"] > 10


# --- ranges: where no checksum of the format reaches ------------------------------------------------------------------


def flip_literals(store: MemoryStore, text: bytes = b"row-") -> int:
    """Flip a bit of every `text` that stands uncompressed in a stored file, unnoticed by its ETag; how many."""
    flipped = 0
    for key, stored in store.items():
        data = bytearray(stored.data)
        for match in re.finditer(text, stored.data):
            data[match.start()] ^= 1
            flipped += 1
        store.files[key] = StoredFile(bytes(data), stored.modified_ms, stored.etag)
    return flipped


def wrong_rows(connection: apsw.Connection, primary: Primary) -> list[Any]:
    """Rows that were never there; a typed error is as good as none."""
    query = "SELECT id, text FROM t"
    expected = set(primary.rows(query))
    try:
        return [row for row in rows(connection, query) if row not in expected]
    except litevfs.LTXFormatError:
        return []


@pytest.mark.plan("L02")
def test_bytes_damaged_after_a_whole_file_was_verified_and_kept_are_not_read_again(primary, remote_faults, store):
    with connected(remote_faults.url, poll_interval=0, cache_size="10MB") as connection:
        assert flip_literals(store)
        assert not wrong_rows(connection, primary)
        assert rows(connection, "SELECT * FROM t") == primary.rows("SELECT * FROM t")


@pytest.mark.plan("L02")
def test_a_damaged_page_of_a_small_file_in_a_local_storage_is_no_wrong_row(primary, faults, store):
    """The file was verified whole when it was opened; its pages are then read from the storage again, one by one."""
    with connected(faults.url, poll_interval=0) as connection:
        assert flip_literals(store)
        assert not wrong_rows(connection, primary)


@pytest.mark.plan("L02")
def test_a_damaged_page_of_a_small_file_that_left_the_cache_is_no_wrong_row(primary, remote_faults, store):
    with connected(remote_faults.url, poll_interval=0, cache_size="100KB") as connection:
        assert flip_literals(store)
        assert not wrong_rows(connection, primary)


@pytest.mark.plan("L02")
@pytest.mark.xfail(strict=True, reason=NO_PAGE_CHECKSUM)
def test_a_damaged_page_of_a_large_file_is_no_wrong_row(make_primary, remote_faults, store):
    """Files above WHOLE_FILE_BYTES are never read whole, so no checksum of theirs can be compared."""
    primary = make_primary()
    primary.commit("CREATE TABLE t (id INTEGER PRIMARY KEY, text TEXT)")
    primary.commit(f"{NUMBERS} INSERT INTO t SELECT n, 'row-' || n || hex(randomblob(600)) FROM s")
    assert max(len(stored.data) for _, stored in store.items()) > WHOLE_FILE_BYTES
    with connected(remote_faults.url, poll_interval=0) as connection:
        assert flip_literals(store)
        assert not wrong_rows(connection, primary)


@pytest.mark.plan("L02")
def test_random_corruption_of_reads_never_becomes_a_wrong_row(primary, faults):
    """5 % of all reads have one bit flipped: what decodes all the same must not be believed."""
    asked = Asked(primary)
    picks = random.Random(6)
    with connected(faults.url, poll_interval=0, cache_size="20KB") as connection:
        faults.add(CORRUPTION)
        for _ in range(150):
            asked.ask(connection, point_query(picks.randrange(ROWS)))
        assert faults.injected["corrupt"] > 10
        faults.clear()
        assert asked.answers
        assert not asked.wrong
