"""Page 1 as SQLite has to see it. Does no I/O.

Source of the places: https://www.sqlite.org/fileformat2.html#the_database_header
"""

from __future__ import annotations

import struct

from litevfs.states.snapshot import Snapshot

_JOURNAL_VERSIONS = b"\x01\x01"
"""Write and read version, bytes 18 and 19: 1 means rollback journal, 2 means WAL."""
_U32 = struct.Struct(">I")


def as_rollback_journal(page_one: bytes, snapshot: Snapshot, schema_salt: int) -> bytes:
    """Page 1 of a database in rollback-journal mode whose change counter is the snapshot's.

    `schema_salt` is added to the schema's version number.
    """
    page = bytearray(page_one)
    counter = _U32.pack(snapshot.change_counter)
    if page[24:28] != page[92:96]:  # as SQLite before 3.7 leaves it: then the size next to it is not valid
        page[28:32] = _U32.pack(snapshot.commit)
    page[18:20] = _JOURNAL_VERSIONS
    page[24:28] = counter
    page[92:96] = counter
    if schema_salt:
        page[40:44] = _U32.pack((_U32.unpack_from(page, 40)[0] + schema_salt) & 0xFFFFFFFF)
    return bytes(page)
