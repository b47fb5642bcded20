"""`litevfs ls`: the LTX files of a replica, as its storage lists them."""

from __future__ import annotations

import argparse
import json

from litevfs.commands.options import STORAGE_OPTIONS, add_options, add_url, open_fetcher
from litevfs.commands.text import count, format_table
from litevfs.ltx.names import format_txid
from litevfs.replica_clients.base import LEVELS, LTXFileInfo
from litevfs.units import format_bytes, format_timestamp

DESCRIPTION = "List the LTX files of a replica, by level and TXID. The time is that of the storage."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `Command`."""
    add_url(parser)
    parser.add_argument("--level", type=int, choices=LEVELS, metavar="N", help="only this one, 0 to 9 [all]")
    parser.add_argument("--json", action="store_true", help="an array of objects, sizes in bytes")
    add_options(parser, STORAGE_OPTIONS)


def run(args: argparse.Namespace) -> int:
    """See `Command`."""
    with open_fetcher(args) as fetcher:
        files = fetcher.list_levels(LEVELS if args.level is None else [args.level])
        if args.json:
            print(json.dumps([file_fields(file, fetcher.client.key(file)) for file in files], indent=1))
        elif not files:
            print("no LTX files")
        else:
            print(format_listing(files))
            print(f"\n{count(len(files), 'file')}, {format_bytes(sum(file.size for file in files))}")
    return 0


def file_fields(file: LTXFileInfo, key: str) -> dict[str, object]:
    """One file as a JSON object."""
    return {
        "level": file.level,
        "min_txid": format_txid(file.min_txid),
        "max_txid": format_txid(file.max_txid),
        "size": file.size,
        "modified": format_timestamp(file.modified_ms),
        "key": key,
    }


def format_listing(files: list[LTXFileInfo]) -> str:
    """Files as a table."""
    return format_table(
        ["level", "min TXID", "max TXID", "size", "modified"],
        [
            (
                file.level,
                format_txid(file.min_txid),
                format_txid(file.max_txid),
                format_bytes(file.size),
                format_timestamp(file.modified_ms),
            )
            for file in files
        ],
    )
