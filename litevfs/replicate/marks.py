"""Two small files in the state folder of a database: whose folder it is, and from what a restore made the database.

owner.json      the folder's ID, and which file its lock is: a copied folder has another lock, and gets another ID
restored        which TXID of which replica the database file is, as long as it is that file; of the newest TXID, what
                follows that line says what its pages are (`restored.py`)
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

_OWNER = "owner.json"

Opener = Callable[[str, int], int]
"""An opener, as for `open`."""


def state_folder(database: Path) -> Path:
    """Where the local state of a database lies."""
    return database.with_name(f".{database.name}-litevfs")


@dataclass(frozen=True, slots=True)
class RestoredMark:
    """The TXID and replica that a restore made the database file from."""

    replica_url: str
    txid: int
    timestamp_ms: int  # of that TXID, as its LTX header says
    device: int  # of the database file, like `inode`: another file is another database
    inode: int

    def is_of(self, file: os.stat_result) -> bool:
        """Whether the mark is about that file."""
        return (self.device, self.inode) == (file.st_dev, file.st_ino)


def write_restored(database: Path, mark: RestoredMark, content: bytes = b"") -> None:
    """Leave the mark for a database that is about to appear there, and what its pages are. Raises OSError."""
    _write(_restored(database), asdict(mark), content=content)


def read_restored(database: Path) -> RestoredMark | None:
    """The mark; None when there is none, it is damaged, or it is about another file."""
    try:
        with _restored(database).open("rb") as file:
            mark = RestoredMark(**json.loads(file.readline()))
        return mark if mark.is_of(database.stat()) else None
    except (OSError, ValueError, TypeError):
        return None


def read_restored_content(database: Path) -> bytes:
    """What follows the mark. Raises OSError."""
    with _restored(database).open("rb") as file:
        file.readline()
        return file.read()


def remove_restored(database: Path) -> None:
    """Delete the mark. Raises OSError."""
    _restored(database).unlink(missing_ok=True)


def _restored(database: Path) -> Path:
    return database.with_name(f".{database.name}-litevfs-restored")


def folder_id(folder: Path, lock: os.stat_result, opener: Opener) -> str:
    """The ID of a state folder, made at first. `lock` is its lock file, which the caller holds. Raises OSError."""
    identity = [lock.st_dev, lock.st_ino]
    with suppress(OSError, ValueError, KeyError, TypeError):
        owner = json.loads((folder / _OWNER).read_bytes())
        if owner["lock"] == identity:
            return str(owner["id"])
    owner = {"id": secrets.token_hex(16), "lock": identity}
    _write(folder / _OWNER, owner, opener)
    return str(owner["id"])


def _write(path: Path, fields: dict[str, object], opener: Opener | None = None, content: bytes = b"") -> None:
    temp = path.with_name(f"{path.name}.tmp")
    with open(temp, "wb", opener=opener) as file:
        file.write(json.dumps(fields).encode() + b"\n")
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temp.replace(path)
