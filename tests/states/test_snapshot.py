"""The page map against a plain model of a history: advance, relocate, shrink, grow, and what is forgotten."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from litevfs.errors import LTXFormatError, LTXMissingPagesError, PageUnavailableError, TXIDGapError
from litevfs.ltx.format import Header, lock_pgno
from litevfs.ltx.page_index import PageIndex
from litevfs.replica_clients.base import LTXFileInfo
from litevfs.states.changes import changed_pgnos, in_storage_order
from litevfs.states.chunks import CHUNK_PAGES, FRAME_SIZE_BITS, FRAME_SIZE_MASK, MAX_FRAME_OFFSET
from litevfs.states.snapshot import NumberedFile, Snapshot, Versions, empty_snapshot
from tests.support import missing_pages

# Around the borders of chunks: what lies between behaves like its neighbours.
PAGES = (1, 2, 3, 1023, 1024, 1025, 1026, 2047, 2048, 2049, 3000)
PAGE_SIZE = 4096


@dataclass
class History:
    """The truth: which pages each transaction wrote, and how large it left the database."""

    commits: list[int] = field(default_factory=lambda: [0])
    writes: list[set[int]] = field(default_factory=lambda: [set()])

    @property
    def newest(self) -> int:
        return len(self.commits) - 1

    def add(self, commit: int, pages: set[int]) -> None:
        grown = set(range(self.commits[-1] + 1, commit + 1))  # SQLite writes what it adds
        self.commits.append(commit)
        self.writes.append({p for p in pages if p <= commit} | grown)

    def born(self, pgno: int, txid: int) -> int:
        """The transaction that brought the content page `pgno` has after `txid`; 0 if it has none."""
        if pgno > self.commits[txid]:
            return 0
        return max((t for t in range(1, txid + 1) if pgno in self.writes[t]), default=0)

    def pages_of(self, min_txid: int, max_txid: int) -> list[int]:
        """What the file of a range of transactions holds."""
        pages = set().union(*self.writes[min_txid : max_txid + 1])
        return sorted(p for p in pages if p <= self.commits[max_txid])


def numbered(
    history: History, number: int, min_txid: int, max_txid: int, *, page_size: int = PAGE_SIZE
) -> NumberedFile:
    pages = history.pages_of(min_txid, max_txid)
    index = PageIndex(
        np.array(pages, np.uint32),
        np.array([number * 100_000 + p for p in pages], np.uint64),
        np.array([number * 10 + p % 7 for p in pages], np.uint32),
    )
    header = Header(page_size, history.commits[max_txid], min_txid, max_txid, timestamp_ms=max_txid * 1000)
    return NumberedFile(number, LTXFileInfo(0, min_txid, max_txid, 10**6, 0), header, index)


def count_uses(snapshot: Snapshot) -> Counter[int]:
    uses: Counter[int] = Counter()
    for chunk in snapshot.chunks:
        uses.update(chunk.file_array.tolist())
    del uses[0]
    return uses


def check(snapshot: Snapshot, history: History, born_by_version: dict[tuple[int, int], int]) -> None:
    assert snapshot.commit == history.commits[snapshot.txid]
    assert snapshot.timestamp_ms == snapshot.txid * 1000
    for pgno in PAGES:
        born = history.born(pgno, snapshot.txid)
        if not born:
            assert snapshot.file_number(pgno) == snapshot.version(pgno) == 0
            continue
        number, offset, size = snapshot.place(pgno)
        assert (offset, size) == (number * 100_000 + pgno, number * 10 + pgno % 7)
        file = snapshot.files[number]
        assert max(t for t in range(file.min_txid, file.max_txid + 1) if pgno in history.writes[t]) == born
        # Equal versions mean equal content, in all snapshots there ever were.
        assert born_by_version.setdefault((snapshot.version(pgno), pgno), born) == born
    uses = count_uses(snapshot)
    assert dict(snapshot.uses) == dict(uses)
    assert set(snapshot.files) == set(uses)
    assert len(snapshot.chunks) == (snapshot.commit + CHUNK_PAGES - 1) // CHUNK_PAGES
    assert snapshot.index_bytes() <= 18 * len(snapshot.chunks) * CHUNK_PAGES
    assert all(len(chunk.versions) == CHUNK_PAGES for chunk in snapshot.chunks[:-1])


_transactions = st.lists(
    st.tuples(st.sampled_from(PAGES), st.sets(st.sampled_from(PAGES), max_size=4)), min_size=1, max_size=8
)


@settings(max_examples=75)
@given(_transactions, st.data())
@pytest.mark.slow
def test_any_order_of_files_gives_the_state_of_the_newest_txid(transactions, data):
    history = History()
    for commit, pages in transactions:
        history.add(commit, pages)
    snapshot = empty_snapshot()
    seen: list[Snapshot] = []
    born_by_version: dict[tuple[int, int], int] = {}
    for number in range(1, data.draw(st.integers(1, 12)) + 1):
        min_txid = data.draw(st.integers(1, min(snapshot.txid + 1, history.newest)))
        max_txid = data.draw(st.integers(min_txid, history.newest))
        before = snapshot
        snapshot = snapshot.apply(numbered(history, number, min_txid, max_txid))
        assert snapshot.txid == max(before.txid, max_txid)
        assert (snapshot.change_counter != before.change_counter) == (snapshot.txid != before.txid)
        check(snapshot, history, born_by_version)
        seen.append(snapshot)
    for old in seen:  # none of the later ones has changed an earlier one
        check(old, history, born_by_version)


def history_of(*transactions: tuple[int, set[int]]) -> History:
    history = History()
    for commit, pages in transactions:
        history.add(commit, pages)
    return history


def test_a_late_compacted_file_does_not_bring_back_old_content():
    """Litestream's VFS does (known wrong, a): stale rows under a newer TXID."""
    history = history_of((3, set()), (3, {2}), (3, {2}))
    state = empty_snapshot()
    for txid in (1, 2, 3):
        state = state.apply(numbered(history, txid, txid, txid))
    late = state.apply(numbered(history, 4, 1, 2))
    assert (late.txid, late.file_number(2), late.version(2)) == (3, 3, 3)
    assert (late.file_number(1), late.version(1)) == (4, 1)  # same content, another place


def test_a_late_file_of_a_smaller_database_does_not_shrink_it():
    """Known wrong, a'."""
    history = history_of((3, set()), (3, {1}), (1025, set()))
    state = empty_snapshot()
    for txid in (1, 2, 3):
        state = state.apply(numbered(history, txid, txid, txid))
    assert state.apply(numbered(history, 4, 1, 2)).commit == 1025


@pytest.mark.plan("L21")
def test_a_shrink_forgets_what_lies_above_and_keeps_the_rest():
    """Known wrong, b."""
    history = history_of((3000, set()), (1024, {1}))
    state = empty_snapshot().apply(numbered(history, 1, 1, 1))
    shrunk = state.apply(numbered(history, 2, 2, 2))
    assert [shrunk.file_number(p) for p in PAGES] == [2, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0]
    assert len(shrunk.chunks) == 1
    assert state.file_number(3000) == 1
    with pytest.raises(PageUnavailableError, match="page 1025"):
        shrunk.place(1025)


@pytest.mark.plan("L21")
def test_pages_that_come_back_after_a_shrink_are_not_relocated_to_their_old_content():
    history = history_of((1025, set()), (3, {1}), (1025, set()))
    state = empty_snapshot()
    for txid in (1, 2, 3):
        state = state.apply(numbered(history, txid, txid, txid))
    again = state.apply(numbered(history, 4, 1, 1))
    assert (again.file_number(1025), again.version(1025)) == (3, 3)
    assert (again.file_number(3), again.version(3)) == (4, 1)


def test_a_database_may_shrink_to_nothing_and_come_back():
    history = history_of((1025, set()), (0, set()), (3, set()))
    state = empty_snapshot().apply(numbered(history, 1, 1, 1)).apply(numbered(history, 2, 2, 2))
    assert (state.size_bytes, state.chunks, state.files, dict(state.uses)) == (0, (), {}, {})
    assert missing_pages(state.apply(numbered(history, 3, 3, 3))) == 0


@pytest.mark.plan("L04")
def test_the_map_of_a_small_database_is_small_and_grows_with_it():
    state = empty_snapshot()
    sizes = [1, 2, 16, 17, 100, 2047, 2048, 2049, 3000, 4097]
    for txid, commit in enumerate(sizes, 1):
        first = state.commit + 1
        pgnos = np.unique(np.array([1, *range(first, commit + 1)], np.uint32))
        index = PageIndex(pgnos, pgnos.astype(np.uint64) * 100 + txid, np.full(len(pgnos), 100, np.uint32))
        header = Header(PAGE_SIZE, commit, txid, txid, timestamp_ms=0)
        newer = state.apply(NumberedFile(txid, LTXFileInfo(0, txid, txid, 10**6, 0), header, index))
        assert changed_pgnos(state, newer).tolist() == pgnos.tolist()
        assert newer.index_bytes() <= 18 * max(16, 2 * commit)
        assert [newer.file_number(pgno) for pgno in (1, first, commit)] == [txid] * 3
        assert missing_pages(newer) == 0
        state = newer


@pytest.mark.plan("L04")
def test_the_map_is_as_large_as_the_database_not_as_its_history():
    commit = 5 * CHUNK_PAGES
    header = Header(PAGE_SIZE, commit, 1, 1, timestamp_ms=0)
    pgnos = np.arange(1, commit + 1, dtype=np.uint32)
    index = PageIndex(pgnos, pgnos.astype(np.uint64) * 100, np.full(commit, 100, np.uint32))
    state = empty_snapshot().apply(NumberedFile(1, LTXFileInfo(0, 1, 1, 10**6, 0), header, index))
    before = state.index_bytes()
    few = PageIndex(pgnos[:3], index.offsets[:3], index.sizes[:3])
    for txid in range(2, 2002):
        header = Header(PAGE_SIZE, commit, txid, txid, timestamp_ms=0)
        state = state.apply(NumberedFile(txid, LTXFileInfo(0, txid, txid, 10**6, 0), header, few))
    assert state.index_bytes() == before <= 20 * commit
    assert set(state.files) == {1, 2001}


@pytest.mark.plan("L03")
@pytest.mark.parametrize("first", [4, 5])
def test_a_file_that_does_not_connect_is_refused_with_the_missing_txids(first):
    history = history_of(*[(3, {1})] * 6)
    state = empty_snapshot().apply(numbered(history, 1, 1, 2))
    with pytest.raises(TXIDGapError) as caught:
        state.apply(numbered(history, 2, first, 6))
    assert (caught.value.min_txid, caught.value.max_txid) == (3, first - 1)


def test_a_change_of_the_page_size_without_all_pages_is_refused():
    history = history_of((3, set()), (3, {1}))
    state = empty_snapshot().apply(numbered(history, 1, 1, 1))
    with pytest.raises(LTXFormatError, match="page size changes from 4096 to 8192") as caught:
        state.apply(numbered(history, 2, 2, 2, page_size=8192))
    assert caught.value.hint


def test_a_file_with_all_pages_changes_the_page_size_and_older_files_relocate_nothing_after_it():
    history = history_of((9, set()), (3, {1, 2, 3}), (3, {2}))
    before = empty_snapshot().apply(numbered(history, 1, 1, 1))
    after = before.apply(numbered(history, 2, 2, 2, page_size=8192))
    assert (after.page_size, after.commit, after.txid, set(after.files)) == (8192, 3, 2, {2})
    assert after.apply(numbered(history, 3, 1, 1)) is after
    assert not {before.version(pgno) for pgno in (1, 2, 3)} & {after.version(pgno) for pgno in (1, 2, 3)}
    born: dict[tuple[int, int], int] = {}
    for state in (before, after, after.apply(numbered(history, 4, 3, 3, page_size=8192))):
        check(state, history, born)
    assert (before.epoch, before.versions) == (after.epoch, after.versions)


@pytest.mark.parametrize("pgno", [0, -1, 4, 10**9])
def test_a_page_outside_of_the_database_is_in_no_file(pgno):
    state = empty_snapshot().apply(numbered(history_of((3, set())), 1, 1, 1))
    assert (state.file_number(pgno), state.version(pgno)) == (0, 0)
    with pytest.raises(PageUnavailableError):
        state.place(pgno)


def test_no_page_may_be_missing_but_the_lock_page():
    lock = lock_pgno(65536)
    pgnos = np.array([p for p in range(1, lock + 3) if p != lock], np.uint32)
    header = Header(65536, lock + 2, 1, 1, timestamp_ms=0)
    index = PageIndex(pgnos, pgnos.astype(np.uint64), np.ones(len(pgnos), np.uint32))
    whole = empty_snapshot().apply(NumberedFile(1, LTXFileInfo(0, 1, 1, 10**6, 0), header, index))
    assert missing_pages(whole) == 0
    holed = PageIndex(pgnos[1:], index.offsets[1:], index.sizes[1:])
    with pytest.raises(LTXMissingPagesError, match="page 1 is in no file"):
        empty_snapshot().apply(NumberedFile(1, whole.files[1], header, holed))


def test_the_change_counter_wraps():
    history = history_of((3, set()))
    state = empty_snapshot(change_counter=0xFFFFFFFF).apply(numbered(history, 1, 1, 1))
    assert state.change_counter == 0


@pytest.mark.plan("D14")
def test_txids_at_the_end_of_their_range_are_kept_as_they_are():
    header = Header(PAGE_SIZE, 1, 1, 2**64 - 2, timestamp_ms=0)
    index = PageIndex(np.array([1], np.uint32), np.array([100], np.uint64), np.array([50], np.uint32))
    state = empty_snapshot().apply(NumberedFile(1, LTXFileInfo(9, 1, 2**64 - 2, 10**6, 0), header, index))
    last = Header(PAGE_SIZE, 1, 2**64 - 1, 2**64 - 1, timestamp_ms=0)
    state = state.apply(NumberedFile(2, LTXFileInfo(0, 2**64 - 1, 2**64 - 1, 10**6, 0), last, index))
    assert (state.txid, state.file_number(1)) == (2**64 - 1, 2)


# --- versions ---------------------------------------------------------------------------------------------------------

_txids = st.one_of(
    st.integers(1, 20),
    st.integers(Versions.FIRST_FAR - 2, Versions.FIRST_FAR + 22),  # around the last one that is near the first
    st.integers(2**64 - 20, 2**64 - 1),
)


@pytest.mark.plan("D14")
@given(st.lists(_txids, min_size=1), st.lists(_txids))
def test_codes_of_txids_are_as_good_as_the_txids_themselves(txids, limits):
    versions = Versions()
    codes = np.array([0, *(versions.code(txid) for txid in txids)], np.uint32)
    assert [versions.code(txid) for txid in txids] == codes[1:].tolist()
    assert len(set(codes.tolist())) == 1 + len(set(txids))
    for limit in [*txids, *limits]:
        assert versions.are_at_most(codes, limit).tolist() == [False, *(txid <= limit for txid in txids)]


@pytest.mark.plan("D14")
@pytest.mark.parametrize("first", [2, 2**40, 2**64 - 2])
def test_pages_are_relocated_however_far_apart_their_txids_are(first):
    """The files of one transaction each make way for one that holds them all, then for one that does not."""
    spans = [(1, 1), (2, first), (first + 1, first + 1), (1, first + 1), (1, first)]
    state = empty_snapshot()
    for number, (min_txid, max_txid) in enumerate(spans, start=1):
        pgnos = [1, 2, 3] if min_txid == 1 else [number]
        index = PageIndex(
            np.array(pgnos, np.uint32), np.array(pgnos, np.uint64) * 100, np.full(len(pgnos), 100, np.uint32)
        )
        header = Header(PAGE_SIZE, 3, min_txid, max_txid, timestamp_ms=0)
        state = state.apply(NumberedFile(number, LTXFileInfo(0, min_txid, max_txid, 10**6, 0), header, index))
    assert [state.file_number(pgno) for pgno in (1, 2, 3)] == [5, 5, 4]


# --- limits -----------------------------------------------------------------------------------------------------------


def one_frame(offset: int, size: int) -> NumberedFile:
    index = PageIndex(np.array([1], np.uint32), np.array([offset], np.uint64), np.array([size], np.uint32))
    header = Header(PAGE_SIZE, 1, 1, 1, timestamp_ms=0)
    return NumberedFile(1, LTXFileInfo(0, 1, 1, offset + size + 100, 0), header, index)


def test_the_last_place_that_the_map_can_name_is_named():
    state = empty_snapshot().apply(one_frame(MAX_FRAME_OFFSET - 1, FRAME_SIZE_MASK))
    assert state.place(1) == (1, MAX_FRAME_OFFSET - 1, FRAME_SIZE_MASK)
    assert MAX_FRAME_OFFSET << FRAME_SIZE_BITS == 2**64


def test_a_file_with_a_frame_past_what_the_map_can_name_is_refused():
    with pytest.raises(LTXFormatError, match="128 TiB"):
        empty_snapshot().apply(one_frame(MAX_FRAME_OFFSET, 100))


@pytest.mark.parametrize("order", ["ascending", "descending", "scattered"])
def test_pages_in_any_order_are_put_into_that_of_the_files(order: str):
    """Of more pages than a chunk has, by two files: the second wrote each third page again."""
    count = 2 * CHUNK_PAGES + 10
    history = history_of((count, set(range(1, count + 1))), (count, set(range(1, count + 1, 3))))
    snapshot = empty_snapshot()
    for txid in (1, 2):
        snapshot = snapshot.apply(numbered(history, txid, txid, txid))
    pgnos = np.arange(1, count + 1, dtype=np.int64)
    given_pgnos = {"ascending": pgnos, "descending": pgnos[::-1], "scattered": pgnos * 7919 % count + 1}[order]
    found = in_storage_order(snapshot, given_pgnos).tolist()
    assert found == sorted(given_pgnos.tolist(), key=lambda pgno: (snapshot.file_number(pgno), snapshot.place(pgno)[1]))
