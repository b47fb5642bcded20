"""Requests ahead that wait for their turn: they join neighbours, make way for readers, and end with the replica."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random

import pytest

from litevfs.files.blocks import BlockReader
from litevfs.files.fetch import PARALLEL_REQUESTS, Fetcher
from litevfs.files.governor import FREE_BYTES, Governor
from litevfs.files.line import Line
from litevfs.files.ranges import Limits
from litevfs.files.waiting import Part, RangeRequest, Waiting
from litevfs.ltx.file_info import LTXFileInfo
from tests.scripted import Script, ScriptedClient
from tests.support import wait_until

BLOCK = 1 << 12
APART, NEAR = 50_000, 10_000
"""Bytes between ranges that are not worth joining on the line here, and between those that are."""
FIRST_NEAR = PARALLEL_REQUESTS * APART
CONTENT = Random(2).randbytes(FIRST_NEAR + 60 * NEAR)
FILE = LTXFileInfo(0, 1, 1, len(CONTENT), 0)
LIMITS = Limits(BLOCK, 1000, 10_000)
SIZE = 100


def request(offset: int, size: int = SIZE, number: int = 1) -> RangeRequest:
    return RangeRequest(number, FILE, [Part(~offset, offset, size)], ahead=True)


def waiting(*requests: RangeRequest, credit: int = 1 << 20) -> Waiting:
    governor = Governor(credit)
    found = Waiting(governor.grant)
    for each in requests:
        found.add(each)
    return found


@pytest.mark.parametrize(
    ("offsets", "credit", "others", "taken"),
    [
        ([500, 0, 1000], 1 << 20, 0, [[0, 500, 1000]]),
        ([0, 1101], 1 << 20, 0, [[0], [1101]]),  # the gap is too large
        ([0, 100], 0, 0, [[0, 100]]),  # no gap
        ([0, 500, 1000], 400, 0, [[0, 500], [1000]]),  # no credit for a second gap
        (
            [*range(0, 12_000, 1000)],
            1 << 20,
            0,
            [[*range(0, 10_000, 1000)], [10_000, 11_000]],
        ),  # one would be too large
        ([5000, 0, 500], 1 << 20, 0, [[5000], [0, 500]]),
        ([0, 500, 1000, 1500], 1 << 20, 2, [[0, 500], [1000], [1500]]),  # two others can be made at once, too
        ([0, 50], 1 << 20, 0, [[0], [50]]),  # they overlap
    ],
)
def test_those_taken_have_joined_their_neighbours(offsets, credit, others, taken):
    found = waiting(*map(request, offsets), credit=credit)
    parts = []
    while (next_one := found.take(LIMITS, others)) is not None:
        parts.append([part.offset for part in next_one.parts])
        assert next_one.size == parts[-1][-1] + SIZE - parts[-1][0]
    assert parts == taken
    assert len(found) == 0


def test_requests_of_two_files_are_not_joined_and_one_that_is_removed_is_not_taken():
    first, second, third = request(0), request(500, number=2), request(1000)
    found = waiting(first, second, third)
    assert found.remove(third)
    assert not found.remove(third)
    assert [found.take(LIMITS, 0) for _ in range(3)] == [first, second, None]


def test_joined_requests_end_together():
    first, second = request(0), request(500)
    assert waiting(first, second).take(LIMITS, 0) is first
    first.settle({~0: b"a", ~500: b"b"})
    assert second.result(0)[~500] == b"b"


class World:
    """A storage whose answers come when they are let go, on a line whose measure is fixed."""

    def __init__(self, free_bytes: int = FREE_BYTES) -> None:
        self.script = Script(block_size=BLOCK)
        self.file = self.script.writer.write(0, 1, 1, CONTENT, 0)
        self.fetcher = Fetcher(ScriptedClient(self.script), read_timeout_s=60.0)
        self.fetcher.line = Line(clock=lambda: 0.0)
        self.blocks = BlockReader(self.fetcher, limit_bytes=1 << 20, governor=Governor(free_bytes))
        self.hanging = threading.Semaphore(0)
        self._holds = True
        self.script.on_read = self._hold

    def _hold(self, _: object, offset: int, data: bytes) -> bytes:
        if self._holds and threading.current_thread().name.startswith("litevfs-io") and offset < FIRST_NEAR:
            assert self.hanging.acquire(timeout=30)
        return data

    def ahead(self, *offsets: int) -> bool:
        return self.blocks.read_ahead(7, self.file, [(offset, SIZE) for offset in offsets])

    def read(self, offset: int) -> None:
        assert self.blocks.read(7, self.file, offset, SIZE, self.fetcher.deadline()) == CONTENT[offset : offset + SIZE]

    def let_all_go(self) -> None:
        self._holds = False
        self.hanging.release(10 * PARALLEL_REQUESTS)

    @property
    def requested(self) -> list[tuple[int, int]]:
        return [(offset, size) for _, offset, size in self.script.reads]


@contextmanager
def busy_world(**options: int) -> Iterator[World]:
    """As many requests as are made at once hang."""
    world = World(**options)
    try:
        for i in range(PARALLEL_REQUESTS):
            assert world.ahead(i * APART)
        wait_until(lambda: len(world.requested) == PARALLEL_REQUESTS)
        assert {size for _, size in world.requested} == {SIZE}
        world.script.clear()
        yield world
        world.let_all_go()
        wait_until(lambda: not world.blocks._under_way, "what is under way")
    finally:
        world.let_all_go()
        world.fetcher.close()
        world.script.__exit__(None, None, None)


NEAR_OFFSETS = range(FIRST_NEAR, FIRST_NEAR + 40 * NEAR, NEAR)


def test_plans_that_wait_come_in_few_requests():
    with busy_world() as world:
        for offset in NEAR_OFFSETS:
            assert world.ahead(offset)
        assert world.requested == []
        world.hanging.release()
        wait_until(lambda: len(world.requested) >= 2 and not len(world.blocks._waiting))
        ends = [27, 13]  # as many as the largest request has room for
        assert world.requested == [
            (NEAR_OFFSETS[0], (ends[0] - 1) * NEAR + SIZE),
            (NEAR_OFFSETS[ends[0]], (ends[1] - 1) * NEAR + SIZE),
        ]
        for offset in NEAR_OFFSETS:
            world.read(offset)
        assert len(world.requested) == 2


def test_a_reader_makes_the_request_that_it_waits_for_if_that_waits_itself():
    with busy_world() as world:
        for offset in NEAR_OFFSETS:
            assert world.ahead(offset)
        world.read(NEAR_OFFSETS[20])
        assert world.requested == [(NEAR_OFFSETS[20], SIZE)]


@pytest.mark.parametrize("is_one_plan", [False, True])
def test_no_gap_is_read_where_that_would_use_up_what_later_plans_may_need(is_one_plan):
    with busy_world(free_bytes=FREE_BYTES // 2) as world:
        for offsets in [NEAR_OFFSETS] if is_one_plan else [[offset] for offset in NEAR_OFFSETS]:
            assert world.ahead(*offsets)
        world.let_all_go()
        for offset in NEAR_OFFSETS:
            world.read(offset)
        assert sorted(world.requested) == [(offset, SIZE) for offset in NEAR_OFFSETS]
        assert world.blocks.governor.unused == PARALLEL_REQUESTS * SIZE


def test_other_calls_of_the_pool_wait_for_one_request_only():
    with busy_world() as world:
        for offset in range(SIZE * 2, PARALLEL_REQUESTS * APART, APART):
            assert world.ahead(offset)
        call = world.fetcher.submit(lambda: "made")
        world.hanging.release()
        assert call.result(10) == "made"


def test_closing_ends_what_waits_and_asks_for_none_of_it():
    with busy_world() as world:
        assert world.ahead(NEAR_OFFSETS[0])
        ended = threading.Event()
        world.blocks.when_there(7, NEAR_OFFSETS[0], SIZE, ended.set)
        assert not ended.is_set()
        world.fetcher.close()
        world.let_all_go()
        assert ended.wait(10)
        assert world.requested == []
