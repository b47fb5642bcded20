"""Where guesses look for the pages below others: right for databases that SQLite wrote in order, ended where not."""

from __future__ import annotations

import random
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from litevfs.pages.btree import LEAF_INDEX, LEAF_TABLE, parse_interior
from litevfs.pages.guesses import MAX_WRONG, Guesses, has_leaves_between, leaves_of_small_tree
from litevfs.pages.trees import KnownTrees

PAGE_SIZE = 1024
ROWS = 30_000
LEAST = 0.8
"""Part of all leaves that guesses find, on average; the first few interior pages are the worst."""


class Database:
    """The pages of a database file, and its trees' roots."""

    def __init__(self, path: Path, page_size: int = PAGE_SIZE) -> None:
        with closing(sqlite3.connect(path)) as connection:
            self.roots = dict(connection.execute("SELECT name, rootpage FROM sqlite_schema"))
        data = path.read_bytes()
        self.pages = {i // page_size + 1: data[i : i + page_size] for i in range(0, len(data), page_size)}

    def children(self, pgno: int) -> list[int]:
        """The pages right below a page; none below a leaf."""
        interior = parse_interior(pgno, self.pages[pgno])
        return interior.children if interior else []

    def level(self, name: str, depth: int) -> list[int]:
        """The pages of a tree so many levels below its root."""
        pages = [self.roots[name]]
        for _ in range(depth):
            pages = [child for pgno in pages for child in self.children(pgno)]
        return pages

    def depth(self, name: str) -> int:
        """Levels below a tree's root."""
        pgno, depth = self.roots[name], 0
        while children := self.children(pgno):
            pgno, depth = children[0], depth + 1
        return depth

    def found(self, name: str) -> tuple[float, float]:
        """(part of the leaves of a tree that guesses find, pages guessed for each that is found)."""
        trees = KnownTrees()
        lowest = self.depth(name) - 1
        assert lowest >= 1
        for depth in range(lowest):
            for pgno in self.level(name, depth):
                trees.learn(pgno, self.pages[pgno])
        leaves = hits = guessed = 0
        for pgno in self.level(name, lowest):
            guess = set(Guesses(trees).below(pgno))
            leaves += len(self.children(pgno))
            hits += len(guess & set(self.children(pgno)))
            guessed += len(guess)
        return hits / leaves, guessed / max(1, hits)


def _make(path: Path, *, in_order: bool, page_size: int = PAGE_SIZE) -> None:
    keys = list(range(ROWS))
    if not in_order:
        random.Random(1).shuffle(keys)
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            f"PRAGMA page_size={page_size}; PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF;"
            "CREATE TABLE alone (id INTEGER PRIMARY KEY, body TEXT); CREATE TABLE few (id INTEGER PRIMARY KEY, body)"
        )
        with connection:
            rows = ((key, f"{key:0{page_size // 16}}") for key in keys)
            connection.executemany("INSERT INTO alone VALUES (?, ?)", rows)
            connection.executemany("INSERT INTO few VALUES (?, ?)", ((i, "x" * (page_size // 8)) for i in range(300)))
            connection.execute("CREATE INDEX at_once ON alone (body)")
            connection.execute("CREATE TABLE one (id INTEGER PRIMARY KEY, body)")
            connection.execute("CREATE TABLE two (id INTEGER PRIMARY KEY, body)")
            for i in keys[: ROWS // 2]:
                connection.execute("INSERT INTO one VALUES (?, ?)", (i, f"{i:0{page_size // 10}}"))
                connection.execute("INSERT INTO two VALUES (?, ?)", (i, f"{i:0{page_size // 16}}"))


@pytest.fixture(scope="module")
def grown(tmp_path_factory) -> Path:
    """A database whose rows came in the order of their keys."""
    path = tmp_path_factory.mktemp("grown") / "grown.db"
    _make(path, in_order=True)
    return path


@pytest.fixture(scope="module")
def scattered(tmp_path_factory) -> Path:
    """A database whose rows came in no order."""
    path = tmp_path_factory.mktemp("scattered") / "scattered.db"
    _make(path, in_order=False)
    return path


@pytest.mark.parametrize("name", ["alone", "at_once", "one", "two"])
def test_leaves_are_found_around_the_interior_page_above_them(grown, name):
    part, price = Database(grown).found(name)
    assert part >= LEAST
    assert price <= (4 if name in {"one", "two"} else 1.5)  # those two grew together


@pytest.mark.parametrize("name", ["alone", "at_once", "one"])
def test_they_are_found_after_vacuum(grown, tmp_path, name):
    path = tmp_path / "vacuumed.db"
    with closing(sqlite3.connect(grown)) as connection:
        connection.execute("VACUUM INTO ?", (str(path),))
    part, price = Database(path).found(name)
    assert part >= LEAST
    assert price <= 1.5


def test_pages_of_other_sizes_are_shared_out_in_the_same_way(tmp_path):
    path = tmp_path / "large.db"
    _make(path, in_order=True, page_size=2048)
    for name in ("alone", "at_once"):
        part, price = Database(path, 2048).found(name)
        assert part >= LEAST
        assert price <= 1.6


def _leaves_between(database: Database, name: str) -> tuple[bool, float]:
    """What the distances of a tree's interior pages say, and the part of the pages between that are its leaves."""
    pgno = database.level(name, database.depth(name) - 2)[0]
    interior = parse_interior(pgno, database.pages[pgno])
    leaves = {leaf for child in interior.children for leaf in database.children(child)}
    between = range(interior.children[1] + 1, interior.children[-1])
    return has_leaves_between(interior), len(leaves & set(between)) / len(between)


@pytest.mark.parametrize("name", ["alone", "at_once", "one", "two"])
def test_interior_pages_say_whether_there_is_little_else_between_them_than_leaves(grown, tmp_path, name):
    says_so, part = _leaves_between(Database(grown), name)
    assert says_so == (part > 0.9) == (name not in {"one", "two"})  # those two grew together
    path = tmp_path / "vacuumed.db"
    with closing(sqlite3.connect(grown)) as connection:
        connection.execute("VACUUM INTO ?", (str(path),))
    says_so, part = _leaves_between(Database(path), name)
    assert says_so
    assert part > 0.9


def test_nothing_is_guessed_below_leaves_nor_without_the_page_above(grown):
    database = Database(grown)
    for name in database.roots:
        trees = KnownTrees()
        depth = database.depth(name)
        assert Guesses(trees).below(database.level(name, depth)[0]) == ()
        for above in range(depth):
            for pgno in database.level(name, above):
                trees.learn(pgno, database.pages[pgno])
        leaves = [pgno for pgno in database.level(name, depth) if database.pages[pgno][0] in {LEAF_INDEX, LEAF_TABLE}]
        guessed = sum(bool(Guesses(trees).below(pgno)) for pgno in leaves)
        assert guessed <= len(leaves) / 50, name


def test_guesses_end_where_they_prove_wrong(scattered):
    database = Database(scattered)
    trees = KnownTrees()
    guesses = Guesses(trees)
    trees.learn(database.roots["one"], database.pages[database.roots["one"]])
    made = 0
    for pgno in database.level("one", 1):
        guess = guesses.below(pgno)
        made += bool(guess)
        guesses.note(pgno, guess)
        trees.learn(pgno, database.pages[pgno])
        if guess:
            assert guesses.open_for == pgno
            guesses.check()
        assert not guesses.open_for
    assert made <= MAX_WRONG
    assert len(database.level("one", 1)) > 2 * MAX_WRONG


def test_a_right_guess_makes_up_for_a_wrong_one(grown):
    database = Database(grown)
    trees = KnownTrees()
    guesses = Guesses(trees)
    trees.learn(database.roots["alone"], database.pages[database.roots["alone"]])
    for n, pgno in enumerate(database.level("alone", 1)):
        guess = guesses.below(pgno)
        assert guess
        guesses.note(pgno, guess if n % 2 else [1])
        trees.learn(pgno, database.pages[pgno])
        guesses.check()
        assert guesses.below(pgno) == ()  # known now


def test_a_small_tree_is_known_by_its_leaves(grown):
    database = Database(grown)
    root = database.roots["few"]
    interior = parse_interior(root, database.pages[root])
    assert list(leaves_of_small_tree(interior)) == sorted(database.level("few", 1))
    for name in ("alone", "at_once"):
        large = parse_interior(database.roots[name], database.pages[database.roots[name]])
        assert len(leaves_of_small_tree(large)) <= 2  # two interior pages that were made together
