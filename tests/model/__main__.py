"""Run the state machine: `python -m tests.model --seed 7 --steps 10000`. The same seed gives the same course of events.

A process of its own, because what Hypothesis draws depends on which modules are loaded. Ends with status 1 at the first
failure, which Hypothesis shrinks first, and says how to see it again.
"""

from __future__ import annotations

import argparse
import faulthandler
import logging
import os
import random
import sys
import time

from hypothesis import HealthCheck, Phase, Verbosity, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.leak_check import Resources, leaked_since
from tests.model.machine import ReplicaMachine, counts, first_failure

STEPS_OF_A_RUN = 100
RUNS_OF_A_ROUND = 50
_HANG_S = 120


def run(first_seed: int, steps: int, phases: tuple[Phase, ...]) -> None:
    """Rounds with one seed after the other, derived from the first, until so many steps were made.

    Two at least: of the runs of one, some rare event may be in none; up to four of many runs, for the rarest.
    """
    round_number = 0
    while (
        counts["steps"] < steps
        or round_number < 2
        or (steps > STEPS_OF_A_RUN * RUNS_OF_A_ROUND // 4 and round_number < 4 and not counts["syncs refused"])
    ):
        faulthandler.dump_traceback_later(_HANG_S * RUNS_OF_A_ROUND, exit=True)
        rounds_seed = first_seed * 1_000_003 + round_number
        random.seed(rounds_seed)
        run_state_machine_as_test(
            seed(rounds_seed)(ReplicaMachine),
            settings=settings(
                max_examples=min(RUNS_OF_A_ROUND, -(-steps // STEPS_OF_A_RUN)),
                stateful_step_count=STEPS_OF_A_RUN,
                deadline=None,
                database=None,
                phases=phases,
                suppress_health_check=list(HealthCheck),
                verbosity=Verbosity.normal,
                print_blob=False,
                report_multiple_bugs=False,
            ),
        )
        round_number += 1
    faulthandler.cancel_dump_traceback_later()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.model", description=__doc__)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 31))
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--no-shrink", action="store_true", help="stop at the first failure as it is")
    arguments = parser.parse_args()
    phases = (Phase.generate,) if arguments.no_shrink else (Phase.generate, Phase.shrink)
    logging.getLogger("litevfs").setLevel(logging.CRITICAL)
    before = Resources.now()
    started = time.monotonic()
    try:
        run(arguments.seed, arguments.steps, phases)
        leaked = leaked_since(before, grace_s=5)
        assert not leaked, f"left behind: {leaked}"
    except BaseException:
        if first_failure:
            print("The first failure, as it was met:", *first_failure, sep="\n")
        print(f"To see it again: python -m tests.model --seed {arguments.seed} --steps {arguments.steps}", flush=True)
        raise
    print(f"seed {arguments.seed}: {time.monotonic() - started:.1f} s")
    for what, count in sorted(counts.items()):
        print(f"{count:8} {what}")
    return 0


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":  # the order of sets is part of the course of events
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | {"PYTHONHASHSEED": "0"})
    sys.exit(main())
