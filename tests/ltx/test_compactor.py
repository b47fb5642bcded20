from __future__ import annotations

import json
import random
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from litevfs.errors import LTXChecksumError, LTXFormatError
from litevfs.ltx import LTXFile, compact, decode_file
from tests.ltx.reference import BIT_63, File, checksum_of_database, old_frame, page_of

ORDERS = Path(__file__).parents[1] / "fixtures" / "orders"


def compacted(files: list[LTXFile]) -> LTXFile:
    return decode_file(b"".join(compact(files)))


def state_after(files) -> dict[int, bytes]:
    """What a database that applies file after file ends up with: a dict, page by page."""
    state: dict[int, bytes] = {}
    for file in files:
        state.update(file.all_pages)
    return {pgno: page for pgno, page in sorted(state.items()) if pgno <= files[-1].commit}


@st.composite
def histories(draw) -> list[File]:
    """Files of one database, contiguous or overlapping, that grows, shrinks and changes; from TXID 1 or later on."""
    random_ = draw(st.randoms(use_true_random=False))
    has_checksums = draw(st.booleans())
    state: dict[int, bytes] = {}
    files: list[File] = []
    txid = 0
    if draw(st.booleans()):
        state = {pgno: page_of(pgno, 512, 500) for pgno in range(1, 6)}
        txid = draw(st.integers(1, 2**63))
    for seed in range(draw(st.integers(1, 6))):
        commit = draw(st.integers(1, 12))
        changed = {pgno for pgno in range(1, commit + 1) if pgno > len(state) or random_.random() < 0.3}
        before = checksum_of_database(state.items())
        pages = [(pgno, page_of(pgno, 512, seed)) for pgno in sorted(changed)]
        overlap = draw(st.integers(0, 2)) if files and not has_checksums else 0
        min_txid = max(2, txid + 1 - overlap) if txid else 1
        txid += draw(st.integers(1, 3))
        state = {pgno: page for pgno, page in {**state, **dict(pages)}.items() if pgno <= commit}
        post = checksum_of_database(state.items()) if has_checksums else 0
        pre = before if has_checksums and min_txid > 1 else 0
        flags = 0 if has_checksums else 2
        files.append(File(512, commit, min_txid, txid, flags, pre, post, timestamp_ms=seed, pages=pages))
    return files


@settings(max_examples=80)
@given(histories())
@pytest.mark.slow
def test_result_does_what_the_files_do_one_after_another(history: list[File]):
    result = compacted([decode_file(file.write()) for file in history])
    assert dict(result.pages()) == state_after(history)
    first, last = history[0], history[-1]
    header = result.header
    assert (header.min_txid, header.max_txid) == (first.min_txid, last.max_txid)
    assert (header.page_size, header.commit, header.timestamp_ms) == (512, last.commit, last.timestamp_ms)
    assert (header.flags, header.pre_apply_checksum) == (first.flags, first.pre)
    assert (header.wal_offset, header.wal_size, header.wal_salt1, header.wal_salt2, header.node_id) == (0, 0, 0, 0, 0)
    assert result.trailer.post_apply_checksum == last.post


@settings(max_examples=40)
@given(histories().filter(lambda history: len(history) >= 3), st.data())
@pytest.mark.slow
def test_compacting_in_steps_gives_the_same_file(history: list[File], data):
    files = [decode_file(file.write()) for file in history]
    cut = data.draw(st.integers(1, len(files) - 1))
    at_once = b"".join(compact(files))
    in_steps = b"".join(compact([compacted(files[:cut]), compacted(files[cut:])]))
    assert in_steps == at_once


def litestream_files() -> list[LTXFile]:
    return [decode_file(path.read_bytes()) for path in sorted(ORDERS.glob("replica/ltx/0/*.ltx"))]


def answers(pages: dict[int, bytes], queries: dict[str, str]) -> dict[str, object]:
    image = bytearray(b"".join(pages[pgno] for pgno in sorted(pages)))
    image[18:20] = b"\1\1"  # no WAL: sqlite3 opens an image in memory only so
    connection = sqlite3.connect(":memory:")
    try:
        connection.deserialize(bytes(image))
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        rows = {name: connection.execute(query).fetchall() for name, query in queries.items()}
    finally:
        connection.close()
    return {name: [row[0] for row in found] if name == "tables" else found[0][0] for name, found in rows.items()}


@pytest.mark.parametrize("count", range(1, 13))
def test_files_of_litestream_become_the_database_it_answered_from(count: int):
    expected = json.loads((ORDERS / "expected.json").read_text())
    result = compacted(litestream_files()[:count])
    assert answers(dict(result.pages()), expected["queries"]) == expected["expected_by_txid"][f"{count:016x}"]


def update(min_txid: int, max_txid: int, pgnos=(1,), **fields) -> LTXFile:
    pages = [(pgno, page_of(pgno, fields.get("page_size", 512), max_txid)) for pgno in pgnos]
    return decode_file(File(**{"commit": 9, "pages": pages, **fields}, min_txid=min_txid, max_txid=max_txid).write())


def test_nothing_cannot_be_compacted():
    with pytest.raises(LTXFormatError, match="there are none"):
        compact([])


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((2, 4), (6, 7)),
        ((2, 4), (2, 4)),
        ((2, 4), (3, 4)),
        ((2, 4), (2, 3)),
        ((5, 6), (2, 4)),
        ((2, 2), (2**64 - 1,) * 2),
    ],
)
def test_files_that_are_not_contiguous_are_refused_before_the_first_byte(first, second):
    with pytest.raises(LTXFormatError, match="not contiguous"):
        compact([update(*first), update(*second)])


@pytest.mark.plan("D14")
@pytest.mark.parametrize(
    ("first", "second"), [((2**63 - 1, 2**63 - 1), (2**63, 2**63)), ((2, 2**64 - 2), (2**64 - 1, 2**64 - 1))]
)
def test_largest_txids_are_contiguous(first, second):
    header = compacted([update(*first), update(*second)]).header
    assert (header.min_txid, header.max_txid) == (first[0], second[1])


def test_nothing_follows_the_last_txid():
    with pytest.raises(LTXFormatError, match="not contiguous"):
        compact([update(2, 2**64 - 1), update(2, 2)])


def test_of_files_before_a_new_page_size_nothing_is_left():
    whole = File(page_size=1024, commit=2, min_txid=3, max_txid=3, pages=[(n, bytes([n]) * 1024) for n in (1, 2)])
    after = File(page_size=1024, commit=2, min_txid=4, max_txid=4, pages=[(2, b"x" * 1024)])
    result = compacted([update(2, 2), *(decode_file(file.write()) for file in (whole, after))])
    assert (result.header.min_txid, result.header.max_txid, result.header.page_size) == (2, 4, 1024)
    assert dict(result.pages()) == {1: b"\1" * 1024, 2: b"x" * 1024}


def test_a_new_page_size_without_all_pages_is_refused():
    with pytest.raises(LTXFormatError, match="page size changes from 512 to 1024"):
        compacted([update(2, 2), update(3, 3, page_size=1024)])


def test_result_has_no_checksums_when_one_input_has_none():
    tracked = {"flags": 0, "pre": BIT_63 | 1, "post": BIT_63 | 1}
    for files in ([update(2, 2, **tracked), update(3, 3)], [update(2, 2), update(3, 3, **tracked)]):
        result = compacted(files)
        assert not result.header.has_checksums
        assert (result.header.pre_apply_checksum, result.trailer.post_apply_checksum) == (0, 0)


def test_files_of_different_histories_are_refused():
    first = update(2, 2, flags=0, pre=BIT_63 | 1, post=BIT_63 | 2)
    second = update(3, 3, flags=0, pre=BIT_63 | 3, post=BIT_63 | 4)
    with pytest.raises(LTXChecksumError, match="database checksum is 8000000000000002 after"):
        compact([first, second])


def test_snapshot_that_would_lack_pages_is_refused():
    snapshot = decode_file(File(commit=3).write())
    grown_with_a_hole = update(2, 2, pgnos=(5,), commit=5)
    with pytest.raises(LTXFormatError, match="page 5 of a snapshot comes where page 4 should"):
        b"".join(compact([snapshot, grown_with_a_hole]))


def test_one_file_becomes_itself():
    file = decode_file(File(commit=3).write())
    assert b"".join(compact([file])) == file.data


def test_old_frames_are_taken_over_as_they_are():
    frames = [old_frame(pgno, page_of(pgno, 512)) for pgno in (1, 2, 3)]
    file = decode_file(File(frames=frames).write())
    result = compacted([file, update(2, 2, pgnos=(2,), commit=3)])
    assert (result.frame(0), result.frame(2)) == (frames[0], frames[2])
    assert result.page(2) == page_of(2, 512, 2)


class Watched:
    """A file that counts the frames it was asked for."""

    def __init__(self, file: LTXFile) -> None:
        self.header, self.trailer = file.header, file.trailer
        self.file = file
        self.given = 0

    def frames(self) -> Iterator[tuple[int, bytes]]:
        for pgno, frame in self.file.frames():
            self.given += 1
            yield pgno, frame


def test_frames_are_asked_for_one_by_one_and_only_when_they_are_needed():
    random_ = random.Random(5)
    commits = {txid: 300 if txid == 9 else 400 for txid in range(2, 10)}
    files = [
        Watched(update(txid, txid, sorted(random_.sample(range(1, commit), 100)), commit=commit))
        for txid, commit in commits.items()
    ]
    pieces = compact(files)
    assert not any(file.given for file in files)
    next(pieces)
    assert not any(file.given for file in files)
    next(pieces)
    assert all(file.given == 1 for file in files)  # one of each is in memory
    b"".join(pieces)
    assert files[-1].given == 100
    assert all(file.given < 100 for file in files[:-1])  # none of the pages above the last commit but the first
    result = decode_file(b"".join(compact([file.file for file in files])))
    assert int(np.max(result.index.pgnos)) <= 300


def test_damaged_frame_ends_the_compaction():
    class Damaged(Watched):
        def frames(self) -> Iterator[tuple[int, bytes]]:
            return ((pgno, frame[:-1]) for pgno, frame in super().frames())

    with pytest.raises(LTXFormatError, match="damaged LTX frame of page 1"):
        b"".join(compact([Damaged(update(2, 2))]))
