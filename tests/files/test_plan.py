"""Planning against exhaustive search: which states a set of files can make, and which chain makes the newest."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from litevfs.errors import ReplicaEmptyError, TXIDGapError, TXIDNotFoundError
from litevfs.files.plan import FILE_COST_BYTES, extend, least_bytes, newest_state
from litevfs.ltx.names import MAX_TXID
from litevfs.replica_clients.base import LTXFileInfo


def file(level: int, min_txid: int, max_txid: int) -> LTXFileInfo:
    return LTXFileInfo(level, min_txid, max_txid, 1000, 0)


def spans(files: Iterable[LTXFileInfo]) -> list[tuple[int, int, int]]:
    return [(f.level, f.min_txid, f.max_txid) for f in files]


# --- the oracle: every sequence of files that connects ----------------------------------------------------------------


def reachable(covered: int, files: list[LTXFileInfo]) -> dict[int, int]:
    """TXID -> fewest files that lead there, by trying everything."""
    best = {covered: 0}
    for _ in files:
        for (txid, steps), f in itertools.product(list(best.items()), files):
            if f.min_txid <= txid + 1 and f.max_txid > txid:
                best[f.max_txid] = min(best.get(f.max_txid, 10**9), steps + 1)
    return best


def connects(covered: int, chain: Iterable[LTXFileInfo]) -> bool:
    for f in chain:
        if not (f.min_txid <= covered + 1 and f.max_txid > covered):
            return False
        covered = f.max_txid
    return True


_files = st.lists(
    st.tuples(st.integers(0, 3), st.integers(1, 12), st.integers(0, 5)).map(lambda t: file(t[0], t[1], t[1] + t[2])),
    max_size=8,
    unique=True,
)
_snapshots = st.lists(st.integers(1, 12).map(lambda txid: file(9, 1, txid)), max_size=2, unique=True)


_sized_files = st.lists(
    st.builds(
        lambda level, first, more, size: LTXFileInfo(level, first, first + more, size, 0),
        st.integers(0, 3),
        st.integers(1, 12),
        st.integers(0, 5),
        st.sampled_from([1, 100, 50_000, 1_000_000]),
    ),
    max_size=8,
    unique=True,
)


@given(st.integers(0, 8), _sized_files, st.integers(1, 18))
def test_the_files_between_two_states_are_the_cheapest_that_lead_there(covered, files, target):
    best = {covered: 0}
    for _ in files:
        for (txid, cost), f in itertools.product(list(best.items()), files):
            if f.min_txid <= txid + 1 and txid < f.max_txid <= target:
                best[f.max_txid] = min(best.get(f.max_txid, 10**9), cost + f.size + FILE_COST_BYTES)
    chain = least_bytes(covered, files, target)
    if chain is None:
        assert target not in best
    else:
        assert connects(covered, chain)
        assert (chain[-1].max_txid if chain else covered) == target
        assert sum(f.size + FILE_COST_BYTES for f in chain) == best[target]


@given(st.integers(0, 8), _files, st.integers(1, 18))
def test_extend_reaches_as_far_as_any_chain_can_with_as_few_files(covered, files, target):
    chain = extend(covered, files, target)
    allowed = [f for f in files if f.max_txid <= target]
    possible = reachable(covered, allowed)
    assert chain.txid == max(possible)
    assert len(chain.files) == possible[chain.txid]
    assert connects(covered, chain.files)
    assert set(chain.files) <= set(allowed)


@given(st.integers(0, 8), _files)
def test_extend_reports_exactly_the_txids_between_what_it_reaches_and_the_next_file(covered, files):
    chain = extend(covered, files)
    later = [f.min_txid for f in files if f.max_txid > chain.txid]
    assert all(min_txid > chain.txid + 1 for min_txid in later)
    assert chain.gap == ((chain.txid + 1, min(later) - 1) if later else None)


@given(_files, _snapshots)
def test_newest_state_is_the_furthest_one_that_can_be_made_or_a_gap(files, snapshots):
    files = files + snapshots
    if not files:
        with pytest.raises(ReplicaEmptyError):
            newest_state(files)
        return
    furthest = max(reachable(0, files))
    if any(f.max_txid > furthest for f in files):
        with pytest.raises(TXIDGapError) as caught:
            newest_state(files)
        assert caught.value.min_txid == furthest + 1
        return
    chain = newest_state(files)
    assert chain.txid == furthest
    assert connects(0, chain.files)


@given(_files, _snapshots, st.integers(1, 18))
def test_a_target_is_met_exactly_or_refused(files, snapshots, target):
    files = files + snapshots
    if not files:
        return
    if target in reachable(0, files):
        chain = newest_state(files, target)
        assert chain.txid == target
        assert connects(0, chain.files)
    else:
        with pytest.raises(TXIDNotFoundError) as caught:
            newest_state(files, target)
        assert caught.value.min_txid == target
        assert caught.value.hint


# --- examples ---------------------------------------------------------------------------------------------------------


def test_a_chain_starts_from_the_newest_snapshot():
    files = [file(0, n, n) for n in range(1, 10)] + [file(9, 1, 3), file(9, 1, 7)]
    assert spans(newest_state(files).files) == [(9, 1, 7), (0, 8, 8), (0, 9, 9)]


def test_a_snapshot_past_the_target_is_not_used():
    files = [file(0, n, n) for n in range(1, 10)] + [file(9, 1, 3), file(9, 1, 7)]
    assert spans(newest_state(files, 5).files) == [(9, 1, 3), (0, 4, 4), (0, 5, 5)]


def test_a_chain_starts_from_a_snapshot_though_a_compacted_file_holds_all_and_more():
    files = [file(9, 1, 7), file(2, 1, 9)]
    assert spans(newest_state(files).files) == [(9, 1, 7), (2, 1, 9)]


def test_a_snapshot_of_the_target_itself_is_all_that_is_read():
    files = [file(0, n, n) for n in range(1, 10)] + [file(9, 1, 3), file(9, 1, 7)]
    assert spans(newest_state(files, 7).files) == [(9, 1, 7)]


def test_a_file_among_the_snapshots_that_does_not_begin_at_the_first_transaction_is_no_start():
    files = [file(0, 1, 1), file(9, 2, 4), file(0, 5, 5)]
    assert newest_state(files).files == tuple(files)


def test_on_a_tie_the_higher_level_wins():
    files = [file(0, 1, 4), file(2, 1, 4), file(1, 1, 4)]
    assert spans(extend(0, files).files) == [(2, 1, 4)]


def test_a_longer_file_wins_over_a_higher_level():
    files = [file(2, 1, 4), file(1, 1, 5)]
    assert spans(extend(0, files).files) == [(1, 1, 5)]


@pytest.mark.plan("L03")
def test_a_file_that_straddles_the_covered_state_connects():
    assert spans(extend(5, [file(1, 3, 8)]).files) == [(1, 3, 8)]


@pytest.mark.plan("L03")
def test_a_gap_covered_by_a_compacted_file_is_none():
    files = [file(0, 1, 1), file(0, 2, 2), file(0, 6, 6), file(1, 1, 5)]
    chain = newest_state(files)
    assert chain.gap is None
    assert spans(chain.files) == [(1, 1, 5), (0, 6, 6)]


@pytest.mark.plan("L03")
def test_a_gap_error_names_the_first_and_the_last_missing_txid():
    files = [file(0, 1, 1), file(0, 2, 2), file(0, 6, 6)]
    with pytest.raises(TXIDGapError) as caught:
        newest_state(files)
    assert (caught.value.min_txid, caught.value.max_txid) == (3, 5)
    assert "TXIDs 0000000000000003-0000000000000005" in str(caught.value)
    assert "txid=0000000000000002 is the state before" in str(caught.value)
    assert newest_state(files, 2).txid == 2


@pytest.mark.plan("L03")
def test_without_the_first_transaction_the_error_says_so():
    with pytest.raises(TXIDGapError, match="its first TXIDs are missing") as caught:
        newest_state([file(0, 4, 4)])
    assert "txid=" not in str(caught.value)


@pytest.mark.plan("L03")
def test_the_very_first_state_is_one_that_a_gap_error_names():
    with pytest.raises(TXIDGapError, match="txid=0000000000000001 is the state before"):
        newest_state([file(0, 1, 1), file(0, 3, 3)])


@pytest.mark.parametrize(
    ("target", "hint"),
    [
        (11, "the newest TXID is 000000000000000a"),
        (4, "the nearest earlier state is 0000000000000003"),
        (2, "the earliest state still held is 0000000000000003"),
    ],
)
def test_a_state_that_is_not_there_comes_with_the_nearest_that_is(target, hint):
    files = [file(1, 1, 3), file(1, 4, 9), file(0, 10, 10)]
    with pytest.raises(TXIDNotFoundError) as caught:
        newest_state(files, target)
    assert hint in str(caught.value)


def test_the_newest_txid_that_no_chain_leads_to_comes_with_the_nearest_that_one_does():
    with pytest.raises(TXIDNotFoundError, match="the nearest earlier state is 0000000000000003"):
        newest_state([file(1, 1, 3), file(0, 10, 10)], 10)


def test_the_earliest_of_several_first_states_is_named():
    with pytest.raises(TXIDNotFoundError, match="the earliest state still held is 0000000000000003"):
        newest_state([file(2, 1, 9), file(1, 1, 3), file(3, 1, 12)], 2)


@pytest.mark.parametrize("target", [2, 4, 5, 9])
def test_where_no_file_begins_with_the_first_txid_no_state_is_named_as_held(target):
    with pytest.raises(TXIDNotFoundError, match="so there is no state") as caught:
        newest_state([file(1, 4, 9), file(0, 5, 5)], target)
    assert "held" not in str(caught.value)


@pytest.mark.plan("D14")
def test_txids_at_the_end_of_their_range_stay_in_order():
    files = [
        file(9, 1, 2**63 - 1),
        file(0, 2**63, 2**63),
        file(0, 2**63 + 1, MAX_TXID - 1),
        file(0, MAX_TXID, MAX_TXID),
    ]
    chain = newest_state(files)
    assert chain.txid == MAX_TXID
    assert len(chain.files) == 4
    assert extend(MAX_TXID, files).files == ()
    assert newest_state(files, 2**63).txid == 2**63
