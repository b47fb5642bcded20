"""The temporary file below the byte cache: what comes back is what left, within its bounds, and how it fails."""

from __future__ import annotations

import json
import logging
import os
import resource
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from litevfs.files import spill as spills
from litevfs.files.byte_cache import ENTRY_OVERHEAD_BYTES, ByteCache
from litevfs.files.spill import ENTRY_MEMORY_BYTES, Spill
from tests.primary import Primary
from tests.scripted import Script
from tests.support import connected, in_threads

ROOMY = 1 << 20


@pytest.fixture
def spill():
    spill = Spill(ROOMY, ROOMY)
    yield spill
    spill.close()


def filled(spill: Spill, keys: range, size: int = 992) -> None:
    for key in keys:
        spill.add(key, bytes([key]) * size, is_unused=False)
        spill.write()


def kept(spill: Spill, keys: range) -> list[int]:
    return [key for key in keys if spill.get(key) is not None]


_steps = st.lists(
    st.tuples(st.sampled_from(["get", "peek", "put", "put ahead", "hold", "drop"]), st.integers(-9, 9)), max_size=80
)


@settings(max_examples=60)
@given(st.integers(0, 3000), st.sampled_from([700, 3000, ROOMY]), st.integers(0, 2000), _steps)
def test_what_the_cache_gives_is_what_was_put_with_any_spill(limit, spill_limit, memory_limit, steps):
    spill, content = Spill(spill_limit, memory_limit), {key: os.urandom(40 * (key + 10)) for key in range(-9, 10)}
    cache, put, taken = ByteCache(limit, lambda _: None, spill=spill), set(), 0
    try:
        for step, key in steps:
            if step == "get":
                assert cache.get(key) in ({None, content[key]} if key in put else {None})
            elif step == "peek":
                assert cache.peek(key) in ({None, content[key]} if key in put else {None})
            elif step == "hold":
                assert cache.hold(key) == (key in cache)
            elif step == "drop":
                cache.drop(key)
                put.discard(key)
                assert key not in cache
            else:
                cache.put(key, content[key], ahead=step == "put ahead")
                put.add(key)
            assert spill.kept_bytes <= spill_limit
            assert spill.index_bytes <= max(memory_limit, ENTRY_MEMORY_BYTES)
            taken = max(taken, spill.kept_bytes)
        assert taken == 0 or os.fstat(spill._fd).st_size <= spill_limit
    finally:
        spill.close()


def test_nothing_that_was_in_memory_is_lost_while_the_file_has_room(spill):
    cache = ByteCache(4 * (100 + ENTRY_OVERHEAD_BYTES) + 50 * ENTRY_MEMORY_BYTES, spill=spill)
    for key in range(50):
        cache.put(key, bytes([key]) * 100, ahead=key % 2 == 0)
    assert spill.kept_bytes > 0
    assert [cache.get(key) for key in range(50)] == [bytes([key]) * 100 for key in range(50)]


def test_bytes_read_ahead_are_used_once_however_often_they_come_back(spill):
    used: list[int] = []
    cache = ByteCache(2 * (100 + ENTRY_OVERHEAD_BYTES) + 20 * ENTRY_MEMORY_BYTES, used.append, spill=spill)
    for key in range(20):
        cache.put(key, bytes([key]) * 100, ahead=True)
    cache.peek(0)
    for _ in range(2):
        for key in range(20):
            assert cache.get(key) == bytes([key]) * 100
    assert used == [100] * 20


def test_there_is_no_file_before_bytes_leave_memory_and_none_has_a_name(spill):
    cache = ByteCache(1000 + ENTRY_OVERHEAD_BYTES, spill=spill)
    cache.put(1, bytes(1000))
    assert spill._fd == -1
    cache.put(2, bytes(1000))
    assert os.fstat(spill._fd).st_nlink == 0
    cache.put(1, bytes(1000))
    assert spill.kept_bytes == 2 * 1008  # the first one is there already, and the second now
    spill.close()
    assert (spill._fd, spill.room_bytes, cache.get(3)) == (-1, 0, None)


def test_a_full_file_forgets_what_it_has_had_longest():
    spill = Spill(5000, ROOMY)  # five entries of 1,000 bytes
    try:
        filled(spill, range(5))
        assert kept(spill, range(5)) == [0, 1, 2, 3, 4]
        filled(spill, range(5, 7))
        assert (kept(spill, range(7)), spill.kept_bytes) == ([2, 3, 4, 5, 6], 5000)
        filled(spill, range(7, 8), size=1992)
        assert kept(spill, range(8)) == [4, 5, 6, 7]
        filled(spill, range(8, 9), size=1992)  # not the end of the file, which has no room for it, but its start
        assert kept(spill, range(9)) == [7, 8]
    finally:
        spill.close()


def test_what_waits_is_written_together_as_far_as_the_file_has_room(monkeypatch):
    calls: list[int] = []
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: calls.append(len(data)) or pwrite(fd, data, at))
    spill = Spill(5000, ROOMY)  # five entries of 1,000 bytes
    try:
        for keys, written, left in (range(4), [4000], [0, 1, 2, 3]), (range(4, 13), [5000, 4000], [8, 9, 10, 11, 12]):
            for key in keys:
                spill.add(key, bytes([key]) * 992, is_unused=False)
            spill.write()
            assert (calls, kept(spill, range(13)), spill.kept_bytes) == (written, left, 1000 * len(left))
            calls.clear()
    finally:
        spill.close()


def test_the_memory_for_places_is_bounded():
    spill = Spill(ROOMY, 3 * ENTRY_MEMORY_BYTES)
    try:
        filled(spill, range(9))
        assert kept(spill, range(9)) == [6, 7, 8]
        for key in range(9, 18):
            spill.add(key, bytes([key]), is_unused=False)
        spill.write()
        assert kept(spill, range(18)) == [15, 16, 17]
    finally:
        spill.close()


@pytest.mark.parametrize("place", [0, 8, 999])
def test_damage_is_noticed(spill, place):
    filled(spill, range(2))
    os.pwrite(spill._fd, bytes([os.pread(spill._fd, 1, place)[0] ^ 1]), place)
    assert (spill.get(0), spill.damaged) == (None, 1)
    assert 0 not in spill
    assert spill.get(1) == b"\1" * 992


def test_threads_read_what_was_written(spill):
    cache = ByteCache(20 * (500 + ENTRY_OVERHEAD_BYTES), spill=Spill(40_000, 8000))

    def work(number: int) -> None:
        for n in range(600):
            key = (n * 7 + number * 31) % 100
            value = cache.get(key)
            assert value in (None, bytes([key]) * 500)
            cache.put(key, bytes([key]) * 500, ahead=n % 3 == 0)

    try:
        in_threads(4, work)
        assert cache.spill.reads > 0
        assert cache.spill.damaged == 0
    finally:
        cache.spill.close()


def test_without_a_folder_there_is_one_warning_and_no_file(spill, monkeypatch, caplog):
    def fail() -> int:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(spills, "_open_temporary", fail)
    with caplog.at_level(logging.INFO):
        filled(spill, range(3))
    assert (kept(spill, range(3)), spill.room_bytes, spill.memory_bytes, len(caplog.records)) == ([], 0, 0, 1)


def test_a_full_disk_costs_one_warning_and_nothing_else():
    code = """
        import logging, os, resource
        from litevfs.files.byte_cache import ByteCache
        from litevfs.files.spill import Spill
        logging.basicConfig()
        before = len(os.listdir("/proc/self/fd"))
        cache = ByteCache(10_000, spill=Spill(1 << 20, 5_000))
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        for key in range(100):
            cache.put(key, bytes([key]) * 1000)
        assert (cache.spill.room_bytes, len(cache)) == (0, 8)
        assert cache.get(99) == bytes([99]) * 1000
        assert cache.get(0) is None
        assert len(os.listdir("/proc/self/fd")) == before
    """
    assert resource.RLIMIT_FSIZE is not None
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr.count("WARNING")) == (0, 1), done.stderr


def test_the_files_of_many_replicas_leave_descriptors_to_others():
    code = """
        import resource, socket
        from litevfs.files.spill import Spill
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
        spills = [Spill(1 << 20, 5_000) for _ in range(100)]
        for spill in spills:
            spill.add(1, bytes(100), is_unused=False)
            spill.write()
        sockets = [socket.socket() for _ in range(40)]
        assert 30 < sum(spill.get(1) == bytes(100) for spill in spills) < 50
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr


# --- a replica --------------------------------------------------------------------------------------------------------

_ROWS = (
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 300) SELECT i, randomblob(3000) FROM n"
)


def looked_up(con) -> list[tuple]:
    return [con.execute("SELECT i, length(b) FROM t WHERE i = ?", (n * 37 % 300 + 1,)).fetchone() for n in range(300)]


@pytest.mark.parametrize("spill_size", ["0", "50MB"])
def test_a_replica_fetches_once_what_its_memory_has_no_room_for(spill_size):
    with Script(block_size=1 << 14) as script, Primary(script.writer) as primary:
        primary.commit(f"CREATE TABLE t(i INTEGER PRIMARY KEY, b); INSERT INTO t {_ROWS}")
        with connected(script.url, cache_size="200kB", spill_size=spill_size, poll_interval=0) as con:
            expected = [(n * 37 % 300 + 1, 3000) for n in range(300)]
            assert looked_up(con) == expected
            con.execute("PRAGMA cache_size=0").fetchall()
            before = len(script.reads)
            assert looked_up(con) == expected
            status = json.loads(con.execute("PRAGMA litestream_status").fetchone()[0])
            assert status["cache_bytes"] <= 200_000
            if spill_size == "0":
                assert len(script.reads) > before + 50
                assert (status["spilled_bytes"], status["spill_reads"]) == (0, 0)
            else:
                assert len(script.reads) == before
                assert status["spilled_bytes"] > 500_000
                assert status["spill_reads"] > 50


def files_without_a_name() -> set[str]:
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found.add(str(entry.readlink()))
        except OSError:
            continue
    return {target for target in found if target.startswith("/") and target.endswith(" (deleted)")}


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of forking a process with threads, which is the point
def test_a_forked_child_has_no_part_in_its_parents_file():
    before = files_without_a_name()
    with Script(block_size=1 << 14) as script, Primary(script.writer) as primary:
        primary.commit(f"CREATE TABLE t(i INTEGER PRIMARY KEY, b); INSERT INTO t {_ROWS}")
        with connected(script.url, cache_size="200kB", poll_interval=0) as con:
            looked_up(con)
            assert len(files_without_a_name() - before) == 1
            child = os.fork()
            if child == 0:
                os._exit(10 + len(files_without_a_name() - before))
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 10
            assert looked_up(con)[0] == (1, 3000)
        assert files_without_a_name() <= before
