"""Competitors: ways to read a database, each in a process of its own (`_worker.py`), and whether they agree."""

from __future__ import annotations

import hashlib
import json
import os
import select
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

WORKER = Path(__file__).with_name("_worker.py")
ANSWER_TIMEOUT_S = 600.0
EXIT_TIMEOUT_S = 5.0
PEER = "litestream-vfs"
"""Litestream's own VFS, as tables call it: the name of its package."""


class CompetitorError(Exception):
    """A competitor could not do what it was asked."""


class Competitor:
    """One way to read the database, in a process of its own (Litestream's VFS reads its environment when it starts).

    `kind` is "native", "litevfs", "peer" (Litestream's VFS) or "download"; `target` a path or a replica URL. What it
    understands is in `_worker.py`. The process ends with the `with` block.
    """

    def __init__(
        self, kind: str, target: str, environment: Mapping[str, str] | None = None, *, name: str | None = None
    ) -> None:
        self.kind = kind
        self.name = name or kind  # in tables and messages
        self._process = subprocess.Popen(
            [sys.executable, str(WORKER), kind, target],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=clean_environment() | dict(environment or {}) | {"LITESTREAM_REPLICA_URL": target},
            text=True,
        )
        try:
            self.sqlite = str(self._answer()["sqlite"])
        except BaseException:
            self.close()
            raise

    def call(self, do: str, **arguments: object) -> dict[str, Any]:
        """One command and its answer. Raises CompetitorError with what the process says, or when it dies."""
        assert self._process.stdin is not None
        print(json.dumps({"do": do, **arguments}), file=self._process.stdin, flush=True)
        return self._answer()

    def timed(self, sql: str, parameters: Sequence[Sequence[object]] = ((),)) -> tuple[float, str]:
        """(seconds, digest of the answers) of running `sql` once for each of `parameters`."""
        answer = self.call("run", sql=sql, parameters=parameters)
        return answer["seconds"], answer["digest"]

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], ANSWER_TIMEOUT_S)
        line = self._process.stdout.readline() if ready else ""
        if not line:
            raise CompetitorError(f"{self.name}: " + ("the process ended" if ready else "no answer"))
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise CompetitorError(f"{self.name}: {answer['error']}")
        return answer

    def close(self) -> None:
        """End the process."""
        self._process.kill() if self.kind == "peer" else self._hang_up()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        self._process.wait()

    def _hang_up(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(EXIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def __enter__(self) -> Competitor:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def clean_environment() -> dict[str, str]:
    """This process's environment without what would steer a competitor (the peer cannot use AWS_CA_BUNDLE either)."""
    steering = ("AWS_", "LITESTREAM_", "LITEVFS_")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(steering)}
    root = str(Path(__file__).resolve().parent.parent)
    return inherited | {"PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))}


def start_peer(target: str, environment: Mapping[str, str] | None = None) -> Competitor | None:
    """Litestream's VFS, or None and a message where it is not installed or does not load."""
    try:
        return Competitor("peer", target, environment, name=PEER)
    except CompetitorError as error:
        print(f"without Litestream's VFS: {error}")
        return None


def digest(answers: object) -> str:
    """Equal for equal answers, whichever process has them."""
    return hashlib.sha256(repr(answers).encode()).hexdigest()


def assert_equal(case: str, digests: Mapping[str, str]) -> None:
    """All competitors gave the same answers, or the measurement means nothing. Raises AssertionError."""
    if len(set(digests.values())) != 1:
        raise AssertionError(f"{case}: the answers differ: {digests}")
