"""`litevfs replicate`: keeps a replica of a live database until it is told to stop."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from litevfs.commands.options import add_url, checked
from litevfs.ltx.names import format_txid
from litevfs.options import parse_duration_s
from litevfs.replicate.replicator import Replicator

NAME = "replicate"
HELP = "replicate a live database"
DESCRIPTION = (
    "Replicate a SQLite database in WAL mode while others use it, until Ctrl-C or SIGTERM; what was committed by "
    "then is still replicated."
)
_LAST_SYNC_TIMEOUT_S = 10.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `Command`."""
    parser.add_argument("database", type=Path, metavar="DATABASE", help="the SQLite database")
    add_url(parser)
    parser.add_argument("--once", action="store_true", help="replicate what is there, print the TXID, and end")
    parser.add_argument(
        "--sync-interval",
        type=checked(parse_duration_s),
        default="1s",
        metavar="DURATION",
        help="pause between looks for new transactions [1s]",
    )
    parser.add_argument("--wal", action="store_true", help="switch a database in rollback mode to WAL mode")


def run(args: argparse.Namespace) -> int:
    """See `Command`."""
    interval_s = parse_duration_s(args.sync_interval)
    with Replicator(args.database, args.url, sync_interval_s=interval_s, switch_to_wal=args.wal) as replicator:
        if args.once:
            print(format_txid(replicator.sync()))
            return 0
        with _stop_on_sigterm() as stop:
            replicator.start()
            print(f"litevfs: replicating {replicator.path} to {replicator.client.url}", file=sys.stderr)
            try:
                stop.wait()
            finally:
                replicator.sync(_LAST_SYNC_TIMEOUT_S)
    return 0


@contextmanager
def _stop_on_sigterm() -> Iterator[threading.Event]:
    stop = threading.Event()
    previous = signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, previous)
