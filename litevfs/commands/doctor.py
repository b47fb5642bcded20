"""`litevfs doctor`: tests what a reader and a primary need of a storage."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from litevfs.commands.options import STORAGE_OPTIONS, add_options, add_url, collect_options
from litevfs.commands.text import clean, format_table
from litevfs.operations.doctor import Check, Outcome, examine
from litevfs.replica_clients.urls import canonical_url

DESCRIPTION = (
    "Try what a reader and a primary need of a replica's storage: list, read, ranges, writes, conditions, deletes, the "
    "clock, round trip and throughput. What is written lies in a folder of its own and is deleted again. Says what is "
    "missing and what would mend it; exit code 1 if something is."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `Command`."""
    add_url(parser)
    parser.add_argument("--reader", action="store_true", help="only what a reader needs: nothing is written")
    parser.add_argument("--json", action="store_true", help="an array of objects")
    add_options(parser, STORAGE_OPTIONS)


def run(args: argparse.Namespace) -> int:
    """See `Command`."""
    options = collect_options(args)
    checks = examine(options.replica_url, read_timeout_s=options.read_timeout_s, with_writes=not args.reader)
    if args.json:
        print(json.dumps([asdict(check) for check in checks], indent=1))
    else:
        print(_render(canonical_url(options.replica_url), checks))
    return int(any(check.outcome is Outcome.FAILED for check in checks))


def _render(url: str, checks: list[Check]) -> str:
    table = format_table(
        ["needed by", "what", "", "found"], [(check.role, check.name, check.outcome, check.detail) for check in checks]
    )
    mends = [f"{check.name}: {clean(check.mend)}" for check in checks if check.mend]
    return "\n\n".join([url, table, *(["to mend:\n" + "\n".join(mends)] if mends else [])])
