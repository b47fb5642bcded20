"""The trees of a query's outermost loops, and the pages that the query has read since it was last asked. State only."""

from __future__ import annotations

from collections.abc import Iterable

from litevfs.pages.trees import KnownTrees

MAX_PASSED = 1 << 13
"""Pages remembered that a query has read."""


class OuterTrees:
    """Those of one query. The caller has the watcher's lock, but for `note`."""

    def __init__(self, trees: KnownTrees) -> None:
        self._trees = trees
        self._roots: frozenset[int] = frozenset()
        self._below: dict[int, bool] = {}  # whether an interior page belongs to one of them
        self._passed: dict[int, None] = {}  # pages read since `take_passed`

    def __bool__(self) -> bool:
        return bool(self._roots)

    def begin(self) -> None:
        """Another query begins."""
        self.hold(())
        self._passed = {}

    def hold(self, roots: Iterable[int]) -> None:
        """See `Watcher.hold`."""
        self._roots = frozenset(roots)
        self._below.clear()

    def has(self, parent: int) -> bool:
        """Whether an interior page is of one of these trees."""
        if not self._roots:
            return False
        found = self._below.get(parent)
        if found is None:
            found = self._below[parent] = self._trees.root(parent) in self._roots
        return found

    def note(self, pgno: int) -> None:
        """The query reads a page."""
        if self._roots and len(self._passed) < MAX_PASSED:
            self._passed[pgno] = None

    def take_passed(self) -> dict[int, None]:
        """See `Watcher.take_passed`."""
        passed, self._passed = self._passed, {}
        return passed
