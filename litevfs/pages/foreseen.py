"""What a scan reads beyond the interior pages that are known, and scans that are sure to come. Pure.

`watcher` plans scans as they show in the reads; this says what comes before, or after, such a page is known.
"""

from __future__ import annotations

from dataclasses import dataclass

from litevfs.pages.btree import Interior
from litevfs.pages.guesses import leads_to_leaves, pages_below
from litevfs.pages.patterns import Scan
from litevfs.pages.trees import KnownTrees

GUESS_PAGES = 2048
"""Leaves below one interior page that are planned before it is known, together with what lies between them."""

TELLING = 4
"""Fewer children may lie side by side and be leaves, or interior pages that were made together."""


def guess_leaves(scan: Scan, trees: KnownTrees, awaited: set[int]) -> list[int]:
    """The pages that a plan needs beyond the known interior pages, of which those that it waits for are `awaited`.

    The leaves below an interior page often lie between it and the next one. Where the two are not further apart
    than a page has children, all between them is planned, as far as the window goes, or each interior page would
    cost a round trip. After the last one as many are planned as lie between it and the one before.
    """
    plan: list[int] = []
    pgno = start = scan.end_in
    if not scan.guessed and scan.last < pgno <= scan.last + GUESS_PAGES:
        start = scan.last + 1  # as if it was added when some of its leaves existed already
    guessed = sum(scan.guessed.values())
    while pgno not in trees.interior:
        following = trees.next_interior(pgno)
        until = following or pgno + trees.stride(pgno)
        is_near = pgno < until <= pgno + GUESS_PAGES
        between = range(start, until) if is_near else range(pgno, pgno + 1)
        if pgno not in scan.guessed:
            room = scan.window - scan.left - guessed
            if room < len(between) and (guessed or scan.left > scan.window // 2):
                scan.wanted = len(between)
                break
            between = between[: max(room, 1)]  # the others follow once the page is known
            plan += scan.add(dict.fromkeys([pgno, *between]))
            guessed += len(between)
            scan.guessed[pgno] = len(between)
            awaited.add(pgno)
        if not is_near or not following:
            break
        pgno = start = following
    return plan


@dataclass(frozen=True, slots=True)
class Beginning:
    """How a scan of a whole tree begins."""

    parent: int  # the interior page above the first leaf
    before: list[int]  # pages that probably are leaves below it, where it is not known itself
    awaited: int = 0  # instead of all this: a page that has to be known first

    def scan(self, most: int, window: int) -> tuple[Scan, list[int]]:
        """The scan, with this window, and its first pages, at most so many, if these are guesses."""
        scan = Scan(-1, self.parent, 0, window=window)
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
    return Beginning(interior.children[0], list(below)[::-1]) if below else None
