"""A new process that answers one query: its CPU time, beside a process that only imports what litevfs stands on.

A function in the cloud or a command pays this each time. The processes take turns; answers are checked, times are never
asserted.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from tempfile import TemporaryDirectory

from _chart import bars
from _competitors import clean_environment
from _databases import dataset
from _results import Result, Samples, parse_arguments, ratio, report, seconds
from _s3_replica import SMALL_ROWS, replica_url, running_server

IMPORTS = "import apsw, numpy, urllib3"
QUERY = """
import sys, litevfs
connection = litevfs.connect(sys.argv[1], poll_interval=0)
print(connection.execute("SELECT count(*) FROM sqlite_schema").get)
"""
ANSWER = "2"
GOALS = {"folder": 1.5, "S3": 2.0}


@dataclass(frozen=True, slots=True)
class Case:
    """A program to run in a process of its own."""

    name: str
    program: str
    url: str
    environment: Mapping[str, str]


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse_arguments(__doc__, argv)
    rounds = 2 if arguments.small else 25
    data = dataset(SMALL_ROWS)
    with ExitStack() as stack:
        # As an installed package has it: the bytecode of all modules is there.
        bytecode = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": stack.enter_context(TemporaryDirectory())}
        server = stack.enter_context(running_server(data.ltx_file))
        cases = [
            Case("imports alone", IMPORTS, "", bytecode),
            Case("folder", QUERY, data.replica_url, bytecode),
            Case("S3", QUERY, replica_url(server), bytecode | server.environment()),
        ]
        samples = Samples()
        for case in cases:
            cpu_s(case)
        for _ in range(rounds):
            for case in cases:
                samples.add(case.name, "CPU", cpu_s(case))
    alone = samples.median("imports alone", "CPU")
    results = []
    for case in cases:
        took = samples.median(case.name, "CPU")
        goal = GOALS.get(case.name)
        met = None if goal is None or arguments.small or not took or not alone else took / alone <= goal
        values = {"CPU of the process": seconds(took), "against the imports alone": ratio(took, alone)}
        wanted = "" if goal is None else f"<= {goal:g}x"
        results.append(Result(case.name, values, wanted, met, samples.all[case.name]))
    title = f"One query in a new process ({server.kind} for S3)"
    report(title, results, arguments)
    took_ms = {case.name: {"CPU": (samples.median(case.name, "CPU") or 0.0) * 1e3} for case in cases}
    bars(arguments, "process", title, took_ms, "ms of CPU")


def cpu_s(case: Case) -> float:
    """CPU time of a process that runs the case, user and system. Raises AssertionError for a wrong answer."""
    command = [sys.executable, "-c", case.program, case.url]
    process = subprocess.Popen(
        command, env=clean_environment() | case.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    output, errors = process.stdout.read(), process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stdout.close()
    process.stderr.close()
    assert process.returncode == 0, errors
    assert case.program == IMPORTS or output.strip() == ANSWER, output
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main(sys.argv[1:])
