"""The file of the database that is replicated: which one it is, and what speaks against replicating it.

Opens nothing. Two copies of SQLite must not open one database in one process (`database.py` says why), which is checked
as far as it can be.
"""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

import apsw

from litevfs.errors import ReplicatorError

logger = logging.getLogger("litevfs.replicate")

_OLDEST_SQLITE = (3, 51, 3)
"""NOOP checkpoints came with 3.51.0. Before 3.51.3, two connections that checkpoint at once can, in rare races, break a
database (https://www.sqlite.org/wal.html#walresetbug), and the replicator is one more that checkpoints."""
_FD_FOLDER = Path("/proc/self/fd")


def database_path(path: str | os.PathLike[str]) -> Path:
    """The file that `path` leads to. Raises ReplicatorError for a path that SQLite cannot open."""
    try:
        resolved = Path(path).resolve()
        os.fspath(resolved).encode()
    except (ValueError, RuntimeError) as exc:  # a NUL, not UTF-8, or links in a circle
        raise ReplicatorError(
            "no database to replicate: not a file name that SQLite takes", key=ascii(os.fspath(path))
        ) from exc
    if not resolved.name:
        raise ReplicatorError("no database to replicate: this is not a file", key=str(resolved))
    return resolved


def source_file(path: Path) -> os.stat_result:
    """What is at a resolved path. Raises ReplicatorError if it is no file."""
    try:
        file = path.stat()
    except OSError as exc:
        reason = "no such file" if isinstance(exc, FileNotFoundError) else exc.strerror
        hint = "the database comes first, the URL second" if ":/" in str(path) else None  # of a URL, as a path
        raise ReplicatorError(f"no database to replicate: {reason}", key=str(path), hint=hint) from exc
    if not stat.S_ISREG(file.st_mode):
        raise ReplicatorError("no database to replicate: this is not a file", key=str(path))
    return file


def identity(file: os.stat_result) -> tuple[int, int]:
    """What tells a file from every other one that there is."""
    return file.st_dev, file.st_ino


def refuse_old_sqlite() -> None:
    """Raise ReplicatorError if SQLite is too old to checkpoint beside an application."""
    version = apsw.sqlite_lib_version()
    if tuple(map(int, version.split("."))) < _OLDEST_SQLITE:
        raise ReplicatorError(
            f"APSW has SQLite {version}, the replicator needs {'.'.join(map(str, _OLDEST_SQLITE))} or later",
            hint="pip install --upgrade apsw",
        )


def warn_of_links(path: Path, file: os.stat_result) -> None:
    """Log a warning when the file has other names: SQLite would use another WAL there.

    No error, as a backup program may have made the other name, and never writes to it.
    """
    if file.st_nlink > 1:
        logger.warning(
            "%s: this file has %d names (hard links), and SQLite keeps a WAL for each: "
            "what is written by another name is not seen here, and can break the database",
            path,
            file.st_nlink,
        )


def refuse_other_sqlite(path: Path, file: os.stat_result) -> None:
    """Refuse when this process has the database open, but not through APSW's copy of SQLite.

    Best effort, and only where the system shows its descriptors: a later open is not seen.
    """
    if not _FD_FOLDER.exists() or any(_may_be_on(path, connection) for connection in apsw.connections()):
        return
    for entry in list(_FD_FOLDER.iterdir()):
        try:
            found = entry.stat()
        except OSError:  # closed meanwhile
            continue
        if os.path.samestat(found, file):
            raise ReplicatorError(
                "this process has the database open without APSW; two copies of SQLite break each other's locks",
                key=str(path),
                hint="run `litevfs replicate` as a process of its own, or use APSW in the application",
            )


def _may_be_on(path: Path, connection: apsw.Connection) -> bool:
    try:
        files = [connection.db_filename(name) for name in connection.db_names()]
    except apsw.Error:  # another thread uses it, or has just closed it
        return True
    return any(file and Path(file).resolve() == path for file in files)
