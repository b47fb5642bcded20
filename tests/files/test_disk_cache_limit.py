"""The limit of the folder of blocks: what goes for what, and that nothing else ever does."""

from __future__ import annotations

import time

import pytest

from litevfs.files.keyed_files import TEMP_LIFE_S, TOUCH_AFTER_S
from tests.files.test_disk_cache import FILE, ON_DISK, age, bytes_on_disk, content, files_in, make


@pytest.mark.slow
@pytest.mark.plan("D09")
@pytest.mark.parametrize("limit", [ON_DISK * 20, ON_DISK * 300, 1 << 23])
def test_the_folder_never_exceeds_its_limit_and_keeps_most_of_it_used(tmp_path, limit):
    cache = make(tmp_path, limit=limit)
    fits = limit // ON_DISK
    for block in range(fits * 5 // 4 if fits > 1000 else fits * 3):
        cache.put(FILE, block, content(block))
        assert cache.get(FILE, block) == content(block)
        if block % (fits // 4) == 0:
            assert bytes_on_disk(tmp_path) <= limit
    assert limit * 3 // 4 <= bytes_on_disk(tmp_path) <= limit
    assert cache.counters.evicted >= fits // 4


@pytest.mark.plan("D09")
def test_every_group_of_subfolders_stays_below_its_share(tmp_path, monkeypatch):
    monkeypatch.setattr("litevfs.files.keyed_files.MIN_GROUP_BYTES", 10 * ON_DISK)
    cache = make(tmp_path, limit=16 * 10 * ON_DISK)
    for block in range(600):
        cache.put(FILE, block, content(block))
        assert cache.get(FILE, block) == content(block)
    assert max(bytes_on_disk(shard) for shard in tmp_path.iterdir()) <= 10 * ON_DISK


@pytest.mark.plan("D09")
def test_a_folder_that_is_nearly_full_at_open_stays_below_its_limit(tmp_path):
    limit = 80 * ON_DISK
    before = make(tmp_path, limit=limit)
    for block in range(75):
        before.put(FILE, block, content(block))
    assert bytes_on_disk(tmp_path) == 75 * ON_DISK
    cache = make(tmp_path, limit=limit)
    for block in range(100, 130):
        cache.put(FILE, block, content(block))
        assert cache.get(FILE, block) == content(block)
        assert bytes_on_disk(tmp_path) <= limit


def test_a_limit_of_one_block_keeps_one(tmp_path):
    cache = make(tmp_path, limit=ON_DISK)
    for block in range(3):
        cache.put(FILE, block, content(block))
        assert cache.get(FILE, block) == content(block)
    assert len(files_in(tmp_path)) == 1


@pytest.mark.plan("D09")
def test_what_was_used_last_stays_longest(tmp_path):
    limit = 100 * ON_DISK
    cache = make(tmp_path, limit=limit)
    for block in range(80):
        cache.put(FILE, block, content(block))
    for path in files_in(tmp_path):
        age(path, 10 * TOUCH_AFTER_S)
    used = range(0, 80, 2)
    for block in used:
        assert cache.get(FILE, block) == content(block)
    for block in range(1000, 1040):
        cache.put(FILE, block, content(block))
    assert all(cache.has(FILE, block) for block in used)
    assert sum(cache.has(FILE, block) for block in range(1, 80, 2)) < 40


def test_a_time_in_the_future_does_not_keep_a_block_for_ever(tmp_path):
    cache = make(tmp_path)
    cache.put(FILE, 0, content(0))
    (file,) = files_in(tmp_path)
    age(file, -1e6)
    assert cache.get(FILE, 0) == content(0)
    assert abs(file.stat().st_mtime - time.time()) < 60


@pytest.mark.plan("D09")
def test_a_smaller_limit_takes_hold_as_blocks_come(tmp_path):
    large = make(tmp_path, limit=1 << 26)
    for block in range(500):
        large.put(FILE, block, content(block))
    assert bytes_on_disk(tmp_path) == 500 * ON_DISK
    many_groups = make(tmp_path, limit=1 << 24)
    old = [tmp_path / digit / f"{digit * 64}.{'0' * 16}.tmp" for digit in "0123456789abcdef"]
    for path in old:
        path.write_bytes(b"")
        age(path, TEMP_LIFE_S + 10)
    for block in range(1000, 1100):
        many_groups.put(FILE, block, content(block))
    assert not any(path.exists() for path in old)
    one_group = make(tmp_path, limit=50 * ON_DISK)
    one_group.put(FILE, 5000, content(5000))
    assert bytes_on_disk(tmp_path) <= 50 * ON_DISK
    assert one_group.get(FILE, 5000) == content(5000)


@pytest.mark.parametrize("limit", [0, ON_DISK - 1])
def test_a_limit_below_one_block_keeps_nothing(tmp_path, limit):
    cache = make(tmp_path, limit=limit)
    cache.put(FILE, 0, content(0))
    assert cache.get(FILE, 0) is None
    assert files_in(tmp_path) == []
    assert cache.is_writing


def test_only_its_own_files_are_ever_deleted(tmp_path):
    digits = "ab" * 32
    mine = ["README", "a/notes.txt", f"a/{digits}.block.bak", f"a/x{digits}.block", f"c/{digits}.block"]
    mine += [f"{digits}.block", f"a/{digits}.tmp", f"a/{digits.upper()}.block", "sub/deep/file", "a/.hidden"]
    for name in mine:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content(1))
        age(path, 10 * TEMP_LIFE_S)
    folder = tmp_path / "a" / f"{'ab' * 31}cd.block"
    folder.mkdir()
    link = tmp_path / "a" / f"{'ab' * 31}ef.block"
    link.symlink_to(tmp_path / "README")
    age(link, 10 * TEMP_LIFE_S)
    cache = make(tmp_path, limit=20 * ON_DISK)
    for block in range(100):
        cache.put(FILE, block, content(block))
    assert cache.counters.evicted > 50
    assert [name for name in mine if (tmp_path / name).read_bytes() != content(1)] == []
    assert folder.is_dir()
    assert link.is_symlink()


@pytest.mark.plan("D01")
def test_left_over_temporary_files_go_and_young_ones_stay(tmp_path):
    cache = make(tmp_path, limit=1000 * ON_DISK)
    old, young = (tmp_path / "a" / f"{'ab' * 32}.{digit * 16}.tmp" for digit in "12")
    old.parent.mkdir(exist_ok=True)
    for path in (old, young):
        path.write_bytes(content(0))
    age(old, TEMP_LIFE_S + 10)
    cache.put(FILE, 0, content(0))
    assert not old.exists()
    assert young.exists()
