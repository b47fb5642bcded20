"""`litevfs diff`: the rows that differ between two states."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from typing import Any

import litevfs
from litevfs.commands.options import add_options, add_url, given_options
from litevfs.commands.results import make_writer, value_text
from litevfs.commands.text import write_utf_8
from litevfs.ltx.names import format_txid
from litevfs.operations.diff import Change, Diff
from litevfs.operations.patch import patch_statements
from litevfs.operations.tables import Row, Value
from litevfs.options import SPECS

DESCRIPTION = (
    "Print the rows that were inserted, updated and deleted between two states of a replica. Only pages that differ "
    "are read. The format sql is a patch: run on the older state, it makes the newer one."
)
_COLUMNS = ("table", "op", "key", "column", "old", "new")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `Command`."""
    add_url(parser)
    moment = "a TXID, a time (RFC 3339, or for example '5 minutes ago') or latest"
    parser.add_argument("--from", dest="from_", metavar="STATE", required=True, help=f"the older state: {moment}")
    parser.add_argument("--to", metavar="STATE", default="latest", help="the newer state [latest]")
    parser.add_argument("--tables", metavar="NAME", nargs="+", help="these tables only")
    parser.add_argument(
        "--format",
        choices=("table", "csv", "jsonl", "sql"),
        help="table and csv have a line for each value that differs, jsonl an object a row [table]",
    )
    add_options(parser, {spec.name for spec in SPECS} - {"txid", "timestamp", "poll_interval", "max_staleness"})


def run(args: argparse.Namespace) -> int:
    """See `Command`."""
    options: dict[str, Any] = given_options(args)
    if args.format in ("sql", "jsonl"):
        write_utf_8()
    with litevfs.diff(args.url, args.from_, args.to, args.tables, **options) as diff:
        match args.format:
            case "sql":
                for statement in patch_statements(diff):
                    print(f"{statement};")
            case "jsonl":
                for change in diff:
                    print(json.dumps(as_object(change), ensure_ascii=False))
            case _:
                _write_values(diff, args.format or "table")
        if args.format != "sql":
            for item in diff.schema:
                print(f"litevfs: {item.op} {item.type} {item.name}", file=sys.stderr)
        print(f"litevfs: TXID {format_txid(diff.from_txid)} to {format_txid(diff.to_txid)}", file=sys.stderr)
    return 0


def _write_values(diff: Diff, name: str) -> None:
    writer = make_writer(name, sys.stdout, None)
    writer.begin(_COLUMNS)
    for change in diff:
        key = ", ".join(value_text(part, "NULL") for part in change.key)
        for column, old, new in _values(change):
            writer.row((change.table, change.op, key, column, old, new))
    writer.end()


def _values(change: Change) -> Iterator[tuple[str, Value, Value]]:
    old, new = change.old or {}, change.new or {}
    for column in dict.fromkeys([*old, *new]):
        a, b = old.get(column), new.get(column)
        if change.op != "update" or a != b or type(a) is not type(b):
            yield column, a, b


def as_object(change: Change) -> dict[str, object]:
    """A change as a JSON object; blobs are written X'00FF'."""
    return {
        "table": change.table,
        "op": change.op,
        "key": [_plain(value) for value in change.key],
        "old": _plain_row(change.old),
        "new": _plain_row(change.new),
    }


def _plain_row(row: Row | None) -> dict[str, object] | None:
    return None if row is None else {name: _plain(value) for name, value in row.items()}


def _plain(value: object) -> object:
    return value_text(value) if isinstance(value, bytes) else value
