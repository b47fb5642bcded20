"""A table scanned by one process, and by two workers of Dask, Ray and Spark: rows a second, all of one state.

    python benchmarks/scan_out.py [--small] [--json FILE]

Each reads four columns of every row, the text among them, and adds up two: into an Arrow table in one process, as the
pieces of `litevfs.partitions` in the others. Time is from the plan to the result, with the workers running already.
An engine that is not installed is left out (pip install 'litevfs[engines]'; Spark needs Java, too).
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from _competitors import assert_equal, clean_environment
from _databases import ROWS, SMALL_ROWS, dataset
from _results import Result, Samples, parse_arguments, ratio, report

WORKERS = 2
PIECES = 8
ROUNDS = 3
COLUMNS = ("id", "customer", "amount", "note")
ENGINES = {"one process": "pyarrow", "Dask": "dask", "Ray": "ray", "Spark": "pyspark"}
TIMEOUT_S = 240.0


def main() -> int:
    arguments = parse_arguments(__doc__)
    data = dataset(SMALL_ROWS if arguments.small else ROWS)
    rounds = 0 if arguments.small else ROUNDS
    samples = Samples()
    answers: dict[str, str] = {}
    for engine, package in ENGINES.items():
        if importlib.util.find_spec(package) is None or (engine == "Spark" and shutil.which("java") is None):
            print(f"{engine} is left out: it is not installed")
            continue
        found = run(engine, data.replica_url, rounds)
        answers[engine] = str(found["answer"])
        for seconds in found["seconds"]:
            samples.add("scan", engine, data.rows / seconds)
    if not answers:
        return 0
    assert_equal("the sums", answers)
    alone = samples.median("scan", "one process")
    results = []
    for engine, rates in samples.all.get("scan", {}).items():
        rate = samples.median("scan", engine)
        values = {"rows a second": f"{rate:,.0f}", "of one process": ratio(rate, alone)}
        results.append(Result(engine, values, samples=rates))
    title = f"scan of {data.rows:,} rows, {WORKERS} workers, {PIECES} pieces, {os.cpu_count()} cores"
    report(title, results, arguments)
    return 0


def run(engine: str, replica: str, rounds: int) -> dict[str, object]:
    """Seconds of each round and the sums, from a process of its own; 0 rounds: of the first, which loads everything."""
    environment = clean_environment() | {
        "PYSPARK_PYTHON": sys.executable,
        "SPARK_LOCAL_IP": "127.0.0.1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    }
    with tempfile.TemporaryDirectory(prefix="litevfs-bench-") as folder:
        done = subprocess.run(
            [sys.executable, str(Path(__file__).with_name("_scan_engine.py")), engine, replica, str(rounds)],
            env=environment,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )
    if done.returncode:
        raise SystemExit(f"{engine} failed: {done.stderr[-2000:]}")
    answer: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return answer


if __name__ == "__main__":
    sys.exit(main())
