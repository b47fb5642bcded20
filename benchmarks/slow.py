"""Point reads from a storage that is slow once in a while: how long the slowest take, with second requests and without.

A real S3 server behind a proxy that holds back one answer in fifty for two seconds. Rows are compared with SQLite's own
answers; times are never asserted.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from random import Random

from _competitors import assert_equal, digest
from _databases import ROWS, Dataset, dataset
from _results import Result, Samples, parse_arguments, report
from _results import seconds as shown
from _s3_replica import SMALL_ROWS, S3Replica, running_server

import litevfs
from litevfs.files import hedges
from litevfs.testing.http_faults import HTTPFault
from litevfs.testing.s3_proxy import running_s3_proxy

READS, SMALL_READS = 1000, 60
DELAY_S = 0.004  # of every request
SLOW_SHARE, SLOW_MS = 0.02, 2000.0
SQL = "SELECT amount, note FROM orders WHERE id = ?"
SHARES = {"no second requests": 0.0, "at most 5 % second requests": hedges.SHARE}


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse_arguments(__doc__, argv)
    data = dataset(SMALL_ROWS if arguments.small else ROWS)
    with running_server(data.ltx_file) as server:
        os.environ.update(server.environment())
        results = []
        for case, share in SHARES.items():
            with running_s3_proxy(server.endpoint, delay_s=DELAY_S, seed=1) as proxy:
                hedges.SHARE = share
                reads = SMALL_READS if arguments.small else READS
                results.append(measure(case, data, S3Replica(server, proxy, data.ltx_file.stat().st_size), reads))
    title = f"S3 ({server.kind}) at {DELAY_S * 1000:g} ms, {SLOW_SHARE:.0%} of the answers {SLOW_MS / 1000:g} s later"
    report(title, results, arguments)


def measure(case: str, data: Dataset, replica: S3Replica, reads: int) -> Result:
    """Point reads of random rows on one connection, whose caches hold few of them: a row of the table."""
    random = Random(1)
    ids = [random.randrange(data.rows) + 1 for _ in range(reads)]
    took, rows = [], []
    with closing(litevfs.connect(replica.url, poll_interval=0, cache_size="500kB", prefetch=False)) as connection:
        connection.execute(SQL, (1,)).fetchall()
        connection.execute("PRAGMA cache_size = 20")
        replica.proxy.faults.add(HTTPFault(delay_ms=SLOW_MS, probability=SLOW_SHARE, method="GET"))
        replica.proxy.clear()
        for row in ids:
            began = time.perf_counter()
            rows.append(connection.execute(SQL, (row,)).get)
            took.append(time.perf_counter() - began)
        requests = len(replica.gets())
    assert_equal(case, {"SQLite": digest([data.answer(SQL, (row,)) for row in ids]), "litevfs": digest(rows)})
    samples = Samples()
    took.sort()
    values = {}
    for name, share in (("median", 0.5), ("p95", 0.95), ("p99", 0.99)):
        samples.add(name, "seconds", took[int(reads * share)])
        values[name] = shown(took[int(reads * share)])
    samples.add("all", "GET", requests)
    values["requests"] = f"{requests} GET"
    return Result(case, values, "", None, samples.all)


if __name__ == "__main__":
    main(sys.argv[1:])
