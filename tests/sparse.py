"""LTX files of databases of a gigabyte whose pages are zeros but for a few: made in a moment, and small.

The file checksum is none: such a file is large enough that a reader does not read it whole.
"""

from __future__ import annotations

import struct
from array import array

import lz4.block
import numpy as np

from litevfs.ltx.format import CHECKSUM_FLAG, END_OF_PAGES, Header, Trailer, lock_pgno
from litevfs.ltx.page_index import encode_page_index, page_index_from_frames


def sparse_file(header: Header, content: dict[int, bytes]) -> bytes:
    """A file that holds every page from 1 to the header's commit, those of `content` and zeros."""
    lock = lock_pgno(header.page_size)
    zeros = _block(bytes(header.page_size))
    pieces: list[bytes] = [header.pack()]
    pgnos, sizes = array("I"), array("I")
    start = 1
    for stop in [*sorted({*content, lock} - set(range(header.commit + 1, lock + 1))), header.commit + 1]:
        run = np.arange(start, stop, dtype=np.uint32)
        frames = np.empty((len(run), 4 + len(zeros)), np.uint8)
        frames[:, :4] = run.astype(">u4").view(np.uint8).reshape(-1, 4)
        frames[:, 4:] = np.frombuffer(zeros, np.uint8)
        pieces.append(frames.tobytes())
        pgnos.extend(run.tolist())
        sizes.extend([4 + len(zeros)] * len(run))
        if stop in content:
            block = _block(content[stop])
            pieces.append(struct.pack(">I", stop) + block)
            pgnos.append(stop)
            sizes.append(4 + len(block))
        start = stop + 1
    index = encode_page_index(page_index_from_frames(pgnos, sizes))
    return b"".join([*pieces, END_OF_PAGES, index, Trailer(0, CHECKSUM_FLAG).pack()])


def _block(page: bytes) -> bytes:
    """A page's frame without its page number."""
    block = lz4.block.compress(page, store_size=False)
    return struct.pack(">HI", 1, len(block)) + block
