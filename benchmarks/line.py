"""Queries over lines of any kind: latencies by throughputs, one limit over all connections together.

A real S3 server behind a proxy that delays every request and lets answers pass no faster than the line. Each query
starts with a connection that has cached nothing but what opening it reads. Rows are compared with SQLite's own answers;
times are never asserted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from statistics import median

from _chart import bars
from _competitors import assert_equal, digest
from _databases import ROWS, Dataset, dataset
from _results import Result, Samples, argument_parser, report
from _results import seconds as shown
from _s3_replica import SMALL_ROWS, S3Replica, bytes_of, running_replica

LATENCIES_S = (0.004, 0.025, 0.1)
MBIT_PER_S = (20, 100, 1000)
HOME = (0.05, 20)
"""A line at home, with goals of its own."""
BY_INDEX = "SELECT count(*), sum(amount), max(note) FROM (SELECT * FROM orders WHERE batch = ? LIMIT ?)"
CASES = {"20 rows by index": 20, "200 rows by index": 200}
SCAN = "scan of 1,000 pages"
SCAN_SQL = "SELECT sum(amount), count(note) FROM orders WHERE id BETWEEN ? AND ? + 18000"
GOALS_S = {"20 rows by index": 1.0, "200 rows by index": 2.0}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="times to measure each query")
    arguments = parser.parse_args(argv)
    lines = (
        [(0.004, 100)] if arguments.small else [HOME, *((delay, mbit) for delay in LATENCIES_S for mbit in MBIT_PER_S)]
    )
    data = dataset(SMALL_ROWS if arguments.small else ROWS)
    rounds = 1 if arguments.small else arguments.rounds
    with running_replica(data.ltx_file) as replica:
        results = [measure(data, replica, line, rounds, arguments.small) for line in lines]
    title = f"S3 ({replica.server.kind}) over one line for all connections, {replica.size / 1e6:.1f} MB of LTX"
    report(title, results, arguments)
    times = {each.case: {name: median(each.samples[name]["seconds"]) for name in (*CASES, SCAN)} for each in results}
    bars(arguments, "line", title, times, "seconds", log=True)


def measure(data: Dataset, replica: S3Replica, line: tuple[float, int], rounds: int, small: bool) -> Result:
    """All queries over one line: a row of the table."""
    samples = Samples()
    queries = {name: (BY_INDEX, (data.batches // 2, rows)) for name, rows in CASES.items()}
    queries[SCAN] = (SCAN_SQL, (data.rows // 3, data.rows // 3))
    delay_s, mbit_per_s = line
    for name, (sql, parameters) in queries.items():
        for _ in range(rounds):
            replica.proxy.delay_s, replica.proxy.bytes_per_s = delay_s, mbit_per_s * 1e6 / 8
            with replica.opened() as competitor:
                took, answers = competitor.timed(sql, [parameters])
                requests = replica.gets()
            assert_equal(name, {"SQLite": digest([data.answer(sql, parameters)]), "litevfs": answers})
            samples.add(name, "seconds", took)
            samples.add(name, "GET", len(requests))
            samples.add(name, "MB", bytes_of(requests) / 1e6)
    values = {
        name: f"{shown(samples.median(name, 'seconds'))}, {samples.median(name, 'GET'):g} GET, "
        f"{samples.median(name, 'MB'):.1f} MB"
        for name in queries
    }
    met = None
    if line == HOME and not small:
        met = all((samples.median(name, "seconds") or 0.0) <= goal for name, goal in GOALS_S.items())
    goal = ", ".join(f"<= {goal:g} s" for goal in GOALS_S.values()) if line == HOME else ""
    return Result(f"{delay_s * 1000:g} ms, {mbit_per_s} Mbit/s", values, goal, met, samples.all)


if __name__ == "__main__":
    main(sys.argv[1:])
