"""PRAGMAs and SQL functions: Litestream's, by the names users know, and SQLite's own on a replica."""

from __future__ import annotations

import time
from contextlib import closing

import apsw
import pytest

import litevfs
from litevfs.errors import OptionError, TXIDNotFoundError
from tests.primary import START_MS, Primary
from tests.scripted import Script
from tests.support import connected, one, rows, status_of, txid_of


@pytest.fixture
def world():
    """Five transactions, a second apart; and a connection that moves when it is told."""
    with Script() as script, Primary(script.writer) as primary:
        primary.commit("CREATE TABLE t(x)")
        for i in range(2, 6):
            primary.commit(f"INSERT INTO t VALUES({i})")
        with connected(script.url, poll_interval=0) as con:
            yield primary, script, con


@pytest.mark.plan("L22")
def test_txid_time_and_lag_of_the_state(world):
    _, _, con = world
    assert one(con, "PRAGMA litestream_txid") == "0000000000000005"
    assert one(con, "PRAGMA litestream_time") == "2026-01-01T00:00:05.000Z"
    assert one(con, "PRAGMA litestream_lag") == "0"
    assert one(con, "PRAGMA LiteStream_TXID") == "0000000000000005"
    assert one(con, "PRAGMA main.litestream_txid") == "0000000000000005"


@pytest.mark.plan("L22")
def test_sql_functions_say_the_same(world):
    _, _, con = world
    functions = "SELECT litestream_txid(), litestream_time(), litestream_lag()"
    assert rows(con, functions) == [("0000000000000005", "2026-01-01T00:00:05.000Z", 0)]
    assert one(con, "SELECT litestream_set_time('2026-01-01T00:00:03Z')") == "2026-01-01T00:00:03.000Z"
    assert txid_of(con) == 3


def test_sql_functions_are_there_too_where_the_uri_names_the_vfs(world):
    _, script, _ = world
    uri = f"file:x.db?vfs=litestream&replica_url={script.url}"
    with closing(apsw.Connection(uri, flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI)) as con:
        assert one(con, "SELECT litestream_txid()") == "0000000000000005"


def test_the_lag_of_a_connection_that_never_looked_is_minus_one(world):
    _, script, _ = world
    with connected(script.url, txid=2) as con:
        assert one(con, "PRAGMA litestream_lag") == "-1"


@pytest.mark.plan("L22")
def test_time_travel_there_and_back(world):
    primary, _, con = world
    assert len(rows(con, "SELECT * FROM t")) == 4
    for seconds, txid in ((3, 3), (1, 1), (4.999, 4), (5, 5)):
        moment = f"2026-01-01T00:00:{seconds:06.3f}Z"
        con.execute(f"PRAGMA litestream_time = '{moment}'")
        assert txid_of(con) == txid
        assert rows(con, "SELECT * FROM t") == primary.rows("SELECT * FROM t", txid)
    con.execute("PRAGMA litestream_time = '2026-01-01T00:00:02Z'")
    primary.commit("INSERT INTO t VALUES(6)")
    one(con, "PRAGMA litestream_poll")
    assert rows(con, "SELECT * FROM t") == [(2,)]
    con.execute("PRAGMA litestream_time = 'latest'")
    assert rows(con, "SELECT * FROM t") == primary.rows("SELECT * FROM t")


def test_a_time_that_was_printed_leads_back_to_the_same_state(world):
    _, _, con = world
    for txid in (1, 2, 3, 4, 5):
        con.execute(f"PRAGMA litestream_time = '2026-01-01T00:00:0{txid}Z'")
        printed = one(con, "PRAGMA litestream_time")
        con.execute("PRAGMA litestream_time = 'latest'")
        con.execute(f"PRAGMA litestream_time = '{printed}'")
        assert txid_of(con) == txid


def test_relative_times_are_taken_from_now(world):
    _, _, con = world
    ago_s = time.time() - (START_MS / 1000 + 3.5)
    con.execute(f"PRAGMA litestream_time = '{ago_s:.3f} seconds ago'")
    assert txid_of(con) == 3


@pytest.mark.plan("L06", "L22")
def test_time_travel_within_a_transaction_takes_effect_after_it(world):
    _, _, con = world
    con.execute("BEGIN")
    assert one(con, "SELECT count(*) FROM t") == 4
    con.execute("PRAGMA litestream_time = '2026-01-01T00:00:02Z'")
    assert one(con, "SELECT count(*) FROM t") == 4
    assert txid_of(con) == 5
    con.execute("COMMIT")
    assert one(con, "SELECT count(*) FROM t") == 1
    assert txid_of(con) == 2


@pytest.mark.plan("L22", "K01")
@pytest.mark.parametrize(
    ("sql", "error", "text"),
    [
        ("PRAGMA litestream_time = 'soon'", OptionError, "not a time"),
        ("PRAGMA litestream_time = '2025-01-01T00:00:00Z'", TXIDNotFoundError, "the earliest state still held"),
        ("PRAGMA litestream_time = '2999-01-01T00:00:00Z'", TXIDNotFoundError, "lies in the future"),
        ("PRAGMA litestream_time = '1000000 days ago'", TXIDNotFoundError, "no state is as old"),
        ("PRAGMA litestream_txid = 5", OptionError, "takes no value"),
        ("PRAGMA litestream_lag = 5", OptionError, "takes no value"),
        ("PRAGMA litestream_txit", OptionError, "did you mean litestream_txid?"),
        ("PRAGMA litestream_wait_txid", OptionError, "needs a TXID"),
        ("PRAGMA litestream_wait_txid = 'xyz'", OptionError, "not a TXID"),
        ("PRAGMA litestream_wait_txid = '1 2 3'", OptionError, "needs a TXID"),
        ("PRAGMA litestream_wait_txid = '1 soon'", OptionError, "not a duration"),
    ],
)
def test_what_makes_no_sense_is_refused_and_the_connection_goes_on(world, sql, error, text):
    _, _, con = world
    with pytest.raises(error) as caught:
        con.execute(sql)
    assert text in str(caught.value)
    assert one(con, "SELECT count(*) FROM t") == 4
    assert txid_of(con) == 5


def test_waiting_for_what_a_fixed_state_will_never_show_is_refused(world):
    _, script, con = world
    with connected(script.url, txid=3) as fixed:
        assert litevfs.wait_for(fixed, 3, timeout=0) == 3
        assert litevfs.wait_for(fixed, 2, timeout=0) == 3
        with pytest.raises(OptionError, match="never see 0000000000000004"):
            litevfs.wait_for(fixed, 4, timeout=0)
        assert one(fixed, "SELECT count(*) FROM t") == 2
    con.execute("BEGIN")
    assert one(con, "SELECT count(*) FROM t") == 4
    con.execute("PRAGMA litestream_time = '2026-01-01T00:00:03Z'")  # what the next transaction sees
    with pytest.raises(OptionError, match="never see 0000000000000005") as caught:
        litevfs.wait_for(con, 5, timeout=0)
    assert "'latest'" in caught.value.hint
    con.execute("COMMIT; BEGIN")
    assert one(con, "SELECT count(*) FROM t") == 2
    con.execute("PRAGMA litestream_time = 'latest'")
    assert litevfs.wait_for(con, 5, timeout=0) == 5
    con.execute("COMMIT")
    assert one(con, "SELECT count(*) FROM t") == 4


@pytest.mark.plan("L22")
def test_poll_moves_on_at_once_and_answers_with_the_txid(world):
    primary, _, con = world
    assert one(con, "PRAGMA litestream_poll") == "0000000000000005"
    primary.commit("INSERT INTO t VALUES(6)")
    assert one(con, "PRAGMA litestream_poll") == "0000000000000006"


@pytest.mark.plan("L22")
def test_sqlites_own_pragmas_answer_as_for_an_ordinary_read_only_file(world):
    primary, _, con = world
    assert one(con, "PRAGMA page_size") == 4096
    assert one(con, "PRAGMA page_count") == len(primary.images[5]) // 4096
    assert one(con, "PRAGMA integrity_check") == "ok"
    assert one(con, "PRAGMA quick_check") == "ok"
    assert one(con, "PRAGMA journal_mode") == "delete"
    assert one(con, "PRAGMA journal_mode = WAL") == "delete"
    con.execute("PRAGMA cache_size = 7")
    assert one(con, "PRAGMA cache_size") == 7
    assert one(con, "PRAGMA encoding") == "UTF-8"
    assert rows(con, "PRAGMA table_info(t)") == primary.rows("PRAGMA table_info(t)")
    assert rows(con, "PRAGMA nothing_of_this_name") == []
    assert rows(con, "PRAGMA wal_checkpoint") == [(0, -1, -1)]


def test_ordinary_connections_know_nothing_of_it(world):
    con = apsw.Connection(":memory:", vfs=apsw.vfs_names()[0])
    assert con.execute("PRAGMA litestream_txid").fetchall() == []
    with pytest.raises(apsw.SQLError, match="no such function"):
        con.execute("SELECT litestream_txid()")
    con.close()


@pytest.mark.plan("K06", "L22")
def test_status_is_one_json_object(world):
    _, script, con = world
    status = status_of(con)
    assert (status["url"], status["state"], status["txid"]) == (script.url, "current", "0000000000000005")
    assert (status["page_size"], status["poll_interval_s"], status["errors"]) == (4096, 0, 0)


@pytest.mark.plan("K06")
def test_status_of_a_connection_that_went_back_is_of_the_state_it_sees(world):
    primary, _, con = world
    primary.commit("INSERT INTO t VALUES(zeroblob(10000))")
    one(con, "PRAGMA litestream_poll")
    live = status_of(con)
    one(con, "PRAGMA litestream_time = '2026-01-01T00:00:02Z'")
    past = status_of(con)
    assert (past["state"], past["txid"], past["time"]) == ("fixed", "0000000000000002", "2026-01-01T00:00:02.000Z")
    assert past["commit"] == one(con, "PRAGMA page_count") < live["commit"]
    one(con, "PRAGMA litestream_time = 'latest'")
    assert status_of(con)["state"] == live["state"] == "current"
