"""`litevfs history`: the states that a replica can still be opened at."""

from __future__ import annotations

import argparse
import json
from functools import partial
from typing import Any

from litevfs.commands.options import STORAGE_OPTIONS, add_options, add_url, open_fetcher
from litevfs.commands.text import count, format_table
from litevfs.files.fetch import Fetcher
from litevfs.files.plan import newest_state, reachable_txids
from litevfs.ltx.names import format_txid
from litevfs.replica_clients.base import LEVELS, LTXFileInfo
from litevfs.units import format_bytes, format_timestamp

DESCRIPTION = "List the states that --txid and --timestamp can open, newest first."
_BATCH = 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `Command`."""
    add_url(parser)
    parser.add_argument("--limit", type=_limit, default=20, metavar="N", help="how many at most, 0 for all [20]")
    parser.add_argument("--json", action="store_true", help="an array of objects, sizes in bytes")
    add_options(parser, STORAGE_OPTIONS)


def _limit(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"not a number of states: {text!r}; hint: 0 for all")
    return int(text)


def run(args: argparse.Namespace) -> int:
    """See `Command`."""
    with open_fetcher(args) as fetcher:
        files = fetcher.list_levels(LEVELS)
        states = list(reachable_txids(files).items())[::-1]
        if not states:
            newest_state(files)  # raises the error that explains it
        shown = states[: args.limit] if args.limit else states
        rows = _describe(fetcher, shown)
    if args.json:
        print(json.dumps(rows, indent=1))
        return 0
    print(
        format_table(
            ["TXID", "time", "database", "level"],
            [(row["txid"], row["time"], format_bytes(row["size"]), row["level"]) for row in rows],
        )
    )
    if len(shown) < len(states):
        print(f"\n{count(len(states) - len(shown), 'older state')} not shown; --limit 0 shows all")
    return 0


def _describe(fetcher: Fetcher, states: list[tuple[int, LTXFileInfo]]) -> list[dict[str, Any]]:
    """The header fields of the file that ends at each state; reads many headers in parallel."""
    rows: list[dict[str, Any]] = []
    for start in range(0, len(states), _BATCH):
        batch = states[start : start + _BATCH]
        headers = fetcher.threads.parallel([partial(fetcher.read_header, file) for _, file in batch])
        for (txid, file), header in zip(batch, headers, strict=True):
            rows.append(
                {
                    "txid": format_txid(txid),
                    "time": format_timestamp(header.timestamp_ms),
                    "size": header.commit * header.page_size,
                    "level": file.level,
                }
            )
    return rows
