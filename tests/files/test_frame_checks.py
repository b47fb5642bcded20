"""Files that are verified while they pass: what is remembered of them, what is asked for, what is held, how it ends."""

from __future__ import annotations

import gc
import random
import threading
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import pairwise
from pathlib import Path

import apsw
import pytest

import litevfs
from litevfs.cli import main
from litevfs.errors import (
    LTXFormatError,
    StorageClosedError,
    StorageNotFoundError,
    StorageTimeoutError,
    TransientStorageError,
)
from litevfs.files.fetch import PARALLEL_READS, READ_BYTES, WHOLE_FILE_BYTES, FetchedFile, Fetcher
from litevfs.files.frame_checks import frame_check, frame_checks, verify_stream
from litevfs.files.write_behind import disk_cache_for
from litevfs.ltx.decoder import decode_file
from litevfs.ltx.encoder import encode_file
from litevfs.ltx.format import Header
from litevfs.options import Options
from litevfs.replica_clients.base import LTXFileInfo
from litevfs.replica_clients.file import FileReplicaClient
from litevfs.replica_clients.urls import open_replica_client
from tests.primary import Primary
from tests.scripted import Script, ScriptedClient
from tests.support import connected, in_threads, rows, status_of, wait_until

BLOCK_SIZES = [pytest.param(0, id="local"), pytest.param(1 << 16, id="remote"), pytest.param(100_000, id="odd blocks")]


def ltx_file(pages: int, page_size: int, *, seed: int = 1) -> bytes:
    """The file of transaction 1: a database of random pages, one half of each compressible."""
    content = random.Random(seed)
    header = Header(page_size=page_size, commit=pages, min_txid=1, max_txid=1, timestamp_ms=1)
    half = page_size // 2
    return encode_file(header, ((pgno, content.randbytes(half) + bytes(half)) for pgno in range(1, pages + 1)))


def expected_checks(data: bytes) -> list[int]:
    return [zlib.crc32(frame) & 0xFFFF or 1 for _, frame in decode_file(data).frames()]


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


# --- bytes ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("page_size", "pages"), [(512, 100), (4096, 20), (65536, 3)])
@pytest.mark.parametrize("piece", [1, 7, 1000, 70_000, 1 << 24])
def test_the_checks_are_those_of_the_frames_whatever_pieces_the_file_comes_in(page_size, pages, piece):
    data = ltx_file(pages, page_size)
    index = decode_file(data).index
    assert verify_stream(cut(data, piece), index).tolist() == expected_checks(data)
    assert frame_checks(index, data).tolist() == expected_checks(data)


def test_a_file_without_pages_has_no_checks():
    header = Header(page_size=4096, commit=3, min_txid=2, max_txid=2, timestamp_ms=1)
    data = encode_file(header, [])
    assert verify_stream([data], decode_file(data).index).tolist() == []


@pytest.mark.slow
@pytest.mark.plan("L02")
def test_any_flipped_bit_is_found_wherever_it_lies():
    data = ltx_file(6, 512)
    index = decode_file(data).index
    for place in range(len(data)):
        damaged = data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :]
        with pytest.raises(LTXFormatError):
            verify_stream(cut(damaged, 499), index)


@pytest.mark.plan("L02")
def test_a_file_that_ends_anywhere_before_its_end_or_goes_on_is_found():
    data = ltx_file(6, 512)
    index = decode_file(data).index
    for size in range(len(data)):
        with pytest.raises(LTXFormatError):
            verify_stream([data[:size]], index)
    with pytest.raises(LTXFormatError):
        verify_stream([data, b"\0"], index)


# --- requests ---------------------------------------------------------------------------------------------------------


class World:
    """A storage with one large file, and fetchers of it that verify."""

    def __init__(self, script: Script, data: bytes) -> None:
        self.script = script
        self.data = data
        self.file = script.writer.write(0, 1, 1, data, 1)

    @contextmanager
    def fetcher(
        self, *, folder: Path | None = None, verify: bool = True, read_timeout_s: float = 5.0
    ) -> Iterator[Fetcher]:
        client = ScriptedClient(self.script)
        disk_cache = disk_cache_for(client, Options(cache_dir=str(folder or "")), prepare=True)
        with closing(Fetcher(client, read_timeout_s=read_timeout_s, disk_cache=disk_cache, verify=verify)) as fetcher:
            yield fetcher
            wait_until(lambda: not any(t.name == "litevfs-disk-cache" for t in threading.enumerate()), "the last block")

    def fetch(self, **options: object) -> FetchedFile:
        with self.fetcher(**options) as fetcher:
            (fetched,) = fetcher.fetch_files([self.file])
            return fetched

    def assert_right(self, fetched: FetchedFile) -> None:
        assert fetched.data is None
        assert fetched.checks is not None
        assert fetched.checks.tolist() == expected_checks(self.data)
        assert fetched.index.offsets.tolist() == decode_file(self.data).index.offsets.tolist()

    def bytes_asked_for(self) -> list[tuple[int, int]]:
        """(start, end) of every read, by start."""
        return sorted((offset, offset + size) for _, offset, size in self.script.reads)


@pytest.fixture(scope="module")
def content() -> bytes:
    data = ltx_file(2000, 4096)
    assert len(data) > 4 * WHOLE_FILE_BYTES - (1 << 20)
    return data


@pytest.fixture(params=BLOCK_SIZES)
def world(request, content):
    with Script(block_size=request.param) as script:
        yield World(script, content)


@pytest.fixture
def remote(content):
    with Script(block_size=1 << 16) as script:
        yield World(script, content)


@pytest.mark.plan("L02")
@pytest.mark.parametrize(("page_size", "pages"), [(512, 8000), (4096, 2000), (65536, 100)])
@pytest.mark.parametrize("block_size", BLOCK_SIZES)
def test_every_byte_of_a_large_file_is_asked_for_once(block_size, page_size, pages):
    with Script(block_size=block_size) as script:
        world = World(script, ltx_file(pages, page_size))
        assert world.file.size > WHOLE_FILE_BYTES
        world.assert_right(world.fetch())
        asked = world.bytes_asked_for()
        assert asked[0][0] == 0
        assert asked[-1][1] == world.file.size
        overlaps = [end - start for (_, end), (start, _) in pairwise(asked)]
        assert min(overlaps) >= 0
        if page_size > 512:
            assert max(overlaps) == 0
        else:  # so small pages have an index that the first guess is too short for
            assert sum(overlaps) < world.file.size / 50
        assert len(asked) <= 2 + -(-world.file.size // (READ_BYTES - 100_000))


def test_without_the_option_only_the_ends_of_a_large_file_are_read(world):
    fetched = world.fetch(verify=False)
    assert fetched.checks is None
    assert len(world.script.reads) == 2
    assert sum(end - start for start, end in world.bytes_asked_for()) < world.file.size / 10


def test_remote_pieces_are_read_in_parallel_up_to_a_bound(remote):
    under_way, most, lock = 0, 0, threading.Lock()
    together = threading.Barrier(3)  # head and tail come together first; then at least three pieces at a time

    def count(file: LTXFileInfo, offset: int, data: bytes) -> bytes:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        if READ_BYTES <= offset < 4 * READ_BYTES:
            together.wait(10)
        with lock:
            under_way -= 1
        return data

    remote.script.on_read = count
    remote.assert_right(remote.fetch())
    assert 3 <= most <= PARALLEL_READS


@pytest.fixture(scope="module")
def large_content() -> bytes:
    """48 MB."""
    return ltx_file(24_000, 4096)


@pytest.mark.slow
@pytest.mark.parametrize("block_size", BLOCK_SIZES[:2])
def test_memory_is_bounded_however_large_the_file(block_size, large_content, content):
    """What its index and checks take is 22 bytes a page."""
    with Script(block_size=block_size) as script:
        World(script, content).fetch()  # imports, threads
        data = large_content
        world = World(script, data)
        with world.fetcher() as fetcher:
            gc.collect()
            tracemalloc.start()
            try:
                fetcher.fetch_files([world.file])
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
        pieces = (PARALLEL_READS + 2) * READ_BYTES if block_size else 2 * READ_BYTES
        assert peak < pieces + (4 << 20) < len(data) / 3


@pytest.mark.plan("L02")
def test_failures_of_single_requests_are_tried_again_one_by_one(world):
    chances = random.Random(3)
    lock = threading.Lock()

    def disturb(file: LTXFileInfo, offset: int, data: bytes) -> bytes:
        with lock:
            chance = chances.random()
        if chance < 0.3:
            raise TransientStorageError("busy")
        return data[: len(data) // 2] if chance < 0.4 else data

    world.script.on_read = disturb
    with world.fetcher(read_timeout_s=30.0) as fetcher:
        (fetched,) = fetcher.fetch_files([world.file])
        assert fetcher.counters.retries > 0
        assert fetcher.counters.bytes_read < 2 * world.file.size
    world.assert_right(fetched)


# --- damage -----------------------------------------------------------------------------------------------------------


def flip(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def damaging(place: int, times: int) -> Callable[[LTXFileInfo, int, bytes], bytes]:
    """A hook that flips a bit at this byte of the file the first so many times it is read."""
    left = [None] * times

    def damage(file: LTXFileInfo, offset: int, data: bytes) -> bytes:
        if offset <= place < offset + len(data) and left:
            left.pop()
            return flip(data, place - offset)
        return data

    return damage


@pytest.mark.plan("L02")
@pytest.mark.parametrize("place", [30, 2_000_000, -3000, -5], ids=["header", "a page", "index", "trailer"])
def test_a_file_damaged_on_its_way_is_read_once_more(world, place):
    world.script.on_read = damaging(place % world.file.size, 1)
    world.assert_right(world.fetch())


@pytest.mark.plan("L02", "L28")
def test_a_file_that_stays_damaged_is_an_error_that_says_where_it_lies(world):
    world.script.on_read = damaging(2_000_000, 99)
    with pytest.raises(LTXFormatError) as caught:
        world.fetch()
    assert (caught.value.level, caught.value.min_txid, caught.value.max_txid) == (0, 1, 1)
    assert caught.value.key == f"0/{world.file.name}"
    assert caught.value.hint
    assert sum(end - start for start, end in world.bytes_asked_for()) <= 2 * world.file.size


@pytest.mark.plan("L02")
def test_a_file_that_is_shorter_than_it_was_listed_is_a_transient_error(world):
    world.script.on_read = lambda file, offset, data: data[: max(0, 2_000_000 - offset)]
    with pytest.raises(TransientStorageError, match="of a file of"):
        world.fetch(read_timeout_s=0.3)


@pytest.mark.plan("L02")
def test_a_file_that_grows_while_it_is_read_is_refused_until_it_is_whole(tmp_path, content):
    """A copy under way: listed at three quarters of its size, and longer at every read."""
    client = FileReplicaClient(tmp_path)
    whole = client.write(0, 1, 1, content, 1)
    path = Path(client.key(whole))
    path.write_bytes(content[: len(content) * 3 // 4])
    with closing(Fetcher(client, read_timeout_s=1.0, verify=True)) as fetcher:
        (file,) = fetcher.list_files(0)
        with path.open("ab") as upload:
            upload.write(content[file.size : -10])
        with pytest.raises((LTXFormatError, StorageNotFoundError)) as caught:
            fetcher.fetch_files([file])
        assert caught.value.key == str(path)
        with path.open("ab") as upload:
            upload.write(content[-10:])
        (fetched,) = fetcher.fetch_files(fetcher.list_files(0))
        assert fetched.checks.tolist() == expected_checks(content)


@pytest.mark.plan("L02")
def test_a_file_that_vanishes_while_it_passes_is_not_found(world):
    def vanish(file: LTXFileInfo, offset: int, data: bytes) -> bytes:
        if offset > READ_BYTES:
            world.script.writer.delete([world.file])
        return data

    world.script.on_read = vanish
    with pytest.raises(StorageNotFoundError):
        world.fetch()


# --- the end ----------------------------------------------------------------------------------------------------------


@pytest.mark.plan("L11")
def test_closing_ends_the_passing_of_a_file(world):
    """Closed by another thread while the third piece is on its way."""
    third = threading.Event()
    closed = threading.Event()

    def disturb(file: LTXFileInfo, offset: int, data: bytes) -> bytes:
        if 2 * READ_BYTES < offset < world.file.size - READ_BYTES:
            third.set()
            assert closed.wait(10)
        return data

    world.script.on_read = disturb
    with world.fetcher() as fetcher:

        def work(i: int) -> None:
            if i:
                assert third.wait(10)
                fetcher.close()
                closed.set()
                return
            with pytest.raises(StorageClosedError):
                fetcher.fetch_files([world.file])

        in_threads(2, work)
    assert sum(end - start for start, end in world.bytes_asked_for()) <= world.file.size


@pytest.mark.plan("L11")
def test_closing_ends_requests_that_wait_for_a_thread(remote):
    """Every thread of the pool is busy elsewhere, so that no piece of the file was asked for yet."""
    busy = threading.Event()
    with remote.fetcher() as fetcher:
        head, tail = fetcher._read_head(remote.file), fetcher._read_tail(remote.file, 20_000)
        others = [fetcher.threads.submit(lambda: busy.wait(10)) for _ in range(32)]
        wait_until(lambda: all(other.running() for other in others), "all threads to be busy")
        waiting = threading.Event()
        submit = fetcher.threads.submit

        def noted(call):
            future = submit(call)
            waiting.set()
            return future

        fetcher.threads.submit = noted

        def work(i: int) -> None:
            if i:
                assert waiting.wait(10)
                fetcher.close()
                busy.set()
                return
            with pytest.raises(StorageClosedError):
                fetcher._fetch_ends(remote.file, (head, tail))

        in_threads(2, work)
        assert all(other.result() for other in others)


# --- the folder -------------------------------------------------------------------------------------------------------


def test_what_passed_is_kept_in_the_folder_and_verified_again_from_there(remote, tmp_path):
    remote.assert_right(remote.fetch(folder=tmp_path))
    remote.script.clear()
    remote.assert_right(remote.fetch(folder=tmp_path))
    assert remote.script.reads == []


@pytest.mark.plan("L02")
@pytest.mark.parametrize("place", [30, 2_000_000, -3000], ids=["header", "a page", "index"])
def test_damaged_bytes_in_the_folder_are_read_from_storage_instead(remote, tmp_path, place):
    """They came damaged when no reader verified them; the folder's own checksums know no better."""
    place %= remote.file.size
    remote.script.on_read = damaging(place, 1)
    with remote.fetcher(folder=tmp_path, verify=False) as fetcher:
        for offset in range(0, remote.file.size, 1 << 20):
            fetcher._read_kept(remote.file, offset, min(1 << 20, remote.file.size - offset))
    remote.script.clear()
    remote.assert_right(remote.fetch(folder=tmp_path))
    assert sum(end - start for start, end in remote.bytes_asked_for()) == remote.file.size
    remote.script.clear()
    remote.assert_right(remote.fetch(folder=tmp_path))
    assert remote.script.reads == []


# --- the option -------------------------------------------------------------------------------------------------------


def by_uri(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
    litevfs.register()
    apsw.Connection(f"file:x.db?replica_url={url}&verify=true", vfs="litestream", flags=flags).close()


def by_keyword(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    litevfs.connect(url, verify=True).close()


def by_environment(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITEVFS_VERIFY", "yes")
    litevfs.connect(url).close()


@pytest.fixture
def damaged(tmp_path: Path) -> str:
    """The URL of a replica in a folder: one large file, a bit of which is flipped where only its checksum tells."""
    with Primary(FileReplicaClient(tmp_path)) as primary, closing(primary.client):
        primary.run("CREATE TABLE t(x); INSERT INTO t VALUES (randomblob(3000000))")
        path = Path(primary.client.key(primary.compact(0, 1, 1)))
    data = path.read_bytes()
    path.write_bytes(flip(data, len(data) // 2))
    return f"file://{tmp_path}"


@pytest.mark.plan("K01", "L02")
@pytest.mark.parametrize("connect", [by_uri, by_keyword, by_environment])
def test_the_option_refuses_a_damaged_file_however_it_is_given(damaged, connect, monkeypatch):
    litevfs.connect(damaged).close()
    with pytest.raises(LTXFormatError, match="file checksum is"):
        connect(damaged, monkeypatch)


@pytest.mark.plan("L02")
def test_the_commands_have_the_option_too(damaged, capsys):
    assert main(["query", damaged, "SELECT 1"]) == 0
    assert main(["query", damaged, "SELECT 1", "--no-verify"]) == 0
    capsys.readouterr()
    assert main(["query", damaged, "SELECT 1", "--verify"]) == 1
    assert "file checksum is" in capsys.readouterr().err


@pytest.mark.plan("L02")
def test_an_open_that_takes_longer_than_it_may_says_what_to_do(remote):
    released = threading.Event()

    def hold(file: LTXFileInfo, offset: int, data: bytes) -> bytes:
        assert released.wait(20)
        return data

    remote.script.on_read = hold
    try:
        with pytest.raises(StorageTimeoutError, match="open_timeout"):
            litevfs.connect(remote.script.url, verify=True, open_timeout="50ms")
    finally:
        released.set()
        wait_until(lambda: not any("litevfs" in t.name for t in threading.enumerate()), "threads to end")


@pytest.mark.plan("L02")
@pytest.mark.slow
def test_a_large_file_in_s3_is_verified_and_read_once(s3_url):
    url = s3_url()
    with Primary(open_replica_client(url)) as primary, closing(primary.client) as client:
        primary.commit("CREATE TABLE t(x); INSERT INTO t VALUES (randomblob(3000000))")
        (file,) = client.list_files(0)
        with connected(url, poll_interval=0, verify=True) as connection:
            assert status_of(connection)["bytes_read"] == file.size
            assert rows(connection, "SELECT x FROM t") == primary.rows("SELECT x FROM t")
        client.write(0, 1, 1, flip(primary.file_bytes(1, 1), file.size // 2), file.modified_ms)
        with pytest.raises(LTXFormatError, match="file checksum is"), connected(url, verify=True):
            pass


def test_no_frame_has_the_check_that_stands_for_none():
    """One frame of 65,536 would have it, and would never be compared."""
    frames = [n.to_bytes(4) for n in range(1 << 18)]
    assert any(zlib.crc32(frame) & 0xFFFF == 0 for frame in frames)
    assert all(frame_check(frame) for frame in frames)
