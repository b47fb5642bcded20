"""Restore from a folder against a plain copy of the same database: MB/s, and the peak memory of the process.

    python benchmarks/restore.py [--small] [--size MB]

Both write a new file and fsync it. Goals: at most 1.5 times the time of the copy; under 100 MB of memory for any size.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import apsw

from litevfs.ltx import Encoder, Header, lock_pgno
from litevfs.replica_clients.file import FileReplicaClient

GOAL_RATIO = 1.5
GOAL_PEAK_MB = 100
PAGE_SIZE = 4096
ROUNDS = 5
SMALL_FILES = 100
"""Level-0 files after the snapshot: a transaction every few seconds for the five minutes until they are compacted."""

CHILD = """
import json, sys, time
from pathlib import Path
from litevfs.operations.restore import restore
started = time.perf_counter()
result = restore(sys.argv[1], sys.argv[2])
seconds = time.perf_counter() - started
peak_kb = next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
print(json.dumps({"seconds": seconds, "peak_mb": peak_kb / 1000, "txid": result.txid, "bytes": result.bytes}))
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="seconds instead of minutes")
    parser.add_argument("--size", type=int, help="size of the largest database, MB")
    arguments = parser.parse_args()
    largest = arguments.size or (4 if arguments.small else 1000)
    print(f"{'database':>10} {'LTX':>9} {'copy':>11} {'restore':>11} {'ratio':>7} {'goal':>7} {'peak':>9} {'goal':>9}")
    met = True
    for size_mb in sorted({1, min(8, largest), largest // 10 or 1, largest}):
        with tempfile.TemporaryDirectory(prefix="litevfs-bench-") as folder:
            met &= measure(Path(folder), size_mb)
    print("all goals met" if met else "goals missed")
    return 0


def measure(folder: Path, size_mb: int) -> bool:
    source, replica = folder / "source.db", folder / "replica"
    make_database(source, size_mb)
    ltx_bytes = make_replica(source, replica)
    copies, results = [], []
    for _ in range(ROUNDS):  # in turn, so that a busy machine is busy for both
        copies.append(timed(lambda: copy_durably(source, folder / "copy.db")))
        results.append(restore_in_child(replica, folder / "restored.db", source))
    copy_s, restore_s = min(copies), min(result["seconds"] for result in results)
    peak_mb = max(result["peak_mb"] for result in results)
    size = source.stat().st_size / 1e6
    ratio = restore_s / copy_s
    print(
        f"{size:7.0f} MB {ltx_bytes / 1e6:6.0f} MB {size / copy_s:6.0f} MB/s {size / restore_s:6.0f} MB/s "
        f"{ratio:6.2f}x {GOAL_RATIO:6.2f}x {peak_mb:6.0f} MB {GOAL_PEAK_MB:6.0f} MB"
    )
    return ratio <= GOAL_RATIO and peak_mb < GOAL_PEAK_MB


def make_database(path: Path, size_mb: int) -> None:
    """Rows of words and numbers, which compress about 2:1 as LTX."""
    connection = apsw.Connection(str(path))
    connection.execute(f"PRAGMA page_size={PAGE_SIZE}; PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF")
    connection.execute("CREATE TABLE item(id INTEGER PRIMARY KEY, name TEXT, body BLOB, price REAL)")
    random_ = random.Random(1)
    words = [f"word{random_.randrange(10**6)}" for _ in range(5000)]

    def rows() -> Iterator[tuple[str, bytes, float]]:
        for _ in range(size_mb * 1_000_000 // 540):
            text = " ".join(random_.choices(words, k=28))
            yield text, random_.randbytes(200), random_.random()

    with connection:
        connection.executemany("INSERT INTO item(name, body, price) VALUES (?, ?, ?)", rows())
    connection.close()


def make_replica(database: Path, replica: Path) -> int:
    """A snapshot and SMALL_FILES after it, each with a few pages that were in the snapshot; bytes of all."""
    client = FileReplicaClient(replica)
    commit = database.stat().st_size // PAGE_SIZE
    with database.open("rb") as pages, tempfile.TemporaryFile() as spool:
        encoder = Encoder(Header(page_size=PAGE_SIZE, commit=commit, min_txid=1, max_txid=1, timestamp_ms=1))
        spool.write(encoder.begin())
        for pgno in range(1, commit + 1):
            page = pages.read(PAGE_SIZE)
            if pgno != lock_pgno(PAGE_SIZE):
                spool.write(encoder.page(pgno, page))
        spool.write(encoder.finish())
        spool.seek(0)
        total = client.write(9, 1, 1, spool, 1).size
        random_ = random.Random(2)
        for txid in range(2, SMALL_FILES + 2):
            header = Header(page_size=PAGE_SIZE, commit=commit, min_txid=txid, max_txid=txid, timestamp_ms=txid)
            encoder = Encoder(header)
            parts = [encoder.begin()]
            for pgno in sorted(random_.sample(range(1, min(commit, 250_000) + 1), 5)):
                pages.seek((pgno - 1) * PAGE_SIZE)
                parts.append(encoder.page(pgno, pages.read(PAGE_SIZE)))
            parts.append(encoder.finish())
            total += client.write(0, txid, txid, b"".join(parts), txid).size
    client.close()
    return total


def copy_durably(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    shutil.copyfile(source, target)
    fd = os.open(target, os.O_RDWR)
    os.fsync(fd)
    os.close(fd)


def restore_in_child(replica: Path, target: Path, source: Path) -> dict[str, float]:
    """Restore in a process of its own, whose peak memory counts; the result must be the database, byte for byte."""
    command = [sys.executable, "-c", CHILD, str(replica), str(target)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    output = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    with source.open("rb") as a, target.open("rb") as b:
        while piece := a.read(1 << 20):
            if piece != b.read(1 << 20):
                raise SystemExit(f"{target} is not {source}")
    target.unlink()
    return dict(json.loads(output))


def timed(call: Callable[[], None]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


if __name__ == "__main__":
    sys.exit(main())
