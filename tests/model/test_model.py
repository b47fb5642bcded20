"""Random courses of events against whole database images: see `machine` for the events, `reader` for what must hold.

Each test runs `python -m tests.model`, which says with which seed a failure is seen again.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.model.primary import CHANGES
from tests.support import in_threads

ROOT = Path(__file__).parents[2]
STEPS = 1_200
SOAK_STEPS, SOAK_ROUNDS = 10_000, 100
"""A million steps in all. Each round is a test of its own, so a soak can go on where it was left (`-k`)."""


def course(*arguments: str, steps: int = STEPS) -> dict[str, int]:
    """Run a course of events to its end; what happened in it, how often."""
    command = [sys.executable, "-W", "error", "-m", "tests.model", "--steps", str(steps), *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    print(result.stdout)
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
    return {what: int(count) for count, what in re.findall(r"^ *(\d+) (.+)$", result.stdout, re.MULTILINE)}


def assert_was_worth_it(happened: dict[str, int]) -> None:
    """The course was long enough, every kind of event occurred, and a reader checked its database after each."""
    assert happened["steps"] >= STEPS
    assert happened["reads"] >= STEPS / 2
    events = {what.removeprefix("event: ") for what in happened if what.startswith("event: ")}
    assert len(events) >= 24
    for event in events:
        assert happened[f"integrity checked after {event}"] > 0, event
    for kind in CHANGES:
        assert happened[f"change: {kind}"] > 0, kind
    # A hundred times each, the last two less often.
    for what in (
        "restored",
        "travelled",
        "files deleted",
        "syncs that failed",
        "reads by sqlite3",
        "syncs without local state",
        "syncs refused",
    ):
        assert happened[what] > 0, what


@pytest.mark.plan("D13")
@pytest.mark.timeout(900)  # a failure is shrunk first
def test_every_read_is_the_image_of_its_txid_whatever_happens():
    # Another course each time, but where a change is judged: there a failure has to be the change's.
    assert_was_worth_it(course(*(("--seed", "11") if os.environ.get("CI") else ())))


@pytest.mark.plan("D13")
def test_a_seed_gives_the_same_course_of_events_again():
    first, second = in_threads(2, lambda _: course("--seed", "7", steps=80), timeout_s=120)
    chosen = {what for what in first | second if what.startswith(("event: ", "change: "))}
    assert {what: first.get(what) for what in chosen} == {what: second.get(what) for what in chosen}


@pytest.mark.soak
@pytest.mark.plan("D13")
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(SOAK_ROUNDS))
def test_every_read_is_the_image_of_its_txid_for_a_million_steps(seed):
    assert_was_worth_it(course("--seed", str(seed), steps=SOAK_STEPS))
