"""The scans of whole trees that a query's program announces, and how each begins. Pure.

`watcher` recognizes other scans by their first reads; these are known before.
"""

from __future__ import annotations

from dataclasses import dataclass

from litevfs.pages.btree import Interior
from litevfs.pages.guesses import has_leaves_between, leads_to_leaves, pages_below
from litevfs.pages.patterns import Scan
from litevfs.pages.trees import KnownTrees

TELLING = 4
"""Fewer children may lie side by side and be leaves, or interior pages that were made together."""


@dataclass(frozen=True, slots=True)
class Beginning:
    """How a scan of a whole tree begins."""

    parent: int  # the interior page above the first leaf
    before: list[int]  # pages that probably are leaves below it, where it is not known itself
    awaited: int = 0  # instead of all this: a page that has to be known first
    is_dense: bool = False  # what lies between the interior pages of the tree is nearly all leaves of it

    def scan(self, most: int, window: int) -> tuple[Scan, list[int]]:
        """The scan, with this window, and its first pages, at most so many, if these are guesses."""
        scan = Scan(-1, self.parent, 0, window=window, is_whole=True)
        if not self.before:
            return scan, []
        plan = scan.add([self.parent, *self.before[:most]])
        scan.guessed[self.parent] = len(plan)
        return scan, plan


class Expected:
    """The trees that a query is going to read whole, in this order, of those that no plan has come to."""

    def __init__(self) -> None:
        self._roots: list[int] = []
        self._top = 0  # known page of the first of these trees that leads to its first leaf, or the root

    def begin(self, roots: list[int]) -> None:
        """Another query begins, or is known; it is going to read these trees."""
        self._roots, self._top = roots, 0

    def waits_for(self, pgno: int) -> bool:
        """Whether the next tree begins with this page."""
        return self._top == pgno != 0

    def has(self, root: int) -> bool:
        """Whether the tree with this root is one of them."""
        return root in self._roots

    def take(self, trees: KnownTrees) -> Beginning | None:
        """How the scan of the next tree begins, which is then no longer expected; None if there is none."""
        while self._roots:
            self._top = pgno = self._top or self._roots[0]
            interior = trees.interior.get(pgno)
            if interior is None:
                return Beginning(0, [], pgno)
            if (first := interior.children[0]) in trees.interior:
                self._top = first
            elif (beginning := _beginning(pgno, interior)) is not None:
                self._roots, self._top = self._roots[1:], 0
                return beginning
            else:
                self._top = first
        self._top = 0
        return None

    def take_leaf(self, trees: KnownTrees) -> Beginning | None:
        """The page that the next tree begins with is a leaf: how its scan begins; None if there is no other leaf."""
        place = trees.place(self._top)
        self._roots, self._top = self._roots[1:], 0
        return None if place is None else Beginning(place[0], [])


def _beginning(pgno: int, interior: Interior) -> Beginning | None:
    """How a scan below an interior page begins, as far as the distances of its children show that."""
    if len(interior.children) < TELLING:
        return None
    if leads_to_leaves(interior):
        return Beginning(pgno, [])
    below = pages_below(interior, 0)
    is_dense = has_leaves_between(interior)
    return Beginning(interior.children[0], list(below)[::-1], is_dense=is_dense) if below else None
