"""Many pages of one state, in the order in which they lie in storage, in parallel where a read costs a round trip."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial

import numpy as np

from litevfs.concurrency.futures import run_ahead
from litevfs.concurrency.workers import WorkerPool
from litevfs.pages.source import PageSource
from litevfs.states.changes import in_storage_order
from litevfs.states.snapshot import Snapshot
from litevfs.states.unplaced import locate

PAGES_A_CALL = 64
PARALLEL_CALLS = 8


def read_pages(
    pages: PageSource, snapshot: Snapshot, pgnos: Iterable[int], *, once: bool = False
) -> Iterator[tuple[int, bytes]]:
    """(pgno, content) of each page, in storage order. Raises what `PageSource.read` raises.

    `once`: past the page cache.

    Where a request costs a round trip, pages that lie scattered are fetched alone, without their blocks.
    """
    read_page = pages.read_through if once else pages.read
    wanted = np.fromiter(pgnos, np.int64)
    locate(snapshot, wanted.tolist())
    ordered = in_storage_order(snapshot, wanted).tolist()
    runs = [ordered[start : start + PAGES_A_CALL] for start in range(0, len(ordered), PAGES_A_CALL)]
    calls = (partial(_read_run, pages, read_page, snapshot, run) for run in runs)
    pool = WorkerPool(PARALLEL_CALLS, "litevfs-bulk") if pages.is_remote and len(runs) > 1 else None
    try:
        for found in run_ahead(calls, None if pool is None else pool.submit, PARALLEL_CALLS):
            yield from found
    finally:
        if pool is not None:
            pool.shutdown()


def _read_run(
    pages: PageSource, read_page: Callable[[Snapshot, int], bytes], snapshot: Snapshot, pgnos: list[int]
) -> list[tuple[int, bytes]]:
    pages.announce(snapshot, pgnos)
    return [(pgno, read_page(snapshot, pgno)) for pgno in pgnos]
