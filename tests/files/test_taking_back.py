"""Requests that were planned for a query that has ended: those that have not begun are not made, but for others."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from tests.files.test_blocks import BLOCK, CONTENT, World
from tests.support import wait_until

RANGES = [(block * BLOCK, 100) for block in range(0, 40, 2)]
"""Each by a request of its own: the gaps are too large to be read over with so little credit."""


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A world whose requests wait for the gate, two at a time."""
    monkeypatch.setattr("litevfs.files.line.MIN_AT_ONCE", 2)
    monkeypatch.setattr("litevfs.files.line.MAX_AT_ONCE", 2)
    monkeypatch.setattr("litevfs.files.line.MIN_GAP_BYTES", 0)
    monkeypatch.setattr("litevfs.files.line.MAX_GAP_BYTES", 0)
    with World() as world:
        gate = threading.Event()

        def hold(_file: object, _offset: int, data: bytes) -> bytes:
            assert gate.wait(30)
            return data

        world.script.on_read = hold
        world.gate = gate
        yield world
        gate.set()


def _plan(world: World, owner: object, ranges: list[tuple[int, int]] = RANGES) -> None:
    assert world.blocks.read_ahead(7, world.file, ranges, owner)


def _begun(world: World) -> None:
    wait_until(lambda: len(world.script.reads) == 2, "two requests")


def test_what_has_not_begun_is_taken_back_and_costs_no_credit(world):
    credit = world.blocks.governor.credit
    _plan(world, "query")
    _begun(world)
    assert world.blocks.governor.ahead == 100 * len(RANGES)
    world.blocks.take_back("query")
    assert world.blocks.governor.ahead == 200
    assert world.blocks.governor.credit == credit - 200
    assert len(world.blocks.under_way.requests) == 2
    world.gate.set()
    world.settle()
    assert len(world.script.reads) == 2
    for offset, size in RANGES:
        assert world.read(offset, size) == CONTENT[offset : offset + size]


def test_what_another_query_wants_too_is_fetched(world):
    _plan(world, "query")
    _begun(world)
    _plan(world, "other", RANGES[10:15])
    world.blocks.take_back("query")
    world.blocks.take_back("third")
    world.gate.set()
    world.settle()
    assert sorted(offset for _, offset, _ in world.script.reads) == [o for o, _ in RANGES[:2] + RANGES[10:15]]


def test_what_a_reader_waits_for_is_fetched(world):
    _plan(world, "query")
    _begun(world)
    offset, size = RANGES[7]
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(world.read(offset, size)))
    reader.start()
    request = next(r for r in world.blocks.under_way.requests.values() if r.offset == offset)
    wait_until(lambda: request.owner is None, "the reader")
    world.blocks.take_back("query")
    world.gate.set()
    reader.join()
    assert read == [CONTENT[offset : offset + size]]
    assert len(world.script.reads) == 3


def test_who_waits_for_requests_that_are_taken_back_is_told(world):
    _plan(world, "query")
    _begun(world)
    told: list[int] = []
    for number, place in enumerate(RANGES):
        world.blocks.when_there(7, *place, lambda number=number: told.append(number))
    world.blocks.take_back("query")
    assert sorted(told) == list(range(2, len(RANGES)))
    world.gate.set()
    world.settle()
    assert sorted(told) == list(range(len(RANGES)))


def test_a_query_plans_again_what_was_taken_back(world):
    _plan(world, "query")
    _begun(world)
    world.blocks.take_back("query")
    _plan(world, "query")
    world.gate.set()
    world.settle()
    assert sorted(offset for _, offset, _ in world.script.reads) == [offset for offset, _ in RANGES]
