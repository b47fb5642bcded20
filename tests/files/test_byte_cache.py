"""The byte cache against a plain model, and its limit under threads."""

from __future__ import annotations

import sys
from collections import OrderedDict
from itertools import pairwise
from random import Random
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from litevfs.files.byte_cache import (
    AHEAD_LIFE_S,
    AHEAD_SHARE,
    ENTRY_OVERHEAD_BYTES,
    PASSING,
    ROOM_SHIFT,
    ByteCache,
)
from tests.interrupts import interrupted_everywhere
from tests.support import in_threads


class Model:
    """What a least recently used cache of bytes does, written the slow and plain way."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.entries: OrderedDict[int, bytes] = OrderedDict()
        self.ahead: OrderedDict[int, bytes] = OrderedDict()
        self.passing: list[int] = []
        self.used: list[int] = []
        self.held: set[int] = set()  # of `ahead`: those that were used before
        self.staying: set[int] = set()  # of `ahead`: those that are not moved by their use

    @property
    def size(self) -> int:
        return sum(cost(value) for value in [*self.entries.values(), *self.ahead.values()])

    def get(self, key: int) -> bytes | None:
        if key in self.ahead and key in self.staying:
            value = self.ahead[key] = self.ahead.pop(key)
            if key not in self.held:
                self.used.append(len(value))
            self.held.add(key)
            return value
        if key in self.ahead:
            self.entries[key] = self.ahead.pop(key)
            if key not in self.held:
                self.used.append(len(self.entries[key]))
            self.passing.append(key)
            if len(self.passing) > PASSING and (passed := self.passing.pop(0)) in self.entries:
                self.entries.move_to_end(passed, last=False)
        elif key in self.entries:
            self.entries.move_to_end(key)
        return self.entries.get(key)

    def put(self, key: int, value: bytes, *, ahead: bool) -> None:
        ahead_limit = int(self.limit * AHEAD_SHARE)
        if key in self.entries or key in self.ahead or cost(value) > (ahead_limit if ahead else self.limit):
            return
        while ahead and sum(map(cost, self.ahead.values())) + cost(value) > ahead_limit:
            self.held.discard(self.ahead.popitem(last=False)[0])
        while self.size + cost(value) > self.limit:
            gone = (self.entries or self.ahead).popitem(last=False)[0]
            self.held.discard(gone)
        self.held.discard(key)
        self.staying.discard(key)
        (self.ahead if ahead else self.entries)[key] = value

    def touch(self, key: int) -> bool:
        if key in self.entries:
            self.entries.move_to_end(key)
        return key in self.entries or key in self.ahead

    def hold(self, key: int, *, stays: bool) -> bool:
        value = self.entries.get(key)
        if value is None:
            if key in self.ahead:
                self.ahead.move_to_end(key)
                self.staying |= {key} if stays else set()
            return key in self.ahead
        if sum(map(cost, self.ahead.values())) + cost(value) <= int(self.limit * AHEAD_SHARE):
            self.ahead[key] = self.entries.pop(key)
            self.held.add(key)
            self.staying = self.staying | {key} if stays else self.staying - {key}
        return True

    def drop(self, key: int) -> None:
        self.entries.pop(key, None)
        self.ahead.pop(key, None)


def cost(value: bytes) -> int:
    return len(value) + ENTRY_OVERHEAD_BYTES


_steps = st.lists(
    st.tuples(
        st.sampled_from(["get", "put", "put", "put ahead", "put ahead", "hold", "touch", "drop"]),
        st.integers(0, 19),
        st.integers(0, 900),
    ),
    max_size=80,
)


@given(st.integers(0, 5000), _steps)
def test_the_cache_does_what_the_model_does(limit, steps):
    used: list[int] = []
    cache, model = ByteCache(limit, used.append, clock=lambda: 0.0), Model(limit)
    for step, key, size in steps:
        if step == "get":
            assert cache.get(key) == model.get(key)
        elif step == "hold":
            stays = size % 2 == 0
            assert cache.hold(key, stays=stays) == model.hold(key, stays=stays)
        elif step == "touch":
            assert cache.touch(key) == model.touch(key)
        elif step == "drop":
            cache.drop(key)
            model.drop(key)
        else:
            cache.put(key, bytes([key]) * size, ahead=step == "put ahead")
            model.put(key, bytes([key]) * size, ahead=step == "put ahead")
        assert cache.size_bytes == model.size <= limit
        assert len(cache) == len(model.entries) + len(model.ahead)
        assert all(cache.peek(k) == model.entries.get(k, model.ahead.get(k)) for k in range(20))
        assert all((k in cache) == (cache.peek(k) is not None) for k in range(20))
        assert used == model.used


def test_what_was_read_ahead_is_not_driven_out_by_what_is_used_until_it_has_waited_too_long():
    now = 0.0
    cache = ByteCache(9 * (100 + ENTRY_OVERHEAD_BYTES), clock=lambda: now)
    for key in range(6):
        cache.put(key, bytes(100), ahead=True)
    for key in range(10, 50):
        cache.put(key, bytes(100))
    assert all(key in cache for key in range(6))
    now = AHEAD_LIFE_S + 1
    for key in range(50, 60):
        cache.put(key, bytes(100))
    assert not any(key in cache for key in range(6))
    assert all(key in cache for key in range(51, 60))


def test_a_full_cache_makes_room_for_several_entries_at_once_and_stays_nearly_full():
    random, limit = Random(7), 1 << 20
    cache = ByteCache(limit)
    kept: list[int] = []
    for key in range(3000):
        cache.put(key, bytes(random.randrange(1024)))
        kept.append(len(cache))
        assert cache.size_bytes <= limit
        assert key < 2000 or cache.size_bytes > limit - (limit >> ROOM_SHIFT) - 2048
    assert all(key in cache for key in range(3000 - len(cache), 3000))
    assert sum(after < before for before, after in pairwise(kept)) < 500


def test_a_cache_is_full_from_its_first_eviction_on_until_it_is_enlarged():
    cache = ByteCache(3 * (1000 + ENTRY_OVERHEAD_BYTES))
    for key in range(3):
        cache.put(key, bytes(1000))
        assert not cache.is_full
    cache.put(3, bytes(1000))
    assert cache.is_full
    cache.enlarge(100)
    assert cache.is_full
    assert cache.limit_bytes == 3 * (1000 + ENTRY_OVERHEAD_BYTES)
    cache.enlarge(5 * (1000 + ENTRY_OVERHEAD_BYTES))
    assert not cache.is_full
    cache.put(4, bytes(1000))
    assert not cache.is_full


def test_a_cache_without_room_keeps_nothing():
    cache = ByteCache(0)
    cache.put(1, b"")
    assert cache.get(1) is None
    assert cache.size_bytes == 0


@pytest.mark.plan("D09", "L24")
def test_what_is_planned_again_outlives_what_was_read_ahead_for_nothing():
    cache = ByteCache(10 * (100 + ENTRY_OVERHEAD_BYTES))  # of them, room for nine that are put ahead
    for key in range(9):
        cache.put(key, bytes(100), ahead=True)
    assert all(cache.hold(key) for key in (0, 1, 2))
    for key in range(10, 16):
        cache.put(key, bytes(100), ahead=True)
    assert [key for key in range(20) if key in cache] == [0, 1, 2, *range(10, 16)]


def test_threads_never_get_another_keys_bytes_and_the_limit_holds():
    limit = 50 * (100 + ENTRY_OVERHEAD_BYTES)
    cache = ByteCache(limit)

    def work(thread: int) -> int:
        hits, random = 0, Random(thread)
        for i in range(4000):
            key = random.randrange(100)
            value = cache.get(key)
            if value is None:
                cache.put(key, key.to_bytes(2, "big") * 50)
            else:
                hits += 1
                assert value == key.to_bytes(2, "big") * 50
            if i % 50 == 0:
                cache.drop(key)
        return hits

    assert sum(in_threads(4, work)) > 0
    assert cache.size_bytes == len(cache) * (100 + ENTRY_OVERHEAD_BYTES) <= limit


@pytest.mark.plan("L24")
def test_the_limit_holds_at_any_moment_of_a_put():
    """As another thread may see it, which reads the size without waiting."""
    cache = ByteCache(3 * (10 + ENTRY_OVERHEAD_BYTES))
    sizes = []

    def look(frame: FrameType, event: str, _: Any) -> Any:
        sizes.append(cache.size_bytes)
        return look

    before = sys.gettrace()
    sys.settrace(look)
    try:
        for key in range(6):
            cache.put(key, bytes(10))
    finally:
        sys.settrace(before)
    assert max(sizes) == cache.limit_bytes


def test_ctrl_c_at_any_moment_leaves_a_cache_that_works_under_its_limit():
    limit = 3 * (10 + ENTRY_OVERHEAD_BYTES)

    def make() -> ByteCache:
        cache = ByteCache(limit)
        for key in range(3):
            cache.put(key, bytes(10), ahead=key > 0)
        return cache

    def work(cache: ByteCache) -> None:
        for key in range(3, 6):
            cache.put(key, bytes(10), ahead=key == 4)
            cache.get(key - 1)
            cache.hold(key)
        cache.drop(5)

    for cache in interrupted_everywhere(make, work):
        for key in range(10, 30):
            cache.put(key, bytes(10))
            held = sum(10 + ENTRY_OVERHEAD_BYTES for known in range(30) if known in cache)
            assert held <= limit
        assert 29 in cache
