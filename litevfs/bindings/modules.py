"""What a rehearsal may use: SQLite's own functions, and modules of virtual tables that only read pages."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping

import apsw

FUNCTIONS = frozenset({"match", "bm25", "highlight", "snippet"})
"""That SQLite says are not its own, as modules overload them."""
_TABLE_VALUED = frozenset({"json_each", "json_tree"})
"""Modules whose table has their name, and no page."""
ON_TABLES = frozenset({"fts3", "fts4", "fts5", "rtree", "rtree_i32", "geopoly"})
"""Modules that keep what they have in tables of their own."""
_FULL_TEXT = frozenset({"fts3", "fts4", "fts5"})
_PARTS = ("config", "data", "idx", "docsize", "content")
"""A full-text table of FTS5 keeps what it has in tables of its name and these ones: in all or some of them."""
_MODULE = re.compile(r"CREATE\s+VIRTUAL\s+TABLE\b.*?\bUSING\s+[\"'`\[]?(\w+)", re.IGNORECASE | re.DOTALL)
_TOKENIZER = re.compile(r"\btokenize\s*=\s*[\"'`]?\s*(?:porter\s+)?[\"'`]?(\w+)", re.IGNORECASE)
_TOKENIZERS = frozenset({"unicode61", "ascii", "porter", "trigram", "simple"})


def read_by(
    connection: apsw.Connection, tables: Iterable[str], functions: Collection[str]
) -> tuple[frozenset[str] | None, tuple[int, ...]]:
    """Of a statement that reads these tables and calls these functions: `modules_read`, and `full_text_roots`."""
    read = tuple(tables)  # before the statements of these functions are noted among them
    return modules_read(connection, tables, functions), full_text_roots(connection, read)


def modules_read(
    connection: apsw.Connection, tables: Iterable[str], functions: Collection[str]
) -> frozenset[str] | None:
    """The modules of the virtual tables that a statement of this connection reads; see `known_modules`."""
    names, called = set(tables), set(functions)  # before this function's own statements are noted among them
    rows = connection.execute("SELECT lower(name), sql FROM sqlite_schema WHERE type = 'table' AND rootpage = 0")
    schema = {str(name): str(sql) for name, sql in rows}
    modules = [str(name) for (name,) in connection.execute("SELECT lower(name) FROM pragma_module_list")]
    return known_modules(names, called, schema, modules)


def full_text_roots(connection: apsw.Connection, tables: Iterable[str]) -> tuple[int, ...]:
    """The root pages of the tables in which those of these tables that are of FTS5 keep what they have."""
    rows = connection.execute("SELECT lower(name), sql, rootpage FROM sqlite_schema WHERE type = 'table'")
    schema = {str(name): (str(sql), int(root)) for name, sql, root in rows}
    searches = [name for name in tables if name in schema and _module(schema[name][0]) == "fts5"]
    parts = (f"{name}_{part}" for name in sorted(searches) for part in _PARTS)
    return tuple(schema[part][1] for part in parts if part in schema)


def known_modules(
    names: Iterable[str], functions: Collection[str], schema: Mapping[str, str], modules: Iterable[str]
) -> frozenset[str] | None:
    """The modules of the virtual tables that a statement reads; None if one of them is not known.

    `names` of all tables that it reads, and those of FUNCTIONS that it calls, which full-text search has alone;
    `schema` has the SQL of virtual tables by name; all in lower case. `modules` are those that there are.
    """
    own = set(modules)
    found = {name: _module(schema[name]) if name in schema else name for name in names if name in schema or name in own}
    if not all(module in (ON_TABLES if name in schema else _TABLE_VALUED) for name, module in found.items()):
        return None
    searches = [name for name, module in found.items() if module in _FULL_TEXT]
    if (functions and not searches) or not all(_has_own_tokenizer(schema[name]) for name in searches):
        return None
    return frozenset(found.values())


def _module(sql: str) -> str:
    match = _MODULE.match(sql)
    return match[1].lower() if match else ""


def _has_own_tokenizer(sql: str) -> bool:
    """Whether a table's tokenizer is SQLite's own, not an application's."""
    match = _TOKENIZER.search(sql)
    return match is None or match[1].lower() in _TOKENIZERS


def authorizer(connection: apsw.Connection, tables: set[str], functions: set[str]) -> Callable[..., int]:
    """An authorizer: a rehearsal calls no function of an application, which `apsw.connection_hooks` may have added.

    Adds to `tables` what is read, and to `functions` those of FUNCTIONS that are called.
    """
    listed = connection.execute("SELECT name, builtin FROM pragma_function_list").fetchall()
    known = {name for name, is_builtin in listed if is_builtin} - {name for name, builtin in listed if not builtin}

    def authorize(action: int, table: str | None, name: str | None, *_: str | None) -> int:
        if action == apsw.SQLITE_READ:
            tables.add(str(table).lower())
        if action != apsw.SQLITE_FUNCTION or (function := str(name).lower()) in known:
            return apsw.SQLITE_OK
        functions.add(function)
        return apsw.SQLITE_OK if function in FUNCTIONS else apsw.SQLITE_DENY

    return authorize
