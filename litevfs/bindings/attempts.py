"""The values of a rehearsal: its statement, its bounds, and its progress. `rehearsal_session` makes the reads."""

from __future__ import annotations

from dataclasses import dataclass, field

import apsw

from litevfs.bindings.statements import Statement
from litevfs.errors import LitevfsError
from litevfs.pages.stand_ins import Tree
from litevfs.states.snapshot import Snapshot


class Ended(LitevfsError):
    """A rehearsal that need not go on."""

    extendedresult = apsw.SQLITE_INTERRUPT


@dataclass(frozen=True, slots=True)
class Task:
    """A statement to rehearse, and what its query sees."""

    statement: Statement
    snapshot: Snapshot
    first_page: bytes
    run: object  # of the statement, see `Running`
    begins: int  # read transactions of the session so far


@dataclass(slots=True)
class Attempt:
    """One rehearsal: where it begins, its bounds, and what it has come to. Made for each, and dropped whole."""

    cut_down: dict[int, bytes] = field(default_factory=dict)  # interior pages, without what the query has gone through
    aliases: dict[int, bytes] = field(default_factory=dict)  # pages that stand beside true ones; empty: it ends there
    unknown: list[int] = field(default_factory=list)  # pages without which it is not known where it begins
    passed: frozenset[int] = frozenset()  # pages that the query has gone through since
    most: int = 0  # pages that it may miss
    most_seen: int = 0  # pages in memory that it may read; 0: any number
    missing: dict[int, int] = field(default_factory=dict)  # pages, and how many others it has read before
    seen: dict[int, None] = field(default_factory=dict)  # pages that it has read, and that were in memory
    again: set[int] = field(default_factory=set)  # those that it has read once more: SQLite's cache did not keep them
    last: int = 0  # page that was missing last
    siblings: int = 0  # leaves in a row up to this one
    last_made: int = 0  # page below a stand-in that was read last
    made_siblings: int = 0  # such pages in a row up to this one
    repeats: int = 0  # reads of pages that were missing before
    checks: int = 0
    is_cut_short: bool = False  # it has ended at a bound, where there is more to be read
    scanned: Tree | None = None  # whose leaves have ended it
    rows: int | None = None  # if it came to its end
