from __future__ import annotations

import json
import random
import shutil
import threading
from pathlib import Path
from typing import Any, BinaryIO

import apsw
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from litevfs.errors import (
    LTXFormatError,
    ReplicaEmptyError,
    ReplicaError,
    StoragePermissionError,
    TransientStorageError,
    TXIDGapError,
)
from litevfs.files.plan import newest_state
from litevfs.ltx import encode_file
from litevfs.ltx.format import Header
from litevfs.maintenance.compaction import compact_level, snapshot
from litevfs.operations.copy import PARALLEL_WRITES, copy_order, copy_replica
from litevfs.replica_clients.base import LTXFileInfo
from litevfs.replica_clients.file import FileReplicaClient
from litevfs.replica_clients.memory import MemoryReplicaClient, MemoryStore, drop_memory_store
from litevfs.replica_clients.s3.client import S3ReplicaClient
from litevfs.testing.faulty import Fault, Faults, FaultyReplicaClient
from tests.histories import History, content
from tests.support import connected, one

ORDERS = Path(__file__).parents[1] / "fixtures" / "orders"
EXPECTED = json.loads((ORDERS / "expected.json").read_text())


def memory_client(name: str = "copy") -> MemoryReplicaClient:
    return MemoryReplicaClient(MemoryStore(name))


def varied_client(seed: int = 1) -> tuple[MemoryReplicaClient, History]:
    """A replica with files on levels 0, 1, 2 and 9, some of which retention has taken."""
    history = History(seed=seed)
    client = memory_client("source")
    for txid in range(1, 31):
        history.step()
        history.upload(client, txid)
        if txid % 4 == 0:
            compact_level(client, 1)
        if txid % 10 == 0:
            compact_level(client, 2)
        if txid in {7, 19}:
            snapshot(client)
    client.delete([file for file in client.list_files(0) if file.max_txid < 25])
    client.delete([file for file in client.list_files(1) if file.max_txid < 7])
    return client, history


def state_files(client: MemoryReplicaClient) -> list[LTXFileInfo]:
    return [file for level in range(10) for file in client.list_files(level)]


# --- the same replica -------------------------------------------------------------------------------------------------


@pytest.mark.plan("D11")
def test_copy_is_byte_for_byte_the_same_with_the_same_times(tmp_path: Path) -> None:
    source, _ = varied_client()
    between = FileReplicaClient(tmp_path / "between")
    end = memory_client()
    first = copy_replica(source, between)
    copy_replica(between, end)
    between.close()
    assert content(end) == content(source)
    times = {(f.level, f.min_txid, f.max_txid): f.modified_ms for f in state_files(source)}
    assert {(f.level, f.min_txid, f.max_txid): f.modified_ms for f in state_files(end)} == times
    assert (first.txid, first.files, first.skipped) == (30, len(times), 0)
    assert first.bytes == sum(len(data) for data in content(source).values())


@pytest.mark.plan("D11")
def test_copy_gives_the_same_answers(tmp_path: Path) -> None:
    copy_replica(ORDERS / "replica", "memory://copied-orders")
    try:
        for txid in (1, 8, 12):
            with connected("memory://copied-orders", txid=txid) as connection:
                for name, sql in EXPECTED["queries"].items():
                    found = [row[0] for row in connection.execute(sql)]
                    expected = EXPECTED["expected_by_txid"][f"{txid:016x}"][name]
                    assert found == (expected if name == "tables" else [expected])
    finally:
        drop_memory_store("copied-orders")


@pytest.mark.s3
@pytest.mark.plan("D11")
def test_copy_through_s3_keeps_bytes_and_timestamps(tmp_path: Path, s3_url, s3_client) -> None:
    url = s3_url()
    copy_replica(ORDERS / "replica", url)
    bucket, _, path = url.removeprefix("s3://").partition("?")[0].partition("/")
    head = s3_client.head_object(Bucket=bucket, Key=f"{path}/0000/{1:016x}-{1:016x}.ltx")
    first = next((ORDERS / "replica" / "ltx" / "0").glob(f"{1:016x}-*"))
    timestamp_ms = int.from_bytes(first.read_bytes()[32:40], "big")
    assert head["Metadata"]["litestream-timestamp"].startswith("20")
    back = copy_replica(url, tmp_path / "back")
    assert back.files == 12
    for original in (ORDERS / "replica" / "ltx" / "0").iterdir():
        copied = tmp_path / "back" / "ltx" / "0" / original.name
        assert copied.read_bytes() == original.read_bytes()
    copied_first = tmp_path / "back" / "ltx" / "0" / first.name
    assert copied_first.stat().st_mtime_ns // 1_000_000 == timestamp_ms


@pytest.mark.slow
@pytest.mark.s3
def test_file_of_several_parts_arrives_whole_in_s3(s3_url, monkeypatch: pytest.MonkeyPatch) -> None:
    image = random.Random(1).randbytes(40 << 20)
    pages = ((i + 1, image[i * 65536 : (i + 1) * 65536]) for i in range(640))
    source = memory_client("source")
    source.write(9, 1, 1, encode_file(Header(65536, 640, 1, 1, 5), pages), 5)
    client = S3ReplicaClient(s3_url())
    copy_replica(source, client)
    assert content(client) == content(source)
    assert client.requests["PUT"] > 2
    client.close()


# --- order, and going on where it stopped -----------------------------------------------------------------------------


class Watched:
    """A destination that looks at itself after each write, and fails when told to."""

    def __init__(self, inner: MemoryReplicaClient, fail_at: int | None = None) -> None:
        self._inner = inner
        self.fail_at = fail_at
        self.writes: list[tuple[int, int, int]] = []

    def __getattr__(self, name: str):
        return getattr(self._inner, name)

    def write(self, level: int, min_txid: int, max_txid: int, data: BinaryIO, timestamp_ms: int) -> LTXFileInfo:
        if len(self.writes) == self.fail_at:
            data.read(50)  # the upload breaks in the middle
            raise StoragePermissionError("no more")
        self.writes.append((level, min_txid, max_txid))
        written = self._inner.write(level, min_txid, max_txid, data, timestamp_ms)
        assert newest_state(state_files(self._inner)).gap is None
        return written


def test_destination_is_a_replica_without_gaps_after_every_file() -> None:
    source, _ = varied_client()
    destination = Watched(memory_client())
    copy_replica(source, destination)
    assert len(destination.writes) == len(content(source))


@settings(max_examples=100)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(1, 12), st.integers(0, 12)), min_size=1, max_size=12, unique=True)
)
def test_no_beginning_of_the_order_has_a_gap_that_the_whole_has_not(ranges: list[tuple[int, int, int]]) -> None:
    files = [LTXFileInfo(level, 1 if level == 9 else first, first + length, 1, 0) for level, first, length in ranges]
    try:
        newest_state(files)
    except TXIDGapError:
        return
    ordered = copy_order(files)
    assert sorted(ordered, key=repr) == sorted(files, key=repr)
    for end in range(1, len(ordered) + 1):
        newest_state(ordered[:end])  # raises TXIDGapError for a gap


@pytest.mark.plan("D02")
def test_broken_copy_goes_on_where_it_stopped() -> None:
    source, _ = varied_client()
    inner = memory_client()
    seen: list[tuple[int, int, int]] = []
    skipped = []
    for fail_at in (3, 2, 5, None):
        destination = Watched(inner, fail_at)
        try:
            skipped.append(copy_replica(source, destination).skipped)
        except StoragePermissionError:
            pass
        seen += destination.writes
    assert len(seen) == len(set(seen))  # nothing was copied twice
    assert skipped == [10]
    assert content(inner) == content(source)


def test_second_copy_reads_no_file_and_brings_only_what_is_new() -> None:
    source, history = varied_client()
    destination = memory_client()
    copy_replica(source, destination)
    history.step()
    history.upload(source, 31)
    result = copy_replica(source, destination)
    assert (result.txid, result.files, result.skipped) == (31, 1, len(content(source)) - 1)
    assert content(destination) == content(source)


def test_progress_counts_the_bytes_to_copy() -> None:
    source, _ = varied_client()
    seen: list[tuple[int, int]] = []
    result = copy_replica(source, memory_client(), progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (result.bytes, result.bytes)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


# --- what must not happen ---------------------------------------------------------------------------------------------


def test_damaged_file_never_arrives() -> None:
    source, _ = varied_client()
    victim = source.list_files(2)[1]
    data = bytearray(source.read(victim))
    data[-3] ^= 1
    source.write(2, victim.min_txid, victim.max_txid, bytes(data), 0)
    destination = memory_client()
    with pytest.raises(LTXFormatError) as caught:
        copy_replica(source, destination)
    assert (caught.value.level, caught.value.min_txid) == (2, victim.min_txid)
    assert (2, victim.min_txid, victim.max_txid) not in content(destination)
    assert newest_state(state_files(destination)).gap is None


@pytest.mark.plan("D11")
def test_another_replica_at_the_destination_is_neither_mixed_nor_overwritten() -> None:
    source, _ = varied_client(seed=1)
    elsewhere, _ = varied_client(seed=2)
    same_sizes = memory_client()
    for (level, first, last), data in content(source).items():
        other = bytearray(data)
        other[-1] ^= 1
        same_sizes.write(level, first, last, bytes(other), 0)
    nothing_common = memory_client()
    History(seed=3).run(3).upload_all(nothing_common)
    for other in (elsewhere, same_sizes, nothing_common):
        before = content(other)
        with pytest.raises(ReplicaError, match="a copy of the source"):
            copy_replica(source, MemoryReplicaClient(_renamed(other.store)))
        assert content(other) == before


def _renamed(store: MemoryStore) -> MemoryStore:
    renamed = MemoryStore("elsewhere")
    renamed.files = store.files
    return renamed


@pytest.mark.parametrize(("which", "has_same_size"), [(0, True), (2, False), (-1, True)])
def test_one_other_file_shows_that_the_destination_is_no_copy(which: int, has_same_size: bool) -> None:
    """The oldest and the newest that both have are compared by their ends, all of them by their sizes."""
    source, destination = memory_client("source"), memory_client("destination")
    history = History(seed=5).run(5)
    history.upload_all(source)
    copy_replica(source, destination)
    file = destination.list_files(0)[which]
    data = destination.read(file)
    other = data[:-1] + bytes([data[-1] ^ 1]) if has_same_size else data + b"x"
    destination.write(0, file.min_txid, file.max_txid, other, 0)
    history.upload(source, history.step())
    with pytest.raises(ReplicaError, match="holds another file of the same TXIDs"):
        copy_replica(source, destination)
    assert len(destination.list_files(0)) == 5


def test_source_without_a_complete_state_and_copies_onto_itself_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ReplicaEmptyError):
        copy_replica(memory_client("empty"), memory_client())
    source, _ = varied_client()
    source.delete(source.list_files(9))
    source.delete([file for file in source.list_files(2) if file.min_txid == 1])
    with pytest.raises(TXIDGapError):
        copy_replica(source, memory_client())
    with pytest.raises(ReplicaError, match="same replica"):
        copy_replica(str(ORDERS / "replica"), ORDERS / "replica")


# --- sources and destinations that change or fail ---------------------------------------------------------------------


@pytest.mark.plan("D05")
def test_source_that_is_compacted_meanwhile_leads_to_a_copy_without_gaps() -> None:
    history = History(seed=4).run(20)
    source = memory_client("source")
    history.upload_all(source)

    class Busy(Watched):
        def write(self, level, min_txid, max_txid, data, timestamp_ms):
            written = super().write(level, min_txid, max_txid, data, timestamp_ms)
            if len(self.writes) == 5:
                compact_level(source, 1)
                source.delete(source.list_files(0)[:-1])
            return written

    inner = memory_client()
    destination = Busy(inner)
    copy_replica(source, destination)
    assert set(content(source).items()) <= set(content(inner).items())
    assert newest_state(state_files(inner)).txid == 20


def test_transient_trouble_on_both_sides_is_overcome() -> None:
    source, _ = varied_client()
    inner = memory_client()
    reading, writing = Faults("faulty://source", seed=1, block_size=1 << 16), Faults("faulty://copy", seed=2)
    reading.add(Fault("transient", probability=0.1), Fault("corrupt", count=1))
    writing.add(Fault("timeout", operations=("write",), count=3))
    copy_replica(FaultyReplicaClient(source, reading), FaultyReplicaClient(inner, writing))
    assert content(inner) == content(source)
    assert writing.injected["timeout"] == 3
    assert reading.injected["corrupt"] == 1


def test_files_that_arrived_before_trouble_are_not_written_again(monkeypatch: pytest.MonkeyPatch) -> None:
    source, _ = varied_client()
    destination = memory_client("destination")
    write, asked = destination.write, []

    def write_with_trouble(*arguments: Any) -> LTXFileInfo:
        asked.append(arguments[:3])
        if len(asked) == 5:
            raise TransientStorageError("once")
        return write(*arguments)

    monkeypatch.setattr(destination, "write", write_with_trouble)
    copy_replica(source, destination)
    assert asked[5] == asked[4]
    assert len(set(asked)) == len(asked) - 1 == len(state_files(source))


def test_trouble_that_stays_ends_the_copy_with_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("litevfs.concurrency.retry.Backoff.base_s", 0.001)
    source, _ = varied_client()
    writing = Faults("faulty://copy")
    writing.add(Fault("transient", operations=("write",)))
    with pytest.raises(TransientStorageError):
        copy_replica(source, FaultyReplicaClient(memory_client(), writing))
    assert 2 <= writing.injected["transient"] <= 20


def test_copied_replica_opens_where_only_the_files_are_kept(tmp_path: Path) -> None:
    shutil.copytree(ORDERS / "replica", tmp_path / "source")
    copy_replica(str(tmp_path / "source"), f"file://{tmp_path / 'copy'}")
    shutil.rmtree(tmp_path / "source")
    with connected(str(tmp_path / "copy")) as connection:
        newest = EXPECTED["expected_by_txid"][f"{12:016x}"]
        assert one(connection, EXPECTED["queries"]["customers"]) == newest["customers"]
        with pytest.raises(apsw.ReadOnlyError):
            connection.execute("DELETE FROM customer")


# --- several at once --------------------------------------------------------------------------------------------------


class Remote(MemoryReplicaClient):
    """A storage where a write costs a round trip, and waits until as many are under way as can be, or all are."""

    block_size = 1 << 16

    def __init__(self, store: MemoryStore, at_once: int = 1) -> None:
        super().__init__(store)
        self.barrier = threading.Barrier(at_once)
        self.orders: list[list[tuple[int, int]]] = []

    def write(self, level: int, min_txid: int, max_txid: int, *args: Any, **options: Any) -> LTXFileInfo:
        if threading.current_thread().name.startswith("litevfs-copy"):
            self.barrier.wait(30)
        written = super().write(level, min_txid, max_txid, *args, **options)
        self.orders.append(sorted((file.min_txid, file.max_txid) for file in state_files(self)))
        return written


def test_files_that_others_cover_are_written_several_at_once_and_leave_no_gap() -> None:
    history = History(seed=5)
    source = memory_client("source")
    for txid in range(1, 17):
        history.step()
        history.upload(source, txid)
    snapshot(source)
    destination = Remote(MemoryStore("remote"), at_once=PARALLEL_WRITES)
    copied = copy_replica(source, destination)
    assert (copied.txid, copied.files) == (16, 17)
    assert content(destination) == content(source)
    assert destination.orders[0] == [(1, 16)]  # what covers the others is there before any of them


def test_a_write_that_fails_among_others_ends_the_copy_and_the_next_one_goes_on() -> None:
    history = History(seed=6)
    source = memory_client("source")
    for txid in range(1, 10):
        history.step()
        history.upload(source, txid)
    snapshot(source)

    class Refusing(Remote):
        def write(self, level: int, min_txid: int, *args: Any, **options: Any) -> LTXFileInfo:
            if (level, min_txid) == (0, 4):
                raise StoragePermissionError("no")
            return super().write(level, min_txid, *args, **options)

    store = MemoryStore("remote")
    with pytest.raises(StoragePermissionError):
        copy_replica(source, Refusing(store))
    arrived = len(state_files(Remote(store)))
    assert arrived >= 1
    again = copy_replica(source, Remote(store))
    assert (again.files, again.skipped) == (10 - arrived, arrived)
    assert content(Remote(store)) == content(source)
