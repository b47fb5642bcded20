from __future__ import annotations

import os
import random
import sqlite3
import struct
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from litevfs.errors import WALError
from litevfs.replicate.wal import WALHeader, WALPosition, WALReader, checksum
from tests.replicate.wal_files import (
    FRAME_HEADER,
    HEADER,
    slow_checksum,
    slow_commits,
    sqlite_database,
    with_checksums,
)

PAGE_SIZES = [512 << n for n in range(8)]


@pytest.fixture
def wal_bytes(tmp_path: Path):
    """A WAL that SQLite wrote: twelve transactions of one or more frames, pages changed again, one that shrinks."""

    def write(page_size: int = 1024) -> bytes:
        path = tmp_path / f"source{page_size}.db"
        with closing(sqlite_database(path, page_size=page_size, auto_vacuum=1)) as db:
            db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, data BLOB)")
            for i in range(10):
                db.execute("INSERT INTO t (data) VALUES (randomblob(?))", (page_size * (i % 4) + 100,))
            db.execute("DELETE FROM t WHERE id % 2")
            return path.with_name(path.name + "-wal").read_bytes()

    return write


@pytest.fixture
def open_wal(tmp_path: Path):
    opened: list[WALReader] = []

    def open_bytes(data: bytes, **options: int) -> WALReader:
        path = tmp_path / f"wal{len(opened)}"
        path.write_bytes(data)
        opened.append(WALReader(path, **options))
        return opened[-1]

    yield open_bytes
    for reader in opened:
        reader.close()


def header_of(wal: WALReader) -> WALHeader:
    header = wal.header()
    assert header is not None
    return header


def assert_reads_as(wal: WALReader, data: bytes) -> None:
    """The reader says of a file what the slow reference says of its bytes."""
    commits, header = slow_commits(data), wal.header()
    if header is None:
        assert commits == []
        return
    changes = wal.changes(header, header.start)
    if not commits:
        assert changes is None
        return
    assert changes is not None
    assert (changes.end.frame, changes.commit) == (commits[-1].frame, commits[-1].size)
    pages = {int(pgno): wal.page(header, int(frame)) for pgno, frame in zip(changes.pgnos, changes.frames, strict=True)}
    assert pages == commits[-1].pages
    assert list(pages) == sorted(pages)


# --- checksums --------------------------------------------------------------------------------------------------------

words = st.integers(0, 2**32 - 1)


@given(st.binary(max_size=400).map(lambda b: b[: len(b) & ~7]), st.tuples(words, words), st.sampled_from("<>"))
def test_checksum_of_any_bytes_is_the_one_of_the_recurrence(data: bytes, seed: tuple[int, int], order: str):
    assert checksum(data, seed, big_endian=order == ">") == slow_checksum(data, *seed, order)


def test_ten_thousand_frames_are_read_and_checked_within_a_second(tmp_path: Path):
    path = tmp_path / "source.db"
    with closing(sqlite_database(path)) as db:
        db.execute("CREATE TABLE t (data BLOB)")
        db.execute("WITH n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 10000) "
                   "INSERT INTO t SELECT randomblob(3000) FROM n")  # fmt: skip
        with WALReader(f"{path}-wal") as wal:
            header = header_of(wal)
            start = time.thread_time()
            changes = wal.changes(header, header.start)
            elapsed = time.thread_time() - start
        assert changes is not None
        assert changes.end.frame > 10_000
        assert changes.commit == db.execute("PRAGMA page_count").fetchone()[0]
    assert elapsed < 1


# --- what SQLite wrote ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page_size", [PAGE_SIZES[0], 4096, PAGE_SIZES[-1]])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.slow
def test_a_whole_wal_reads_as_its_newest_pages_in_either_byte_order(wal_bytes, open_wal, page_size: int, order: str):
    data = wal_bytes(page_size)
    rewritten = with_checksums(data, order)
    native = with_checksums(data, "<") == data
    assert (rewritten == data) is (order == ("<" if native else ">")), "the reference disagrees with SQLite"
    wal = open_wal(rewritten)
    assert header_of(wal).page_size == page_size
    assert header_of(wal).big_endian is (order == ">")
    assert len(slow_commits(rewritten)) == 12
    assert_reads_as(wal, rewritten)


def test_sqlite_recovers_the_rewritten_big_endian_wal(wal_bytes, tmp_path: Path):
    """The reference that the tests above rely on is right: SQLite itself accepts what it made."""
    data = with_checksums(wal_bytes(), ">")
    (tmp_path / "copy.db").write_bytes(slow_commits(data)[0].pages[1])  # SQLite ignores the WAL of an empty file
    (tmp_path / "copy.db-wal").write_bytes(data)
    with closing(sqlite3.connect(tmp_path / "copy.db")) as db:
        assert db.execute("SELECT count(*) FROM t").fetchone() == (5,)
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_every_transaction_can_be_read_from_where_the_one_before_ended(wal_bytes, open_wal):
    data = wal_bytes()
    wal, commits = open_wal(data), slow_commits(data)
    header = header_of(wal)
    position = header.start
    for before, commit in zip([None, *commits], commits, strict=False):
        changes = wal.changes(header, position, commit.frame)
        assert changes is not None
        assert (changes.end.frame, changes.commit) == (commit.frame, commit.size)
        changed = {int(pgno): wal.page(header, int(at)) for pgno, at in zip(changes.pgnos, changes.frames, strict=True)}
        old = {} if before is None else before.pages
        assert {**old, **changed}.items() >= commit.pages.items()
        assert wal.holds(header, changes.end)
        assert wal.position(header, commit.frame) == changes.end
        position = changes.end
    assert wal.changes(header, position) is None


def test_a_limit_within_a_transaction_leaves_that_transaction_out(wal_bytes, open_wal):
    data = wal_bytes()
    wal, commits = open_wal(data), slow_commits(data)
    header = header_of(wal)
    frames = [commit.frame for commit in commits]
    for limit in range(frames[-1] + 1):
        changes = wal.changes(header, header.start, limit)
        whole = [frame for frame in frames if frame <= limit]
        assert (changes.end.frame if changes else None) == (whole[-1] if whole else None)


def test_more_frames_than_are_read_at_once_form_one_chain(wal_bytes, open_wal):
    data = wal_bytes()
    assert_reads_as(open_wal(data, read_size=3000), data)
    flipped = bytearray(data)
    flipped[HEADER + 20 * (FRAME_HEADER + 1024) + 500] ^= 1
    assert_reads_as(open_wal(bytes(flipped), read_size=3000), bytes(flipped))


# --- torn and damaged -------------------------------------------------------------------------------------------------


def test_a_torn_wal_reads_up_to_its_last_whole_transaction(wal_bytes, open_wal):
    data = wal_bytes(512)
    frame_size = 512 + FRAME_HEADER
    ends = [HEADER + n * frame_size for n in range((len(data) - HEADER) // frame_size + 1)]
    for size in sorted({0, 1, 31, *(end + step for end in ends for step in (-1, 0, 1, 23, 24, 100))}):
        if 0 <= size <= len(data):
            assert_reads_as(open_wal(data[:size]), data[:size])


@pytest.mark.parametrize("at_once", [1000, 3])  # frames: many are checked by other means than a few
@pytest.mark.parametrize("order", "<>")
@pytest.mark.slow
def test_no_flipped_bit_gets_past_the_checksums(wal_bytes, open_wal, order: str, at_once: int):
    data = with_checksums(wal_bytes(512), order)
    frame_size, rng = 512 + FRAME_HEADER, random.Random(7)
    assert (len(data) - HEADER) // frame_size > 16
    in_header = range(HEADER * 8)
    in_frame_headers = [
        (HEADER + n * frame_size + byte) * 8 + rng.randrange(8) for n in range(12) for byte in range(FRAME_HEADER)
    ]
    anywhere = [rng.randrange(len(data) * 8) for _ in range(100)]
    for bit in [*in_header, *in_frame_headers, *anywhere]:
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        assert_reads_as(open_wal(bytes(flipped), read_size=at_once * frame_size), bytes(flipped))


def test_what_an_earlier_run_left_behind_the_valid_frames_is_not_read(tmp_path: Path):
    path = tmp_path / "source.db"
    wal_path = tmp_path / "source.db-wal"
    with closing(sqlite_database(path)) as db:
        db.execute("CREATE TABLE t (data BLOB)")
        for _ in range(20):
            db.execute("INSERT INTO t VALUES (randomblob(3000))")
        before = wal_path.stat().st_size
        with WALReader(wal_path) as wal:
            header = header_of(wal)
            changes = wal.changes(header, header.start)
            assert changes is not None
            old = changes.end
            assert db.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()[0] == 0
            db.execute("INSERT INTO t VALUES ('new')")
            assert wal.size == before
            header = header_of(wal)
            assert not old.is_in(header)
            assert not wal.holds(header, old)
            assert header.salt1 == old.salt1 + 1
            assert_reads_as(wal, wal_path.read_bytes())
            with pytest.raises(ValueError, match="another run"):
                wal.changes(header, old)
            assert wal.position(header, old.frame) is None


def test_a_run_is_known_to_have_ended_while_its_last_frame_is_still_there(tmp_path: Path):
    path = tmp_path / "source.db"
    db = sqlite_database(path)
    db.execute("CREATE TABLE t (data BLOB)")
    with closing(db), WALReader(f"{path}-wal") as wal:
        for _ in range(12):  # a longer run before: its frames come behind
            db.execute("INSERT INTO t VALUES (randomblob(3000))")
        assert db.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()[0] == 0
        ends = []
        for _ in range(6):
            db.execute("INSERT INTO t VALUES (randomblob(3000))")
            header = header_of(wal)
            ends.append(wal.changes(header, header.start).end)
        assert not wal.run_before_ended_at(header, 0, ends[-1])  # it has not ended
        assert db.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()[0] == 0
        for frames in range(1, ends[-1].frame + 3):
            db.execute("UPDATE t SET data = randomblob(10) WHERE rowid = 1")
            header = header_of(wal)
            assert wal.run_before_ended_at(header, frames, ends[-1]) is (frames < ends[-1].frame)
            assert not any(wal.run_before_ended_at(header, frames, end) for end in ends[:-1])
        assert db.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()[0] == 0
        db.execute("UPDATE t SET data = randomblob(10) WHERE rowid = 1")
        assert not wal.run_before_ended_at(header_of(wal), 1, ends[-1])  # another run came between


@pytest.mark.parametrize("cut", [0, 1, 23, 24, 4120, None])
def test_where_the_file_ends_does_not_tell_where_a_run_ended(tmp_path: Path, cut: int | None):
    """With `journal_size_limit`, SQLite cuts the file when the next run begins: anywhere, or (None) here not at all."""
    path = tmp_path / "source.db"
    db = sqlite_database(path)
    db.execute("CREATE TABLE t (data BLOB)")
    with closing(db), WALReader(f"{path}-wal") as wal:
        for _ in range(6):
            db.execute("INSERT INTO t VALUES (randomblob(3000))")
        header = header_of(wal)
        end = wal.changes(header, header.start).end
        size = wal.size
        if cut is not None:
            for _ in range(6):  # what must not be taken for nothing
                db.execute("INSERT INTO t VALUES (randomblob(3000))")
            db.execute(f"PRAGMA journal_size_limit={size + cut}")
        assert db.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()[0] == 0
        db.execute("UPDATE t SET data = 'new' WHERE rowid = 1")
        assert wal.size == size + (cut or 0)
        header = header_of(wal)
        assert header.salt1 == end.salt1 + 1
        assert not wal.run_before_ended_at(header, 1, end)


def test_a_truncated_and_a_missing_wal_are_empty(tmp_path: Path):
    path = tmp_path / "source.db"
    with closing(sqlite_database(path)) as db:
        db.execute("CREATE TABLE t (data BLOB)")
        with WALReader(f"{path}-wal") as wal:
            header = header_of(wal)
            position = wal.changes(header, header.start).end
            assert db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0
            assert wal.size == 0
            assert wal.header() is None
            assert wal.position(header, position.frame) is None
            assert not wal.holds(header, position)
            with pytest.raises(WALError, match="frame 1 of the WAL is gone"):
                wal.page(header, 1)
    with WALReader(tmp_path / "none-wal") as wal:
        assert wal.size == 0
        assert wal.header() is None


def test_frames_that_were_overwritten_by_others_are_noticed(wal_bytes, open_wal):
    """Same salts, other content: what a power failure can leave when later transactions take the place of lost ones."""
    data = wal_bytes(512)
    wal = open_wal(data)
    header = header_of(wal)
    end = wal.changes(header, header.start).end
    other = bytearray(data)
    other[HEADER + 2 * 536 + 200] ^= 255
    rewritten = open_wal(with_checksums(bytes(other), "<" if not header.big_endian else ">"))
    assert rewritten.changes(header, header.start).end.frame == end.frame
    assert not rewritten.holds(header, end)


def test_a_header_that_sqlite_would_not_accept_is_none():
    body = struct.pack(">6I", 0x377F0682, 3007000, 4096, 0, 1, 2)

    def header(body: bytes) -> WALHeader | None:
        return WALHeader.parse(body + struct.pack(">2I", *slow_checksum(body, 0, 0, "<")))

    assert header(body) == WALHeader(4096, 0, 1, 2, *slow_checksum(body, 0, 0, "<"), big_endian=False)
    assert header(body).start == WALPosition(1, 2, 0, *slow_checksum(body, 0, 0, "<"))
    for at, value in ((0, 0x377F0684), (4, 3007001), (8, 4095), (8, 256), (8, 131072), (8, 0)):
        assert header(body[:at] + struct.pack(">I", value) + body[at + 4 :]) is None
    assert WALHeader.parse(body) is None


def test_a_system_that_gives_less_than_was_asked_for_is_asked_again(wal_bytes, open_wal, monkeypatch):
    wal, pread = open_wal(wal_bytes()), os.pread
    header = header_of(wal)
    expected = wal.changes(header, header.start)
    page = wal.page(header, 1)
    monkeypatch.setattr(os, "pread", lambda fd, size, offset: pread(fd, min(size, 1000), offset))
    changes = wal.changes(header, header.start)
    assert changes.end == expected.end
    assert wal.page(header, 1) == page


def test_a_position_is_in_a_run_when_both_salts_are_the_run_s():
    header = WALHeader(4096, 0, 1, 2, 3, 4, big_endian=False)
    assert [WALPosition(*salts, 5, 6, 7).is_in(header) for salts in ((1, 2), (1, 3), (3, 2))] == [True, False, False]


def test_pages_above_the_last_commit_are_left_out(wal_bytes, open_wal):
    data = wal_bytes()
    wal = open_wal(data)
    header = header_of(wal)
    changes = wal.changes(header, header.start)
    biggest = max(commit.size for commit in slow_commits(data))
    assert changes.commit < biggest
    assert np.all(changes.pgnos <= changes.commit)
