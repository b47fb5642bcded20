from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import apsw
import pytest

from litevfs.replica_clients.file import FileReplicaClient
from litevfs.replicate import Replicator
from litevfs.replicate.database import SourceDatabase
from litevfs.testing.faulty import Fault, Faults, FaultyReplicaClient
from tests.replicate.support import failing_client


class Application:
    """A program that uses its database through APSW, in the test's process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connections: list[apsw.Connection] = []
        self.db = self.connect()

    def connect(self) -> apsw.Connection:
        connection = apsw.Connection(str(self.path))
        connection.set_busy_timeout(5000)
        self._connections.append(connection)
        return connection

    def execute(self, sql: str, *values: object) -> list[tuple]:
        return self.db.execute(sql, values).fetchall()

    def insert(self, count: int = 1, size: int = 100) -> None:
        for _ in range(count):
            self.db.execute("INSERT INTO t (data) VALUES (randomblob(?))", (size,))

    def checkpoint(self, mode: str) -> tuple[int, int, int]:
        return self.execute(f"PRAGMA wal_checkpoint({mode})")[0]

    def close(self) -> None:
        for connection in self._connections:
            connection.close(True)


@pytest.fixture
def make_app(tmp_path: Path):
    apps: list[Application] = []

    def make(name: str = "app.db", *, page_size: int = 4096, auto_vacuum: int = 0, mode: str = "WAL") -> Application:
        app = Application(tmp_path / name)
        apps.append(app)
        app.execute(f"PRAGMA page_size={page_size}")
        app.execute(f"PRAGMA auto_vacuum={auto_vacuum}")
        app.execute(f"PRAGMA journal_mode={mode}")
        app.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, data BLOB)")
        return app

    yield make
    for app in apps:
        app.close()


@pytest.fixture
def app(make_app) -> Application:
    return make_app()


@pytest.fixture
def stuck_in_checkpoint(app):
    """A checkpoint of the application that stands still until `until` has found it in its way, and waits for it."""
    under_way, may_end = threading.Event(), threading.Event()

    class StandingStill(apsw.VFSFile):
        def xSync(self, flags: int) -> None:
            under_way.set()
            assert may_end.wait(20)
            super().xSync(flags)

    class VFS(apsw.VFS):
        def __init__(self) -> None:
            super().__init__("standing-still", "")

        def xOpen(self, name: object, flags: list[int]) -> apsw.VFSFile:
            return StandingStill("", name, flags)

    class Pause(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            may_end.set()
            return super().wait(timeout)

    @contextmanager
    def stuck(*, until: SourceDatabase) -> Generator[None]:
        vfs = VFS()
        db = apsw.Connection(str(app.path), vfs="standing-still")
        thread = threading.Thread(target=lambda: db.execute("PRAGMA wal_checkpoint").fetchall())
        until._pause = Pause()
        thread.start()
        try:
            assert under_way.wait(20)
            yield
        finally:
            may_end.set()
            thread.join()
            db.close()
            vfs.unregister()

    return stuck


@pytest.fixture
def client(tmp_path: Path):
    client = FileReplicaClient(tmp_path / "replica")
    yield client
    client.close()


@pytest.fixture
def failing(tmp_path: Path):
    client = failing_client(tmp_path / "replica")
    yield client
    client.close()


@pytest.fixture
def hanging(tmp_path: Path):
    """Its uploads hang until `faults.clear()`."""
    inner = FileReplicaClient(tmp_path / "replica")
    faults = Faults(inner.url)
    faults.add(Fault("hang", operations=("write",)))
    client = FaultyReplicaClient(inner, faults)
    yield client
    faults.clear()
    client.close()


@pytest.fixture
def replicate(client: FileReplicaClient):
    """Makes replicators to `client`, and closes them."""
    made: list[Replicator] = []

    def make(app: Application, to: FileReplicaClient = client, **options: object) -> Replicator:
        made.append(Replicator(app.path, to, **options))
        return made[-1]

    yield make
    for replicator in made:
        replicator.close()


Replicate = Callable[..., Replicator]
