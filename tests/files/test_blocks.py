"""Bytes of remote files: right ones for any range, none asked for twice at once, few requests for what lies ahead."""

from __future__ import annotations

import itertools
import threading
import time
from contextlib import closing
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from litevfs.errors import StorageNotFoundError, StoragePermissionError, TransientStorageError
from litevfs.files.blocks import BlockReader
from litevfs.files.fetch import Fetcher
from litevfs.replica_clients.base import LTXFileInfo
from tests.interrupts import interrupted_everywhere
from tests.scripted import Script, ScriptedClient
from tests.support import in_threads, wait_until

BLOCK = 1 << 12
SIZE = 40 * BLOCK + 123
CONTENT = Random(1).randbytes(SIZE)


def busy_twice():
    """For `Script.on_read`: the first two reads fail."""
    failures = [TransientStorageError("busy")] * 2

    def fail(file, offset, data):
        if failures:
            raise failures.pop()
        return data

    return fail


class World:
    """Any bytes will do: blocks know nothing of what files hold."""

    def __init__(self, *, limit_bytes: int = 1 << 20, read_timeout_s: float = 2.0) -> None:
        self.script = Script(block_size=BLOCK)
        self.file = self.script.writer.write(0, 1, 1, CONTENT, 0)
        self.fetcher = Fetcher(ScriptedClient(self.script), read_timeout_s=read_timeout_s)
        self.blocks = BlockReader(self.fetcher, limit_bytes=limit_bytes)

    def read(self, offset: int, size: int, file: LTXFileInfo | None = None, *, most: int = 0) -> bytes:
        return self.blocks.read(7, file or self.file, offset, size, self.fetcher.deadline(), most=most)

    def ahead(self, *ranges: tuple[int, int]) -> bool:
        return self.blocks.read_ahead(7, self.file, ranges)

    def settle(self) -> None:
        wait_until(lambda: not self.blocks.under_way.requests, "what is under way")

    def __enter__(self) -> World:
        return self

    def __exit__(self, *_: object) -> None:
        self.fetcher.close()
        self.script.__exit__(None, None, None)


_ranges = st.lists(st.tuples(st.integers(0, SIZE - 1), st.integers(1, 3 * BLOCK)), max_size=12)


@settings(max_examples=60)
@given(
    st.sampled_from([0, 5000, 30_000, 1 << 20]),
    st.lists(st.tuples(st.booleans(), _ranges), max_size=6),
)
def test_any_ranges_in_any_order_read_ahead_or_not_are_the_bytes_of_the_file(limit_bytes, steps):
    with World(limit_bytes=limit_bytes) as world:
        for is_ahead, ranges in steps:
            within = [(offset, min(size, SIZE - offset)) for offset, size in ranges]
            if is_ahead:
                world.ahead(*sorted(within))
            for offset, size in within:
                assert world.read(offset, size) == CONTENT[offset : offset + size]
        assert world.blocks.cache.size_bytes <= limit_bytes
        world.settle()
        governor = world.blocks.governor
        assert governor.ahead + governor.needed == sum(size for _, _, size in world.script.reads)
        assert 0 <= governor.used <= governor.ahead


def test_a_block_is_fetched_once():
    with World() as world:
        for offset in (10, 500, 4000):
            world.read(offset, 90)
        assert world.script.reads == [("0/0000000000000001-0000000000000001.ltx", 0, BLOCK)]


def test_a_read_over_several_blocks_asks_once_for_those_that_are_missing():
    with World() as world:
        assert world.read(BLOCK - 10, BLOCK + 20) == CONTENT[BLOCK - 10 : 2 * BLOCK + 10]
        assert [(offset, size) for _, offset, size in world.script.reads] == [(0, 3 * BLOCK)]
        world.script.clear()
        world.read(5 * BLOCK, 10)
        assert world.read(4 * BLOCK + 5, 3 * BLOCK) == CONTENT[4 * BLOCK + 5 : 7 * BLOCK + 5]
        offsets = [(offset, size) for _, offset, size in world.script.reads]
        assert offsets == [(5 * BLOCK, BLOCK), (4 * BLOCK, BLOCK), (6 * BLOCK, 2 * BLOCK)]


def test_point_reads_ask_for_one_block_each():
    with World() as world:
        for block in (30, 3, 17, 9, 25, 1):
            world.read(block * BLOCK + 5, 10)
        assert sorted(offset for _, offset, _ in world.script.reads) == [b * BLOCK for b in (1, 3, 9, 17, 25, 30)]
        assert {size for _, _, size in world.script.reads} == {BLOCK}


@pytest.mark.parametrize(("limit_bytes", "size"), [(SIZE // 2, 90), (2 * SIZE, BLOCK)])
def test_a_range_that_is_wanted_alone_brings_no_block_where_there_is_no_room_for_all(limit_bytes, size):
    with World(limit_bytes=limit_bytes) as world:
        world.blocks.want_alone(7, world.file, 500)
        assert world.read(500, 90) == CONTENT[500:590]
        assert [read[2] for read in world.script.reads] == [size]
        assert world.read(500, 90) == CONTENT[500:590]
        assert len(world.script.reads) == 1
        world.read(BLOCK + 7, 90)
        assert world.script.reads[-1][2] == BLOCK
        assert world.blocks.governor.needed == size + BLOCK


def test_a_range_that_is_wanted_alone_is_asked_for_again_after_a_failure():
    with World(limit_bytes=SIZE // 2) as world:
        world.script.on_read = busy_twice()
        world.blocks.want_alone(7, world.file, 500)
        assert world.read(500, 90) == CONTENT[500:590]
        assert world.blocks.under_way.requests == {}
        assert {size for _, _, size in world.script.reads} == {90}


def test_a_read_takes_more_from_the_blocks_after_it_as_far_as_they_are_in_memory():
    with World() as world:
        for block in (2, 3, 5):
            world.read(block * BLOCK, 10)
        requests = len(world.script.reads)
        for size, most, length in (
            (10, 0, 10),
            (10, 100, 100),
            (10, 2 * BLOCK, 2 * BLOCK - 70),
            (BLOCK, 2 * BLOCK, 2 * BLOCK - 70),
        ):
            start = 2 * BLOCK + 70
            assert world.read(start, size, most=most) == CONTENT[start : start + length]
        assert world.read(SIZE - 20, 10, most=BLOCK) == CONTENT[-20:]
        assert len(world.script.reads) == requests + 1  # the last block


def test_what_lies_close_together_comes_in_few_requests_that_overlap_nowhere():
    with World() as world:
        frames = [(offset, min(1000, SIZE - offset)) for offset in range(0, SIZE, 1000)]
        for start in range(0, len(frames), 50):
            assert world.ahead(*frames[start : start + 60])
        for offset, size in frames:
            assert world.read(offset, size) == CONTENT[offset : offset + size]
        assert len(world.script.reads) <= 4
        covered = sorted((offset, offset + size) for _, offset, size in world.script.reads)
        assert covered[0][0] == 0
        assert covered[-1][1] == SIZE
        assert all(end == start for (_, end), (start, _) in itertools.pairwise(covered))


def test_a_reader_on_its_way_through_a_file_takes_larger_requests_of_which_several_have_room():
    with World() as world:
        world.blocks.line.latency_s, world.blocks.line.bytes_per_s = 0.02, 500e6
        assert world.blocks.request_bytes == 1 << 20
        assert world.blocks.scan_request_bytes == 1 << 20  # of the cache, too few would have room
        world.blocks.cache.limit_bytes = 64 << 20
        assert world.blocks.scan_request_bytes == 2 << 20
        world.blocks.line.bytes_per_s = 2.5e6
        assert world.blocks.scan_request_bytes == world.blocks.request_bytes < 1 << 20
        ranges = [(start, min(500, SIZE - start)) for start in range(0, SIZE, 500)]
        assert world.blocks.read_ahead(7, world.file, ranges, most=8 * BLOCK)
        world.settle()
        assert sorted(size for _, _, size in world.script.reads) == [123, *[8 * BLOCK] * 5]


def test_what_lies_scattered_comes_without_the_blocks_around_it_and_is_there_when_it_is_read():
    with World() as world:
        frames = [(block * BLOCK + 50, 300) for block in (1, 9, 17, 33)]
        assert world.ahead(*frames)
        world.settle()
        for offset, size in frames:
            assert world.read(offset, size) == CONTENT[offset : offset + size]
        assert all(size < BLOCK or offset == frames[0][0] for _, offset, size in world.script.reads)
        world.script.clear()
        for offset, size in frames:
            assert world.read(offset, size) == CONTENT[offset : offset + size]
        assert world.script.reads == []


def test_what_is_there_or_under_way_is_not_asked_for_again():
    with World() as world:
        go_on = threading.Event()
        world.read(3 * BLOCK, 10)
        world.script.on_read = lambda file, offset, data: data if go_on.wait(10) else b""
        try:
            for _ in range(3):
                assert world.ahead(*((block * BLOCK, BLOCK) for block in range(4)))
                assert world.ahead((20 * BLOCK + 7, 100))
        finally:
            go_on.set()
        world.settle()
        assert sorted(world.script.reads) == [
            (world.script.reads[0][0], offset, size)
            for offset, size in [(0, 3 * BLOCK), (3 * BLOCK, BLOCK), (20 * BLOCK + 7, 100)]
        ]


def test_what_no_reader_takes_is_read_ahead_up_to_a_bound_and_what_it_takes_is_worth_more():
    content = Random(2).randbytes(40_000_000)
    with Script(block_size=1 << 16) as script, closing(Fetcher(ScriptedClient(script), read_timeout_s=2.0)) as fetcher:
        file = script.writer.write(0, 1, 1, content, 0)
        blocks = BlockReader(fetcher, limit_bytes=3_000_000)
        granted = [blocks.read_ahead(7, file, [(n << 20, 1 << 20)]) for n in range(30)]
        assert granted == [True] * 7 + [False] * 23
        wait_until(lambda: not blocks.under_way.requests, "what is under way")
        blocks.read(7, file, 39_000_000, 10, fetcher.deadline())
        for offset in range(5 << 20, 7 << 20, 1 << 16):
            blocks.read(7, file, offset, 10, fetcher.deadline())
        read = sum(size for _, _, size in script.reads)
        assert blocks.read_ahead(7, file, [(20 << 20, 1 << 20)])
        assert read <= 2 * (33 << 16) + (7 << 20)


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
def test_a_failed_request_is_tried_again_by_each_reader_that_waits_and_blocks_no_later_one():
    with World() as world:
        world.script.on_read = busy_twice()
        assert world.read(5, 10) == CONTENT[5:15]
        assert world.blocks.under_way.requests == {}


def test_a_file_that_is_gone_is_said_so():
    with World() as world:
        world.script.writer.delete([world.file])
        for _ in range(2):
            with pytest.raises(StorageNotFoundError):
                world.read(0, 10)


def test_a_failure_ahead_is_not_the_readers_and_costs_no_credit():
    with World() as world:
        script = world.script

        def fail_ahead(file, offset, data):
            if len(data) > BLOCK or len(data) == 100:
                raise TransientStorageError("busy")
            return data

        script.on_read = fail_ahead
        ranges = [(offset, min(BLOCK, SIZE - offset)) for offset in range(0, 30 * BLOCK, BLOCK)] + [(35 * BLOCK, 100)]
        assert world.ahead(*ranges)
        for offset, size in ranges:
            assert world.read(offset, size) == CONTENT[offset : offset + size]
        world.settle()
        assert world.blocks.governor.ahead == 0


def test_a_refusal_of_a_request_ahead_is_not_the_readers():
    """It may be older than the reader: signed with credentials that have ended since."""
    with World() as world:
        is_asked, may_go_on = threading.Event(), threading.Event()

        def refuse_first(file, offset, data):
            if not is_asked.is_set():
                is_asked.set()
                assert may_go_on.wait(10)
                raise StoragePermissionError("ExpiredToken")
            return data

        world.script.on_read = refuse_first
        assert world.ahead((0, BLOCK), (BLOCK, BLOCK))
        assert is_asked.wait(10)
        read = {}
        reader = threading.Thread(target=lambda: read.update(data=world.read(0, BLOCK)))
        reader.start()
        time.sleep(0.05)  # it waits for that request now, or will ask for itself
        may_go_on.set()
        reader.join()
        assert read["data"] == CONTENT[:BLOCK]


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
                world.ahead((position, size), (position + size, min(5 * BLOCK, SIZE - position - size)))
                assert world.read(position, size) == CONTENT[position : position + size]

        in_threads(6, work)
        wait_until(lambda: not world.blocks.under_way.requests, "what is under way")
        assert world.blocks.cache.size_bytes <= 12 * (BLOCK + 200)


# --- requests that do not end -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_ctrl_c_at_any_moment_of_a_scan_reaches_the_caller_and_leaves_no_thread_waiting():
    worlds = []

    def make() -> World:
        worlds.append(World())
        return worlds[-1]

    def scan(world: World) -> None:
        world.ahead((3 * BLOCK, 2 * BLOCK), (5 * BLOCK, BLOCK), (9 * BLOCK + 5, 10))
        world.read(4 * BLOCK, 10)
        world.read(9 * BLOCK + 5, 10)

    try:
        for world in interrupted_everywhere(make, scan):
            wait_until(lambda: not world.blocks.under_way.requests, "what is under way")  # noqa: B023 (run at once)
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
                world.ahead((offset + 1000, 1000), (offset + 2000, 1000))
                assert world.read(offset, 1000) == CONTENT[offset : offset + 1000]
            assert world.blocks.under_way.requests == {}
        assert world.read(0, SIZE) == CONTENT


def test_a_request_that_takes_too_long_is_not_waited_for_by_readers_with_a_time_limit():
    """The reader makes its own request, and so does the next reader; only the one that hangs goes on hanging."""
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
        assert world.blocks.under_way.requests == {}


def test_sparing_reads_go_over_no_more_bytes_than_are_wanted():
    wanted = [(offset, 400) for offset in range(0, SIZE - 400, 1500)]
    counts = []
    for is_sparing in (False, True):
        with World() as world:
            assert world.blocks.read_ahead(7, world.file, wanted, is_sparing=is_sparing)
            world.settle()
            assert all(world.read(*part) == CONTENT[part[0] : sum(part)] for part in wanted)
            counts.append((len(world.script.reads), sum(size for _, _, size in world.script.reads)))
    (requests, size), (spared_requests, spared_size) = counts
    assert spared_size <= 2 * 400 * len(wanted) < size
    assert requests < spared_requests <= len(wanted)
