"""The flags of compaction and retention, for the commands that run them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from litevfs.commands.options import checked
from litevfs.maintenance.schedule import MaintenanceConfig
from litevfs.units import parse_duration_s

_FLAGS = {
    "levels": (
        "--level-intervals",
        "30s,5m,1h",
        "DURATION,...",
        "pause between compactions into level 1, into level 2, and so on",
    ),
    "snapshot_interval_s": ("--snapshot-interval", "24h", "DURATION", "pause between snapshots"),
    "snapshot_retention_s": ("--snapshot-retention", "24h", "DURATION", "how far back states can be opened at least"),
    "level_0_retention_s": (
        "--level-0-retention",
        "5m",
        "DURATION",
        "how long each transaction stays a state of its own at least",
    ),
}
"""Field of the configuration: flag, its default as text, form, help. The defaults are Litestream's."""


def add_flags(parser: argparse.ArgumentParser, *names: str) -> None:
    """Flags for these fields of MaintenanceConfig."""
    for name in names:
        flag, default, metavar, text = _FLAGS[name]
        form = checked(_parser(name))
        parser.add_argument(flag, dest=name, type=form, metavar=metavar, help=f"{text} [{default}]")


def config_of(args: argparse.Namespace) -> MaintenanceConfig:
    """The configuration that the flags make. Raises OptionError."""
    texts = {name: getattr(args, name, None) for name in _FLAGS}
    given: dict[str, Any] = {name: _parser(name)(text) for name, text in texts.items() if text is not None}
    return MaintenanceConfig(**given)


def given_flags(args: argparse.Namespace) -> list[str]:
    """The flags that the command line has."""
    return [flag for name, (flag, *_) in _FLAGS.items() if getattr(args, name, None) is not None]


def _parser(name: str) -> Callable[[object], object]:
    return _parse_levels if name == "levels" else parse_duration_s


def _parse_levels(text: object) -> dict[int, float]:
    return dict(enumerate(map(parse_duration_s, str(text).split(",")), start=1))
