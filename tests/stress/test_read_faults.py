"""Reads while the storage times out, fails, cuts short and damages: a right answer or a typed error, nothing else."""

from __future__ import annotations

import random
import re
from itertools import islice
from pathlib import Path
from typing import Any

import apsw
import pytest

import litevfs
from litevfs.files.fetch import WHOLE_FILE_BYTES
from litevfs.ltx.decoder import decode_file
from litevfs.ltx.frame import FRAME_HEADER_SIZE
from litevfs.replica_clients.memory import MemoryStore, StoredFile
from litevfs.testing.faulty import Fault, Faults
from tests.primary import Primary
from tests.stress.conftest import MakePrimary
from tests.support import connected, one, rows

ROWS = 2000
NUMBERS = f"WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < {ROWS}) "
TYPED_ERRORS = (litevfs.LitevfsError, apsw.BusyError)

PATIENCE = "60s"
"""The longest pauses between 14 failures of one read, together some 50 s, are below it."""


def failures(timeouts: int | None, transients: int | None, partials: int | None) -> tuple[Fault, ...]:
    """At most so many of each, in one read or spread over all."""
    return (
        Fault("timeout", 0.5, ("read",), timeouts),
        Fault("transient", 0.25, ("read",), transients),
        Fault("partial", 0.1, ("read",), partials),
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
@pytest.mark.parametrize(
    ("read_timeout", "queries", "faults_added"),
    [("100ms", 25, failures(None, None, None)), (PATIENCE, 8, failures(8, 4, 2))],
    ids=["impatient", "patient"],
)
def test_failing_reads_end_in_the_right_answer_or_in_a_typed_error(
    request, primary, storage, read_timeout, queries, faults_added
):
    """Timeouts 50 %, errors 25 %, partial data 10 % of all reads; a short patience shows errors, a long one retries."""
    faults: Faults = request.getfixturevalue(storage)
    picks = random.Random(5)
    asked = Asked(primary)
    with connected(faults.url, poll_interval=0, cache_size="20KB", read_timeout=read_timeout) as connection:
        faults.add(*faults_added)
        for _ in range(queries):
            asked.ask(connection, point_query(picks.randrange(ROWS)))
        assert not asked.wrong
        assert asked.answers
        assert sum(faults.injected.values()) > 5
        if read_timeout == PATIENCE:
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
            with connected(remote_faults.url, poll_interval=0, cache_size="10MB", open_timeout=PATIENCE) as connection:
                opened += 1
                assert rows(connection, query) == expected
        except litevfs.LTXFormatError:
            continue
    assert opened
    assert remote_faults.injected["corrupt"] > 10


# --- ranges: where no checksum of the format reaches ------------------------------------------------------------------


def flip_literals(store: MemoryStore, text: bytes = b"row-", *, every: int = 1) -> int:
    """Flip a bit of every n-th `text` that stands uncompressed in a stored file, unnoticed by its ETag; how many."""
    flipped = 0
    for key, stored in store.items():
        data = bytearray(stored.data)
        for match in islice(re.finditer(text, stored.data), every // 2, None, every):
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
def test_random_corruption_of_reads_never_becomes_a_wrong_row(primary, faults):
    """5 % of all reads have one bit flipped: what decodes all the same must not be believed."""
    asked = Asked(primary)
    picks = random.Random(6)
    with connected(faults.url, poll_interval=0, cache_size="20KB") as connection:
        faults.add(CORRUPTION)
        for _ in range(250):
            asked.ask(connection, point_query(picks.randrange(ROWS)))
        assert faults.injected["corrupt"] > 10
        faults.clear()
        assert asked.answers
        assert not asked.wrong


# --- large files: verified where that is asked for, else checked by their structure -----------------------------------

FILL_LARGE = f"{NUMBERS} INSERT INTO t SELECT n, 'row-' || n || '-' || hex(randomblob(600)), n FROM s"
ALL = "SELECT * FROM t ORDER BY id"
STORAGES = [("faults", False), ("remote_faults", False), ("remote_faults", True)]


PAGE_SIZES = pytest.mark.parametrize("large", [512, 4096, 65536], indirect=True)
"""The other tests have pages of 4096 bytes."""


@pytest.fixture
def large(request: pytest.FixtureRequest, make_primary: MakePrimary, store: MemoryStore) -> Primary:
    """A small file, and one above WHOLE_FILE_BYTES."""
    primary = make_primary(page_size=getattr(request, "param", 4096))
    primary.commit("CREATE TABLE t (id INTEGER PRIMARY KEY, text TEXT, n INTEGER)")
    primary.commit(FILL_LARGE)
    assert max(len(stored.data) for _, stored in store.items()) > WHOLE_FILE_BYTES
    return primary


@pytest.fixture(params=STORAGES, ids=["local", "remote", "remote with a folder"])
def verifying(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Faults, dict[str, Any]]:
    """A storage with faults, and the options that have it verified."""
    storage, with_folder = request.param
    options = {"verify": True, "poll_interval": 0, "cache_size": "50KB"}
    return request.getfixturevalue(storage), options | ({"cache_dir": tmp_path} if with_folder else {})


@pytest.mark.plan("L02")
@PAGE_SIZES
def test_with_verify_a_damaged_page_of_a_large_file_is_no_wrong_row(large, verifying, store):
    faults, options = verifying
    asked = Asked(large)
    with connected(faults.url, **options) as connection:
        assert flip_literals(store, every=100)
        for id_ in range(1, ROWS - 20, 20):
            asked.ask(connection, point_query(id_))
    assert not asked.wrong
    assert asked.answers
    assert all(isinstance(error, litevfs.LTXFormatError) and error.key for error in asked.errors)
    if "cache_dir" not in options:  # a folder still has what was verified
        assert asked.errors


@pytest.mark.plan("L02")
@PAGE_SIZES
@pytest.mark.parametrize("verifying", STORAGES[:2], indirect=True, ids=["local", "remote"])
def test_with_verify_random_corruption_of_reads_of_a_large_file_never_becomes_a_wrong_row(large, verifying):
    faults, options = verifying
    asked = Asked(large)
    picks = random.Random(7)
    with connected(faults.url, **options) as connection:
        connection.execute("PRAGMA cache_size=0")
        faults.add(CORRUPTION)
        for _ in range(200):
            asked.ask(connection, point_query(picks.randrange(ROWS)))
            if faults.injected["corrupt"] > 30 and asked.answers > 30:
                break
        assert faults.injected["corrupt"] > 5
        faults.clear()
        assert asked.answers > 30
        assert not asked.wrong
        assert rows(connection, ALL) == large.rows(ALL)


@pytest.mark.plan("L02")
@pytest.mark.parametrize("verifying", STORAGES[:2], indirect=True, ids=["local", "remote"])
def test_with_verify_opening_over_damaged_bytes_gives_the_right_rows_or_a_typed_error(large, verifying):
    faults, options = verifying
    faults.add(CORRUPTION)
    expected = large.rows(ALL)
    opened = 0
    for _ in range(6):
        try:
            with connected(faults.url, **options) as connection:
                opened += 1
                assert rows(connection, ALL) == expected
        except litevfs.LTXFormatError as error:
            assert error.key
    assert opened
    assert faults.injected["corrupt"]


@pytest.mark.plan("L02", "L28")
def test_with_verify_a_large_file_that_was_always_damaged_is_not_opened(large, verifying, store):
    faults, options = verifying
    assert flip_literals(store, every=50)
    with pytest.raises(litevfs.LTXFormatError) as caught, connected(faults.url, **options):
        pass
    assert (caught.value.level, caught.value.min_txid, caught.value.max_txid) == (0, 2, 2)
    assert caught.value.key
    assert caught.value.hint


@pytest.mark.plan("L02")
def test_with_verify_a_damaged_large_transaction_is_not_published_until_it_is_repaired(make_primary, verifying, store):
    primary = make_primary()
    primary.commit("CREATE TABLE t (id INTEGER PRIMARY KEY, text TEXT, n INTEGER)")
    primary.commit("INSERT INTO t VALUES (0, 'first', 0)")
    faults, options = verifying
    with connected(faults.url, **options) as connection:
        primary.commit(FILL_LARGE)
        sound = dict(store.files)
        assert flip_literals(store, every=50)
        for _ in range(2):
            with pytest.raises(litevfs.LTXFormatError) as caught:
                one(connection, "PRAGMA litestream_poll")
            assert (caught.value.level, caught.value.min_txid) == (0, 3)
            assert rows(connection, ALL) == primary.rows(ALL, 2)
        store.files.update(sound)
        assert int(one(connection, "PRAGMA litestream_poll"), 16) == 3
        assert rows(connection, ALL) == primary.rows(ALL)
        assert flip_literals(store)
        assert not wrong_rows(connection, primary)


@pytest.mark.plan("L02")
@pytest.mark.parametrize("damaged_from", ["its first byte on", "when it was found"])
def test_with_verify_pages_that_moved_to_a_damaged_compacted_file_are_no_wrong_rows(
    large, verifying, store, damaged_from
):
    faults, options = verifying
    with connected(faults.url, **options) as connection:
        assert rows(connection, "SELECT id FROM t WHERE id = 1") == [(1,)]
        large.compact(9, 1, 2)
        large.delete(0)
        if damaged_from == "its first byte on":
            assert flip_literals(store)
            assert not wrong_rows(connection, large)
        else:
            assert rows(connection, ALL) == large.rows(ALL)
            assert flip_literals(store)
            assert not wrong_rows(connection, large)


@pytest.mark.plan("L02")
def test_with_verify_earlier_states_and_hydrated_ones_have_no_wrong_rows(large, verifying, store):
    large.commit("UPDATE t SET n = 0 WHERE id = 5")
    faults, options = verifying
    with (
        connected(faults.url, **options, txid=2) as then,
        connected(faults.url, **options, hydration_enabled=True) as hydrated,
    ):
        assert flip_literals(store)
        assert not wrong_rows(then, large)
        assert not wrong_rows(hydrated, large)


@pytest.mark.plan("L02")
def test_with_verify_nothing_comes_from_a_connection_without_it(large, verifying, store):
    """What the other connection has read, unverified, is damaged; in the cache folder too."""
    faults, options = verifying
    sound = dict(store.files)
    assert flip_literals(store)
    with connected(faults.url, **options | {"verify": False}) as other:
        assert wrong_rows(other, large)
        store.files.update(sound)
        with connected(faults.url, **options) as connection:
            assert rows(connection, ALL) == large.rows(ALL)


@pytest.mark.plan("L02")
@PAGE_SIZES
def test_by_default_damage_that_a_frame_of_a_large_file_shows_is_no_wrong_row(large, faults, store):
    """Page number, flags, size: every bit of the headers of a frame, one after the other."""
    key, stored = max(store.items(), key=lambda item: len(item[1].data))
    index = decode_file(stored.data).index
    pgno = int(index.pgnos[len(index) // 2])
    start = int(index.offsets[len(index) // 2])
    asked = Asked(large)
    around = f"SELECT * FROM t WHERE id BETWEEN {ROWS // 2 - 50} AND {ROWS // 2 + 50}"
    with connected(faults.url, poll_interval=0, cache_size=0) as connection:
        connection.execute("PRAGMA cache_size=0")
        for bit in range(FRAME_HEADER_SIZE * 8):
            data = bytearray(stored.data)
            data[start + bit // 8] ^= 1 << bit % 8
            store.files[key] = StoredFile(bytes(data), stored.modified_ms, stored.etag)
            asked.ask(connection, around)
    assert not asked.wrong
    assert asked.errors
    assert all(f"page {pgno}" in str(error) for error in asked.errors)


@pytest.mark.plan("L02")
@PAGE_SIZES
def test_by_default_a_flipped_literal_of_a_large_file_is_found_by_what_reads_it_whole(large, faults, store, tmp_path):
    """The limit that the README states: no checksum of the format covers one page."""
    with connected(faults.url, poll_interval=0) as connection:
        assert flip_literals(store)
        assert wrong_rows(connection, large)
    with pytest.raises(litevfs.LTXFormatError):
        litevfs.restore(faults.url, tmp_path / "restored.db")
    with pytest.raises(litevfs.LTXFormatError), connected(faults.url, poll_interval=0, verify=True):
        pass
