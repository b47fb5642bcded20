"""Sessions of queries on one connection against the same queries on fresh connections: bytes, GETs and seconds.

A real S3 server behind a proxy that delays and counts. Rows are compared with SQLite's own answers; times are never
asserted. What a session reads more than its queries alone is what reading ahead guessed wrong.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from random import Random

from _competitors import assert_equal, digest
from _databases import ROWS, Dataset, dataset
from _results import Result, parse_arguments, ratio, report
from _results import seconds as shown
from _s3_replica import DELAY_S, SMALL_ROWS, S3Replica, bytes_of, running_replica

SESSIONS, SMALL_SESSIONS = 20, 1
QUERIES = range(3, 9)
FREE_BYTES = 8_000_000
TEMPLATES = (
    "SELECT * FROM orders WHERE id = {id}",
    "SELECT * FROM orders WHERE batch = {batch}",
    "SELECT * FROM orders WHERE batch BETWEEN {batch} AND {batch} + 1 LIMIT 250",
    "SELECT sum(amount) FROM orders WHERE id BETWEEN {id} AND {id} + 4000",
    "SELECT count(*) FROM orders",
    "SELECT max(length(note)) FROM orders",
    "SELECT * FROM orders ORDER BY batch DESC LIMIT 20",
    "SELECT batch, count(*) FROM orders GROUP BY batch",
    "SELECT b.note FROM orders a JOIN orders b ON b.id = a.id * 7 % 10000 WHERE a.id BETWEEN {id} AND {id} + 50",
)
PAIR = ("SELECT * FROM orders WHERE batch BETWEEN {batch} AND {batch} LIMIT 50", "SELECT count(*) FROM orders")


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse_arguments(__doc__, argv)
    data = dataset(SMALL_ROWS if arguments.small else ROWS)
    with running_replica(data.ltx_file) as replica:
        bench = Bench(data, replica)
        batch = str(data.batches // 2)
        results = [bench.compare("look-ups, then count(*)", [sql.replace("{batch}", batch) for sql in PAIR])]
        seeds = range(SMALL_SESSIONS if arguments.small else SESSIONS)
        results += [bench.compare(f"session {seed}", session(data, seed)) for seed in seeds]
    title = f"Sessions over S3 ({replica.server.kind}) at {DELAY_S * 1000:.0f} ms, {replica.size / 1e6:.1f} MB"
    report(title, results, arguments)


def session(data: Dataset, seed: int) -> list[str]:
    """Queries at random."""
    random = Random(seed)
    return [
        random.choice(TEMPLATES).format(id=random.randrange(data.rows - 5000), batch=random.randrange(data.batches - 1))
        for _ in range(random.choice(QUERIES))
    ]


class Bench:
    """One replica behind one proxy."""

    def __init__(self, data: Dataset, replica: S3Replica) -> None:
        self._data = data
        self._replica = replica

    def compare(self, name: str, queries: list[str]) -> Result:
        """One row: the queries on one connection, and each on its own."""
        together = self._run(queries)
        alone = [sum(column) for column in zip(*(self._run([query]) for query in queries), strict=True)]
        columns = {"one connection": together, "fresh connections": alone}
        values = {
            column: f"{took[0] / 1e6:.1f} MB, {took[1]:g} GET, {shown(took[2])}" for column, took in columns.items()
        }
        values["bytes"], values["seconds"] = ratio(together[0], alone[0]), ratio(together[2], alone[2])
        met = together[0] <= 2 * alone[0] + FREE_BYTES
        return Result(f"{name} ({len(queries)} queries)", values, "<= 2x + 8 MB", met, columns)

    def _run(self, queries: list[str]) -> list[float]:
        """(bytes, GET requests, seconds) of the queries on a connection of their own."""
        with self._replica.opened() as competitor:
            self._replica.proxy.delay_s = DELAY_S
            took = 0.0
            for query in queries:
                seconds, answers = competitor.timed(query)
                assert_equal(query, {"SQLite": digest([self._data.answer(query)]), "litevfs": answers})
                took += seconds
            self._replica.proxy.delay_s = 0.0
            gets = self._replica.gets()
        return [bytes_of(gets), len(gets), took]


if __name__ == "__main__":
    main(sys.argv[1:])
