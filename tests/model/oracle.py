"""What every read must give: the whole database after each TXID, opened by Python's own copy of SQLite.

Shares no code with litevfs. An image is what SQLite itself hands out on the primary; which states a replica still holds
follows from nothing but the names of the files in its storage.
"""

from __future__ import annotations

import re
import sqlite3
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any

Rows = list[tuple[Any, ...]] | str
"""What a query gave: rows, or the message of SQLite's own error."""

MAX_OPEN = 12
"""Images that are open as databases at the same time."""
_FILE = re.compile(r"(\d)/([0-9a-f]{16})-([0-9a-f]{16})\.ltx")


class Oracle:
    """Images and times of one primary, by TXID."""

    def __init__(self) -> None:
        self.images: dict[int, bytes] = {}
        self.times_ms: dict[int, int] = {}  # Unix epoch
        self._open: OrderedDict[int, sqlite3.Connection] = OrderedDict()

    def record(self, txid: int, image: bytes, time_ms: int) -> None:
        """The database after transaction `txid`, which was made at `time_ms`. A TXID has one image for ever."""
        if txid in self.images:
            assert self.images[txid] == image, f"TXID {txid} stands for two states"
            return
        assert txid == max(self.images, default=0) + 1, f"TXID {txid} follows {max(self.images, default=0)}"
        self.images[txid], self.times_ms[txid] = image, time_ms

    def forget_after(self, txid: int) -> None:
        """Transactions that never left the primary: their TXIDs are free again."""
        for known in [known for known in self.images if known > txid]:
            del self.images[known], self.times_ms[known]
            if known in self._open:
                self._open.pop(known).close()

    def rows(self, txid: int, sql: str, bindings: Sequence[Any] = ()) -> Rows:
        """What plain SQLite answers at `txid`."""
        database = self._open.pop(txid, None)
        if database is None:
            image = self.images[txid]
            database = sqlite3.connect(":memory:")
            database.deserialize(image[:18] + b"\x01\x01" + image[20:])  # memory has no WAL
            if len(self._open) >= MAX_OPEN:
                self._open.popitem(last=False)[1].close()
        self._open[txid] = database
        try:
            return database.execute(sql, bindings).fetchall()
        except sqlite3.OperationalError as error:
            return str(error)

    def difference(self, txid: int, image: bytes) -> str:
        """What is not as in the database at `txid`, a reader's own fields aside; "" if nothing is."""
        expected = _comparable(self.images[txid])
        found = _comparable(image)
        if found == expected:
            return ""
        page_size = int.from_bytes(expected[16:18], "big")
        page_size = 65536 if page_size == 1 else page_size
        starts = range(0, len(expected), page_size)
        wrong = [
            i for i, start in enumerate(starts, 1) if found[start : start + page_size] != expected[start:][:page_size]
        ]
        zeros = [pgno for pgno in wrong if not any(found[(pgno - 1) * page_size : pgno * page_size])]
        first = next((i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b), len(found))
        return (
            f"TXID {txid}: {len(found)} of {len(expected)} bytes, first wrong at {first}, "
            f"wrong pages {wrong}, of these zeros {zeros}"
        )

    def txid_at(self, time_ms: int, reachable: Iterable[int]) -> int | None:
        """The newest of the reachable states that is no younger than a time."""
        return max((txid for txid in reachable if self.times_ms[txid] <= time_ms), default=None)

    def close(self) -> None:
        """Close the databases that are open."""
        for database in self._open.values():
            database.close()
        self._open.clear()


def reachable_txids(keys: Iterable[str]) -> set[int]:
    """The TXIDs whose state a storage with these keys holds: whole files, each leading on from one that is reachable.

    A file of TXIDs a to b leads from any reachable state from a - 1 on (0 is the empty state) to the state b.
    """
    ranges = sorted((int(m[3], 16), int(m[2], 16)) for key in keys if (m := _FILE.fullmatch(key)))
    reachable: set[int] = set()
    for last, first in ranges:
        if first == 1 or any(first - 1 <= txid < last for txid in reachable):
            reachable.add(last)
    return reachable


def newest_txid(keys: Iterable[str]) -> int:
    """The greatest TXID in a storage; 0 for an empty one."""
    return max((int(m[3], 16) for key in keys if (m := _FILE.fullmatch(key))), default=0)


_REPLICAS_OWN = ((18, 20), (24, 28), (40, 44), (92, 96))
"""Journal mode, change counter, schema cookie, and the version that the counter is valid for: of these the reader has
its own, so that its caches live as long as they may. Source: https://www.sqlite.org/fileformat2.html#the_database_header
"""


def _comparable(image: bytes) -> bytes:
    """All but what a reader has of its own."""
    header = bytearray(image[:100])
    for start, end in _REPLICAS_OWN:
        header[start:end] = bytes(end - start)
    return bytes(header) + image[100:]
