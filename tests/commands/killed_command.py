"""Runs `litevfs` commands that are killed, each in a process forked from this one, which has loaded all it needs.

    python -m tests.commands.killed_command

A line of standard input is a JSON object: `arguments` of the command, `kill_at` (the step, 0 for none), `folder`, whose
changes are the steps, `sends` (whether requests are steps, too), `log`. The answer is the exit code, -9 if killed.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any, NoReturn

from litevfs.cli import main
from litevfs.commands import COMMANDS, load
from litevfs.testing.kills import kill_at


def run(order: dict[str, Any]) -> NoReturn:
    code = 1
    try:
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for stream in (1, 2):
            os.dup2(log, stream)
        if order["kill_at"]:
            kill_at(order["kill_at"], order["folder"], sends=order["sends"])
        code = main(order["arguments"])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    for name in COMMANDS:
        load(name)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            run(json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
