from __future__ import annotations

import pytest

from litevfs.ltx import DatabaseChecksum, FileChecksum, database_checksum, page_checksum
from tests.ltx.reference import BIT_63, checksum_of_database, crc64, page_of

PAGES = [(pgno, page_of(pgno, 512)) for pgno in (1, 2, 3)]


def test_reference_is_the_published_crc():
    # Check value of CRC-64/GO-ISO for "123456789": https://reveng.sourceforge.io/crc-catalogue/all.htm
    assert crc64(b"123456789") == 0xB90956C775A41001


@pytest.mark.parametrize("convert", [bytes, bytearray, memoryview])
def test_file_checksum_is_the_same_in_pieces(convert):
    data = bytes(range(256)) * 3
    checksum = FileChecksum()
    for start in range(0, len(data), 100):
        checksum.update(convert(data[start : start + 100]))
    assert checksum.value == crc64(data) | BIT_63


def test_copy_of_a_file_checksum_goes_its_own_way():
    checksum = FileChecksum()
    checksum.update(b"one")
    other = checksum.copy()
    other.update(b"two")
    assert checksum.value == crc64(b"one") | BIT_63
    assert other.value == crc64(b"onetwo") | BIT_63


@pytest.mark.parametrize("pgno", [1, 2, 255, 2**32 - 1])
def test_page_checksum_covers_number_and_content(pgno: int):
    assert page_checksum(pgno, PAGES[0][1]) == crc64(pgno.to_bytes(4, "big") + PAGES[0][1]) | BIT_63


def test_database_checksum_is_the_xor_of_its_pages():
    assert database_checksum(PAGES) == checksum_of_database(PAGES)
    assert database_checksum(reversed(PAGES)) == checksum_of_database(PAGES)
    assert database_checksum([]) == BIT_63


def test_rolling_checksum_follows_a_changed_page():
    rolling = DatabaseChecksum(database_checksum(PAGES))
    new = page_of(2, 512, seed=1)
    rolling.toggle(2, PAGES[1][1])
    rolling.toggle(2, new)
    assert rolling.value == checksum_of_database([PAGES[0], (2, new), PAGES[2]])
