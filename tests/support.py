"""What many tests need: waiting on conditions, connections that close, replicas in memory."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import apsw
import pytest

import litevfs
from litevfs.files.line import Line
from litevfs.replica_clients.memory import MemoryReplicaClient, memory_store
from litevfs.states.snapshot import Snapshot
from tests.primary import Primary

_TICK_S = 0.002


def wait_until(condition: Callable[[], Any], what: str = "the condition", timeout_s: float = 20.0) -> Any:
    """The condition's first true value; fails the test when there is none in time."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what} did not come true within {timeout_s:g} s"
        threading.Event().wait(_TICK_S)
    return value


@contextmanager
def connected(url: str, **options: Any) -> Iterator[apsw.Connection]:
    """A connection that closes."""
    connection = litevfs.connect(url, **options)
    try:
        yield connection
    finally:
        connection.close()


def one(connection: apsw.Connection, sql: str, *bindings: Any) -> Any:
    """The single value of a query."""
    rows = connection.execute(sql, bindings).fetchall()
    assert len(rows) == 1
    assert len(rows[0]) == 1
    return rows[0][0]


def status_of(connection: Any) -> dict[str, Any]:
    """The status of a connection's replica."""
    return json.loads(one(connection, "PRAGMA litestream_status"))


def own_threads() -> list[str]:
    """The names of the package's threads that run now."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("litevfs")]


def rows(connection: apsw.Connection, sql: str) -> list[tuple[Any, ...]]:
    """All rows of a query."""
    return connection.execute(sql).fetchall()


def numbers(count: int | str) -> str:
    """SQL for the rows 1 to `count` of a column `value`."""
    series = f"WITH RECURSIVE s (value) AS (SELECT 1 UNION ALL SELECT value + 1 FROM s LIMIT {count})"
    return f"({series} SELECT value FROM s)"


def primary_at(memory_url: str, **options: Any) -> Primary:
    """The primary of a replica in memory."""
    return Primary(MemoryReplicaClient(memory_store(memory_url.removeprefix("memory://"))), **options)


def txid_of(connection: apsw.Connection) -> int:
    """What `PRAGMA litestream_txid` says."""
    return int(one(connection, "PRAGMA litestream_txid"), 16)


def in_threads(count: int, work: Callable[[int], Any], timeout_s: float = 60.0) -> list[Any]:
    """Run `work(i)` in `count` threads at once, started together; results in order, the first error raised."""
    barrier = threading.Barrier(count)
    results: list[Any] = [None] * count
    errors: list[BaseException] = []

    def run(i: int) -> None:
        barrier.wait(timeout_s)
        try:
            results[i] = work(i)
        except BaseException as error:  # noqa: BLE001 - handed to the test
            errors.append(error)

    threads = [threading.Thread(target=run, args=(i,), name=f"test-{i}") for i in range(count)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + timeout_s
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
        assert not thread.is_alive(), f"{thread.name} hangs"
    if errors:
        raise errors[0]
    return results


class Clock:
    """A clock that goes by hand."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        """Seconds, for what takes a clock."""
        return self.now_s


def leave_lines_unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each line be what is assumed at first: else what is planned would change with how busy the machine is."""
    monkeypatch.setattr(Line, "carry", lambda _, size, request, size_of: request())
    monkeypatch.setattr(Line, "trip", lambda _, request: request())


def missing_pages(snapshot: Snapshot) -> int:
    """How many pages of a state no file holds; the page with SQLite's lock bytes is in none."""
    has_lock_page = snapshot.page_size > 0 and snapshot.size_bytes > 1 << 30
    return snapshot.commit - has_lock_page - sum(chunk.file_array.astype(bool).sum() for chunk in snapshot.chunks)
