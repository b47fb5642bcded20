"""Plans of requests: every range in one of them, none larger than it may be, no gap read over that does not pay."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from litevfs.files.ranges import (
    Limits,
    Range,
    affordable_runs,
    block_runs,
    blocks_of,
    clusters,
    likely_head_bytes,
    scattered_runs,
)
from litevfs.ltx.file_info import LTXFileInfo


@st.composite
def _ascending(draw: st.DrawFn) -> list[Range]:
    offset, ranges = 0, []
    for gap, size in draw(st.lists(st.tuples(st.integers(0, 3000), st.integers(1, 500)), min_size=1, max_size=40)):
        offset += gap
        ranges.append((offset, size))
        offset += size
    return ranges


_limits = st.builds(Limits, st.sampled_from([100, 1000]), st.integers(0, 2000), st.integers(500, 5000))


@pytest.mark.slow
@given(_ascending(), _limits)
def test_every_range_is_in_one_group_in_order_and_sparse_groups_are_not_neighbours(ranges, limits):
    groups = clusters(ranges, limits)
    assert list(itertools.chain.from_iterable(group for group, _ in groups)) == ranges
    assert not any(not dense and not next_dense for (_, dense), (_, next_dense) in itertools.pairwise(groups))
    for group, is_dense in groups:
        if is_dense:
            assert sum(size for _, size in group) >= (sum(group[-1]) - group[0][0]) / 4


def _bytes(runs: list[list[Range]]) -> int:
    return sum(sum(run[-1]) - run[0][0] for run in runs)


@given(_ascending(), _limits, st.integers(0, 100_000))
def test_gaps_are_read_over_as_far_as_there_is_room_and_no_range_is_left_out(ranges, limits, room):
    runs = affordable_runs(ranges, limits, lambda size: size <= room)
    assert list(itertools.chain.from_iterable(runs)) == ranges
    assert _bytes(runs) <= max(room, _bytes([[wanted] for wanted in ranges]))
    if _bytes(scattered_runs(ranges, limits)) <= room:
        assert runs == scattered_runs(ranges, limits)


def test_of_the_gaps_the_small_ones_are_read_over_as_long_as_no_more_bytes_come_than_are_wanted():
    sparing = Limits(1 << 16, 1000, 1 << 20, is_sparing=True)
    ranges = [(0, 100), (150, 100), (300, 100), (900, 100), (1_700, 100), (2_400, 100)]  # gaps of 50, 500, 700, 600
    assert affordable_runs(ranges, sparing, lambda _: True) == [ranges[:4], ranges[4:5], ranges[5:]]
    assert affordable_runs(ranges, replace(sparing, is_sparing=False), lambda _: True) == [ranges]
    assert affordable_runs(ranges, sparing, lambda size: size <= 700) == [ranges[:3], *([one] for one in ranges[3:])]


@given(_ascending(), _limits)
def test_scattered_ranges_share_a_request_where_the_gap_pays_and_it_does_not_become_too_large(ranges, limits):
    runs = scattered_runs(ranges, limits)
    assert list(itertools.chain.from_iterable(runs)) == ranges
    for run in runs:
        assert len(run) == 1 or sum(run[-1]) - run[0][0] <= limits.request
        assert all(offset - sum(before) <= limits.gap for before, (offset, _) in itertools.pairwise(run))
    for run, following in itertools.pairwise(runs):
        gap, size = following[0][0] - sum(run[-1]), sum(following[0]) - run[0][0]
        assert gap > limits.gap or size > limits.request


@given(_ascending(), st.integers(50, 900))
def test_the_blocks_of_ranges_are_those_that_hold_a_byte_of_them(ranges, size_of_block):
    expected = {byte // size_of_block for offset, size in ranges for byte in range(offset, offset + size)}
    assert blocks_of(ranges, size_of_block) == sorted(expected)


@given(st.sets(st.integers(0, 60)), st.integers(1, 9))
def test_blocks_come_in_runs_of_neighbours(blocks, most):
    runs = block_runs(sorted(blocks), most)
    assert list(itertools.chain.from_iterable(runs)) == sorted(blocks)
    assert all(1 <= len(run) <= most for run in runs)
    assert all(len(run) == most or run.stop != following.start for run, following in itertools.pairwise(runs))


@pytest.mark.parametrize(
    ("size", "block", "free", "head"),
    [
        (40_000_000, 1 << 16, 500_000, 7 << 16),  # a hundredth of the file
        (40_000_000, 1 << 16, 100_000, 2 << 16),  # what comes in a round trip
        (40_000_000, 1 << 16, 10, 1 << 16),
        (3_000_000, 1 << 16, 500_000, 1 << 16),
        (1000, 1 << 16, 500_000, 1000),
        (40_000_000, 0, 500_000, 100),  # without blocks only the header is of use
    ],
)
def test_the_head_of_a_file_is_a_hundredth_of_it_as_far_as_that_costs_no_time(size, block, free, head):
    assert likely_head_bytes(LTXFileInfo(9, 1, 1, size, 0), block, free) == head
