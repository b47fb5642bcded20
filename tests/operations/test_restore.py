from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

import apsw
import pytest

from litevfs.errors import (
    LTXFormatError,
    OptionError,
    ReplicaEmptyError,
    RestoreError,
    RestoreTargetExistsError,
    StorageError,
    TXIDGapError,
    TXIDNotFoundError,
)
from litevfs.files.stream import PARALLEL_READS, READ_BYTES
from litevfs.ltx import encode_file
from litevfs.ltx.format import Header, lock_pgno
from litevfs.maintenance.compaction import compact_level, snapshot
from litevfs.operations.restore import restore
from litevfs.operations.target import is_missing
from litevfs.replica_clients.file import FileReplicaClient
from litevfs.replica_clients.memory import MemoryReplicaClient, MemoryStore, drop_memory_store, memory_store
from litevfs.replica_clients.s3.client import S3ReplicaClient
from litevfs.testing.faulty import Fault, Faults, FaultyReplicaClient, faulty_replica
from litevfs.units import format_timestamp
from tests.histories import History
from tests.ltx.reference import PAGE_SIZES, File, page_of
from tests.support import wait_until

ROOT = Path(__file__).parents[2]
ORDERS = Path(__file__).parents[1] / "fixtures" / "orders"
EXPECTED = json.loads((ORDERS / "expected.json").read_text())


def memory_client(history: History | None = None) -> MemoryReplicaClient:
    client = MemoryReplicaClient(MemoryStore("restore"))
    if history is not None:
        history.upload_all(client)
    return client


def remote(client, seed: int = 0) -> tuple[FaultyReplicaClient, Faults]:
    """The same replica as if each request cost a round trip."""
    faults = Faults("faulty://restore", seed=seed, block_size=1 << 16)
    return FaultyReplicaClient(client, faults), faults


def answers(path: Path) -> dict[str, object]:
    connection = apsw.Connection(f"file:{quote(str(path))}?immutable=1", flags=apsw.SQLITE_OPEN_READONLY | 0x40)
    try:
        result: dict[str, object] = {}
        for name, sql in EXPECTED["queries"].items():
            rows = [row[0] for row in connection.execute(sql)]
            result[name] = rows if name == "tables" else rows[0]
        return result
    finally:
        connection.close()


# --- the right state --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("txid", range(1, 13))
def test_restored_database_answers_as_the_primary_did(tmp_path: Path, txid: int) -> None:
    result = restore(ORDERS / "replica", tmp_path / "o.db", txid=txid, integrity_check=True)
    assert answers(tmp_path / "o.db") == EXPECTED["expected_by_txid"][f"{txid:016x}"]
    assert result.txid == result.files == txid
    assert result.bytes == result.pages * 4096 == (tmp_path / "o.db").stat().st_size
    assert {path.name for path in tmp_path.iterdir()} == {"o.db", ".o.db-litevfs-restored"}


@pytest.mark.parametrize("at_once", [1, 5000, 1 << 20], ids=["each page", "some pages", "all pages"])
@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_file_is_byte_for_byte_what_the_pages_are_through_growth_and_shrinking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page_size: int, at_once: int
) -> None:
    monkeypatch.setattr("litevfs.operations.target._BATCH_BYTES", at_once)
    history = History(seed=page_size, page_size=page_size, most_pages=6).run(12)
    client = memory_client(history)
    for txid in range(1, 13):
        restore(client, tmp_path / f"{txid}.db", txid=f"{txid:x}")
        assert (tmp_path / f"{txid}.db").read_bytes() == history.images[txid]


def test_pages_that_many_small_files_change_are_written_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = History(seed=5).run(100)
    written, pwrite = [], os.pwrite

    def count(fd: int, data: memoryview, offset: int) -> int:
        written.append(len(data))
        return pwrite(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", count)
    restore(memory_client(history), tmp_path / "o.db")
    assert (tmp_path / "o.db").read_bytes() == history.images[100]
    assert written == [12 * 512]  # every page that the database ever had, once


def test_newest_state_is_restored_without_a_target_and_from_overlapping_levels(tmp_path: Path) -> None:
    history = History(seed=3).run(9)
    client = memory_client(history)
    image = history.images[6]
    pages = [(i + 1, image[i * 512 : i * 512 + 512]) for i in range(len(image) // 512)]
    client.write(9, 1, 6, encode_file(Header(512, len(pages), 1, 6, 0), pages), 0)
    result = restore(client, tmp_path / "new.db")
    assert (tmp_path / "new.db").read_bytes() == history.images[9]
    assert (result.txid, result.files) == (9, 4)


def test_empty_database_becomes_an_empty_file(tmp_path: Path) -> None:
    client = memory_client()
    client.write(0, 1, 1, File(commit=0, pages=[]).write(), 0)
    assert restore(client, tmp_path / "e.db", integrity_check=True).pages == 0
    assert (tmp_path / "e.db").read_bytes() == b""


@pytest.mark.soak
def test_lock_page_is_left_as_zeros(tmp_path: Path) -> None:
    page_size = 65536
    lock = lock_pgno(page_size)
    pages = ((pgno, bytes([pgno % 251 + 1]) * page_size) for pgno in range(1, lock + 3) if pgno != lock)
    client = memory_client()
    client.write(9, 1, 1, encode_file(Header(page_size, lock + 2, 1, 1, 0), pages), 0)
    restore(client, tmp_path / "lock.db")
    with (tmp_path / "lock.db").open("rb") as file:
        for pgno in (1, lock - 1, lock, lock + 1, lock + 2):
            file.seek((pgno - 1) * page_size)
            expected = bytes(page_size) if pgno == lock else bytes([pgno % 251 + 1]) * page_size
            assert file.read(page_size) == expected
        assert file.read() == b""


def test_timestamp_gives_the_newest_state_at_that_time(tmp_path: Path) -> None:
    history = History(seed=4).run(6)
    client = memory_client(history)
    at_ms = history.timestamp_ms(4)
    restore(client, tmp_path / "a.db", timestamp=format_timestamp(at_ms))
    restore(client, tmp_path / "b.db", timestamp=datetime.fromtimestamp((at_ms - 1) / 1000, UTC))
    restore(client, tmp_path / "c.db", timestamp="1 minute ago")
    assert (tmp_path / "a.db").read_bytes() == history.images[4]
    assert (tmp_path / "b.db").read_bytes() == history.images[3]
    assert (tmp_path / "c.db").read_bytes() == history.images[6]
    with pytest.raises(TXIDNotFoundError, match="no state is as old"):
        restore(client, tmp_path / "d.db", timestamp=format_timestamp(history.timestamp_ms(0)))


@pytest.mark.s3
def test_replica_in_s3_is_restored_by_url(tmp_path: Path, s3_url) -> None:
    history = History(seed=5).run(20)
    url = s3_url()
    client = S3ReplicaClient(url)
    history.upload_all(client)
    client.close()
    restore(url, tmp_path / "s3.db")
    assert (tmp_path / "s3.db").read_bytes() == history.images[20]


# --- nothing is overwritten, nothing is half there --------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["", "-wal", "-journal", "-shm"])
def test_existing_file_is_refused_and_stays(tmp_path: Path, suffix: str) -> None:
    existing = tmp_path / f"o.db{suffix}"
    existing.write_bytes(b"mine")
    with pytest.raises(RestoreTargetExistsError, match="will not overwrite") as caught:
        restore(ORDERS / "replica", tmp_path / "o.db")
    assert isinstance(caught.value, FileExistsError)
    assert str(existing) in str(caught.value)
    assert "--force" in str(caught.value)
    assert existing.read_bytes() == b"mine"
    assert list(tmp_path.iterdir()) == [existing]


def test_file_that_appears_during_the_restore_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "o.db"
    with pytest.raises(RestoreTargetExistsError):
        restore(ORDERS / "replica", path, progress=lambda done, total: path.write_bytes(b"mine") and None)
    assert path.read_bytes() == b"mine"
    assert list(tmp_path.iterdir()) == [path]


def test_second_restore_to_the_same_path_is_refused_while_the_first_runs(tmp_path: Path) -> None:
    path = tmp_path / "o.db"
    refused: list[str] = []

    def restore_again(done: int, total: int) -> None:
        with pytest.raises(RestoreError, match="another restore") as caught:
            restore(ORDERS / "replica", path)
        refused.append(str(caught.value))

    restore(ORDERS / "replica", path, progress=restore_again)
    assert len(refused) >= 12
    assert answers(path) == EXPECTED["expected_by_txid"][f"{12:016x}"]


@pytest.mark.plan("D01")
def test_leftover_of_a_crash_is_replaced_not_written_over(tmp_path: Path) -> None:
    leftover = tmp_path / "o.db.tmp"
    leftover.write_bytes(b"x" * 5_000_000)
    os.link(leftover, tmp_path / "moved.db")  # a crash between giving the name and removing the temporary one
    restore(ORDERS / "replica", tmp_path / "o.db")
    assert answers(tmp_path / "o.db") == EXPECTED["expected_by_txid"][f"{12:016x}"]
    assert (tmp_path / "moved.db").read_bytes() == b"x" * 5_000_000
    assert not leftover.exists()


@pytest.mark.plan("D01", "D02", "D15")
def test_killed_restores_leave_no_database_and_the_next_one_succeeds(tmp_path: Path) -> None:
    client = FileReplicaClient(tmp_path / "replica")
    pages = [(pgno, page_of(pgno, 4096)) for pgno in range(1, 2001)]
    client.write(9, 1, 1, encode_file(Header(4096, 2000, 1, 1, 0), pages), 0)
    client.close()
    path = tmp_path / "o.db"
    script = (
        "import sys; from litevfs.operations.restore import restore\n"
        "restore(sys.argv[1], sys.argv[2], progress=lambda *_: print(flush=True) or sys.stdin.readline())"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "replica"), str(path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "bufsize": 0}
    for steps in (1, 2, 3, 1):  # of three; it waits after each for a line
        with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, **pipes) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            for step in range(1, steps + 1):
                assert process.stdout.readline() == b"\n"
                if step < steps:
                    process.stdin.write(b"\n")
            process.send_signal(signal.SIGKILL)
        assert path.with_name("o.db.tmp").exists()
        assert not path.exists()
    restore(tmp_path / "replica", path)
    assert path.read_bytes() == b"".join(page for _, page in pages)
    assert not path.with_name("o.db.tmp").exists()


def test_interrupt_removes_the_temporary_file(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        assert (tmp_path / "o.db.tmp").exists()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        restore(ORDERS / "replica", tmp_path / "o.db", progress=interrupt)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.plan("L11")
def test_interrupt_ends_a_restore_while_storage_hangs(tmp_path: Path) -> None:
    store = memory_store("hanging-restore")
    history = History(seed=15).run(64)
    history.upload_all(MemoryReplicaClient(store))

    with faulty_replica("memory://hanging-restore", block_size=1 << 16) as faults:

        def hang(done: int, total: int) -> None:
            faults.add(Fault("hang", operations=("read",)))

        def interrupt() -> None:
            wait_until(lambda: faults.waiting, "a read that hangs", 30)
            os.kill(os.getpid(), signal.SIGINT)

        interrupter = threading.Thread(target=interrupt)
        interrupter.start()
        with pytest.raises(KeyboardInterrupt):
            restore(faults.url, tmp_path / "o.db", progress=hang)  # the reads would hang until the block's end
        interrupter.join()
    drop_memory_store("hanging-restore")
    assert list(tmp_path.iterdir()) == []


# --- what is wrong with a replica -------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [150, -5])
def test_damaged_file_is_named_and_nothing_is_left(tmp_path: Path, place: int) -> None:
    history = History(seed=6).run(7)
    damaged = bytearray(history.files[5])
    damaged[place] ^= 0x10
    history.files[5] = bytes(damaged)
    with pytest.raises(LTXFormatError) as caught:
        restore(memory_client(history), tmp_path / "o.db")
    error = caught.value
    assert (error.level, error.min_txid, error.max_txid) == (0, 5, 5)
    assert error.key == "0/0000000000000005-0000000000000005.ltx"
    assert list(tmp_path.iterdir()) == []


def flip(client: MemoryReplicaClient, level: int) -> None:
    """Damage the newest file of a level in the middle, where only its checksum tells."""
    file = client.list_files(level)[-1]
    data = bytearray(client.read(file))
    data[len(data) // 2] ^= 1
    client.write(level, file.min_txid, file.max_txid, bytes(data), file.modified_ms)


@pytest.mark.parametrize("damaged", [(9,), (9, 2), (9, 2, 1)])
@pytest.mark.parametrize("how", ["newest", "txid", "timestamp"])
def test_damaged_files_are_gone_around_where_others_lead_to_the_same_state(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damaged: tuple[int, ...], how: str
) -> None:
    history = History(seed=6).run(6)
    client = memory_client(history)
    for level in (1, 2):
        compact_level(client, level)
    snapshot(client)
    history.upload(client, history.step())
    for level in damaged:
        flip(client, level)
    wanted = {"newest": {}, "txid": {"txid": 6}, "timestamp": {"timestamp": format_timestamp(history.timestamp_ms(6))}}
    result = restore(client, tmp_path / "o.db", **wanted[how])
    assert result.txid == (7 if how == "newest" else 6)
    assert (tmp_path / "o.db").read_bytes() == history.images[result.txid]
    warnings = [message for message in caplog.messages if message.startswith("going around a file that is of no use: ")]
    assert all(f"(level {level}, " in message for level, message in zip(damaged, warnings, strict=True))

    client.delete([file for file in client.list_files(0) if file.max_txid < 6])
    for level in {9, 2, 1} - set(damaged):
        flip(client, level)
    with pytest.raises(LTXFormatError) as caught:  # nothing else leads there
        restore(client, tmp_path / "none.db", **wanted[how])
    assert caught.value.level == 1
    assert {path.name for path in tmp_path.iterdir()} == {"o.db", ".o.db-litevfs-restored"}


def test_file_under_a_wrong_name_is_refused(tmp_path: Path) -> None:
    history = History(seed=6).run(3)
    history.files[3] = history.files[2]
    with pytest.raises(LTXFormatError, match="name says otherwise"):
        restore(memory_client(history), tmp_path / "o.db")


def test_growth_without_the_new_pages_is_an_error_not_zeros(tmp_path: Path) -> None:
    client = memory_client()
    client.write(0, 1, 1, File(commit=3).write(), 0)
    client.write(
        0, 2, 2, File(commit=9, min_txid=2, max_txid=2, pages=[(1, page_of(1, 512)), (9, b"x" * 512)]).write(), 0
    )
    with pytest.raises(LTXFormatError, match="grows from 3 to 9 pages, but the file") as caught:
        restore(client, tmp_path / "o.db")
    assert caught.value.min_txid == 2
    assert list(tmp_path.iterdir()) == []


def test_change_of_the_page_size_within_a_chain_is_refused(tmp_path: Path) -> None:
    client = memory_client()
    client.write(0, 1, 1, File(commit=3).write(), 0)
    client.write(0, 2, 2, File(page_size=1024, commit=3, min_txid=2, max_txid=2, pages=[(1, b"x" * 1024)]).write(), 0)
    with pytest.raises(LTXFormatError, match="page size is 1024"):
        restore(client, tmp_path / "o.db")


def test_a_file_with_all_pages_may_change_the_page_size(tmp_path: Path) -> None:
    client = memory_client()
    client.write(0, 1, 1, File(commit=9).write(), 0)
    pages = [(n, bytes([n]) * 1024) for n in (1, 2)]
    client.write(0, 2, 2, File(page_size=1024, commit=2, min_txid=2, max_txid=2, pages=pages).write(), 0)
    result = restore(client, tmp_path / "o.db", integrity_check=False)
    assert (result.txid, result.page_size, result.pages) == (2, 1024, 2)
    assert (tmp_path / "o.db").read_bytes()[1024:] == b"\2" * 1024


def test_gap_empty_replica_and_unknown_states_are_told(tmp_path: Path) -> None:
    history = History(seed=8).run(5)
    client = memory_client(history)
    client.delete([file for file in client.list_files(0) if file.min_txid == 3])
    with pytest.raises(TXIDGapError) as caught:
        restore(client, tmp_path / "o.db")
    assert (caught.value.min_txid, caught.value.max_txid) == (3, 3)
    with pytest.raises(TXIDNotFoundError, match="newest TXID is 0000000000000005"):
        restore(client, tmp_path / "o.db", txid=6)
    with pytest.raises(ReplicaEmptyError):
        restore(memory_client(), tmp_path / "o.db")
    with pytest.raises(StorageError, match="no such replica folder"):
        restore(tmp_path / "nowhere", tmp_path / "o.db")
    assert list(tmp_path.iterdir()) == []


def test_options_that_make_no_sense_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    for options in ({"txid": 1, "timestamp": "now"}, {"txid": 0}, {"txid": "xyz"}, {"timestamp": "soon"}):
        with pytest.raises(OptionError):
            restore(ORDERS / "replica", tmp_path / "o.db", **options)
    with pytest.raises(RestoreError, match="cannot write the database: No such file"):
        restore(ORDERS / "replica", tmp_path / "no-folder" / "o.db")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["", ".", "/", "a\0b", "a\ud800"], ids=ascii)
def test_what_names_no_file_is_refused(name: str) -> None:
    for force in (False, True):
        with pytest.raises(RestoreError, match="not the name of a file"):
            restore(ORDERS / "replica", name, force=force)
    with pytest.raises(RestoreError, match="not the name of a file"):
        is_missing(Path(name))


def test_integrity_check_keeps_an_unsound_database_from_appearing(tmp_path: Path) -> None:
    history = History(seed=9).run(2)
    with pytest.raises(RestoreError, match="integrity_check"):
        restore(memory_client(history), tmp_path / "o.db", integrity_check=True)
    assert list(tmp_path.iterdir()) == []


# --- replicas that change or fail meanwhile ---------------------------------------------------------------------------


@pytest.mark.plan("D05")
def test_files_that_compaction_replaces_during_the_restore_are_found_elsewhere(tmp_path: Path) -> None:
    history = History(seed=10).run(12)
    client = memory_client(history)
    image = history.images[12]
    pages = [(i + 1, image[i * 512 : i * 512 + 512]) for i in range(len(image) // 512)]
    snapshot = encode_file(Header(512, len(pages), 1, 12, 0), pages)

    def compact(done: int, total: int) -> None:
        if client.list_files(0):
            client.write(9, 1, 12, snapshot, 0)
            client.delete(client.list_files(0))

    result = restore(client, tmp_path / "o.db", progress=compact)
    assert (tmp_path / "o.db").read_bytes() == image
    assert result.files == 1


def test_levels_that_were_not_listed_at_the_same_moment_are_listed_again(tmp_path: Path) -> None:
    history = History(seed=14).run(12)
    client = memory_client(history)
    compact_level(client, 1)
    for _ in range(2):
        history.upload(client, history.step())
    client.delete([file for file in client.list_files(0) if file.max_txid <= 12])
    faulty, faults = remote(client)
    faults.add(Fault("hide_newest", levels=(1,), count=1))
    restore(faulty, tmp_path / "o.db")
    assert (tmp_path / "o.db").read_bytes() == history.images[14]
    assert faults.injected["hide_newest"] == 1


def test_damage_on_the_way_is_read_again(tmp_path: Path) -> None:
    history = History(seed=11).run(30)
    client, faults = remote(memory_client(history))
    faults.add(Fault("corrupt", count=2))
    restore(client, tmp_path / "o.db")
    assert (tmp_path / "o.db").read_bytes() == history.images[30]
    assert faults.injected["corrupt"] == 2


def test_damage_that_is_there_twice_is_not_read_a_third_time(tmp_path: Path) -> None:
    client, faults = remote(memory_client(History(seed=15).run(1)))
    faults.add(Fault("corrupt"))
    with pytest.raises(LTXFormatError):
        restore(client, tmp_path / "o.db")
    assert faults.injected["corrupt"] == 2


def test_transient_failures_and_short_reads_are_tried_again(tmp_path: Path) -> None:
    history = History(seed=12).run(40)
    client, faults = remote(memory_client(history))
    faults.add(
        Fault("timeout", probability=0.2), Fault("transient", probability=0.1), Fault("partial", probability=0.1)
    )
    restore(client, tmp_path / "o.db")
    assert (tmp_path / "o.db").read_bytes() == history.images[40]
    assert faults.injected["timeout"] > 0
    assert faults.injected["partial"] > 0


# --- how it reads -----------------------------------------------------------------------------------------------------


def large_client(megabytes: int) -> tuple[MemoryReplicaClient, bytes]:
    """A snapshot of pages that do not compress."""
    image = random.Random(1).randbytes(megabytes << 20)
    pages = ((i + 1, image[i * 65536 : (i + 1) * 65536]) for i in range(len(image) // 65536))
    client = memory_client()
    client.write(9, 1, 1, encode_file(Header(65536, len(image) // 65536, 1, 1, 0), pages), 0)
    return client, image


class _Meter:
    """A client around another that notes how many reads run at once, and how far reading is ahead of `done`."""

    block_size = 1 << 16

    def __init__(self, inner: MemoryReplicaClient, meet: int) -> None:
        self._inner = inner
        self._lock = threading.Lock()
        self._barrier = threading.Barrier(meet)
        self.asked = self.done = self.most_ahead = 0

    def __getattr__(self, name: str):
        return getattr(self._inner, name)

    def read(self, file, offset=0, size=None, *, timeout_s=None):
        with self._lock:
            self.asked += size
            self.most_ahead = max(self.most_ahead, self.asked - self.done)
            first = self.asked <= PARALLEL_READS * READ_BYTES
        if first:
            self._barrier.wait(20)
        return self._inner.read(file, offset, size, timeout_s=timeout_s)


def test_ranges_of_a_remote_file_are_read_in_parallel_but_only_so_far_ahead(tmp_path: Path) -> None:
    inner, image = large_client(40)
    client = _Meter(inner, meet=PARALLEL_READS)

    def on_progress(done: int, total: int) -> None:
        client.done = done

    restore(client, tmp_path / "o.db", progress=on_progress)
    assert (tmp_path / "o.db").read_bytes() == image
    assert client.most_ahead <= (PARALLEL_READS + 1) * READ_BYTES


def test_many_small_remote_files_are_read_in_parallel(tmp_path: Path) -> None:
    history = History(seed=13).run(64)
    client, faults = remote(memory_client(history))
    faults.add(Fault("slow", operations=("read",), delay_s=0.05))
    most_waiting = 0

    def on_progress(done: int, total: int) -> None:
        nonlocal most_waiting
        most_waiting = max(most_waiting, faults.waiting)

    restore(client, tmp_path / "o.db", progress=on_progress)
    assert (tmp_path / "o.db").read_bytes() == history.images[64]
    assert most_waiting >= PARALLEL_READS // 2
    assert faults.calls["read"] == 64


def test_progress_grows_to_the_total(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    result = restore(ORDERS / "replica", tmp_path / "o.db", progress=lambda done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert {total for _, total in seen} == {result.bytes_read}
    assert seen[-1] == (result.bytes_read, result.bytes_read)


def test_client_that_was_given_stays_open(tmp_path: Path) -> None:
    client = FileReplicaClient(ORDERS / "replica")
    restore(client, tmp_path / "o.db")
    assert len(client.list_files(0)) == 12
    client.close()


@pytest.mark.plan("K10")
def test_size_that_a_header_lies_about_claims_no_room(tmp_path: Path) -> None:
    client = memory_client()
    pages = [(pgno, random.Random(pgno).randbytes(65536)) for pgno in (1, 2, 3)]  # more than is decoded at once
    file = File(page_size=65536, commit=3, pages=pages).write()
    client.write(9, 1, 1, file[:12] + (1 << 22).to_bytes(4, "big") + file[16:], 0)  # 256 GiB
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, hard))  # lest the disk is filled where this fails
    try:
        with pytest.raises(LTXFormatError) as caught:
            restore(client, tmp_path / "o.db")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.level == 9
    assert list(tmp_path.iterdir()) == []


@pytest.mark.plan("K10")
def test_pages_that_compress_extremely_take_no_more_memory_than_others(tmp_path: Path) -> None:
    """Some 250 MB of zeros in a file of 1 MB: decoded at once they would not fit into what is allowed here."""
    pages = ((pgno, bytes(65536)) for pgno in range(1, 4001))
    client = FileReplicaClient(tmp_path / "replica")
    client.write(9, 1, 1, encode_file(Header(65536, 4000, 1, 1, 0), pages), 0)
    client.close()
    script = (
        "import sys; from pathlib import Path; from litevfs.operations.restore import restore\n"
        "def peak(): return next(int(line.split()[1]) for line in Path('/proc/self/status').read_text().splitlines()"
        " if 'VmHWM' in line)\n"
        "before = peak(); restore(sys.argv[1], sys.argv[2]); print(peak() - before)"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "replica"), str(tmp_path / "o.db")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
    assert (tmp_path / "o.db").stat().st_size == 4000 * 65536
    assert int(done.stdout) < 80_000  # kB
