"""A limit on calls a second: never more in a second, turns between owners, waits that end."""

from __future__ import annotations

import threading
import time
from collections import Counter

import pytest

from litevfs.concurrency.rate_limit import RateLimit, rate_limit_of
from tests.support import in_threads, wait_until


class Owner:
    """One that makes calls."""


def test_no_second_has_more_calls_than_the_limit():
    limit, passed = RateLimit(20), []

    def call(i: int) -> None:
        owner = Owner()
        for _ in range(8):
            assert limit.take(owner, 30)
            passed.append(time.monotonic())

    in_threads(5, call)
    passed.sort()
    assert len(passed) == 40
    assert all(later - first >= 0.9 for first, later in zip(passed, passed[21:], strict=False))


def test_an_owner_with_one_call_does_not_wait_for_all_of_another():
    now = [0.0]
    limit = RateLimit(1, clock=lambda: now[0])
    greedy, modest = Owner(), Owner()
    assert limit.take(greedy, 1)
    order: list[str] = []

    def take(name: str, owner: Owner) -> None:
        assert limit.take(owner, 1000)
        order.append(name)

    threads = []
    for name, owner in [*[("greedy", greedy)] * 10, ("modest", modest)]:
        threads.append(threading.Thread(target=take, args=(name, owner)))
        threads[-1].start()
        wait_until(lambda: len(limit._waiting) == len(threads))
    for passed in range(1, 12):
        now[0] += 1.0
        limit.wake()
        wait_until(lambda passed=passed: len(order) == passed)
    for thread in threads:
        thread.join(20)
    assert order.index("modest") <= 1
    assert Counter(order) == {"greedy": 10, "modest": 1}


def test_a_wait_ends_with_its_time_and_with_its_owner():
    limit, owner = RateLimit(0.001), Owner()
    assert limit.take(owner, 0)
    assert not limit.take(owner, 0.01)
    over, result = threading.Event(), []
    thread = threading.Thread(target=lambda: result.append(limit.take(owner, 600, over.is_set)))
    thread.start()
    wait_until(lambda: limit._waiting)
    over.set()
    limit.wake()
    thread.join(20)
    assert result == [False]
    assert not limit._waiting


@pytest.mark.parametrize("rate", [5, 0.5])
def test_one_limit_for_all_that_ask_for_the_same(rate):
    limit = rate_limit_of(rate)
    assert rate_limit_of(rate) is limit
    assert rate_limit_of(rate + 1) is not limit
