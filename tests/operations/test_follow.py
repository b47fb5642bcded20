"""A local file that follows a replica: the bytes of each state, what is read for it, and what it refuses."""

from __future__ import annotations

import json
import os
import resource
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from random import Random

import apsw
import pytest

import litevfs
from litevfs.errors import FollowError, FollowTargetError, OptionError, StaleReplicaError
from litevfs.operations.follow import Follow
from litevfs.operations.followed_file import PageSpool
from litevfs.options import Options
from litevfs.replica_clients.memory import MemoryReplicaClient, drop_memory_store, memory_store
from litevfs.testing.faulty import faulty_replica
from tests.primary import Primary
from tests.scripted import Script
from tests.support import numbers, primary_at, wait_until

ROOT = Path(__file__).parents[2]


@pytest.fixture
def primary(url: str) -> Iterator[Primary]:
    with primary_at(url) as primary:
        primary.commit("CREATE TABLE t (id INTEGER PRIMARY KEY, filler)")
        primary.commit(f"INSERT INTO t SELECT value, randomblob(500) FROM {numbers(200)}")
        yield primary


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "app.db"


def followed(url: str, path: Path, **options: object) -> Follow:
    """Without a thread: it goes on when `step` says so."""
    overwrite = bool(options.pop("overwrite", False))
    return Follow(Options.collect({}, {"replica_url": url, "poll_interval": 0} | options), path, overwrite=overwrite)


def step(follow: Follow) -> int:
    follow._replica.refresh_now()
    return follow.update()


def assert_is(path: Path, image: bytes, *, schema_version: bool = True) -> None:
    """The file is this image, but for the journal mode and the change counter on page 1."""
    mine = bytearray(path.read_bytes())
    theirs = bytearray(image)
    for patched in (mine, theirs):
        patched[18:20], patched[24:28], patched[92:96] = bytes(2), bytes(4), bytes(4)
        if not schema_version:
            patched[40:44] = bytes(4)
    assert mine == theirs
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)


def test_the_file_is_each_state_in_turn_and_open_readers_see_it(primary, url, path):
    with followed(url, path) as follow, closing(sqlite3.connect(path)) as reader:
        assert follow.txid == primary.txid
        assert_is(path, primary.images[primary.txid])
        for sql in (
            "DELETE FROM t WHERE id % 3 = 0",
            "INSERT INTO t SELECT id + 1000, filler FROM t",
            "DROP TABLE t; CREATE TABLE t (id, x); INSERT INTO t VALUES (1, 2)",
            "VACUUM",
        ):
            txid = primary.commit(sql)
            assert step(follow) == txid
            # A file with all pages, as VACUUM makes one, may be of another database.
            assert_is(path, primary.images[txid], schema_version=sql != "VACUUM")
            assert reader.execute("SELECT count(*) FROM t").fetchall() == primary.rows("SELECT count(*) FROM t")
    assert not [name for name in path.parent.iterdir() if name.name not in ("app.db", "app.db-follow")]


@pytest.mark.parametrize("seed", range(4))
def test_random_courses_with_ends_compaction_and_retention(primary, url, path, seed):
    random = Random(seed)
    follow = followed(url, path)
    try:
        for _ in range(25):
            match random.randrange(7):
                case 0:
                    follow.close()
                    follow = followed(url, path)
                case 1 if primary.txid > 2:
                    primary.compact(random.choice((1, 2, 9)), 1, primary.txid)
                    primary.delete(0, range(1, primary.txid))
                case 2:
                    primary.commit("DELETE FROM t WHERE id % 5 = 1; VACUUM", may_change_nothing=True)
                case 3:
                    primary.commit("UPDATE t SET filler = randomblob(300) WHERE id % 7 = 2", may_change_nothing=True)
                case _:
                    primary.commit(
                        f"INSERT INTO t SELECT abs(random()) >> 20, randomblob(?) FROM {numbers('?')}",
                        (random.randrange(2000), random.randrange(40)),
                        may_change_nothing=True,
                    )
            if random.random() < 0.7:
                assert step(follow) == primary.txid
                # A state that retention took cannot be proved to be an earlier one of the same database.
                assert_is(path, primary.images[primary.txid], schema_version=False)
    finally:
        follow.close()


@pytest.mark.parametrize(("before", "after"), [(4096, 512), (512, 65536)])
def test_a_replaced_replica_of_another_page_size_is_followed_in_place(url, path, before, after):
    client = MemoryReplicaClient(memory_store(url.removeprefix("memory://")))
    with Primary(client, page_size=before) as old:
        for _ in range(3):
            old.commit(f"CREATE TABLE IF NOT EXISTS t (x); INSERT INTO t SELECT zeroblob(900) FROM {numbers(90)}")
        with followed(url, path) as follow, closing(sqlite3.connect(path)) as reader:
            assert reader.execute("SELECT count(*) FROM t").fetchone() == (270,)
            old.delete_all()
            with Primary(client, page_size=after) as new:
                new.start_ms += 86_400_000
                new.commit("CREATE TABLE u (y); INSERT INTO u VALUES ('other')")
                wait_until(lambda: step(follow) == 1, "the other database", 40)
                assert_is(path, new.images[1], schema_version=False)
                assert reader.execute("SELECT * FROM u").fetchall() == [("other",)]


def test_only_what_changed_is_read_also_by_the_next_process(primary, url, path):
    primary.commit("INSERT INTO t SELECT id + 1000, randomblob(3000) FROM t")
    pages = len(primary.images[primary.txid]) // 4096
    assert pages > 150
    with followed(url, path) as follow:
        primary.commit("UPDATE t SET filler = 'x' WHERE id = 7")
        before = follow._replica.fetcher.counters.get
        step(follow)
        assert 1 <= follow._replica.fetcher.counters.get - before <= 5
    primary.commit("UPDATE t SET filler = 'y' WHERE id = 9")
    with followed(url, path) as follow:
        assert follow._replica.fetcher.counters.get < 20  # the index of each file, and the pages that changed
        assert_is(path, primary.images[primary.txid])


def test_a_far_storage_is_read_in_parallel_and_faults_are_met(primary, url, path):
    primary.commit("INSERT INTO t SELECT id + 1000, randomblob(3000) FROM t")
    with faulty_replica(url, seed=1, block_size=1 << 16) as faults, followed(faults.url, path) as follow:
        assert_is(path, primary.images[primary.txid])
        primary.commit("UPDATE t SET filler = 'z'")
        assert step(follow) == primary.txid
        assert_is(path, primary.images[primary.txid])


def test_the_thread_follows_and_wait_for_says_when(primary, url, path):
    with litevfs.follow(url, path, poll_interval="10ms") as follow:
        for number in range(5):
            txid = primary.commit("INSERT INTO t VALUES (?, 'new')", (5000 + number,))
            assert follow.wait_for(f"{txid:x}") == txid
            assert_is(path, primary.images[txid])
        with pytest.raises(StaleReplicaError, match="not yet at 00000000000003e7"):
            follow.wait_for(999, timeout=0.05)
    assert json.loads((path.parent / "app.db-follow").read_text())["txid"] == f"{txid:016x}"


def test_a_reader_that_stays_is_left_its_state_and_followed_up_later(primary, url, path, monkeypatch):
    monkeypatch.setattr("litevfs.operations.followed_file.LOCK_TIMEOUT_S", 0.05)
    with litevfs.follow(url, path, poll_interval="10ms") as follow, closing(sqlite3.connect(path)) as reader:
        reader.execute("BEGIN")
        count = reader.execute("SELECT count(*) FROM t").fetchone()
        txid = primary.commit("DELETE FROM t")
        wait_until(lambda: follow.last_error is not None, "the reader to be in the way")
        assert "readers have held the database" in str(follow.last_error)
        assert reader.execute("SELECT count(*) FROM t").fetchone() == count
        reader.execute("COMMIT")
        assert follow.wait_for(txid) == txid
        assert reader.execute("SELECT count(*) FROM t").fetchone() == (0,)


# --- what it goes on from, and what it refuses ------------------------------------------------------------------------


def test_an_empty_placeholder_is_no_obstacle(primary, url, path):
    path.touch()
    with followed(url, path):
        assert_is(path, primary.images[primary.txid])


def test_a_closed_follower_says_so(primary, url, path):
    with litevfs.follow(url, path) as follow:
        txid = follow.txid
    assert follow.wait_for(txid) == txid
    with pytest.raises(FollowError, match="this follower is closed"):
        follow.wait_for(txid + 1)


def test_a_file_that_another_program_wrote_is_refused_and_stays(primary, url, path):
    follow = litevfs.follow(url, path, poll_interval="10ms")
    try:
        with closing(sqlite3.connect(path)) as writer, writer:
            writer.execute("INSERT INTO t VALUES (77777, 'mine')")
        mine = path.read_bytes()
        txid = primary.commit("DELETE FROM t WHERE id < 50")
        with pytest.raises(FollowTargetError, match="written by another program"):
            follow.wait_for(txid)
        assert path.read_bytes() == mine
    finally:
        follow.close()
    with pytest.raises(FollowTargetError, match="written by another program since"):
        followed(url, path)
    assert path.read_bytes() == mine
    with followed(url, path, overwrite=True):
        assert_is(path, primary.images[primary.txid], schema_version=False)


def test_a_database_of_someone_else_is_refused_unless_it_may_be_overwritten(primary, url, path):
    with closing(sqlite3.connect(path)) as other, other:
        other.execute("CREATE TABLE precious (x)")
    theirs = path.read_bytes()
    for _ in range(2):  # as a service does that is started again
        with pytest.raises(FollowTargetError, match="did not make"):
            followed(url, path)
        assert path.read_bytes() == theirs
    with followed(url, path, overwrite=True):
        assert_is(path, primary.images[primary.txid], schema_version=False)


def test_what_is_no_database_or_in_wal_mode_or_a_lonely_log_is_refused(primary, url, path):
    path.write_text("my diary " * 100)
    with pytest.raises(FollowTargetError, match="no SQLite database"):
        followed(url, path, overwrite=True)
    path.unlink()
    connection = sqlite3.connect(path)
    connection.executescript("PRAGMA journal_mode=WAL; CREATE TABLE t (x)")
    with pytest.raises(FollowTargetError, match="WAL mode"):
        followed(url, path, overwrite=True)
    connection.close()
    path.unlink()
    wal = path.with_name("app.db-wal")
    wal.write_bytes(b"left over")
    with pytest.raises(FollowTargetError, match="log without its database"):
        followed(url, path)
    assert wal.read_bytes() == b"left over"


def test_two_followers_do_not_share_a_file_and_a_file_has_one_replica(primary, url, path):
    with followed(url, path), pytest.raises(FollowError, match="another process keeps this file current"):
        followed(url, path)
    with Primary(MemoryReplicaClient(memory_store("follow-other"))) as other:
        other.commit("CREATE TABLE t (x)")
        with pytest.raises(FollowTargetError, match=f"follows {url}"):
            followed("memory://follow-other", path)
    drop_memory_store("follow-other")


@pytest.mark.parametrize("torn", [b'{"url": "mem', b"\0" * 4096])
def test_a_torn_record_costs_a_comparison_and_no_row(primary, url, path, torn):
    with followed(url, path):
        pass
    path.with_name("app.db-follow").write_bytes(torn)
    primary.commit("DELETE FROM t WHERE id > 100")
    with followed(url, path):
        assert_is(path, primary.images[primary.txid], schema_version=False)


def test_a_fixed_state_or_an_impossible_path_is_refused_at_once(primary, url, tmp_path):
    with pytest.raises(OptionError, match="nothing to follow"):
        followed(url, tmp_path / "app.db", txid="1")
    with pytest.raises(FollowError, match="cannot write"):
        followed(url, tmp_path / "missing" / "app.db")


_FOLLOW = "import sys, litevfs; f = litevfs.follow(sys.argv[1], sys.argv[2], poll_interval='5ms'); sys.stdin.read()"


@pytest.mark.plan("D15")
def test_a_follower_killed_at_random_moments_leaves_a_state_and_goes_on(tmp_path, path):
    """A primary, a follower that is killed again and again, and readers that add up a ledger."""
    random = Random(5)
    database, replica = tmp_path / "primary.db", tmp_path / "replica"
    application = apsw.Connection(str(database))
    application.pragma("journal_mode", "wal")
    application.execute("CREATE TABLE account (id INTEGER PRIMARY KEY, cents, filler)")
    application.execute(f"INSERT INTO account SELECT value, 100, randomblob(400) FROM {numbers(300)}")
    with closing(application), litevfs.Replicator(str(database), str(replica), sync_interval_s=0.005) as replicator:
        replicator.start()
        replicator.sync()
        with litevfs.follow(str(replica), path):
            pass
        for _ in range(12):
            follower = subprocess.Popen(
                [sys.executable, "-c", _FOLLOW, str(replica), str(path)], cwd=ROOT, stdin=subprocess.PIPE
            )
            try:
                moves = random.randrange(40, 120)
                for _ in range(moves):
                    a, b = random.sample(range(1, 301), 2)
                    with application:
                        application.execute(
                            "UPDATE account SET cents = cents - 1, filler = randomblob(400) WHERE id = ?", (a,)
                        )
                        application.execute("UPDATE account SET cents = cents + 1 WHERE id = ?", (b,))
                    with closing(sqlite3.connect(path, timeout=20)) as reader:
                        assert reader.execute("SELECT count(*), sum(cents) FROM account").fetchone() == (300, 30000)
            finally:
                follower.kill()
                follower.communicate()
            with closing(sqlite3.connect(path, timeout=20)) as reader:
                assert reader.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        txid = replicator.sync()
        with litevfs.follow(str(replica), path) as follow:
            follow.wait_for(txid)
        with closing(sqlite3.connect(path)) as reader:
            mine = reader.execute("SELECT id, cents, filler FROM account").fetchall()
        assert mine == application.execute("SELECT id, cents, filler FROM account").fetchall()


@pytest.mark.usefixtures("primary")
def test_what_is_no_file_is_not_followed_into(url: str, tmp_path: Path):
    path = tmp_path / "fifo"
    os.mkfifo(path)
    with pytest.raises(FollowTargetError, match="neither a file nor free"):
        followed(url, path)
    assert path.is_fifo()


def test_pages_that_a_full_disk_does_not_take_are_told_with_the_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("litevfs.operations.followed_file.MEMORY_BYTES", 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (512, limits[1]))  # Python ignores the signal: an error as of a full disk
    try:
        with PageSpool(4096, tmp_path) as spool, pytest.raises(FollowError, match="cannot write the pages") as caught:
            spool.add(1, bytes(4096))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(tmp_path) in str(caught.value)


def test_a_follower_goes_on_after_an_error_that_no_storage_raises(path, caplog):
    errors = [MemoryError()]

    def fail_once(_file: object, _offset: int, data: bytes) -> bytes:
        if errors and threading.current_thread().name.startswith("litevfs-follow"):
            raise errors.pop()
        return data

    with Script() as script, Primary(script.writer) as primary:
        primary.commit("CREATE TABLE t (id INTEGER PRIMARY KEY)")
        with litevfs.follow(script.url, path, poll_interval="2ms", cache_size=0) as followed:
            script.on_read = fail_once
            primary.commit("INSERT INTO t VALUES (1)")
            assert followed.wait_for(2) == 2
            script.on_read = None
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT id FROM t").fetchall() == [(1,)]
    assert not errors
