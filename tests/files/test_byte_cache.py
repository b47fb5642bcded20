"""The byte cache against a plain model, and its limit under threads."""

from __future__ import annotations

import sys
from collections import OrderedDict
from random import Random
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from litevfs.files.byte_cache import ENTRY_OVERHEAD_BYTES, ByteCache
from tests.interrupts import interrupted_everywhere
from tests.support import in_threads


class Model:
    """What a least recently used cache of bytes does, written the slow and plain way."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.entries: OrderedDict[int, bytes] = OrderedDict()

    @property
    def size(self) -> int:
        return sum(len(value) + ENTRY_OVERHEAD_BYTES for value in self.entries.values())

    def get(self, key: int) -> bytes | None:
        if key in self.entries:
            self.entries.move_to_end(key)
        return self.entries.get(key)

    def put(self, key: int, value: bytes) -> None:
        if key in self.entries or len(value) + ENTRY_OVERHEAD_BYTES > self.limit:
            return
        self.entries[key] = value
        while self.size > self.limit:
            self.entries.popitem(last=False)

    def demote(self, key: int) -> None:
        if key in self.entries:
            self.entries.move_to_end(key, last=False)

    def drop(self, key: int) -> None:
        self.entries.pop(key, None)


_steps = st.lists(
    st.tuples(st.sampled_from(["get", "put", "put", "demote", "drop"]), st.integers(0, 9), st.integers(0, 900)),
    max_size=60,
)


@given(st.integers(0, 3000), _steps)
def test_the_cache_does_what_the_model_does(limit, steps):
    cache, model = ByteCache(limit), Model(limit)
    for step, key, size in steps:
        if step == "get":
            assert cache.get(key) == model.get(key)
        elif step == "put":
            cache.put(key, bytes([key]) * size)
            model.put(key, bytes([key]) * size)
        elif step == "demote":
            cache.demote(key)
            model.demote(key)
        else:
            cache.drop(key)
            model.drop(key)
        assert cache.size_bytes == model.size <= limit
        assert len(cache) == len(model.entries)
        assert all((k in cache) == (k in model.entries) for k in range(10))


def test_a_cache_without_room_keeps_nothing():
    cache = ByteCache(0)
    cache.put(1, b"")
    assert cache.get(1) is None
    assert cache.size_bytes == 0


@pytest.mark.plan("D09", "L24")
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
            cache.put(key, bytes(10))
        return cache

    def work(cache: ByteCache) -> None:
        for key in range(3, 6):
            cache.put(key, bytes(10))
        cache.drop(5)

    for cache in interrupted_everywhere(make, work):
        for key in range(10, 30):
            cache.put(key, bytes(10))
            held = sum(10 + ENTRY_OVERHEAD_BYTES for known in range(30) if known in cache)
            assert held <= limit
        assert 29 in cache
