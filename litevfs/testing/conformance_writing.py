"""The conformance suite's part about writing: whole files or nothing, while other clients read and write."""

# ruff: noqa: D102 - a test's name says its claim

from __future__ import annotations

import io
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from litevfs.errors import StorageFileExistsError, StorageNotFoundError, TransientStorageError
from litevfs.replica_clients.base import LTXFileInfo, ReplicaClient
from litevfs.testing.conformance_base import TIMESTAMP_MS, WAIT_S, ReplicaUnderTest, file_name, list_and_read


class WritingConformance:
    """Tests of the promises of `ReplicaClient.write`. See `client_conformance` for how to run it."""

    slow_upload_bytes = 300_000
    """Size of an upload that blocks half-way: enough that the client has sent something by then."""

    @pytest.mark.plan("D10")
    @pytest.mark.parametrize("as_stream", [False, True])
    def test_writes_bytes_and_streams(
        self, client: ReplicaClient, replica: ReplicaUnderTest, *, as_stream: bool
    ) -> None:
        data = random.Random(2).randbytes(200_000)
        written = client.write(2, 3, 9, _DripFeed(data) if as_stream else data, TIMESTAMP_MS)
        assert replica.get(2, file_name(3, 9)) == data
        assert replica.names(2) == {file_name(3, 9)}
        assert (written.level, written.min_txid, written.max_txid, written.size) == (2, 3, 9, 200_000)
        (listed,) = client.list_files(2)
        assert listed.etag == written.etag
        assert client.read(written) == data

    def test_keeps_the_timestamp(self, client: ReplicaClient, replica: ReplicaUnderTest) -> None:
        for txid, timestamp_ms in enumerate([TIMESTAMP_MS, 0, 1_767_323_045_000, 1_767_323_045_670], start=1):
            client.write(0, txid, txid, b"x", timestamp_ms)
            assert replica.timestamp_ms(0, file_name(txid, txid)) == timestamp_ms

    def test_replaces_an_existing_file(self, client: ReplicaClient, replica: ReplicaUnderTest) -> None:
        client.write(0, 1, 1, b"long content", TIMESTAMP_MS)
        client.write(0, 1, 1, b"short", TIMESTAMP_MS + 1)
        assert replica.get(0, file_name(1, 1)) == b"short"
        (file,) = client.list_files(0)
        assert client.read(file) == b"short"

    @pytest.mark.parametrize("large", [False, True])
    def test_an_exclusive_write_replaces_nothing(
        self, client: ReplicaClient, replica: ReplicaUnderTest, *, large: bool
    ) -> None:
        data = b"new" * (self.slow_upload_bytes if large else 1)
        written = client.write(0, 1, 1, io.BytesIO(data), TIMESTAMP_MS, exclusive=True)
        assert replica.get(0, file_name(1, 1)) == data
        assert client.list_files(0)[0].etag == written.etag
        replica.put(0, file_name(2, 3), b"of another writer")
        with pytest.raises(StorageFileExistsError) as caught:
            client.write(0, 2, 3, io.BytesIO(data), TIMESTAMP_MS, exclusive=True)
        assert isinstance(caught.value, FileExistsError)
        assert file_name(2, 3) in str(caught.value)
        assert replica.names(0) == {file_name(1, 1), file_name(2, 3)}
        assert replica.get(0, file_name(2, 3)) == b"of another writer"

    def test_of_writers_at_once_that_are_exclusive_one_succeeds(
        self, client: ReplicaClient, replica: ReplicaUnderTest
    ) -> None:
        ready = threading.Barrier(6)

        def write(txid: int, number: int) -> bool:
            ready.wait(WAIT_S)
            while True:
                try:
                    client.write(0, txid, txid, bytes([number]) * 1000, TIMESTAMP_MS, exclusive=True)
                except StorageFileExistsError:
                    return False
                except TransientStorageError:  # a server may answer so before it has decided
                    continue
                return True

        with ThreadPoolExecutor(6) as pool:
            for txid in range(1, 6):  # where they meet differs
                succeeded = list(pool.map(write, [txid] * 6, range(6)))
                assert succeeded.count(True) == 1
                assert replica.get(0, file_name(txid, txid)) == bytes([succeeded.index(True)]) * 1000

    def test_never_reads_new_content_as_the_file_listed_before(
        self, client: ReplicaClient, replica: ReplicaUnderTest
    ) -> None:
        replica.put(0, file_name(1, 1), b"old old old")
        (listed,) = client.list_files(0)
        replica.put(0, file_name(1, 1), b"new new new")
        with pytest.raises(StorageNotFoundError):
            client.read(listed, 0, 3)
        (again,) = client.list_files(0)
        assert client.read(again, 0, 3) == b"new"

    @pytest.mark.plan("D04")
    @pytest.mark.parametrize("replacing", [False, True])
    def test_slow_upload_is_seen_whole_or_not_at_all(
        self, client: ReplicaClient, replica: ReplicaUnderTest, *, replacing: bool
    ) -> None:
        new = random.Random(3).randbytes(self.slow_upload_bytes)
        if replacing:
            replica.put(0, file_name(1, 1), b"the old content")
        stream = _BlockingStream(new)
        with ThreadPoolExecutor(4) as pool:
            try:
                upload = pool.submit(client.write, 0, 1, 1, stream, TIMESTAMP_MS)
                assert stream.half_read.wait(WAIT_S)
                seen = [one.result() for one in [pool.submit(list_and_read, client) for _ in range(20)]]
                assert seen == [[b"the old content"] if replacing else []] * 20
                assert not upload.done()
            finally:
                stream.go_on.set()
            written = upload.result(WAIT_S)
        assert list_and_read(client) == [new]
        assert written.size == len(new)

    def test_concurrent_reads_see_one_version_while_a_file_is_replaced(
        self, client: ReplicaClient, replica: ReplicaUnderTest
    ) -> None:
        versions = [number.to_bytes(1, "big") * 50_000 for number in range(30)]
        client.write(0, 1, 1, versions[0], TIMESTAMP_MS)
        readers = _Readers(client)
        with ThreadPoolExecutor(3) as pool:
            running = [pool.submit(readers.read_until_done) for _ in range(3)]
            try:
                for number, version in enumerate(versions[1:], start=1):
                    if not readers.wait_for_one_more():
                        break
                    client.write(0, 1, 1, version, TIMESTAMP_MS + number)
            finally:
                readers.done.set()
            for reader in running:
                seen = reader.result(WAIT_S)
                assert set(seen) <= set(versions)
                assert seen == sorted(seen)  # no reader goes back to an earlier version
        assert list_and_read(client) == [versions[-1]], "no reader could read the file while it was being replaced"

    def test_failed_upload_leaves_nothing(self, client: ReplicaClient, replica: ReplicaUnderTest) -> None:
        client.write(0, 1, 1, b"before", TIMESTAMP_MS)
        for txid in (1, 2):
            with pytest.raises(ZeroDivisionError):
                client.write(0, txid, txid, _FailingStream(b"y" * self.slow_upload_bytes), TIMESTAMP_MS)
        assert replica.names(0) == {file_name(1, 1)}
        assert replica.get(0, file_name(1, 1)) == b"before"


class _DripFeed(io.BytesIO):
    """Returns fewer bytes at a time than requested, as pipes and sockets do."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(-1 if size is None or size < 0 else min(size, 7001))


class _BlockingStream(io.BytesIO):
    """Stops half-way, in the read that passes the middle, until the test lets it go on."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._middle = len(data) // 2
        self.half_read = threading.Event()
        self.go_on = threading.Event()

    def read(self, size: int | None = -1, /) -> bytes:
        if self.tell() < self._middle and not self.half_read.is_set():
            wanted = self._middle if size is None or size < 0 else min(size, self._middle - self.tell())
            return super().read(wanted)
        self.half_read.set()
        assert self.go_on.wait(WAIT_S)
        return super().read(size)


class _FailingStream(io.BytesIO):
    """Fails after its last byte."""

    def read(self, size: int | None = -1, /) -> bytes:
        part = super().read(100_000 if size is None or size < 0 else size)
        if not part:
            raise ZeroDivisionError("the source broke")
        return part


class _Readers:
    """List and read the one file of level 0 again and again, in threads."""

    most_failures = 3
    """Errors in a row of one reader, which a server may send while it is busy with the same file."""

    def __init__(self, client: ReplicaClient) -> None:
        self.done = threading.Event()
        self._client = client
        self._succeeded = 0
        self._change = threading.Condition()

    def wait_for_one_more(self) -> bool:
        """Wait for a read that succeeds after this call; False if none does in time, or if a reader has failed."""
        with self._change:
            wanted = self._succeeded + 1
            self._change.wait_for(lambda: self._succeeded >= wanted or self.done.is_set(), WAIT_S)
            return self._succeeded >= wanted

    def read_until_done(self) -> list[bytes]:
        """The contents read. Fails if the file is missing, even for a moment, or is unreadable for long."""
        try:
            return self._read_until_done()
        except BaseException:
            with self._change:
                self.done.set()
                self._change.notify_all()
            raise

    def _read_until_done(self) -> list[bytes]:
        seen: list[bytes] = []
        failures = 0
        while not self.done.is_set():
            try:
                content = self._read()
                failures = 0
            except TransientStorageError:
                failures += 1
                if failures > self.most_failures:
                    raise
                continue
            if content is not None:
                seen.append(content)
                with self._change:
                    self._succeeded += 1
                    self._change.notify_all()
        return seen

    def _read(self) -> bytes | None:
        """The content of the file, or None if it was replaced after it was listed."""
        listed = self._listed()
        try:
            return self._client.read(listed)
        except StorageNotFoundError:
            assert self._listed().etag != listed.etag, "a file that is there, and was not replaced, is said to be gone"
            return None

    def _listed(self) -> LTXFileInfo:
        files = self._client.list_files(0)
        assert len(files) == 1, f"one file is always there, {len(files)} are listed"
        return files[0]
