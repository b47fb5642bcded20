"""Virtual tables that a rehearsal reads: which ones, that rows are right, and that few round trips follow another."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import apsw
import pytest

from litevfs.bindings.modules import full_text_roots, known_modules
from tests.bindings.test_rehearsal import BLOCK_SIZE, PAGE_SIZE, snapshot_file, trips
from tests.scripted import Script

pytestmark = pytest.mark.usefixtures("followed")

QUERIES = {
    "json": "SELECT count(*), max(body) FROM lists l, json_each(l.ids) j JOIN docs d ON d.id = j.value WHERE l.id < 10",
    "rtree": "SELECT d.id, length(d.body) FROM places p JOIN docs d ON d.id = p.id WHERE p.x0 < 120 AND p.x1 > 100",
    "fts": "SELECT d.id, length(d.body) FROM search s JOIN docs d ON d.id = s.rowid WHERE search MATCH 'w7'",
    "its content": "SELECT rowid, length(body) FROM search WHERE search MATCH 'w7'",
}


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Iterator[tuple[Script, Path]]:
    """A remote replica of documents, and its database."""
    path = tmp_path_factory.mktemp("library") / "library.db"
    rng = random.Random(1)
    with closing(apsw.Connection(str(path))) as connection:
        connection.execute(f"PRAGMA page_size={PAGE_SIZE}; PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF")
        connection.execute(
            "CREATE TABLE docs (id INTEGER PRIMARY KEY, body TEXT);"
            "CREATE TABLE lists (id INTEGER PRIMARY KEY, ids TEXT);"
            "CREATE VIRTUAL TABLE search USING fts5(body, content='docs', content_rowid='id');"
            "CREATE VIRTUAL TABLE places USING rtree(id, x0, x1)"
        )
        with connection:
            words = [f"w{i}" for i in range(250)]
            docs = ((i, " ".join(rng.choices(words, k=8)) + " " + rng.randbytes(150).hex()) for i in range(3000))
            connection.executemany("INSERT INTO docs VALUES (?, ?)", docs)
            lists = ((i, str([rng.randrange(3000) for _ in range(6)])) for i in range(200))
            connection.executemany("INSERT INTO lists VALUES (?, ?)", lists)
            places = ((i, x, x + 1) for i in range(3000) for x in [rng.random() * 1000])
            connection.executemany("INSERT INTO places VALUES (?, ?, ?)", places)
            connection.execute("INSERT INTO search(search) VALUES ('rebuild')")
        connection.execute("VACUUM")
    with Script(block_size=BLOCK_SIZE) as script:
        script.writer.write(9, 1, 1, snapshot_file(path.read_bytes()), 1)
        yield script, path


@pytest.mark.slow
@pytest.mark.parametrize("name", QUERIES)
def test_the_look_ups_that_virtual_tables_lead_to_go_side_by_side(library, name):
    script, path = library
    with_it = trips(script, path, QUERIES[name])
    assert with_it <= trips(script, path, QUERIES[name], prefetch=False) / 3
    assert with_it <= 20


SCHEMA = {
    "search": "CREATE VIRTUAL TABLE search USING fts5(body, tokenize = 'porter ascii')",
    "own": "CREATE VIRTUAL TABLE own USING fts5(body, tokenize = 'mine')",
    "places": "create virtual table places using rtree(id, x0, x1)",
    "logs": "CREATE VIRTUAL TABLE logs USING csv(filename='a.csv')",
    "odd": 'CREATE VIRTUAL TABLE "odd"',
}
MODULES = ["json_each", "json_tree", "fts5", "rtree", "csv", "dbstat", "pragma_table_info"]


@pytest.mark.parametrize(
    ("names", "functions", "known"),
    [
        ({"docs"}, set(), set()),
        ({"docs", "search"}, {"match"}, {"fts5"}),
        ({"places", "json_each"}, set(), {"rtree", "json_each"}),
        ({"places"}, {"match"}, None),  # an application's own function
        ({"own"}, {"match"}, None),  # an application's own tokenizer
        ({"logs"}, set(), None),
        ({"odd"}, set(), None),
        ({"dbstat"}, set(), None),
        ({"pragma_table_info"}, set(), None),
    ],
)
def test_modules_of_which_it_is_known_that_they_read_pages_alone(names, functions, known):
    assert known_modules(names, functions, SCHEMA, MODULES) == known


def test_where_full_text_search_keeps_what_it_has_is_known():
    with closing(apsw.Connection(":memory:")) as connection:
        connection.execute(
            "CREATE TABLE docs (id INTEGER PRIMARY KEY, body TEXT);"
            "CREATE VIRTUAL TABLE Notes USING fts5(body);"
            "CREATE VIRTUAL TABLE search USING fts5(body, content='docs', content_rowid='id');"
            "CREATE VIRTUAL TABLE places USING rtree(id, x0, x1)"
        )
        roots = dict(connection.execute("SELECT name, rootpage FROM sqlite_schema"))
        parts = ("config", "data", "idx", "docsize", "content")
        assert full_text_roots(connection, ["notes", "docs"]) == tuple(roots[f"Notes_{part}"] for part in parts)
        assert full_text_roots(connection, ["search"]) == tuple(roots[f"search_{part}"] for part in parts[:-1])
        assert full_text_roots(connection, ["docs", "places", "missing"]) == ()
