"""The public functions: registering, connecting, waiting, subscribing; and what a user's mistakes look like."""

from __future__ import annotations

import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import apsw
import pytest

import litevfs
from litevfs.errors import LTXFormatError, OptionError, ReplicaURLError, StaleReplicaError, StorageNotFoundError
from litevfs.ltx.names import format_file_name
from litevfs.replica_clients.file import FileReplicaClient
from tests.primary import Primary
from tests.scripted import Script
from tests.support import connected, one, rows, wait_until

URI_FLAGS = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI


@pytest.fixture
def world():
    with Script() as script, Primary(script.writer) as primary:
        primary.commit("CREATE TABLE t(x); INSERT INTO t VALUES(1)")
        yield primary, script


@pytest.fixture
def folder(tmp_path):
    """A replica in a folder, by path; and its primary."""
    with Primary(FileReplicaClient(tmp_path / "replica")) as primary:
        primary.commit("CREATE TABLE t(x); INSERT INTO t VALUES(1)")
        primary.commit("INSERT INTO t VALUES(2)")
        yield tmp_path / "replica", primary
        primary.client.close()


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@pytest.mark.parametrize("name", ["dbapi.connect", "errors.LitevfsError", "connect", "TXIDGapError"])
@pytest.mark.slow
def test_what_the_documentation_names_is_there_after_import_litevfs(name):
    code = f"import litevfs; print(litevfs.{name}, {name.partition('.')[0]!r} in dir(litevfs))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(" True\n")


# --- opening ----------------------------------------------------------------------------------------------------------


@pytest.mark.plan("K01")
def test_defaults_work_with_a_path_a_url_and_a_uri(folder):
    root, _ = folder
    for url in (str(root), root, f"file://{root}"):
        with connected(url) as con:
            assert rows(con, "SELECT * FROM t") == [(1,), (2,)]
    litevfs.register()
    con = apsw.Connection(f"file:any.db?replica_url=file://{root}", vfs="litestream", flags=URI_FLAGS)
    assert rows(con, "SELECT * FROM t") == [(1,), (2,)]
    con.close()


def test_a_path_with_odd_characters_is_a_path(tmp_path):
    root = tmp_path / "it's 100% odd & über ?#+ü=1;"
    with Primary(FileReplicaClient(root)) as primary:
        primary.commit("CREATE TABLE t(x); INSERT INTO t VALUES(1)")
        with connected(root) as con:
            assert rows(con, "SELECT * FROM t") == [(1,)]
        primary.client.close()


def test_the_environment_names_the_replica(world, monkeypatch):
    _, script = world
    monkeypatch.setenv("LITESTREAM_REPLICA_URL", script.url)
    litevfs.register()
    con = apsw.Connection("app.db", vfs="litestream", flags=URI_FLAGS)
    assert rows(con, "SELECT * FROM t") == [(1,)]
    con.close()


def test_registering_again_replaces_the_defaults_of_later_connections(world):
    primary, script = world
    primary.commit("INSERT INTO t VALUES(2)")
    name = "litestream-defaults-test"
    litevfs.register(name, replica_url=script.url, txid=1)
    litevfs.register(name)
    with apsw.Connection("x", vfs=name, flags=URI_FLAGS) as con:
        assert rows(con, "SELECT * FROM t") == [(1,)]
    con.close()
    litevfs.register(name, replica_url=script.url, poll_interval=0)
    with apsw.Connection("x", vfs=name, flags=URI_FLAGS) as con:
        assert rows(con, "SELECT * FROM t") == [(1,), (2,)]
    con.close()


def test_a_journal_or_wal_in_the_current_folder_is_none_of_our_business(world, tmp_path, monkeypatch):
    _, script = world
    monkeypatch.chdir(tmp_path)
    name = script.url.rpartition("/")[2]
    for suffix in ("", "-journal", "-wal", "-shm"):
        Path(f"{name}{suffix}").write_bytes(b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7" + b"not ours" * 100)
    with connected(script.url) as con:
        assert rows(con, "SELECT * FROM t") == [(1,)]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(f"{name}{s}" for s in ("", "-journal", "-wal", "-shm"))


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.plan("K01")
@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("", "replica URL"),
        ("s5://bucket/x", "unknown scheme"),
        ("sftp://host/x", "an sftp URL without a user"),
        ("file://host/x", "a file URL with a host"),
        ("file:///x?y=1", "no parameters"),
        ("s3://", "bucket"),
        ("s3://bucket/path?endpont=x", "did you mean endpoint?"),
    ],
)
def test_a_bad_url_is_refused_with_a_hint(url, text, monkeypatch):
    monkeypatch.delenv("LITESTREAM_REPLICA_URL", raising=False)
    with pytest.raises(OptionError) as caught:
        litevfs.connect(url)
    assert text in str(caught.value)
    assert caught.value.hint
    assert isinstance(caught.value, ReplicaURLError) or not url


@pytest.mark.plan("K01")
def test_a_uri_without_a_replica_says_what_is_missing(monkeypatch):
    monkeypatch.delenv("LITESTREAM_REPLICA_URL", raising=False)
    litevfs.register()
    with pytest.raises(OptionError, match="no replica URL") as caught:
        apsw.Connection("file:app.db", vfs="litestream", flags=URI_FLAGS)
    assert "replica_url" in caught.value.hint
    with (
        closing(apsw.Connection("file::memory:?vfs=unix", flags=URI_FLAGS)) as connection,
        pytest.raises(
            OptionError, match=r"hint: a replica's URL stands in a URI.*'file:app\?replica_url=s3%3A"
        ) as caught,
    ):
        connection.execute("ATTACH 'file:s3://bucket/app%3FsseCustomerKey=secret?vfs=litestream' AS replica")
    assert "secret" not in str(caught.value)


@pytest.mark.plan("K01")
def test_an_unknown_uri_parameter_is_refused_with_the_nearest_name(world):
    _, script = world
    litevfs.register()
    with pytest.raises(OptionError, match="did you mean poll_interval"):
        apsw.Connection(f"file:a?replica_url={script.url}&pol_interval=1s", vfs="litestream", flags=URI_FLAGS)


def test_a_missing_folder_is_said_so_after_the_wait(tmp_path):
    with pytest.raises(litevfs.ReplicaFolderNotFoundError, match=r"no such replica folder.*waiting 0.1 s") as caught:
        litevfs.connect(tmp_path / "nowhere", open_timeout="100ms")
    assert isinstance(caught.value, StorageNotFoundError)
    assert isinstance(caught.value, FileNotFoundError)
    assert isinstance(caught.value, apsw.Error)
    assert "open_timeout" in caught.value.hint
    assert caught.value.key == str(tmp_path / "nowhere")


def test_a_reader_may_start_before_the_primary_has_made_the_folder(tmp_path):
    folder = tmp_path / "later" / "app"
    client = FileReplicaClient(folder)

    def write() -> None:
        with Primary(client) as primary:
            primary.commit("CREATE TABLE t AS SELECT 7 AS x")

    writer = threading.Timer(0.2, write)
    writer.start()
    try:
        with connected(folder, open_timeout="30s") as connection:
            assert rows(connection, "SELECT x FROM t") == [(7,)]
    finally:
        writer.join()
        client.close()


def test_a_path_to_a_file_is_said_so(tmp_path):
    (tmp_path / "app.db").write_bytes(b"SQLite format 3\0")
    with pytest.raises(litevfs.StorageError) as caught:
        litevfs.connect(tmp_path / "app.db", open_timeout="50ms")
    assert str(tmp_path / "app.db") in str(caught.value)
    assert caught.value.hint
    assert "a replica is a folder" in caught.value.hint


@pytest.mark.plan("L27", "D05")
@pytest.mark.parametrize("damage", ["truncated", "flipped", "text", "empty", "renamed", "version 2"])
def test_a_damaged_file_is_a_typed_error_that_names_it(folder, damage):
    root, primary = folder
    path = root / "ltx" / "0" / format_file_name(2, 2)
    data = path.read_bytes()
    version_2_page = b"\x00\x00\x00\x01" + b"\x04\x22\x4d\x18" + bytes(40)
    bad = {
        "truncated": data[:-50],
        "flipped": flipped(data),
        "text": b"not transactions at all " * 30,
        "empty": b"",
        "renamed": primary.file_bytes(1, 1),
        "version 2": data[:100] + version_2_page + data[148:],
    }
    path.write_bytes(bad[damage])
    with pytest.raises(LTXFormatError) as caught:
        litevfs.connect(root)
    error = caught.value
    assert (error.level, error.min_txid, error.max_txid, error.key) == (0, 2, 2, str(path))
    assert str(path) in str(error)
    assert error.extendedresult == apsw.SQLITE_CORRUPT
    if damage == "version 2":
        assert "version 2" in str(error)
    path.write_bytes(data)
    with connected(root) as con:
        assert rows(con, "SELECT * FROM t") == [(1,), (2,)]


def test_a_flipped_byte_comes_with_a_hint(folder):
    root, _ = folder
    path = root / "ltx" / "0" / format_file_name(2, 2)
    path.write_bytes(flipped(path.read_bytes()))
    with pytest.raises(LTXFormatError) as caught:
        litevfs.connect(root)
    assert caught.value.hint


def test_a_failed_open_leaves_nothing_behind(folder):
    root, _ = folder
    (root / "ltx" / "0" / format_file_name(2, 2)).write_bytes(b"")
    for _ in range(5):
        with pytest.raises(LTXFormatError):
            litevfs.connect(root)
    assert litevfs.live.registry.registry.shared == {}
    # The thread of the last refresh waits some milliseconds for another call.
    wait_until(lambda: not [t for t in threading.enumerate() if t.name.startswith("litevfs")], "the end of all threads")


# --- waiting and subscribing ------------------------------------------------------------------------------------------


@pytest.mark.plan("K05")
def test_waiting_on_a_database_that_is_no_replica_is_said_so(world):
    with pytest.raises(OptionError, match="schema main of this connection is no replica"):
        litevfs.wait_for(apsw.Connection(":memory:"), 1)


def test_wait_for_sees_what_was_just_written(world):
    primary, script = world
    with connected(script.url, poll_interval="60s") as con:
        txid = primary.commit("INSERT INTO t VALUES(2)")
        assert litevfs.wait_for(con, txid, timeout=5) == txid
        assert rows(con, "SELECT * FROM t") == [(1,), (2,)]
        assert litevfs.wait_for(con, "1") == txid
        with pytest.raises(StaleReplicaError):
            litevfs.wait_for(con, txid + 1, timeout=0.02)


@pytest.mark.plan("K07")
def test_subscribers_hear_of_each_transaction_once_and_in_order(world):
    primary, script = world
    heard: list[int] = []
    other: list[int] = []
    with litevfs.subscribe(script.url, heard.append, poll_interval="2ms") as subscription:
        assert subscription.txid == 1
        with litevfs.subscribe(script.url, other.append, poll_interval="2ms"):
            for _ in range(20):
                primary.commit("INSERT INTO t VALUES(2)")
            wait_until(lambda: len(heard) >= 20 and len(other) >= 20)
        primary.commit("INSERT INTO t VALUES(3)")
        wait_until(lambda: len(heard) >= 21)
    primary.commit("INSERT INTO t VALUES(4)")
    assert heard == list(range(2, 23))
    assert other == list(range(2, 22))


@pytest.mark.plan("K07")
def test_a_callback_that_fails_is_logged_and_called_again(world, caplog):
    primary, script = world
    heard: list[int] = []

    def fail_first(txid: int) -> None:
        heard.append(txid)
        if txid == 2:
            raise RuntimeError("a defect of the subscriber")

    with litevfs.subscribe(script.url, fail_first, poll_interval="2ms"):
        primary.commit("INSERT INTO t VALUES(2)")
        primary.commit("INSERT INTO t VALUES(3)")
        wait_until(lambda: 3 in heard)
    assert heard == [2, 3]
    assert "a defect of the subscriber" in caplog.text


@pytest.mark.plan("K05")
def test_errors_are_apsws_and_their_standard_kin(world):
    _, script = world
    with connected(script.url) as con:
        with pytest.raises(apsw.SQLError, match="no such table: nowhere"):
            con.execute("SELECT * FROM nowhere")
        assert one(con, "SELECT count(*) FROM t") == 1
