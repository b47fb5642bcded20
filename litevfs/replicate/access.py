"""How the replicator's own files beside a database are made: who may read them, and when they are on disk.

The files hold pages of the database, so only users who may read the database may read them: as SQLite does for the WAL,
they get the database's permissions and, from root, its owner, in a folder that is the owner's alone.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress
from pathlib import Path

from litevfs import local_files
from litevfs.errors import LitevfsError, ReplicatorError


class Access:
    """Makes folders and files that only those can read who can read the database (wal.c has it from findCreateFileMode
    and robustFchown of os_unix.c). `refresh` asks for the database's permissions again."""

    def __init__(self, database: Path) -> None:
        self._database = database
        self.refresh()

    def refresh(self) -> None:
        """Go by the permissions and the owner that the database has now. Raises ReplicatorError."""
        with translated(self._database):
            try:
                status = self._database.stat()
                self._mode = status.st_mode & 0o666 | 0o600
            except FileNotFoundError:  # not restored yet
                status, self._mode = self._database.parent.stat(), 0o600
            self._owner = (status.st_uid, status.st_gid)

    def make_folder(self, path: Path) -> None:
        """Make a folder, unless it is there. Raises OSError."""
        path.mkdir(0o700, exist_ok=True)
        with suppress(PermissionError):  # the file has another owner
            path.chmod(0o700)
        self._give(path)

    def open(self, path: str | os.PathLike[str], flags: int) -> int:
        """As the `opener` of `open`."""
        fd = os.open(path, flags | os.O_CLOEXEC, self._mode)
        self._give(fd)
        return fd

    def write_synced(self, path: Path, parts: Iterable[bytes | bytearray]) -> None:
        """Write a file, whose content, but not whose name, is on disk when this returns. Raises OSError."""
        with open(path, "wb", opener=self.open) as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())

    def replace_synced(self, path: Path, content: bytes) -> None:
        """Write a file, or put it in the place of one; it is whole and on disk when this returns. Raises OSError."""
        temp = path.with_suffix(".tmp")
        with local_files.removing_on_error(temp):
            self.write_synced(temp, [content])
            local_files.replace_synced(temp, path)

    def link_synced(self, source: Path, target: Path) -> None:
        """Give the file a second name, or where the file system has none, copy it; on disk when this returns.

        Raises OSError.
        """
        target.unlink(missing_ok=True)
        if not local_files.link(source, target):
            temp = target.with_suffix(".copy.tmp")  # `source` may be the temporary file of that name
            with source.open("rb") as file, local_files.removing_on_error(temp):
                self.write_synced(temp, iter(lambda: file.read(1 << 20), b""))
                temp.replace(target)
        local_files.fsync_folder(target.parent)

    def _give(self, path: Path | int) -> None:
        if os.geteuid() == 0:
            with suppress(OSError):  # SQLite ignores this, too: the process may be the root of a container
                os.chown(path, *self._owner)


@contextmanager
def translated(path: Path) -> Generator[None]:
    """Turn the system's errors into ReplicatorError."""
    try:
        yield
    except OSError as exc:
        if isinstance(exc, LitevfsError):
            raise
        raise ReplicatorError(
            f"the replicator's local state cannot be kept: {exc.strerror or exc}",
            key=str(path),
            hint="the folder of the database must be writable and have space for the pages of one sync",
        ) from exc
