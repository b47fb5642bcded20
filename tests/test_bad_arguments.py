"""What a user passes by mistake to the public functions: refused alike everywhere, by an error that names the fault."""

from __future__ import annotations

import traceback
from contextlib import closing

import pytest

import litevfs
import litevfs.dbapi
from litevfs.errors import OptionError, ReplicaURLError, StaleReplicaError
from litevfs.replica_clients.file import FileReplicaClient
from litevfs.replica_clients.memory import drop_memory_store
from litevfs.replica_clients.urls import open_replica_client
from tests.primary import Primary
from tests.support import connected, one


@pytest.fixture
def replica(tmp_path):
    """A replica in a folder, by path."""
    with Primary(FileReplicaClient(tmp_path / "replica")) as primary:
        primary.commit("CREATE TABLE t(x); INSERT INTO t VALUES(1)")
        primary.client.close()
    return tmp_path / "replica"


NO_URLS = [None, b"/a", 1, True, float("nan"), [], "/a\0b", "/a\udcff", ["/a"]]


@pytest.mark.parametrize("bad", NO_URLS, ids=ascii)
def test_what_is_no_url_is_refused_alike_by_every_function(bad, tmp_path):
    calls = {
        "connect": lambda: litevfs.connect(bad),
        "connect_stdlib": lambda: litevfs.connect_stdlib(bad),
        "dbapi": lambda: litevfs.dbapi.connect(bad),
        "subscribe": lambda: litevfs.subscribe(bad, print),
        "diff": lambda: litevfs.diff(bad, 1),
        "verify": lambda: litevfs.verify(bad),
        "restore": lambda: litevfs.restore(bad, tmp_path / "restored"),
        "follow": lambda: litevfs.follow(bad, tmp_path / "followed"),
        "copy from": lambda: litevfs.copy(bad, tmp_path / "copied"),
        "copy to": lambda: litevfs.copy(tmp_path, bad),
        "partitions": lambda: litevfs.partitions(bad, "t", 2),
        "explain_io": lambda: litevfs.explain_io(bad, "SELECT 1"),
        "open_replica_client": lambda: litevfs.open_replica_client(bad),
        "Replicator": lambda: litevfs.Replicator(tmp_path / "app.db", bad),
    }
    for name, call in calls.items():
        with pytest.raises(ReplicaURLError, match="no replica URL: not text") as caught:
            call()
        assert "for example s3://bucket/path" in str(caught.value), name


@pytest.mark.parametrize(
    "url", ["s3://[", "s3://[::1/x", "http://[", "gs://b\u2100/x", "s3://bucket/x?endpoint=http://["]
)
def test_half_an_address_is_no_url(url):
    with pytest.raises(ReplicaURLError, match=r"host cannot be read|not an S3 endpoint"):
        litevfs.connect(url)


def test_credentials_before_half_an_address_are_not_shown():
    with pytest.raises(ReplicaURLError) as caught:
        litevfs.connect("https://user:secret@b\u2100/x")
    shown = "".join(traceback.format_exception(caught.value))
    assert "secret" not in shown.replace('connect("https://user:secret', "")


@pytest.mark.parametrize("name", [None, b"v", 1, [], "", "a\0b", "\udcff"], ids=ascii)
def test_what_cannot_name_a_vfs_is_refused(name, replica):
    for call in (
        lambda: litevfs.connect(replica, vfs=name),
        lambda: litevfs.connect_stdlib(replica, vfs=name),
        lambda: litevfs.register(name),
        lambda: litevfs.register_stdlib(name),
    ):
        with pytest.raises(OptionError, match="not a name for a VFS"):
            call()


@pytest.mark.parametrize("bad", ["t", b"t", 1, [1], [b"t"]], ids=repr)
def test_one_name_of_a_table_is_no_list_of_names(replica, bad):
    with pytest.raises(OptionError, match="not a list of names"):
        litevfs.diff(replica, 1, tables=bad)
    with pytest.raises(OptionError, match="not a list of names"):
        litevfs.subscribe(replica, print, tables=bad)
    with pytest.raises(OptionError, match="not a list of names"):
        litevfs.partitions(replica, "t", 2, columns=bad)


def test_what_names_no_column_and_what_cannot_be_called_is_refused(replica):
    with pytest.raises(OptionError, match="no columns to read; hint: columns: x"):
        litevfs.partitions(replica, "t", 2, columns=[])
    with pytest.raises(OptionError, match="not a function to call"):
        litevfs.subscribe(replica, "print")


def test_states_and_counts_that_are_none_are_refused(replica):
    for bad in (None, b"1", 1.5, True, 0, -1, 2**64, []):
        with pytest.raises(OptionError, match="not a TXID"):
            litevfs.diff(replica, bad)
    for call in (lambda: litevfs.diff(replica, 1, "soon"), lambda: litevfs.partitions(replica, "t", 1, txid="soon")):
        with pytest.raises(OptionError, match=r"neither a TXID nor a time: 'soon'; hint: .* hex digits; .* RFC 3339"):
            call()
    for bad in (None, 0, -1, 1.5, "2", float("nan")):
        with pytest.raises(OptionError, match="not a number of pieces"):
            litevfs.partitions(replica, "t", bad)
    assert [piece.low for piece in litevfs.partitions(replica, "t", 2**64)] == [None]


def test_a_replica_may_have_a_name_longer_than_sqlite_allows_for_a_file():
    url = f"memory://{'x' * 3000}"
    with Primary(open_replica_client(url)) as primary:
        primary.commit("CREATE TABLE t(x); INSERT INTO t VALUES(1)")
        with connected(url) as con:
            assert one(con, "SELECT x FROM t") == 1
    drop_memory_store("x" * 3000)


@pytest.mark.parametrize("door", [litevfs.connect, litevfs.connect_stdlib, litevfs.dbapi.connect])
def test_wait_for_refuses_bad_arguments_alike_at_every_door(replica, door):
    with closing(door(replica, poll_interval="60s")) as con:
        for bad in (None, b"1", 1.5, True, 0, -1, 2**64, "", "xyz", "9" * 400, [], 10**5000):
            with pytest.raises(OptionError, match="not a TXID"):
                litevfs.wait_for(con, bad)
        for bad in (None, b"1s", -1, float("nan"), float("inf"), "soon", "", [], 10**400):
            with pytest.raises(OptionError, match="not a duration"):
                litevfs.wait_for(con, 1, bad)
        for bad in ("", "other", "x" * 5000, '"; --'):
            with pytest.raises(OptionError, match="is no replica"):
                litevfs.wait_for(con, 1, schema=bad)
        for bad in (None, b"main", "a\0b", "\udcff"):
            with pytest.raises(OptionError, match="not text"):
                litevfs.wait_for(con, 1, schema=bad)
        with pytest.raises(StaleReplicaError, match="00000000000000ff"):
            litevfs.wait_for(con, "ff", "10ms")
        assert litevfs.wait_for(con, "1", "10ms", schema="MAIN") == 1


@pytest.mark.parametrize("door", [litevfs.connect_stdlib, litevfs.dbapi.connect])
def test_wait_for_does_not_depend_on_what_a_connection_makes_of_rows_and_texts(replica, door):
    with closing(door(replica)) as con:
        con.row_factory = lambda cursor, row: {"txid": row[0]}
        con.text_factory = bytes
        assert litevfs.wait_for(con, 1) == 1


@pytest.mark.parametrize("bad", [None, "soon", -1, 0, float("nan"), float("inf"), 10**400, True])
def test_a_replicator_refuses_pauses_that_are_none(bad, tmp_path):
    for name in ("sync_interval_s", "lease_ttl_s"):
        if (name, bad) != ("lease_ttl_s", None):  # no lease
            with pytest.raises(OptionError, match=r"not a duration|(interval|lease) of 0"):
                litevfs.Replicator(tmp_path / "app.db", tmp_path / "replica", **{name: bad})
    assert list(tmp_path.iterdir()) == []
