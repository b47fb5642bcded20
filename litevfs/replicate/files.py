"""What was captured becomes one LTX file beside the database, and the state after it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from litevfs.ltx.encoder import Encoder
from litevfs.ltx.format import Header
from litevfs.replicate.content import Content
from litevfs.replicate.state import State, StateFolder, fingerprint


def add_file(
    folder: StateFolder, before: State, content: Content, now_ms: int, between_pages: Callable[[], None]
) -> State:
    """Make `content` the TXID after `before`: the state, saved in `folder` like the file that leads to it.

    `now_ms` is its time, Unix milliseconds, unless that of `before` is later. `between_pages` is called for each page;
    what it raises leaves everything as it was. Raises WALError, ReplicatorError.
    """
    header = Header(
        page_size=content.page_size,
        commit=content.commit,
        min_txid=before.txid + 1,
        max_txid=before.txid + 1,
        timestamp_ms=max(now_ms, before.timestamp_ms),
        wal_offset=content.wal_offset,
        wal_size=content.wal_size,
        wal_salt1=content.end.salt1,
        wal_salt2=content.end.salt2,
    )
    file = folder.add_pending(header.max_txid, _encoded(folder, header, content, between_pages))
    size, trailer = fingerprint(file.path)
    state = replace(
        before,
        txid=header.max_txid,
        timestamp_ms=header.timestamp_ms,
        file_size=size,
        file_trailer=trailer,
        position=content.end,
    )
    folder.save(state)
    return state


def _encoded(
    folder: StateFolder, header: Header, content: Content, between_pages: Callable[[], None]
) -> Iterator[bytes]:
    with folder.spool() as spool:
        encoder = Encoder(header, spool=spool)
        yield encoder.begin()
        for pgno, page in content.pages:
            between_pages()
            yield encoder.page(pgno, page)
        yield from encoder.finish_in_parts()
