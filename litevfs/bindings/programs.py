"""What SQLite is going to do in a statement, read off its EXPLAIN (https://www.sqlite.org/opcode.html). Pure; hints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from litevfs.bindings.modules import ON_TABLES
from litevfs.bindings.statements import Values
from litevfs.pages.stand_ins import Tree
from litevfs.pages.trees import MAX_ROWID

FEW_PAGES, MANY_PAGES = 16, 256
"""That the first rehearsal of a query may miss: where a LIMIT of unknown rows may end it, and without one."""

_ENDS = {
    "ResultRow",
    "Yield",
    "Halt",
    "HaltIfNull",
    "DecrJumpZero",
    "Return",
    "Gosub",
    "Jump",
    "Program",
    "VFilter",
    "VNext",
}
"""After these the application, or a LIMIT, may go on with no further row of a loop; or what comes is not known."""
_OTHER_ROWS = {"AggStep", "AggStep1", "SorterOpen", "OpenEphemeral", "OpenAutoindex", "OpenPseudo", "Yield", "Program"}
"""With one of these, a query has other rows than those that it looks up, or has them later."""
_JUMP_NAMES = """
    Goto If IfNot IfPos IfNotZero IsNull NotNull IsType IsTrue Not IfNullRow Eq Ne Lt Le Gt Ge ElseEq Once MustBeInt
    Filter Last IdxLE IdxGT IdxLT IdxGE SeekLT SeekLE SeekGE SeekGT SeekScan IfSizeBetween IfSmaller Found NotFound
    NoConflict NotExists SeekRowid Sort SorterSort SorterNext RowSetRead RowSetTest Rewind Next Prev
"""
_JUMPS = frozenset(_JUMP_NAMES.split())
"""Their second operand is where they may go on."""
_READ_NAMES = """
    Rewind Last Count OpenRead ReopenIdx SeekLT SeekLE SeekGE SeekGT SeekRowid NotExists Found NotFound NoConflict
    DeferredSeek FinishSeek
"""
_READS = frozenset(_READ_NAMES.split())
"""They read other pages than the scan goes through."""
_LOOK_UPS = _READS - {"OpenRead", "ReopenIdx", "DeferredSeek", "FinishSeek"}


@dataclass(frozen=True, slots=True)
class Value:
    """An integer in a statement: the rows that a LIMIT lets through, or a rowid."""

    number: int | None = None  # None: the parameter says it, or nothing that is known
    parameter: int = 0  # its number, from 1 on; 0: none

    def value(self, values: Sequence[object]) -> int | None:
        """The number, with these values of the parameters; None if that is not known."""
        if self.number is not None or not self.parameter:
            return self.number
        given = values[self.parameter - 1] if self.parameter <= len(values) else None
        return given if type(given) is int else None


@dataclass(frozen=True, slots=True)
class Outer:
    """A tree that an outermost loop goes through."""

    root: int
    is_descending: bool  # from its end on
    is_shared: bool = False  # something else in the statement reads it, too
    begins: Value | None = None  # the rowid at which the loop begins, if it is shared; None: with the first or last row


@dataclass(frozen=True, slots=True)
class Plan:
    """What SQLite is going to do in a statement."""

    trees: dict[int, Tree]  # by root page
    limits: tuple[Value, ...]  # each may end the query, or a part of it that runs once, before all rows are read
    is_loop: bool  # something is done more than once
    has_modules: bool  # virtual tables of which it is not known what reading them does
    scans: tuple[int, ...] = ()  # roots of the trees that it reads whole, one after the other, in this order
    shows_rows: bool = False  # it has a row for each row that an index leads to in its table, unless it rejects that
    outer: tuple[Outer, ...] = ()  # trees that its outermost loops go through
    names: tuple[str | None, ...] = ()  # of its parameters, without the character before them; None: has none
    offsets: tuple[Value, ...] = ()  # rows that are passed over before those of a LIMIT
    joins_itself: bool = False  # a tree is read in two places
    reads_modules: bool = False  # virtual tables, whatever is known of them
    reads_other_trees: bool = False  # those of such tables
    beside: tuple[int, ...] = ()  # roots of trees that full-text search reads, which the program does not name
    is_listed: bool = False  # an outermost loop with look-ups goes through values that are in no tree, as of an IN

    @property
    def is_worth_it(self) -> bool:
        """Whether something in the statement can go side by side."""
        if self.scans and set(self.scans) >= self.trees.keys():
            return False
        if len(self.trees) > 1 or self.joins_itself or (self.trees and self.reads_modules):
            return not self.has_modules
        is_scan = any(tree.is_table and tree.is_scanned for tree in self.trees.values())
        return bool(self.trees) and self.is_loop and not is_scan and not self.has_modules

    @property
    def is_lookup(self) -> bool:
        """Whether it follows the entries of one range of an index into its table, and reads nothing else."""
        kinds = sorted((tree.is_table, tree.is_scanned) for tree in self.trees.values())
        return kinds == [(False, True), (True, False)] and not self.has_modules and not self.is_listed

    @property
    def has_numbers(self) -> bool:
        """Whether numbers stand in it: those of the statement, or values of parameters that SQLite has put there."""
        begins = (outer.begins for outer in self.outer if outer.begins is not None)
        return any(value.number is not None for value in (*self.limits, *self.offsets, *begins))

    def rows(self, values: Values) -> int | None:
        """How many rows the query looks up in a table, unless it rejects some; None if no LIMIT says so."""
        limits = self._limits(values)
        known = [limit for limit in limits if limit is not None]
        return max(known) if known and len(known) == len(limits) else None

    def looks_up_all(self, values: Values) -> bool:
        """Whether it looks up every row that the entries of its index lead to: no LIMIT ends it."""
        return self.is_lookup and not self._limits(values)

    def pages(self, values: Values) -> int:
        """How many pages the first rehearsal may miss."""
        if not self._limits(values):
            return MANY_PAGES
        rows = (self.rows(values) or 0) + self._passed_over(values)
        return min(max(rows * (len(self.trees) - 1), FEW_PAGES), MANY_PAGES)

    def ends_soon(self, values: Values) -> bool:
        """Whether a LIMIT is known to let through few rows, after few that an OFFSET passes over."""
        return self.rows(values) is not None and self._passed_over(values) < MANY_PAGES

    def _passed_over(self, values: Values) -> int:
        known = self._in_order(values)
        return max((offset.value(known) or 0 for offset in self.offsets), default=0)

    def outer_loops(self, values: Values) -> dict[int, tuple[Outer, int | None]]:
        """The outermost loops whose begin is known, by root, and the rowids at which those over shared tables begin."""
        found: dict[int, tuple[Outer, int | None]] = {}
        known = self._in_order(values)
        for outer in self.outer:
            rowid = None if outer.begins is None else outer.begins.value(known)
            if outer.begins is None or (rowid is not None and abs(rowid) < MAX_ROWID // 2):
                found[outer.root] = outer, rowid
        return found

    def _in_order(self, values: Values) -> Sequence[object]:
        """The values by the numbers of the parameters."""
        if isinstance(values, dict):
            return [None if name is None else values.get(name) for name in self.names]
        return values

    def _limits(self, values: Values) -> list[int | None]:
        known = self._in_order(values)
        rows = [limit.value(known) for limit in self.limits]
        return [limit for limit in rows if limit is None or limit >= 0]  # less: none


@dataclass(frozen=True, slots=True)
class _Step:
    opcode: str
    p1: object
    p2: object
    p3: object
    p4: str


def plan_of(
    program: list[tuple[object, ...]],
    modules: frozenset[str] | None = None,
    names: Sequence[str | None] = (),
    beside: tuple[int, ...] = (),
) -> Plan:
    """From the rows of EXPLAIN, and the names of the statement's parameters, without the character before them.

    `modules` are those of the virtual tables in it; None: not all of them are known. `beside`: see `Plan`.
    """
    trees: dict[int, Tree] = {}
    roots: dict[object, int] = {}  # by cursor
    steps = [_Step(str(opcode), p1, p2, p3, str(p4)) for _, opcode, p1, p2, p3, p4, *_ in program]
    scanned = {step.p1 for step in steps if step.opcode in {"Next", "Prev", "Count"}}
    for step in steps:
        root = step.p2
        if step.opcode in {"OpenRead", "ReopenIdx"} and step.p3 == 0 and isinstance(root, int):
            known = trees.get(root)
            is_scanned = step.p1 in scanned or (known is not None and known.is_scanned)
            trees[root] = Tree(root, not step.p4.startswith("k("), is_scanned)
            roots[step.p1] = root
    reads_modules = has_modules(program)
    shows_rows = sorted((tree.is_table, tree.is_scanned) for tree in trees.values()) == [(False, True), (True, False)]
    shows_rows &= not any(step.opcode in _OTHER_ROWS for step in steps)
    return Plan(
        trees,
        _limits_of(steps),
        bool(scanned),
        reads_modules and modules is None,
        scans=_whole_scans(steps, roots),
        shows_rows=shows_rows,
        outer=_outer_loops(steps, roots),
        names=tuple(names),
        offsets=tuple(_value_of(steps, step.p3) for step in steps if step.opcode == "OffsetLimit"),
        joins_itself=len(roots) > len(trees),
        reads_modules=reads_modules,
        reads_other_trees=bool(modules and modules & ON_TABLES),
        beside=beside,
        is_listed=_is_listed(steps, roots),
    )


def has_modules(program: list[tuple[object, ...]]) -> bool:
    """Whether a statement reads virtual tables, by the rows of EXPLAIN."""
    return any(opcode == "VOpen" for _, opcode, *_ in program)


def _loops(steps: list[_Step]) -> list[tuple[int, int, _Step]]:
    """The loops through trees and other rows, by the addresses of their first and last steps, with the last ones."""
    return [
        (step.p2, end, step)
        for end, step in enumerate(steps)
        if step.opcode in {"Next", "Prev"} and isinstance(step.p2, int) and step.p2 <= end
    ]


def _is_listed(steps: list[_Step], roots: dict[object, int]) -> bool:
    """See `Plan.is_listed`."""
    loops = _loops(steps)
    return any(
        last.p1 not in roots
        and not any(other <= begin and end < other_end for other, other_end, _ in loops)
        and any(step.opcode in _LOOK_UPS and step.p1 in roots for step in steps[begin:end])
        for begin, end, last in loops
    )


def _outer_loops(steps: list[_Step], roots: dict[object, int]) -> tuple[Outer, ...]:
    """Those in which other trees are looked into, by single keys, or row by row (Yield)."""
    loops = _loops(steps)
    opened = [step.p2 for step in steps if step.opcode in {"OpenRead", "ReopenIdx"}]
    found: dict[int, Outer] = {}
    doubtful: set[int] = set()  # two loops go through them
    for begin, end, last in loops:
        root = roots.get(last.p1, 0)
        is_inner = any(other <= begin and end < other_end for other, other_end, _ in loops)
        is_shared = opened.count(root) > 1
        begins = _begin_of(steps, begin, last) if is_shared else None
        if is_inner or not root or (is_shared and not begins):
            continue
        if any(
            step.opcode == "Yield" or (step.opcode in _LOOK_UPS and step.p1 in roots and step.p1 != last.p1)
            for step in steps[begin:end]
        ):
            doubtful.update({root} & found.keys())
            found[root] = Outer(root, last.opcode == "Prev", is_shared, begins[0] if begins else None)
    return tuple(outer for outer in found.values() if not (outer.is_shared and outer.root in doubtful))


def _begin_of(steps: list[_Step], begin: int, last: _Step) -> tuple[Value | None] | None:
    """Where a loop begins: with the first or last entry of its tree, or a rowid; None if that is not known."""
    cursor = last.p1
    before = [step for step in steps[:begin] if step.p1 == cursor and step.opcode in _LOOK_UPS]
    kinds = [step.p4 for step in steps if step.p1 == cursor and step.opcode in {"OpenRead", "ReopenIdx"}]
    is_table = not any(kind.startswith("k(") for kind in kinds)
    if not before or any(kind.startswith("k(") and "-" in kind for kind in kinds):
        return None
    if before[-1].opcode in {"Rewind", "Last"}:
        return (None,)
    seeks = {"SeekLT", "SeekLE"} if last.opcode == "Prev" else {"SeekGT", "SeekGE"}
    if not is_table or before[-1].opcode not in seeks:
        return None
    return (_value_of(steps, before[-1].p3),)


def _limits_of(steps: list[_Step]) -> tuple[Value, ...]:
    """Those of the query, and of parts of it that run once, if no row is sorted before it is counted.

    A part that runs for each row ends no other part, and is left out.
    """
    repeated = _repeated(steps)
    once = [step for address, step in enumerate(steps) if not any(address in part for part in repeated)]
    if any(step.opcode in {"Sort", "SorterSort"} for step in once):
        return ()
    counters = dict.fromkeys(step.p1 for step in once if step.opcode == "DecrJumpZero")
    return tuple(_value_of(once, counter) for counter in counters)


def _value_of(steps: list[_Step], register: object) -> Value:
    """What is put into a register."""
    for step in steps:
        if step.opcode == "Integer" and step.p2 == register and isinstance(step.p1, int):
            return Value(step.p1)
        if step.opcode == "Variable" and step.p2 == register and isinstance(step.p1, int):
            return Value(None, step.p1)
    return Value()


def _repeated(steps: list[_Step]) -> list[range]:
    """The addresses of subroutines that may run more than once."""
    parts = []
    for address, step in enumerate(steps):
        if step.opcode == "Return" and isinstance(step.p2, int) and 0 < step.p2 <= address:
            begin = step.p2 - 1
            if steps[begin].opcode == "BeginSubrtn" and steps[begin + 1].opcode != "Once":
                parts.append(range(begin, address))
    return parts


def _whole_scans(steps: list[_Step], roots: dict[object, int]) -> tuple[int, ...]:
    """The trees of which every leaf is read, in order, before the statement has a row, and with no other tree between.

    Each is read once: loops within loops are left out, and those that a condition may leave out.
    """
    first_row = next((i for i, step in enumerate(steps) if step.opcode in {"ResultRow", "Yield"}), len(steps))
    jumps = [
        (i, step.p2)
        for i, step in enumerate(steps[:-1])  # the last one leads from the preparations to the beginning
        if step.opcode in _JUMPS and isinstance(step.p2, int)
    ]
    found: dict[int, None] = {}
    for begin, step in enumerate(steps[:first_row]):
        if step.opcode not in {"Rewind", "Count"} or step.p1 not in roots:
            continue
        end = _end_of_loop(steps, begin, roots) if step.opcode == "Rewind" else begin
        is_within_loop = any(0 < to <= begin <= at for at, to in jumps)
        may_be_left_out = any(at < begin and to > end + 1 and steps[at].opcode != "Once" for at, to in jumps)
        if end and not is_within_loop and not may_be_left_out:
            found[roots[step.p1]] = None
    return tuple(found)


def _end_of_loop(steps: list[_Step], begin: int, roots: dict[object, int]) -> int:
    """Where the loop ends whose Rewind is at `begin`, if it goes through its whole tree and reads no other; or 0."""
    cursor = steps[begin].p1
    ends = (i for i, step in enumerate(steps[begin + 1 :], begin + 1) if step.opcode == "Next" and step.p1 == cursor)
    end = next(ends, 0)
    for step in steps[begin + 1 : end]:
        if step.opcode in _ENDS or (step.opcode in _READS and (step.p1 in roots or step.opcode == "OpenRead")):
            return 0
        if step.opcode in _JUMPS and not (isinstance(step.p2, int) and (begin < step.p2 <= end or not step.p2)):
            return 0
    return end
