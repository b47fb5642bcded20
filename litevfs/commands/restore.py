"""`litevfs restore`: a state of a replica as a database file."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from litevfs.commands.options import STORAGE_OPTIONS, add_options, add_url, collect_options, open_fetcher
from litevfs.commands.progress import ProgressBar
from litevfs.commands.text import count
from litevfs.ltx.names import format_txid
from litevfs.operations.restore import restore
from litevfs.units import format_bytes, format_timestamp

NAME = "restore"
HELP = "make a database file of a state"
DESCRIPTION = (
    "Make a database file of the newest state of a replica, or of an earlier one. The file appears whole or not at "
    "all; one that exists is never replaced."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `Command`."""
    add_url(parser)
    parser.add_argument(
        "-o", "--output", dest="path", type=Path, required=True, metavar="FILE", help="the new database file"
    )
    parser.add_argument("--integrity-check", action="store_true", help="run PRAGMA integrity_check before it appears")
    parser.add_argument("--json", action="store_true", help="the result as an object, sizes in bytes")
    add_options(parser, STORAGE_OPTIONS | {"txid", "timestamp"})


def run(args: argparse.Namespace) -> int:
    """See `Command`."""
    options = collect_options(args)
    with open_fetcher(args) as fetcher, ProgressBar("restoring") as bar:
        result = restore(
            fetcher.client,
            args.path,
            txid=options.txid,
            timestamp=None if options.timestamp_ms is None else format_timestamp(options.timestamp_ms),
            integrity_check=args.integrity_check,
            progress=bar.update,
        )
    txid = format_txid(result.txid)
    if args.json:
        print(json.dumps(asdict(result) | {"txid": txid, "path": str(args.path)}, indent=1))
    else:
        made_of = f"{count(result.files, 'LTX file')} of {format_bytes(result.bytes_read)}"
        print(f"{args.path}: TXID {txid}, {format_bytes(result.bytes)}, from {made_of}")
    return 0
