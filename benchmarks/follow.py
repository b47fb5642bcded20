"""A local file that follows a replica, beside `litestream restore -f`: lag, and what readers of the file see meanwhile.

    python benchmarks/follow.py [--small]

A primary commits to a database, litevfs replicates it into a folder, and both programs keep a file of their own current
from it, looking ten times a second. A reader of each file, in a process of its own, runs a sum that is the same in
every state, and an integrity check now and then. Lag is from the commit on the replica to the reader's row. litestream
is skipped where it is not on the PATH.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

import apsw

import litevfs

ROWS = 20_000
INTERVAL_S = 0.1
COUNTS = (("sums", 7), ("torn", 5), ("errors", 7), ("checks", 7), ("corrupt", 8), ("missing", 8))
"""What is printed: sums read, those that no state has, errors, integrity checks, those that failed, and transactions
that a connection opened in the end does not see."""

READER = """
import json, sqlite3, sys, time
path, stop = sys.argv[1:]
answers = {"sums": 0, "torn": 0, "errors": 0, "checks": 0, "corrupt": 0, "lags": []}
connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5)
seen, n = 0, 0
def stopped():
    try:
        return bool(open(stop).read())
    except FileNotFoundError:
        return False
while not stopped():
    n += 1
    try:
        total, newest, at = connection.execute(
            "SELECT (SELECT sum(cents) FROM account), (SELECT max(id) FROM note), "
            "(SELECT at FROM note ORDER BY id DESC LIMIT 1)"
        ).fetchone()
        answers["sums"] += 1
        answers["torn"] += total != 0
        if newest != seen and at:
            answers["lags"].append(time.time() - at)
        seen = newest
        if n % 50 == 0:
            answers["checks"] += 1
            answers["corrupt"] += connection.execute("PRAGMA quick_check").fetchone() != ("ok",)
    except sqlite3.DatabaseError:
        answers["errors"] += 1
        connection.close()
        connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5)
    time.sleep(0.002)
print(json.dumps(answers))
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="seconds instead of a minute")
    arguments = parser.parse_args()
    seconds = 2.0 if arguments.small else 40.0
    titles = (f"{name:>{width}}" for name, width in COUNTS)
    print(f"{'':12} {'states':>7} {'lag median':>11} {'lag p95':>9}", *titles)
    for name in ("litevfs", "litestream"):
        if name == "litestream" and shutil.which("litestream") is None:
            print("litestream   skipped: it is not on the PATH")
            continue
        with tempfile.TemporaryDirectory(prefix="litevfs-bench-") as folder:
            report(name, measure(name, Path(folder), seconds))
    return 0


def measure(name: str, folder: Path, seconds: float) -> dict[str, object]:
    """Run one follower and its reader for so long, and return what the reader counted."""
    database, replica, copy, stop = (folder / part for part in ("app.db", "replica", "copy.db", "stop"))
    application = apsw.Connection(str(database))
    application.pragma("journal_mode", "wal")
    application.execute(
        "CREATE TABLE account (id INTEGER PRIMARY KEY, cents, filler); CREATE TABLE note (id INTEGER PRIMARY KEY, at)"
    ).fetchall()
    with application:
        application.executemany(
            "INSERT INTO account VALUES (?, 0, randomblob(200))", ((n,) for n in range(1, ROWS + 1))
        )
    with closing(application), litevfs.Replicator(database, str(replica), sync_interval_s=3600) as replicator:
        replicator.sync()
        follower = subprocess.Popen(command(name, replica, copy), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            wait_for_file(copy)
            reader = subprocess.Popen(
                [sys.executable, "-c", READER, str(copy), str(stop)], stdout=subprocess.PIPE, text=True
            )
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                commit(application)
                replicator.sync()
                time.sleep(INTERVAL_S * 1.7)
            time.sleep(1.0)
            stop.write_text("stop")
            answers, _ = reader.communicate(timeout=60)
            last = application.execute("SELECT max(id) FROM note").get
            with closing(sqlite3.connect(f"file:{copy}?mode=ro", uri=True)) as new:
                missing = last - (new.execute("SELECT max(id) FROM note").fetchone()[0] or 0)
        finally:
            follower.terminate()
            follower.wait()
    return dict(json.loads(answers)) | {"missing": missing}


def command(name: str, replica: Path, copy: Path) -> list[str]:
    if name == "litevfs":
        return [
            sys.executable,
            "-m",
            "litevfs",
            "follow",
            str(replica),
            "-o",
            str(copy),
            "--interval",
            f"{INTERVAL_S}s",
        ]
    options = ["-f", "-follow-interval", f"{INTERVAL_S * 1000:.0f}ms", "-o", str(copy)]
    return ["litestream", "restore", *options, f"file://{replica}"]


def commit(application: apsw.Connection) -> None:
    """Move money between accounts all over the table, and note when."""
    with application:
        for n in range(40):
            a, b = (hash((time.time_ns(), n, side)) % ROWS + 1 for side in (1, 2))
            application.execute("UPDATE account SET cents = cents - 1, filler = randomblob(200) WHERE id = ?", (a,))
            application.execute("UPDATE account SET cents = cents + 1 WHERE id = ?", (b,))
        application.execute("INSERT INTO note (at) VALUES (?)", (time.time(),))


def wait_for_file(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not (path.exists() and path.stat().st_size):
        if time.monotonic() > deadline:
            raise SystemExit(f"{path.name} did not appear")
        time.sleep(0.05)


def report(name: str, answers: dict[str, object]) -> None:
    lags = sorted(float(lag) for lag in list(answers["lags"]))  # type: ignore[call-overload]
    median = f"{1000 * statistics.median(lags):.0f} ms" if lags else "-"
    late = f"{1000 * lags[int(len(lags) * 0.95)]:.0f} ms" if lags else "-"
    counts = " ".join(
        f"{answers[key]:>{width}}"
        for key, width in (("sums", 7), ("torn", 5), ("errors", 7), ("checks", 7), ("corrupt", 8))
    )
    print(f"{name:12} {len(lags):>7} {median:>11} {late:>9} {counts}", flush=True)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    sys.exit(main())
