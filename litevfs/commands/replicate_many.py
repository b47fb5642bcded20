"""`litevfs replicate --config FILE` and `--dir FOLDER`: many databases in one process, until a signal ends it."""

from __future__ import annotations

import argparse
import logging
import resource
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from litevfs.commands.child import Child
from litevfs.commands.maintenance import given_flags
from litevfs.commands.options import TakesPlaceOf, collect_options
from litevfs.commands.primary_status import describe
from litevfs.commands.replicating import metrics_served, shutdown_timeout_s
from litevfs.commands.restoring import restore_with_leases
from litevfs.commands.signals import Terminated, ended_by_sigterm, sigterm_raises
from litevfs.commands.status_socket import StatusServer
from litevfs.commands.text import count
from litevfs.concurrency.turns import Turn
from litevfs.errors import OptionError, ReplicatorError
from litevfs.operations.checkup import Checkup
from litevfs.replicate.config.model import Config, DatabaseEntry, Place
from litevfs.replicate.fleet import Fleet
from litevfs.replicate.replicator import Replicator
from litevfs.replicate.status import unix_time_ms
from litevfs.units import parse_duration_s

_PAUSE_S = 0.1
_FILES_A_DATABASE = 15
"""Descriptors, measured with 200 databases: of three connections, what a sync opens, the socket for the status."""


def add_many_flags(parser: argparse.ArgumentParser, database: argparse.Action, url: argparse.Action) -> None:
    """The flags that name many databases, in place of `database` and `url`."""
    group = parser.add_argument_group("many databases")
    group.add_argument(
        "--config",
        type=Path,
        action=TakesPlaceOf,
        positionals=(database, url),
        metavar="FILE",
        help="replicate what Litestream's configuration names (extra: litevfs[config])",
    )
    group.add_argument("--no-expand-env", action="store_true", help="take $NAME in the configuration as it stands")
    group.add_argument(
        "--dir",
        type=Path,
        action=TakesPlaceOf,
        positionals=(url,),
        metavar="FOLDER",
        help="replicate all databases of a folder, each below the URL, or each of the URLs, given besides",
    )
    group.add_argument("--pattern", metavar="GLOB", help="names of the databases in --dir [*.db]")
    group.add_argument("--recursive", action="store_true", help="look into the folders of --dir, too")
    group.add_argument("--watch", action="store_true", help="go on looking for databases in --dir that come and go")


def refuse_flags_of_many(args: argparse.Namespace) -> None:
    """Raise OptionError for a flag that one database has no use for."""
    for name in ("pattern", "recursive", "watch", "no_expand_env"):
        if getattr(args, name):
            raise OptionError(
                f"--{name.replace('_', '-')} is given without {'--config' if name == 'no_expand_env' else '--dir'}"
            )


def _refuse_flags_of_one(args: argparse.Namespace) -> None:
    """Raise OptionError for a flag that is for one database, and for one that the configuration says for each."""
    for name in ("snapshot", "index"):
        if getattr(args, name):
            raise OptionError(f"--{name} is for one database", hint=f"litevfs replicate --{name} DATABASE URL")
    if args.config is None:
        return
    for flag in given_flags(args) + (["--sync-interval"] if args.sync_interval is not None else []):
        raise OptionError(f"{flag} is given with --config", hint="the file says it for each database")


def run_many(args: argparse.Namespace, options: dict[str, Any]) -> int:
    """Replicate what --config or --dir names; returns the exit code. Raises OptionError, ReplicatorError."""
    _refuse_flags_of_one(args)
    config = _from_file(args, options) if args.config is not None else _from_folder(args, options)
    for warning in config.warnings:
        print(f"litevfs: warning: {warning}", file=sys.stderr)
    with _log_level(config.log_level):
        return _replicate(args, config)


def _from_file(args: argparse.Namespace, options: Mapping[str, Any]) -> Config:
    if args.dir is not None or args.database is not None:
        raise OptionError("--config is given beside a database or --dir", hint="the file names the databases")
    from litevfs.replicate.config.reading import read_config  # PyYAML is an extra

    config = read_config(args.config, expand=not args.no_expand_env)
    ours = ("switch_to_wal", "new_history", "lease_ttl_s", "max_pending_bytes")
    more = {name: options[name] for name in ours}
    entries = []
    for entry in config.entries:
        own = dict(entry.options) | more
        if not args.hold_writers:
            own["truncate_pages"] = None
        if not args.compact:
            own["maintenance"] = None
        elif args.no_delete:
            own["maintenance"] = replace(own["maintenance"], delete_files=False)
        restores = entry.restore_if_missing or (args.restore_if_missing and entry.pattern is None)
        entries.append(replace(entry, restore_if_missing=restores, options=own))
    return replace(config, entries=tuple(entries))


def _from_folder(args: argparse.Namespace, options: Mapping[str, Any]) -> Config:
    if args.database is None:
        raise OptionError("--dir needs a URL, below which the replicas lie", hint="litevfs replicate --dir FOLDER URL")
    if not args.dir.is_dir():
        raise OptionError(f"there is no folder {args.dir}")
    if args.restore_if_missing:
        raise OptionError(
            "--restore-if-missing is given with --dir: a folder does not tell which databases are missing",
            hint="name them in a file for --config, or restore each before: litevfs restore",
        )
    urls = [args.database, *filter(None, (args.url, *args.more_urls))]
    places = tuple(Place(collect_options(args, url).replica_url) for url in urls)
    for place in places:
        place.open().close()  # a wrong URL is told now
    entry = DatabaseEntry(args.dir, places, args.pattern or "*.db", args.recursive, args.watch, options=options)
    return Config((entry,))


_restore = partial(restore_with_leases, waits=False)
"""A database that waits for the lease of another primary delays no other: its fleet tries again."""


def _replicate(args: argparse.Namespace, config: Config) -> int:
    timeout_s = shutdown_timeout_s(args, config.shutdown_timeout_s)
    command = args.exec if args.exec is not None else config.exec
    check = None
    if args.verify_interval is not None:
        interval_s = parse_duration_s(args.verify_interval)

        def check(replicator: Replicator) -> Turn:
            return Checkup(replicator, interval_s).turn

    if args.once:
        return _once(Fleet(config.entries, restore=_restore, own_process=True), timeout_s)
    with StatusServer() as server:

        def opened(replicator: Replicator) -> None:
            server.add(replicator.path, partial(describe, replicator, unix_time_ms()))

        def closing(replicator: Replicator) -> None:
            server.remove(replicator.path)

        fleet = Fleet(config.entries, restore=_restore, check=check, opened=opened, closing=closing, own_process=True)
        if command is not None:
            return _beside(args, config, fleet, command, timeout_s)
        return _until_a_signal(args, config, fleet, timeout_s)


def _until_a_signal(args: argparse.Namespace, config: Config, fleet: Fleet, timeout_s: float) -> int:
    code = 0
    with ended_by_sigterm() as ended:
        try:
            _start(fleet)
            with _metrics(args, config, fleet):
                while not ended.wait(_PAUSE_S):
                    pass
        except KeyboardInterrupt:
            code = 130
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second SIGTERM does not wait
        _finish(fleet, timeout_s)
    return code


def _once(fleet: Fleet, timeout_s: float) -> int:
    try:
        with sigterm_raises():
            _start(fleet)
            fleet.wait_until_open(timeout_s)
    except Terminated:
        _finish(fleet, timeout_s)
        return 128 + signal.SIGTERM
    _finish(fleet, max(timeout_s, 30.0))
    return 0


def _beside(args: argparse.Namespace, config: Config, fleet: Fleet, command: str, timeout_s: float) -> int:
    child = Child(command, timeout_s)
    try:
        _start(fleet)
        with _metrics(args, config, fleet):
            child.wait()
        _finish(fleet, child.last_sync_s)
        return child.exit_code
    finally:
        if not child.has_ended:
            child.end()
        child.restore_signals()


def _start(fleet: Fleet) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    fleet.start()
    number = len(fleet.members)
    if hard != resource.RLIM_INFINITY and number * _FILES_A_DATABASE > hard:
        print(
            f"litevfs: warning: {count(number, 'database')} need about {number * _FILES_A_DATABASE} open files, and "
            f"{hard} are allowed (ulimit -Hn): some cannot be opened",
            file=sys.stderr,
        )
    print(f"litevfs: replicating {count(number, 'database')}", file=sys.stderr)


def _finish(fleet: Fleet, timeout_s: float) -> None:
    errors = fleet.close(timeout_s)
    if errors:
        more = f"; and {len(errors) - 1} more" if len(errors) > 1 else ""
        raise ReplicatorError(
            f"ended before all that was committed is on the replicas: {errors[0]}{more}",
            hint="nothing is lost: the next start goes on from there",
        )


def _metrics(args: argparse.Namespace, config: Config, fleet: Fleet) -> AbstractContextManager[None]:
    def replicators() -> list[Replicator]:
        return [one.replicator for one in list(fleet.members.values()) if one.replicator is not None]

    return metrics_served(args, replicators, config.metrics_addr)


@contextmanager
def _log_level(name: str | None) -> Iterator[None]:
    logger = logging.getLogger("litevfs")
    level = logger.level
    if name is not None and not logger.isEnabledFor(logging.DEBUG):
        logger.setLevel({"warn": "WARNING"}.get(name.lower(), name.upper()))
    try:
        yield
    finally:
        logger.setLevel(level)
