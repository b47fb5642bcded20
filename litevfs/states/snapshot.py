"""The immutable map from page number to the place its bytes are, for one TXID. Knows LTX values, not storage.

A snapshot is a list of chunks of 2,048 pages (`chunks`); `apply` copies only the chunks a file touches, so snapshots
share what did not change and a new transaction costs in proportion to its pages.

Source of the merge rule: a file changes content only if it advances the TXID; any other file may only relocate.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from litevfs.errors import LTXChecksumError, LTXFormatError, PageUnavailableError, TXIDGapError
from litevfs.files.frame_checks import frame_check
from litevfs.ltx.file_info import LTXFileInfo
from litevfs.ltx.format import Header
from litevfs.ltx.frame import decode_frame
from litevfs.ltx.page_index import PageIndex
from litevfs.ltx.page_rules import check_growth, check_size_change, whole_from
from litevfs.states.chunks import (
    CHUNK_BITS,
    CHUNK_MASK,
    CHUNK_PAGES,
    FRAME_SIZE_BITS,
    FRAME_SIZE_MASK,
    MAX_FRAME_OFFSET,
    Chunk,
    empty_chunk,
    slots_of,
)
from litevfs.states.versions import Versions

FEW_PAGES = 64  # are counted faster one by one than by numpy
PGNO_BITS = VERSION_BITS = 32
EPOCH_SHIFT = VERSION_BITS + PGNO_BITS


@dataclass(frozen=True, slots=True)
class NumberedFile:
    """An LTX file that a snapshot uses, under the number its pages name it by."""

    number: int  # unique within a replica and process, from 1 on; the same file may be used again under it
    info: LTXFileInfo
    header: Header
    index: PageIndex
    checks: NDArray[np.uint16] | None = None  # of its frames, in the order of the index, if it was verified whole


class Places(Protocol):
    """Finds the frames of a file whose page index is read as it is needed."""

    def find(self, pgnos: Iterable[int]) -> tuple[NDArray[np.uint64], NDArray[np.uint32]]:
        """(offset, size) of the frame of each page, bytes. Raises LTXFormatError and what reading raises."""
        ...


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of the database after transaction `txid`."""

    page_size: int  # bytes; 0 before the first file
    commit: int  # size of the database, pages
    txid: int
    whole_txid: int  # of the last file that brought the whole database, which may be another one than before
    timestamp_ms: int  # of the file that made the state, milliseconds since the Unix epoch
    change_counter: int  # what SQLite compares to know that its page cache is still good; u32
    epoch: int  # names the history that the state belongs to; grows when the replica is replaced by another
    versions: Versions  # of that history
    chunks: tuple[Chunk, ...]
    files: dict[int, LTXFileInfo]  # every file that pages are read from; never changed in place
    uses: Counter[int]  # how many pages are read from each; never changed in place
    unplaced: Mapping[int, Places] = field(default_factory=dict)  # by number: files of which not every frame is known

    @property
    def database(self) -> tuple[int, int]:
        """(epoch, TXID): states that agree in it are of one database; others may be of two that have nothing in common.

        Where the file of a database is replaced, its primary goes on with the whole new one as the next TXID.
        """
        return self.epoch, self.whole_txid

    @property
    def size_bytes(self) -> int:
        """Size of the database file."""
        return self.commit * self.page_size

    def place(self, pgno: int) -> tuple[int, int, int]:
        """(file number, offset, size), in bytes, of page `pgno`'s frame. Raises PageUnavailableError if none."""
        number = self.file_number(pgno)
        if not number:
            raise PageUnavailableError(
                f"page {pgno} is in no LTX file of this state (database size: {self.commit} pages)",
                min_txid=self.txid,
                hint="run litevfs verify on the replica",
            )
        frame = self.frame(pgno)
        return number, frame >> FRAME_SIZE_BITS, frame & FRAME_SIZE_MASK

    def frame(self, pgno: int) -> int:
        """Offset and size of the frame of page `pgno`, which a file holds. May read the file's index; see `locate`."""
        chunk = self.chunks[(pgno - 1) >> CHUNK_BITS]
        slot = (pgno - 1) & CHUNK_MASK
        if not chunk.frames[slot]:
            self.locate([pgno])
        return chunk.frames[slot]

    def locate(self, pgnos: Iterable[int]) -> None:
        """Find out where these pages' frames lie, as far as that is not known, in few requests.

        Raises LTXFormatError for a damaged index, and what reading raises.
        """
        if not self.unplaced:
            return
        wanted: dict[int, list[int]] = {}
        for pgno in pgnos:
            if (number := self.file_number(pgno)) in self.unplaced:
                wanted.setdefault(number, []).append(pgno)
        for number, some in wanted.items():
            offsets, sizes = self.unplaced[number].find(some)
            frames = ((offsets << np.uint64(FRAME_SIZE_BITS)) | sizes).tolist()
            for pgno, frame in zip(some, frames, strict=True):
                self.chunks[(pgno - 1) >> CHUNK_BITS].frames[(pgno - 1) & CHUNK_MASK] = frame

    def is_placed(self, pgno: int) -> bool:
        """Whether `place` answers without reading."""
        if not self.unplaced:
            return True
        return bool(self.file_number(pgno) and self.chunks[(pgno - 1) >> CHUNK_BITS].frames[(pgno - 1) & CHUNK_MASK])

    def file_number(self, pgno: int) -> int:
        """The number of the file to read page `pgno` from; 0 if no file holds it."""
        if not 1 <= pgno <= self.commit:
            return 0
        return self.chunks[(pgno - 1) >> CHUNK_BITS].files[(pgno - 1) & CHUNK_MASK]

    def version(self, pgno: int) -> int:
        """The code of the TXID that page `pgno`'s content is of; 0 if no file holds it."""
        if not 1 <= pgno <= self.commit:
            return 0
        return self.chunks[(pgno - 1) >> CHUNK_BITS].versions[(pgno - 1) & CHUNK_MASK]

    def apply(self, file: NumberedFile) -> Snapshot:
        """The state after `file`, or this state with pages relocated into it if it does not advance the TXID.

        A file with another page size holds no version of a page that this state has. Raises TXIDGapError when the file
        does not connect, LTXFormatError when the page size changes and it does not hold the whole database, and
        LTXMissingPagesError when the state has pages, by the file's header, that neither of them holds.
        """
        header = file.header
        is_same_size = self.page_size in (0, header.page_size)
        if header.max_txid <= self.txid:
            return self._relocate(file) if is_same_size else self
        if header.min_txid > self.txid + 1:
            raise TXIDGapError(
                "an LTX file does not connect to the state it should follow",
                min_txid=self.txid + 1,
                max_txid=header.min_txid - 1,
            )
        return (self if is_same_size else self._without_pages(file))._advance(file)

    def _without_pages(self, file: NumberedFile) -> Snapshot:
        """This state without its pages: none is left after a VACUUM that has changed the page size."""
        check_size_change(file.header, whole_from(file.index, file.header), self.page_size)
        start = empty_snapshot(epoch=self.epoch, change_counter=self.change_counter, versions=self.versions)
        return replace(start, txid=self.txid)

    def _advance(self, file: NumberedFile) -> Snapshot:
        header = file.header
        first_whole = whole_from(file.index, header)
        check_growth(header, first_whole, self.commit)  # before room is made for its pages
        edit = _Edit(self, header.commit)
        edit.put(file, relocate_only=False)
        return replace(
            edit.finish(),
            page_size=header.page_size,
            commit=header.commit,
            txid=header.max_txid,
            whole_txid=header.max_txid if first_whole == 1 else self.whole_txid,
            timestamp_ms=header.timestamp_ms,
            change_counter=(self.change_counter + 1) & 0xFFFFFFFF,
        )

    def _relocate(self, file: NumberedFile) -> Snapshot:
        edit = _Edit(self, self.commit)
        edit.put(file, relocate_only=True)
        return edit.finish()

    def index_bytes(self) -> int:
        """Memory of the page map, bytes (shared chunks counted in full)."""
        return sum(values.nbytes for chunk in self.chunks for values in chunk.arrays)


def empty_snapshot(*, epoch: int = 0, change_counter: int = 0, versions: Versions | None = None) -> Snapshot:
    """The state before the first file: TXID 0, no pages. With another state's `epoch` go that state's `versions`."""
    return Snapshot(
        page_size=0,
        commit=0,
        txid=0,
        whole_txid=0,
        timestamp_ms=0,
        change_counter=change_counter,
        epoch=epoch,
        versions=versions or Versions(),
        chunks=(),
        files={},
        uses=Counter(),
    )


_Which = NDArray[np.int64] | slice
"""Places in an array."""


class _Edit:
    """One change of the page map: copies a chunk when it is first touched and keeps the use counts right."""

    def __init__(self, base: Snapshot, commit: int) -> None:
        self._base = base
        self._commit = commit
        self._chunks = list(base.chunks)
        self._own: set[int] = set()
        self._files = dict(base.files)
        self._uses = Counter(base.uses)
        self._resize()

    def _resize(self) -> None:
        wanted = (self._commit + CHUNK_PAGES - 1) >> CHUNK_BITS
        while len(self._chunks) > wanted:
            self._release(self._chunks.pop().file_array)
        if self._chunks:
            last = len(self._chunks) - 1
            slots = slots_of(self._commit, last)
            if slots > len(self._chunks[last].versions):
                self._own.add(last)
                self._chunks[last] = self._chunks[last].extended(slots)
        while len(self._chunks) < wanted:
            number = len(self._chunks)
            self._own.add(number)
            self._chunks.append(empty_chunk(slots_of(self._commit, number)))
        tail = self._commit & CHUNK_MASK
        if self._commit < self._base.commit and tail:
            chunk = self._writable(wanted - 1)
            self._release(chunk.file_array[tail:])
            for values in chunk.arrays:
                values[tail:] = 0

    def _writable(self, number: int) -> Chunk:
        if number not in self._own:
            self._chunks[number] = self._chunks[number].copy()
            self._own.add(number)
        return self._chunks[number]

    def _release(self, numbers: NDArray[np.uint32]) -> None:
        if len(numbers) <= FEW_PAGES:
            self._uses.subtract(numbers.tolist())
        elif numbers.any():
            values, counts = np.unique(numbers, return_counts=True)
            self._uses.subtract(dict(zip(values.tolist(), counts.tolist(), strict=True)))

    def put(self, file: NumberedFile, *, relocate_only: bool) -> None:
        """Point the pages of `file` at it; with `relocate_only` just those whose version it is known to hold."""
        index = file.index
        end = int(np.searchsorted(index.pgnos, self._commit, side="right"))
        if end and int(index.offsets[end - 1]) >= MAX_FRAME_OFFSET:
            raise LTXFormatError("an LTX file is larger than 128 TiB", min_txid=file.header.min_txid)
        slots = index.pgnos[:end].astype(np.int64) - 1
        self._files[file.number] = file.info
        numbers, bounds = _chunks_of(slots)
        before = [np.empty(0, np.uint32)]
        for i, number in enumerate(numbers):
            entries: _Which = slice(bounds[i], bounds[i + 1])
            some = slots[entries] & CHUNK_MASK
            if relocate_only:
                # The file has the newest version up to its TXID, and the map's is not newer: both are the same.
                held = self._chunks[number].version_array[some]
                kept = np.flatnonzero(self._base.versions.are_at_most(held, file.header.max_txid))
                entries, some = kept + bounds[i], some[kept]
            if len(some):
                code = None if relocate_only else self._base.versions.code(file.header.max_txid)
                chunk = self._writable(number)
                before.append(_put_chunk(chunk, _in_a_row(some), file, entries, code))
        replaced = np.concatenate(before)
        self._release(replaced)
        self._uses[file.number] += len(replaced)

    def finish(self) -> Snapshot:
        """The base with the new chunks, and without the files that no page is read from any more."""
        uses = Counter({number: count for number, count in self._uses.items() if number and count > 0})
        return replace(
            self._base,
            chunks=tuple(self._chunks),
            uses=uses,
            files={number: self._files[number] for number in uses},
        )


def _chunks_of(slots: NDArray[np.int64]) -> tuple[list[int], list[int]]:
    """The chunks of ascending slots, and where in `slots` each of them begins, and the last one ends."""
    if len(slots) and (first := int(slots[0]) >> CHUNK_BITS) == int(slots[-1]) >> CHUNK_BITS:  # of a small file
        return [first], [0, len(slots)]
    numbers, starts = np.unique(slots >> CHUNK_BITS, return_index=True)
    return numbers.tolist(), [*starts.tolist(), len(slots)]


def _in_a_row(slots: NDArray[np.int64]) -> _Which:
    """Ascending slots, as a slice if they follow each other, as those of a snapshot file do: that is much faster."""
    first, end = int(slots[0]), int(slots[-1]) + 1
    return slice(first, end) if end - first == len(slots) else slots


def _put_chunk(
    chunk: Chunk, slots: _Which, file: NumberedFile, entries: _Which, version: int | None
) -> NDArray[np.uint32]:
    """Point `slots` of a chunk at these entries of the file's index; `version` is what they hold, if it is new.

    Returns the numbers of the files they pointed at before. A file of scattered pages comes here for every page.
    """
    files = chunk.file_array
    before = files[slots].copy()
    files[slots] = file.number
    chunk.frame_array[slots] = (file.index.offsets[entries] << np.uint64(FRAME_SIZE_BITS)) | file.index.sizes[entries]
    chunk.check_array[slots] = 0 if file.checks is None else file.checks[entries]
    if version is not None:
        chunk.version_array[slots] = version
    return before


def decode_page(snapshot: Snapshot, pgno: int, frame: bytes) -> bytes:
    """The page in its frame, read from where the snapshot has it, with every check there is. Raises LTXFormatError."""
    check = snapshot.chunks[(pgno - 1) >> CHUNK_BITS].checks[(pgno - 1) & CHUNK_MASK]
    if check and check != frame_check(frame):
        raise LTXChecksumError(f"page {pgno} is not what it was when its whole file was verified")
    return decode_frame(frame, pgno, snapshot.page_size)


def page_key(snapshot: Snapshot, version: int, pgno: int) -> int:
    """A key that names a page's content for ever, within a replica and process."""
    return snapshot.epoch << EPOCH_SHIFT | version << PGNO_BITS | pgno
