"""One process that replicates 1, 100 and 1,000 databases, each with a commit a second: CPU, memory, threads and lag.

    python benchmarks/tenants.py [--small] [--json FILE] [--seconds N] [--places N]

A writer process makes the commits, round and round. The replicator is `litevfs replicate --dir`, with replicas in a
folder, or in several (`--places`). Commits begin when the work of the start is done, the first snapshots included. CPU
is what the replicator's process used while all databases were being written to, in cores; memory is its resident set at
the end; lag is from a commit to the upload of its file (its modification time), over all databases.

First, the CPU of one commit's way alone, capture and upload into a folder: of rounds over 30 databases in one thread
the cheapest, as others that use the same cores make each slower. Once on the disk, and once in memory.
"""

from __future__ import annotations

import argparse
import json
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import apsw
import psutil

from litevfs import Replicator

ROUND, ROUNDS = 30, 25
MEMORY = Path("/dev/shm")
START_LIMIT_S = 300.0
END_LIMIT_S = 60.0
IDLE_LIMIT_S = 40.0


def make(path: Path) -> None:
    db = sqlite3.connect(path)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("CREATE TABLE event (id INTEGER PRIMARY KEY, body)")
    db.commit()
    db.close()


def uploaded(replica: Path) -> list[Path]:
    return sorted((replica / "ltx" / "0").glob("*.ltx"))


def write(paths: list[Path], seconds: float, commits: dict[Path, list[float]]) -> None:
    """A commit a second in each database, spread over the second."""
    begin = time.monotonic()
    for turn in range(int(seconds)):
        for number, path in enumerate(paths):
            pause = begin + turn + number / len(paths) - time.monotonic()
            if pause > 0:
                threading.Event().wait(pause)
            db = sqlite3.connect(path, timeout=30)
            db.execute("INSERT INTO event (body) VALUES (?)", ("x" * 200,))
            db.commit()
            db.close()
            commits.setdefault(path, []).append(time.time())


def run(count: int, seconds: float, places: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="litevfs-bench-") as name:
        folder, replicas = Path(name, "tenants"), [Path(name, f"replicas-{number}") for number in range(places)]
        folder.mkdir()
        paths = [folder / f"{number:04}.db" for number in range(count)]
        for path in paths:
            make(path)
        command = [sys.executable, "-m", "litevfs", "replicate", "--dir", str(folder), *map(str, replicas)]
        began = time.monotonic()
        process = subprocess.Popen([*command, "--shutdown-timeout", "50s"], stderr=subprocess.DEVNULL)
        try:
            return measure(process, paths, replicas, seconds, began)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait(END_LIMIT_S)


def measure(
    process: subprocess.Popen[bytes], paths: list[Path], replicas: list[Path], seconds: float, began: float
) -> dict[str, Any]:
    while not all(uploaded(replica / path.name) for replica in replicas for path in paths):
        assert process.poll() is None, "the replicator has ended"
        assert time.monotonic() < began + START_LIMIT_S, "the first copies take too long"
        threading.Event().wait(0.2)
    started_s = time.monotonic() - began
    seen = psutil.Process(process.pid)
    wait_until_idle(seen)
    before, start = seen.cpu_times(), time.monotonic()
    commits: dict[Path, list[float]] = {}
    write(paths, seconds, commits)
    after, took = seen.cpu_times(), time.monotonic() - start
    made = sum(map(len, commits.values()))
    memory, threads, files = seen.memory_info().rss, seen.num_threads(), seen.num_fds()
    wait_until_uploaded(commits, replicas)
    process.send_signal(signal.SIGTERM)
    code = process.wait(END_LIMIT_S)
    assert code == 0, f"the replicator ended with {code}"
    return {
        "case": f"{len(paths)} databases" + (f", {len(replicas)} places" if len(replicas) > 1 else ""),
        "start_s": round(started_s, 2),
        "commits_per_s": round(made / took, 1),
        "cpu_cores": round((after.user + after.system - before.user - before.system) / took, 3),
        "memory_mb": round(memory / 1e6, 1),
        "threads": threads,
        "files": files,
        "user_ms": round((after.user - before.user) / made * 1e3, 3),
        "system_ms": round((after.system - before.system) / made * 1e3, 3),
        **lags(commits, replicas[-1]),
    }


def wait_until_idle(process: psutil.Process) -> None:
    """Return when the process has used less than a fifth of a core for a second, or in time."""
    deadline = time.monotonic() + IDLE_LIMIT_S
    while process.cpu_percent(1.0) > 20.0 and time.monotonic() < deadline:
        pass


def wait_until_uploaded(commits: dict[Path, list[float]], replicas: list[Path]) -> None:
    """Return when the last commits are in all replicas, or in time: those that the end uploads would count as late."""
    deadline = time.monotonic() + IDLE_LIMIT_S
    waiting = [(replica / path.name, times[-1]) for replica in replicas for path, times in commits.items()]
    while waiting and time.monotonic() < deadline:
        threading.Event().wait(1.0)
        waiting = [(replica, when) for replica, when in waiting if uploaded(replica)[-1].stat().st_ctime < when]


def commit_cost(parent: Path | None, rounds: int = ROUNDS) -> dict[str, Any]:
    """CPU of `Replicator.sync` after a commit of one row, in the cheapest round. `parent`: where the files lie."""
    with tempfile.TemporaryDirectory(prefix="litevfs-bench-", dir=parent) as name, ExitStack() as opened:
        pairs = []
        for number in range(ROUND):
            path = Path(name, f"{number:04}.db")
            db = opened.enter_context(closing(apsw.Connection(str(path))))
            db.pragma("journal_mode", "wal")
            db.execute("CREATE TABLE event (id INTEGER PRIMARY KEY, body)")
            replicator = opened.enter_context(
                Replicator(path, Path(name, "replicas", path.name).as_uri(), own_process=True)
            )
            replicator.sync()
            pairs.append((db, replicator))
        costs = []
        for _ in range(rounds):
            for db, _ in pairs:
                db.execute("INSERT INTO event (body) VALUES (?)", ("x" * 200,))
            before = time.process_time()
            for _, replicator in pairs:
                replicator.sync()
            costs.append((time.process_time() - before) / ROUND)
    return {"case": f"one commit, {'disk' if parent is None else parent}", "cpu_ms": round(min(costs) * 1e3, 3)}


def lags(commits: dict[Path, list[float]], replicas: Path) -> dict[str, float]:
    """From a commit to the first upload after it, seconds."""
    found = []
    for path, times in commits.items():
        uploads = [file.stat().st_ctime for file in uploaded(replicas / path.name)]
        found += [min((u for u in uploads if u >= when), default=uploads[-1]) - when for when in times[:-1]]
    found.sort()
    if not found:
        return {"lag_median_s": 0.0, "lag_99_s": 0.0}
    return {"lag_median_s": round(found[len(found) // 2], 3), "lag_99_s": round(found[int(len(found) * 0.99)], 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="20 databases at most, for a few seconds")
    parser.add_argument("--seconds", type=float, help="how long commits are made [20; 2 with --small]")
    parser.add_argument("--places", type=int, default=1, help="replicas of each database [1]")
    parser.add_argument("--databases", type=int, nargs="*", help="how many [1 100 1000; 1 20 with --small]")
    parser.add_argument("--json", type=Path, help="write the results to this file too")
    args = parser.parse_args()
    seconds = args.seconds or (2.0 if args.small else 20.0)
    rounds = 2 if args.small else ROUNDS
    results = [commit_cost(parent, rounds) for parent in (None, MEMORY) if parent is None or parent.is_dir()]
    for result in results:
        print("  ".join(f"{name} {value}" for name, value in result.items()), flush=True)
    for count in args.databases or ([1, 20] if args.small else [1, 100, 1000]):
        results.append(run(count, seconds, args.places))
        print("  ".join(f"{name} {value}" for name, value in results[-1].items()), flush=True)
    if args.json:
        args.json.write_text(json.dumps({"small": args.small, "results": results}, indent=1))


if __name__ == "__main__":
    main()
