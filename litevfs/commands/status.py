"""`litevfs status`: opens a replica and prints its status."""

from __future__ import annotations

import argparse
import json
import time
from contextlib import closing
from typing import Any

from litevfs.commands.options import add_options, add_url, connect, open_fetcher
from litevfs.commands.text import count, format_age, format_fields, format_table
from litevfs.ltx.names import format_txid
from litevfs.replica_clients.base import LEVELS, LTXFileInfo
from litevfs.units import format_bytes, parse_timestamp_ms

DESCRIPTION = "Open a replica and say where it stands: its newest state, how old that is, and what lies on each level."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `Command`."""
    add_url(parser)
    parser.add_argument("--json", action="store_true", help="an object; sizes in bytes, times in seconds or RFC 3339")
    add_options(parser)


def run(args: argparse.Namespace) -> int:
    """See `Command`."""
    with closing(connect(args, poll_interval="0")) as connection:
        # The first read of a page proves that the state can be read.
        connection.execute("SELECT count(*) FROM sqlite_schema").fetchall()
        status = json.loads(str(connection.pragma("litestream_status")))
    levels = _levels(args)
    if args.json:
        print(json.dumps(status | {"levels": levels}, indent=1))
    else:
        print(_render(status, levels))
    return 0


def _levels(args: argparse.Namespace) -> list[dict[str, Any]]:
    with open_fetcher(args) as fetcher:
        files = fetcher.list_levels(LEVELS)
    by_level = {level: [file for file in files if file.level == level] for level in LEVELS}
    return [_level_fields(level, found) for level, found in by_level.items() if found]


def _level_fields(level: int, files: list[LTXFileInfo]) -> dict[str, Any]:
    return {
        "level": level,
        "files": len(files),
        "bytes": sum(file.size for file in files),
        "min_txid": format_txid(min(file.min_txid for file in files)),
        "max_txid": format_txid(max(file.max_txid for file in files)),
    }


def _render(status: dict[str, Any], levels: list[dict[str, Any]]) -> str:
    age_s = time.time() - parse_timestamp_ms(status["time"]) / 1000
    size = format_bytes(status["commit"] * status["page_size"])
    fields = [
        ("replica", status["url"]),
        ("state", status["state"]),
        ("TXID", status["txid"]),
        ("time", f"{status['time']} ({format_age(age_s)})"),
        ("database", f"{size}: {count(status['commit'], 'page')} of {status['page_size']} bytes"),
        (
            "opened with",
            f"{count(status['list_requests'], 'listing')}, "
            f"{count(status['get_requests'], 'read')}, {format_bytes(status['bytes_read'])}",
        ),
    ]
    fields += [("server", text) for text in status["workarounds"]]
    if status["last_error"]:
        fields.append(("last error", status["last_error"]))
    rows = [
        (one["level"], one["files"], format_bytes(one["bytes"]), one["min_txid"], one["max_txid"]) for one in levels
    ]
    return f"{format_fields(fields)}\n\n{format_table(['level', 'files', 'size', 'oldest TXID', 'newest TXID'], rows)}"
