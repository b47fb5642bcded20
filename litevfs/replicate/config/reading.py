"""Reads a configuration of Litestream 0.5: which keys there are, what each means here, and what is not done.

Source of the keys: `Config` and `DBConfig` of Litestream's cmd/litestream/main.go, 0.5.18. What litevfs does not do is
a warning, or a mistake where going on would not be what the file means.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from litevfs.errors import OptionError
from litevfs.maintenance.schedule import DEFAULT_LEVELS, MaintenanceConfig
from litevfs.replicate.config.document import Document, Section, each
from litevfs.replicate.config.model import Config, DatabaseEntry, Place
from litevfs.replicate.config.places import read_place, read_settings
from litevfs.texts import expand_home

_LOG_LEVELS = ("debug", "info", "warn", "error")


@dataclass(frozen=True, slots=True)
class _Shared:
    """What the whole file says for every database."""

    settings: dict[str, str]
    sync_interval_s: float | None
    maintenance: dict[str, Any]


def read_config(path: str | os.PathLike[str], *, expand: bool = True) -> Config:
    """The configuration in a file; `expand` replaces environment variables, as Litestream does.

    Raises OptionError, which names all mistakes with file, line and key.
    """
    document = Document(Path(path), expand=expand)
    root = document.root()
    shared = _Shared(read_settings(root), root.duration_s("sync-interval"), _maintenance(root))
    entries = [_entry(section, shared) for section in each(root.sections("dbs"))]
    if not entries:
        root.mistake("dbs", "the file lists no database")
    logging, timeout_s = root.section("logging"), _shutdown_timeout_s(root)
    level = None
    if logging is not None:
        level = logging.text("level")
        if level is not None and level.lower() not in _LOG_LEVELS:
            logging.mistake("level", f"not one of {', '.join(_LOG_LEVELS)}: {level!r}")
        if (kind := logging.text("type")) not in (None, "text"):
            logging.warn("type", f"not done: the log is text, not {kind}")
        logging.warn("source", "not done: the log names no lines of code")
        logging.boolean("stderr")  # always so
        logging.refuse_rest()
    metrics_addr, command = root.text("addr"), root.text("exec")
    _name_what_is_not_done(root)
    root.refuse_rest()
    found = [entry for entry in entries if entry is not None]
    _refuse_doubles(document, root, found)
    document.finish()
    return Config(tuple(found), metrics_addr, command, level, timeout_s, tuple(document.warnings))


def _name_what_is_not_done(root: Section) -> None:
    root.warn("mcp-addr", "not done: there is no MCP server")
    root.warn("heartbeat-url", "not done: --metrics-addr serves /healthz, to be asked")
    root.warn("heartbeat-interval", "not done: --metrics-addr serves /healthz, to be asked")
    root.warn("l0-retention-check-interval", "not done: a fifth of l0-retention, at least the first level's interval")
    root.warn("shutdown-sync-interval", "not done: pauses between tries grow by themselves")
    root.boolean("verify-compaction")  # always so
    for key, names in (("socket", ("enabled", "path", "permissions")), ("validation", ("interval",))):
        section = root.section(key)
        if section is None:
            continue
        values = [section.text(name) for name in names]
        section.refuse_rest()
        if key == "validation" and values[0]:
            section.warn("interval", "not done; --verify-interval compares the replica with the database")
        if key == "socket" and section.boolean("enabled"):
            section.warn("enabled", "not done: Litestream's commands cannot ask litevfs")


def _shutdown_timeout_s(root: Section) -> float | None:
    whole, last_sync = root.duration_s("shutdown-timeout"), root.duration_s("shutdown-sync-timeout", allow_zero=True)
    return whole or last_sync or None


def _maintenance(root: Section) -> dict[str, Any]:
    found: dict[str, Any] = {}
    intervals = [section.duration_s("interval") for section in each(root.sections("levels"))]
    if intervals and None not in intervals:
        found["levels"] = dict(enumerate(intervals, start=1))
    if (level_0 := root.duration_s("l0-retention", allow_zero=True)) is not None:
        found["level_0_retention_s"] = level_0
    found |= _snapshot(root)
    retention = root.section("retention")
    if retention is not None:
        if retention.boolean("enabled") is False:
            found["delete_files"] = False
        retention.refuse_rest()
    return found


def _snapshot(parent: Section) -> dict[str, Any]:
    section = parent.section("snapshot")
    if section is None:
        return {}
    found = {
        "snapshot_interval_s": section.duration_s("interval"),
        "snapshot_retention_s": section.duration_s("retention"),
    }
    section.refuse_rest()
    return {name: value for name, value in found.items() if value is not None}


def _entry(section: Section, shared: _Shared) -> DatabaseEntry | None:
    path, folder, pattern = section.text("path"), section.text("dir"), section.text("pattern")
    recursive, watch = section.boolean("recursive"), section.boolean("watch")
    restore = section.boolean("restore-if-db-not-exists")
    sync_s = [shared.sync_interval_s]
    places = _places(section, shared, sync_s)
    options = _options(section, shared, sync_s[-1])
    if (path is None) == (folder is None):
        section.mistake("dir" if path else "path", "an entry has either path or dir")
        return None
    if folder is not None and pattern is None:
        section.mistake("pattern", "dir needs a pattern, such as '*.db'")
    if folder is None and (watch or recursive or pattern):
        section.mistake("watch" if watch else "pattern" if pattern else "recursive", "belongs to dir")
    if folder is not None and restore:
        section.warn("restore-if-db-not-exists", "has no effect: a folder does not tell which databases are missing")
        restore = False
    if not places:
        return None
    where = expand_home(str(path or folder))
    return DatabaseEntry(where, places, pattern, bool(recursive), bool(watch), bool(restore), options)


def _places(section: Section, shared: _Shared, sync_s: list[float | None]) -> tuple[Place, ...]:
    several = section.sections("replicas")
    single = section.section("replica")
    if single is not None and several:
        section.mistake("replicas", "given beside replica")
    found = [single] if single is not None else several
    if not found:
        section.mistake("replica", "the entry says no replica")
    places = []
    for replica in each(found):
        own_s = replica.duration_s("sync-interval")
        if own_s is not None:
            if len(sync_s) > 1 and sync_s[-1] != own_s:
                replica.warn("sync-interval", f"not done: all replicas of a database are synced every {sync_s[-1]:g} s")
            else:
                sync_s.append(own_s)
        place = read_place(replica, shared.settings)
        if place is not None and place in places:
            section.mistake("replicas", f"{place.url} is there twice")
        places.append(place)
    return tuple(place for place in places if place is not None)


def _options(section: Section, shared: _Shared, sync_interval_s: float | None) -> dict[str, Any]:
    monitor_s = section.duration_s("monitor-interval")
    if monitor_s is not None and sync_interval_s is not None and monitor_s != sync_interval_s:
        section.warn("monitor-interval", f"not done: sync-interval, {sync_interval_s:g} s, counts for both")
    for key, why in {
        "meta-path": "not done: local state lies beside the database, in .<name>-litevfs",
        "meta-dir": "not done: local state lies beside the database, in .<name>-litevfs",
        "checkpoint-interval": "not done: the WAL is checkpointed by its size",
        "busy-timeout": "not done: a lock is waited for 1 s",
        "max-sync-wal-bytes": "not done: a capture takes all that is new",
    }.items():
        section.warn(key, why)
    options: dict[str, Any] = {"sync_interval_s": sync_interval_s or monitor_s or 1.0}
    if (pages := section.number("min-checkpoint-page-count")) is not None:
        options["checkpoint_pages"] = max(1, pages)
    if (pages := section.number("truncate-page-n")) is not None:
        options["truncate_pages"] = pages or None
    smallest, largest = options.get("checkpoint_pages", 1000), options.get("truncate_pages")
    if largest is not None and smallest > largest:
        section.mistake("truncate-page-n", f"{largest} is less than min-checkpoint-page-count, {smallest}")
    fields = shared.maintenance | _snapshot(section)
    try:
        options["maintenance"] = MaintenanceConfig(**{"levels": DEFAULT_LEVELS} | fields)
    except OptionError as exc:
        key = "levels" if "level " in str(exc) or "levels" in str(exc) else "snapshot"
        section.document.mistake(section.line_of("snapshot"), f"{section.name}: {key}", str(exc))
    return options


def _refuse_doubles(document: Document, root: Section, entries: list[DatabaseEntry]) -> None:
    seen: set[str] = set()
    for entry in entries:
        name = os.path.normpath(entry.path)
        if entry.pattern is None and name in seen:
            root.mistake("dbs", f"{entry.path} is there twice")
        seen.add(name)
