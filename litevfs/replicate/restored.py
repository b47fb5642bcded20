"""What a restored database file holds, as it was before others could open it: kept with the mark of the restore.

With it, a replicator goes on from there as if it had made that TXID. Without it, the database may follow as its mark
says (`marks.py`), but as a whole: nothing is known of its pages.
"""

from __future__ import annotations

import json
import os
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import apsw
from fastcrc.crc64 import go_iso

from litevfs.replicate.changed_pages import sums_of_file
from litevfs.replicate.database import ReadTransaction
from litevfs.replicate.known_pages import SUM_SIZE
from litevfs.replicate.marks import read_restored_content


@dataclass(frozen=True, slots=True)
class RestoredState:
    """The pages and the schema of a restored file."""

    page_size: int  # bytes
    sums: bytes  # of all pages
    schema_version: int
    schema_sum: str | None

    def pack(self) -> bytes:
        """A line, then the sums."""
        fields = {"page_size": self.page_size, "schema_version": self.schema_version, "schema_sum": self.schema_sum}
        line = json.dumps(fields | {"pages": len(self.sums) // SUM_SIZE}).encode()
        return b"%016x %b\n%b" % (_checksum(line, self.sums), line, self.sums)


def restored_state(path: Path, page_size: int, commit: int) -> RestoredState:
    """The state in a file that no other program has open. Raises OSError, apsw.Error."""
    uri = f"file:{quote(os.fsencode(path.resolve()))}?immutable=1"
    with closing(apsw.Connection(uri, flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI)) as connection:
        version = connection.execute("PRAGMA schema_version").get
        schema_sum = ReadTransaction(connection, path, version).schema_sum()
    return RestoredState(page_size, bytes(sums_of_file(path, page_size, commit)), version, schema_sum)


def read_restored_state(database: Path) -> RestoredState | None:
    """What the restore of this database has left; None when it left none, or it is damaged."""
    try:
        line, _, sums = read_restored_content(database).partition(b"\n")
        fields = json.loads(line[17:])
        is_sound = int(line[:16], 16) == _checksum(line[17:], sums) and len(sums) == fields.pop("pages") * SUM_SIZE
        return RestoredState(sums=sums, **fields) if is_sound else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _checksum(line: bytes, sums: bytes) -> int:
    return int(go_iso(sums, go_iso(line)))
