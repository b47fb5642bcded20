"""What a configuration says, as plain values: databases, folders of them, and the places they are replicated to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, urlsplit

from litevfs.replica_clients.base import ReplicaClient
from litevfs.replica_clients.urls import open_replica_client


@dataclass(frozen=True, slots=True)
class Place:
    """A replica: its URL, and keys that belong in no URL."""

    url: str
    access_key_id: str | None = field(default=None, repr=False)
    secret_access_key: str | None = field(default=None, repr=False)

    def open(self, *, read_timeout_s: float = 30.0) -> ReplicaClient:
        """The client of the replica. Raises ReplicaURLError."""
        if self.access_key_id and self.secret_access_key:
            from litevfs.replica_clients.s3.client import S3ReplicaClient

            return S3ReplicaClient(
                self.url,
                read_timeout_s=read_timeout_s,
                access_key_id=self.access_key_id,
                secret_access_key=self.secret_access_key,
            )
        return open_replica_client(self.url, read_timeout_s=read_timeout_s)

    def below(self, relative: PurePosixPath) -> Place:
        """The place `relative` below this one: that of one database of a folder."""
        if "://" not in self.url:
            return Place(str(Path(self.url) / relative), self.access_key_id, self.secret_access_key)
        parts = urlsplit(self.url)
        path = f"{parts.path.rstrip('/')}/{quote(str(relative))}"
        return Place(parts._replace(path=path).geturl(), self.access_key_id, self.secret_access_key)


@dataclass(frozen=True, slots=True)
class DatabaseEntry:
    """A database, or a folder of databases, with where they go and how."""

    path: Path  # of the database, or of the folder
    places: tuple[Place, ...]
    pattern: str | None = None  # of the files in the folder; None for a single database
    recursive: bool = False
    watch: bool = False
    restore_if_missing: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)  # of `Replicator`


@dataclass(frozen=True, slots=True)
class Config:
    """A whole configuration."""

    entries: tuple[DatabaseEntry, ...]
    metrics_addr: str | None = None
    exec: str | None = None
    log_level: str | None = None
    shutdown_timeout_s: float | None = None
    warnings: tuple[str, ...] = ()  # what the file asks for and is not done, each with file, line and key
