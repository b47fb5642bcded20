"""`litevfs replicate`: keeps a replica of a live database, and keeps it tidy, until it is told to stop."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import litevfs
from litevfs.commands.maintenance import add_flags, config_of
from litevfs.commands.options import STORAGE_OPTIONS, add_options, add_url, checked, collect_options
from litevfs.commands.text import count
from litevfs.errors import LitevfsError, ReplicatorError
from litevfs.ltx.names import format_txid
from litevfs.replica_clients.base import ReplicaClient
from litevfs.replica_clients.http.indexed import IndexedReplicaClient
from litevfs.replicate.replicator import Replicator
from litevfs.units import parse_duration_s

NAME = "replicate"
HELP = "replicate a live database"
DESCRIPTION = (
    "Replicate a SQLite database in WAL mode while others use it, until Ctrl-C or SIGTERM; what was committed by "
    "then is still replicated, or the exit code is 1 when that takes longer than 10 s. Levels are compacted, snapshots "
    "taken and old files deleted on Litestream's timetable."
)
_LAST_SYNC_TIMEOUT_S = 10.0


class _Terminated(KeyboardInterrupt):
    """SIGTERM: the ordinary end of a service."""


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
    parser.add_argument(
        "--snapshot",
        action="store_true",
        help="begin with a snapshot of the whole database: it mends a replica with lost or damaged files",
    )
    parser.add_argument("--wal", action="store_true", help="switch a database in rollback mode to WAL mode")
    parser.add_argument(
        "--hold-writers",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="where writers never pause, hold them off for a moment when the WAL has come to 50,000 pages, instead of "
        "letting it grow; they need a busy timeout for that [yes]",
    )
    parser.add_argument(
        "--compact",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compact, take snapshots and delete old files too [yes]",
    )
    parser.add_argument(
        "--index", action="store_true", help="keep index.json beside the levels, for readers behind a web server"
    )
    add_flags(parser, "levels", "snapshot_interval_s", "snapshot_retention_s", "level_0_retention_s")
    add_options(parser, STORAGE_OPTIONS)


def run(args: argparse.Namespace) -> int:
    """See `Command`."""
    options: dict[str, Any] = {
        "sync_interval_s": parse_duration_s(args.sync_interval),
        "switch_to_wal": args.wal,
        "maintenance": config_of(args) if args.compact else None,
    }
    if not args.hold_writers:
        options["truncate_pages"] = None
    storage = collect_options(args)
    client = litevfs.open_replica_client(storage.replica_url, read_timeout_s=storage.read_timeout_s)
    if args.index:
        client = IndexedReplicaClient(client)
    with closing(client), Replicator(args.database, client, **options) as replicator:
        if args.snapshot:
            replicator.request_snapshot()
        if args.once:
            txid = replicator.sync()
            _flush_index(client)
            print(format_txid(txid))
            return 0
        try:
            with _sigterm_raises():
                replicator.start()
                print(f"litevfs: replicating {replicator.path} to {replicator.client.url}", file=sys.stderr)
                threading.Event().wait()
        except _Terminated:
            pass
        finally:
            _finish(replicator)
            _flush_index(client)
    return 0


def _flush_index(client: ReplicaClient) -> None:
    if isinstance(client, IndexedReplicaClient):
        client.update()
        client.flush(_LAST_SYNC_TIMEOUT_S)


def _finish(replicator: Replicator) -> None:
    """The last sync. Raises ReplicatorError, which says how far it came, when it cannot be done."""
    try:
        replicator.sync(_LAST_SYNC_TIMEOUT_S)
    except LitevfsError as error:
        raise ReplicatorError(
            f"ended before all that was committed is on the replica: {_how_far(replicator)} ({error.message})",
            key=error.key or str(replicator.path),
            hint="nothing is lost: the next start goes on from there",
        ) from error


def _how_far(replicator: Replicator) -> str:
    status = replicator.status
    if not status.txid:
        return "the first copy of the whole database was not finished"
    there = f"TXID {format_txid(status.uploaded_txid)} is there" if status.uploaded_txid else "nothing was uploaded"
    waiting = (
        f"{count(status.pending_files, 'file')} to be uploaded" if status.pending_files else "the last look failed"
    )
    return f"{there}, {waiting}"


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    def terminate(number: int, frame: FrameType | None) -> None:
        raise _Terminated

    previous = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
