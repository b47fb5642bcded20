"""Row differences over random courses of all kinds of tables: exact by comparison with plain SQL on both states."""

from __future__ import annotations

import struct
from contextlib import closing
from random import Random

import apsw
import pytest

import litevfs
from litevfs.errors import OptionError
from litevfs.operations.index_trees import KeyColumn, KeyOrder
from litevfs.operations.patch import patch_statements
from litevfs.replica_clients.memory import drop_memory_store, memory_store
from tests.operations.diff_oracle import check
from tests.primary import Primary
from tests.support import numbers, primary_at

SCHEMA = """
CREATE TABLE pair (a TEXT COLLATE NOCASE, b, v, PRIMARY KEY (a, b)) WITHOUT ROWID;
CREATE TABLE down (v, a TEXT, n INTEGER, PRIMARY KEY (n DESC, a COLLATE RTRIM)) WITHOUT ROWID;
CREATE TABLE exact (k TEXT COLLATE NOCASE, v, PRIMARY KEY (k COLLATE BINARY)) WITHOUT ROWID;
CREATE TABLE any_key (k PRIMARY KEY, v, w AS (length(v)), s INTEGER AS (length(v) * 2) STORED) WITHOUT ROWID;
CREATE TABLE long_key (k BLOB PRIMARY KEY, v) WITHOUT ROWID;
CREATE INDEX any_key_v ON any_key (v);
CREATE TABLE odd (k TEXT PRIMARY KEY, u UNIQUE, v, g AS (v || 'x') VIRTUAL);
CREATE TABLE back (id INTEGER PRIMARY KEY DESC, v REAL);
"""
WITHOUT_ROWID = ("pair", "down", "exact", "any_key", "long_key")


def primary_of(url: str, encoding: str, **options: int) -> Primary:
    primary = primary_at(url, **options)
    primary.con.execute(f"PRAGMA encoding = '{encoding}'")
    return primary


def run_course(url: str, seed: int, page_size: int, auto_vacuum: int, encoding: str, steps: int, pairs: int) -> None:
    random = Random(f"{seed} {page_size} {auto_vacuum} {encoding}")
    with primary_of(url, encoding, page_size=page_size, auto_vacuum=auto_vacuum) as primary:
        primary.commit(SCHEMA)
        states = [primary.txid]
        for _ in range(steps):
            primary.commit(statement(random), may_change_nothing=True)
            states.append(primary.txid)
        newest = states[-1]
        for _ in range(pairs):
            old, new = sorted((random.choice(states), random.choice(states)))
            check(primary, url, old, new)
        for old in states[-3:-1]:
            check(primary, url, old, newest)


def statement(random: Random) -> str:
    n, size = random.randrange(1, 60), random.choice((3, 40, 300, 3000))
    where = f"abs(random()) % {random.randrange(1, 12)} = 0"
    word = "char(65 + abs(random()) % 26, 97 + abs(random()) % 26, 32 * (abs(random()) % 2), 228, 128512 + value % 7)"
    mixed = (
        "CASE abs(random()) % 6 WHEN 0 THEN value WHEN 1 THEN value / 3.0 WHEN 2 THEN -value * 1e300 "
        f"WHEN 3 THEN {word} WHEN 4 THEN randomblob(3) ELSE random() END"
    )
    return random.choice(
        (
            f"INSERT OR REPLACE INTO pair SELECT {word}, {mixed}, zeroblob({size}) FROM {numbers(n)}",
            f"INSERT OR IGNORE INTO pair SELECT lower({word}), value % 9, NULL FROM {numbers(n)}",
            f"INSERT OR REPLACE INTO down SELECT randomblob({size}), {word}, random() % 50 FROM {numbers(n)}",
            f"INSERT OR IGNORE INTO exact SELECT {word}, hex(zeroblob({size})) FROM {numbers(n)}",
            f"INSERT OR IGNORE INTO exact SELECT upper(k), v FROM exact WHERE {where}",
            f"INSERT OR IGNORE INTO any_key (k, v) SELECT {mixed}, randomblob({size}) FROM {numbers(n)}",
            f"INSERT INTO long_key SELECT randomblob({size}), value FROM {numbers(n)}",
            f"INSERT INTO long_key SELECT CAST(zeroblob({size}) || randomblob(9) AS BLOB), 0 FROM {numbers(n % 9)}",
            f"INSERT OR IGNORE INTO odd (k, u, v) SELECT {word}, {mixed}, 'v' FROM {numbers(n)}",
            f"INSERT INTO odd (k, u, v) SELECT NULL, NULL, value FROM {numbers(n)}",
            f"INSERT OR IGNORE INTO back SELECT random() % 500, value FROM {numbers(n)}",
            f"UPDATE OR IGNORE pair SET a = lower(a) WHERE {where}",
            f"UPDATE pair SET v = zeroblob({size}) WHERE {where}",
            f"UPDATE OR IGNORE down SET n = n + 1, a = a || ' ' WHERE {where}",
            f"UPDATE exact SET v = NULL WHERE {where}",
            f"UPDATE any_key SET v = randomblob(length(v)) WHERE {where}",
            "UPDATE any_key SET v = CAST(zeroblob(length(v) - 1) || randomblob(1) AS BLOB) WHERE length(v) > 2000",
            f"UPDATE OR IGNORE odd SET k = NULL, u = u + 0.5 WHERE {where}",
            f"DELETE FROM {random.choice(WITHOUT_ROWID)} WHERE {where}",
            f"DELETE FROM {random.choice((*WITHOUT_ROWID, 'odd', 'back'))}",
            "ALTER TABLE exact RENAME TO moved; ALTER TABLE moved RENAME TO exact",
            "DROP TABLE IF EXISTS extra; CREATE TABLE extra (k PRIMARY KEY, v) WITHOUT ROWID; "
            "INSERT INTO extra SELECT k, 1 FROM any_key LIMIT 20",
            "CREATE TABLE IF NOT EXISTS extra (k PRIMARY KEY); ALTER TABLE extra ADD COLUMN "
            f"c{random.randrange(10**9)} DEFAULT 7",
            "CREATE TABLE IF NOT EXISTS extra (x); ALTER TABLE extra RENAME TO "
            f"renamed_{random.randrange(10**9)}; CREATE VIEW IF NOT EXISTS view_of AS SELECT b FROM pair",
            "VACUUM",
        )
    )


@pytest.mark.parametrize(
    ("seed", "page_size", "auto_vacuum", "encoding"),
    [(0, 512, 0, "UTF-8"), (1, 512, 1, "UTF-8"), (2, 1024, 0, "UTF-16le"), (3, 512, 2, "UTF-16be")],
)
def test_the_patch_of_a_random_course_makes_the_newer_state(url, seed, page_size, auto_vacuum, encoding):
    run_course(url, seed, page_size, auto_vacuum, encoding, steps=30, pairs=3)


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("encoding", ["UTF-8", "UTF-16le", "UTF-16be"])
@pytest.mark.parametrize("auto_vacuum", [0, 1, 2])
@pytest.mark.parametrize("page_size", [512, 1024, 4096, 65536])
def test_many_courses(url, page_size, auto_vacuum, encoding):
    for seed in range(100, 108):
        run_course(url, seed, page_size, auto_vacuum, encoding, steps=60, pairs=6)
        drop_memory_store(url.removeprefix("memory://"))
        memory_store(url.removeprefix("memory://"))


ASCII = ["", "a", "A", "ab", "aB", "a\0b", "a\0C", "a\0", "B", "b ", "b", "b  ", "Z", "_", "z{", "[", "\t", " "]
OTHERS = ["ä", "Ä", "\ud7ff", "\ue000", "\uffff", "\U00010000", "\U0010ffff", "a\U0001f600"]


@pytest.mark.parametrize("encoding", ["UTF-8", "UTF-16le", "UTF-16be"])
@pytest.mark.parametrize("collation", ["BINARY", "NOCASE", "RTRIM"])
@pytest.mark.parametrize("direction", ["", "DESC"])
def test_keys_are_ordered_as_sqlite_orders_them(collation, encoding, direction):
    values = [*ASCII, *OTHERS, 0, 1, -1, 1.5, 2**53, 2.0**53 + 2, 2**63 - 1, 2.0**63, -9e999, 9e999, b"", b"a", b"\xff"]
    codec = encoding.lower().replace("16", "16-")
    order = KeyOrder((KeyColumn("k", collation, direction == "DESC"),), codec)

    def stored(value: object) -> tuple[int, bytes]:
        match value:
            case str():
                return 13 + 2 * len(value.encode(codec)), value.encode(codec)
            case bytes():
                return 12 + 2 * len(value), value
            case int():
                return 6, value.to_bytes(8, "big", signed=True)
            case _:
                return 7, struct.pack(">d", value)

    with closing(apsw.Connection(":memory:")) as connection:
        connection.execute(f"PRAGMA encoding = '{encoding}'; CREATE TABLE t (n INTEGER PRIMARY KEY, k)")
        connection.executemany("INSERT INTO t VALUES (?, ?)", enumerate(values))
        sql = f"SELECT a.n, b.n, a.k < b.k COLLATE {collation}, a.k = b.k COLLATE {collation} FROM t AS a, t AS b"
        for a, b, is_less, is_equal in connection.execute(sql):
            left, right = order.sort_key([stored(values[a])]), order.sort_key([stored(values[b])])
            assert left is not None
            assert right is not None
            assert (left == right) == bool(is_equal), (values[a], values[b])
            if not is_equal:
                assert ((left < right) == bool(is_less)) != (direction == "DESC"), (values[a], values[b])


def test_keys_that_only_their_own_collation_tells_apart_are_two_rows(url):
    with primary_at(url) as primary:
        primary.commit("CREATE TABLE t (k TEXT COLLATE NOCASE, v, PRIMARY KEY (k COLLATE BINARY)) WITHOUT ROWID")
        old = primary.commit("INSERT INTO t VALUES ('a', 1), ('A', 2), ('b', 3)")
        for sql in ("UPDATE t SET v = 9 WHERE k = 'A' COLLATE BINARY", "VACUUM", "DELETE FROM t WHERE v = 1"):
            primary.commit(sql)
            check(primary, url, old, primary.txid)


@pytest.mark.parametrize("encoding", ["UTF-8", "UTF-16le", "UTF-16be"])
def test_text_with_nuls_is_patched_in_any_encoding(url, encoding):
    with primary_of(url, encoding) as primary:
        old = primary.commit("CREATE TABLE t (k TEXT PRIMARY KEY, v) WITHOUT ROWID; INSERT INTO t VALUES ('a', 1)")
        primary.commit("INSERT INTO t VALUES (?, ?), (?, NULL)", ("\0a\0\0ä\U0001f600\0", "\0" * 3000, "'\0'"))
        check(primary, url, old, primary.txid)


def test_what_is_virtual_is_named_and_its_shadow_tables_are_compared(url):
    with primary_at(url) as primary:
        primary.commit("CREATE VIRTUAL TABLE f USING fts5 (body); CREATE VIRTUAL TABLE r USING rtree (id, a, b)")
        old = primary.commit("INSERT INTO f VALUES ('some words'); CREATE VIEW v AS SELECT 1 AS one")
        primary.commit("INSERT INTO f VALUES ('more words'); INSERT INTO r VALUES (1, 2, 3)")
        check(primary, url, old, primary.txid)
        with litevfs.diff(url, old) as diff:
            tables = {change.table for change in diff}
        assert {"f_content", "f_data", "f_docsize", "r_node", "r_rowid"} <= tables
        assert not tables & {"f", "r"}
        for name, what in (("f", "a virtual table"), ("v", "a view")):
            with pytest.raises(OptionError, match=f"{name} is {what}"):
                litevfs.diff(url, old, tables=[name])
        primary.commit("DROP TABLE r")
        with litevfs.diff(url, old) as diff, pytest.raises(OptionError, match="virtual table r was made"):
            list(patch_statements(diff))
