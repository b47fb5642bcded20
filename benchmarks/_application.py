"""Processes around a replicated database: `_application.py make|write|read ...`. Answers are JSON lines on stdout.

`write` is the application: small transactions through the module `sqlite3`, in WAL mode with synchronous=NORMAL, as
fast as it can or at a fixed rate. `read` follows the replica and says how long after its commit each row was visible.
Neither knows who replicates. `make` makes the database.
"""

from __future__ import annotations

import argparse
import json
import random
import select
import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

CUSTOMERS = 5_000
NOTES = 2_000
READER_PAUSE_S = 0.002
"""Between two looks of the reader: the resolution of what it measures."""
NEW_ROWS = "SELECT id, committed_ns FROM orders WHERE id > ? ORDER BY id"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    make = commands.add_parser("make")
    make.set_defaults(run=lambda arguments: make_database(arguments.database, arguments.rows))
    make.add_argument("database", type=Path)
    make.add_argument("--rows", type=int, required=True)
    write = commands.add_parser("write")
    write.set_defaults(run=write_rows)
    write.add_argument("database", type=Path)
    write.add_argument("--rate", type=float, default=0.0, help="transactions a second; 0: as fast as it can")
    write.add_argument("--warm-up", type=float, required=True, metavar="SECONDS")
    write.add_argument("--seconds", type=float, required=True)
    read = commands.add_parser("read")
    read.set_defaults(run=read_rows)
    read.add_argument("url")
    read.add_argument("--poll-interval", required=True)
    arguments = parser.parse_args()
    arguments.run(arguments)


def say(**values: object) -> None:
    """One line for the parent."""
    print(json.dumps(values), flush=True)


# --- the application --------------------------------------------------------------------------------------------------


def connect(database: Path) -> sqlite3.Connection:
    """As a careful application does it: WAL mode, synchronous=NORMAL, and SQLite's own automatic checkpoints."""
    connection = sqlite3.connect(database, timeout=30.0, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    return connection


def make_database(database: Path, rows: int) -> None:
    """A table with `rows` rows of about 200 bytes and an index on one column, in WAL mode."""
    rng = random.Random(1)
    texts = notes(rng)
    with closing(connect(database)) as connection:
        connection.execute(
            "CREATE TABLE orders "
            "(id INTEGER PRIMARY KEY, customer INTEGER, amount INTEGER, committed_ns INTEGER, note TEXT)"
        )
        connection.execute("CREATE INDEX orders_by_customer ON orders (customer)")
        connection.execute("BEGIN")
        new = ((rng.randrange(CUSTOMERS), 0, 0, rng.choice(texts)) for _ in range(rows))
        connection.executemany("INSERT INTO orders VALUES (NULL, ?, ?, ?, ?)", new)
        connection.execute("COMMIT")
    say(made=True)


def notes(rng: random.Random) -> list[str]:
    """Text that compresses to about half its size, as that of real rows does: most of a note is one of few phrases."""
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(3, 9))) for _ in range(3000)]
    phrases = [" ".join(rng.choices(words, k=21)) for _ in range(6)]
    return [f"{rng.choice(phrases)} {' '.join(rng.choices(words, k=4))}" for _ in range(NOTES)]


def write_rows(arguments: argparse.Namespace) -> None:
    """Each transaction inserts a row and updates another; says "begin" after warming up, and the result at the end."""
    with closing(connect(arguments.database)) as connection:
        write = writer(connection)
        run(write, arguments.warm_up, arguments.rate)
        say(begin=True)
        cpu, queued, start = time.process_time(), queued_seconds(), time.perf_counter()
        took = run(write, arguments.seconds, arguments.rate)
        elapsed, cpu, queued = time.perf_counter() - start, time.process_time() - cpu, queued_seconds() - queued
        took.sort()
        (last,) = connection.execute("SELECT max(id) FROM orders").fetchone()
        say(
            last=last,
            transactions=len(took),
            a_second=len(took) / elapsed,
            a_scheduled_second=len(took) / (elapsed - queued),
            cpu_a_transaction=cpu / len(took),
            median=took[len(took) // 2],
            p99=took[len(took) * 99 // 100],
            worst=took[-1],
        )


def writer(connection: sqlite3.Connection) -> Iterator[None]:
    """One transaction for each step of the iterator."""
    rng = random.Random(2)
    texts = notes(rng)
    (rows,) = connection.execute("SELECT count(*) FROM orders").fetchone()
    execute = connection.execute
    while True:
        execute("BEGIN IMMEDIATE")
        new = (rng.randrange(CUSTOMERS), rng.randrange(100_000), time.time_ns(), rng.choice(texts))
        execute("INSERT INTO orders VALUES (NULL, ?, ?, ?, ?)", new)
        execute("UPDATE orders SET amount = amount + 1 WHERE id = ?", (rng.randrange(1, rows),))
        execute("COMMIT")
        yield


def run(write: Iterator[None], seconds: float, rate: float) -> list[float]:
    """Write for so long; the seconds of each transaction. At a fixed rate, one that is late delays none after it."""
    took: list[float] = []
    now = start = time.perf_counter()
    while now - start < seconds:
        if rate:
            time.sleep(max(0.0, start + len(took) / rate - now))
            now = time.perf_counter()
        next(write)
        before, now = now, time.perf_counter()
        took.append(now - before)
    return took


def queued_seconds() -> float:
    """How long this process was ready to run and had no CPU; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/schedstat").read_text().split()[1]) / 1e9
    except FileNotFoundError:
        return 0.0


# --- the reader -------------------------------------------------------------------------------------------------------


def read_rows(arguments: argparse.Namespace) -> None:
    """Follow the replica: seconds from each row's commit to its being visible here. Ends with the row that stdin names.

    Nothing may be left out because it came late, the last rows least of all.
    """
    import litevfs

    lags: list[float] = []
    last: int | None = None
    with closing(litevfs.connect(arguments.url, poll_interval=arguments.poll_interval)) as connection:
        newest = int(str(connection.execute("SELECT max(id) FROM orders").get))
        say(begin=True)
        while last is None or newest < last:
            rows = connection.execute(NEW_ROWS, (newest,)).fetchall()
            now = time.time_ns()
            lags += [(now - int(str(committed_ns))) / 1e9 for _, committed_ns in rows]
            newest = int(str(rows[-1][0])) if rows else newest
            if last is not None:
                time.sleep(READER_PAUSE_S)
            elif select.select([sys.stdin], [], [], READER_PAUSE_S)[0]:
                last = int(sys.stdin.readline())
    lags.sort()
    say(rows=len(lags), median=lags[len(lags) // 2], p99=lags[len(lags) * 99 // 100], worst=lags[-1])


if __name__ == "__main__":
    main()
