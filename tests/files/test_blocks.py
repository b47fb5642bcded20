"""Blocks of remote files: right bytes for any range, no block asked for twice at once, windows that grow."""

from __future__ import annotations

import itertools
import threading
from contextlib import closing
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from litevfs.errors import StorageNotFoundError, TransientStorageError
from litevfs.files.blocks import BlockReader
from litevfs.files.byte_cache import ByteCache
from litevfs.files.fetch import Fetcher
from litevfs.replica_clients.base import LTXFileInfo
from tests.interrupts import interrupted_everywhere
from tests.scripted import Script, ScriptedClient
from tests.support import in_threads, wait_until

BLOCK = 1 << 12
SIZE = 40 * BLOCK + 123
CONTENT = Random(1).randbytes(SIZE)


class World:
    """Any bytes will do: blocks know nothing of what files hold."""

    def __init__(self, *, limit_bytes: int = 1 << 20, read_ahead: bool = True, read_timeout_s: float = 2.0) -> None:
        self.script = Script(block_size=BLOCK)
        self.file = self.script.writer.write(0, 1, 1, CONTENT, 0)
        self.fetcher = Fetcher(ScriptedClient(self.script), read_timeout_s=read_timeout_s)
        self.blocks = BlockReader(self.fetcher, limit_bytes=limit_bytes, read_ahead=read_ahead)

    def read(self, offset: int, size: int, file: LTXFileInfo | None = None) -> bytes:
        return self.blocks.read(7, file or self.file, offset, size, self.fetcher.deadline())

    def __enter__(self) -> World:
        return self

    def __exit__(self, *_: object) -> None:
        self.fetcher.close()
        self.script.__exit__(None, None, None)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([0, 5000, 30_000, 1 << 20]),
    st.booleans(),
    st.lists(st.tuples(st.integers(0, SIZE - 1), st.integers(1, 3 * BLOCK)), min_size=1, max_size=12),
)
def test_any_ranges_in_any_order_are_the_bytes_of_the_file(limit_bytes, read_ahead, ranges):
    with World(limit_bytes=limit_bytes, read_ahead=read_ahead) as world:
        for offset, size in ranges:
            size = min(size, SIZE - offset)
            assert world.read(offset, size) == CONTENT[offset : offset + size]
        assert world.blocks.cache.size_bytes <= limit_bytes


def test_a_block_is_fetched_once():
    with World() as world:
        for offset in (10, 500, 4000):
            world.read(offset, 90)
        assert world.script.reads == [("0/0000000000000001-0000000000000001.ltx", 0, BLOCK)]


def test_point_reads_ask_for_one_block_each():
    with World() as world:
        for block in (30, 3, 17, 9, 25, 1):
            world.read(block * BLOCK + 5, 10)
        assert sorted(offset for _, offset, _ in world.script.reads) == [b * BLOCK for b in (1, 3, 9, 17, 25, 30)]
        assert {size for _, _, size in world.script.reads} == {BLOCK}


def test_a_scan_takes_few_requests_that_overlap_nowhere():
    with World() as world:
        for offset in range(0, SIZE, 1000):
            size = min(1000, SIZE - offset)
            assert world.read(offset, size) == CONTENT[offset : offset + size]
        wait_until(lambda: not world.blocks._under_way, "what is under way")
        assert len(world.script.reads) <= 12
        covered = sorted((offset, offset + size) for _, offset, size in world.script.reads)
        assert covered[0][0] == 0
        assert covered[-1][1] == SIZE
        assert all(end == start for (_, end), (start, _) in itertools.pairwise(covered))


@pytest.mark.parametrize("limit_bytes", [1_000_000, 3_000_000, 7_000_000])
def test_a_scan_that_takes_its_time_finds_what_was_read_ahead_of_it_still_there(limit_bytes):
    content = Random(2).randbytes(20_000_000)
    with Script(block_size=1 << 16) as script, closing(Fetcher(ScriptedClient(script), read_timeout_s=2.0)) as fetcher:
        file = script.writer.write(0, 1, 1, content, 0)
        blocks = BlockReader(fetcher, limit_bytes=limit_bytes, read_ahead=True)
        for offset in range(0, len(content), 10_000):
            assert blocks.read(7, file, offset, 10_000, fetcher.deadline()) == content[offset : offset + 10_000]
            wait_until(lambda: not blocks._under_way, "what is under way")
        assert sum(size for _, _, size in script.reads) == len(content)
        assert blocks.cache.size_bytes <= limit_bytes


@pytest.mark.parametrize("planned", [(1, 3), (1, 16), (5, 40)])
def test_a_scan_that_runs_into_what_was_planned_ahead_of_it_goes_on_as_one(planned):
    """Not as two that each ask for the part of every request that the other has left."""
    start, count = planned
    content = Random(3).randbytes(20_000_000)
    with Script(block_size=1 << 16) as script, closing(Fetcher(ScriptedClient(script), read_timeout_s=2.0)) as fetcher:
        file = script.writer.write(0, 1, 1, content, 0)
        blocks = BlockReader(fetcher, limit_bytes=7_000_000, read_ahead=True)
        for block in range(len(content) >> 16):
            if block == 30:
                asked = max(offset + size for _, offset, size in script.reads)
                blocks.prefetch(7, file, asked + (start << 16), count << 16)
            offset = block << 16
            assert blocks.read(7, file, offset, 1 << 16, fetcher.deadline()) == content[offset : offset + (1 << 16)]
            wait_until(lambda: not blocks._under_way, "what is under way")
        assert len(script.reads) <= 20_000_000 / (1 << 20) + 12


def test_without_reading_ahead_each_block_is_a_request():
    with World(read_ahead=False) as world:
        for block in range(10):
            world.read(block * BLOCK, BLOCK)
        assert len(world.script.reads) == 10


def test_readers_that_want_the_same_block_at_once_share_one_request():
    with World() as world:
        first, go_on = threading.Event(), threading.Event()

        def wait(file, offset, data):
            first.set()
            assert go_on.wait(10)
            return data

        world.script.on_read = wait

        def work(i: int) -> bytes | None:
            if i == 8:
                assert first.wait(10)
                threading.Timer(0.05, go_on.set).start()
                return None
            return world.read(100, 50)

        assert in_threads(9, work)[:8] == [CONTENT[100:150]] * 8
        assert len(world.script.reads) == 1


@pytest.mark.plan("L02")
def test_a_failed_request_is_tried_again_by_whoever_waits_and_blocks_nobody_after():
    with World() as world:
        failures = [TransientStorageError("busy")] * 2

        def fail(file, offset, data):
            if failures:
                raise failures.pop()
            return data

        world.script.on_read = fail
        assert world.read(5, 10) == CONTENT[5:15]
        assert world.blocks._under_way == {}


def test_a_file_that_is_gone_is_said_so():
    with World() as world:
        world.script.writer.delete([world.file])
        for _ in range(2):
            with pytest.raises(StorageNotFoundError):
                world.read(0, 10)


def test_a_failure_ahead_of_a_scan_is_not_the_readers():
    with World() as world:
        script = world.script

        def fail_ahead(file, offset, data):
            if len(data) > BLOCK and len(script.reads) < 30:
                raise TransientStorageError("busy")
            return data

        script.on_read = fail_ahead
        for offset in range(0, SIZE, BLOCK):
            size = min(BLOCK, SIZE - offset)
            assert world.read(offset, size) == CONTENT[offset : offset + size]


def test_what_was_read_anyway_is_kept_but_no_part_of_a_block():
    with World() as world:
        world.blocks.keep(7, world.file, CONTENT[: 2 * BLOCK + 100])
        assert world.read(0, 2 * BLOCK) == CONTENT[: 2 * BLOCK]
        assert world.script.reads == []
        world.read(2 * BLOCK, 50)
        assert len(world.script.reads) == 1


def test_threads_read_right_bytes_while_blocks_come_and_go():
    with World(limit_bytes=12 * (BLOCK + 200)) as world:

        def work(i: int) -> None:
            random = Random(i)
            position = 0
            for _ in range(150):
                position = (position + 700) % (SIZE - 3000) if i % 2 else random.randrange(SIZE - 3000)
                size = random.randrange(1, 3000)
                assert world.read(position, size) == CONTENT[position : position + size]

        in_threads(6, work)
        wait_until(lambda: not world.blocks._under_way, "what is under way")
        assert world.blocks.cache.size_bytes <= 12 * (BLOCK + 200)


# --- requests that nobody ends ----------------------------------------------------------------------------------------


def test_ctrl_c_at_any_moment_of_a_scan_reaches_the_caller_and_leaves_nobody_waiting():
    worlds = []

    def make() -> World:
        worlds.append(World())
        for block in (0, 1, 2):
            worlds[-1].read(block * BLOCK, 10)  # a scan: what lies ahead of it is asked for too
        wait_until(lambda: not worlds[-1].blocks._under_way, "what is under way")
        worlds[-1].blocks.cache = ByteCache(1 << 20)
        return worlds[-1]

    def scan(world: World) -> None:
        for block in (3, 4, 9):
            world.read(block * BLOCK, 10)

    try:
        for world in interrupted_everywhere(make, scan):
            wait_until(lambda: not world.blocks._under_way, "what is under way")  # noqa: B023 (run at once)
            assert world.read(0, SIZE) == CONTENT
            worlds.pop().__exit__()
    finally:
        for world in worlds:
            world.__exit__()


def test_without_threads_to_be_had_a_scan_reads_for_itself(monkeypatch: pytest.MonkeyPatch):
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with World() as world:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            for offset in range(0, 20 * BLOCK, 1000):
                assert world.read(offset, 1000) == CONTENT[offset : offset + 1000]
            assert world.blocks._under_way == {}
        assert world.read(0, SIZE) == CONTENT


def test_a_request_that_takes_too_long_is_not_waited_for_by_readers_with_a_time_limit():
    """The reader makes its own request, and so does whoever comes after it; only the one that hangs goes on hanging."""
    with World(read_timeout_s=1.5) as world:
        hanging, go_on = threading.Event(), threading.Event()

        def hang_once(file, offset, data):
            if not hanging.is_set():
                hanging.set()
                assert go_on.wait(30)
            return data

        world.script.on_read = hang_once
        first = threading.Thread(target=world.read, args=(5 * BLOCK, 10))
        first.start()
        try:
            assert hanging.wait(10)
            for _ in range(2):
                assert world.read(5 * BLOCK + 7, 10) == CONTENT[5 * BLOCK + 7 : 5 * BLOCK + 17]
            assert len(world.script.reads) == 2
            assert first.is_alive()
        finally:
            go_on.set()
            first.join(10)
        assert world.blocks._under_way == {}
