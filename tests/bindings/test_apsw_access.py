"""`litevfs.bindings.apsw_access`: which function answers whether a replica has a journal."""

from __future__ import annotations

from contextlib import closing

import apsw
import pytest

import litevfs
from litevfs.bindings import apsw_access
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


def test_a_function_of_sqlites_own_answers_for_each_vfs_of_a_replica(url):
    for name in ("litestream", "litestream-access-other"):
        with connected(url, vfs=name) as con:
            assert accesses()[name] == accesses()["memdb"]
            assert one(con, "SELECT a FROM t") == 1


def test_no_other_vfs_is_changed(url):
    before = accesses()
    with connected(url), closing(apsw.Connection(":memory:", vfs="unix-none")) as other:
        assert not apsw_access.answer_access_in_c(other, ("litestream",))
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
