from __future__ import annotations

import json
import os
import random
import struct
import subprocess
import sys
import tempfile
import tracemalloc
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lz4.block import LZ4BlockError

from litevfs.errors import (
    LTXFormatError,
    OptionError,
    ReplicaEmptyError,
    ReplicatorError,
    StorageNotFoundError,
    TXIDGapError,
)
from litevfs.ltx import encode_file
from litevfs.ltx.format import Header
from litevfs.maintenance.compaction import compact_level, snapshot
from litevfs.maintenance.retention import enforce_level_0_retention
from litevfs.operations.copy import copy_replica
from litevfs.operations.restore import restore
from litevfs.replica_clients.file import FileReplicaClient
from litevfs.replica_clients.memory import MemoryReplicaClient, MemoryStore
from litevfs.testing.faulty import Fault, Faults, FaultyReplicaClient, Request
from tests.histories import START_MS, History, content, image_after, read_pages
from tests.support import in_threads

ROOT = Path(__file__).parents[2]
ORDERS = ROOT / "tests" / "fixtures" / "orders"
FUTURE_MS = START_MS * 2


def memory_client(history: History | None = None) -> MemoryReplicaClient:
    client = MemoryReplicaClient(MemoryStore("compaction"))
    if history is not None:
        history.upload_all(client)
    return client


def names(client: MemoryReplicaClient, level: int) -> list[tuple[int, int]]:
    return [(file.min_txid, file.max_txid) for file in client.list_files(level)]


def check_every_file(client: MemoryReplicaClient, history: History) -> None:
    """Each file leads from the state before its first TXID to the state of its last, by the tests' own decoder."""
    for (level, first, last), data in content(client).items():
        assert image_after(history.images[first - 1], data) == history.images[last], (level, first, last)


# --- levels -----------------------------------------------------------------------------------------------------------


def test_compaction_makes_one_file_of_all_that_is_new_below() -> None:
    history = History(seed=1).run(10)
    client = memory_client(history)
    first = compact_level(client, 1)
    assert first is not None
    assert (first.level, first.min_txid, first.max_txid) == (1, 1, 10)
    assert compact_level(client, 1) is None
    for _ in range(4):
        history.upload(client, history.step())
    second = compact_level(client, 1)
    assert second is not None
    assert (second.min_txid, second.max_txid, second.modified_ms) == (11, 14, history.timestamp_ms(14))
    third = compact_level(client, 2)
    assert third is not None
    assert (third.level, third.min_txid, third.max_txid) == (2, 1, 14)
    assert len(names(client, 0)) == 14  # nothing was deleted
    check_every_file(client, history)


@settings(max_examples=40)
@given(st.integers(0, 2**32), st.lists(st.sampled_from([0, 0, 0, 0, 1, 1, 2, 3, 9]), min_size=4, max_size=40))
def test_every_compacted_file_does_what_its_transactions_did(seed: int, actions: list[int]) -> None:
    history = History(seed=seed)
    client = memory_client()
    history.upload(client, history.step())
    for level in actions:
        if level == 0:
            history.upload(client, history.step())
        elif level == 9:
            snapshot(client)
        else:
            compact_level(client, level)
    check_every_file(client, history)


def test_header_of_a_compacted_file_has_the_time_of_its_last_transaction_and_no_wal_place() -> None:
    history = History(seed=2).run(3)
    client = memory_client(history)
    file = compact_level(client, 1)
    assert file is not None
    header = Header.unpack(client.read(file))
    assert header.timestamp_ms == history.timestamp_ms(3)
    assert (header.wal_offset, header.wal_size, header.wal_salt1, header.node_id) == (0, 0, 0, 0)


def test_levels_may_be_left_out_but_only_go_up() -> None:
    client = memory_client(History(seed=3).run(3))
    assert compact_level(client, 4, source_level=0) is not None
    assert names(client, 4) == [(1, 3)]
    for level, source in ((0, None), (9, None), (2, 2), (2, 3), (1, -1)):
        with pytest.raises(OptionError):
            compact_level(client, level, source_level=source)


def test_known_file_spares_the_listing_of_what_came_before() -> None:
    history = History(seed=4).run(4)
    client = memory_client(history)
    faults = Faults("faulty://compaction")
    known = compact_level(client, 1)
    history.upload(client, history.step())
    assert known is not None
    faulty = FaultyReplicaClient(client, faults)
    compact_level(faulty, 1, known=known)
    assert [(r.level, r.min_txid) for r in faults.requests if r.operation == "list"] == [(1, 1), (0, 5)]
    faults.reset_counters()
    later = client.list_files(1)[-1]
    compact_level(faulty, 1, known=later)
    assert [(r.level, r.min_txid) for r in faults.requests if r.operation == "list"] == [(1, 5), (0, 6)]
    client.delete([later])  # what is known need not be there any more
    file = compact_level(faulty, 1, known=later)
    assert file is not None
    assert (file.min_txid, file.max_txid) == (5, 5)


# --- snapshots --------------------------------------------------------------------------------------------------------


def test_snapshot_is_the_whole_newest_state_in_one_file() -> None:
    history = History(seed=5).run(9)
    client = memory_client(history)
    file = snapshot(client)
    assert file is not None
    assert (file.level, file.min_txid, file.max_txid, file.modified_ms) == (9, 1, 9, history.timestamp_ms(9))
    assert image_after(b"", client.read(file)) == history.images[9]
    assert snapshot(client) is None
    history.upload(client, history.step())
    client.delete([f for f in client.list_files(0) if f.max_txid < 10])
    later = snapshot(client)
    assert later is not None
    assert image_after(b"", client.read(later)) == history.images[10]


def test_snapshot_of_an_empty_or_broken_replica_is_refused() -> None:
    with pytest.raises(ReplicaEmptyError):
        snapshot(memory_client())
    client = memory_client(History(seed=6).run(5))
    client.delete([client.list_files(0)[2]])
    with pytest.raises(TXIDGapError):
        snapshot(client)
    assert names(client, 9) == []


# --- holes between levels ---------------------------------------------------------------------------------------------


def test_missing_file_stops_compaction_before_it() -> None:
    history = History(seed=7).run(8)
    client = memory_client(history)
    client.delete([file for file in client.list_files(0) if file.min_txid == 5])
    compact_level(client, 1)
    assert names(client, 1) == [(1, 4)]
    with pytest.raises(TXIDGapError) as caught:
        compact_level(client, 1)
    assert (caught.value.min_txid, caught.value.max_txid) == (5, 5)
    history.upload(client, 5)  # it was only late
    compact_level(client, 1)
    assert names(client, 1) == [(1, 4), (5, 8)]


def test_hole_that_a_snapshot_bridges_is_left_out() -> None:
    history = History(seed=8).run(8)
    client = memory_client(history)
    compact_level(client, 1)
    for _ in range(4):
        history.upload(client, history.step())
    snapshot(client)
    client.delete([file for file in client.list_files(0) if file.max_txid < 11])
    compact_level(client, 1)
    assert names(client, 1) == [(1, 8), (11, 12)]
    client.delete(client.list_files(1))
    compact_level(client, 1)
    assert names(client, 1) == [(11, 12)]


def test_hole_that_a_snapshot_just_fills_is_left_out() -> None:
    history = History(seed=8).run(8)
    client = memory_client(history)
    snapshot(client)
    for _ in range(2):
        history.upload(client, history.step())
    client.delete([file for file in client.list_files(0) if file.max_txid < 9])
    compact_level(client, 1)
    assert names(client, 1) == [(9, 10)]


def test_files_that_overlap_what_is_compacted_are_used() -> None:
    history = History(seed=9).run(6)
    client = memory_client(history)
    compact_level(client, 1)
    compact_level(client, 2)
    for _ in range(3):
        history.upload(client, history.step())
    client.delete(client.list_files(1))
    compact_level(client, 1)  # 1-9, where level 2 has 1-6
    assert names(client, 1) == [(1, 9)]
    compact_level(client, 2)
    history.upload(client, history.step())
    compact_level(client, 1)
    compact_level(client, 2)
    assert max(last for _, last in names(client, 2)) == 10
    check_every_file(client, history)


# --- damage, faults, two at once --------------------------------------------------------------------------------------


def with_another_page(data: bytes) -> bytes:
    """The file with one bit flipped so that all its frames still decode, to something else."""
    sound = read_pages(data)
    for place in range(110, len(data)):
        damaged = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        try:
            if read_pages(damaged)[2].keys() == sound[2].keys() and read_pages(damaged) != sound:
                return damaged
        except (LZ4BlockError, AssertionError, struct.error):
            pass
    raise AssertionError("no bit does that")


def test_damage_is_not_carried_into_a_sound_file() -> None:
    """A flipped bit in a literal of LZ4 gives another page, and no error but that of the file's checksum."""
    history = History(seed=10).run(5)
    history.files[3] = with_another_page(history.files[3])
    client = memory_client(history)
    with pytest.raises(LTXFormatError) as caught:
        compact_level(client, 1)
    assert (caught.value.level, caught.value.min_txid) == (0, 3)
    with pytest.raises(LTXFormatError):
        snapshot(client)
    assert names(client, 1) == names(client, 9) == []


def peak_bytes_of_snapshot(folder: Path, pages: int) -> int:
    """What Python allocates at most while two files that both hold all pages become one."""
    client = FileReplicaClient(folder)
    for txid in (1, 2):
        header = Header(page_size=512, commit=pages, min_txid=txid, max_txid=txid, timestamp_ms=START_MS)
        client.write(0, txid, txid, encode_file(header, ((n, bytes(512)) for n in range(1, pages + 1))), START_MS)
    tracemalloc.start()
    try:
        snapshot(client)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.soak
def test_memory_of_compaction_does_not_grow_with_the_database(tmp_path: Path) -> None:
    small = peak_bytes_of_snapshot(tmp_path / "small", 80_000)
    assert peak_bytes_of_snapshot(tmp_path / "large", 320_000) < small + 500_000  # its page index has 2,160,000 more


def peak_bytes_of_compaction(folder: Path, count: int) -> int:
    """What Python allocates at most while so many small files become one."""
    client = FileReplicaClient(folder)
    page = random.Random(1).randbytes(4096)
    for txid in range(1, count + 1):
        header = Header(page_size=4096, commit=1, min_txid=txid, max_txid=txid, timestamp_ms=START_MS)
        client.write(0, txid, txid, encode_file(header, [(1, page)]), START_MS)
    tracemalloc.start()
    try:
        assert compact_level(client, 1) is not None
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.slow
def test_memory_of_compaction_does_not_grow_with_the_number_of_files(tmp_path: Path) -> None:
    """As after an outage, or where nothing was compacted for a day."""
    few = peak_bytes_of_compaction(tmp_path / "few", 128)
    assert peak_bytes_of_compaction(tmp_path / "many", 384) < few + 2_000_000  # a buffer for each takes 70 MB more


def test_more_files_than_are_merged_at_once_become_one_that_does_the_same() -> None:
    history = History(seed=24).run(150)
    client = memory_client(history)
    compact_level(client, 1)
    assert names(client, 1) == [(1, 150)]
    check_every_file(client, history)


def test_damage_on_the_way_and_transient_failures_are_overcome() -> None:
    history = History(seed=11).run(20)
    client = memory_client(history)
    faults = Faults("faulty://compaction", seed=1, block_size=1 << 16)
    faults.add(Fault("transient", probability=0.2), Fault("corrupt", count=1))
    compact_level(FaultyReplicaClient(client, faults), 1)
    assert names(client, 1) == [(1, 20)]
    assert faults.injected["corrupt"] == 1
    check_every_file(client, history)


def test_a_gap_in_one_listing_is_looked_at_again() -> None:
    client, faults = memory_client(History(seed=14).run(4)), Faults("faulty://compaction")
    # Twice: a compaction lists the level below again when nothing of it leads on.
    faults.add(Fault("hide", levels=(0,), txids=(1, 1), count=2))
    compact_level(FaultyReplicaClient(client, faults), 1)
    assert faults.injected["hide"] == 2
    assert names(client, 1) == [(1, 4)]


@pytest.mark.plan("D05")
def test_inputs_that_vanish_are_looked_for_again() -> None:
    history = History(seed=12).run(9)

    client, faults = memory_client(history), Faults("faulty://compaction")

    def be_faster(request: Request) -> None:
        """Another process makes a snapshot, and deletes what it holds."""
        snapshot(client)
        client.delete([f for f in client.list_files(0) if f.max_txid < 9])

    faults.add(Fault("act", operations=("read",), txids=(5, 5), count=1, action=be_faster))
    compact_level(FaultyReplicaClient(client, faults), 1)
    assert names(client, 1) == [(9, 9)]
    check_every_file(client, history)


def test_files_that_stay_unreadable_end_the_attempt_with_their_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("litevfs.concurrency.retry.Backoff.base_s", 0.001)
    client = memory_client(History(seed=13).run(3))
    faults = Faults("faulty://compaction")
    faults.add(Fault("not_found", operations=("read",)))
    with pytest.raises(StorageNotFoundError):
        compact_level(FaultyReplicaClient(client, faults), 1)
    assert names(client, 1) == []


def test_two_compactors_and_a_writer_at_once_leave_a_sound_replica() -> None:
    history = History(seed=14).run(60)
    client = memory_client()
    history.upload(client, 1)

    def work(number: int) -> None:
        own = MemoryReplicaClient(client.store)
        if number == 0:
            for txid in range(2, 61):
                history.upload(own, txid)
            return
        random_ = random.Random(number)
        for _ in range(40):
            if random_.random() < 0.2:
                snapshot(own)
            else:
                compact_level(own, random_.choice([1, 1, 2]))

    in_threads(4, work)
    compact_level(client, 1)
    compact_level(client, 2)
    check_every_file(client, history)
    assert max(last for _, last in names(client, 2)) == 60
    client.delete([file for level in (0, 1, 9) for file in client.list_files(level)])
    replica = snapshot(client)  # level 2 alone is complete
    assert replica is not None
    assert image_after(b"", client.read(replica)) == history.images[60]


def test_two_compactors_write_the_same_bytes() -> None:
    history = History(seed=15).run(10)
    one, other = memory_client(history), memory_client(history)
    for client in (one, other):
        compact_level(client, 1)
        snapshot(client)
    assert content(one) == content(other)
    compacted_first = memory_client(history)
    compact_level(compacted_first, 2, source_level=0)
    snapshot(compacted_first)  # made from one file instead of ten
    assert content(compacted_first)[(9, 1, 10)] == content(one)[(9, 1, 10)]


# --- resources --------------------------------------------------------------------------------------------------------


def test_missing_folder_for_temporary_files_is_a_clear_error(tmp_path: Path) -> None:
    client = memory_client(History(seed=16).run(2))
    with pytest.raises(ReplicatorError, match="cannot write temporary files"):
        compact_level(client, 1, temp_folder=str(tmp_path / "missing"))
    compact_level(client, 1, temp_folder=str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def peak_growth_kb(folder: Path, pages: int) -> int:
    """How much the peak memory of a process grows by taking a snapshot of a database of so many pages."""
    client = FileReplicaClient(folder)
    random_ = random.Random(1)
    content_of = [random_.randbytes(2048) + bytes(2048) for _ in range(100)]
    snapshot_pages = ((pgno, content_of[pgno % 100]) for pgno in range(1, pages + 1))
    client.write(9, 1, 1, encode_file(Header(4096, pages, 1, 1, 1), snapshot_pages), 1)
    client.write(0, 2, 2, encode_file(Header(4096, pages, 2, 2, 2), [(1, content_of[7])]), 2)
    client.close()
    script = (
        "import sys; from pathlib import Path; from litevfs.maintenance.compaction import snapshot\n"
        "from litevfs.replica_clients.file import FileReplicaClient\n"
        "def peak(): return next(int(line.split()[1]) for line in Path('/proc/self/status').read_text().splitlines()"
        " if 'VmHWM' in line)\n"
        "client = FileReplicaClient(sys.argv[1]); before = peak(); snapshot(client); print(peak() - before)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
    return int(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak memory from /proc")
def test_memory_of_a_snapshot_hardly_grows_with_the_database(tmp_path: Path) -> None:
    small, large = peak_growth_kb(tmp_path / "small", 2_000), peak_growth_kb(tmp_path / "large", 20_000)
    more_pages, database_kb = 18_000, 18_000 * 4
    print(f"peak: {small} kB for 8 MB, {large} kB for 80 MB: {(large - small) * 1000 / more_pages:.0f} bytes a page")
    assert large - small < database_kb / 10


# --- Litestream's own VFS reads what we make of its files -------------------------------------------------------------

PEER = """
import json, os, sys
import apsw, litestream_vfs
loader = apsw.Connection(":memory:")
loader.enable_load_extension(True)
loader.load_extension(os.path.splitext(litestream_vfs.loadable_path())[0])
replica = apsw.Connection("file:app.db", vfs="litestream", flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI)
answers = {name: [row[0] for row in replica.execute(sql)] for name, sql in json.loads(sys.argv[1]).items()}
answers["txid"] = [row[0] for row in replica.execute("PRAGMA litestream_txid")]
print(json.dumps(answers), flush=True)
os._exit(0)
"""


def peer_answers(replica: Path, queries: dict[str, str]) -> dict[str, list[object]]:
    environment = {name: value for name, value in os.environ.items() if name != "AWS_CA_BUNDLE"}
    environment["LITESTREAM_REPLICA_URL"] = f"file://{replica}"
    command = [sys.executable, "-c", PEER, json.dumps(queries)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.peer
@pytest.mark.skipif(find_spec("litestream_vfs") is None, reason="litestream-vfs is not installed")
def test_litestream_reads_its_own_replica_after_our_copy_compaction_snapshot_and_retention(tmp_path: Path) -> None:
    expected_file = json.loads((ORDERS / "expected.json").read_text())
    expected = {
        name: rows if isinstance(rows, list) else [rows]
        for name, rows in expected_file["expected_by_txid"][f"{12:016x}"].items()
    } | {"txid": [f"{12:016x}"]}
    replica = tmp_path / "replica"
    copy_replica(ORDERS / "replica", replica)
    client = FileReplicaClient(replica)
    queries = expected_file["queries"]
    assert peer_answers(replica, queries) == expected
    for level in (1, 2, 3):
        assert compact_level(client, level) is not None
    assert peer_answers(replica, queries) == expected
    assert snapshot(client) is not None
    assert peer_answers(replica, queries) == expected
    assert len(enforce_level_0_retention(client, FUTURE_MS)) == 11
    assert peer_answers(replica, queries) == expected
    client.delete([file for level in range(4) for file in client.list_files(level)])
    assert peer_answers(replica, queries) == expected  # from the snapshot alone
    client.close()
    restore(ORDERS / "replica", tmp_path / "original.db")
    restore(replica, tmp_path / "snapshot.db")
    assert (tmp_path / "snapshot.db").read_bytes() == (tmp_path / "original.db").read_bytes()


# --- damage that a snapshot makes up for ------------------------------------------------------------------------------


def damaged(client: MemoryReplicaClient, txid: int) -> None:
    stored = client.store.files[f"0/{txid:016x}-{txid:016x}.ltx"]
    client.write(0, txid, txid, stored.data[:150] + bytes([stored.data[150] ^ 1]) + stored.data[151:], 1)


def test_compaction_goes_on_after_the_snapshot_that_makes_up_for_a_damaged_file() -> None:
    history = History(seed=21).run(6)
    client = memory_client(history)
    with_snapshot = memory_client(history)
    snapshot(with_snapshot)
    client.store.files.update({key: file for key, file in with_snapshot.store.files.items() if key.startswith("9/")})
    damaged(client, 3)
    assert compact_level(client, 1) is None  # nothing is new since the snapshot
    for _ in range(2):
        history.upload(client, history.step())
    first = compact_level(client, 1)
    assert first is not None
    assert (first.min_txid, first.max_txid) == (7, 8)
    history.upload(client, history.step())
    assert compact_level(client, 1) is not None
    assert names(client, 1) == [(7, 8), (9, 9)]
    second = compact_level(client, 2)
    assert second is not None
    assert (second.min_txid, second.max_txid) == (7, 9)


def test_compaction_stops_at_a_damaged_file_that_no_snapshot_makes_up_for() -> None:
    history = History(seed=22).run(3)
    client = memory_client(history)
    snapshot(client)
    for _ in range(3):
        history.upload(client, history.step())
    damaged(client, 5)
    with pytest.raises(LTXFormatError) as caught:
        compact_level(client, 1)
    assert (caught.value.level, caught.value.min_txid) == (0, 5)


def test_a_damaged_file_after_a_snapshot_and_a_hole_is_not_taken_for_nothing_new() -> None:
    history = History(seed=23).run(3)
    client = memory_client(history)
    snapshot(client)
    for _ in range(3):
        history.upload(client, history.step())
    compact_level(client, 1)
    history.upload(client, history.step())
    client.delete([file for file in client.list_files(0) if file.max_txid < 7])
    damaged(client, 7)
    with pytest.raises(LTXFormatError) as caught:
        compact_level(client, 1)
    assert (caught.value.level, caught.value.min_txid) == (0, 7)


@pytest.mark.slow
@pytest.mark.parametrize("folder", [None, "given"])
def test_full_temporary_space_is_an_error_that_names_the_folder_and_what_helps(
    tmp_path: Path, folder: str | None
) -> None:
    program = f"""
import resource, sys
from litevfs.errors import ReplicatorError
from litevfs.replica_clients.file import FileReplicaClient
from litevfs.maintenance.compaction import compact_level
resource.setrlimit(resource.RLIMIT_FSIZE, (200, resource.RLIM_INFINITY))
try:
    compact_level(FileReplicaClient(sys.argv[1]), 1, temp_folder={str(tmp_path) if folder else None!r})
except ReplicatorError as error:
    print(error.key == {str(tmp_path) if folder else tempfile.gettempdir()!r}, error)
"""
    client = FileReplicaClient(tmp_path / "replica")
    History(seed=23).run(5).upload_all(client)
    client.close()
    result = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "replica"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.startswith("True cannot write temporary files: File too large (/")
    assert "TMPDIR" in result.stdout
