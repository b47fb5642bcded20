"""The values that a fetcher returns and counts."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from litevfs.errors import LTXFormatError, TransientStorageError
from litevfs.ltx.file_info import LTXFileInfo
from litevfs.ltx.format import Header
from litevfs.ltx.page_index import PageIndex


@dataclass(slots=True)
class RequestCounters:
    """Counts of the requests to a replica's storage so far."""

    list: int = 0
    get: int = 0
    bytes_read: int = 0
    retries: int = 0
    errors: int = 0
    began: float = field(default_factory=time.monotonic)  # seconds


@dataclass(frozen=True, slots=True)
class FetchedFile:
    """An LTX file's header and page index, checked; and its bytes if they were read at once and verified."""

    info: LTXFileInfo
    header: Header
    index: PageIndex
    data: bytes | None  # the whole file
    head: bytes = b""  # else the bytes read of its start, worth keeping
    checks: NDArray[np.uint16] | None = None  # of its frames, in the order of the index, if all of it was verified


def check_name(file: LTXFileInfo, header: Header) -> None:
    """Raise LTXFormatError when a file's header and its name do not agree."""
    if (header.min_txid, header.max_txid) != (file.min_txid, file.max_txid):
        raise LTXFormatError(
            f"the header says TXIDs {header.min_txid:016x}-{header.max_txid:016x}, the name says otherwise",
            hint="the file was renamed or copied to a wrong place",
        )


def too_short(file: LTXFileInfo, key: str, offset: int, size: int, got: int) -> TransientStorageError:
    """The error of a read that brought only `got` of `size` bytes of a file that has them."""
    return TransientStorageError(
        f"got {got} of {size} bytes at offset {offset} of a file of {file.size} bytes",
        level=file.level,
        min_txid=file.min_txid,
        max_txid=file.max_txid,
        key=key,
        hint="the file may be incomplete: still being uploaded, or truncated",
    )
