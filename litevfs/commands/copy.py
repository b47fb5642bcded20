"""`litevfs copy`: a whole replica from one storage to another."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from litevfs.commands.options import STORAGE_OPTIONS, add_options, add_url, collect_options, open_fetcher
from litevfs.commands.progress import ProgressBar
from litevfs.commands.text import count
from litevfs.ltx.names import format_txid
from litevfs.operations.copy import copy_replica
from litevfs.replica_clients.http.indexed import IndexedReplicaClient
from litevfs.units import format_bytes

DESCRIPTION = (
    "Copy all LTX files that the source has and the destination does not have yet, each verified on its way. What has "
    "arrived is a replica without gaps whenever the copy stops; run it again to go on. Nothing is deleted or replaced."
)

INDEX_TIMEOUT_S = 60.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `Command`."""
    add_url(parser, "source")
    add_url(parser, "destination")
    parser.add_argument("--json", action="store_true", help="the result as an object, sizes in bytes")
    parser.add_argument("--index", action="store_true", help="keep index.json there, for readers behind a web server")
    add_options(parser, STORAGE_OPTIONS)


def run(args: argparse.Namespace) -> int:
    """See `Command`."""
    with open_fetcher(args, args.source) as source, open_fetcher(args, args.destination) as destination:
        target = IndexedReplicaClient(destination.client, interval_s=1.0) if args.index else destination.client
        with ProgressBar("copying") as bar:
            result = copy_replica(
                source.client,
                target,
                progress=bar.update,
                read_timeout=collect_options(args, args.source).read_timeout_s,
            )
        if isinstance(target, IndexedReplicaClient):
            target.update()
            target.flush(INDEX_TIMEOUT_S)
            target.close()
        url = destination.client.url
    txid = format_txid(result.txid)
    if args.json:
        print(json.dumps(asdict(result) | {"txid": txid}, indent=1))
    else:
        there = f", {result.skipped:,} were there" if result.skipped else ""
        print(f"{url}: TXID {txid}, {count(result.files, 'file')} copied, {format_bytes(result.bytes)}{there}")
    return 0
