"""Several contiguous LTX files into one: which page comes from where, then frame by frame. Does no I/O.

Source: superfly/ltx, `compactor.go`. Frames are taken over as they are; each is decoded once, because the file checksum
covers the pages.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from litevfs.errors import LTXChecksumError, LTXFormatError
from litevfs.ltx.encoder import Encoder
from litevfs.ltx.format import HEADER_FLAG_NO_CHECKSUM, Header, Trailer
from litevfs.ltx.frame import decode_frame
from litevfs.ltx.page_index import PageIndex

_CHUNK_PAGES = 1 << 16


class CompactionInput(Protocol):
    """One file to compact, verified or at least structurally sound (see `read_header_and_index`)."""

    @property
    def header(self) -> Header:
        """The file's header."""
        ...

    @property
    def index(self) -> PageIndex:
        """The file's page index."""
        ...

    @property
    def trailer(self) -> Trailer:
        """The file's trailer."""
        ...

    def frame(self, i: int) -> bytes:
        """The i-th frame of the index. Called with ascending `i`, at most once for each."""
        ...


def compact(inputs: Sequence[CompactionInput]) -> Iterator[bytes]:
    """The bytes, piece by piece, of the one file that does what `inputs`, oldest first, do in order.

    For each page the newest input wins; pages above the newest commit are dropped. The result carries checksums when
    all inputs do. Memory: 30 bytes for each page of each input, and one frame. Raises LTXFormatError: before the first
    piece when the inputs do not fit together, while pieces are taken when a frame is damaged.
    """
    header = compacted_header([source.header for source in inputs])
    if header.has_checksums:
        _check_checksum_chain(inputs)
    return _write(inputs, header, plan_compaction([source.index for source in inputs], header.commit))


def compacted_header(headers: Sequence[Header]) -> Header:
    """The header of the file that files with `headers`, oldest first, become. Raises LTXFormatError."""
    if not headers:
        raise LTXFormatError("cannot compact LTX files: there are none")
    for previous, header in pairwise(headers):
        if header.page_size != previous.page_size:
            raise _refused(previous, header, f"page sizes {previous.page_size} and {header.page_size} differ")
        if not header.min_txid <= previous.max_txid + 1 <= header.max_txid:
            raise _refused(previous, header, "their TXIDs are not contiguous")
    first, last = headers[0], headers[-1]
    has_checksums = all(header.has_checksums for header in headers)
    return Header(
        page_size=first.page_size,
        commit=last.commit,
        min_txid=first.min_txid,
        max_txid=last.max_txid,
        timestamp_ms=last.timestamp_ms,
        flags=0 if has_checksums else HEADER_FLAG_NO_CHECKSUM,
        pre_apply_checksum=first.pre_apply_checksum if has_checksums else 0,
    )


def _check_checksum_chain(inputs: Sequence[CompactionInput]) -> None:
    for previous, source in pairwise(inputs):
        follows = source.header.min_txid == previous.header.max_txid + 1
        if follows and source.header.pre_apply_checksum != previous.trailer.post_apply_checksum:
            raise LTXChecksumError(
                f"cannot compact LTX files: database checksum is {previous.trailer.post_apply_checksum:016x} after one "
                f"file, {source.header.pre_apply_checksum:016x} before the next",
                min_txid=previous.header.min_txid,
                max_txid=source.header.max_txid,
                hint="the files are of different histories",
            )


@dataclass(frozen=True, slots=True, eq=False)
class CompactionPlan:
    """Where each page of the result comes from; three arrays of one length, ascending by page number."""

    pgnos: NDArray[np.uint32]
    sources: NDArray[np.intp]  # number of the input
    positions: NDArray[np.intp]  # in the index of that input


def plan_compaction(indexes: Sequence[PageIndex], commit: int) -> CompactionPlan:
    """Which of the inputs, oldest first, provides each page up to `commit`: the newest that holds it."""
    newest_first = indexes[::-1]
    # `unique` gives the first occurrence of each page, which is the newest.
    pgnos, firsts = np.unique(np.concatenate([index.pgnos for index in newest_first]), return_index=True)
    kept = int(np.searchsorted(pgnos, commit, side="right"))
    pgnos, firsts = pgnos[:kept], firsts[:kept]
    ends = np.cumsum([len(index) for index in newest_first])
    which = np.searchsorted(ends, firsts, side="right")
    positions = firsts - np.concatenate([[0], ends])[which]
    return CompactionPlan(pgnos, len(indexes) - 1 - which, positions)


def _write(inputs: Sequence[CompactionInput], header: Header, plan: CompactionPlan) -> Iterator[bytes]:
    encoder = Encoder(header)
    yield encoder.begin()
    for pgno, source, position in _steps(plan):
        frame = inputs[source].frame(position)
        yield encoder.frame(pgno, frame, decode_frame(frame, pgno, header.page_size))
    yield encoder.finish(inputs[-1].trailer.post_apply_checksum if header.has_checksums else 0)


def _steps(plan: CompactionPlan) -> Iterator[tuple[int, int, int]]:
    # Python's integers take ten times the memory of the arrays: never all of them at once.
    for start in range(0, len(plan.pgnos), _CHUNK_PAGES):
        chunk = slice(start, start + _CHUNK_PAGES)
        columns = plan.pgnos[chunk], plan.sources[chunk], plan.positions[chunk]
        yield from zip(*(column.tolist() for column in columns), strict=True)


def _refused(previous: Header, header: Header, what: str) -> LTXFormatError:
    return LTXFormatError(
        f"cannot compact LTX files {previous.min_txid:016x}-{previous.max_txid:016x} and "
        f"{header.min_txid:016x}-{header.max_txid:016x}: {what}"
    )
