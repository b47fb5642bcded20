"""The times in Litestream's files, as `test_litestream_binary.py` finds them, and what a reader makes of them.

A snapshot carries the time at which it was made, and may arrive before its last transaction's own file; the mtime of a
file in a folder is set after the file can be listed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from litevfs.ltx.decoder import decode_file
from litevfs.ltx.encoder import encode_file
from litevfs.replica_clients.file import FileReplicaClient
from litevfs.testing.faulty import Fault, faulty_replica
from tests.primary import Primary
from tests.scripted import Script
from tests.support import connected, one, rows, txid_of

COUNT = "SELECT count(*), sum(length(a)) FROM t"


def late_snapshot(primary: Primary, txid: int) -> None:
    """A snapshot as Litestream makes it of a database at rest: an hour later than its last transaction."""
    timestamp_ms = primary.timestamp_ms(txid) + 3_600_000
    file = decode_file(primary.file_bytes(1, txid))
    data = encode_file(replace(file.header, timestamp_ms=timestamp_ms), file.pages())
    primary.client.write(9, 1, txid, data, timestamp_ms)


@pytest.fixture
def script() -> Iterator[Script]:
    with Script() as script:
        yield script


@pytest.fixture
def primary(script: Script) -> Iterator[Primary]:
    with Primary(script.writer) as primary:
        primary.commit("CREATE TABLE t (a)")
        for _ in range(4):
            primary.commit("INSERT INTO t VALUES (hex(randomblob(20000)))")
        yield primary


def test_time_travel_between_a_transaction_and_its_later_snapshot_sees_the_transaction(
    script: Script, primary: Primary
) -> None:
    late_snapshot(primary, 5)
    with connected(script.url, poll_interval=0) as reader:
        one(reader, "PRAGMA litestream_time = '2026-01-01T00:10:00Z'")
        assert txid_of(reader) == 5
        assert rows(reader, COUNT) == primary.rows(COUNT)


def test_a_state_read_from_a_snapshot_is_known_again_in_the_files_that_compaction_made(
    script: Script, primary: Primary, caplog: pytest.LogCaptureFixture
) -> None:
    """The reader was away while level 0 moved on, so that only level 1 tells of TXID 5, with another time."""
    late_snapshot(primary, 5)
    primary.compact(1, 1, 5)
    with connected(script.url, poll_interval=0) as reader:
        assert rows(reader, COUNT) == primary.rows(COUNT)
        for _ in range(4):
            primary.commit("INSERT INTO t VALUES (1)")
        primary.compact(1, 6, 8)
        primary.delete(0, range(1, 9))
        one(reader, "PRAGMA litestream_poll")
        assert rows(reader, COUNT) == primary.rows(COUNT)
    assert "the replica was replaced" not in caplog.text


def test_a_pinned_state_goes_on_from_a_later_snapshot_when_its_files_are_gone(script: Script, primary: Primary) -> None:
    with connected(script.url, poll_interval=0, cache_size="64KB") as reader:
        reader.execute("BEGIN")
        assert one(reader, "SELECT count(*) FROM t") == 4
        late_snapshot(primary, 5)
        primary.compact(1, 1, 5)
        primary.commit("INSERT INTO t VALUES (1)")
        primary.delete(0, range(1, 6))
        assert rows(reader, COUNT) == primary.rows(COUNT, 5)


def test_a_snapshot_that_arrives_before_its_last_transaction_is_of_the_same_history(
    script: Script, primary: Primary, caplog: pytest.LogCaptureFixture
) -> None:
    """Litestream takes a snapshot of what it has locally, the last file of which it may not have uploaded yet."""
    primary.run("INSERT INTO t VALUES (1)")
    late_snapshot(primary, 6)
    with connected(script.url, poll_interval=0) as reader:
        before = txid_of(reader), rows(reader, COUNT)
        assert before == (6, primary.rows(COUNT, 6))
        primary.upload()
        one(reader, "PRAGMA litestream_poll")
        assert (txid_of(reader), rows(reader, COUNT)) == before
        primary.commit("INSERT INTO t VALUES (1)")
        one(reader, "PRAGMA litestream_poll")
        assert (txid_of(reader), rows(reader, COUNT)) == (7, primary.rows(COUNT))
    assert "the replica was replaced" not in caplog.text


def set_times(client: FileReplicaClient) -> None:
    """Give each file its time, as Litestream's client does just after its rename."""
    for file in client.list_files(0):
        path = Path(client.key(file))
        timestamp_ns = decode_file(path.read_bytes()).header.timestamp_ms * 1_000_000
        if path.stat().st_mtime_ns != timestamp_ns:
            os.utime(path, ns=(timestamp_ns, timestamp_ns))


@pytest.mark.parametrize("when", ["open", "poll"])
def test_a_file_that_gets_its_time_after_it_was_listed_is_read(tmp_path: Path, when: str) -> None:
    faulty = faulty_replica(f"file://{tmp_path}")
    with faulty as faults, closing(FileReplicaClient(tmp_path)) as client, Primary(client) as primary:
        faults.add(Fault("act_after", operations=("list",), action=lambda _: set_times(client)))

        def commit(sql: str) -> None:
            """Write a file as it is between Litestream's rename and its change of the time."""
            primary.commit(sql)
            os.utime(client.key(client.list_files(0)[-1]))

        primary.commit("CREATE TABLE t (a)")
        if when == "open":
            commit("INSERT INTO t VALUES ('x')")
        with connected(faults.url, poll_interval=0) as reader:
            if when == "poll":
                commit("INSERT INTO t VALUES ('x')")
                one(reader, "PRAGMA litestream_poll")
            assert rows(reader, COUNT) == [(1, 1)]
