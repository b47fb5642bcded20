"""Local reads: litevfs on a replica in a folder, SQLite itself on the file, Litestream's VFS on the same replica.

Rounds are interleaved (A B C A B C ...) and the table shows medians. All answers are compared with each other; times
are never asserted.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from contextlib import ExitStack

from _chart import bars
from _competitors import PEER, Competitor, assert_equal, digest, start_peer
from _databases import ROWS, SMALL_ROWS, Dataset, dataset
from _results import Result, Samples, parse_arguments, ratio, report, seconds

POINT_QUERY = "SELECT customer FROM orders WHERE id = ?"
SCAN = "SELECT sum(amount), count(note) FROM orders"
NATIVE, NATIVE_WAL = "native, rollback", "native, WAL"
OPEN, HOT, RANDOM = "open + first query", "hot point query", "random point query"
SCANS = ("full scan, first", "full scan, second")


GOALS = {SCANS[0]: 2.0, SCANS[1]: 2.0, HOT: 0.7, RANDOM: 1.5}
"""At most so many times as long as native SQLite in rollback mode, which is what a replica is to SQLite."""


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse_arguments(__doc__, argv)
    rounds, queries = (2, 300) if arguments.small else (7, 5000)
    data = dataset(SMALL_ROWS if arguments.small else ROWS)
    samples = Samples()
    with ExitStack() as stack:
        competitors = start_all(data, stack)
        for number in range(rounds):
            run_round(number, data, competitors, samples, queries)
    megabytes = data.database.stat().st_size / 1e6
    title = f"Local reads, {megabytes:.0f} MB database, {rounds} rounds; a point query is one read transaction"
    report(title, results(samples, small=arguments.small), arguments)
    against = {case: against_native(case, samples) for case in (*SCANS, HOT, RANDOM)}
    bars(arguments, "local", title, against, "times SQLite's own time on the file", log=True)


def against_native(case: str, samples: Samples) -> dict[str, float | None]:
    """How many times that of native, in its faster journal mode, each one's median is."""
    native = min(filter(None, (samples.median(case, name) for name in (NATIVE, NATIVE_WAL))))
    medians = {name: samples.median(case, name) for name in ("litevfs", PEER)}
    return {name: value and value / native for name, value in medians.items()}


def start_all(data: Dataset, stack: ExitStack) -> list[Competitor]:
    """All competitors that can run here; with the same SQLite, or the comparison would be of something else."""
    competitors = [
        stack.enter_context(Competitor("litevfs", data.replica_url)),
        stack.enter_context(Competitor("native", str(data.database), name=NATIVE)),
        stack.enter_context(Competitor("native", str(data.wal_database), name=NATIVE_WAL)),
    ]
    peer = start_peer(data.replica_url)
    if peer is not None:
        competitors.append(stack.enter_context(peer))
    assert_equal("version of SQLite", {competitor.name: competitor.sqlite for competitor in competitors})
    return competitors


def run_round(number: int, data: Dataset, competitors: list[Competitor], samples: Samples, queries: int) -> None:
    """Each case once for each competitor, on connections opened for this round."""
    for competitor in competitors:
        samples.add(OPEN, competitor.name, competitor.call("open")["seconds"])
    for case in SCANS:
        measure(case, competitors, samples, SCAN, [()], 1)
    rng = random.Random(number)
    hot = [(rng.randrange(data.rows),)] * queries
    scattered = [(rng.randrange(data.rows),) for _ in range(queries)]
    for case, parameters in ((HOT, hot), (RANDOM, scattered)):
        for competitor in competitors:
            competitor.timed(POINT_QUERY, parameters[:100])
        measure(case, competitors, samples, POINT_QUERY, parameters, queries)
    check_answers(data, competitors, scattered[:50])
    for competitor in competitors:
        competitor.call("close")


def measure(
    case: str,
    competitors: list[Competitor],
    samples: Samples,
    sql: str,
    parameters: Sequence[tuple[object, ...]],
    queries: int,
) -> None:
    """Seconds a query of each competitor, and that all have the same answers."""
    digests = {}
    for competitor in competitors:
        took, digests[competitor.name] = competitor.timed(sql, parameters)
        samples.add(case, competitor.name, took / queries)
    assert_equal(case, digests)


def check_answers(data: Dataset, competitors: list[Competitor], parameters: Sequence[tuple[object, ...]]) -> None:
    """The answers are right, too, and not only equal: asked again in this process, of SQLite on the file."""
    expected = digest([data.answer(POINT_QUERY, values) for values in parameters])
    for competitor in competitors:
        assert_equal(POINT_QUERY, {"file": expected, competitor.name: competitor.timed(POINT_QUERY, parameters)[1]})


def results(samples: Samples, *, small: bool) -> list[Result]:
    """The rows of the table. Goals are for the full size, and against native SQLite in rollback mode."""
    rows = []
    for case in (OPEN, *SCANS, HOT, RANDOM):
        medians = {name: samples.median(case, name) for name in ("litevfs", NATIVE, NATIVE_WAL, PEER)}
        ours, native, wal = medians["litevfs"], medians[NATIVE], medians[NATIVE_WAL]
        assert ours is not None
        assert native is not None
        assert wal is not None
        goal = GOALS.get(case)
        values = {name: seconds(value) for name, value in medians.items()}
        values |= {f"/{NATIVE}": ratio(ours, native), "/the faster": ratio(ours, min(native, wal))}
        values |= {f"/{PEER}": ratio(ours, medians[PEER])}
        met = None if goal is None or small else ours <= goal * native
        rows.append(Result(case, values, f"<= {goal:g}x {NATIVE}" if goal else "", met, samples.all[case]))
    return rows


if __name__ == "__main__":
    main(sys.argv[1:])
