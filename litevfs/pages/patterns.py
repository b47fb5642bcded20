"""The patterns that a query's reads have shown so far, and how far each is planned. State alone; `watcher` decides."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from litevfs.pages.btree import IndexEntry


@dataclass(slots=True)
class Scan:
    """Leaves read in order, and how far the plan is ahead of them."""

    position: int  # of the child read last, in its interior page
    end_in: int  # interior page of the first leaf that is not planned yet; it may have to come first
    end: int  # position of that leaf there
    left: int = 0  # leaves planned and not read yet
    window: int = 0  # 0: not known to be a pattern
    wanted: int = 0  # pages that the next guess has to have room for
    last: int = 0  # leaf planned last
    rests_until: int = 0  # reads of the leaves before this position change no plan, and are not looked at
    seen: int = 0  # position of the one of them read last
    guessed: dict[int, int] = field(default_factory=dict)  # interior page not known yet -> pages planned with it
    planned: set[int] = field(default_factory=set)  # pages planned and not read yet, for all that is known

    @property
    def is_active(self) -> bool:
        """Whether pages are planned and not read yet."""
        return bool(self.window and (self.guessed or self.left > max(0, self.seen - self.position)))

    def add(self, pages: Iterable[int]) -> list[int]:
        """Add pages to the plan; returns those that were not planned yet."""
        new = [page for page in pages if page not in self.planned]
        self.planned.update(new)
        return new


@dataclass(slots=True)
class Run:
    """Pages read in the order of their numbers."""

    last: int = 0
    end: int = 0  # first page not planned yet
    window: int = 0


@dataclass(slots=True)
class IndexLeaf:
    """An index leaf whose entries may be looked up in their table."""

    pgno: int
    page: bytes
    first: int = 0  # the first table leaf read since
    entries: list[IndexEntry] = field(default_factory=list)  # as looked up; empty until a second table leaf was read
    is_descending: bool = False  # looked up from the last entry on
    root: int = 0  # topmost known page of the table
    depth: int = 0  # pages that lead from there to a leaf
    position: int = 0  # entry looked up last
    end: int = 0  # first entry not planned yet
    window: int = 0  # 0: not known to be a pattern
    is_equality: bool = False  # so far all entries have the same key: plan no further than that key goes
    waiting: dict[int, list[int]] = field(default_factory=dict)  # interior page not known yet -> entries below it

    @property
    def key(self) -> tuple[int, bytes]:
        """The key of the entry looked up last, or of the first one."""
        return self.entries[max(self.position, 0)].key
