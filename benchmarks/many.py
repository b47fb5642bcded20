"""Thousands of replicas in one process: threads, memory, CPU at rest, opening and closing.

One to 3,000 replicas in folders, each of a small database of its own: a snapshot and two transactions. A process opens
them all, looks a row up in each, and then only polls, once a second each. Answers are checked; times are never
asserted. SQLite takes most of a connection's memory, whatever the database is: so the same number of connections to a
local file is measured too.
"""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import apsw
import psutil
from _chart import lines
from _competitors import clean_environment
from _databases import cached_folder
from _results import Result, parse_arguments, report, seconds

COUNTS = (1, 100, 1_000, 3_000)
GOAL_THREADS, GOAL_BYTES, GOAL_CPU, GOAL_OPEN_S = 32, 80_000, 0.10, 0.002
"""For 3,000 replicas: threads in all, memory of each, part of a core at rest, opening of each."""
POLL_INTERVAL_S = 1.0
ROWS = 300


def main(argv: Sequence[str] | None = None) -> None:
    if argv and argv[0] == "open":
        print(json.dumps(open_all(Path(argv[1]), int(argv[2]), float(argv[3]))))
        return
    if argv and argv[0] == "native":
        print(json.dumps(native_bytes(Path(argv[1]), int(argv[2]))))
        return
    arguments = parse_arguments(__doc__, argv)
    counts, rest_s = ((1, 30), 2.0) if arguments.small else (COUNTS, 20.0)
    folder = cached_folder(f"many-{counts[-1]}-v1", lambda folder: make_replicas(folder, counts[-1]))
    results = [measured(folder, count, rest_s, judges=count == COUNTS[-1]) for count in counts]
    title = f"Many replicas in one process, each polled every {POLL_INTERVAL_S:g} s"
    report(title, results, arguments)
    lines(arguments, "many", title, growth(counts, [each.samples for each in results]), "replicas", "", log=True)


def growth(counts: Sequence[int], found: Sequence[Any]) -> dict[str, list[tuple[float, float]]]:
    """What the chart shows, each in the unit of its name, as points by the number of replicas."""
    shown = {
        "threads": ("threads", 1),
        "memory of each, kB": ("bytes", 1e-3),
        "CPU at rest, % of a core": ("cpu", 100),
        "opening each, ms": ("open_s", 1e3),
        "closing each, ms": ("close_s", 1e3),
    }
    return {
        name: [(count, each[key] * scale) for count, each in zip(counts, found, strict=True) if each[key] > 0]
        for name, (key, scale) in shown.items()
    }


def make_replicas(folder: Path, count: int) -> None:
    """`count` replicas, each with an LTX snapshot and two transactions after it."""
    from litevfs import Replicator

    database = folder / "app.db"
    with closing(apsw.Connection(str(database))) as connection:
        connection.pragma("journal_mode", "wal")
        connection.execute("CREATE TABLE items (id INTEGER PRIMARY KEY, note TEXT)")
        connection.executemany("INSERT INTO items VALUES (?, ?)", ((i, f"note {i} " * 8) for i in range(ROWS)))
        with Replicator(database, f"file://{folder}/0") as replicator:
            replicator.sync()
            for i in range(2):
                connection.execute("UPDATE items SET note = ? WHERE id = ?", (f"changed {i}", i))
                replicator.sync()
    for i in range(1, count):
        shutil.copytree(folder / "0", folder / f"{i}")


def measured(folder: Path, count: int, rest_s: float, *, judges: bool) -> Result:
    """One row: `count` replicas in a process of their own."""
    found = in_a_process("open", str(folder), str(count), str(rest_s))
    native = in_a_process("native", str(folder), str(count))
    met = None
    if judges:
        met = (
            found["threads"] <= GOAL_THREADS
            and found["bytes"] - native <= GOAL_BYTES
            and found["cpu"] <= GOAL_CPU
            and found["open_s"] <= GOAL_OPEN_S
        )
    values = {
        "threads": f"{found['threads']}",
        "memory of each": f"{found['bytes'] / 1e3:.0f} kB",
        "beyond SQLite's own": f"{(found['bytes'] - native) / 1e3:.0f} kB",
        "CPU at rest, of a core": f"{found['cpu']:.1%}",
        "opening each": seconds(found["open_s"]),
        "looking a row up": seconds(found["query_s"]),
        "closing each": seconds(found["close_s"]),
    }
    goal = f"<= {GOAL_THREADS}, {GOAL_BYTES / 1e3:.0f} kB, {GOAL_CPU:.0%}, {seconds(GOAL_OPEN_S)}" if judges else ""
    return Result(f"{count:,} replica{'s' * (count > 1)}", values, goal, met, found)


def in_a_process(*arguments: str) -> Any:
    """What this script prints when it is called so."""
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, env=clean_environment(), capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def native_bytes(folder: Path, count: int) -> float:
    """Memory of each of `count` connections to a local file, after the same query."""
    process = psutil.Process()

    def connection() -> apsw.Connection:
        connection = apsw.Connection(str(folder / "app.db"))
        check(connection)
        return connection

    with closing(connection()):
        memory = process.memory_info().rss
    connections = [connection() for _ in range(count)]
    return (process.memory_info().rss - memory) / len(connections)


def open_all(folder: Path, count: int, rest_s: float) -> dict[str, float]:
    """What it takes to have `count` replicas open in this process."""
    import litevfs

    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    process = psutil.Process()
    with closing(litevfs.connect(f"file://{folder}/0")) as first:  # loads what there is to load
        check(first)
    memory = process.memory_info().rss
    before = time.perf_counter()
    connections = [litevfs.connect(f"file://{folder}/{i}", poll_interval=POLL_INTERVAL_S) for i in range(count)]
    opened = time.perf_counter()
    for connection in connections:
        check(connection)
    queried = time.perf_counter()
    time.sleep(2 * POLL_INTERVAL_S)
    cpu, rested = time.process_time(), time.perf_counter()
    time.sleep(rest_s)
    cpu, rested = time.process_time() - cpu, time.perf_counter() - rested
    found = {
        "threads": threading.active_count(),
        "bytes": (process.memory_info().rss - memory) / count,
        "cpu": cpu / rested,
        "open_s": (opened - before) / count,
        "query_s": (queried - opened) / count,
    }
    closing_began = time.perf_counter()
    for connection in connections:
        connection.close()
    found["close_s"] = (time.perf_counter() - closing_began) / count
    return found


def check(connection: apsw.Connection) -> None:
    """A row of the newest state is right. Raises AssertionError."""
    assert connection.execute("SELECT note FROM items WHERE id = 1").get == "changed 1"


if __name__ == "__main__":
    main(sys.argv[1:])
