"""Thousands of short courses of events, with whole images as the oracle.

Whatever happens, a state's pages are those of one database at one TXID, and pinned states stay right or say that they
are gone. When the trouble ends, the newest state arrives. The tests write the files and can do what a well-kept primary
never does: compacted files of any range, that overlap, straddle and come late, of any level; full snapshots that say
when they were made; clocks that stand still or step back; retention of any files that can be spared, or of any at all;
damage; databases that are replaced or set back; listings of which some levels are those of an earlier look.
"""

from __future__ import annotations

from collections.abc import Iterable
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.states.course_world import Step, World

COURSES = 8
SOAK_COURSES = 3000
CAPTURED_STEP = 2
"""One course in so many is tried with databases of SQLite: they take long."""

USUAL = ("commit", "upload", "upload_all", "upload_all", "compact", "compact", "retain", "tick", "view", "read_pinned")
TROUBLE = ("upload_too_soon", "lose", "replace", "set_back", "look_at_old_listings", "read_by_old_listings")
ALWAYS = ("look", "look", "look", "commit")


@pytest.fixture(autouse=True)
def nothing_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine is no storage that hangs: thousands of looks, and one of them may take a second."""
    monkeypatch.setattr("litevfs.live.replica.MIN_REFRESH_S", 60.0)


def run_course(steps: Iterable[Step], seed: int = 0, clock: str = "goes", *, is_captured: bool = False) -> None:
    world = World(seed, clock, is_captured=is_captured)
    try:
        world.play(steps)
    finally:
        world.close()


def random_steps(seed: int, events: tuple[str, ...]) -> list[Step]:
    random = Random(seed)
    names = (*ALWAYS, *events)
    return [(random.choice(names), random.getrandbits(32)) for _ in range(random.choice((20, 40, 80)))]


@pytest.mark.slow
@pytest.mark.plan("D13", "L03", "L08", "L29", "E01", "E03", "D05")
@pytest.mark.parametrize(
    "courses",
    [
        range(COURSES),
        pytest.param(range(10**6, 10**6 + SOAK_COURSES), marks=[pytest.mark.soak, pytest.mark.timeout(3600)]),
    ],
    ids=["some", "many"],
)
@pytest.mark.parametrize(
    ("events", "clock", "is_captured"),
    [
        pytest.param(USUAL, "goes", False, id="well kept"),
        pytest.param(USUAL, "steps back", False, id="well kept, clock steps back"),
        pytest.param(USUAL, "stands", False, id="well kept, clock stands"),  # nothing tells databases apart then
        pytest.param((*USUAL, "prune"), "goes", False, id="pruned by hand"),
        pytest.param(USUAL + TROUBLE, "goes", False, id="in trouble"),
        pytest.param(USUAL + TROUBLE, "steps back", False, id="in trouble, clock steps back"),
        pytest.param((*USUAL, *TROUBLE, "damage", "prune"), "goes", False, id="damaged"),
        pytest.param((*USUAL, *TROUBLE), "goes", True, id="in trouble, captured"),
    ],
)
def test_no_course_of_events_mixes_states_or_misses_the_newest(events, clock, is_captured, courses):
    for seed in courses[:: CAPTURED_STEP if is_captured else 1]:
        steps = random_steps(seed, events)
        try:
            run_course(steps, seed, clock, is_captured=is_captured)
        except BaseException as error:
            error.add_note(f"seed {seed}: {steps}")
            raise


@pytest.mark.plan("D13", "L29", "E01", "E03", "D05")
@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.sampled_from([*ALWAYS, *USUAL, *TROUBLE]), st.integers(0, 1000)), min_size=10, max_size=50),
    st.integers(0, 40),
)
def test_no_course_that_is_made_shorter_on_failure_does_either(steps, seed):
    run_course(steps, seed)


# --- courses that went wrong once -------------------------------------------------------------------------------------

# The arguments of commit_one draw transactions of which the second leaves pages of the first: what is mixed is seen.
FIRST: list[Step] = [("commit_one", 9), ("upload", 0)]
NEXT: list[Step] = [("commit_one", 19), ("upload", 0)]
OTHER: list[Step] = [("begin_another",), *FIRST]
SNAPSHOT: list[Step] = [("write", 9, 1, 1), ("refresh",)]

PLAIN = 28
"""Draws a storage that lists level by level, and a cache that has room for all pages."""
NAMES = 3
"""Draws a storage where the next file is asked for by its name."""


@pytest.mark.plan("E03", "L29")
@pytest.mark.parametrize("is_captured", [False, True], ids=["made up", "captured"])
@pytest.mark.parametrize(
    "steps",
    [
        [*FIRST, *SNAPSHOT, *OTHER, ("commit_one", 19), ("refresh_by_old_levels", 1, 3, 4, 7, 8, 9)],
        [*FIRST, *SNAPSHOT, *OTHER, ("refresh_by_old_levels", 1, 3, 4, 7, 8, 9)],
        [*FIRST, *NEXT, ("write", 9, 1, 2), ("refresh",), *OTHER, ("refresh_by_old_levels", 1, 2, 5, 6, 7, 9)],
        [
            *(*FIRST, ("write", 9, 1, 1), ("keep_only", 9), ("refresh",)),
            *(*OTHER, ("refresh_by_old_levels", 1, 2, 5, 6, 7, 9), ("commit_one", 19)),
        ],
        [
            *(*FIRST, *SNAPSHOT, ("begin_another",), ("commit_one", 9), ("commit_one", 19)),
            *(("write", 0, 2, 2), ("refresh_by_old_levels", 9)),
        ],
    ],
    ids=["goes on at once", "stays where it is", "ends earlier", "goes on from a snapshot", "begins with its second"],
)
def test_a_refresh_that_mixes_listings_of_two_databases_mixes_no_state(steps, is_captured):
    """Level 9 as it was before a replacement, beside the new level 0."""
    run_course(steps, PLAIN, is_captured=is_captured)


@pytest.mark.plan("L29")
@pytest.mark.parametrize("is_captured", [False, True], ids=["made up", "captured"])
def test_the_next_name_of_another_database_mixes_no_state(is_captured):
    run_course([*FIRST, ("refresh",), *OTHER, *NEXT, ("look", 0)], NAMES, is_captured=is_captured)


@pytest.mark.plan("L08", "D05")
@pytest.mark.parametrize("is_captured", [False, True], ids=["made up", "captured"])
@pytest.mark.parametrize("clock", ["goes", "stands"])
@pytest.mark.parametrize(
    "steps",
    [
        [*FIRST, ("refresh",), *NEXT, ("write", 1, 1, 2), ("keep_only", 1)],
        [*FIRST, ("refresh",), *NEXT, ("refresh",), ("write", 9, 1, 2), ("keep_only", 9), ("refresh",)],
        [
            *(*FIRST, ("refresh",), *NEXT, ("refresh",), ("write", 1, 1, 2), ("keep_only", 1), ("refresh",)),
            *(("write", 9, 1, 2, 5000), ("keep_only", 9), ("read_pinned", 0), ("refresh",), ("read_pinned", 0)),
        ],
    ],
    ids=["a longer file", "a snapshot", "a file, and then a snapshot"],
)
def test_all_that_is_left_of_a_database_leads_to_its_newest_state(steps, clock, is_captured):
    run_course(steps, clock=clock, is_captured=is_captured)
