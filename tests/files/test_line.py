"""What is measured of a line is what it is: latency and throughput, whatever requests are made over it."""

from __future__ import annotations

from heapq import heappop, heappush
from random import Random

import pytest

from litevfs.files.line import FIRST_BYTES_PER_S, FIRST_LATENCY_S, MAX_GAP_BYTES, Line, line_to


class Wire:
    """A line by arithmetic: after the latency, requests under way share the throughput evenly."""

    def __init__(self, latency_s: float, bytes_per_s: float, seed: int = 1) -> None:
        self.now = 0.0
        self.line = Line(lambda: self.now)
        self.latency_s, self.bytes_per_s = latency_s, bytes_per_s
        self._random = Random(seed)

    def carry(self, sizes: list[int], jitter: float = 0.1) -> None:
        """Requests that begin now, together; returns when all have ended."""
        ends: list[tuple[float, int, int]] = []
        free_at = self.now
        for i, size in enumerate(sorted(sizes)):
            arrives = self.now + self.latency_s * (1 + jitter * self._random.random())
            free_at = max(free_at, arrives) + size / self.bytes_per_s
            heappush(ends, (free_at, i, size))
        began = self.now
        calls = []
        for _ in sizes:
            end, _, size = heappop(ends)
            calls.append((end, size))
        self._nest(calls[::-1], began)

    def _nest(self, calls: list[tuple[float, int]], began: float) -> None:
        """Within the call that ends last come all others, so that they overlap as they would in threads."""
        if calls:
            (end, size), *rest = calls

            def request() -> bytes:
                self.now = began
                self._nest(rest, began)
                self.now = end
                return bytes(size)

            self.now = began
            self.line.carry(size, request, len)


@pytest.mark.parametrize("latency_s", [0.004, 0.025, 0.1])
@pytest.mark.parametrize("mbit_per_s", [20, 100, 1000])
def test_a_few_requests_show_what_a_line_is_like(latency_s, mbit_per_s):
    wire = Wire(latency_s, mbit_per_s * 1e6 / 8)
    wire.carry([100])
    for _ in range(6):
        wire.carry([1 << 16, 430_000])
        wire.carry([2000])
        wire.carry([1 << 20] * 4)
    assert latency_s <= wire.line.latency_s <= 1.2 * latency_s
    assert 0.5 * wire.bytes_per_s <= wire.line.bytes_per_s <= 2 * wire.bytes_per_s


@pytest.mark.parametrize(("latency_s", "at_once"), [(0.001, 32), (0.012, 40), (0.05, 64)])
def test_more_requests_are_under_way_at_once_where_each_takes_longer(latency_s, at_once):
    wire = Wire(latency_s, 50e6)
    for _ in range(40):
        wire.carry([4000], jitter=0)
    assert wire.line.at_once == pytest.approx(at_once, abs=1)


def test_a_slow_line_is_asked_for_less_in_vain_and_a_fast_one_less_often():
    slow, fast = Wire(0.05, 2.5e6), Wire(0.02, 125e6)
    for wire in (slow, fast):
        wire.carry([100])
        wire.carry([1 << 16, 430_000])
    assert slow.line.gap_bytes <= 10_000
    assert slow.line.ahead_bytes <= 1_500_000
    assert slow.line.request_bytes <= 300_000
    assert 100_000 <= fast.line.gap_bytes <= MAX_GAP_BYTES
    assert fast.line.request_bytes == 1 << 20


def test_requests_that_hang_and_spells_of_few_bytes_change_nothing():
    wire = Wire(0.02, 12.5e6)
    for _ in range(4):
        wire.carry([100])
        wire.carry([1 << 20] * 4)
    before = wire.line.latency_s, wire.line.bytes_per_s
    for _ in range(3):
        wire.carry([100])
    wire.latency_s = 5.0
    wire.carry([2000])
    wire.latency_s = 0.02
    for _ in range(20):
        wire.carry([1 << 16])
    assert wire.line.bytes_per_s == before[1]
    assert wire.line.latency_s <= 1.2 * before[0]


@pytest.mark.parametrize("large", [0, 1 << 20])
def test_requests_that_wait_for_the_bytes_of_others_do_not_make_a_line_longer(large):
    wire = Wire(0.05, 2.5e6)
    wire.carry([100])
    for _ in range(10):
        wire.carry([*[8000] * 60, *[large] * bool(large)])
    assert 0.05 <= wire.line.latency_s <= 0.08


def test_a_line_that_becomes_slower_is_noticed():
    wire = Wire(0.02, 100e6)
    for _ in range(8):
        wire.carry([1 << 20] * 4)
    wire.bytes_per_s = 2e6
    for _ in range(8):
        wire.carry([1 << 20] * 4)
    assert wire.line.bytes_per_s <= 4e6


def test_much_that_has_come_shows_the_throughput_while_more_is_under_way():
    wire = Wire(0.0, 100e6)
    seen = []

    def request() -> bytes:
        for _ in range(8):
            wire.carry([1 << 20])
        seen.append(wire.line.bytes_per_s)
        return bytes(1 << 20)

    wire.line.carry(1 << 20, request, len)
    assert 50e6 <= seen[0] <= 250e6


def test_bytes_that_have_come_show_a_slow_line_before_their_request_has_ended():
    wire = Wire(0.05, 2.5e6)
    wire.carry([100])
    seen = []

    def request() -> bytes:
        wire.now += wire.latency_s
        for _ in range(16):
            wire.now += (1 << 16) / wire.bytes_per_s
            wire.line.came(1 << 16)
            seen.append(wire.line.bytes_per_s)
        return bytes(1 << 20)

    wire.line.carry(1 << 20, request, lambda _: 0)
    assert seen[0] == FIRST_BYTES_PER_S
    assert all(2e6 <= rate <= 4e6 for rate in [*seen[8:], wire.line.bytes_per_s])


def test_a_request_that_fails_is_over():
    line = Line()
    for size in (10, 1 << 20):
        with pytest.raises(ConnectionError):
            line.carry(size, _fail, len)
    assert line.carry(1 << 20, lambda: bytes(1 << 20), len) == bytes(1 << 20)
    assert (line.latency_s, line.bytes_per_s) != (FIRST_LATENCY_S, FIRST_BYTES_PER_S)


def _fail() -> bytes:
    raise ConnectionError


def test_replicas_on_one_host_share_a_line_while_any_of_them_is_open():
    one = line_to("s3://bucket/one?endpoint=http://storage:9000&region=x")
    assert line_to("s3://bucket/two?region=x&endpoint=http://storage:9000") is one
    assert line_to("s3://bucket/one?endpoint=http://other:9000&region=x") is not one
