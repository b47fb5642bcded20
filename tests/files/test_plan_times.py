"""Which states a replica holds, and which was the newest at a time, against exhaustive search."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from litevfs.errors import LitevfsError, ReplicaEmptyError, TXIDNotFoundError
from litevfs.files.plan import reachable_txids, state_at
from litevfs.ltx.file_info import LTXFileInfo
from litevfs.units import parse_moment_ms

NOW_MS = 1_800_000_000_000


def file(level: int, min_txid: int, max_txid: int) -> LTXFileInfo:
    return LTXFileInfo(level, min_txid, max_txid, 1000, 0)


def time_of(f: LTXFileInfo) -> int:
    """Transaction n was made at n seconds."""
    return f.max_txid * 1000


_files = st.lists(
    st.tuples(st.sampled_from([0, 1, 2, 9]), st.integers(1, 12), st.integers(0, 5)).map(
        lambda t: file(t[0], 1 if t[0] == 9 else t[1], t[1] + t[2])
    ),
    max_size=9,
    unique=True,
)


def reachable(files: list[LTXFileInfo]) -> set[int]:
    """By trying everything."""
    found = {0}
    for _ in files:
        for txid, f in itertools.product(list(found), files):
            if f.min_txid <= txid + 1 and f.max_txid > txid:
                found.add(f.max_txid)
    return found - {0}


@given(_files)
def test_the_reachable_states_are_those_that_some_chain_makes(files):
    found = reachable_txids(files)
    assert list(found) == sorted(reachable(files))
    assert all(f in files and f.max_txid == txid for txid, f in found.items())


@given(_files, st.integers(0, 20_000))
def test_the_state_at_a_time_is_the_newest_that_is_not_younger(files, timestamp_ms):
    states = sorted(reachable(files))
    fitting = [txid for txid in states if txid * 1000 <= timestamp_ms]
    if fitting:
        assert state_at(files, timestamp_ms, time_of) == fitting[-1]
    else:
        with pytest.raises(LitevfsError) as caught:
            state_at(files, timestamp_ms, time_of)
        assert isinstance(caught.value, TXIDNotFoundError if files else ReplicaEmptyError)


def test_a_state_that_only_a_snapshot_makes_is_as_old_as_its_last_transaction():
    """With the snapshot before, retention took what the other files that end there connect to."""
    files = [file(9, 1, 6), file(1, 5, 6), file(0, 6, 6), file(0, 9, 9)]
    assert reachable_txids(files) == {6: file(0, 6, 6)}

    def read(f: LTXFileInfo) -> int:
        return 8000 if f.level == 9 else time_of(f)  # the snapshot was made two seconds after the transaction

    assert state_at(files, 6000, read) == 6
    assert state_at(files, 7000, read) == 6
    with pytest.raises(TXIDNotFoundError, match=r"the earliest state still held is of 1970-01-01T00:00:06\.000Z"):
        state_at(files, 5999, read)


def test_a_search_in_a_long_history_reads_few_headers():
    files = [file(0, n, n) for n in range(1, 10_001)]
    asked = []

    def read(f: LTXFileInfo) -> int:
        asked.append(f)
        return time_of(f)

    assert state_at(files, 7_777_500, read) == 7777
    assert len(asked) <= math.ceil(math.log2(10_001)) + 1


def test_a_time_in_the_future_and_one_before_the_first_state_are_refused_with_what_is_held():
    files = [file(0, n, n) for n in range(1, 4)]
    with pytest.raises(TXIDNotFoundError, match="lies in the future"):
        state_at(files, 10**15, time_of)
    with pytest.raises(TXIDNotFoundError, match=r"the earliest state still held is of 1970-01-01T00:00:01\.000Z"):
        state_at(files, 999, time_of)


def test_a_time_before_all_calendars_is_refused_as_too_old():
    moment_ms = parse_moment_ms("1000000 days ago", NOW_MS)
    with pytest.raises(TXIDNotFoundError):
        state_at([file(0, 1, 1)], moment_ms, time_of)
