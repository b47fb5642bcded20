"""`litevfs.bindings.apsw_access`: which functions of SQLite's own answer for replicas, and which answers they have."""

from __future__ import annotations

import ctypes
from contextlib import closing

import apsw
import pytest

import litevfs
from litevfs.bindings import apsw_access, apsw_vfs
from litevfs.bindings import sqlite3_library as c
from tests.primary import Primary
from tests.scripted import Script
from tests.support import connected, one


@pytest.fixture
def url():
    with Script() as script, Primary(script.writer) as primary:
        primary.commit("CREATE TABLE t(a)")
        primary.commit("INSERT INTO t VALUES(1)")
        yield script.url


def accesses() -> dict[object, object]:
    """The functions of the VFSes of APSW's library, by their names."""
    return {vfs["zName"]: vfs["xAccess"] for vfs in apsw.vfs_details()}


def methods_of(connection: apsw.Connection) -> c.IOMethods:
    """The functions of the file of a connection's main database."""
    file = ctypes.c_void_p()
    connection.file_control("main", apsw.SQLITE_FCNTL_FILE_POINTER, ctypes.addressof(file))
    return c.IOMethods.from_address(ctypes.c_void_p.from_address(file.value or 0).value or 0)


def memdb_file() -> closing[apsw.Connection]:
    flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE
    return closing(apsw.Connection("x.db", vfs="memdb", flags=flags))


def test_a_function_of_sqlites_own_answers_for_each_vfs_of_a_replica(url):
    for name in ("litestream", "litestream-access-other"):
        with connected(url, vfs=name) as con:
            assert accesses()[name] == accesses()["memdb"]
            assert one(con, "SELECT a FROM t") == 1


def test_no_other_vfs_is_changed(url):
    before = accesses()
    with connected(url), closing(apsw.Connection(":memory:", vfs="unix-none")) as other:
        assert not apsw_access.answer_in_c(other, ("litestream",))
    after = accesses()
    assert {name: after[name] for name in before if name != "litestream"} == {
        name: before[name] for name in before if name != "litestream"
    }


@pytest.mark.parametrize("memdb", [True, False], ids=["by memdb", "by APSW"])
def test_journals_in_the_current_folder_are_not_the_replicas(url, tmp_path, monkeypatch, memdb):
    """A hot journal that lies there would be rolled back, a WAL be read; SQLite asks at every transaction."""
    if not memdb:  # as in a library that is built without it
        monkeypatch.setattr(apsw_access, "_says_not_there", lambda: None)
    name = f"litestream-access-{memdb}"
    litevfs.register(name, poll_interval=0, replica_url=url)
    monkeypatch.chdir(tmp_path)
    for suffix in ("", "-journal", "-wal"):
        (tmp_path / f"x.db{suffix}").write_bytes(b"not a journal" * 1000)
    with closing(apsw.Connection("x.db", vfs=name)) as con:
        assert (accesses()[name] == accesses()["memdb"]) is memdb
        assert [one(con, "SELECT a FROM t") for _ in range(2)] == [1, 1]
        assert one(con, "PRAGMA journal_mode") == "delete"
    assert len(list(tmp_path.iterdir())) == 3


def test_a_function_of_sqlites_own_promises_for_a_replica_what_is_of_no_use_to_readers(url, monkeypatch):
    by_apsw, by_memdb = [], []
    with connected(url) as con, memdb_file() as memory:
        methods, promising = methods_of(con), methods_of(memory).device_characteristics
        by_memdb = [getattr(methods, name) for name, _ in c.IOMethods._fields_[1:]]
        assert methods.device_characteristics == promising
        assert not ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(promising)(None) & (
            apsw.SQLITE_IOCAP_IMMUTABLE
            | apsw.SQLITE_IOCAP_SUBPAGE_READ
            | apsw.SQLITE_IOCAP_UNDELETABLE_WHEN_OPEN
            | apsw.SQLITE_IOCAP_BATCH_ATOMIC
        )
        assert [one(con, "SELECT a FROM t") for _ in range(3)] == [1, 1, 1]
    monkeypatch.setattr(apsw_access, "_changed", {})
    monkeypatch.setattr(apsw_access, "_promises_about_writes", lambda: None)  # as in a library without memdb
    with connected(url) as con:
        methods = methods_of(con)
        by_apsw = [getattr(methods, name) for name, _ in c.IOMethods._fields_[1:]]
        assert methods.device_characteristics != promising
        assert [one(con, "SELECT a FROM t") for _ in range(3)] == [1, 1, 1]
    addresses = [[ctypes.cast(f, ctypes.c_void_p).value for f in row] for row in (by_apsw, by_memdb)]
    assert sum(a != b for a, b in zip(*addresses, strict=True)) == 1


@pytest.mark.parametrize("change", ["version", "sector size", "promises", "memdb"])
def test_methods_that_are_not_as_expected_stay(url, monkeypatch, change):
    """As another version of APSW, or of SQLite, might have them."""
    monkeypatch.setattr(apsw_access, "_changed", {})
    if change == "version":
        monkeypatch.setattr(apsw_access, "_FILE_VERSION", 2)
    elif change == "sector size":
        monkeypatch.setattr(apsw_vfs.ReplicaFile, "xSectorSize", staticmethod(lambda: 512))
    elif change == "promises":
        monkeypatch.setattr(apsw_vfs.ReplicaFile, "xDeviceCharacteristics", staticmethod(lambda: 1))
    else:
        apsw_access._promises_about_writes.cache_clear()
        monkeypatch.setattr(apsw_access, "_ABOUT_WRITES", 0)
    with connected(url) as con, memdb_file() as memory:
        assert methods_of(con).device_characteristics != methods_of(memory).device_characteristics
        assert one(con, "SELECT a FROM t") == 1
    apsw_access._promises_about_writes.cache_clear()


def test_connections_that_are_closed_and_opened_share_the_methods(url):
    seen = set()
    for _ in range(5):
        with connected(url) as con:
            seen.add(ctypes.addressof(methods_of(con)))
            assert one(con, "SELECT a FROM t") == 1
    assert len(seen) == 1
