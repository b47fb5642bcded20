"""Puts the pages of docs/ in order: a hook of MkDocs. A page that is not named here stands after those that are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

FIRST = ["index", "time-travel", "freshness", "polling", "options", "pragmas", "commands"]
DOORS = ["apsw", "sqlite3", "dbapi", "sqlalchemy", "arrow", "async", "http", "django", "datasette"]
STORAGES = ["index", "s3", "gs", "azure", "sftp", "webdav", "nats", "http"]
MORE = [
    "follow",
    "diff",
    "watch",
    "engines",
    "primary",
    "many-databases",
    "operations",
    "errors",
    "guarantees",
    "performance",
    "comparison",
]
LAST = ["faq", "changes", "architecture", "development"]


def on_config(config: Any) -> Any:
    """Called by MkDocs."""
    config["nav"] = navigation(Path(config["docs_dir"]))
    return config


def navigation(docs: Path) -> list[Any]:
    """MkDocs' `nav`: every page there is; titles are those of the pages."""
    named = {*FIRST, *MORE, *LAST}
    others = sorted(path.stem for path in docs.glob("*.md") if path.stem not in named)
    return [
        *_pages(docs, "", FIRST),
        {"Doors": _with_others(docs, "doors", DOORS)},
        {"Storages": _with_others(docs, "storages", STORAGES)},
        {"More": _pages(docs, "", [*MORE, *others, *LAST])},
    ]


def _with_others(docs: Path, folder: str, names: list[str]) -> list[str]:
    others = sorted(path.stem for path in (docs / folder).glob("*.md") if path.stem not in names)
    return _pages(docs, folder, [*names, *others])


def _pages(docs: Path, folder: str, names: list[str]) -> list[str]:
    paths = [Path(folder) / f"{name}.md" for name in names]
    return [path.as_posix() for path in paths if (docs / path).exists()]
