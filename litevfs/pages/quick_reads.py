"""Single pages of a replica in a folder, each in one call: there, calls and look-ups take longer than the bytes.

What is unusual about a page (another read has led up to it, its file is not open, its bytes are not sound, ...) is for
`PageSource.read`, which starts from the beginning: a quick read notes nothing before it has the page.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from os import pread
from random import random
from typing import TYPE_CHECKING

from lz4.block import LZ4BlockError
from lz4.block import decompress as lz4_block_decompress

from litevfs.files.byte_cache import ByteCache
from litevfs.files.fetched import RequestCounters
from litevfs.files.frame_checks import frame_check
from litevfs.ltx.format import PAGE_FLAG_SIZE
from litevfs.ltx.frame import FRAME_HEADER_SIZE, unpack_frame_header
from litevfs.pages.counters import PageCounters
from litevfs.pages.runs import Runs
from litevfs.replica_clients.base import KeepsOpen
from litevfs.states.chunks import CHUNK_BITS, CHUNK_MASK, FRAME_SIZE_BITS, FRAME_SIZE_MASK
from litevfs.states.snapshot import EPOCH_SHIFT, PGNO_BITS, Snapshot

if TYPE_CHECKING:
    from litevfs.pages.reads import Reads

KEPT_SHARE = 1 / 16
"""A full page cache keeps so many of the pages that are read alone, by chance: what is read often is soon there. To
keep a page takes about as long as to decode it again.
"""

Read = Callable[..., bytes]


class QuickReads:
    """One connection's reads of a local replica; see `PageSource` for the methods."""

    def __init__(
        self,
        source: Reads,
        client: KeepsOpen,
        cache: ByteCache,
        runs: Runs,
        pages: PageCounters,
        requests: RequestCounters,
    ) -> None:
        """`source` serves what is unusual. It puts nothing into the cache ahead of its use."""
        self.first_page = source.first_page
        self.read = _quick_read(source.read, client, cache, runs, pages, requests)


def _quick_read(
    read_unusual: Read, client: KeepsOpen, cache: ByteCache, runs: Runs, pages: PageCounters, requests: RequestCounters
) -> Read:
    opened, cached, keep, is_alone = client.open_files, cache.get, cache.put, runs.is_alone

    def read(snapshot: Snapshot, pgno: int, along: dict[int, bytes] | None = None) -> bytes:
        slot = pgno - 1
        if not 0 <= slot < snapshot.commit:
            return read_unusual(snapshot, pgno, along)
        chunk = snapshot.chunks[slot >> CHUNK_BITS]
        slot &= CHUNK_MASK
        version = chunk.versions[slot]
        key = snapshot.epoch << EPOCH_SHIFT | version << PGNO_BITS | pgno
        page: bytes | None = cached(key)
        if page is not None:
            pages.hits += 1
            return page
        if not version or not is_alone(pgno):
            return read_unusual(snapshot, pgno, along)
        file = snapshot.files[chunk.files[slot]]
        descriptor = opened.get((file.level, file.min_txid, file.max_txid, file.etag))
        if descriptor is None:
            return read_unusual(snapshot, pgno, along)
        descriptor.used = True
        frame, check = chunk.frames[slot], chunk.checks[slot]
        size, page_size = frame & FRAME_SIZE_MASK, snapshot.page_size
        try:
            data = pread(descriptor.fd, size, frame >> FRAME_SIZE_BITS)
            number, flags, block_size = unpack_frame_header(data)
            if (
                number != pgno
                or flags != PAGE_FLAG_SIZE
                or not block_size + FRAME_HEADER_SIZE == size == len(data)
                or (check and check != frame_check(data))
            ):
                return read_unusual(snapshot, pgno, along)
            page = lz4_block_decompress(data[FRAME_HEADER_SIZE:], page_size)
        except (OSError, struct.error, LZ4BlockError):
            return read_unusual(snapshot, pgno, along)
        if len(page) != page_size:
            return read_unusual(snapshot, pgno, along)
        pages.misses += 1
        requests.get += 1
        requests.bytes_read += size
        if not cache.is_full or random() < KEPT_SHARE:
            keep(key, page)
        return page

    # One function, and in a closure what it needs: that is all of the gain.
    return read
