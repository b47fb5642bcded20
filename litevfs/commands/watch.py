"""`litevfs watch`: row changes as they come, a change feed from a bucket."""

from __future__ import annotations

import argparse
import json
import queue
import sys
from typing import Any

import litevfs
from litevfs.commands.diff import as_object
from litevfs.commands.options import add_options, add_url, given_options
from litevfs.commands.signals import ended_by_sigterm
from litevfs.commands.text import write_utf_8
from litevfs.errors import TXIDNotFoundError
from litevfs.ltx.names import format_txid, parse_txid
from litevfs.options import SPECS

DESCRIPTION = (
    "Print the rows that each new transaction inserted, updated or deleted, an object a line, until Ctrl-C or SIGTERM. "
    'After the rows of a transaction comes {"txid": ..., "changes": N}: --from that TXID goes on after it, so a reader '
    "that keeps it sees every change at least once, in order. Transactions that were compacted meanwhile come as one."
)
_WAIT_S = 0.1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `Command`."""
    add_url(parser)
    parser.add_argument("--from", dest="from_", metavar="TXID", help="begin after this transaction [the newest one]")
    parser.add_argument("--tables", metavar="NAME", nargs="+", help="these tables only")
    parser.add_argument("--format", choices=("jsonl",), default="jsonl", help="an object a line [jsonl]")
    parser.add_argument("--once", action="store_true", help="end when the newest transaction is printed")
    add_options(parser, {spec.name for spec in SPECS} - {"txid", "timestamp", "max_staleness"})


def run(args: argparse.Namespace) -> int:
    """See `Command`."""
    write_utf_8()
    options: dict[str, Any] = given_options(args)
    news: queue.SimpleQueue[int] = queue.SimpleQueue()
    with ended_by_sigterm() as ended, litevfs.subscribe(args.url, news.put, **options) as subscription:
        newest = subscription.txid
        done = parse_txid(args.from_) if args.from_ else newest
        if done > newest:
            raise TXIDNotFoundError(
                f"the newest TXID is {format_txid(newest)}",
                min_txid=done,
                key=args.url,
                hint="was the replica replaced or set back since? leave out --from to begin with what comes next",
            )
        if done < newest:
            done = _print_changes(args, options, done, newest)
        while not args.once and not ended.is_set():
            try:
                txid = news.get(timeout=_WAIT_S)
            except queue.Empty:
                continue
            if txid > done:
                done = _print_changes(args, options, done, txid)
    return 0


def _print_changes(args: argparse.Namespace, options: dict[str, Any], done: int, txid: int) -> int:
    """Print the changes after `done` up to `txid`, or up to a later TXID if `txid` was compacted away."""
    feed_options = {name: value for name, value in options.items() if name != "poll_interval"}
    try:
        diff = litevfs.diff(args.url, done, txid, args.tables, **feed_options)
    except TXIDNotFoundError as error:
        if error.min_txid != txid:
            raise
        diff = litevfs.diff(args.url, done, "latest", args.tables, **feed_options)
    with diff:
        where = {"txid": format_txid(diff.to_txid)}
        count = 0
        for count, change in enumerate(diff, 1):  # noqa: B007 (used after the loop)
            print(json.dumps(where | as_object(change), ensure_ascii=False))
        print(json.dumps(where | {"changes": count}), flush=True)
        for item in diff.schema:
            print(f"litevfs: TXID {where['txid']}: {item.op} {item.type} {item.name}", file=sys.stderr)
        return diff.to_txid
