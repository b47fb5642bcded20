"""Follows a replica, in child processes that are killed by SIGKILL again and again. Run by `follow.py`.

    python _follow_killed.py URL FILE CONTROL INTERVAL_S

While CONTROL says kills, each child ends at its n-th call that changes something on the disk (a write half done, a
sync, a truncation, a deletion, a rename), or at a random moment, and the next one goes on. At the end: the number of
kills, on standard output.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import litevfs
import litevfs.operations.follow  # what each child needs, loaded once

CALLS = ("pwrite", "fsync", "fdatasync", "ftruncate", "unlink", "rename")
STEPS = 40
"""The n-th call, n up to this: about those of one transaction; every tenth child makes up to ten times as many."""
ANY_MOMENT = 5
"""Every so manieth child is killed at a random moment instead."""


def main() -> None:
    url, path, control, interval_s = sys.argv[1:]
    np.unique(np.zeros(1))  # which loads more of numpy, once for all children
    kills = run = 0
    while (phase := Path(control).read_text()) != "stop":
        run += 1
        child = os.fork()
        if child == 0:
            step = (run * 7 % STEPS + 1) * (10 if run % 10 == 0 else 1)
            follow(url, path, control, interval_s, phase, step=step if phase == "kills" else 0)
        if phase == "kills" and run % ANY_MOMENT == 0:
            time.sleep(random.random() * 0.3)
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            kills += 1
        elif os.WEXITSTATUS(status):
            sys.exit(f"a follower ended with {os.WEXITSTATUS(status)}")
    print(kills)


def follow(url: str, path: str, control: str, interval_s: str, phase: str, *, step: int) -> None:
    """Until CONTROL says another thing than `phase`, or until the call with this number (0: none)."""
    code = 1
    try:
        if step:
            end_at(step)
        with litevfs.follow(url, path, poll_interval=f"{interval_s}s"):
            while Path(control).read_text() == phase:
                time.sleep(0.02)
        code = 0
    except Exception:  # noqa: BLE001 (the process ends)
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def end_at(step: int) -> None:
    """Let this process be killed at so manieth call that changes something on the disk."""
    left = [step]

    def killing(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **keywords: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                if name == "pwrite":
                    call(args[0], bytes(args[1])[: len(args[1]) // 2], args[2])
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **keywords)

        return counted

    for name in CALLS:
        if hasattr(os, name):
            setattr(os, name, killing(name, getattr(os, name)))


if __name__ == "__main__":
    main()
