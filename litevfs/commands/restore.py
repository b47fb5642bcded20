"""`litevfs restore`: a state of a replica as a database file."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path

from litevfs.commands.options import STORAGE_OPTIONS, add_options, add_url, collect_options, open_fetcher
from litevfs.commands.progress import ProgressBar
from litevfs.commands.text import count
from litevfs.errors import ReplicaEmptyError
from litevfs.ltx.names import format_txid
from litevfs.operations.restore import RestoreResult, restore, restore_if_missing
from litevfs.operations.target import is_missing
from litevfs.units import format_bytes, format_timestamp

DESCRIPTION = (
    "Make a database file of the newest state of a replica, or of an earlier one. The file appears whole or not at "
    "all; one that exists is replaced only with --force."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `Command`."""
    add_url(parser)
    parser.add_argument(
        "-o", "--output", dest="path", type=Path, required=True, metavar="FILE", help="the new database file"
    )
    parser.add_argument("--integrity-check", action="store_true", help="run PRAGMA integrity_check before it appears")
    what_is_there = parser.add_mutually_exclusive_group()
    what_is_there.add_argument(
        "--if-missing",
        action="store_true",
        help="do nothing, and end with 0, where there is a database (an empty file is none), or nothing to restore",
    )
    what_is_there.add_argument(
        "--force", action="store_true", help="replace a database that is there, unless a program uses it"
    )
    parser.add_argument("--json", action="store_true", help="the result as an object, sizes in bytes")
    add_options(parser, STORAGE_OPTIONS | {"txid", "timestamp"})


def run(args: argparse.Namespace) -> int:
    """See `Command`."""
    try:
        result = _restore(args)
    except ReplicaEmptyError as error:
        if not args.if_missing:
            raise
        print(f"litevfs: nothing to restore: {error.message}", file=sys.stderr)
        return 0
    if result is None:
        print(f"litevfs: {args.path} is there", file=sys.stderr)
    else:
        _print(args, result)
    return 0


def _restore(args: argparse.Namespace) -> RestoreResult | None:
    if args.if_missing and not is_missing(args.path):
        return None
    options = collect_options(args)
    restore_it = restore_if_missing if args.if_missing else partial(restore, force=args.force)
    with open_fetcher(args) as fetcher, ProgressBar("restoring") as bar:
        return restore_it(
            fetcher.client,
            args.path,
            txid=options.txid,
            timestamp=None if options.timestamp_ms is None else format_timestamp(options.timestamp_ms),
            integrity_check=args.integrity_check,
            progress=bar.update,
            read_timeout=options.read_timeout_s,
        )


def _print(args: argparse.Namespace, result: RestoreResult) -> None:
    txid = format_txid(result.txid)
    if args.json:
        print(json.dumps(asdict(result) | {"txid": txid, "path": str(args.path)}, indent=1))
    else:
        made_of = f"{count(result.files, 'LTX file')} of {format_bytes(result.bytes_read)}"
        print(f"{args.path}: TXID {txid}, {format_bytes(result.bytes)}, from {made_of}")
