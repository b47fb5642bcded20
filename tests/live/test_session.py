"""A session driven directly: the header of page 1, any range of bytes, locks and what they pin."""

from __future__ import annotations

import pytest

from litevfs.errors import ReplicaError, ReplicaReadOnlyError
from litevfs.live.session import SHARED, UNLOCKED, Session
from litevfs.ltx.format import Header, lock_pgno
from litevfs.options import Options
from tests.primary import START_MS, Primary
from tests.scripted import Script
from tests.sparse import sparse_file

PAGE_SIZES = [512, 1024, 2048, 4096, 8192, 16384, 32768, 65536]
RESERVED, PENDING, EXCLUSIVE = 2, 3, 4


# --- the header of page 1 ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page_size", PAGE_SIZES)
@pytest.mark.plan("L19")
def test_full_and_partial_reads_of_page_1_agree_and_change_nothing_else(page_size):
    with Script() as script, Primary(script.writer, page_size=page_size) as primary:
        primary.commit("CREATE TABLE t(x)")
        primary.commit("INSERT INTO t VALUES(1)")
        session = Session(Options(replica_url=script.url, poll_interval_s=0))
        try:
            counters = set()
            for _ in range(3):
                session.lock(SHARED)
                page = session.read(page_size, 0)
                counter = page[24:28]
                assert page[18:20] == b"\x01\x01"
                assert page[92:96] == counter == session.snapshot.change_counter.to_bytes(4, "big")
                original = primary.page(1)
                kept = [i for i in range(page_size) if i not in {18, 19, *range(24, 28), *range(92, 96)}]
                assert original[18:20] == b"\x02\x02"
                assert bytes(page[i] for i in kept) == bytes(original[i] for i in kept)
                for offset, amount in [(24, 16), (0, 100), (18, 2), (92, 4), (page_size - 1, 1), (0, 1)]:
                    assert session.read(amount, offset) == page[offset : offset + amount]
                counters.add(counter)
                session.unlock(UNLOCKED)
                primary.commit("INSERT INTO t VALUES(2)")
                session.replica.refresh()
            assert len(counters) == 3
        finally:
            session.close()


def test_the_check_that_begins_a_transaction_is_of_the_state_that_it_sees():
    with Script() as script, Primary(script.writer) as primary:
        primary.commit("CREATE TABLE t(x)")
        session = Session(Options(replica_url=script.url, poll_interval_s=0))
        try:
            checks = []
            for _ in range(3):
                session.lock(SHARED)
                checks.append(session.read(16, 24))
                assert checks[-1][:4] == session.snapshot.change_counter.to_bytes(4)
                session.unlock(UNLOCKED)
                session.lock(SHARED)  # page 1 is known
                assert session.read(16, 24) == checks[-1]
                primary.commit("INSERT INTO t VALUES(1)")
                session.replica.refresh()
                assert session.read(16, 24) == checks[-1] == session.read(100, 0)[24:40]
                session.unlock(UNLOCKED)
                assert session.read(16, 24) == session.read(100, 0)[24:40] != checks[-1]
            assert len(set(checks)) == len(checks)
        finally:
            session.close()


def test_header_value_1_stands_for_a_page_of_65536_bytes():
    with Script() as script, Primary(script.writer, page_size=65536) as primary:
        primary.commit("CREATE TABLE t(x)")
        session = Session(Options(replica_url=script.url, poll_interval_s=0))
        assert session.read(2, 16) == b"\x00\x01"
        session.close()


@pytest.mark.parametrize("page_size", [512, 4096])
def test_any_range_reads_as_it_lies_in_the_database(page_size):
    with Script() as script, Primary(script.writer, page_size=page_size) as primary:
        primary.commit("CREATE TABLE t(x)")
        primary.commit("INSERT INTO t VALUES(randomblob(20000))")
        session = Session(Options(replica_url=script.url, poll_interval_s=0))
        try:
            size = session.size()
            assert size == len(primary.images[2])
            image = session.read(page_size, 0) + primary.images[2][page_size:]
            ranges = [(1, page_size), (page_size * 3, 0), (page_size, 100), (page_size, page_size + 1), (100, 0)]
            ranges += [(7, page_size - 3), (size, 0), (page_size + 5, size - page_size), (200, size - 10), (10, size)]
            ranges += [(page_size, size), (page_size, size - 1), (page_size, size + page_size)]
            for amount, offset in ranges:
                assert session.read(amount, offset) == image[offset : offset + amount], (amount, offset)
        finally:
            session.close()


# --- the lock page ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("page_size", PAGE_SIZES)
@pytest.mark.plan("L18")
def test_pages_on_both_sides_of_the_lock_page_read_right(page_size):
    lock = lock_pgno(page_size)
    commit = lock + 2
    content = {
        pgno: pgno.to_bytes(4, "big") * (page_size // 4) for pgno in (1, 2, lock - 2, lock - 1, lock + 1, commit)
    }
    data = sparse_file(Header(page_size, commit, 1, 1, timestamp_ms=START_MS), content)
    for block_size in (0, 1 << 16) if page_size > 1024 else (1 << 16,):  # an index of 2 million pages takes seconds
        with Script(block_size=block_size) as script:
            script.writer.write(0, 1, 1, data, START_MS)
            session = Session(Options(replica_url=script.url, poll_interval_s=0, open_timeout_s=60))
            try:
                assert session.size() == commit * page_size
                for pgno in (2, lock - 2, lock - 1, lock + 1, commit):
                    assert session.read(page_size, (pgno - 1) * page_size) == content[pgno]
                around = session.read(3 * page_size, (lock - 2) * page_size)
                assert around == content[lock - 1] + bytes(page_size) + content[lock + 1]
                assert session.read(page_size, (lock - 1) * page_size) == bytes(page_size)
            finally:
                session.close()


# --- locks ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def small():
    """A primary with one small table, its storage, and a file of the replica that moves only when told."""
    with Script() as script, Primary(script.writer) as primary:
        primary.commit("CREATE TABLE t(x); INSERT INTO t VALUES(1)")
        session = Session(Options(replica_url=script.url, poll_interval_s=0))
        yield primary, session
        session.close()


@pytest.mark.plan("L07", "L06")
def test_shared_pins_the_newest_state_until_it_is_let_go(small):
    primary, session = small
    session.lock(SHARED)
    pinned = session.snapshot
    size = session.size()
    primary.commit("CREATE TABLE u AS SELECT randomblob(30000)")
    assert session.replica.refresh()
    session.lock(SHARED)  # again: nothing moves
    assert session.snapshot is pinned
    assert session.size() == size
    session.unlock(SHARED)
    assert session.snapshot is pinned
    session.unlock(UNLOCKED)
    assert session.snapshot.txid == 2
    assert session.size() > size
    session.unlock(UNLOCKED)


@pytest.mark.parametrize("level", [RESERVED, PENDING, EXCLUSIVE])
@pytest.mark.parametrize("before", [UNLOCKED, SHARED])
@pytest.mark.plan("L07")
def test_write_locks_are_refused_as_read_only_and_change_nothing(small, level, before):
    primary, session = small
    if before:
        session.lock(SHARED)
    pinned = session.snapshot
    with pytest.raises(ReplicaReadOnlyError, match="read-only"):
        session.lock(level)
    primary.commit("INSERT INTO t VALUES(2)")
    session.replica.refresh()
    assert (session.snapshot is pinned) == (before == SHARED)
    session.unlock(UNLOCKED)


@pytest.mark.parametrize("level", [RESERVED, PENDING, EXCLUSIVE])
@pytest.mark.plan("L07")
def test_nothing_can_be_unlocked_to_a_write_lock(small, level):
    _, session = small
    session.lock(SHARED)
    with pytest.raises(ReplicaError, match="cannot unlock"):
        session.unlock(level)
    session.unlock(UNLOCKED)


@pytest.mark.plan("L07")
def test_unlocking_what_is_not_locked_is_harmless(small):
    _, session = small
    session.unlock(UNLOCKED)
    session.unlock(SHARED)
    assert session.snapshot.txid == 1
    session.lock(SHARED)
    session.unlock(UNLOCKED)
