"""Splits uploads of whole files into parts of a bounded size. Knows streams, and no storage."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import BinaryIO


def open_stream(data: bytes | BinaryIO) -> BinaryIO:
    """A stream of the bytes to be written."""
    return io.BytesIO(data) if isinstance(data, bytes) else data


def read_part(stream: BinaryIO, size: int) -> bytes:
    """`size` bytes, fewer only at the end (a raw stream may give less at a time)."""
    part = stream.read(size)
    if not part or len(part) == size:
        return part
    pieces, got = [part], len(part)
    while got < size and (piece := stream.read(size - got)):
        pieces.append(piece)
        got += len(piece)
    return b"".join(pieces)


def parts_of(first: bytes, stream: BinaryIO, size: int) -> Iterator[tuple[bytes, bool]]:
    """`first` and all of the stream in parts of `size` bytes, each with whether it is the last; at least one."""
    part = first
    while True:
        following = read_part(stream, size) if len(part) == size else b""
        yield part, not following
        if not following:
            return
        part = following
