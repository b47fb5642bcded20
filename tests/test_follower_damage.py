"""States made from nothing where files are damaged: around them if others lead there, else with what is left."""

from __future__ import annotations

import pytest

import litevfs
from litevfs.errors import LTXFormatError, StorageNotFoundError
from litevfs.replica_clients.base import LTXFileInfo
from tests.primary import Primary
from tests.scripted import Script

ROWS = "SELECT count(*), sum(length(x)) FROM t"


@pytest.fixture
def world():
    """A primary with six transactions, and its storage."""
    with Script() as script, Primary(script.writer) as primary:
        primary.commit("CREATE TABLE t(x)")
        for n in range(5):
            primary.commit(f"INSERT INTO t VALUES(zeroblob({3000 + n}))")
        yield primary, script


def damage(primary: Primary, *file: int) -> None:
    level, min_txid, max_txid = file
    data = primary.file_bytes(min_txid, max_txid)
    primary.client.write(level, min_txid, max_txid, data[:-20] + bytes(20), primary.timestamp_ms(max_txid))


def rows(script: Script, **options: object) -> list[tuple[object, ...]]:
    connection = litevfs.connect(script.url, open_timeout="0.2s", **options)
    try:
        return connection.execute(ROWS).fetchall()
    finally:
        connection.close()


@pytest.mark.plan("L28")
@pytest.mark.parametrize("file", [(1, 2, 6), (9, 1, 4), (2, 1, 6)], ids=str)
@pytest.mark.parametrize("txid", [None, 6], ids=["newest", "txid"])
def test_a_damaged_file_is_gone_around_at_open_where_others_lead_as_far(world, file, txid):
    primary, script = world
    damage(primary, *file)
    assert rows(script, **({} if txid is None else {"txid": txid})) == primary.rows(ROWS)


@pytest.mark.plan("L28")
def test_several_damaged_files_are_gone_around_at_open(world):
    primary, script = world
    for file in ((9, 1, 6), (3, 1, 5), (2, 1, 3), (1, 2, 4), (0, 3, 3)):
        damage(primary, *file)
    primary.compact(1, 2, 3)
    assert rows(script) == primary.rows(ROWS)


@pytest.mark.plan("L29")
def test_a_file_that_is_listed_though_it_is_gone_is_gone_around_at_open(world):
    primary, script = world
    gone = primary.compact(1, 1, 6)
    primary.delete(1)
    script.on_list = lambda level, files: [gone] if level == 1 else files
    assert rows(script) == primary.rows(ROWS)


@pytest.mark.plan("L28", "E03")
def test_a_damaged_file_of_a_replica_that_was_replaced_is_gone_around(world):
    primary, script = world
    connection = litevfs.connect(script.url, poll_interval=0)
    try:
        primary.delete_all()
        with Primary(script.writer) as other:
            other.start_ms = primary.timestamp_ms(100)
            for sql in ("CREATE TABLE t(x)", *["INSERT INTO t VALUES(zeroblob(9000))"] * 8):
                other.commit(sql)
            damage(other, 1, 3, 7)
            litevfs.wait_for(connection, 9, 5)
            assert connection.execute(ROWS).fetchall() == other.rows(ROWS)
    finally:
        connection.close()


@pytest.mark.plan("L28")
@pytest.mark.parametrize(
    ("damaged", "compacted", "earlier"),
    [((0, 6, 6), [], 5), ((0, 4, 4), [], 3), ((1, 4, 6), [(1, 1, 3)], 3), ((0, 6, 6), [(9, 1, 4), (1, 1, 3)], 5)],
    ids=str,
)
def test_where_nothing_replaces_a_damaged_file_the_error_names_the_state_before(world, damaged, compacted, earlier):
    primary, script = world
    if damaged[0] == 1:
        primary.delete(0)
    damage(primary, *damaged)
    for file in compacted:
        primary.compact(*file)
    for options in ({}, {"txid": 6}):
        script.clear()
        with pytest.raises(LTXFormatError) as caught:
            rows(script, **options)
        assert (caught.value.level, caught.value.min_txid, caught.value.max_txid) == damaged
        assert "litevfs verify" in str(caught.value)
        assert str(caught.value).endswith(f"the state before can be opened with txid={earlier:016x}")
    assert rows(script, txid=f"{earlier:016x}") == primary.rows(ROWS, earlier)


@pytest.mark.plan("L28")
def test_where_nothing_is_left_the_error_names_no_state(world):
    primary, script = world
    damage(primary, 0, 1, 1)
    with pytest.raises(LTXFormatError, match="damaged") as caught:
        rows(script)
    assert "txid=" not in str(caught.value)


def test_a_file_that_stays_gone_and_that_nothing_replaces_is_told(world):
    primary, script = world
    primary.delete(0, [6])
    gone = LTXFileInfo(0, 6, 6, size=500, modified_ms=0)
    script.on_list = lambda level, files: files if level else [*files, gone]
    with pytest.raises(StorageNotFoundError, match=f"can be opened with txid={5:016x}"):
        rows(script)
