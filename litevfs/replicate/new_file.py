"""Makes the LTX file of the next TXID, and the state that counts it. Owns no position and no folder."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import chain
from tempfile import SpooledTemporaryFile

from litevfs.ltx.encoder import Encoder
from litevfs.ltx.format import Header, lock_pgno
from litevfs.replicate.content import Content
from litevfs.replicate.known_pages import page_sum
from litevfs.replicate.schema_mark import version_of
from litevfs.replicate.state import SMALL_FILE_BYTES, State, StateFolder

_SUMMED_PAGES = 64
"""Of a capture of more pages, sums of the rest are computed later (`limits.SUMS_A_STEP`), once for several captures."""


def add_file(
    folder: StateFolder,
    before: State,
    content: Content,
    now_ms: int,
    between_pages: Callable[[], None],
    sums: bytearray | None = None,
) -> State:
    """Make `content` the TXID after `before`: the state, saved in `folder` like the file that leads to it.

    `now_ms` is its time, Unix milliseconds, unless that of `before` is later. `between_pages` is called for each page;
    what it raises leaves everything as it was. `sums` are those of all pages of the database, once `content` was read,
    or None, if `content` is what changed since `before`. Raises WALError, ReplicatorError.
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
    pages = _Noted(content.pages, _SUMMED_PAGES if sums is None else 0)
    with folder.spool() as spool:  # here, so that it is closed as soon as anything fails
        parts = _Parts(_encoded(spool, header, pages, between_pages))
        begun = list(parts.up_to(SMALL_FILE_BYTES)) if folder.takes_small else []
        is_whole = len(pages.pgnos) == content.commit - (lock_pgno(content.page_size) <= content.commit)
        is_small = parts.is_over and not is_whole
        if not is_small:
            folder.add_pending(header.max_txid, chain(begun, parts))
    state = replace(
        before,
        txid=header.max_txid,
        timestamp_ms=header.timestamp_ms,
        file_size=parts.size,
        file_trailer=parts.last.hex(),
        position=content.end,
        schema_version=before.schema_version if pages.page_1 is None else version_of(pages.page_1),
    )
    known = folder.known_pages
    if sums is not None:
        known.prepare(state.key, state.page_size, sums)
    elif known.is_at(before.key, before.page_size):
        known.add(state.key, content.commit, pages.pgnos, bytes(pages.sums))
    else:
        known.prepare(state.key, state.page_size, b"", content.commit)
    folder.save(state, b"".join(begun) if is_small else None)
    known.confirm()
    return state


class _Noted:
    """An iterator that notes which pages passed, and the sums of the first `summed` ones."""

    def __init__(self, pages: Iterator[tuple[int, bytes]], summed: int) -> None:
        self._pages, self._summed = pages, summed
        self.pgnos, self.sums = array("I"), bytearray()
        self.page_1: bytes | None = None

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        for pgno, page in self._pages:
            if pgno == 1:
                self.page_1 = page
            self.pgnos.append(pgno)
            if len(self.pgnos) <= self._summed:
                self.sums += page_sum(page)
            yield pgno, page


class _Parts:
    """The parts of a file as they pass: their size, and the last one, which is an LTX file's trailer."""

    def __init__(self, parts: Iterator[bytes]) -> None:
        self._parts = parts
        self.size, self.last = 0, b""
        self.is_over = False

    def __iter__(self) -> Iterator[bytes]:
        for part in self._parts:
            self.size += len(part)
            self.last = part
            yield part
        self.is_over = True

    def up_to(self, size: int) -> Iterator[bytes]:
        """The parts until they have more than `size` bytes together, or are over."""
        for part in self:
            yield part
            if self.size > size:
                return


def _encoded(
    spool: SpooledTemporaryFile[bytes],
    header: Header,
    pages: Iterable[tuple[int, bytes]],
    between_pages: Callable[[], None],
) -> Iterator[bytes]:
    encoder = Encoder(header, spool=spool)
    yield encoder.begin()
    for pgno, page in pages:
        between_pages()
        yield encoder.page(pgno, page)
    yield from encoder.finish_in_parts()
