"""Reading storage: exact bytes, retries with their pauses and bounds, parallel reads, and how it all ends."""

from __future__ import annotations

import logging
import random
import threading
import time
from itertools import pairwise

import pytest

from litevfs.errors import (
    LTXFormatError,
    StorageClosedError,
    StorageNotFoundError,
    StoragePermissionError,
    TransientStorageError,
)
from litevfs.files.fetch import WHOLE_FILE_BYTES, Fetcher
from litevfs.files.ranges import likely_tail_bytes
from litevfs.ltx.file_info import LTXFileInfo
from litevfs.ltx.page_index import encode_page_index
from tests.histories import read_pages
from tests.primary import Primary
from tests.scripted import Script, ScriptedClient
from tests.support import in_threads, wait_until


@pytest.fixture(params=[0, 1 << 14], ids=["local", "remote"])
def world(request):
    """Three files, the last one too large to be read at once."""
    with Script(block_size=request.param) as script, Primary(script.writer) as primary:
        primary.commit("CREATE TABLE t(x)")
        primary.commit("INSERT INTO t VALUES(randomblob(50000))")
        primary.commit("INSERT INTO t VALUES(randomblob(2000000))")
        fetcher = Fetcher(ScriptedClient(script), read_timeout_s=1.0)
        yield primary, script, fetcher
        fetcher.close()


# --- bytes ------------------------------------------------------------------------------------------------------------


def test_exactly_the_bytes_asked_for(world):
    primary, _, fetcher = world
    file = fetcher.list_files(0)[1]
    whole = primary.file_bytes(2, 2)
    for offset, size in [(0, 100), (0, len(whole)), (77, 1), (len(whole) - 5, 5), (16000, 1000)]:
        assert fetcher.read(file, offset, size) == whole[offset : offset + size]


def test_fewer_bytes_than_the_file_should_have_are_an_error_that_says_which_file(world):
    _, script, fetcher = world
    file = fetcher.list_files(0)[1]
    script.on_read = lambda file, offset, data: data[:-1]
    with pytest.raises(TransientStorageError, match=r"got 99 of 100 bytes") as caught:
        fetcher.gets.read_timed(file, 0, 100)
    assert (caught.value.level, caught.value.min_txid) == (0, 2)
    assert caught.value.key
    assert caught.value.hint


@pytest.mark.plan("L02")
def test_passing_failures_are_tried_again_and_counted(world, caplog):
    primary, script, fetcher = world
    caplog.set_level(logging.INFO, "litevfs.files.fetch")
    file = fetcher.list_files(0)[1]
    failures = [TransientStorageError("busy"), None, TransientStorageError("busy again")]

    def disturb(file, offset, data):
        if failures:
            error = failures.pop(0)
            if error:
                raise error
            return data[:7]
        return data

    script.on_read = disturb
    assert fetcher.read(file, 10, 500) == primary.file_bytes(2, 2)[10:510]
    assert fetcher.counters.retries == 3
    assert fetcher.counters.errors == 3
    assert sum("trying again" in r.getMessage() for r in caplog.records) == 3


@pytest.mark.parametrize("error", [StorageNotFoundError, StoragePermissionError, LTXFormatError])
def test_what_trying_again_cannot_help_is_raised_at_once(world, error):
    _, script, fetcher = world
    file = fetcher.list_files(0)[1]

    def fail(file, offset, data):
        raise error("no")

    script.on_read = fail
    with pytest.raises(error):
        fetcher.read(file, 0, 10)
    assert len(script.reads) == 1


def test_retries_end_with_the_read_timeout_and_the_last_error(world):
    _, script, _ = world
    fetcher = Fetcher(ScriptedClient(script), read_timeout_s=0.4)
    file = fetcher.list_files(0)[1]

    def fail(file, offset, data):
        raise TransientStorageError("busy for ever")

    script.on_read = fail
    started = time.monotonic()
    with pytest.raises(TransientStorageError, match="busy for ever"):
        fetcher.read(file, 0, 10)
    assert 0.3 < time.monotonic() - started < 10
    assert len(script.reads) >= 2
    fetcher.close()


def test_pauses_grow_to_a_tenth_of_the_read_timeout_unless_the_storage_asks_for_more(world, monkeypatch):
    """A pause that outlasts the time ends it: without a bound, one of 13 s would be the tenth and the last of 30 s."""
    _, script, _ = world
    monkeypatch.setattr(random, "uniform", lambda low, high: high)
    fetcher = Fetcher(ScriptedClient(script), read_timeout_s=6.0)
    file = fetcher.list_files(0)[1]
    asked_for = iter([None, None, None, 2.0, 100.0, None, None])
    pauses: list[float] = []

    def fail(file, offset, data):
        if len(pauses) == 7:
            return data
        error = TransientStorageError("busy")
        error.retry_after_s = next(asked_for)
        raise error

    script.on_read = fail
    monkeypatch.setattr(fetcher._closed, "wait", pauses.append)
    assert len(fetcher.read(file, 0, 10, deadline=time.monotonic() + 1000)) == 10
    assert pauses == pytest.approx([0.05, 0.1, 0.2, 2.0, 32.0, 0.6, 0.6])
    fetcher.close()


def test_a_longer_pause_than_the_time_left_is_not_waited_for(world):
    _, script, fetcher = world
    file = fetcher.list_files(0)[1]

    def fail(file, offset, data):
        error = TransientStorageError("come back later")
        error.retry_after_s = 20.0
        raise error

    script.on_read = fail
    started = time.monotonic()
    with pytest.raises(TransientStorageError):
        fetcher.read(file, 0, 10)
    assert time.monotonic() - started < 10


@pytest.mark.plan("L11")
def test_closing_ends_a_pause_between_tries(world):
    _, script, _ = world
    fetcher = Fetcher(ScriptedClient(script), read_timeout_s=60.0)
    file = fetcher.list_files(0)[1]
    failed = threading.Event()

    def fail(file, offset, data):
        failed.set()
        error = TransientStorageError("come back later")
        error.retry_after_s = 20.0
        raise error

    script.on_read = fail

    def work(i):
        if i:
            assert failed.wait(10)
            fetcher.close()
            return None
        with pytest.raises(StorageClosedError):
            fetcher.read(file, 0, 10)
        return time.monotonic()

    started = time.monotonic()
    assert in_threads(2, work)[0] - started < 5


# --- files ------------------------------------------------------------------------------------------------------------


def test_small_files_come_whole_and_large_ones_by_their_ends(world):
    primary, script, fetcher = world
    files = fetcher.list_files(0)
    assert files[2].size > WHOLE_FILE_BYTES
    script.clear()
    fetched = fetcher.fetch_files(files)
    assert [f.info for f in fetched] == files
    assert [f.data == primary.file_bytes(n, n) for n, f in enumerate(fetched, 1)] == [True, True, False]
    for txid, f in enumerate(fetched, 1):
        assert (f.header.min_txid, f.header.commit) == (txid, len(primary.images[txid]) // 4096)
        assert f.index.pgnos.tolist() == list(read_pages(primary.file_bytes(txid, txid))[2])
    assert len(script.reads) == 4
    assert sum(size for _, _, size in script.reads) < files[0].size + files[1].size + files[2].size / 10


@pytest.mark.slow
def test_the_rest_of_an_index_that_a_first_guess_misses_is_read_once():
    with Script(block_size=1 << 14) as script, Primary(script.writer) as primary:
        primary.commit("CREATE TABLE t(x)")
        primary.commit("INSERT INTO t VALUES(zeroblob(100000000))")  # frames of 40 bytes, index entries of 8
        fetcher = Fetcher(ScriptedClient(script), read_timeout_s=5.0)
        file = fetcher.list_files(0)[1]
        script.clear()
        fetched = fetcher.fetch_files([file])[0]
        fetcher.close()
        assert len(fetched.index) > 20_000
        index_bytes = len(encode_page_index(fetched.index))
    ranges = sorted((offset, size) for _, offset, size in script.reads)
    head, *tail = ranges
    assert head == (0, 1 << 14)
    assert all(sum(a) == b[0] for a, b in pairwise([*tail, (file.size, 0)])), "a byte is read twice or left out"
    assert sum(size for _, size in tail) < index_bytes + (1 << 15)


def test_the_guess_of_an_index_is_bounded():
    sizes = 1 << 21, 1 << 26, 1 << 30, 1 << 40
    guesses = [likely_tail_bytes(LTXFileInfo(9, 1, 5, size, 0)) for size in sizes]
    assert guesses == [(1 << 21) // 100, (1 << 26) // 100, 1 << 20, 1 << 20]


def test_files_come_in_the_order_asked_for(world):
    _, _, fetcher = world
    files = fetcher.list_files(0)
    for order in (files[::-1], [files[2], files[0], files[1]], []):
        assert [f.info for f in fetcher.fetch_files(order)] == order


def test_a_header_is_one_request_of_100_bytes(world):
    primary, script, fetcher = world
    file = fetcher.list_files(0)[2]
    script.clear()
    assert fetcher.read_header(file).timestamp_ms == primary.timestamp_ms(3)
    assert script.reads == [(file_key(file), 0, 100)]


def file_key(file):
    return f"{file.level}/{file.name}"


@pytest.mark.plan("L28")
def test_a_damaged_file_is_read_once_more_and_the_error_says_where_it_lies(world):
    _, script, fetcher = world
    file = fetcher.list_files(0)[1]
    script.clear()
    script.on_read = lambda file, offset, data: data[:1000] + bytes(30) + data[1030:]
    with pytest.raises(LTXFormatError) as caught:
        fetcher.fetch_files([file])
    assert (caught.value.level, caught.value.min_txid, caught.value.key) == (0, 2, file_key(file))
    assert len(script.reads) == 2


def test_remote_files_are_read_in_parallel_and_local_ones_are_not():
    for block_size, parallel in ((1 << 14, True), (0, False)):
        with Script(block_size=block_size) as script, Primary(script.writer) as primary:
            for i in range(6):
                primary.commit(f"CREATE TABLE t{i}(x)")
            fetcher = Fetcher(ScriptedClient(script), read_timeout_s=5.0)
            together = threading.Barrier(6) if parallel else None

            def meet(file, offset, data, together=together):
                if together:
                    together.wait(5)
                return data

            script.on_read = meet
            assert len(fetcher.fetch_files(fetcher.list_files(0))) == 6
            fetcher.close()
            wait_until(
                lambda: not [t for t in threading.enumerate() if t.name.startswith("litevfs-io")], "threads to end"
            )


def test_as_many_calls_run_at_once_as_the_line_is_worth(world):
    _, _, fetcher = world
    fetcher.line.latency_s = 0.1
    meeting = threading.Barrier(fetcher.line.at_once)
    for call in [fetcher.threads.submit(lambda: meeting.wait(10)) for _ in range(meeting.parties)]:
        call.result(10)
    assert meeting.parties == 64


def test_requests_and_bytes_are_counted(world):
    _, script, fetcher = world
    files = fetcher.list_levels([0, 1, 9])
    fetcher.fetch_files(files)
    counters = fetcher.counters
    assert (counters.list, counters.get, counters.errors, counters.retries) == (3, len(script.reads), 0, 0)
    assert counters.bytes_read == sum(size for _, _, size in script.reads)


def test_without_threads_to_be_had_files_are_fetched_one_after_the_other(world, monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    _, _, fetcher = world
    files = fetcher.list_files(0)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        assert [f.info for f in fetcher.fetch_files(files)] == files
    assert [f.info for f in fetcher.fetch_files(files)] == files


def test_a_closed_fetcher_takes_no_work(world):
    _, _, fetcher = world
    file = fetcher.list_files(0)[0]
    fetcher.close()
    fetcher.close()
    with pytest.raises(StorageClosedError):
        fetcher.threads.submit(lambda: 1)
    with pytest.raises(StorageClosedError):
        fetcher.read(file, 0, 10)
