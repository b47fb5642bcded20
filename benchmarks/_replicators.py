"""The processes of a round of `replicate.py`: the application, a reader, a replicator; and what is asked of them."""

from __future__ import annotations

import json
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from _competitors import clean_environment

OURS, RIVAL = "litevfs", "litestream"
APPLICATION = Path(__file__).with_name("_application.py")
LINE_TIMEOUT_S, EXIT_TIMEOUT_S = 120.0, 30.0


def writer(database: Path, rate: int, warm_up_s: float, write_s: float) -> list[str]:
    """The command of the application."""
    flags = ["--rate", str(rate), "--warm-up", str(warm_up_s), "--seconds", str(write_s)]
    return [str(APPLICATION), "write", str(database), *flags]


def replicate_command(name: str, database: Path, url: str, sync_interval_s: float) -> list[str]:
    """The command of a replicator, with everything else as it comes."""
    if name == OURS:
        return ["-m", "litevfs", "replicate", str(database), url, "--sync-interval", f"{sync_interval_s}s"]
    config = database.with_name("litestream.yml")
    pause = f"{sync_interval_s * 1000:.0f}ms"
    replica = {"url": url, "sync-interval": pause}
    one = {"path": str(database), "monitor-interval": pause, "replica": replica}
    config.write_text(json.dumps({"dbs": [one]}))  # which is YAML, too
    binary = shutil.which(RIVAL)
    assert binary is not None
    return [binary, "replicate", "-config", str(config), "-log-level", "error"]


@contextmanager
def running(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Iterator[subprocess.Popen[str]]:
    """A process, of Python unless the command begins with a program's path; killed at the end if it has not ended."""
    program = [] if command[0].endswith(RIVAL) else [sys.executable]
    process = subprocess.Popen(
        [*program, *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=clean_environment() | dict(environment or {}),
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()


def answer(process: subprocess.Popen[str]) -> dict[str, Any]:
    """The next line of a process that answers in JSON. Raises RuntimeError when there is none."""
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], LINE_TIMEOUT_S)
    line = process.stdout.readline() if ready else ""
    if not line:
        raise RuntimeError(f"no answer from {process.args!r}")
    return dict(json.loads(line))


def cpu_seconds(process: psutil.Process | None) -> float:
    """CPU time of a process so far."""
    if process is None:
        return 0.0
    times = process.cpu_times()
    return float(times.user + times.system)


def end_by_signal(process: subprocess.Popen[str], name: str) -> None:
    """Ask it to end, which includes the last sync. Raises RuntimeError when it does not or fails."""
    process.send_signal(signal.SIGTERM)
    if process.wait(EXIT_TIMEOUT_S):
        raise RuntimeError(f"{name} ended with exit code {process.returncode}")
