"""Opening, point queries, a scan and a poll of the same replica in every storage, with 20 ms a request.

Real servers of this machine behind proxies that delay; a storage whose server or package is missing is left out, and
said. Rows are compared with SQLite's own answers on the file; times are never asserted. What a request costs in CPU is
measured without the delay, as reads of one block each.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from statistics import median

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from _competitors import assert_equal, digest  # noqa: E402
from _databases import Dataset, dataset  # noqa: E402
from _results import Result, parse_arguments, report, seconds  # noqa: E402

import litevfs  # noqa: E402
from litevfs.errors import LitevfsError, StoragePermissionError  # noqa: E402
from litevfs.ltx.names import format_file_name  # noqa: E402
from litevfs.replica_clients.base import LTXFileInfo, ReadsNamed, ReplicaClient  # noqa: E402
from litevfs.replica_clients.urls import open_replica_client  # noqa: E402
from tests.replica_clients import stores  # noqa: E402

DELAY_S = 0.02
SMALL_ROWS, FULL_ROWS = 5_000, 100_000
POINTS, POLLS, READS = 20, 5, 100
BLOCK_BYTES = 1 << 16
SCAN = "SELECT sum(amount), sum(length(note)) FROM orders"
POINT = "SELECT customer, note FROM orders WHERE id = ?"
Opened = tuple[str, Callable[[], str]]
"""The replica's URL with the delay, and what gives that without, once the other is no longer used."""
OPEN, ONE, WHOLE, POLL, CPU = "open + first query", "point query", "scan", "poll", "CPU a read of 64 KiB"


@contextmanager
def file(work: Path, data: Dataset) -> Iterator[Opened]:
    yield data.replica_url, lambda: data.replica_url


@contextmanager
def memory(work: Path, data: Dataset) -> Iterator[Opened]:
    url = f"memory://stores-{data.rows}"
    client = open_replica_client(url)
    with data.ltx_file.open("rb") as content:
        client.write(9, 1, 1, content, 1)
    client.close()
    yield url, lambda: url


def served(scheme: str) -> Callable[[Path, Dataset], AbstractContextManager[Opened]]:
    """The storage with its real server, put there past the clients."""

    @contextmanager
    def open_store(work: Path, data: Dataset) -> Iterator[Opened]:
        with stores.running_store(scheme, work) as store, store.behind_proxy(DELAY_S) as proxy:
            address = stores.address_of(proxy)
            replica = store.new_replica(address)
            replica.put(9, format_file_name(1, 1), data.ltx_file.read_bytes())

            def direct() -> str:
                store.new_replica(store.address)  # Google's endpoint is in the environment: this sets it
                return replica.url.replace(address, store.address)

            yield replica.url, direct

    return open_store


STORES: dict[str, Callable[[Path, Dataset], AbstractContextManager[Opened]]] = {
    "file": file,
    "memory": memory,
    **{scheme: served(scheme) for scheme in stores.STORES},
}
SMALL_STORES = ("file", "memory", "http")


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse_arguments(__doc__, argv)
    data = dataset(SMALL_ROWS if arguments.small else FULL_ROWS)
    results = []
    for name in SMALL_STORES if arguments.small else STORES:
        with tempfile.TemporaryDirectory(prefix="litevfs-stores-") as work:
            try:
                with STORES[name](Path(work), data) as (url, direct):
                    results.append(measured(name, url, direct, data))
            except (pytest.skip.Exception, ImportError) as missing:
                print(f"without {name}: {missing}")
    report(f"{data.rows:,} rows, {DELAY_S * 1000:.0f} ms a request (file and memory: none)", results, arguments)


def measured(name: str, url: str, direct: Callable[[], str], data: Dataset) -> Result:
    rng = random.Random(3)
    ids = [rng.randrange(data.rows) for _ in range(POINTS)]
    began = time.perf_counter()
    connection = litevfs.connect(url)
    connection.execute("SELECT count(*) FROM sqlite_schema").fetchall()
    opened = time.perf_counter() - began
    points = []
    for number in ids:
        began = time.perf_counter()
        row = connection.execute(POINT, (number,)).get
        points.append(time.perf_counter() - began)
        assert_equal(f"{name}: {POINT}", {name: digest(row), "sqlite": digest(data.answer(POINT, (number,)))})
    connection.close()
    connection = litevfs.connect(url)
    began = time.perf_counter()
    total = connection.execute(SCAN).get
    scanned = time.perf_counter() - began
    assert_equal(f"{name}: scan", {name: digest(total), "sqlite": digest(data.answer(SCAN))})
    connection.close()
    values = {OPEN: opened, ONE: median(points), WHOLE: scanned, POLL: polled(url), CPU: cpu_a_read(direct())}
    return Result(name, {column: seconds(value) for column, value in values.items()}, samples=values)


def polled(url: str) -> float:
    """What a poll takes while there is nothing new: by the next file's name where that can be asked for."""
    client = open_replica_client(url)
    poll: Callable[[], object] = partial(client.list_files, 0, 2)
    poll()
    if isinstance(client, ReadsNamed):
        try:
            by_name = partial(client.read_named, 0, 2, 2, BLOCK_BYTES)
            by_name()
            poll = by_name
        except StoragePermissionError:  # an index says which files there are
            pass
    times = []
    for _ in range(POLLS):
        began = time.perf_counter()
        assert not poll()
        times.append(time.perf_counter() - began)
    client.close()
    return median(times)


def cpu_a_read(direct: str) -> float:
    client = open_replica_client(direct)
    (whole,) = client.list_files(9)
    size = min(BLOCK_BYTES, whole.size)
    rng = random.Random(4)
    offsets = [rng.randrange(max(1, whole.size - size)) for _ in range(READS)]
    read(client, whole, 0, size)
    began = time.process_time()
    for offset in offsets:
        read(client, whole, offset, size)
    spent = time.process_time() - began
    client.close()
    return spent / READS


def read(client: ReplicaClient, file: LTXFileInfo, offset: int, size: int) -> None:
    if len(client.read(file, offset, size)) != size:
        raise LitevfsError(f"fewer than {size} bytes at {offset} of {client.key(file)}")


if __name__ == "__main__":
    main()
