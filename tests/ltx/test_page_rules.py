from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from litevfs.errors import LTXFormatError
from litevfs.ltx import Header, PageIndex, validate_page_index
from litevfs.ltx.format import MAX_FRAME_SIZE
from litevfs.ltx.page_rules import PageOrder
from tests.ltx.test_page_index import make


def header(**fields) -> Header:
    return Header(**{"page_size": 4096, "commit": 9, "min_txid": 5, "max_txid": 5, "timestamp_ms": 0, **fields})


SOUND = [(2, 100, 50), (4, 150, 7), (9, 157, MAX_FRAME_SIZE)]
END = 157 + MAX_FRAME_SIZE


def test_sound_index_passes():
    validate_page_index(make(SOUND), header(), END)
    validate_page_index(make([]), header(), 100)
    validate_page_index(make([]), header(commit=0, min_txid=1), 100)


@pytest.mark.plan("L28")
@pytest.mark.parametrize(
    ("entries", "end", "message"),
    [
        ([], 101, "empty"),
        ([(2, 99, 50)], 149, "starts at byte 99"),
        ([(2, 2**64 - 50, 100)], 50, "starts at byte"),
        ([(2, 100, 6)], 106, "frames of 6"),
        ([(2, 100, 0)], 100, "frames of 0"),
        ([(2, 100, MAX_FRAME_SIZE + 1)], 101 + MAX_FRAME_SIZE, "frames of"),
        ([(2, 100, 50), (3, 151, 50)], 201, "back to back"),
        ([(2, 100, 50), (3, 149, 50)], 199, "back to back"),
        ([(2, 100, 50), (3, 100, 50)], 150, "back to back"),
        ([(2, 100, 50)], 149, "ends at byte 150"),
        ([(2, 100, 50)], 151, "ends at byte 150"),
        ([(2, 100, 50), (2, 150, 50)], 200, "ascend"),
        ([(3, 100, 50), (2, 150, 50)], 200, "ascend"),
        ([(0, 100, 50)], 150, "ascend"),
        ([(10, 100, 50)], 150, "above commit 9"),
    ],
)
def test_unsound_index_is_refused(entries, end: int, message: str):
    with pytest.raises(LTXFormatError, match=message):
        validate_page_index(make(entries), header(), end)


def index_of(pgnos) -> tuple[PageIndex, int]:
    pgnos = np.array(pgnos, np.uint32)
    return (
        PageIndex(pgnos, 100 + 20 * np.arange(len(pgnos), dtype=np.uint64), np.full(len(pgnos), 20, np.uint32)),
        100 + 20 * len(pgnos),
    )


LOCK = 16385
"""The lock page of pages of 65536 bytes: byte 2**30 is its first."""


@pytest.mark.plan("L18")
@pytest.mark.parametrize("commit", [LOCK - 1, LOCK, LOCK + 1, LOCK + 5])
def test_snapshot_holds_every_page_but_the_lock_page(commit: int):
    snapshot = header(page_size=65536, commit=commit, min_txid=1)
    pgnos = [pgno for pgno in range(1, commit + 1) if pgno != LOCK]
    validate_page_index(*_with(index_of(pgnos), snapshot))
    _add_all(snapshot, pgnos)
    for wrong in (pgnos[1:], pgnos[:-1], [*pgnos[:700], *pgnos[701:]], [*pgnos, commit + 1], sorted([*pgnos, LOCK])):
        if wrong != pgnos:
            with pytest.raises(LTXFormatError):
                validate_page_index(*_with(index_of(wrong), snapshot))
            with pytest.raises(LTXFormatError):
                _add_all(snapshot, wrong)


@pytest.mark.plan("L18")
@pytest.mark.parametrize("page_size", [512, 1024, 2048, 4096, 8192, 16384, 32768, 65536])
def test_lock_page_is_refused_for_every_page_size(page_size: int):
    lock = 2**30 // page_size + 1
    update = header(page_size=page_size, commit=lock + 9)
    for pgnos in ([lock - 1, lock + 1], [lock + 1], [lock - 1]):
        validate_page_index(*_with(index_of(pgnos), update))
        _add_all(update, pgnos)
    for pgnos in ([lock], [lock - 1, lock, lock + 1]):
        with pytest.raises(LTXFormatError, match="lock page"):
            validate_page_index(*_with(index_of(pgnos), update))
        with pytest.raises(LTXFormatError, match="lock page"):
            _add_all(update, pgnos)


def _with(index: tuple[PageIndex, int], header: Header) -> tuple[PageIndex, Header, int]:
    return index[0], header, index[1]


def _add_all(header: Header, pgnos) -> None:
    order = PageOrder(header)
    for pgno in pgnos:
        order.add(pgno)
    order.end()


@given(st.lists(st.integers(0, 8), max_size=8), st.integers(0, 8), st.booleans())
def test_order_page_by_page_and_as_a_whole_agree(pgnos, commit: int, is_snapshot: bool):
    file = header(commit=commit, min_txid=1 if is_snapshot else 2)
    expected = sorted(set(pgnos)) == pgnos and all(1 <= pgno <= commit for pgno in pgnos)
    if is_snapshot:
        expected = pgnos == list(range(1, commit + 1))
    for check in (lambda: validate_page_index(*_with(index_of(pgnos), file)), lambda: _add_all(file, pgnos)):
        try:
            check()
        except LTXFormatError:
            assert not expected
        else:
            assert expected
