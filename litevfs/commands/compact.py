"""`litevfs compact`: all maintenance of a replica, once and now."""

from __future__ import annotations

import argparse
import json
from functools import partial

from litevfs.commands.ls import file_fields
from litevfs.commands.maintenance import add_flags, config_of
from litevfs.commands.options import STORAGE_OPTIONS, add_options, add_url, open_fetcher
from litevfs.commands.text import count
from litevfs.files.plan import no_files_error
from litevfs.ltx.names import format_txid
from litevfs.maintenance.schedule import Maintenance
from litevfs.replica_clients.base import LEVELS
from litevfs.units import format_bytes

DESCRIPTION = (
    "Compact each level of a replica into the next, take a snapshot, and delete files that are older than the "
    "retention and not needed any more: what 'litevfs replicate' does by and by, now. Readers go on meanwhile."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `Command`."""
    add_url(parser)
    add_flags(parser, "snapshot_retention_s", "level_0_retention_s")
    parser.add_argument("--json", action="store_true", help="the files written and deleted, sizes in bytes")
    add_options(parser, STORAGE_OPTIONS)


def run(args: argparse.Namespace) -> int:
    """See `Command`."""
    config = config_of(args)
    with open_fetcher(args) as fetcher:
        # One error for a wrong URL or a storage that does not answer, where each task would have its own.
        if not fetcher.retry(partial(fetcher.list_levels, LEVELS)):
            raise no_files_error()
        client = fetcher.client
        report = Maintenance(client, config).run_all()  # logs the errors
        if args.json:
            done = {"written": report.written, "deleted": report.deleted}
            fields = {what: [file_fields(file, client.key(file)) for file in files] for what, files in done.items()}
            print(json.dumps(fields | {"errors": [str(error) for error in report.errors]}, indent=1))
        else:
            for file in report.written:
                txids = f"{format_txid(file.min_txid)}-{format_txid(file.max_txid)}"
                print(f"wrote level {file.level}, TXIDs {txids}, {format_bytes(file.size)}")
            size = format_bytes(sum(file.size for file in report.deleted))
            print(f"deleted {count(len(report.deleted), 'file')}, {size}")
    return 1 if report.errors else 0
