"""Which states a replica holds, and which was the newest at a time: against exhaustive search, with damaged headers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from litevfs.errors import LitevfsError, LTXChecksumError, ReplicaEmptyError, TXIDGapError, TXIDNotFoundError
from litevfs.files.moments import state_at
from litevfs.files.plan import reachable_txids
from litevfs.ltx.file_info import LTXFileInfo
from litevfs.units import parse_moment_ms

NOW_MS = 1_800_000_000_000


def file(level: int, min_txid: int, max_txid: int) -> LTXFileInfo:
    return LTXFileInfo(level, min_txid, max_txid, 1000, 0)


def time_of(f: LTXFileInfo) -> int:
    """Transaction n was made at n seconds."""
    return f.max_txid * 1000


class Times:
    """What headers say when they are read alone, if not the truth, and which files are damaged."""

    def __init__(
        self,
        truth: Callable[[LTXFileInfo], int] = time_of,
        lies: dict[LTXFileInfo, int] | None = None,
        damaged: Iterable[LTXFileInfo] = (),
    ) -> None:
        self._truth, self._lies, self._damaged = truth, lies or {}, set(damaged)
        self.asked: list[LTXFileInfo] = []
        self.confirmed: list[LTXFileInfo] = []

    def read_time(self, f: LTXFileInfo) -> int:
        self.asked.append(f)
        return self._lies.get(f, self._truth(f))

    def confirm_times(self, read: Sequence[tuple[LTXFileInfo, int | None]]) -> list[int]:
        self.confirmed += [f for f, _ in read]
        if any(f in self._damaged for f, _ in read):
            raise LTXChecksumError("damaged")
        return [self._truth(f) for f, _ in read]


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
    lost = [f for f in files if states and f.max_txid > states[-1] and time_of(f) <= timestamp_ms]
    if fitting and not lost:
        assert state_at(files, timestamp_ms, Times()) == fitting[-1]
    else:
        with pytest.raises(LitevfsError) as caught:
            state_at(files, timestamp_ms, Times())
        assert type(caught.value) is (TXIDGapError if lost else TXIDNotFoundError if files else ReplicaEmptyError)


@given(_files, st.integers(0, 20_000), st.data())
def test_headers_that_lie_when_they_are_read_alone_choose_no_other_state(files, timestamp_ms, data):
    lies = data.draw(st.dictionaries(st.sampled_from(files), st.integers(0, 1 << 63)) if files else st.just({}))

    def found(times: Times) -> int | type:
        try:
            return state_at(files, timestamp_ms, times)
        except LitevfsError as error:
            return type(error)

    assert found(Times(lies=lies)) == found(Times())


def test_two_files_are_confirmed_and_no_more_where_no_header_lies():
    files = [file(0, n, n) for n in range(1, 1001)]
    times = Times()
    assert state_at(files, 500_500, times) == 500
    assert times.confirmed == [files[499], files[500]]
    newest = Times()
    assert state_at(files, 1_000_000, newest) == 1000
    assert newest.confirmed == [files[999]]


def test_a_damaged_file_that_decides_is_gone_around_where_another_one_ends_there():
    level_0, level_1 = [file(0, n, n) for n in range(1, 6)], file(1, 1, 3)
    assert state_at([*level_0, level_1], 3500, Times(damaged=[level_0[2]])) == 3
    assert state_at([*level_0, level_1], 2500, Times(damaged=[level_0[2]])) == 2
    with pytest.raises(LTXChecksumError, match="txid=0000000000000003, or txid=0000000000000002 before it"):
        state_at(level_0, 3500, Times(damaged=[level_0[2]]))
    with pytest.raises(LTXChecksumError, match="txid=0000000000000003, or txid=0000000000000002 before it"):
        state_at(level_0, 2500, Times(damaged=[level_0[2]]))
    assert state_at(level_0, 4500, Times(damaged=[level_0[2]])) == 4


@pytest.mark.parametrize(("timestamp_ms", "found"), [(3900, None), (4100, 3)])
def test_a_snapshot_that_was_made_later_says_only_that_its_last_transaction_is_not_younger(timestamp_ms, found):
    files = [*(file(0, n, n) for n in range(1, 4)), file(9, 1, 3), file(0, 9, 9)]

    def truth(f: LTXFileInfo) -> int:
        return 4000 if f.level == 9 else time_of(f)

    times = Times(truth, damaged=[files[2]])
    if found:
        assert state_at(files, timestamp_ms, times) == found
    else:
        with pytest.raises(LTXChecksumError):
            state_at(files, timestamp_ms, times)


def test_transactions_past_a_gap_are_not_passed_over_if_they_were_made_by_then():
    files = [file(0, n, n) for n in (1, 2, 3, 5, 6)]
    assert state_at(files, 4999, Times()) == 3
    for timestamp_ms in (5000, 9000):
        with pytest.raises(TXIDGapError, match="txid=0000000000000003 is the state before") as caught:
            state_at(files, timestamp_ms, Times())
        assert (caught.value.min_txid, caught.value.max_txid) == (4, 4)


def test_a_state_that_only_a_snapshot_makes_is_as_old_as_its_last_transaction():
    """With the snapshot before, retention took what the other files that end there connect to."""
    files = [file(9, 1, 6), file(1, 5, 6), file(0, 6, 6), file(0, 9, 9)]
    assert reachable_txids(files) == {6: file(0, 6, 6)}

    def read(f: LTXFileInfo) -> int:
        return 8000 if f.level == 9 else time_of(f)  # the snapshot was made two seconds after the transaction

    assert state_at(files, 6000, Times(read)) == 6
    assert state_at(files, 7000, Times(read)) == 6
    with pytest.raises(TXIDNotFoundError, match=r"the earliest state still held is of 1970-01-01T00:00:06\.000Z"):
        state_at(files, 5999, Times(read))


def test_a_search_in_a_long_history_reads_few_headers():
    files = [file(0, n, n) for n in range(1, 10_001)]
    times = Times()
    assert state_at(files, 7_777_500, times) == 7777
    assert len(times.asked) <= math.ceil(math.log2(10_001)) + 1


def test_a_time_in_the_future_and_one_before_the_first_state_are_refused_with_what_is_held():
    files = [file(0, n, n) for n in range(1, 4)]
    with pytest.raises(TXIDNotFoundError, match="lies in the future"):
        state_at(files, 10**15, Times())
    with pytest.raises(TXIDNotFoundError, match=r"the earliest state still held is of 1970-01-01T00:00:01\.000Z"):
        state_at(files, 999, Times())


def test_a_time_before_all_calendars_is_refused_as_too_old():
    moment_ms = parse_moment_ms("1000000 days ago", NOW_MS)
    with pytest.raises(TXIDNotFoundError):
        state_at([file(0, 1, 1)], moment_ms, Times())
