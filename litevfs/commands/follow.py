"""`litevfs follow`: a local SQLite file that is kept current."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from threading import Event

from litevfs.commands.options import add_options, add_url, checked, collect_options
from litevfs.commands.signals import ended_by_sigterm
from litevfs.errors import FollowTargetError
from litevfs.ltx.names import format_txid, parse_txid
from litevfs.operations.follow import Follow
from litevfs.options import SPECS
from litevfs.units import parse_duration_s

DESCRIPTION = (
    "Keep an ordinary SQLite file at the newest state of a replica, until Ctrl-C or SIGTERM. Any program reads it "
    "meanwhile; each of its read transactions sees one TXID. FILE-follow says which one the file holds. A later call "
    "goes on where this one ended. Writing to the file ends the following."
)
_NOT_OURS = frozenset({"replica_url", "txid", "timestamp", "max_staleness", "poll_interval"})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `Command`."""
    add_url(parser)
    parser.add_argument("-o", "--output", dest="path", type=Path, required=True, metavar="FILE", help="the local file")
    parser.add_argument("--once", action="store_true", help="bring the file up to date, and end")
    parser.add_argument(
        "--wait", metavar="TXID", type=checked(parse_txid), help="end when the file holds this transaction"
    )
    parser.add_argument("--force", action="store_true", help="overwrite a database that litevfs did not make")
    parser.add_argument(
        "--interval",
        dest="poll_interval",
        metavar="DURATION",
        type=checked(parse_duration_s),
        help="pause between looks for new transactions [1s]",
    )
    add_options(parser, {spec.name for spec in SPECS} - _NOT_OURS)


def run(args: argparse.Namespace) -> int:
    """See `Command`."""
    # Until the file holds a state, a signal ends this like a crash: no reader sees a half-made file.
    with Follow(collect_options(args), args.path, overwrite=args.force) as followed, ended_by_sigterm() as ended:
        print(f"{args.path}: TXID {format_txid(followed.txid)}", flush=True)
        if args.once:
            return 0
        followed.start()
        _wait(followed, parse_txid(args.wait) if args.wait else None, ended)
        print(f"{args.path}: TXID {format_txid(followed.txid)}", file=sys.stderr)
    return 0


def _wait(followed: Follow, txid: int | None, ended: Event) -> None:
    while not ended.wait(0.1):
        if txid is not None and followed.txid >= txid:
            return
        if isinstance(followed.last_error, FollowTargetError):
            raise followed.last_error
