"""`litevfs watch`: row changes as they come, a change feed from a bucket."""

from __future__ import annotations

import argparse
import json
import queue
import sys
from itertools import chain
from typing import TYPE_CHECKING, Any

import litevfs
from litevfs.commands.diff import as_object
from litevfs.commands.options import add_options, add_url, given_options
from litevfs.commands.signals import ended_by_sigterm
from litevfs.commands.text import write_utf_8
from litevfs.errors import TXIDNotFoundError
from litevfs.files.fetch import Fetcher
from litevfs.ltx.names import format_txid, parse_txid
from litevfs.operations.state_identity import is_proved, marks_of
from litevfs.operations.tables import is_among
from litevfs.options import SPECS

if TYPE_CHECKING:
    from litevfs.operations.diff import Diff

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
        feed = _Feed(args, options, subscription.fetcher)
        if (first := subscription.first) is not None and first.txid == done:
            feed.marks = marks_of(first, subscription.fetcher)
        if done > newest:
            raise TXIDNotFoundError(
                f"the newest TXID is {format_txid(newest)}",
                min_txid=done,
                key=args.url,
                hint="was the replica replaced or set back since? leave out --from to begin with what comes next",
            )
        if done < newest:
            done = feed.print_changes(done, newest)
        else:
            feed.check_tables(newest)
        while not args.once and not ended.is_set():
            try:
                txid = news.get(timeout=_WAIT_S)
            except queue.Empty:
                continue
            if txid > done:
                done = feed.print_changes(done, txid)
    return 0


class _Feed:
    """Prints changes, of one history: a replica that has taken the place of another may have the same TXIDs."""

    def __init__(self, args: argparse.Namespace, options: dict[str, Any], fetcher: Fetcher) -> None:
        self._args, self._fetcher = args, fetcher
        self._options = {name: value for name, value in options.items() if name != "poll_interval"}
        self._are_tables_checked = False
        self.marks: frozenset[int] | None = None  # of the state up to which changes were printed, see `marks_of`

    def check_tables(self, txid: int) -> None:
        """Raise OptionError where the state `txid` lacks one of the tables; later each may be dropped and come back."""
        if self._args.tables:
            with litevfs.diff(self._args.url, txid, txid, self._args.tables, **self._options):
                self._are_tables_checked = True

    def print_changes(self, done: int, txid: int) -> int:
        """Print the changes after `done` up to `txid`, or up to a later TXID if `txid` was compacted away."""
        checked = None if self._are_tables_checked else self._args.tables
        try:
            diff = litevfs.diff(self._args.url, done, txid, checked, **self._options)
        except TXIDNotFoundError as error:
            if error.min_txid != txid:
                raise
            diff = litevfs.diff(self._args.url, done, "latest", checked, **self._options)
        self._are_tables_checked = True
        with diff:
            self._check_history(diff)
            where = {"txid": format_txid(diff.to_txid)}
            count = 0
            names = [name for name in diff.tables if not self._args.tables or is_among(name, self._args.tables)]
            for count, change in enumerate(chain.from_iterable(map(diff.changes, names)), 1):  # noqa: B007 (used after)
                print(json.dumps(where | as_object(change), ensure_ascii=False))
            print(json.dumps(where | {"changes": count}), flush=True)
            for item in diff.schema:
                print(f"litevfs: TXID {where['txid']}: {item.op} {item.type} {item.name}", file=sys.stderr)
            return diff.to_txid

    def _check_history(self, diff: Diff) -> None:
        old, new = diff.old.snapshot, diff.new.snapshot
        if self.marks is not None and not is_proved(self.marks, old.timestamp_ms, old.txid, self._fetcher):
            raise TXIDNotFoundError(
                "the replica is another one than that whose changes were printed so far, or nothing on it proves that "
                "it is the same",
                min_txid=old.txid,
                key=self._args.url,
                hint="read the tables whole, and begin again without --from",
            )
        self.marks = marks_of(new, self._fetcher)
