"""The flags of compaction and retention, for the commands that do them."""

from __future__ import annotations

import argparse
from typing import Any

from litevfs.commands.options import checked
from litevfs.options import parse_duration_s
from litevfs.replicate.schedule import MaintenanceConfig

_FLAGS = {
    "snapshot_interval_s": ("--snapshot-interval", "24h", "pause between snapshots"),
    "snapshot_retention_s": ("--snapshot-retention", "24h", "how far back states can be opened at least"),
    "level_0_retention_s": ("--level-0-retention", "5m", "how long each transaction stays a state of its own at least"),
}
"""Field of the configuration: flag, default, help. The defaults are Litestream's."""


def add_flags(parser: argparse.ArgumentParser, *names: str) -> None:
    """Flags for these fields of MaintenanceConfig."""
    for name in names:
        flag, default, text = _FLAGS[name]
        duration = checked(parse_duration_s)
        parser.add_argument(
            flag, dest=name, type=duration, default=default, metavar="DURATION", help=f"{text} [{default}]"
        )


def config_of(args: argparse.Namespace) -> MaintenanceConfig:
    """The configuration that the flags make. Raises OptionError."""
    given: dict[str, Any] = {name: parse_duration_s(getattr(args, name)) for name in _FLAGS if hasattr(args, name)}
    return MaintenanceConfig(**given)
