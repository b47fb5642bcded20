"""Blocks on their way to the folder: there at once, written soon, never in a reader's way."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path

import pytest

from litevfs.errors import OptionError
from litevfs.files.disk_cache import DiskCache
from litevfs.files.write_behind import WriteBehind, disk_cache_for
from litevfs.options import Options
from litevfs.replica_clients.base import LTXFileInfo
from litevfs.replica_clients.memory import MemoryReplicaClient, MemoryStore
from tests.interrupts import interrupted_everywhere
from tests.support import wait_until

BLOCK = 1000  # bytes
FILE = LTXFileInfo(0, 1, 1, 100_000 * BLOCK + 17, 0, "etag")


class SlowDisk(DiskCache):
    """A folder whose next block is written when `gate` is open."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder), 1 << 24, url="s3://bucket", block_size=BLOCK)
        self.gate = threading.Event()
        self.begun = 0

    def put(self, file, block, data):
        self.begun += 1
        assert self.gate.wait(20)
        super().put(file, block, data)


def content(block: int, size: int = BLOCK) -> bytes:
    return random.Random(block).randbytes(size)


def plain(folder: Path) -> DiskCache:
    return DiskCache(str(folder), 1 << 24, url="s3://bucket", block_size=BLOCK)


@pytest.fixture
def disk(tmp_path):
    disk = SlowDisk(tmp_path)
    yield disk
    disk.gate.set()


def writers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "litevfs-disk-cache"]


def test_a_block_is_there_before_it_is_written_and_after(disk, tmp_path):
    cache = WriteBehind(disk)
    for block in range(5):
        cache.put(FILE, block, content(block))
    assert [cache.get(FILE, block) for block in range(6)] == [*map(content, range(5)), None]
    assert cache.has(FILE, 4)
    assert not plain(tmp_path).has(FILE, 4)
    disk.gate.set()
    wait_until(lambda: plain(tmp_path).has(FILE, 4), "the last block in the folder")
    assert [cache.get(FILE, block) for block in range(5)] == [*map(content, range(5))]
    cache.close()


def test_the_thread_lives_only_while_there_is_something_to_write(disk):
    cache = WriteBehind(disk)
    assert writers() == []
    for _ in range(3):
        disk.gate.clear()
        cache.put(FILE, 0, content(0))
        assert [thread.daemon for thread in writers()] == [True]
        disk.gate.set()
        wait_until(lambda: not writers(), "the end of the thread")
    cache.close()


@pytest.mark.plan("D09")
def test_a_slow_disk_makes_no_reader_wait_and_takes_bounded_memory(disk, tmp_path):
    cache = WriteBehind(disk, max_waiting_bytes=10 * BLOCK)
    begun = time.monotonic()
    for block in range(10_000):
        cache.put(FILE, block, content(block))
    assert time.monotonic() - begun < 10
    assert [block for block in range(10_000) if cache.has(FILE, block)] == list(range(10))
    disk.gate.set()
    wait_until(lambda: not writers(), "the end of the thread")
    cache.put(FILE, 77, content(77))  # room again
    assert cache.get(FILE, 77) == content(77)
    cache.close()
    assert sum(plain(tmp_path).has(FILE, block) for block in range(10_000)) == 11


def test_a_block_that_comes_again_takes_the_place_of_the_one_that_waits(disk):
    cache = WriteBehind(disk, max_waiting_bytes=10 * BLOCK)
    for _ in range(20):
        cache.put(FILE, 0, content(0))
    for block in range(1, 10):
        cache.put(FILE, block, content(block))
    assert [cache.get(FILE, block) for block in range(10)] == [content(block) for block in range(10)]
    assert cache.counters.hits == 10
    cache.put(FILE, 0, bytes(BLOCK + 1))  # too much: and what it was to replace is gone
    assert cache.get(FILE, 0) is None
    disk.gate.set()
    cache.close()


def test_nothing_waits_for_a_folder_that_failed(disk, monkeypatch):
    monkeypatch.setattr(SlowDisk, "is_writing", False)
    cache = WriteBehind(disk)
    cache.put(FILE, 0, content(0))
    assert not cache.has(FILE, 0)
    assert writers() == []
    cache.close()


@pytest.mark.plan("K02")
def test_closing_writes_what_waits(disk, tmp_path):
    cache = WriteBehind(disk)
    for block in range(200):
        cache.put(FILE, block, content(block))
    disk.gate.set()
    cache.close()
    again = plain(tmp_path)
    assert all(again.get(FILE, block) == content(block) for block in range(200))


@pytest.mark.plan("L11")
def test_closing_does_not_wait_for_a_disk_that_hangs(disk, tmp_path):
    cache = WriteBehind(disk)
    for block in range(200):
        cache.put(FILE, block, content(block))
    begun = time.monotonic()
    cache.close()
    assert time.monotonic() - begun < 10
    cache.put(FILE, 300, content(300))
    disk.gate.set()
    wait_until(lambda: not writers(), "the end of the thread")
    assert disk.begun == 1
    assert not plain(tmp_path).has(FILE, 300)


def test_a_block_dropped_while_it_is_written_stays_away(disk, tmp_path):
    cache = WriteBehind(disk)
    cache.put(FILE, 0, b"x" * BLOCK)
    wait_until(lambda: disk.begun, "the writing")
    cache.drop(FILE, 0)
    assert cache.get(FILE, 0) is None
    disk.gate.set()
    wait_until(lambda: not writers(), "the end of the thread")
    assert cache.get(FILE, 0) is None
    cache.close()


def test_a_block_replaced_while_it_is_written_is_the_new_one(disk, tmp_path):
    cache = WriteBehind(disk)
    cache.put(FILE, 0, b"x" * BLOCK)
    wait_until(lambda: disk.begun, "the writing")
    cache.put(FILE, 0, content(0))
    disk.gate.set()
    wait_until(lambda: not writers(), "the end of the thread")
    assert plain(tmp_path).get(FILE, 0) == content(0)
    cache.close()


def test_a_block_that_is_written_while_it_is_dropped_stays_away(disk, monkeypatch):
    cache, drop = WriteBehind(disk), disk.drop

    def drop_and_let_it_be_written(file, block):
        drop(file, block)
        if threading.current_thread() is threading.main_thread():
            disk.gate.set()
            wait_until(lambda: not writers(), "the end of the thread")

    monkeypatch.setattr(disk, "drop", drop_and_let_it_be_written)
    cache.put(FILE, 0, content(0))
    wait_until(lambda: disk.begun, "the writing")
    cache.drop(FILE, 0)
    assert cache.get(FILE, 0) is None
    cache.close()


@pytest.mark.parametrize("reason", [RuntimeError("can't start new thread"), MemoryError()])
def test_without_a_thread_to_be_had_blocks_are_left_out_and_the_next_is_kept(disk, tmp_path, monkeypatch, reason):
    def refuse(thread: threading.Thread) -> None:
        raise reason

    cache = WriteBehind(disk, max_waiting_bytes=2 * BLOCK)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        for block in range(10):
            cache.put(FILE, block, content(block))
    assert not any(cache.has(FILE, block) for block in range(10))
    disk.gate.set()
    cache.put(FILE, 3, content(3))
    wait_until(lambda: plain(tmp_path).has(FILE, 3), "the block in the folder")
    cache.close()


def test_ctrl_c_at_any_moment_takes_no_room_for_good(tmp_path):
    def twice(cache: WriteBehind) -> None:
        for _ in range(2):
            cache.put(FILE, 0, content(0))

    for cache in interrupted_everywhere(lambda: WriteBehind(plain(tmp_path), max_waiting_bytes=2 * BLOCK), twice):
        cache.put(FILE, 1, content(1))
        wait_until(lambda: not writers(), "the end of the thread")
        assert cache._waiting_bytes == 0
        cache.close()


def test_ranges_are_kept_and_found_by_their_whole_blocks(disk, tmp_path):
    cache = WriteBehind(disk)
    data = b"".join(content(block) for block in range(5))
    cache.put_range(FILE, 7, data[7 : 3 * BLOCK + 9])  # touches blocks 0 to 3, holds 1 and 2
    assert [cache.has(FILE, block) for block in range(5)] == [False, True, True, False, False]
    disk.gate.set()
    end = 99_999 * BLOCK
    cache.put_range(FILE, end, content(99_999) + content(100_000, 17))
    cache.close()
    again = WriteBehind(plain(tmp_path))
    assert again.get_range(FILE, BLOCK, 2 * BLOCK) == data[BLOCK : 3 * BLOCK]
    assert again.get_range(FILE, BLOCK, BLOCK + 5) == data[BLOCK : 2 * BLOCK + 5]
    assert again.get_range(FILE, BLOCK, 2 * BLOCK + 1) is None
    assert again.get_range(FILE, end, BLOCK + 17) == content(99_999) + content(100_000, 17)


def test_where_reading_costs_nothing_there_is_no_folder(tmp_path):
    folder = tmp_path / "folder"
    assert disk_cache_for(MemoryReplicaClient(MemoryStore()), Options(cache_dir=str(folder)), prepare=True) is None
    assert not folder.exists()


def test_a_folder_is_tried_only_when_asked(tmp_path):
    """Not in a forked process: what its parent opened goes on without the folder."""
    client, file = MemoryReplicaClient(MemoryStore()), tmp_path / "file"
    client.block_size = BLOCK
    file.touch()
    with pytest.raises(OptionError):
        disk_cache_for(client, Options(cache_dir=str(file)), prepare=True)
    cache = disk_cache_for(client, Options(cache_dir=str(file)), prepare=False)
    assert cache.get(FILE, 0) is None


def test_a_block_that_cannot_be_written_holds_up_no_other(tmp_path, caplog):
    class FullMemory(DiskCache):
        def put(self, file, block, data):
            if block == 0:
                raise MemoryError
            super().put(file, block, data)

    cache = WriteBehind(FullMemory(str(tmp_path), 1 << 24, url="s3://bucket", block_size=BLOCK))
    for block in range(3):
        cache.put(FILE, block, content(block))
    wait_until(lambda: not cache._waiting, "the end of the writes")
    cache.close()
    assert [plain(tmp_path).has(FILE, block) for block in range(3)] == [False, True, True]
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [MemoryError]
