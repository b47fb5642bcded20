"""`litevfs replicate`: keeps a replica of a live database, and maintains it, until a signal ends it."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import litevfs
from litevfs.commands.child import Child
from litevfs.commands.maintenance import add_flags, config_of
from litevfs.commands.options import STORAGE_OPTIONS, TakesPlaceOf, add_options, add_url, checked, collect_options
from litevfs.commands.primary_status import describe, print_status
from litevfs.commands.replicate_many import add_many_flags, refuse_flags_of_many, run_many
from litevfs.commands.replicating import SHUTDOWN_TIMEOUT_S, metrics_served, shutdown_timeout_s
from litevfs.commands.restoring import restore_with_leases
from litevfs.commands.signals import Terminated, sigterm_raises
from litevfs.commands.status_socket import StatusServer
from litevfs.commands.text import count
from litevfs.concurrency.turns import OwnThreads
from litevfs.errors import (
    LitevfsError,
    OptionError,
    ReplicatorError,
    ReplicatorLockedError,
    ReplicatorRefusedError,
)
from litevfs.ltx.names import format_txid
from litevfs.operations.checkup import Checkup
from litevfs.operations.target import is_missing
from litevfs.replica_clients.base import ReplicaClient
from litevfs.replica_clients.http.indexed import IndexedReplicaClient
from litevfs.replicate.lease import DEFAULT_TTL_S
from litevfs.replicate.replicator import Replicator
from litevfs.replicate.status import unix_time_ms
from litevfs.units import parse_duration_s, parse_size_bytes

DESCRIPTION = (
    "Replicate a SQLite database in WAL mode while others use it, until Ctrl-C or SIGTERM; what was committed by "
    "then is still replicated, or the exit code is 1 when that takes longer than --shutdown-timeout. Levels are "
    "compacted, snapshots taken and old files deleted on Litestream's timetable."
)
_APPEARS_PAUSE_S = 0.1
_READY_TIMEOUT_S = 10.0
"""How long a program may take from making its database to switching it to WAL mode."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `Command`."""
    database = parser.add_argument("database", metavar="DATABASE", help="the SQLite database")
    url = add_url(parser)
    parser.add_argument(
        "more_urls", nargs="*", default=[], metavar="URL", help="further replicas, each kept up to date at its own pace"
    )
    add_many_flags(parser, database, url)
    parser.add_argument(
        "--status",
        nargs="+",
        metavar="DATABASE",
        action=TakesPlaceOf,
        positionals=(database, url),
        help="ask the replicators that run for these databases how they are, and end; exit code 1 if one does not run",
    )
    parser.add_argument("--json", action="store_true", help="with --status: a list of objects")
    parser.add_argument("--once", action="store_true", help="replicate what is there, print the TXID, and end")
    _add_container_flags(parser)
    _add_primary_flags(parser)
    parser.add_argument(
        "--sync-interval",
        type=checked(parse_duration_s),
        metavar="DURATION",
        help="pause between looks for new transactions [1s]",
    )
    parser.add_argument(
        "--snapshot",
        action="store_true",
        help="begin with a snapshot of the whole database: it mends a replica with lost or damaged files",
    )
    parser.add_argument(
        "--metrics-addr",
        metavar="HOST:PORT",
        help="serve /metrics for Prometheus and /healthz there, for example 127.0.0.1:9090 (extra: litevfs[metrics])",
    )
    parser.add_argument(
        "--verify-interval",
        type=checked(parse_duration_s),
        metavar="DURATION",
        help="so often, restore the newest state from the replica and compare it with the database, for example 24h",
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


def _add_container_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("containers")
    group.add_argument(
        "--restore-if-missing",
        action="store_true",
        help="restore the newest state first where there is no database, or an empty file",
    )
    group.add_argument(
        "--exec",
        metavar="COMMAND",
        help="run this program (no shell) beside, hand signals on to it, and end with its exit code after a last sync",
    )
    group.add_argument(
        "--shutdown-timeout",
        type=checked(parse_duration_s),
        metavar="DURATION",
        help=f"from SIGTERM to the end at most [{SHUTDOWN_TIMEOUT_S:g}s]",
    )


def _add_primary_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("which primary")
    group.add_argument(
        "--new-history",
        action="store_true",
        help="let this database be the newest state even if it did not come from the replica",
    )
    group.add_argument(
        "--lease-ttl",
        type=checked(parse_duration_s),
        default=f"{DEFAULT_TTL_S:g}s",
        metavar="DURATION",
        help="how long another primary waits for one that ended without giving its lease back [30s]",
    )
    group.add_argument("--no-lease", action="store_true", help="keep no lease beside the replica")
    group.add_argument("--no-delete", action="store_true", help="delete no old files: the storage does that")
    group.add_argument(
        "--max-pending",
        type=checked(parse_size_bytes),
        metavar="SIZE",
        help="capture no more while so much waits for its upload, and the whole database later [no limit]",
    )


def run(args: argparse.Namespace) -> int:
    """See `Command`."""
    if args.status is not None:
        return print_status(args.status, as_json=args.json)
    if args.json:
        raise OptionError("--json is given without --status", hint="litevfs replicate --status DATABASE --json")
    if args.once and args.exec is not None:
        raise OptionError("--once and --exec are given", hint="--once ends by itself")
    options = replicator_options(args)
    if args.config is not None or args.dir is not None:
        return run_many(args, options)
    refuse_flags_of_many(args)
    if "://" in args.database:
        raise OptionError(f"a URL in the place of the database: {args.database}", hint="the database comes first")
    args.database = Path(args.database)
    with ExitStack() as opened:
        clients = [opened.enter_context(closing(_open(args, url))) for url in (args.url, *args.more_urls)]
        options["places"] = clients[1:]
        try:
            with sigterm_raises():
                if args.restore_if_missing:
                    restore_with_leases(args.database, clients, options["lease_ttl_s"])
                if args.once:
                    return _replicate_once(args, clients[0], options)
                if args.exec is None:
                    return _replicate(args, clients[0], options)
        except Terminated:
            return 128 + signal.SIGTERM  # before there was a replicator to finish
        return _replicate_beside(args, clients[0], options)


def _open(args: argparse.Namespace, url: str) -> ReplicaClient:
    storage = collect_options(args, url)
    client = litevfs.open_replica_client(storage.replica_url, read_timeout_s=storage.read_timeout_s)
    return IndexedReplicaClient(client) if args.index else client


def replicator_options(args: argparse.Namespace) -> dict[str, Any]:
    """What the flags say for `Replicator`. Raises OptionError."""
    options: dict[str, Any] = {
        "sync_interval_s": 1.0 if args.sync_interval is None else parse_duration_s(args.sync_interval),
        "switch_to_wal": args.wal,
        "maintenance": replace(config_of(args), delete_files=not args.no_delete) if args.compact else None,
        "new_history": args.new_history,
        "lease_ttl_s": None if args.no_lease else parse_duration_s(args.lease_ttl),
        "max_pending_bytes": None if args.max_pending is None else parse_size_bytes(args.max_pending),
    }
    if not args.hold_writers:
        options["truncate_pages"] = None
    return options


def _replicate_once(args: argparse.Namespace, client: ReplicaClient, options: dict[str, Any]) -> int:
    with Replicator(args.database, client, **options) as replicator:
        if args.snapshot:
            replicator.request_snapshot()
        print(format_txid(replicator.sync()))
    return 0


def _replicate(args: argparse.Namespace, client: ReplicaClient, options: dict[str, Any]) -> int:
    with Replicator(args.database, client, **options) as replicator:
        try:
            with _shown(args, replicator):
                _start(replicator, args)
                replicator.wait()
        except ReplicatorRefusedError:
            raise
        except BaseException as end:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second SIGTERM does not wait
            _finish(replicator, shutdown_timeout_s(args))
            if not isinstance(end, Terminated):
                raise
    return 0


def _replicate_beside(args: argparse.Namespace, client: ReplicaClient, options: dict[str, Any]) -> int:
    """Run the program of --exec; returns its exit code, or 1 if the replica lacks some of its commits."""
    child = Child(args.exec, shutdown_timeout_s(args))
    try:
        replicator = _open_when_ready(args.database, client, options, child)
        if replicator is None:
            return child.exit_code
        with replicator, _shown(args, replicator):
            _start(replicator, args)
            while not child.has_ended:
                replicator.wait(_APPEARS_PAUSE_S)
            _finish(replicator, child.last_sync_s)
        return child.exit_code
    finally:
        if not child.has_ended:
            child.end()  # its writes would not be replicated
        child.restore_signals()


def _open_when_ready(path: Path, client: ReplicaClient, options: dict[str, Any], child: Child) -> Replicator | None:
    """Open the replicator once the program has made its database; None if the program ended before."""
    ready_by: float | None = None
    while True:
        has_ended = child.has_ended  # first: files that it made before its end exist by now
        if not is_missing(path):
            ready_by = ready_by or time.monotonic() + _READY_TIMEOUT_S
            try:
                return Replicator(path, client, **options)
            except ReplicatorLockedError:
                raise
            except ReplicatorError:
                if has_ended or time.monotonic() > ready_by:
                    raise
        elif has_ended:
            return None
        threading.Event().wait(_APPEARS_PAUSE_S)


@contextmanager
def _shown(args: argparse.Namespace, replicator: Replicator) -> Iterator[None]:
    """Tell the status by the socket beside the database, and over HTTP if that is wanted."""
    with StatusServer() as server, metrics_served(args, lambda: (replicator,)), _checked(args, replicator):
        server.add(replicator.path, partial(describe, replicator, unix_time_ms()))
        yield


@contextmanager
def _checked(args: argparse.Namespace, replicator: Replicator) -> Iterator[None]:
    """Compare the replica with the database now and then, if that is wanted."""
    if args.verify_interval is None:
        yield
        return
    turn = Checkup(replicator, parse_duration_s(args.verify_interval)).turn
    checking = OwnThreads().start(turn, "litevfs-verify")
    try:
        yield
    finally:
        checking.stop()


def _start(replicator: Replicator, args: argparse.Namespace) -> None:
    if args.snapshot:
        replicator.request_snapshot()
    replicator.start()
    urls = " and ".join(place.client.url for place in replicator.places)
    print(f"litevfs: replicating {replicator.path} to {urls}", file=sys.stderr)


def _finish(replicator: Replicator, timeout_s: float) -> None:
    """Make the last sync. If that fails, raises ReplicatorError, which says how far it came."""
    try:
        replicator.sync(timeout_s)
    except LitevfsError as error:
        raise ReplicatorError(
            f"ended before all that was committed is on {_all_of(replicator)}: "
            f"{_how_far(replicator)} ({error.message})",
            key=error.key or str(replicator.path),
            hint="nothing is lost: the next start goes on from there",
        ) from error


def _all_of(replicator: Replicator) -> str:
    return "the replica" if len(replicator.places) == 1 else "all replicas"


def _how_far(replicator: Replicator) -> str:
    status = replicator.status
    if not status.txid:
        return "the first copy of the whole database was not finished"
    there = f"TXID {format_txid(status.uploaded_txid)} is there" if status.uploaded_txid else "nothing was uploaded"
    waiting = (
        f"{count(status.pending_files, 'file')} to be uploaded" if status.pending_files else "the last look failed"
    )
    return f"{there}, {waiting}"
