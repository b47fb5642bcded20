"""Page 1 as SQLite has to see it. Does no I/O.

Source of the places: https://www.sqlite.org/fileformat2.html#the_database_header
"""

from __future__ import annotations

import struct

JOURNAL_VERSIONS = b"\x01\x01"
"""Write and read version, bytes 18 and 19: 1 means rollback journal, 2 means WAL."""
_U32 = struct.Struct(">I")


def as_rollback_journal(page_one: bytes, change_counter: int, commit: int, schema_salt: int) -> bytes:
    """Page 1 of a database of `commit` pages in rollback-journal mode, with this change counter.

    `schema_salt` is added to the schema's version number.
    """
    page = bytearray(page_one)
    page[18:20] = JOURNAL_VERSIONS
    page[24:28] = page[92:96] = _U32.pack(change_counter & 0xFFFFFFFF)
    page[28:32] = _U32.pack(commit)  # SQLite before 3.7 leaves another size, and a counter that says so
    page[40:44] = _U32.pack((_U32.unpack_from(page, 40)[0] + schema_salt) & 0xFFFFFFFF)
    return bytes(page)
