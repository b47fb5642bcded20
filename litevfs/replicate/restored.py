"""The state of a replicator whose database was just restored: it goes on from there, as if it had made that TXID.

Without it, the database may follow as its mark says (`marks.py`), but as a whole: nothing is known of its pages.
"""

from __future__ import annotations

import logging
import os
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import apsw

from litevfs.errors import LitevfsError
from litevfs.ltx.format import TRAILER_SIZE
from litevfs.replica_clients.base import ReplicaClient
from litevfs.replicate.changed_pages import sums_of_file
from litevfs.replicate.content import EMPTY_WAL
from litevfs.replicate.database import ReadTransaction
from litevfs.replicate.marks import read_restored
from litevfs.replicate.replica_position import replica_position
from litevfs.replicate.state import State, StateFolder

logger = logging.getLogger("litevfs.replicate")


@dataclass(frozen=True, slots=True)
class RestoredState:
    """What a restored file holds, as it was before others could open it."""

    page_size: int  # bytes
    sums: bytearray  # of all pages
    schema_version: int
    schema_sum: str | None


def restored_state(path: Path, page_size: int, commit: int) -> RestoredState:
    """The state in a file that no other program has open. Raises OSError, apsw.Error."""
    uri = f"file:{quote(os.fsencode(path.resolve()))}?immutable=1"
    with closing(apsw.Connection(uri, flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI)) as connection:
        version = connection.execute("PRAGMA schema_version").get
        schema_sum = ReadTransaction(connection, path, version).schema_sum()
    return RestoredState(page_size, sums_of_file(path, page_size, commit), version, schema_sum)


def begin_restored(folder: StateFolder, client: ReplicaClient, path: Path, txid: int, restored: RestoredState) -> None:
    """Leave in `folder`, which has no state, that the database at `path` is TXID `txid` of the replica of `client`.

    Does nothing where the replica has a newer TXID by now, or no file of level 0 to know that TXID again, or where
    another file is at `path`.
    """
    try:
        there = replica_position(client, txid)
        mark = read_restored(path)
        file = next((file for file in there.files if (file.min_txid, file.max_txid) == (txid, txid)), None)
        if file is None or there.problem is not None or there.txid != txid or folder.load() is not None:
            return
        if mark is None or (mark.replica_url, mark.txid) != (client.url, txid):
            return
        trailer = client.read(file, file.size - TRAILER_SIZE, TRAILER_SIZE).hex()
        state = State(
            replica_url=client.url,
            inode=mark.inode,
            page_size=restored.page_size,
            txid=txid,
            timestamp_ms=mark.timestamp_ms,
            file_size=file.size,
            file_trailer=trailer,
            position=EMPTY_WAL,
            schema_version=restored.schema_version,
            schema_read_at=restored.schema_version,
            schema_sum=restored.schema_sum,
        )
        folder.known_pages.prepare(state.key, state.page_size, restored.sums)
        folder.save(state)
        folder.known_pages.confirm()
    except LitevfsError as error:
        logger.warning("%s: the next upload holds the whole database: %s", path, error)
