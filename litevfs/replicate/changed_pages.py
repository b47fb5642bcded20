"""Which pages of a database differ from what the newest TXID holds, by their sums. Decides nothing, holds no lock."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path

from litevfs.ltx.format import lock_pgno
from litevfs.replicate.content import Content
from litevfs.replicate.database import ReadTransaction
from litevfs.replicate.known_pages import SUM_SIZE, UNKNOWN, KnownPages, page_sum
from litevfs.replicate.state import State

_READ_SIZE = 1 << 20
"""Bytes to read at once."""


class ChangedPages:
    """The pages of `content`, a whole database, without those that have their sum in `known`.

    `known` has the sums of all pages of the state before, and becomes those of this state; None: nothing is known, and
    all pages are in. `between_pages` is called for each page that is read; what it raises passes through.
    """

    def __init__(self, content: Content, known: bytearray | None, between_pages: Callable[[], None]) -> None:
        self.sums = bytearray() if known is None else known
        """Of all pages, once the pages of `content` were read."""
        if len(self.sums) != content.commit * SUM_SIZE:
            self.sums[:SUM_SIZE] = UNKNOWN  # a file has one page at least, and page 1 says how many there are
        del self.sums[content.commit * SUM_SIZE :]
        self.sums.extend(bytes(content.commit * SUM_SIZE - len(self.sums)))
        self._pages = _changed(content.pages, self.sums, between_pages)
        first = next(self._pages, None)  # reads up to there
        self.content = replace(content, pages=self._pages if first is None else chain([first], self._pages))
        """What the next LTX file holds."""
        self.is_empty = first is None
        """Whether the database is the state before. Then all was read."""


def _changed(
    pages: Iterator[tuple[int, bytes]], sums: bytearray, between_pages: Callable[[], None]
) -> Iterator[tuple[int, bytes]]:
    for pgno, page in pages:
        between_pages()
        at, new = (pgno - 1) * SUM_SIZE, page_sum(page)
        if sums[at : at + SUM_SIZE] != new:
            sums[at : at + SUM_SIZE] = new
            yield pgno, page


def sums_of_file(path: Path, page_size: int, commit: int) -> bytearray:
    """The sums of all pages of a database file that no other program has open. Raises OSError."""
    sums, left_out = bytearray(), lock_pgno(page_size)
    with path.open("rb", buffering=0) as file:
        while data := memoryview(file.read(_READ_SIZE)):
            sums += b"".join([page_sum(data[at : at + page_size]) for at in range(0, len(data), page_size)])
    if left_out <= commit:
        sums[(left_out - 1) * SUM_SIZE : left_out * SUM_SIZE] = UNKNOWN
    return sums


def find_sums(
    known: KnownPages, state: State, transaction: ReadTransaction, at_most: int, is_sound: Callable[[], bool]
) -> None:
    """Compute so many of the sums that are not known. The database *file*, in `transaction`, has to be `state`.

    `is_sound` tells whether it was that while its pages were read.
    """
    page_size, commit = state.page_size, transaction.page_count()
    if not known.is_at(state.key, page_size) or known.commit != commit:
        known.prepare(state.key, page_size, b"", commit)
        known.confirm()
    pgnos = known.unknown(at_most)
    if pgnos:
        sums = [page_sum(transaction.read_file((pgno - 1) * page_size, page_size)) for pgno in pgnos]
        if is_sound():
            known.add(state.key, commit, pgnos, b"".join(sums))
            known.confirm()
