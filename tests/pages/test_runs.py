"""Pages decoded at once are the same pages, and a damaged one among them is its own read's error alone."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from litevfs.errors import LTXFormatError
from litevfs.live.replica import Replica
from litevfs.ltx import Header, format_file_name
from litevfs.ltx.encoder import encode_file
from litevfs.options import Options
from litevfs.pages.runs import MAX_GAP_BYTES, Runs, run_from

PAGE_SIZE, PAGES = 4096, 400
"""More than 1 MiB of frames: such a file is not verified when it is opened."""


def lengths(runs: Runs, reads: list[int], most: int = 32) -> list[int]:
    return [runs.length_from(pgno, most) for pgno in reads]


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
        assert run.pgnos == list(range(PAGES - 3, PAGES + 1))
        assert run.end == sum(replica.snapshot.place(PAGES)[1:])
        frames = replica.snapshot.chunks[0].frames
        frames[PAGES - 2] += (MAX_GAP_BYTES + PAGE_SIZE) << 17  # as if others lay between
        assert run_from(replica.snapshot, PAGES - 3, 64).pgnos == [PAGES - 3, PAGES - 2]
    finally:
        replica.close()
