"""Sums of pages on disk count for the state that they lead to, and for no other, whatever happened to the files."""

from __future__ import annotations

import random
import resource
from pathlib import Path

import pytest

from litevfs.replicate.access import Access
from litevfs.replicate.known_pages import SUM_SIZE, UNKNOWN, FileKey, KnownPages

PAGE_SIZE = 4096


def key(txid: int, made: int = 0) -> FileKey:
    return FileKey(txid, 100 + txid, f"{txid:016x}{made:016x}")


def sum_of(number: int) -> bytes:
    return number.to_bytes(SUM_SIZE, "little")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "state").mkdir()
    return tmp_path / "state"


def opened(folder: Path, at: FileKey | None) -> KnownPages:
    known = KnownPages(folder, Access(folder / "app.db"), lambda: True)
    known.open(at)
    return known


def begun(folder: Path, pages: int = 4) -> KnownPages:
    """TXID 1, whose pages 1, 2, ... have the sums 1, 2, ..."""
    known = opened(folder, None)
    known.prepare(key(1), PAGE_SIZE, b"".join(sum_of(n) for n in range(1, pages + 1)))
    known.confirm()
    return known


def added(known: KnownPages, at: FileKey, commit: int, sums: dict[int, int]) -> None:
    known.add(at, commit, list(sums), b"".join(sum_of(n) for n in sums.values()))
    known.confirm()


def read(folder: Path, at: FileKey) -> list[int] | None:
    sums = opened(folder, at).read(at, PAGE_SIZE)
    if sums is None:
        return None
    return [int.from_bytes(sums[n : n + SUM_SIZE], "little") for n in range(0, len(sums), SUM_SIZE)]


def test_sums_follow_the_database_as_it_grows_and_shrinks(folder: Path):
    known = begun(folder)
    added(known, key(2), 6, {1: 21, 5: 25, 6: 26})
    assert read(folder, key(2)) == [21, 2, 3, 4, 25, 26]
    added(known, key(3), 2, {1: 31})
    added(known, key(4), 4, {1: 41, 4: 44})
    assert read(folder, key(4)) == [41, 2, 0, 44]  # of page 3 nothing is known: it was cut off
    assert known.read(key(4), PAGE_SIZE) == opened(folder, key(4)).read(key(4), PAGE_SIZE)


def test_pages_without_a_sum_are_unknown_until_it_is_found(folder: Path):
    known = begun(folder)
    known.add(key(2), 5, [1, 2, 4, 5], sum_of(21))
    known.confirm()
    assert read(folder, key(2)) == [21, 0, 3, 0, 0]
    assert (known.unknown(2), known.unknown(9)) == ([2, 4], [2, 4, 5])
    added(known, key(2), 5, {2: 22, 4: 24})
    assert known.unknown(9) == opened(folder, key(2)).unknown(9) == [5]
    assert read(folder, key(2)) == [21, 22, 3, 24, 0]
    known.add(key(3), 5, [1], b"")
    known.confirm()
    assert known.unknown(9) == opened(folder, key(3)).unknown(9) == [1, 5]


def test_all_pages_are_unknown_where_no_sums_are_left(folder: Path):
    known = opened(folder, None)
    known.prepare(key(7), PAGE_SIZE, b"", 3)
    known.confirm()
    assert (read(folder, key(7)), known.unknown(9)) == ([0, 0, 0], [1, 2, 3])


def test_the_lock_page_is_never_asked_for(folder: Path):
    known = opened(folder, None)
    known.prepare(key(1), 65536, b"".join(sum_of(n) for n in range(1, 16384)) + UNKNOWN * 2)
    known.confirm()
    assert known.unknown(9) == [16384]  # and not 16385, which lies at 1 GiB


@pytest.mark.parametrize("other", [key(1), key(3), key(2, made=1), FileKey(2, 99, key(2).trailer)])
def test_sums_count_for_no_other_state(folder: Path, other: FileKey):
    added(begun(folder), key(2), 4, {1: 21})
    known = opened(folder, other)
    assert known.is_at(other, PAGE_SIZE) is (other == key(1))  # which they led to
    assert read(folder, other) == ([1, 2, 3, 4] if other == key(1) else None)
    assert not opened(folder, key(2)).is_at(key(2), 2 * PAGE_SIZE)


def test_a_record_whose_state_was_not_saved_does_not_count_and_is_written_over(folder: Path):
    known = begun(folder)
    known.add(key(2), 5, [1, 2, 3, 5], sum_of(21) * 4)
    assert read(folder, key(2)) is not None  # had it been saved before the process was killed
    known = opened(folder, key(1))
    added(known, key(2, made=1), 4, {4: 24})
    assert read(folder, key(2, made=1)) == [1, 2, 3, 24]
    assert read(folder, key(2)) is None
    known.add(key(3), 4, [1], sum_of(31))  # not confirmed
    added(known, key(3, made=1), 4, {2: 32})
    assert read(folder, key(3, made=1)) == [1, 32, 3, 24]


def test_sums_that_were_prepared_do_not_count_before_they_are_confirmed(folder: Path):
    known = begun(folder)
    known.prepare(key(2), PAGE_SIZE, sum_of(9) * 4)
    assert (read(folder, key(1)), read(folder, key(2))) == ([1, 2, 3, 4], None)
    known.confirm()
    assert (read(folder, key(1)), read(folder, key(2))) == (None, [9, 9, 9, 9])


def test_a_log_of_sums_before_does_not_continue_new_ones(folder: Path):
    known = begun(folder)
    added(known, key(2), 4, {1: 21})
    added(known, key(3), 4, {2: 32})
    known.prepare(key(2), PAGE_SIZE, sum_of(9) * 4)  # as after a state that was set back
    known.confirm()
    assert read(folder, key(3)) is None
    assert read(folder, key(2)) == [9, 9, 9, 9]


def test_a_long_log_is_merged_and_nothing_is_lost(folder: Path):
    known, sums = begun(folder, 2000), list(range(1, 2001))
    rng = random.Random(3)
    for txid in range(2, 30):
        changed = dict.fromkeys(sorted(rng.sample(range(1, 2001), 700)), txid)
        added(known, key(txid), 2000, changed)
        known.merge(key(txid))
        sums = [changed.get(n, before) for n, before in enumerate(sums, 1)]
        assert sum(path.stat().st_size for path in folder.iterdir()) < 300_000
        assert read(folder, key(txid)) == sums


@pytest.mark.parametrize("name", ["pages.sums", "pages.log"])
def test_no_flipped_bit_and_no_missing_end_makes_a_wrong_sum(folder: Path, name: str):
    known = begun(folder)
    added(known, key(2), 5, {1: 21, 5: 25})
    added(known, key(3), 4, {2: 32})
    right, data = [21, 32, 3, 4], (folder / name).read_bytes()
    assert read(folder, key(3)) == right
    for at in range(len(data)):
        (folder / name).write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
        assert read(folder, key(3)) is None
        (folder / name).write_bytes(data[:at])
        assert read(folder, key(3)) is None
        (folder / name).write_bytes(data[:at] + bytes(len(data) - at))  # what a power failure leaves
        assert read(folder, key(3)) is None
    (folder / name).unlink()
    assert read(folder, key(3)) is None


def test_sums_that_cannot_be_written_are_given_up(folder: Path, caplog: pytest.LogCaptureFixture):
    known = begun(folder)
    (folder / "pages.log").mkdir()
    added(known, key(2), 4, {1: 21})
    assert not known.is_at(key(1), PAGE_SIZE)
    assert not known.is_at(key(2), PAGE_SIZE)
    assert caplog.text.count("sums of pages cannot be written") == 1
    (folder / "pages.log").rmdir()
    added(known, key(3), 4, {1: 31})  # without that of TXID 2 before it
    assert not known.is_at(key(3), PAGE_SIZE)
    assert read(folder, key(3)) is None


def test_a_full_disk_keeps_no_half_written_sums(folder: Path):
    known = begun(folder)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        known.prepare(key(2), PAGE_SIZE, sum_of(9) * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    known.confirm()
    assert [path.name for path in folder.iterdir()] == ["pages.sums"]
    assert (read(folder, key(2)), read(folder, key(1))) == (None, [1, 2, 3, 4])


def test_nothing_is_written_into_a_folder_that_another_holds(folder: Path):
    known = KnownPages(folder, Access(folder / "app.db"), lambda: False)
    known.prepare(key(1), PAGE_SIZE, sum_of(1))
    known.confirm()
    assert list(folder.iterdir()) == []
