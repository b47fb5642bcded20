"""Guesses which pages a read leads to, so that they come by the same request. Pure; `ahead` decides whether they may.

On a line that carries many pages in a round trip, a level of a B-tree costs less as bytes than as a trip of its own:

- Below an interior page. SQLite takes new pages from the end of the file, so the leaves below an interior page lie
  around it if the table grew in the order of its rows, and between it and the next one if an index was made at once;
  those below the first one lie before it, as it is made when there are too many leaves for the root.
- Beyond the interior pages that a scan has come to: the leaves of the next ones lie between these.
- A small tree that a statement looks into beside others: all its leaves.

Where pages lie elsewhere, as after random inserts, guesses prove wrong, and end.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice, pairwise

from litevfs.pages.btree import Interior
from litevfs.pages.patterns import Scan
from litevfs.pages.trees import KnownTrees

MAX_WRONG = 3
"""Wrong guesses of one connection, beyond the right ones, after which it makes no more."""
RIGHT_SHARE = 0.5
"""Part of a page's children that lie where they were guessed, at least, if the guess was right."""
CLOSE, FAR = 1 / 8, 4
"""Siblings that lie fewer pages apart than this part of the children of an interior page are leaves; those that lie
more of them apart have other pages between them, too."""
MIN_STRIDE = 4
"""Leaves lie so few pages apart, too, where an interior page was made between them."""
MAX_STRIDE = 2048
"""Of larger pages there are more than a request should bring."""
FIRST_SHARE = 1.3
"""The leaves below the first interior page lie before it, by so many times as many pages as it has room for at most:
SQLite shares them out when it makes the second one."""
AROUND = {True: (0.45, 0.65), False: (0.02, 1.0)}
"""Where the leaves below the others lie, before and after them, in parts of the way from one to the next, by whether it
is a table: a table that grows shares leaves out to a new interior page, an index made at once begins with it. Measured
on pages of 1 to 8 KiB that grew together and after VACUUM, for SQLite 3.54."""
SCANNED_AHEAD = 2048
"""Leaves below one interior page that a scan plans before it is known, together with what lies between them."""
FULL, STRIDES = 1.2, 16
"""Of so many interior pages, none lies further from the one before, in parts of the leaves that it has room for: then
nearly all between them are its leaves. The first two may lie side by side: made together, when the root was full."""
FEW_CHILDREN = 16
"""Of a root page, which come with it."""
DENSE = 0.5
"""Part of the pages between the first and the last leaf of a small tree that are its own, at least."""


class Guesses:
    """Those of one connection, from the trees that it knows."""

    def __init__(self, trees: KnownTrees) -> None:
        self._trees = trees  # another thread adds to them
        self._made_for: set[int] = set()
        self._guessed: frozenset[int] = frozenset()  # pages
        self._wrong = 0  # more than right ones
        self.open_for = 0  # the page that is about to be read whose guess is not checked yet; 0: none

    def below(self, pgno: int) -> Sequence[int]:
        """The pages that probably lie below one which is about to be read, nearest first; empty if it is not known."""
        trees = self._trees
        place = trees.place(pgno)
        if place is None or self._wrong >= MAX_WRONG or pgno in trees.interior or pgno in self._made_for:
            return ()
        parent, position = place
        interior = trees.interior.get(parent)
        return () if interior is None else pages_below(interior, position)

    def note(self, pgno: int, guessed: Sequence[int]) -> None:
        """These pages were asked for together with `pgno`; none if it was too much. It is not guessed for again."""
        self._made_for.add(pgno)
        self._guessed = frozenset(guessed)
        self.open_for = pgno if guessed else 0

    def check(self) -> None:
        """The page that the guess is for is read, and known if it is an interior one."""
        interior = self._trees.interior.get(self.open_for)
        children = () if interior is None else interior.children
        is_right = sum(child in self._guessed for child in children) > RIGHT_SHARE * len(children)
        self._wrong += -1 if is_right else 1
        self.open_for = 0


def pages_below(interior: Interior, position: int) -> Sequence[int]:
    """The pages that probably lie below a child of an interior page, nearest first; empty if that is a leaf, or if its
    siblings say nothing.
    """
    children = interior.children
    most = _capacity(interior)
    pgno = children[position]
    if len(children) < 2 or _has_few_rows(interior, position, most):
        return ()
    strides = [after - before for before, after in pairwise(children[:3])]
    if position <= 1 and strides[0] == 1:  # made together, when the root became too full
        if len(strides) > 1 and strides[1] < max(CLOSE * most, MIN_STRIDE):
            return ()
        if position == 0:
            before_it = min(int(most * FIRST_SHARE), MAX_STRIDE)
            return range(pgno - 1, max(0, pgno - 1 - before_it), -1)
        stride = strides[-1] if len(strides) > 1 else most
    else:
        is_last = position == len(children) - 1
        stride = pgno - children[position - 1] if is_last else children[position + 1] - pgno
    if stride > MAX_STRIDE or not max(CLOSE * most, MIN_STRIDE) <= stride <= FAR * most:
        return ()
    before, after = AROUND[interior.is_table]
    return sorted(range(pgno - int(before * stride), pgno + int(after * stride)), key=lambda other: abs(other - pgno))


def leads_to_leaves(interior: Interior) -> bool:
    """Whether the children of an interior page are leaves, by their distances; False if these say nothing."""
    strides = sorted(abs(after - before) for before, after in pairwise(interior.children))
    return strides[len(strides) // 2] < max(CLOSE * _capacity(interior), MIN_STRIDE)


def has_leaves_between(interior: Interior) -> bool:
    """Whether its children, interior pages, lie as far apart as each has room for leaves: few pages are others'."""
    most = _capacity(interior) * FULL
    return all(0 < after - before <= most for before, after in islice(pairwise(interior.children), 1, STRIDES))


def _capacity(interior: Interior) -> int:
    """How many children an interior page has room for, by the size of the cells of the one above it."""
    cells = len(interior.page) - min(interior.pointers)
    return len(interior.page) * len(interior.pointers) // max(1, cells + 2 * len(interior.pointers))


def _has_few_rows(interior: Interior, position: int, most: int) -> bool:
    """Whether a page of a table has fewer rows than an interior page has children: it is a leaf then."""
    if not interior.is_table or len(interior.keys) < 2:
        return False
    position = min(max(position, 1), len(interior.keys) - 1)
    return interior.keys[position] - interior.keys[position - 1] < most


def leaves_of_small_tree(root: Interior) -> Sequence[int]:
    """The leaves below a root page, if there is no level between, by how they lie."""
    children = sorted(root.children)
    return children if len(children) >= DENSE * (children[-1] - children[0] + 1) else ()


def few_children(root: Interior) -> Sequence[int]:
    """The pages of the level below a root page, if they are so few that each is probably needed."""
    return root.children if len(root.children) <= FEW_CHILDREN else ()


def guess_leaves(scan: Scan, trees: KnownTrees, awaited: set[int]) -> list[int]:
    """The pages that a plan needs beyond the known interior pages, of which those that it waits for are `awaited`.

    The leaves below an interior page often lie between it and the next one. Where the two are not further apart
    than a page has children, all between them is planned, as far as the window goes, or each interior page would
    cost a round trip. After the last one as many are planned as lie between it and the one before.
    """
    plan: list[int] = []
    pgno = start = scan.end_in
    if not scan.guessed and scan.last < pgno <= scan.last + SCANNED_AHEAD:
        start = scan.last + 1  # as if it was added when some of its leaves existed already
    guessed = sum(scan.guessed.values())
    while pgno not in trees.interior:
        following = trees.next_interior(pgno)
        until = following or pgno + trees.stride(pgno)
        is_near = pgno < until <= pgno + SCANNED_AHEAD
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
