"""The state machine: which events there are and how they are drawn. What they do and must hold is the world's."""

from __future__ import annotations

import itertools
import traceback
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from litevfs.testing.faulty import Fault
from tests.model.primary import AFFAIRS, CHANGES
from tests.model.world import LIES, Config, World

SLOTS = 5
"""Readers at a time; even ones at the near site, odd ones behind faults."""

counts: Counter[str] = Counter()
"""What happened in all runs of this process: steps, reads, what failed with good reason."""

first_failure: list[str] = []
"""What failed first, and the course of events up to there, before anything is shrunk. Threads take part here, so a
failure need not come back; all that Hypothesis says of such a one is that it is flaky."""

slots = st.integers(0, SLOTS - 1)
numbers = st.integers(0, 9999)
ages_ms = st.sampled_from((0, 1000, 60_000, 3_600_000))
configs = st.builds(
    Config,
    page_size=st.sampled_from((512, 1024, 1024, 4096, 4096, 8192, 65536)),
    auto_vacuum=st.sampled_from((0, 1, 2, 2)),
    block_size=st.sampled_from((0, 4096, 65536)),
    cache_size=st.sampled_from((0, 20_000, 10_000_000)),
    hydration=st.booleans(),
    prefetch=st.booleans(),
    cache_dir=st.booleans(),
    hydration_lasts=st.booleans(),
)
lies = st.builds(
    Fault,
    st.sampled_from(LIES),
    probability=st.sampled_from((1.0, 0.5)),
    levels=st.sampled_from(((), (0,), (0, 1), (1, 2), (9,))),
    files=st.sampled_from((1, 2, 5)),
    count=st.sampled_from((1, 4, None)),
)
failures = st.builds(
    Fault,
    st.sampled_from(("transient", "timeout", "permission", "not_found", "partial", "corrupt")),
    probability=st.sampled_from((1.0, 0.3)),
    count=st.sampled_from((1, 1, 3, None)),
)
primary_failures = st.builds(
    Fault,
    st.sampled_from(("transient", "timeout", "permission")),
    operations=st.sampled_from((("write",), ("list",), ("read",), ("delete",), ("write", "list", "read", "delete"))),
    count=st.sampled_from((1, 1, 2)),
)

F = TypeVar("F", bound=Callable[..., None])


class ReplicaMachine(RuleBasedStateMachine):
    """Events in any order. After each of them one of the readers looks whether its database is sound."""

    def __init__(self) -> None:
        super().__init__()
        self.world: World | None = None
        self.course: list[str] = []
        self._turns = itertools.cycle(range(SLOTS))

    def check_integrity(self, event: str) -> None:
        """One of the readers in turn, within its transaction or in a new one, after an event."""
        counts["steps"] += 1
        reader = self.world.reader(next(self._turns))
        if reader is not None:
            reader.check_integrity()
            counts[f"integrity checked after {event}"] += 1

    def teardown(self) -> None:
        if self.world is not None:
            self.world.close()

    @initialize(config=configs)
    def begin_world(self, config: Config) -> None:
        self.course.append(repr(config))
        self.world = World(config, counts)


def event(weight: int = 1, **arguments: Any) -> Callable[[F], F]:
    """A rule that counts as a step, with a look at a reader after it; there is one rule for each unit of `weight`."""

    def decorate(function: F) -> F:
        for number in range(1, weight + 1):
            name = f"{function.__name__}_{number}" if weight > 1 else function.__name__
            setattr(ReplicaMachine, name, _step(function, name, arguments))
        return function

    return decorate


def _step(function: Callable[..., None], name: str, arguments: dict[str, Any]) -> Any:
    def step(self: ReplicaMachine, **drawn: Any) -> None:
        counts[f"event: {function.__name__}"] += 1
        self.course.append(f"{function.__name__}({', '.join(f'{k}={v!r}' for k, v in drawn.items())})")
        try:
            function(self.world, **drawn)
            self.check_integrity(function.__name__)
        except Exception:
            if not first_failure:
                first_failure.extend([traceback.format_exc(), *self.course])
            raise

    step.__name__ = step.__qualname__ = name
    return rule(**arguments)(step)


# --- the primary's side -----------------------------------------------------------------------------------------------


@event(kind=st.sampled_from(CHANGES), n=numbers)
def change(world: World, kind: str, n: int) -> None:
    world.app.change(kind, n)
    counts[f"change: {kind}"] += 1


@event(
    weight=4,
    kinds=st.lists(st.sampled_from(CHANGES), min_size=1, max_size=4),
    n=numbers,
    ms=st.sampled_from((0, 1, 700, 10_000, 100_000)),
)
def change_and_sync(world: World, kinds: list[str], n: int, ms: int) -> None:
    for i, kind in enumerate(kinds):
        change(world, kind, n + i)
        sync(world, ms)


@event(ms=st.sampled_from((0, 1, 700, 10_000)))
def sync(world: World, ms: int) -> None:
    world.tick(ms)
    world.sync()


@event(kind=st.sampled_from(AFFAIRS), n=numbers)
def affair(world: World, kind: str, n: int) -> None:
    world.app.affair(kind, n)


@event(fault=st.one_of(st.none(), primary_failures), ms=st.sampled_from((0, 700)))
def sync_with_trouble(world: World, fault: Fault | None, ms: int) -> None:
    world.tick(ms)
    world.sync_with(fault)


@event(meanwhile=st.lists(st.tuples(st.sampled_from(AFFAIRS), numbers), max_size=3), lose_state=st.booleans())
def restart_replicator(world: World, meanwhile: list[tuple[str, int]], lose_state: bool) -> None:
    world.restart_replicator(meanwhile, lose_state=lose_state)


# --- upkeep -----------------------------------------------------------------------------------------------------------


@event(weight=2, level=st.sampled_from((1, 1, 1, 2, 2, 3, 9)))
def compact(world: World, level: int) -> None:
    world.compact(level)


@event(weight=2, kind=st.sampled_from(("level 0", "snapshots")), age_ms=ages_ms)
def retain(world: World, kind: str, age_ms: int) -> None:
    world.retain(kind, age_ms)


@event(ms=st.sampled_from((1000, 40_000, 400_000, 4_000_000)))
def keep_timetable(world: World, ms: int) -> None:
    world.tick(ms)
    world.keep_timetable()


@event(fault=primary_failures)
def keep_timetable_with_trouble(world: World, fault: Fault) -> None:
    world.keeper_fails_once(fault)


@event(n=numbers)
def restore(world: World, n: int) -> None:
    world.restore(n)


# --- faults of the storage that readers see ---------------------------------------------------------------------------


@event(fault=lies)
def lie(world: World, fault: Fault) -> None:
    world.far.add(fault)


@event(fault=failures)
def fail(world: World, fault: Fault) -> None:
    world.far.add(fault)


@event(look=st.booleans())
def calm(world: World, look: bool) -> None:
    """The trouble ends. Whatever it was, one look brings everybody to the newest state."""
    world.far.calm()
    for slot in range(SLOTS if look else 0):
        if (reader := world.reader(slot)) is not None:
            reader.commit()
            reader.poll()


# --- readers ----------------------------------------------------------------------------------------------------------


@event(slot=slots)
def open_reader(world: World, slot: int) -> None:
    world.open(slot, world.site(slot), txid=None)


@event(slot=slots, n=numbers)
def open_at_txid(world: World, slot: int, n: int) -> None:
    known = sorted(world.oracle.images)
    world.open(slot, world.site(slot), txid=known[-1 - n % len(known)])


@event(slot=slots)
def close_reader(world: World, slot: int) -> None:
    world.close_reader(slot)


@event(slot=slots, record=st.sampled_from(("as left", "as left", "kept", "as it was")))
def restart_readers(world: World, slot: int, record: str) -> None:
    world.restart_readers(world.site(slot), record)


@event(weight=2, slot=slots)
def begin(world: World, slot: int) -> None:
    reader = world.reader(slot)
    if reader is not None and reader.pinned is None:
        reader.begin()


@event(weight=2, slot=slots, n=numbers)
def read(world: World, slot: int, n: int) -> None:
    if (reader := world.reader(slot)) is not None:
        reader.query(n)


@event(weight=2, slot=slots)
def compare(world: World, slot: int) -> None:
    if (reader := world.reader(slot)) is not None:
        reader.compare()


@event(slot=slots)
def commit(world: World, slot: int) -> None:
    if (reader := world.reader(slot)) is not None:
        reader.commit()


@event(weight=3, slot=slots)
def poll(world: World, slot: int) -> None:
    if (reader := world.reader(slot)) is not None:
        reader.poll()


@event(slot=slots, n=numbers, ms=st.sampled_from((0, 0, 1, -1)))
def travel(world: World, slot: int, n: int, ms: int) -> None:
    times = sorted(world.oracle.times_ms.values())
    if (reader := world.reader(slot)) is not None:
        reader.travel(times[n % len(times)] + ms)


@event(slot=slots)
def travel_back(world: World, slot: int) -> None:
    if (reader := world.reader(slot)) is not None:
        reader.travel_back()
