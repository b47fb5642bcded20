"""Row differences between two states: exact by comparison with plain SQL on both, and cheap by the pages read."""

from __future__ import annotations

from random import Random

import pytest

import litevfs
from litevfs.errors import LitevfsError, OptionError, TXIDNotFoundError
from litevfs.operations.patch import patch_statements
from tests.operations.diff_oracle import check
from tests.support import numbers, primary_at


def pages_read(diff: litevfs.Diff) -> int:
    return diff._pages.counters.misses


def test_the_rows_of_each_kind_of_change(primary, url):
    primary.commit("CREATE TABLE t (id INTEGER PRIMARY KEY, x, y)")
    old = primary.commit("INSERT INTO t VALUES (1, 'a', 1), (2, 'b', 2), (3, 'c', NULL), (4, x'00', 1.5)")
    primary.commit("UPDATE t SET y = 2.0 WHERE id = 2; DELETE FROM t WHERE id = 3; INSERT INTO t VALUES (9, 'new', 1)")
    with litevfs.diff(url, old) as diff:
        changes = list(diff)
    assert [(change.table, change.op, change.key) for change in changes] == [
        ("t", "update", (2,)),
        ("t", "delete", (3,)),
        ("t", "insert", (9,)),
    ]
    assert changes[0].old == {"id": 2, "x": "b", "y": 2}
    assert changes[0].new is not None
    assert repr(changes[0].new["y"]) == "2.0"  # 2 and 2.0 are different values
    assert (changes[1].new, changes[2].old) == (None, None)


@pytest.mark.slow
def test_only_pages_that_differ_and_those_that_lead_to_them_are_read(primary, url):
    primary.commit("CREATE TABLE t (id INTEGER PRIMARY KEY, x); CREATE TABLE other (a, b); CREATE INDEX i ON other (a)")
    primary.commit(f"INSERT INTO t SELECT value, randomblob(300) FROM {numbers(20000)}")
    old = primary.commit(f"INSERT INTO other SELECT value, randomblob(100) FROM {numbers(20000)}")
    assert len(primary.images[old]) // 4096 > 2000
    primary.commit("UPDATE t SET x = 'new' WHERE id % 4000 = 17; UPDATE other SET a = -a WHERE rowid = 777")
    check(primary, url, old, primary.txid)
    with litevfs.diff(url, old) as diff:
        assert len(list(diff)) == 6
        assert pages_read(diff) < 50


@pytest.mark.parametrize("page_size", [512, 4096])
@pytest.mark.parametrize("auto_vacuum", [0, 1])
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(1, 20))])
def test_the_patch_of_a_random_course_makes_the_newer_state(url, seed, page_size, auto_vacuum):
    random = Random(seed * 100 + page_size + auto_vacuum)
    with primary_at(url, page_size=page_size, auto_vacuum=auto_vacuum) as primary:
        primary.commit(
            "CREATE TABLE t (id INTEGER PRIMARY KEY, x, u UNIQUE); CREATE TABLE r (a TEXT, b REAL);"
            "CREATE TABLE w (k TEXT COLLATE NOCASE, n, v, PRIMARY KEY (k, n)) WITHOUT ROWID;"
            "CREATE TABLE q (id INTEGER PRIMARY KEY AUTOINCREMENT, big); CREATE INDEX rb ON r (b, a);"
            "CREATE TRIGGER tr AFTER INSERT ON t BEGIN INSERT INTO r VALUES ('trigger', new.id); END"
        )
        states = [primary.txid]
        for _ in range(30):
            primary.commit(_random_statement(random), may_change_nothing=True)
            states.append(primary.txid)
        for _ in range(6):
            old, new = sorted((random.choice(states), random.choice(states)))
            check(primary, url, old, new)


def _random_statement(random: Random) -> str:
    n, size = random.randrange(1, 60), random.choice((5, 60, 900, 9000))
    where = f"abs(random()) % {random.randrange(1, 12)} = 0"
    return random.choice(
        (
            f"INSERT INTO t (x, u) SELECT randomblob({size}), random() FROM {numbers(n)}",
            f"INSERT INTO r SELECT hex(randomblob({size % 1000})), random() / 3 FROM {numbers(n)}",
            f"INSERT OR REPLACE INTO w SELECT hex(randomblob(2)), value % 3, zeroblob({size % 1000}) FROM {numbers(n)}",
            f"INSERT INTO q (big) SELECT zeroblob({size * 4}) FROM {numbers(n % 5 + 1)}",
            f"UPDATE t SET x = randomblob(length(x)) WHERE {where}",  # of the same size: in place
            # of the last overflow page alone
            f"UPDATE q SET big = CAST(zeroblob(length(big) - 8) || randomblob(8) AS BLOB) WHERE {where}",
            f"UPDATE t SET u = -u WHERE {where}",
            f"UPDATE r SET a = lower(a), b = CAST(b AS INTEGER) WHERE {where}",
            f"UPDATE w SET k = lower(k), v = NULL WHERE {where}",
            f"DELETE FROM t WHERE {where}",
            f"DELETE FROM r WHERE {where}",
            "DELETE FROM r",
            "DELETE FROM w WHERE n = 1",
            "DELETE FROM q WHERE id = (SELECT max(id) FROM q)",
            "DROP TABLE IF EXISTS extra; CREATE TABLE extra (a, b); INSERT INTO extra VALUES (1, 'x'), (2.5, x'00')",
            "CREATE TABLE IF NOT EXISTS extra (a, b)",
            "DROP INDEX IF EXISTS rb",
            "CREATE INDEX IF NOT EXISTS rb ON r (a)",
            "DROP VIEW IF EXISTS v; CREATE VIEW v AS SELECT count(*) AS n FROM t",
            "VACUUM",
        )
    )


def test_a_change_in_an_overflow_page_alone_is_found(primary, url):
    primary.commit("CREATE TABLE t (id INTEGER PRIMARY KEY, big)")
    old = primary.commit(f"INSERT INTO t SELECT value, zeroblob(20000) FROM {numbers(5)}")
    with primary.con.blob_open("main", "t", "big", 3, True) as blob:
        blob.seek(15000)
        blob.write(b"changed")
    primary.commit("PRAGMA user_version = 1")
    with litevfs.diff(url, old) as diff:
        assert [(change.op, change.key) for change in diff] == [("update", (3,))]


def test_a_root_that_grows_or_shrinks_is_compared_row_by_row(primary, url):
    primary.commit("CREATE TABLE t (id INTEGER PRIMARY KEY, x)")
    states = [primary.commit(f"INSERT INTO t SELECT value, randomblob(80) FROM {numbers(30)}")]
    states.append(primary.commit("INSERT INTO t SELECT id + 1000, randomblob(80) FROM t"))
    double = "INSERT INTO t SELECT id + (SELECT max(id) FROM t), randomblob(80) FROM t"
    states += [primary.commit(double) for _ in range(3)]
    states.append(primary.commit("DELETE FROM t WHERE id > 20"))
    for old in states:
        for new in states:
            if old <= new:
                check(primary, url, old, new)


def test_states_from_compacted_files_and_snapshots_differ_as_their_rows_do(primary, url):
    primary.commit("CREATE TABLE t (id INTEGER PRIMARY KEY, x)")
    for number in range(8):
        primary.commit(f"INSERT INTO t SELECT value + {number * 1000}, randomblob(200) FROM {numbers(100)}")
    primary.compact(9, 1, 5)
    primary.compact(1, 6, 9)
    primary.delete(0)
    check(primary, url, 5, 9)


def test_what_else_differs_is_named(primary, url):
    old = primary.commit("CREATE TABLE a (x); CREATE TABLE b (x); CREATE INDEX ia ON a (x)")
    primary.commit("ALTER TABLE a ADD COLUMN y; DROP TABLE b; CREATE VIEW v AS SELECT 1; INSERT INTO a VALUES (1, 2)")
    with litevfs.diff(url, old) as diff:
        assert [(change.op, change.type, change.name) for change in diff.schema] == [
            ("change", "table", "a"),
            ("drop", "table", "b"),
            ("create", "view", "v"),
        ]
        assert [(change.table, change.op, change.new) for change in diff] == [("a", "insert", {"x": 1, "y": 2})]
    check(primary, url, old, primary.txid)


def test_a_table_that_only_one_state_has_differs_in_all_its_rows(primary, url):
    old = primary.commit("CREATE TABLE a (x); CREATE TABLE b (x); INSERT INTO b VALUES (1), (2)")
    primary.commit("DROP TABLE b; CREATE TABLE c (k PRIMARY KEY, x) WITHOUT ROWID; INSERT INTO c VALUES ('k', 3)")
    with litevfs.diff(url, old, tables=["b", "c"]) as diff:
        found = [(change.table, change.op, change.key) for change in diff]
    assert sorted(found) == [("b", "delete", (1,)), ("b", "delete", (2,)), ("c", "insert", ("k",))]


def test_a_state_that_retention_took_is_an_error_that_names_those_there_are(primary, url):
    for sql in ("CREATE TABLE t (x)", "INSERT INTO t VALUES (1)", "DELETE FROM t", "INSERT INTO t VALUES (2)"):
        primary.commit(sql)
    primary.compact(9, 1, 3)
    primary.delete(0, [1, 2, 3])
    for old, new in ((2, 4), (1, 2)):
        with pytest.raises(TXIDNotFoundError, match="0000000000000003"):
            litevfs.diff(url, old, new)
    check(primary, url, 3, 4)


def test_bad_input_is_refused_with_what_to_do(primary, url):
    primary.commit("CREATE TABLE t (x); INSERT INTO t VALUES (1)")
    primary.commit("CREATE VIRTUAL TABLE f USING fts5 (body); INSERT INTO f VALUES ('words')")
    with pytest.raises(OptionError, match="swap from and to"):
        litevfs.diff(url, 2, 1)
    with pytest.raises(TXIDNotFoundError):
        litevfs.diff(url, 1, 99)
    with pytest.raises(OptionError, match=r"no table nope in the states .*tables: t, f_data"):
        litevfs.diff(url, 1, 2, ["nope"])
    with pytest.raises(OptionError, match=r"did you mean f_data\?"):
        litevfs.diff(url, 1, 2, ["f_dat"])
    with litevfs.diff(url, 1, 2, ["T"]) as diff:  # to SQLite, the name is the same
        assert diff.tables == ["t"]
    with pytest.raises(OptionError, match="f is a virtual table"):
        litevfs.diff(url, 1, 2, ["f"])
    with pytest.raises(OptionError, match="unknown option"):
        litevfs.diff(url, 1, 2, pol_interval=1)
    with litevfs.diff(url, 1, 2) as diff, pytest.raises(OptionError, match="virtual table f was made"):
        list(patch_statements(diff))
    with litevfs.diff(url, "1", "latest", ["t"]) as diff:
        assert list(diff) == []


def test_text_that_is_not_utf_8_is_named(primary, url):
    old = primary.commit("CREATE TABLE t (x)")
    primary.commit("INSERT INTO t VALUES (CAST(x'ff' AS TEXT))")
    with litevfs.diff(url, old) as diff, pytest.raises(LitevfsError, match="table t holds text that is not UTF-8"):
        list(diff)


def test_a_time_names_a_state_too(primary, url):
    primary.commit("CREATE TABLE t (x)")
    primary.commit("INSERT INTO t VALUES (1)")
    with litevfs.diff(url, "2026-01-01T00:00:01Z", "2026-01-01T00:00:02.5Z") as diff:
        assert (diff.from_txid, diff.to_txid) == (1, 2)
        assert [change.new for change in diff] == [{"x": 1}]
