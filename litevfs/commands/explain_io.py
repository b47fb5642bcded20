"""`litevfs explain-io`: the requests of a query, why each was made, and what they would take elsewhere."""

from __future__ import annotations

import argparse
from typing import Any

from litevfs.commands.options import add_options, add_sql, add_url, given_options
from litevfs.explain import draw, explain_io
from litevfs.options import SPECS

DESCRIPTION = (
    "Run a query on a fresh view of a remote replica and print its requests: when, what, how many bytes, and whether "
    "the query needed them or they were read ahead. A sum and an estimate for other latencies follow."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `Command`."""
    add_url(parser)
    add_sql(parser, "the query; its rows are counted, not printed")
    parser.add_argument("--png", metavar="FILE", help="draw the requests, too (needs matplotlib)")
    own = {"poll_interval", "max_requests_per_s", "max_staleness", "hydration_enabled", "hydration_path"}
    add_options(parser, {spec.name for spec in SPECS} - own)


def run(args: argparse.Namespace) -> int:
    """See `Command`."""
    options: dict[str, Any] = given_options(args)
    report = explain_io(args.url, args.sql, **options)
    print(report)
    if args.png:
        draw(report, args.png)
    return 0
