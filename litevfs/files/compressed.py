"""Blocks in a smaller form, by zstandard (the extra `compress`). Imported only where blocks are kept or found so."""

from __future__ import annotations

import threading

import zstandard

LEVEL = 1
_own = threading.local()  # neither object may be used by two threads at once


def compress(data: bytes) -> bytes:
    """The smaller form; it may be larger for bytes that hold no repetition."""
    if not hasattr(_own, "compressor"):
        _own.compressor = zstandard.ZstdCompressor(level=LEVEL, write_checksum=False)
    result: bytes = _own.compressor.compress(data)
    return result


def decompress(data: bytes, size: int) -> bytes | None:
    """The `size` bytes that were compressed, or None if it is not the smaller form of so many."""
    if not hasattr(_own, "decompressor"):
        _own.decompressor = zstandard.ZstdDecompressor()
    try:
        result: bytes = _own.decompressor.decompress(data, max_output_size=size)
    except zstandard.ZstdError:
        return None
    return result if len(result) == size else None
