"""The listing file of a replica that a plain web server serves, and the listings that web servers make. Does no I/O.

`index.json` lies in the folder of the replica, beside `ltx/` or, in the layout of S3, beside the levels:

    {"format": "litevfs-index", "version": 1, "written_ms": 1767323045678,
     "files": {"ltx/0": [["0000000000000001-0000000000000001.ltx", 4242, 1767323045678, "etag"], ...], "ltx/9": [...]}}

`written_ms` is when it was written, milliseconds since the Unix epoch, and grows from one index to the next. A key of
`files` is the folder of a level, its number in decimal, or in four hex digits as in S3; a file is its name, its size
in bytes, the storage's time of its write, and an opaque text that differs when the content does. Readers ignore
further members.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from litevfs.errors import StorageError
from litevfs.ltx.names import parse_file_name
from litevfs.replica_clients.base import LEVELS, LTXFileInfo

INDEX_NAME = "index.json"
FORMAT, VERSION = "litevfs-index", 1
_HREF = re.compile(rb"""<a\s[^>]*?href\s*=\s*["']([^"']{1,1000})["']""", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Index:
    """All files of a replica at one moment, by level, each list by (min_txid, max_txid)."""

    written_ms: int
    files: Mapping[int, list[LTXFileInfo]]
    folders: Mapping[int, str]  # the folder of each level, relative to the index, without a slash


def write_index(files: Iterable[LTXFileInfo], written_ms: int, *, hex_levels: bool = False) -> bytes:
    """The index of `files`; with `hex_levels`, in the layout of S3."""
    folders: dict[str, list[list[Any]]] = {}
    for file in sorted(files, key=lambda file: file.place):
        folder = f"{file.level:04x}" if hex_levels else f"ltx/{file.level}"
        folders.setdefault(folder, []).append([file.name, file.size, file.modified_ms, file.etag])
    index = {"format": FORMAT, "version": VERSION, "written_ms": written_ms, "files": folders}
    return json.dumps(index, separators=(",", ":")).encode()


def parse_index(data: bytes, key: str) -> Index:
    """The index in `data`. Raises StorageError, about `key`, for anything else."""
    try:
        parsed = json.loads(data)
        if parsed["format"] != FORMAT:
            raise ValueError("another format")
        if parsed["version"] != VERSION:
            message = f"an index of version {parsed['version']!r}, which this litevfs does not know"
            raise StorageError(message, key=key, hint="a newer litevfs wrote it: use that to read it")
        written_ms = int(parsed["written_ms"])
        files, folders = {}, {}
        for folder, rows in parsed["files"].items():
            level = level_of(folder.removeprefix("ltx/"))
            if level is not None:
                folders[level] = folder
                files[level] = sorted(_files(level, rows), key=lambda file: (file.min_txid, file.max_txid))
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as exc:
        hint = "write it by `litevfs copy --index` or `litevfs replicate --index`"
        raise StorageError(f"not an index of a replica: {exc}", key=key, hint=hint) from exc
    return Index(written_ms, files, folders)


def _files(level: int, rows: Iterable[Any]) -> Iterable[LTXFileInfo]:
    for row in rows:
        name, size, modified_ms, etag = row[:4]
        txids = parse_file_name(name)
        if txids is not None:
            yield LTXFileInfo(level, *txids, int(size), int(modified_ms), str(etag))


def level_of(folder: str) -> int | None:
    """The level whose files lie in a folder of this name, in either layout; None for another folder."""
    if not (folder.isascii() and folder.isalnum()) or len(folder) not in (1, 4):
        return None
    try:
        level = int(folder, 16 if len(folder) == 4 else 10)
    except ValueError:
        return None
    return level if level in LEVELS else None


def names_in_page(page: bytes, content_type: str) -> list[str] | None:
    """The names in a folder, as a web server lists them in HTML or JSON; without slashes. None if it is neither."""
    if "json" in content_type:
        try:
            return [str(entry["name"]).strip("/") for entry in json.loads(page)]
        except (ValueError, TypeError, KeyError):
            return None
    if "html" not in content_type:
        return None
    names = []
    for match in _HREF.finditer(page):
        name = unquote(match[1].decode("utf-8", "replace")).removeprefix("./").rstrip("/")
        if name and "/" not in name and not name.startswith(("?", "..")):
            names.append(name)
    return list(dict.fromkeys(names))
