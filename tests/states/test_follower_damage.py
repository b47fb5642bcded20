"""Files that are damaged or gone, or that storage does not give away just now, on the way to a state.

States are made around the first if others lead there, else with what is left; not around the last.
"""

from __future__ import annotations

import itertools
import struct
from contextlib import suppress

import pytest

import litevfs
from litevfs.errors import LTXFormatError, StorageNotFoundError, TransientStorageError
from litevfs.files.fetch import WHOLE_FILE_BYTES
from litevfs.live.replica import Replica
from litevfs.options import Options
from litevfs.replica_clients.base import LTXFileInfo
from tests.primary import Primary
from tests.scripted import Script

pytestmark = pytest.mark.slow

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


IMPATIENT = {"open_timeout": "0.2s"}  # where opening fails


def rows(script: Script, **options: object) -> list[tuple[object, ...]]:
    connection = litevfs.connect(script.url, **options)
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
            rows(script, **IMPATIENT, **options)
        assert (caught.value.level, caught.value.min_txid, caught.value.max_txid) == damaged
        assert "litevfs verify" in str(caught.value)
        assert str(caught.value).endswith(f"the state before can be opened with txid={earlier:016x}")
    assert rows(script, txid=f"{earlier:016x}") == primary.rows(ROWS, earlier)


@pytest.mark.plan("L28")
def test_where_nothing_is_left_the_error_names_no_state(world):
    primary, script = world
    damage(primary, 0, 1, 1)
    with pytest.raises(LTXFormatError, match="damaged") as caught:
        rows(script, **IMPATIENT)
    assert "txid=" not in str(caught.value)


def test_a_file_that_stays_gone_and_that_nothing_replaces_is_told(world):
    primary, script = world
    primary.delete(0, [6])
    gone = LTXFileInfo(0, 6, 6, size=500, modified_ms=0)
    script.on_list = lambda level, files: files if level else [*files, gone]
    with pytest.raises(StorageNotFoundError, match=f"can be opened with txid={5:016x}"):
        rows(script, **IMPATIENT)


# --- a state that moves on --------------------------------------------------------------------------------------------


@pytest.fixture
def behind(world):
    """The world, and a replica of it at the second transaction, whose file made way for a compacted one."""
    primary, script = world
    script.on_list = lambda level, files: [file for file in files if file.max_txid <= 2]
    replica = Replica(Options(replica_url=script.url, read_timeout_s=0.2))
    replica.refresh()
    assert replica.snapshot.txid == 2
    script.on_list = None
    yield primary, script, replica
    replica.close()


def compact_what_is_known(primary: Primary) -> None:
    """From now on, the next look is one at all levels."""
    primary.compact(1, 1, 2)
    primary.delete(0, [1, 2])


def fail(script: Script, error: type[Exception], level: int, txid: int) -> None:
    """Let no read of a file end well."""

    def on_read(file: LTXFileInfo, offset: int, data: bytes) -> bytes:
        if (file.level, file.max_txid) == (level, txid):
            raise error("just now", level=level, min_txid=file.min_txid, max_txid=txid)
        return data

    script.on_read = on_read


def read_files(script: Script) -> set[str]:
    return {key for key, _, _ in script.reads}


@pytest.mark.plan("L03", "L28")
def test_damaged_compacted_files_are_gone_around_where_others_lead_on(behind):
    primary, _, replica = behind
    compact_what_is_known(primary)
    damage(primary, 2, 3, 6)
    damage(primary, 1, 3, 5)
    replica.refresh()
    assert (replica.snapshot.txid, replica.snapshot.epoch) == (6, 0)
    state = replica.snapshot
    assert [replica.pages.read(state, n) for n in range(1, state.commit + 1)] == [
        primary.page(n, 6) for n in range(1, state.commit + 1)
    ]


@pytest.mark.plan("L28")
def test_a_file_that_cannot_be_read_just_now_is_waited_for_and_not_gone_around(behind):
    primary, script, replica = behind
    compact_what_is_known(primary)
    primary.compact(2, 3, 6)
    fail(script, TransientStorageError, 2, 6)
    script.clear()
    with pytest.raises(TransientStorageError):
        replica.refresh()
    assert replica.snapshot.txid == 2
    level_0 = {script.writer.key(file) for file in script.writer.list_files(0)}
    assert not read_files(script) & level_0
    script.on_read = None
    replica.refresh()
    assert (replica.snapshot.txid, replica.snapshot.epoch) == (6, 0)


@pytest.mark.plan("L28")
def test_a_state_is_not_opened_around_a_file_that_cannot_be_read_just_now(world):
    primary, script = world
    snapshot = primary.compact(9, 1, 6)
    fail(script, TransientStorageError, 9, 6)
    replica = Replica(Options(replica_url=script.url, read_timeout_s=0.2))
    try:
        with pytest.raises(TransientStorageError):
            replica.refresh()
        assert read_files(script) == {script.writer.key(snapshot)}
    finally:
        replica.close()


@pytest.mark.plan("L28", "L29")
@pytest.mark.parametrize(
    ("error", "txid"),
    [(StorageNotFoundError, 6), (TransientStorageError, 6), (TransientStorageError, 4)],
    ids=["the newest is not yet there", "the newest does not come", "one before does not come"],
)
def test_a_file_that_may_come_still_costs_no_refresh_at_all_levels(behind, error, txid):
    _, script, replica = behind
    fail(script, error, 0, txid)
    script.clear()
    with pytest.raises(error):
        replica.refresh()
    assert replica.snapshot.txid == txid - 1
    assert set(script.lists) == {0}
    script.on_read = None
    replica.refresh()
    assert (replica.snapshot.txid, replica.snapshot.epoch) == (6, 0)


# --- headers that are damaged on their way ----------------------------------------------------------------------------


@pytest.mark.parametrize("damaged", [{1}, {1, 2}, {1, 3}], ids=str)
@pytest.mark.parametrize("is_open", [False, True])
def test_a_size_that_is_read_wrong_does_not_make_the_database_smaller(damaged: set[int], is_open: bool):
    """Of a large file the header is read alone. It holds few pages, so that a smaller size looks right."""
    with Script() as script, Primary(script.writer) as primary:
        primary.commit("CREATE TABLE t(x); CREATE TABLE u(x)")
        primary.commit("INSERT INTO u VALUES (zeroblob(9000)); INSERT INTO t VALUES (randomblob(2500000))")
        primary.commit("UPDATE t SET x = zeroblob(9500000)")
        primary.commit("UPDATE u SET x = randomblob(9000)")
        primary.commit("UPDATE t SET x = CAST(randomblob(1500000) AS BLOB) || zeroblob(8000000)")
        large = script.writer.list_files(0)[-1]
        assert large.size > WHOLE_FILE_BYTES
        replica = Replica(Options(replica_url=script.url, read_timeout_s=0.5, cache_size_bytes=0))
        try:
            if is_open:
                hidden = script.writer.read(large)
                script.writer.delete([large])
                replica.refresh()
                script.writer.write(0, 5, 5, hidden, primary.timestamp_ms(5))
            reading = itertools.count(1)

            def damage(file: LTXFileInfo, offset: int, data: bytes) -> bytes:
                if file.max_txid != 5 or offset or len(data) < 16 or (number := next(reading)) not in damaged:
                    return data
                (commit,) = struct.unpack(">I", data[12:16])
                return data[:12] + struct.pack(">I", commit - 512 - number) + data[16:]  # another one each time

            script.on_read = damage
            for _ in range(3):
                with suppress(LTXFormatError):
                    replica.refresh()
            assert replica.snapshot.txid == 5
            assert replica.snapshot.size_bytes == len(primary.images[5])
            primary.commit("INSERT INTO u VALUES (1)")
            replica.refresh()
            assert replica.snapshot.txid == 6
        finally:
            replica.close()
