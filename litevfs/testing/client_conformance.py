"""One suite of tests for every `ReplicaClient`: subclass it, give it the `replica` fixture, and pytest runs it.

    class TestMyClient(ReplicaClientConformance):
        @pytest.fixture
        def replica(self): return MyReplica(...)

The fixture's object (`ReplicaUnderTest`) makes clients of one empty replica, and reads its storage without them: no
test checks an answer of the client only against another answer of the client. The tests carry the marker `plan` with an
ID of this project's test plan; with --strict-markers, register that marker. For a storage that can
hang, override the fixture `hanging_client` too; `silent_endpoint` is a server for it.
"""

# ruff: noqa: D102 - a test's name says its claim

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import pytest

from litevfs.errors import StorageClosedError, StorageNotFoundError, StorageTimeoutError
from litevfs.ltx.names import MAX_TXID
from litevfs.replica_clients.base import (
    LEVELS,
    ListsFolders,
    ListsLevels,
    LTXFileInfo,
    ReadsNamed,
    ReadsPieces,
    ReplicaClient,
)
from litevfs.testing.conformance_base import (
    TIMESTAMP_MS,
    WAIT_S,
    ReplicaUnderTest,
    file_name,
    list_and_read,
    silent_endpoint,
    txids_of,
)
from litevfs.testing.conformance_objects import ObjectsConformance
from litevfs.testing.conformance_writing import WritingConformance

__all__ = ["ReplicaClientConformance", "ReplicaUnderTest", "silent_endpoint"]

_RANGES: list[tuple[int, int | None]] = [
    (0, None),
    (0, 100_000),
    (0, 1),
    (1, 1),
    (99_999, 1),
    (99_999, 2),
    (70_000, 30_000),
    (70_000, 30_001),
]
_RANGES += [(5, None), (99_999, None), (100_000, None), (100_000, 1), (10**9, 5), (2**63 - 1, 5), (0, 0), (50, 0)]
_RANGES += [(0, 2**40), (65_536, 65_536)]
"""Offsets and sizes within, across and past the end of a file of 100,000 bytes."""


class ReplicaClientConformance(WritingConformance, ObjectsConformance):
    """Tests of the promises of `litevfs.replica_clients.base`."""

    @pytest.fixture
    def client(self, replica: ReplicaUnderTest) -> Iterator[ReplicaClient]:
        """A client of the replica."""
        client = replica.new_client()
        yield client
        client.close()

    @pytest.fixture
    def hanging_client(self) -> Iterator[ReplicaClient]:
        """A client whose storage accepts every read and never answers; overridden by suites of clients that can
        hang."""
        pytest.skip("the storage of this client answers at once, or the suite has no fixture `hanging_client`")

    # --- listing ------------------------------------------------------------------------------------------------------

    def test_is_a_replica_client(self, client: ReplicaClient) -> None:
        assert isinstance(client, ReplicaClient)
        assert client.block_size >= 0

    @pytest.mark.plan("D10")
    def test_lists_by_min_then_max_txid(self, client: ReplicaClient, replica: ReplicaUnderTest) -> None:
        txids = [(1, 1), (1, 9), (2, 2), (2, 10), (16, 16), (255, 300)]
        for min_txid, max_txid in random.Random(7).sample(txids, len(txids)):
            replica.put(1, file_name(min_txid, max_txid), b"x")
        assert txids_of(client.list_files(1)) == txids

    @pytest.mark.plan("D10")
    def test_lists_from_a_min_txid_of_the_file_itself(self, client: ReplicaClient, replica: ReplicaUnderTest) -> None:
        for min_txid, max_txid in [(1, 20), (5, 5), (6, 6), (6, 9), (16, 17)]:
            replica.put(0, file_name(min_txid, max_txid), b"x")
        assert txids_of(client.list_files(0, 6)) == [(6, 6), (6, 9), (16, 17)]
        assert txids_of(client.list_files(0, 7)) == [(16, 17)]
        assert txids_of(client.list_files(0, 17)) == []

    def test_lists_one_level_only(self, client: ReplicaClient, replica: ReplicaUnderTest) -> None:
        for level in (0, 1, 9):
            replica.put(level, file_name(1, level + 1), b"x")
        for level in (0, 1, 9):
            assert [(file.level, file.max_txid) for file in client.list_files(level)] == [(level, level + 1)]

    def test_names_the_folders_around_it(self, client: ReplicaClient, replica: ReplicaUnderTest) -> None:
        if not isinstance(client, ListsFolders):
            pytest.skip("this client does not look around")
        assert client.list_folders(client.path) == []
        replica.put(0, file_name(1, 1), b"x")
        assert client.list_folders(client.path) in (["ltx"], ["0000"])
        above, _, name = client.path.rpartition("/")
        assert name in client.list_folders(above)
        assert client.list_folders(f"{client.path}-not-there") == []
        assert client.place_of(client.path) in (client.url, unquote(client.url.removeprefix("file://")))

    def test_a_level_that_does_not_exist_is_empty(self, client: ReplicaClient, replica: ReplicaUnderTest) -> None:
        assert client.list_files(3) == []
        replica.put(0, file_name(1, 1), b"x")
        assert client.list_files(3) == []

    @pytest.mark.plan("D10")
    def test_reads_a_file_by_its_name_that_was_not_listed(
        self, client: ReplicaClient, replica: ReplicaUnderTest
    ) -> None:
        if not isinstance(client, ReadsNamed):
            pytest.skip("this client reads what was listed")
        assert client.read_named(0, 7, 7, 1000) is None
        data = random.Random(4).randbytes(100_000)
        replica.put(0, file_name(7, 7), data)
        replica.put(3, file_name(1, 9), b"")
        (listed,) = client.list_files(0)
        for size in (1000, 99_999, 100_000, 100_001, 1 << 20):
            found = client.read_named(0, 7, 7, size)
            assert found is not None
            assert found[1] == data[:size]
            assert replace(found[0], modified_ms=listed.modified_ms) == listed
            assert client.read(found[0], 50_000, 10) == data[50_000:50_010]
        empty = client.read_named(3, 1, 9, 10)
        assert empty is not None
        assert (empty[0].size, empty[1]) == (0, b"")
        assert client.read_named(1, 7, 7, 1000) is None

    def test_lists_all_levels_from_one_on_in_one_request(
        self, client: ReplicaClient, replica: ReplicaUnderTest
    ) -> None:
        if not isinstance(client, ListsLevels):
            pytest.skip("this client lists level by level")
        for level, txids in ((0, (1, 2)), (0, (2, 2)), (0, (3, 4)), (1, (1, 4)), (8, (3, 9)), (9, (1, 4))):
            replica.put(level, file_name(*txids), b"x" * txids[1])
        replica.put(1, "notes.txt", b"no file of ours")
        files, are_all = client.list_from(0)
        assert files == [file for level in LEVELS for file in client.list_files(level)]
        assert [file.level for file in files] == [0, 0, 0, 1, 8, 9]
        assert are_all
        found, are_all = client.list_from(0, 2)
        assert (found, are_all) == (files[1:], True)  # of the levels above, all files
        found, are_all = client.list_from(1, 2)
        assert (found, are_all) == (files[4:], True)
        assert client.list_from(9, 2) == ([], True)

    def test_skips_names_it_does_not_know(self, client: ReplicaClient, replica: ReplicaUnderTest) -> None:
        good = file_name(2, 3)
        for name in [
            good,
            f"{good}.tmp",
            f"{good}.bak",
            "notes.txt",
            "2-3.ltx",
            "0000000000000000-0000000000000001.ltx",
            "0000000000000009-0000000000000008.ltx",
            "000000000000000A-000000000000000B.ltx",
            "0000000000000004-0000000000000005.LTX",
            "0000000000000006_0000000000000007.ltx",
            "a file & more+%41.ltx",
        ]:
            replica.put(0, name, b"x")
        assert [file.name for file in client.list_files(0)] == [good]

    @pytest.mark.plan("D14")
    def test_keeps_order_and_names_of_the_largest_txids(self, client: ReplicaClient, replica: ReplicaUnderTest) -> None:
        txids = [2**53 + 1, 2**63 - 1, 2**63, 2**63 + 1, MAX_TXID - 1, MAX_TXID]
        for txid in reversed(txids):
            client.write(0, txid, txid, f"{txid}".encode(), TIMESTAMP_MS)
        assert replica.names(0) == {file_name(txid, txid) for txid in txids}
        assert [file.min_txid for file in client.list_files(0)] == txids
        assert [file.min_txid for file in client.list_files(0, 2**63)] == txids[2:]
        assert [file.min_txid for file in client.list_files(0, MAX_TXID)] == [MAX_TXID]
        for file in client.list_files(0):
            assert client.read(file) == f"{file.max_txid}".encode()

    def test_etag_differs_when_the_content_does(self, client: ReplicaClient, replica: ReplicaUnderTest) -> None:
        replica.put(0, file_name(1, 1), b"one")
        (before,) = client.list_files(0)
        assert client.list_files(0) == [before]
        replica.put(0, file_name(1, 1), b"two")
        (after,) = client.list_files(0)
        assert after.etag != before.etag
        assert after.size == 3

    # --- reading ------------------------------------------------------------------------------------------------------

    @pytest.mark.plan("D10")
    @pytest.mark.parametrize(
        ("offset", "size"),
        _RANGES,
    )
    def test_reads_a_range_as_slicing_does(
        self, client: ReplicaClient, replica: ReplicaUnderTest, offset: int, size: int | None
    ) -> None:
        data = random.Random(1).randbytes(100_000)
        replica.put(0, file_name(1, 1), data)
        (file,) = client.list_files(0)
        assert file.size == len(data)
        assert client.read(file, offset, size) == data[offset : None if size is None else offset + size]

    def test_a_read_with_a_time_limit_reads_the_same(self, client: ReplicaClient, replica: ReplicaUnderTest) -> None:
        data = random.Random(2).randbytes(10_000)
        replica.put(0, file_name(1, 1), data)
        (file,) = client.list_files(0)
        assert client.read(file, timeout_s=WAIT_S) == data
        assert client.read(file, 7, 100, timeout_s=WAIT_S) == data[7:107]
        assert client.read(file, 9_990, 100, timeout_s=WAIT_S) == data[9_990:]
        with pytest.raises(StorageNotFoundError):
            client.read(LTXFileInfo(0, 7, 8, 100, TIMESTAMP_MS), 0, 10, timeout_s=WAIT_S)

    def test_a_read_whose_time_is_over_says_so(self, client: ReplicaClient, replica: ReplicaUnderTest) -> None:
        replica.put(0, file_name(1, 1), b"content")
        (file,) = client.list_files(0)
        for over_s in (0.0, -1.0):
            with pytest.raises(StorageTimeoutError) as caught:
                client.read(file, 0, 5, timeout_s=over_s)
            assert isinstance(caught.value, TimeoutError)
        assert client.read(file, 0, 5, timeout_s=WAIT_S) == b"conte"

    def test_a_read_of_a_storage_that_hangs_ends_in_time(self, hanging_client: ReplicaClient) -> None:
        began = time.monotonic()
        with pytest.raises(StorageTimeoutError) as caught:
            hanging_client.read(LTXFileInfo(0, 7, 8, 100, TIMESTAMP_MS), 0, 10, timeout_s=0.2)
        assert time.monotonic() - began < WAIT_S
        assert (caught.value.level, caught.value.min_txid) == (0, 7)

    def test_reading_a_missing_file_says_so(self, client: ReplicaClient, replica: ReplicaUnderTest) -> None:
        replica.put(0, file_name(1, 1), b"x")
        with pytest.raises(StorageNotFoundError) as caught:
            client.read(LTXFileInfo(0, 7, 8, 100, TIMESTAMP_MS), 0, 10)
        assert isinstance(caught.value, FileNotFoundError)
        assert (caught.value.level, caught.value.min_txid, caught.value.max_txid) == (0, 7, 8)
        assert file_name(7, 8) in str(caught.value)

    def test_reads_from_many_threads_at_once(self, client: ReplicaClient, replica: ReplicaUnderTest) -> None:
        contents = {txid: random.Random(txid).randbytes(20_000) for txid in range(1, 9)}
        for txid, data in contents.items():
            replica.put(0, file_name(txid, txid), data)
        files = client.list_files(0)

        def read(number: int) -> bool:
            file, offset = files[number % len(files)], (number * 977) % 20_000
            return client.read(file, offset, 500) == contents[file.min_txid][offset : offset + 500]

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(read, range(400)))

    # --- deleting -----------------------------------------------------------------------------------------------------

    @pytest.mark.plan("D08")
    def test_deletes_files_listed_before_and_after(self, client: ReplicaClient, replica: ReplicaUnderTest) -> None:
        for txid in range(1, 6):
            client.write(0, txid, txid, b"x", TIMESTAMP_MS)
        before = client.list_files(0)
        client.read(before[1])
        client.delete(before[:2])
        assert replica.names(0) == {file_name(txid, txid) for txid in (3, 4, 5)}
        assert client.list_files(0) == before[2:]
        for file in before[:2]:
            with pytest.raises(StorageNotFoundError):
                client.read(file)
        client.delete(iter(client.list_files(0)))
        assert replica.names(0) == set()
        assert client.list_files(0) == []

    def test_deleting_what_is_not_there_is_no_error(self, client: ReplicaClient, replica: ReplicaUnderTest) -> None:
        file = client.write(0, 1, 1, b"x", TIMESTAMP_MS)
        client.delete([])
        client.delete([LTXFileInfo(0, 8, 8, 1, 0), file, file, LTXFileInfo(5, 9, 9, 1, 0)])
        client.delete([file])
        assert replica.names(0) == set()

    def test_a_read_in_pieces_gives_the_bytes_of_a_read(self, client: ReplicaClient, replica: ReplicaUnderTest) -> None:
        if not isinstance(client, ReadsPieces):
            pytest.skip("this client reads all bytes at once")
        data = random.Random(5).randbytes(3_000_000)
        replica.put(0, file_name(1, 1), data)
        (file,) = client.list_files(0)
        for offset, size in ((0, len(data)), (0, 1), (70_000, 2_000_000), (2_999_999, 1), (2_900_000, 200_000)):
            pieces: list[bytes] = []
            expected = data[offset : offset + size]
            assert client.read_pieces(file, offset, size, pieces.append) == len(expected)
            assert b"".join(pieces) == expected
            assert client.read_pieces(file, offset, size, pieces.append, timeout_s=WAIT_S) == len(expected)
        assert client.read_pieces(file, 0, 0, pieces.append) == 0
        with pytest.raises(StorageTimeoutError):
            client.read_pieces(file, 0, 10, pieces.append, timeout_s=0)
        with pytest.raises(StorageNotFoundError):
            client.read_pieces(replace(file, min_txid=8, max_txid=8), 0, 10, pieces.append)
        client.close()
        with pytest.raises(StorageClosedError):
            client.read_pieces(file, 0, 10, pieces.append)

    # --- life ---------------------------------------------------------------------------------------------------------

    def test_opening_the_url_again_gives_an_equal_client(
        self, client: ReplicaClient, replica: ReplicaUnderTest
    ) -> None:
        from litevfs.replica_clients.urls import canonical_url, open_replica_client

        replica.put(0, file_name(1, 1), b"same")
        again = open_replica_client(client.url)
        try:
            assert type(again) is type(client)
            assert again.url == client.url == canonical_url(client.url)
            assert list_and_read(again) == [b"same"]
        finally:
            again.close()

    def test_after_close_every_call_says_so(self, replica: ReplicaUnderTest) -> None:
        client, other = replica.new_client(), replica.new_client()
        file = client.write(0, 1, 1, b"x", TIMESTAMP_MS)
        assert client.read(file) == b"x"
        client.close()
        client.close()
        calls: list[Callable[[], object]] = [
            lambda: client.list_files(0),
            lambda: client.read(file),
            lambda: client.read(file, 0, 0),
            lambda: client.write(0, 2, 2, b"x", TIMESTAMP_MS),
            lambda: client.delete([file]),
        ]
        for call in calls:
            with pytest.raises(StorageClosedError):
                call()
        assert list_and_read(other) == [b"x"]
        other.close()

    def test_unused_client_closes(self, replica: ReplicaUnderTest) -> None:
        replica.new_client().close()

    @pytest.mark.plan("D07")
    def test_rounds_of_open_read_close_leak_no_descriptor(self, replica: ReplicaUnderTest) -> None:
        replica.put(0, file_name(1, 1), b"x" * 1000)

        def open_read_close() -> None:
            client = replica.new_client()
            assert client.read(client.list_files(0)[0], 5, 10) == b"x" * 10
            client.close()

        open_read_close()
        before = _descriptor_count()
        for _ in range(100):
            open_read_close()
        assert _descriptor_count() <= before


def _descriptor_count() -> int:
    folder = Path("/proc/self/fd")
    return sum(1 for _ in folder.iterdir()) if folder.exists() else 0
