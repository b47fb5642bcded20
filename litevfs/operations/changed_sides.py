"""The pages that differ between two snapshots, in both states, and the tables that they belong to."""

from __future__ import annotations

import logging
from collections.abc import Collection
from contextlib import suppress

from litevfs.errors import LitevfsError
from litevfs.live.replica import Replica
from litevfs.ltx.format import lock_pgno
from litevfs.ltx.names import format_txid
from litevfs.operations.index_trees import KeyOrder, is_index_tree_touched
from litevfs.operations.key_orders import declared_key_order
from litevfs.operations.table_trees import encoding_of, is_table_touched, schema_names, table_roots, table_sql
from litevfs.operations.tables import is_among, no_table
from litevfs.operations.tree_pages import (
    INTERIOR_INDEX,
    LEAF_INDEX,
    Side,
    UnclearError,
    are_index_pages_touched,
    page_kind,
    unexplained_overflow,
)
from litevfs.pages.bulk import read_pages
from litevfs.pages.source import PageSource
from litevfs.states.changes import changed_pgnos
from litevfs.states.snapshot import Snapshot

logger = logging.getLogger("litevfs.operations.changed_sides")

MAX_CHANGED_BYTES = 64_000_000
"""Most pages that may differ; with more, it does not pay to find out which rows they hold."""


def read_sides(pages: PageSource, old: Snapshot, new: Snapshot, pgnos: Collection[int]) -> tuple[Side, Side] | None:
    """The pages `pgnos` of both states; None if they are too many, or the two databases are unrelated."""
    if old.page_size != new.page_size or not old.commit or not new.commit:
        return None
    if len(pgnos) * new.page_size > MAX_CHANGED_BYTES:
        return None
    return _side(pages, old, pgnos), _side(pages, new, pgnos)


def _side(pages: PageSource, snapshot: Snapshot, pgnos: Collection[int]) -> Side:
    first = pages.read(snapshot, 1)
    usable = snapshot.page_size - first[20]
    has_pointer_map = any(first[52:56])
    lock_page = lock_pgno(snapshot.page_size)
    wanted = [
        pgno
        for pgno in pgnos
        if pgno <= snapshot.commit and not (has_pointer_map and _is_pointer_map(pgno, usable, lock_page))
    ]
    changed = dict(read_pages(pages, snapshot, wanted))
    return Side(
        lambda pgno: pages.read(snapshot, pgno),
        lambda pgnos: pages.announce(snapshot, pgnos),
        snapshot.commit,
        usable,
        changed,
    )


def _is_pointer_map(pgno: int, usable: int, lock_page: int) -> bool:
    """Whether a page of an auto-vacuum database is one of its pointer maps, which are no B-tree pages."""
    step = usable // 5 + 1
    map_page = (pgno - 2) // step * step + 2
    return pgno >= 2 and pgno == (map_page + 1 if map_page == lock_page else map_page)


class TableFilter:
    """Tells whether one of some tables may differ between two states of a replica; yes when that is not clear."""

    def __init__(self, tables: Collection[str]) -> None:
        self._given = tables
        self._names = {name.lower() for name in tables}

    def check_names(self, replica: Replica, state: Snapshot) -> None:
        """Raise OptionError for a name that no table, view or virtual table has in this state."""
        with suppress(UnclearError):
            known = schema_names(_side(replica.pages, state, ()))
            for name in self._given:
                if not is_among(name, known):
                    raise no_table(name, known, f" in the state {format_txid(state.txid)}")

    def __call__(self, replica: Replica, old: Snapshot, new: Snapshot) -> bool:
        """Never raises: if the pages cannot be read, the tables may differ."""
        try:
            return self._may_differ(replica, old, new)
        except (UnclearError, LitevfsError) as error:
            logger.info("all tables may have changed: %s", error)
            return True

    def _may_differ(self, replica: Replica, old: Snapshot, new: Snapshot) -> bool:
        if old.epoch != new.epoch:
            return True
        pgnos = {*changed_pgnos(old, new).tolist(), *range(new.commit + 1, old.commit + 1)}
        pgnos.discard(lock_pgno(new.page_size))
        sides = read_sides(replica.pages, old, new, pgnos)
        if sides is None:
            return True
        before, after = ({n: r for n, r in table_roots(side).items() if n in self._names} for side in sides)
        if before != after or len(after) < len(self._names) or unexplained_overflow(*sides):
            return True  # a table that is not ordinary, such as a virtual one, may have changed
        return any(self._is_touched(sides, name, root) for name, root in after.items())

    def _is_touched(self, sides: tuple[Side, Side], name: str, root: int) -> bool:
        if page_kind(root, sides[1].page(root)) not in (LEAF_INDEX, INTERIOR_INDEX):
            return is_table_touched(*sides, root)
        if not are_index_pages_touched(*sides):  # of a WITHOUT ROWID table
            return False
        old, new = (_key_order(side, name) for side in sides)
        return old is None or old != new or is_index_tree_touched(*sides, root, old)


def _key_order(side: Side, name: str) -> KeyOrder | None:
    sql = table_sql(side, name)
    return None if sql is None else declared_key_order(sql, encoding_of(side))
