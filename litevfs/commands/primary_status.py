"""The status of a primary: the values that a replicator sends, and what `litevfs replicate --status` prints of them."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import litevfs
from litevfs.commands.status_socket import ask
from litevfs.commands.text import count, format_age, format_fields
from litevfs.errors import ReplicatorError
from litevfs.ltx.names import format_txid
from litevfs.replicate.replicator import Replicator
from litevfs.replicate.status import PlaceStatus, unix_time_ms, why_unhealthy
from litevfs.units import format_bytes, format_timestamp, parse_timestamp_ms


def describe(replicator: Replicator, started_ms: int) -> dict[str, Any]:
    """Status and health of a replicator: TXIDs as 16 hex digits, times as RFC 3339, sizes in bytes."""
    status = replicator.status
    why = why_unhealthy(status, replicator.sync_interval_s)
    fields = asdict(status) | {"txid": format_txid(status.txid), "uploaded_txid": format_txid(status.uploaded_txid)}
    last_sync_ms = fields.pop("last_sync_ms")
    fields["places"] = [_of_place(place) for place in status.places]
    return {
        "database": str(replicator.path),
        "replica": replicator.client.url,
        "pid": os.getpid(),
        "version": litevfs.__version__,
        "started": format_timestamp(started_ms),
        "healthy": why is None,
        "reason": why,
        **_sync_times(last_sync_ms),
        **fields,
    }


def _of_place(place: PlaceStatus) -> dict[str, Any]:
    fields = asdict(place) | {"uploaded_txid": format_txid(place.uploaded_txid)}
    return fields | _sync_times(fields.pop("last_sync_ms"))


def _sync_times(last_sync_ms: int | None) -> dict[str, Any]:
    return {
        "last_sync": None if last_sync_ms is None else format_timestamp(last_sync_ms),
        "lag_s": None if last_sync_ms is None else max(0, unix_time_ms() - last_sync_ms) / 1000,
    }


def print_status(databases: Sequence[str], *, as_json: bool) -> int:
    """Ask for each database and print what is told; returns 0 if every replicator told its status, else 1."""
    told: list[dict[str, Any]] = []
    errors: list[ReplicatorError] = []
    for database in databases:
        try:
            told.append(ask(database))
        except ReplicatorError as error:
            errors.append(error)
            if as_json:
                told.append({"database": error.key, "error": error.message})
    if as_json:
        print(json.dumps(told, indent=1))
    elif told:
        print("\n\n".join(_render(status) for status in told))
    for refusal in errors:
        print(f"litevfs: error: {refusal}", file=sys.stderr)
    return 1 if errors else 0


def _render(status: dict[str, Any]) -> str:
    now_s = time.time()
    places = status.get("places", [])  # a replicator of an older version tells none
    several = places if len(places) > 1 else []
    fields = [
        ("database", status["database"]),
        ("replica", f"{len(several)} places" if several else status["replica"]),
        ("state", "healthy" if status["healthy"] else f"failing: {status['reason']}"),
        ("TXID", f"{status['uploaded_txid']} on {'all of them' if several else 'the replica'}, {status['txid']} made"),
        ("waiting", _waiting(status)),
        ("last sync", _age(status["last_sync"], now_s) or "none yet"),
        ("lease", _lease(status)),
        (
            "uploaded",
            f"{count(status['files_uploaded'], 'file')}, {format_bytes(status['bytes_uploaded'])}",
        ),
        ("process", f"{status['pid']}, litevfs {status['version']}, started {_age(status['started'], now_s)}"),
    ]
    if status["last_snapshot_reason"]:
        fields.append(("snapshot", status["last_snapshot_reason"]))
    if status["last_maintenance_error"]:
        fields.append(("upkeep", f"failing: {status['last_maintenance_error']}"))
    fields += [(f"place {number}", _render_place(place, now_s)) for number, place in enumerate(several, 1)]
    return format_fields(fields)


def _render_place(place: dict[str, Any], now_s: float) -> str:
    parts = [
        f"{place['replica']}: TXID {place['uploaded_txid']}",
        f"waiting: {_waiting(place)}",
        f"last sync: {_age(place['last_sync'], now_s) or 'none yet'}",
        f"lease {_lease(place)}",
    ]
    if place["waits_to_begin"]:
        parts.append(f"to begin again with the whole database: {place['waits_to_begin']}")
    if place["last_error"]:
        parts.append(f"failing: {place['last_error']}")
    return "; ".join(parts)


def _waiting(status: dict[str, Any]) -> str:
    files = status["pending_files"]
    return f"{count(files, 'file')} to be uploaded" if files else "nothing"


def _lease(status: dict[str, Any]) -> str:
    how = {
        "conditions": " (by conditional writes)",
        "read-back": " (by reading it back: the storage keeps no conditions)",
    }
    return ("held" if status["has_lease"] else "not held") + how.get(str(status["lease_protocol"]), "")


def _age(time_text: object, now_s: float) -> str | None:
    if time_text is None:
        return None
    age_s = max(0.0, now_s - parse_timestamp_ms(time_text) / 1000)
    return f"{time_text} ({format_age(age_s)})"
