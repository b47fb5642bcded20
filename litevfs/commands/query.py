"""`litevfs query`: SQL in, rows out."""

from __future__ import annotations

import argparse
import sys
import threading
from contextlib import closing
from typing import NoReturn

import apsw

from litevfs.commands.options import add_options, add_sql, add_url, collect_options, connect
from litevfs.commands.results import FORMATS, make_writer, write_results
from litevfs.errors import OptionError
from litevfs.live.subscription import Subscription

DESCRIPTION = (
    "Run SQL on a replica and print the rows. All statements see one state of the database, unless --poll-interval is "
    "given; PRAGMA litestream_txid and litestream_time tell which one."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `Command`."""
    add_url(parser)
    add_sql(parser, "one or more statements; - reads them from stdin")
    parser.add_argument(
        "--format",
        choices=FORMATS,
        help="table (aligned, long values cut), list (as sqlite3 prints it: a|b), csv, json (an array), jsonl (an "
        "object a row), lines (column = value) [table on a terminal, else list]",
    )
    parser.add_argument(
        "--header", action=argparse.BooleanOptionalAction, help="column names first [yes for table and csv]"
    )
    parser.add_argument(
        "--watch", action="store_true", help="run it again whenever a table that it reads changes, until Ctrl-C"
    )
    add_options(parser)


def run(args: argparse.Namespace) -> int:
    """See `Command`."""
    if args.watch and collect_options(args).is_fixed:
        raise OptionError("--watch needs a state that can change, txid and timestamp fix it")
    sql = sys.stdin.read() if args.sql == "-" else args.sql
    if args.watch:
        _watch(sql, args)
    # One query needs no newer state, but the user may ask for polling.
    with closing(connect(args, poll_interval="0")) as connection:
        _write(connection, sql, args)
    return 0


def _write(connection: apsw.Connection, sql: str, args: argparse.Namespace) -> None:
    name = args.format or ("table" if sys.stdout.isatty() else "list")
    write_results(connection, sql, make_writer(name, sys.stdout, args.header))
    sys.stdout.flush()


def _watch(sql: str, args: argparse.Namespace) -> NoReturn:
    """Print the results now and after each change of a table that they use, until KeyboardInterrupt.

    Prints the TXID of each on stderr.
    """
    from litevfs.operations.changed_sides import TableFilter  # only this needs it

    connection = connect(args)
    changed = threading.Event()
    try:
        tables = tables_read(connection, sql)
        of_interest = TableFilter(tables) if tables else None  # they may be functions: not checked for being tables
        with Subscription(collect_options(args), lambda txid: changed.set(), of_interest):
            while True:
                changed.clear()
                txid, moment = connection.pragma("litestream_txid"), connection.pragma("litestream_time")
                print(f"litevfs: TXID {txid}, {moment}", file=sys.stderr)
                _write(connection, sql, args)
                changed.wait()
    finally:
        connection.close()


def tables_read(connection: apsw.Connection, sql: str) -> set[str]:
    """The tables that the statements read, those behind views too; empty if that cannot be known."""
    import apsw.ext  # takes a tenth of the CPU of a query that needs none of it

    tables = set()
    remaining: str | None = sql
    while remaining:
        info = apsw.ext.query_info(connection, remaining, actions=True)
        for action in info.actions or []:
            if action.action_name == "SQLITE_READ" and action.table_name:
                tables.add(action.table_name)
            elif action.action_name in ("SQLITE_PRAGMA", "SQLITE_ATTACH"):
                return set()
        remaining = info.query_remaining
    return tables
