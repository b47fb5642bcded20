"""The option `cache_dir` as a user meets it: restarts, scans, replaced replicas, damage, SIGKILL, failing folders."""

from __future__ import annotations

import errno
import json
import logging
import os
import random
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from litevfs import local_files
from litevfs.errors import OptionError
from litevfs.files.write_behind import WriteBehind
from litevfs.ltx.decoder import decode_file
from litevfs.replica_clients.urls import open_replica_client
from tests.primary import Primary
from tests.scripted import Script
from tests.support import connected, rows, status_of, wait_until

pytestmark = pytest.mark.slow

BLOCK_SIZE = 1 << 16  # bytes
ROWS = 1200
FILL = f"""
    CREATE TABLE big(id INTEGER PRIMARY KEY, data BLOB);
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ROWS})
    INSERT INTO big SELECT i, randomblob(3000) FROM n
"""
ALL = "SELECT id, data FROM big ORDER BY id"
SOME = "SELECT hex(data) FROM big WHERE id IN (3, 700, 1150)"


@pytest.fixture
def remote():
    """A remote replica of a snapshot of 4 MB, in many blocks, and of three small files; what it has to answer."""
    with Script(block_size=BLOCK_SIZE) as script, Primary(script.writer) as primary:
        primary.run(FILL)
        primary.compact(9, 1, 1)
        for i in range(3):
            primary.commit("UPDATE big SET data = ? WHERE id = ?", (b"new" * 900, 100 * (i + 1)))
        yield script, primary


@contextmanager
def reading(url: str, folder: Path, **options: Any) -> Iterator[Any]:
    """A connection that closes when all it has read is in the folder, however slow the disk.

    What a reader has was handed to the writer before, and the writer's thread ends with the last block.
    """
    with connected(url, cache_dir=folder, **options) as connection:
        yield connection
        wait_until(lambda: "litevfs-disk-cache" not in {thread.name for thread in threading.enumerate()}, "the blocks")


def blocks_in(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.block"))


@pytest.mark.plan("K02", "D02")
def test_five_restarts_read_the_same_and_nothing_from_storage_again(remote, tmp_path):
    script, primary = remote
    expected = primary.rows(ALL)
    requests = []
    for _ in range(6):
        script.clear()
        with reading(script.url, tmp_path) as con:
            assert rows(con, ALL) == expected
            requests.append((len(script.reads), status_of(con)["get_requests"]))
    assert requests[0][0] == requests[0][1] >= 5
    assert requests[1:] == [(0, 0)] * 5


@pytest.mark.parametrize("sql", [ALL, "SELECT sum(length(data)) FROM big INDEXED BY by_k WHERE k = 7"])
def test_what_a_reader_has_was_handed_to_the_writer_before(remote, tmp_path, monkeypatch, sql):
    script, primary = remote
    primary.commit("ALTER TABLE big ADD k; UPDATE big SET k = id * 7919 % 20; CREATE INDEX by_k ON big(k)")
    primary.compact(9, 1, primary.txid)
    expected, put_range, handed = primary.rows(sql), WriteBehind.put_range, set()

    def slowly(self, file, offset, data):
        threading.Event().wait(0.05)
        handed.add((script.writer.key(file), offset))
        put_range(self, file, offset, data)

    monkeypatch.setattr(WriteBehind, "put_range", slowly)
    with connected(script.url, cache_dir=tmp_path) as con:
        assert rows(con, sql) == expected
        assert {(key, offset) for key, offset, _ in script.reads} <= handed


@pytest.mark.plan("K02")
def test_after_a_restart_only_what_is_new_is_read(remote, tmp_path):
    script, primary = remote
    with reading(script.url, tmp_path) as con:
        assert rows(con, SOME) == primary.rows(SOME)
    first = len(script.reads)
    primary.commit("UPDATE big SET data = x'01' WHERE id = 3")
    script.clear()
    with reading(script.url, tmp_path) as con:
        assert rows(con, SOME) == primary.rows(SOME)
    assert [key for key, _, _ in script.reads] == ["0/0000000000000005-0000000000000005.ltx"]
    assert first > 5


@pytest.mark.plan("D09", "L24")
def test_what_memory_cannot_hold_is_read_from_storage_once(remote, tmp_path):
    script, primary = remote
    expected = primary.rows(ALL)
    with reading(script.url, tmp_path, cache_size="300KB", prefetch=False) as con:
        con.execute("PRAGMA cache_size=0")
        assert rows(con, ALL) == expected
        first = len(script.reads)
        for _ in range(2):
            assert rows(con, ALL) == expected
        assert len(script.reads) == first
        now = status_of(con)
    assert now["cache_bytes"] <= 300_000
    assert now["disk_cache_hits"] > 50
    blocks = [(key, offset) for key, offset, _ in script.reads]
    assert len(blocks) == len(set(blocks))


def test_look_ups_read_ahead_are_kept_too(remote, tmp_path):
    script, primary = remote
    primary.commit("ALTER TABLE big ADD k; UPDATE big SET k = id * 7919 % 20; CREATE INDEX by_k ON big(k)")
    primary.compact(9, 1, primary.txid)
    scattered = "SELECT sum(length(data)) FROM big WHERE k = 7"
    expected = primary.rows(scattered)

    def reads() -> int:
        script.clear()
        with reading(script.url, tmp_path) as con:
            assert rows(con, scattered) == expected
        return len(script.reads)

    assert reads() > 0
    # What closing cuts off while it is being read ahead is read, and kept, the next time.
    wait_until(lambda: reads() == 0, "a restart without reads")


@pytest.mark.plan("K06")
def test_the_status_counts_what_the_folder_did(remote, tmp_path):
    script, _ = remote
    found = []
    for damage in (False, False, True):
        kept = blocks_in(tmp_path)
        for path in kept if damage else []:
            os.truncate(path, 100)
        with reading(script.url, tmp_path) as con:
            rows(con, ALL)
            found.append(status_of(con))
    first, second, third = found
    assert first["disk_cache_misses"] > 0
    assert second["disk_cache_misses"] == second["disk_cache_damaged"] == 0
    assert second["disk_cache_hits"] >= len(kept) > 50
    assert 50 < third["disk_cache_damaged"] <= len(kept)  # a run is not looked through past the first of them
    assert [now["disk_cache_writing"] for now in found] == [True] * 3
    with connected(script.url) as con:
        assert status_of(con)["disk_cache_writing"] is False


@pytest.mark.plan("E03")
def test_a_replaced_replica_gets_nothing_of_the_old_one(tmp_path):
    with Script(block_size=BLOCK_SIZE) as script:
        for seed in (1, 2):
            with Primary(script.writer) as primary:
                primary.commit(f"CREATE TABLE t(x); INSERT INTO t VALUES ({seed})")
                primary.compact(9, 1, 1)
                with reading(script.url, tmp_path) as con:
                    assert rows(con, "SELECT x FROM t") == [(seed,)]
        sizes = [file.size for file in script.writer.list_files(9)]
        assert sizes == [len(script.store.get("9/0000000000000001-0000000000000001.ltx").data)]


@pytest.mark.plan("L02")
def test_bytes_damaged_on_their_way_are_not_kept(remote, tmp_path):
    script, primary = remote
    expected = primary.rows(ALL)
    starts = {
        file.name: [int(start) for start in decode_file(script.writer.read(file)).index.offsets]
        for level in (0, 9)
        for file in script.writer.list_files(level)
    }
    seen = set()

    def damage_once(file, offset, data):
        """The first reading of each run of blocks: no magic, no page header and no size of an index is right in it."""
        if offset % BLOCK_SIZE or (file.name, offset) in seen:
            return data
        seen.add((file.name, offset))
        damaged = bytearray(data)
        for start in [0, *starts[file.name], file.size - 24]:
            if offset <= start <= offset + len(data) - 8:
                damaged[start - offset : start - offset + 4] = b"\xff" * 4
        return bytes(damaged)

    script.on_read = damage_once
    with reading(script.url, tmp_path, prefetch=False) as con:
        assert rows(con, ALL) == expected
        assert rows(con, ALL) == expected
    script.on_read = None
    for _ in range(2):
        with reading(script.url, tmp_path, prefetch=False) as con:
            assert rows(con, ALL) == expected
    script.clear()
    with reading(script.url, tmp_path) as con:
        assert rows(con, ALL) == expected
    assert script.reads == []


@pytest.mark.plan("D05")
def test_kept_blocks_outlive_their_file_in_storage(remote, tmp_path):
    script, primary = remote
    with reading(script.url, tmp_path, poll_interval=0, cache_size=0) as con:
        expected = primary.rows(ALL)
        assert rows(con, ALL) == expected
        primary.delete_all()
        assert rows(con, ALL) == expected


def test_a_folder_that_fails_while_reading_costs_no_answer(remote, tmp_path, caplog):
    script, primary = remote
    folder = tmp_path / "folder"
    with caplog.at_level(logging.WARNING, "litevfs"), connected(script.url, cache_dir=folder) as con:
        folder.rename(tmp_path / "moved")
        folder.write_text("in the way")
        assert rows(con, ALL) == primary.rows(ALL)
        wait_until(lambda: not status_of(con)["disk_cache_writing"], "the end of writing")
    assert [record.name for record in caplog.records] == ["litevfs.files.disk_cache"]


def test_a_folder_without_room_costs_no_answer_and_the_next_process_what_was_kept(
    remote, tmp_path, caplog, monkeypatch
):
    script, primary = remote
    with reading(script.url, tmp_path) as con:
        rows(con, SOME)
    kept = {path.name for path in tmp_path.rglob("*.*")}
    primary.commit("UPDATE big SET data = x'01' WHERE id = 3")

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, "litevfs"):
        patch.setattr(local_files, "write_whole", refuse)
        with connected(script.url, cache_dir=tmp_path) as con:
            script.clear()
            assert rows(con, ALL) == primary.rows(ALL)
            assert not status_of(con)["disk_cache_writing"]
            assert status_of(con)["disk_cache_hits"] > 0
    assert [record.name for record in caplog.records] == ["litevfs.files.disk_cache"]
    assert {path.name for path in tmp_path.rglob("*.*")} == kept
    with connected(script.url, cache_dir=tmp_path) as con:
        assert rows(con, ALL) == primary.rows(ALL)
        assert status_of(con)["disk_cache_writing"]


@pytest.mark.plan("K01")
def test_a_folder_that_can_be_none_is_refused_when_opening(remote, tmp_path):
    script, _ = remote
    (tmp_path / "file").write_text("")
    with pytest.raises(OptionError, match="cache_dir"), connected(script.url, cache_dir=tmp_path / "file"):
        pass
    with pytest.raises(OptionError, match="cache_dir_size"), connected(script.url, cache_dir_size="lots"):
        pass


def test_a_local_replica_has_no_use_for_the_folder(tmp_path):
    client = open_replica_client(str(tmp_path / "replica"))
    with Primary(client) as primary:
        primary.commit("CREATE TABLE t(x); INSERT INTO t VALUES (1)")
        with connected(str(tmp_path / "replica"), cache_dir=tmp_path / "folder") as con:
            assert rows(con, "SELECT x FROM t") == [(1,)]
    client.close()
    assert not (tmp_path / "folder").exists()


# --- processes --------------------------------------------------------------------------------------------------------

_READER = """
    import json, random, sys, threading
    import litevfs
    url, folder, seed = sys.argv[1:]
    rng = random.Random(int(seed))
    con = litevfs.connect(url, cache_dir=folder, cache_size="200KB", prefetch=False)
    con.execute("PRAGMA cache_size=0")
    print("open", flush=True)
    if seed == "0":
        rows = con.execute("SELECT sum(id), sum(length(data)), sum(unicode(hex(data))) FROM big").fetchone()
        print(json.dumps([rows, json.loads(con.pragma("litestream_status"))["get_requests"]]))
        while any(thread.name == "litevfs-disk-cache" for thread in threading.enumerate()):
            threading.Event().wait(0.01)
        con.close()
    else:
        while True:
            con.execute("SELECT data FROM big WHERE id = ?", (rng.randrange(1200),)).fetchall()
"""
SUMS = "SELECT sum(id), sum(length(data)), sum(unicode(hex(data))) FROM big"


def start_reader(url: str, folder: Path, seed: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(_READER), url, str(folder), str(seed)]
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, env=os.environ)


def read_once(url: str, folder: Path) -> tuple[tuple[Any, ...], int]:
    """(the sums, GET requests) of a reader in a process of its own."""
    reader = start_reader(url, folder, 0)
    output, _ = reader.communicate(timeout=60)
    sums, requests = json.loads(output.splitlines()[1])
    return tuple(sums), requests


@pytest.fixture
def in_s3(s3_url):
    """URL of a replica of 4 MB in S3, and what `SUMS` has to be."""
    url = s3_url()
    client = open_replica_client(url)
    with Primary(client) as primary:
        primary.run(FILL)
        primary.compact(9, 1, 1)
        yield url, primary.rows(SUMS)[0]
    client.close()


@pytest.mark.slow
@pytest.mark.s3
@pytest.mark.plan("K02", "K03")
def test_another_process_with_the_same_folder_asks_s3_for_nothing_but_listings(in_s3, tmp_path):
    url, expected = in_s3
    sums, requests = read_once(url, tmp_path)
    assert sums == expected
    assert requests > 10
    assert read_once(url, tmp_path) == (expected, 0)


@pytest.mark.slow
@pytest.mark.s3
@pytest.mark.plan("D15", "D01")
@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.soak)])
def test_a_reader_killed_at_any_moment_leaves_a_folder_that_is_right(in_s3, tmp_path, kills):
    url, expected = in_s3
    rng = random.Random(15)
    kept = 0
    for seed in range(1, kills + 1):
        with start_reader(url, tmp_path, seed) as reader:
            try:
                assert reader.stdout is not None
                assert reader.stdout.readline() == "open\n"
                enough = min(kept + rng.randrange(1, 15), 45)  # of 57 or so, many of which may be there already
                wait_until(lambda enough=enough: len(blocks_in(tmp_path)) >= enough, "blocks", timeout_s=60)
            finally:
                reader.kill()
        kept = len(blocks_in(tmp_path))
    first, second = (read_once(url, tmp_path) for _ in range(2))
    assert first[0] == second[0] == expected
    assert second[1] == 0
