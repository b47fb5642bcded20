"""Memory and time of the page map for a million pages: decoding an index, applying it, updates, opening a replica.

Memory is what Python and numpy have allocated (tracemalloc) and still hold; opening is measured in a process of its
own, on a real LTX file, resident memory included. Times are never asserted.
"""

from __future__ import annotations

import gc
import json
import random
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import TypeVar

import apsw
import numpy as np
import psutil
from _databases import TIMESTAMP_MS, cached_folder
from _results import Result, parse_arguments, report, seconds
from numpy.typing import NDArray

from litevfs.ltx import Encoder, Header, PageIndex, decode_page_index, encode_page_index, format_file_name
from litevfs.replica_clients.base import LTXFileInfo
from litevfs.states.snapshot import NumberedFile, Snapshot, empty_snapshot

T = TypeVar("T")
Pgnos = NDArray[np.uint32]
PAGE_SIZE = 512  # bytes; the number of pages is what counts here
GOAL_BYTES_A_PAGE = 20
PAGES_AN_UPDATE = 100


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse_arguments(__doc__, argv)
    pages, updates, rounds = (200_000, 50, 1) if arguments.small else (1_000_000, 1_000, 5)
    results = [
        *index_results(pages, rounds),
        *snapshot_results(pages, updates, rounds),
        *opening_results(pages, rounds),
    ]
    report(f"The page map of {pages:,} pages", results, arguments)


def timed(call: Callable[[], T], rounds: int) -> tuple[list[float], T]:
    """Seconds of each round, and the last result."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        result = call()
        times.append(time.perf_counter() - start)
    return times, result


# --- the index and the snapshot ---------------------------------------------------------------------------------------


def make_index(pgnos: Pgnos, seed: int) -> PageIndex:
    """The index of a file that holds these pages, in frames of about two kilobytes, back to back."""
    sizes = np.random.default_rng(seed).integers(1500, 2500, len(pgnos)).astype(np.uint32)
    ends = np.cumsum(sizes, dtype=np.uint64) + np.uint64(100)
    return PageIndex(pgnos, ends - sizes, sizes)


def make_file(txid: int, pages: int, pgnos: Pgnos) -> NumberedFile:
    """One transaction's file: a snapshot if `txid` is 1."""
    header = Header(page_size=4096, commit=pages, min_txid=txid, max_txid=txid, timestamp_ms=TIMESTAMP_MS)
    info = LTXFileInfo(0 if txid > 1 else 9, txid, txid, size=0, modified_ms=TIMESTAMP_MS)
    return NumberedFile(txid, info, header, make_index(pgnos, txid))


def index_results(pages: int, rounds: int) -> list[Result]:
    index = make_index(np.arange(1, pages + 1, dtype=np.uint32), 0)
    encoded = encode_page_index(index)
    times, decoded = timed(lambda: decode_page_index(encoded), rounds)
    if not (np.array_equal(decoded.pgnos, index.pgnos) and np.array_equal(decoded.offsets, index.offsets)):
        raise AssertionError("the index is not what was encoded")
    megabytes = len(encoded) / 1e6
    return [Result(f"decode an index ({megabytes:.1f} MB)", {"measured": seconds(median(times))}, samples=times)]


def snapshot_results(pages: int, updates: int, rounds: int) -> list[Result]:
    """The first file, then updates of pages all over the database: times first, then again for the memory."""
    first = make_file(1, pages, np.arange(1, pages + 1, dtype=np.uint32))
    times, snapshot = timed(partial(empty_snapshot().apply, first), rounds)
    update_times = apply_updates(snapshot, updates // 10)[1]
    del first, snapshot
    at_first, after = snapshot_memory(pages, updates)
    return [
        Result("apply the first file: time", {"measured": seconds(median(times))}, samples=times),
        bytes_a_page("apply the first file: memory", at_first),
        Result(f"apply an update of {PAGES_AN_UPDATE} pages: time", {"measured": seconds(median(update_times))}),
        bytes_a_page(f"after {updates:,} such updates: memory", after),
    ]


def snapshot_memory(pages: int, updates: int) -> tuple[float, float]:
    """Bytes a page that a snapshot holds after its first file, and after updates."""
    tracemalloc.start()
    before = allocated_bytes()
    snapshot = empty_snapshot().apply(make_file(1, pages, np.arange(1, pages + 1, dtype=np.uint32)))
    at_first = (allocated_bytes() - before) / pages
    snapshot, _ = apply_updates(snapshot, updates)
    after = (allocated_bytes() - before) / pages
    tracemalloc.stop()
    check_places(snapshot)
    return at_first, after


def apply_updates(snapshot: Snapshot, updates: int) -> tuple[Snapshot, list[float]]:
    """The state after that many transactions more, and what applying each took."""
    times = []
    for txid in range(snapshot.txid + 1, snapshot.txid + updates + 1):
        file = make_file(txid, snapshot.commit, updated_pages(txid, snapshot.commit))
        start = time.perf_counter()
        snapshot = snapshot.apply(file)
        times.append(time.perf_counter() - start)
    return snapshot, times


def updated_pages(txid: int, commit: int) -> Pgnos:
    return np.array(sorted(random.Random(txid).sample(range(1, commit + 1), PAGES_AN_UPDATE)), np.uint32)


def check_places(snapshot: Snapshot) -> None:
    """The newest update's pages are where its file says, or the memory is of something useless."""
    index = make_index(updated_pages(snapshot.txid, snapshot.commit), snapshot.txid)
    for i, pgno in enumerate(index.pgnos.tolist()):
        if snapshot.place(pgno) != (snapshot.txid, int(index.offsets[i]), int(index.sizes[i])):
            raise AssertionError(f"page {pgno} is at {snapshot.place(pgno)}")


def allocated_bytes() -> int:
    """Bytes allocated and still held since tracemalloc was started."""
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


def bytes_a_page(case: str, value: float) -> Result:
    """A result that the goal applies to at any size."""
    goal = f"<= {GOAL_BYTES_A_PAGE} bytes a page"
    return Result(case, {"measured": f"{value:.1f} bytes a page"}, goal, value <= GOAL_BYTES_A_PAGE, value)


# --- opening a replica ------------------------------------------------------------------------------------------------


def opening_results(pages: int, rounds: int) -> list[Result]:
    replica = cached_folder(f"pages-{pages}", lambda folder: make_replica(folder, pages))
    command = [sys.executable, __file__, "--open", str(replica), str(pages)]
    runs = []
    for _ in range(rounds):
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        runs.append(json.loads(output))
    times = [run["seconds"] for run in runs]
    held = median(run["traced_bytes"] for run in runs) / pages
    peak = median(run["traced_peak_bytes"] for run in runs) / pages
    resident = median(run["resident_bytes"] for run in runs) / pages
    return [
        Result("open a replica: time", {"measured": seconds(median(times))}, samples=times),
        bytes_a_page("open a replica: memory held, caches included", held),
        Result("open a replica: memory at its peak", {"measured": f"{peak:.1f} bytes a page"}, samples=peak),
        Result("open a replica: resident memory", {"measured": f"{resident:.1f} bytes a page"}, samples=resident),
    ]


def make_replica(folder: Path, pages: int) -> None:
    """An LTX snapshot of a database whose pages but the first few are empty."""
    database = folder / "first.db"
    connection = apsw.Connection(str(database))
    connection.execute(f"PRAGMA page_size={PAGE_SIZE}; CREATE TABLE t (x); INSERT INTO t VALUES (1)")
    connection.close()
    content = bytearray(database.read_bytes())
    content[28:32] = pages.to_bytes(4, "big")  # size of the database in pages
    content += bytes(PAGE_SIZE)
    level = folder / "ltx" / "9"
    level.mkdir(parents=True)
    encoder = Encoder(Header(page_size=PAGE_SIZE, commit=pages, min_txid=1, max_txid=1, timestamp_ms=TIMESTAMP_MS))
    last = len(content) // PAGE_SIZE - 1
    with (level / format_file_name(1, 1)).open("wb") as file:
        file.write(encoder.begin())
        for i in range(pages):
            start = min(i, last) * PAGE_SIZE
            file.write(encoder.page(i + 1, bytes(content[start : start + PAGE_SIZE])))
        file.write(encoder.finish())


def measure_opening(replica: str, pages: int) -> None:
    """In a process of its own: once for the time and the resident memory, once more for what is allocated."""
    import litevfs

    litevfs.connect(f"file://{make_small_replica(replica)}").close()  # what is imported and made only once
    process = psutil.Process()
    resident = process.memory_info().rss
    start = time.perf_counter()
    connection = open_and_ask(replica, pages)
    took = time.perf_counter() - start
    gc.collect()
    resident = process.memory_info().rss - resident
    connection.close()
    tracemalloc.start()
    connection = open_and_ask(replica, pages)
    traced, peak = allocated_bytes(), tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    connection.close()
    answer = {"seconds": took, "resident_bytes": resident, "traced_bytes": traced, "traced_peak_bytes": peak}
    print(json.dumps(answer))


def make_small_replica(replica: str) -> Path:
    small = Path(replica).parent / "pages-10"
    return small if small.exists() else cached_folder("pages-10", lambda folder: make_replica(folder, 10))


def open_and_ask(replica: str, pages: int) -> apsw.Connection:
    import litevfs

    connection = litevfs.connect(f"file://{replica}")
    if connection.execute("SELECT x FROM t").get != 1 or connection.pragma("page_count") != pages:
        raise AssertionError("the replica does not hold what was put into it")
    return connection


if __name__ == "__main__":
    if sys.argv[1:2] == ["--open"]:
        measure_opening(sys.argv[2], int(sys.argv[3]))
    else:
        main(sys.argv[1:])
