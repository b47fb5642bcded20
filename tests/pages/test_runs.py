"""Pages decoded at once are the same pages, and a damaged one among them is its own read's error alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from litevfs.errors import LTXFormatError, PageUnavailableError
from litevfs.live.replica import Replica
from litevfs.live.session import SHARED, UNLOCKED, Session
from litevfs.ltx import Header, format_file_name
from litevfs.ltx.encoder import encode_file
from litevfs.options import Options
from litevfs.pages.runs import FORGOTTEN_AFTER, MAX_GAP_BYTES, MAX_RUN_BYTES, Runs, run_from
from litevfs.replica_clients.memory import MemoryStore, drop_memory_store, memory_store
from litevfs.states.chunks import CHUNK_PAGES

PAGE_SIZE, PAGES = 4096, 400
"""More than 1 MiB of frames: such a file is not verified when it is opened."""


def lengths(runs: Runs, reads: list[int], most: int = 32) -> list[int]:
    return [runs.length_from(pgno, most)[0] for pgno in reads]


def test_a_run_is_twice_as_long_as_the_one_before_it_while_reads_follow_each_other():
    assert lengths(Runs(), [10, 11, 13, 17, 25, 41, 73, 105]) == [1, 2, 4, 8, 16, 32, 32, 32]


def test_reads_that_do_not_follow_each_other_decode_one_page_each():
    assert lengths(Runs(), [10, 12, 9, 500, 498, 11]) == [1] * 5 + [2]
    assert lengths(Runs(), [10, 11, 13, 200, 17], most=1) == [1] * 5


def test_a_run_goes_on_after_a_gap_of_up_to_half_its_length():
    assert lengths(Runs(), [10, 11, 13, 17 + 2, 27 + 5, 100]) == [1, 2, 4, 8, 1, 1]


def test_scans_that_take_turns_each_have_their_run():
    runs = Runs()
    assert [lengths(runs, [10 + step, 1000 + step]) for step in (0, 1, 3, 7)] == [[1, 1], [2, 2], [4, 4], [8, 8]]


def test_a_scan_goes_on_between_other_reads_until_these_are_many():
    random = Random(2)
    for others, length in ((20, 16), (FORGOTTEN_AFTER + 1, 1)):
        runs = Runs()
        assert lengths(runs, [10, 11, 13, 17]) == [1, 2, 4, 8]
        far = random.sample(range(1000, 10**9, 2), others)
        assert lengths(runs, far) == [1] * others
        assert lengths(runs, [25]) == [length]


def test_a_run_that_ends_with_its_chunk_makes_the_scan_no_slower_and_is_counted_as_long_as_it_is():
    runs, end = Runs(), CHUNK_PAGES
    assert [runs.length_from(pgno, 8) for pgno in (end - 9, end - 8, end - 6, end - 2, end + 1, end + 9)] == [
        *((1, 1), (2, 3), (4, 7)),
        (3, 10),
        *((8, 18), (8, 26)),
    ]


def test_what_lies_within_a_run_or_before_it_goes_on_with_nothing():
    runs = Runs()
    assert lengths(runs, [10, 11, 13, 17, 25]) == [1, 2, 4, 8, 16]
    assert lengths(runs, [17, 24, 9, 40]) == [1] * 4


def test_what_a_scan_has_decoded_so_far_is_counted():
    runs = Runs()
    assert [runs.length_from(pgno, 4) for pgno in (10, 11, 13, 500, 17, 21)] == [
        *((1, 1), (2, 3), (4, 7)),
        (1, 1),
        *((4, 11), (4, 15)),
    ]


@pytest.fixture
def pages() -> dict[int, bytes]:
    random = Random(1)
    return {pgno: random.randbytes(PAGE_SIZE) for pgno in range(1, PAGES + 1)}


@pytest.fixture
def ltx_file(tmp_path: Path, pages: dict[int, bytes]) -> Path:
    header = Header(page_size=PAGE_SIZE, commit=PAGES, min_txid=1, max_txid=1, timestamp_ms=1)
    path = tmp_path / "ltx" / "9" / format_file_name(1, 1)
    path.parent.mkdir(parents=True)
    path.write_bytes(encode_file(header, pages.items()))
    return path


def test_damage_within_a_run_is_the_error_of_the_damaged_page_alone(tmp_path, pages, ltx_file):
    replica = Replica(Options(replica_url=f"file://{tmp_path}", poll_interval_s=0))
    try:
        replica.refresh()
        snapshot = replica.snapshot
        for pgno in (90, 91, 250):
            _, offset, _ = snapshot.place(pgno)
            with ltx_file.open("r+b") as file:
                file.seek(offset)
                file.write(b"\xff")
        for pgno, page in pages.items():
            if pgno in {90, 91, 250}:
                with pytest.raises(LTXFormatError):
                    replica.pages.read(snapshot, pgno)
            else:
                assert replica.pages.read(snapshot, pgno) == page
        assert replica.pages._fetcher.counters.get < PAGES / 4
    finally:
        replica.close()


def test_a_run_ends_at_the_end_of_the_database_and_before_a_large_gap(tmp_path, ltx_file):
    replica = Replica(Options(replica_url=f"file://{tmp_path}", poll_interval_s=0))
    try:
        replica.refresh()
        run = run_from(replica.snapshot, PAGES - 3, 64)
        assert list(run.pgnos) == list(range(PAGES - 3, PAGES + 1))
        assert run.size == sum(replica.snapshot.place(PAGES)[1:]) - replica.snapshot.place(PAGES - 3)[1]
        frames = replica.snapshot.chunks[0].frames
        for slot in (PAGES - 2, PAGES - 1):
            frames[slot] += (MAX_GAP_BYTES + PAGE_SIZE) << 17  # as if others lay between
        assert list(run_from(replica.snapshot, PAGES - 3, 64).pgnos) == [PAGES - 3, PAGES - 2]
    finally:
        replica.close()


def test_pages_decoded_along_are_those_of_the_database(tmp_path, pages, ltx_file):
    """A connection's session is handed them; each is the page at its offset, and no other connection's business."""
    replica = Replica(Options(replica_url=f"file://{tmp_path}", poll_interval_s=0))
    try:
        replica.refresh()
        along: dict[int, bytes] = {}
        most = 0
        for pgno in range(2, PAGES + 1):
            if (pgno - 1) * PAGE_SIZE not in along:
                assert replica.pages.read(replica.snapshot, pgno, along) == pages[pgno]
            assert all(pages[offset // PAGE_SIZE + 1] == page for offset, page in along.items())
            most = max(most, len(along))
        assert most == MAX_RUN_BYTES // PAGE_SIZE
        assert replica.pages.counters.misses == PAGES - 1
    finally:
        replica.close()


def test_a_long_scan_leaves_most_of_the_page_cache_to_others(tmp_path, pages, ltx_file):
    replica = Replica(Options(replica_url=f"file://{tmp_path}", poll_interval_s=0, cache_size_bytes=100 * PAGE_SIZE))
    try:
        replica.refresh()
        often = range(1, 60, 3)
        for pgno in often:
            replica.pages.read(replica.snapshot, pgno)
        along: dict[int, bytes] = {}
        for pgno in range(100, PAGES + 1):
            if (pgno - 1) * PAGE_SIZE not in along:
                replica.pages.read(replica.snapshot, pgno, along)
        misses = replica.pages.counters.misses
        for pgno in often:
            assert replica.pages.read(replica.snapshot, pgno) == pages[pgno]
        assert replica.pages.counters.misses == misses
    finally:
        replica.close()


def test_a_transaction_never_reads_a_page_decoded_along_in_an_earlier_one(tmp_path, pages, ltx_file):
    """Page by page, a scan is interrupted by a commit that changes all pages: none of the old ones is seen after it."""
    session = Session(Options(replica_url=f"file://{tmp_path}", poll_interval_s=0))
    try:
        session.lock(SHARED)
        for pgno in range(2, 100):
            assert session.read(PAGE_SIZE, (pgno - 1) * PAGE_SIZE) == pages[pgno]
        session.unlock(UNLOCKED)
        new = {pgno: page[::-1] for pgno, page in pages.items()}
        header = Header(page_size=PAGE_SIZE, commit=PAGES, min_txid=2, max_txid=2, timestamp_ms=2)
        level = tmp_path / "ltx" / "0"
        level.mkdir()
        (level / format_file_name(2, 2)).write_bytes(encode_file(header, new.items()))
        session.replica.refresh()
        session.lock(SHARED)
        for pgno in range(99, PAGES + 1):
            assert session.read(PAGE_SIZE, (pgno - 1) * PAGE_SIZE) == new[pgno]
        session.unlock(UNLOCKED)
    finally:
        session.close()


def test_what_another_file_holds_of_later_states_is_never_handed_out(pages):
    """The file of a pinned state is gone: another one has the page that is read, and newer ones after it."""
    name = "runs-elsewhere"
    store = memory_store(name)
    level = ltx_levels(store)
    level("9", 1, 1, pages)
    session = Session(Options(replica_url=f"memory://{name}", poll_interval_s=0))
    try:
        session.lock(SHARED)
        for pgno in range(2, 100):
            assert session.read(PAGE_SIZE, (pgno - 1) * PAGE_SIZE) == pages[pgno]
        changed = {pgno: pages[pgno][::-1] for pgno in range(205, PAGES + 1, 5)}  # not decoded yet
        level("0", 2, 2, changed)
        session.replica.refresh()
        level("9", 1, 2, pages | changed)
        session.replica.refresh()
        store.remove(f"9/{format_file_name(1, 1)}")
        for pgno in range(100, PAGES + 1):
            if pgno in changed:
                with pytest.raises(PageUnavailableError):
                    session.read(PAGE_SIZE, (pgno - 1) * PAGE_SIZE)
            else:
                assert session.read(PAGE_SIZE, (pgno - 1) * PAGE_SIZE) == pages[pgno]
    finally:
        session.close()
        drop_memory_store(name)


def ltx_levels(store: MemoryStore) -> Callable[[str, int, int, dict[int, bytes]], object]:
    """Puts a file of these TXIDs and pages on a level of the store."""

    def put(level: str, min_txid: int, max_txid: int, content: dict[int, bytes]) -> object:
        header = Header(page_size=PAGE_SIZE, commit=PAGES, min_txid=min_txid, max_txid=max_txid, timestamp_ms=max_txid)
        data = encode_file(header, content.items())
        return store.put(f"{level}/{format_file_name(min_txid, max_txid)}", data, 1_000 * max_txid)

    return put
