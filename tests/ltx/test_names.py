from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from litevfs.errors import OptionError
from litevfs.ltx.names import MAX_TXID, format_file_name, format_txid, parse_file_name, parse_txid

TXID = st.one_of(
    st.integers(1, 2**64 - 1), st.integers(2**63 - 3, 2**63 + 3), st.integers(2**64 - 4, 2**64 - 1), st.integers(1, 9)
)


def test_name_is_two_numbers_of_16_hex_digits():
    assert format_file_name(1, 0xABCDEF) == "0000000000000001-0000000000abcdef.ltx"
    assert parse_file_name("0000000000000001-0000000000abcdef.ltx") == (1, 0xABCDEF)
    assert format_txid(255) == "00000000000000ff"


@pytest.mark.plan("D14")
@given(TXID, TXID)
def test_names_keep_every_txid_and_sort_as_txids_do(a: int, b: int):
    first, last = min(a, b), max(a, b)
    assert parse_file_name(format_file_name(first, last)) == (first, last)
    assert parse_txid(format_txid(a)) == a
    assert (format_txid(a) < format_txid(b)) == (a < b)
    assert (format_file_name(a, a) < format_file_name(b, b)) == (a < b)


@pytest.mark.plan("D14")
def test_last_txid_has_a_name():
    assert MAX_TXID == 2**64 - 1
    assert format_file_name(2**63, MAX_TXID) == "8000000000000000-ffffffffffffffff.ltx"
    assert parse_file_name("8000000000000000-ffffffffffffffff.ltx") == (2**63, 2**64 - 1)
    assert parse_txid("ffffffffffffffff") == MAX_TXID


@pytest.mark.plan("K10")
@pytest.mark.parametrize(
    "name",
    [
        "",
        ".ltx",
        "0000000000000001-0000000000000001",
        "0000000000000001-0000000000000001.ltx.tmp",
        "0000000000000001-0000000000000001.LTX",
        "0000000000000001-000000000000000A.ltx",
        "000000000000001-0000000000000001.ltx",
        "00000000000000001-0000000000000001.ltx",
        "0000000000000001_0000000000000001.ltx",
        "0000000000000000-0000000000000001.ltx",
        "0000000000000002-0000000000000001.ltx",
        "../0000000000000001-0000000000000001.ltx",
        "0000000000000001-0000000000000001.ltx\n",
        "\n0000000000000001-0000000000000001.ltx",
        "\u0661" * 16 + "-" + "\u0661" * 16 + ".ltx",
        "0x00000000000001-0000000000000001.ltx",
        "+000000000000001-0000000000000001.ltx",
        "0000_00000000001-0000000000000001.ltx",
    ],
)
def test_other_name_is_no_ltx_file(name: str):
    assert parse_file_name(name) is None


@given(st.text(alphabet="0123456789abcdefABCDEF-.ltx/\\\0\n ", max_size=40))
def test_a_name_that_parses_is_the_one_its_txids_have(name: str):
    txids = parse_file_name(name)
    assert txids is None or format_file_name(*txids) == name


@pytest.mark.parametrize(("text", "txid"), [("1", 1), ("ff", 255), ("FF", 255), ("00000000000000fF", 255)])
def test_txid_may_be_short_and_in_capitals(text: str, txid: int):
    assert parse_txid(text) == txid


@pytest.mark.parametrize(
    "text", ["", "0", "0000000000000000", "g", "0x1", "-1", "+1", " 1", "1 ", "1\n", "f" * 17, "1_0", "\u0661"]
)
def test_text_that_is_no_txid_is_refused(text: str):
    with pytest.raises(OptionError, match="not a TXID"):
        parse_txid(text)
