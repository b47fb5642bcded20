"""Random queries over random histories, the answers compared with those of the primary."""

from __future__ import annotations

import random
from typing import Any

import pytest

from litevfs.testing.faulty import Faults
from tests.primary import Primary
from tests.stress.conftest import MakePrimary
from tests.support import connected, one, rows, txid_of

pytestmark = pytest.mark.plan("L33")

WORDS = ("apple", "pear", "quince", "plum", "fig", "Äpfel", "naïve", "100%", "a_b", "")
PAGE_SIZES = (512, 1024, 4096, 8192)


class Fuzz:
    """One seed: a primary that changes at random, and queries at random."""

    def __init__(self, seed: int, make_primary: MakePrimary) -> None:
        self.random = random.Random(seed)
        auto_vacuum = self.random.choice((0, 1, 2))
        self.primary: Primary = make_primary(page_size=self.random.choice(PAGE_SIZES), auto_vacuum=auto_vacuum)
        self.primary.commit(
            "CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT, price REAL, data BLOB); "
            "CREATE TABLE tag (item, word, PRIMARY KEY (item, word)) WITHOUT ROWID; "
            "CREATE INDEX item_name ON item (name); CREATE INDEX tag_word ON tag (word)"
        )

    def word(self) -> str:
        return self.random.choice(WORDS)

    def change(self) -> None:
        pick = self.random.randrange(8)
        number = self.random.randrange(1, 400)
        if pick <= 3:
            self._insert(self.random.randrange(1, 60))
        elif pick == 4:
            self._commit("UPDATE item SET price = price * 2, name = name || ? WHERE id % 13 = ?", self.word(), 5)
        elif pick == 5:
            self._commit("DELETE FROM item WHERE id % 17 = ?", number % 17)
        elif pick == 6:
            self._commit("UPDATE item SET data = zeroblob(?) WHERE id = ?", number * 50, number)
        else:
            self._commit(self.random.choice(("VACUUM", "PRAGMA incremental_vacuum", "ANALYZE", "REINDEX")))
        self._tidy()

    def _commit(self, sql: str, *bindings: Any) -> None:
        self.primary.commit(sql, bindings, may_change_nothing=True)

    def _insert(self, count: int) -> None:
        db, random_ = self.primary.con, self.random
        db.execute("BEGIN")
        for _ in range(count):
            size = random_.choice((0, 10, 300, 3000, 30_000))
            values = (self.word() + str(random_.randrange(50)), random_.uniform(-10, 1000), random_.randbytes(size))
            db.execute("INSERT INTO item (name, price, data) VALUES (?, ?, ?)", values)
            db.execute("INSERT OR IGNORE INTO tag VALUES (?, ?)", (random_.randrange(400), self.word()))
        self._commit("COMMIT")

    def _tidy(self) -> None:
        """Sometimes a compacted file that overlaps others, sometimes retention."""
        txid = self.primary.txid
        pick = self.random.randrange(4)
        if pick == 1:
            self.primary.compact(self.random.choice((1, 2)), max(1, txid - self.random.randrange(6)), txid)
        elif pick == 2:
            self.primary.compact(9, 1, txid)
            self.primary.delete(0, range(1, txid))

    def query(self) -> tuple[str, tuple[Any, ...]]:
        number = self.random.randrange(1, 500)
        word = self.word()
        return self.random.choice(
            (
                ("SELECT * FROM item WHERE id = ?", (number,)),
                ("SELECT name, price FROM item WHERE id BETWEEN ? AND ? ORDER BY price, id", (number, number + 30)),
                ("SELECT count(*), sum(length(data)), min(id), max(id) FROM item", ()),
                ("SELECT count(*) FROM item WHERE name LIKE ?", (f"%{word}%",)),
                ("SELECT id FROM item WHERE name LIKE ? ORDER BY id DESC LIMIT 20", (f"{word}1%",)),
                ("SELECT name, count(*), round(avg(price), 3) FROM item GROUP BY name ORDER BY 1 LIMIT 40", ()),
                ("SELECT word, count(*) FROM tag JOIN item ON item.id = tag.item GROUP BY word ORDER BY 1", ()),
                ("SELECT item FROM tag WHERE word = ? ORDER BY item", (word,)),
                ("SELECT substr(data, ?, 40) FROM item WHERE length(data) > ? ORDER BY id", (number * 10, number)),
                ("SELECT id FROM item WHERE data > x'' ORDER BY data, id LIMIT 5", ()),
                ("SELECT DISTINCT name FROM item WHERE price > ? ORDER BY name COLLATE NOCASE, name", (number,)),
            )
        )


def check(connection: Any, fuzz: Fuzz, queries: int) -> None:
    connection.execute("BEGIN")
    for _ in range(queries):
        sql, bindings = fuzz.query()
        expected = fuzz.primary.con.execute(sql, bindings).fetchall()
        assert connection.execute(sql, bindings).fetchall() == expected, (sql, bindings, txid_of(connection))
    assert rows(connection, "PRAGMA integrity_check") == [("ok",)]
    connection.execute("COMMIT")


def run(seed: int, make_primary: MakePrimary, faults: Faults, transactions: int, cache_size: int) -> None:
    fuzz = Fuzz(seed, make_primary)
    options = {"poll_interval": 0, "cache_size": cache_size}
    with connected(faults.url, **options) as live, connected(faults.url, poll_interval="1h") as other:
        other.execute("PRAGMA cache_size=1")
        for _ in range(transactions):
            fuzz.change()
            for connection in (live, other):
                assert int(one(connection, "PRAGMA litestream_poll"), 16) == fuzz.primary.txid
                check(connection, fuzz, 6)
    with connected(faults.url, **options) as fresh:
        assert txid_of(fresh) == fuzz.primary.txid
        check(fresh, fuzz, 60)


@pytest.mark.parametrize(
    "seed",
    [*range(6), *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(1000, 1200))],
)
def test_answers_equal_the_primarys(seed, make_primary, request):
    faults: Faults = request.getfixturevalue(("faults", "remote_faults")[seed % 2])
    transactions = 4 if seed < 1000 else 40
    run(seed, make_primary, faults, transactions, (0, 50_000, 10_000_000)[seed % 3])
