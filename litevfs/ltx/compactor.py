"""Merges several contiguous LTX files into one: their frames in page order. Opens no file.

Source: superfly/ltx, `compactor.go`. Frames are taken over as they are; each is decoded once, because the file checksum
covers the pages.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import IO, Protocol

from litevfs.errors import LTXChecksumError, LTXFormatError
from litevfs.ltx.encoder import Encoder
from litevfs.ltx.format import HEADER_FLAG_NO_CHECKSUM, Header, Trailer
from litevfs.ltx.frame import decode_frame
from litevfs.ltx.page_rules import PageOrder, check_growth, check_size_change


class CompactionInput(Protocol):
    """One file to compact, verified."""

    @property
    def header(self) -> Header:
        """The file's header."""
        ...

    @property
    def trailer(self) -> Trailer:
        """The file's trailer."""
        ...

    def frames(self) -> Iterator[tuple[int, bytes]]:
        """(pgno, frame) of every page, in the order of the file. Called once."""
        ...


def compact(inputs: Sequence[CompactionInput], *, spool: IO[bytes] | None = None) -> Iterator[bytes]:
    """The bytes, piece by piece, of one file with the same effect as `inputs`, oldest first, in order.

    For each page the newest input wins; pages above the newest commit are dropped. The result carries checksums when
    all inputs do. Memory: one frame of each input; `spool` keeps the index of the result meanwhile (see `Encoder`).

    Raises LTXFormatError: before the first piece when the inputs do not fit together, later when a frame is damaged.
    """
    header = compacted_header([source.header for source in inputs])
    if header.has_checksums:
        _check_checksum_chain(inputs)
    return _write(inputs, Encoder(header, spool=spool))


def _end_of_other_sizes(headers: Sequence[Header]) -> int:
    """The index of the first header from which on the page size stays: no page of those before it is in the result."""
    others = [i for i, header in enumerate(headers) if header.page_size != headers[-1].page_size]
    return others[-1] + 1 if others else 0


def compacted_header(headers: Sequence[Header]) -> Header:
    """The header of the file that files with `headers`, oldest first, become. Raises LTXFormatError."""
    if not headers:
        raise LTXFormatError("cannot compact LTX files: there are none")
    for previous, header in pairwise(headers):
        if not header.min_txid <= previous.max_txid + 1 <= header.max_txid:
            raise _refused(previous, header, "their TXIDs are not contiguous")
    first, last = headers[0], headers[-1]
    has_checksums = all(header.has_checksums for header in headers)
    return Header(
        page_size=last.page_size,
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


def _write(inputs: Sequence[CompactionInput], encoder: Encoder) -> Iterator[bytes]:
    header = encoder.header
    yield encoder.begin()
    for pgno, frame in _newest_frames(inputs, header.commit):
        yield encoder.frame(pgno, frame, decode_frame(frame, pgno, header.page_size))
    yield from encoder.finish_in_parts(inputs[-1].trailer.post_apply_checksum if header.has_checksums else 0)


def _newest_frames(inputs: Sequence[CompactionInput], commit: int) -> Iterator[tuple[int, bytes]]:
    """Of each page up to `commit` the frame of the newest input that has it, ascending: the files are in page order.

    Raises LTXMissingPagesError at the end where an input does not hold the pages by which it makes the database larger
    than the input before it did: the result would bring back older content of them. Raises LTXFormatError there where
    the page size changes with an input that does not hold all pages.
    """
    first = _end_of_other_sizes([source.header for source in inputs])
    page_size_before = inputs[first - 1].header.page_size
    inputs = inputs[first:]
    orders = [PageOrder(replace(source.header, commit=min(source.header.commit, commit))) for source in inputs]
    ranked = (_ranked(source, -i, order) for i, (source, order) in enumerate(zip(inputs, orders, strict=True)))
    last_pgno = 0
    for pgno, _, frame in heapq.merge(*ranked):
        if pgno > commit:
            break
        if pgno != last_pgno:
            last_pgno = pgno
            yield pgno, frame
    if first:
        check_size_change(orders[0].header, orders[0].whole_from, page_size_before)
    for previous, order in zip(inputs, orders[1:], strict=False):
        check_growth(order.header, order.whole_from, previous.header.commit)


def _ranked(source: CompactionInput, rank: int, order: PageOrder) -> Iterator[tuple[int, int, bytes]]:
    commit = order.header.commit
    for pgno, frame in source.frames():
        if pgno <= commit:
            order.add(pgno)
        yield pgno, rank, frame


def _refused(previous: Header, header: Header, what: str) -> LTXFormatError:
    return LTXFormatError(
        f"cannot compact LTX files {previous.min_txid:016x}-{previous.max_txid:016x} and "
        f"{header.min_txid:016x}-{header.max_txid:016x}: {what}"
    )
