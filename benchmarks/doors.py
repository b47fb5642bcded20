"""The same rows through every door, and into Arrow: a replica in a folder, and tools of their own on the local file.

Rounds are interleaved and the table shows medians; every competitor's answer is compared. A tool that is not installed
is left out. All run in this process: what differs between doors is Python's work on rows, not what starting costs.
"""

from __future__ import annotations

import sqlite3
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from importlib.util import find_spec
from typing import Any

import apsw
from _chart import bars
from _competitors import assert_equal, digest
from _databases import ROWS, SMALL_ROWS, Dataset, dataset
from _results import Result, Samples, parse_arguments, ratio, report, seconds

import litevfs
import litevfs.dbapi

NUMBERS = "SELECT id, batch, amount FROM orders"
EXPRESSION = "SELECT id, amount * 0.5 AS half FROM orders"
TEXTS = "SELECT customer, note FROM orders"
FETCHES, ARROW_NUMBERS, ARROW_TEXTS = "fetchall, numbers", "to Arrow, numbers", "to Arrow, text"
ARROW_EXPRESSION = "to Arrow, an expression"
NATIVE, ADBC, OURS = "sqlite3, local file", "ADBC, local file", "litevfs.arrow, local file"
HOT, SCAN = "hot point query", "full scan"
POINT_SQL, POINT_ID = "SELECT customer FROM orders WHERE id = ?", 77
SCAN_SQL = "SELECT sum(amount), count(note) FROM orders"
APSW, STDLIB = "litevfs.connect", "litevfs.connect_stdlib"
JUDGED = {FETCHES: ("litevfs.dbapi", NATIVE), HOT: (STDLIB, APSW), SCAN: (STDLIB, APSW)}
"""What is compared with what; everywhere else ours with ADBC."""
GOALS = {ARROW_NUMBERS: 2.0, ARROW_EXPRESSION: 2.0, HOT: 1.3, SCAN: 1.3}
"""At most so many times the other's time."""

Door = Callable[[Dataset, str], Any]


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse_arguments(__doc__, argv)
    data = dataset(SMALL_ROWS if arguments.small else ROWS)
    cases: dict[str, tuple[str, dict[str, Door], Callable[[Any], object]]] = {
        FETCHES: (NUMBERS, fetching_doors(), len_and_sums),
        ARROW_NUMBERS: (NUMBERS, arrow_doors(), table_sums),
        ARROW_EXPRESSION: (EXPRESSION, arrow_doors(), table_sums),
        ARROW_TEXTS: (TEXTS, arrow_doors(), lambda table: table.num_rows),
    }
    samples = Samples()
    measure_queries(data, samples, rounds=2 if arguments.small else 7, queries=300 if arguments.small else 5000)
    for _ in range(2 if arguments.small else 5):
        for case, (sql, doors, check) in cases.items():
            if not doors:  # of tools that are not installed
                continue
            answers = {}
            for name, door in doors.items():
                start = time.perf_counter()
                rows = door(data, sql)
                samples.add(case, name, time.perf_counter() - start)
                answers[name] = digest(check(rows))
            assert_equal(case, answers)
    title = f"Doors, {data.rows:,} rows"
    shown = [case for case in (HOT, SCAN, *cases) if case in samples.all]
    report(title, [result(case, samples, small=arguments.small) for case in shown], arguments)
    times = {case: {who: samples.median(case, who) for who in samples.all[case]} for case in shown}
    queries = {case: {who: value and value * 1e6 for who, value in times[case].items()} for case in (HOT,)}
    bars(arguments, "doors-hot", "The same row again and again, a transaction each", queries, "µs")
    rows = {case: {who: value and value * 1e3 for who, value in times[case].items()} for case in shown if case != HOT}
    bars(arguments, "doors", title, rows, "ms")


def measure_queries(data: Dataset, samples: Samples, *, rounds: int, queries: int) -> None:
    """Seconds of a query that SQLite answers from its own cache, and of a scan, on connections that stay open."""
    with ExitStack() as stack:
        connections: dict[str, Any] = {
            NATIVE: stack.enter_context(closing(sqlite3.connect(data.database))),
            APSW: stack.enter_context(closing(litevfs.connect(data.replica_url))),
            STDLIB: stack.enter_context(closing(litevfs.connect_stdlib(data.replica_url))),
            "litevfs.dbapi": stack.enter_context(closing(litevfs.dbapi.connect(data.replica_url))),
        }
        for _ in range(rounds):
            for case, sql, parameters, count in ((HOT, POINT_SQL, (POINT_ID,), queries), (SCAN, SCAN_SQL, (), 1)):
                answers = {}
                for name, connection in connections.items():
                    start = time.perf_counter()
                    for _ in range(count):
                        rows = connection.execute(sql, parameters).fetchall()
                    samples.add(case, name, (time.perf_counter() - start) / count)
                    answers[name] = digest(rows)
                assert_equal(case, answers)


def fetching_doors() -> dict[str, Door]:
    doors: dict[str, Door] = {NATIVE: local_sqlite3, APSW: apsw_door, STDLIB: stdlib_door, "litevfs.dbapi": dbapi_door}
    if find_spec("sqlalchemy"):
        doors["SQLAlchemy"] = sqlalchemy_door
    return doors


def arrow_doors() -> dict[str, Door]:
    if not find_spec("pyarrow"):
        return {}
    doors: dict[str, Door] = {
        "litevfs.arrow": arrow_door,
        OURS: local_arrow_door,
        "fetchall + from_pylist": pylist_door,
    }
    if find_spec("polars"):
        doors["polars.read_database"] = polars_door
    if find_spec("adbc_driver_sqlite"):
        doors[ADBC] = adbc_door
    return doors


def local_sqlite3(data: Dataset, sql: str) -> Any:
    with closing(sqlite3.connect(data.database)) as connection:
        return connection.execute(sql).fetchall()


def apsw_door(data: Dataset, sql: str) -> Any:
    with closing(litevfs.connect(data.replica_url)) as connection:
        return connection.execute(sql).fetchall()


def dbapi_door(data: Dataset, sql: str) -> Any:
    with closing(litevfs.dbapi.connect(data.replica_url)) as connection:
        return connection.execute(sql).fetchall()


def stdlib_door(data: Dataset, sql: str) -> Any:
    with closing(litevfs.connect_stdlib(data.replica_url)) as connection:
        return connection.execute(sql).fetchall()


def sqlalchemy_door(data: Dataset, sql: str) -> Any:
    import sqlalchemy

    engine = sqlalchemy.create_engine(f"litevfs:///{data.replica_url}")
    with engine.connect() as connection:
        rows = connection.execute(sqlalchemy.text(sql)).all()
    engine.dispose()
    return rows


def arrow_door(data: Dataset, sql: str) -> Any:
    with litevfs.arrow(data.replica_url, sql) as result:
        return result.reader().read_all()


def local_arrow_door(data: Dataset, sql: str) -> Any:
    with closing(apsw.Connection(str(data.database), flags=apsw.SQLITE_OPEN_READONLY)) as connection:
        return litevfs.arrow(connection, sql).reader().read_all()


def pylist_door(data: Dataset, sql: str) -> Any:
    import pyarrow

    with closing(apsw.Connection(str(data.database), flags=apsw.SQLITE_OPEN_READONLY)) as connection:
        cursor = connection.execute(sql)
        names = [column[0] for column in cursor.get_description()]
        return pyarrow.Table.from_pylist([dict(zip(names, row, strict=True)) for row in cursor])


def polars_door(data: Dataset, sql: str) -> Any:
    import polars

    with closing(sqlite3.connect(data.database)) as connection:
        return polars.read_database(sql, connection, infer_schema_length=None).to_arrow()


def adbc_door(data: Dataset, sql: str) -> Any:
    import adbc_driver_sqlite.dbapi

    with adbc_driver_sqlite.dbapi.connect(str(data.database)) as connection, connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetch_arrow_table()


def len_and_sums(rows: Any) -> object:
    return len(rows), sum(row[0] for row in rows), sum(row[2] for row in rows)


def table_sums(table: Any) -> object:
    import pyarrow.compute

    return [round(float(pyarrow.compute.sum(column).as_py()), 3) for column in table.columns]


def result(case: str, samples: Samples, *, small: bool) -> Result:
    """A row of the table: times, and how many times the peer's ours is."""
    ours, peer = JUDGED.get(case, (OURS, ADBC))
    medians = {name: samples.median(case, name) for name in samples.all[case]}
    mine, theirs = medians[ours], medians.get(peer)
    goal = GOALS.get(case)
    met = None if goal is None or small or mine is None or theirs is None else mine <= goal * theirs
    values = {
        f"{ours} / {peer}": ratio(mine, theirs),
        "times": ", ".join(f"{n} {seconds(v)}" for n, v in medians.items()),
    }
    return Result(case, values, f"<= {goal:g}x" if goal else "", met, samples.all[case])


if __name__ == "__main__":
    main(sys.argv[1:])
