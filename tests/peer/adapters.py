"""The parent's side of `peer_process.py`: asks, waits no longer than a deadline, ends the process."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

Kind = Literal["litevfs", "peer"]
PROGRAM = Path(__file__).with_name("peer_process.py")
ROOT = PROGRAM.parents[2]
START_TIMEOUT_S = 30.0
CALL_TIMEOUT_S = 15.0
EXIT_TIMEOUT_S = 5.0


class ReaderError(Exception):
    """What the reader raised: `type: text`."""


class ReaderHangs(Exception):
    """No answer within the deadline. The process is of no use any more."""


class ReaderDied(Exception):
    """The process ended by itself."""


class Adapter:
    """A reader of one kind, whose process ends with the `with` block. `version` is that of its package."""

    def __init__(self, kind: Kind, replica_url: str, environment: Mapping[str, str] | None = None) -> None:
        self.kind = kind
        self._process = subprocess.Popen(
            [sys.executable, str(PROGRAM), kind],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if kind == "peer" else None,  # the peer writes a log there
            env=_environment(replica_url, environment),
            bufsize=0,
        )
        self.is_usable = True  # no call has hung or found it dead
        self._unread = b""
        try:
            self.version = str(self._answer("start", START_TIMEOUT_S)["version"])
        except BaseException:
            self.close()
            raise

    def call(self, do: str, deadline_s: float = CALL_TIMEOUT_S, **arguments: Any) -> dict[str, Any]:
        """One command and its answer. Raises ReaderError, ReaderHangs after `deadline_s` seconds, ReaderDied."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
        except BrokenPipeError:
            self.is_usable = False
            raise ReaderDied(f"{do}: the process has ended") from None
        return self._answer(do, deadline_s)

    def _answer(self, do: str, deadline_s: float) -> dict[str, Any]:
        stdout = self._process.stdout
        assert stdout is not None
        while b"\n" not in self._unread:
            ready, _, _ = select.select([stdout], [], [], deadline_s)
            if not ready:
                self.is_usable = False
                raise ReaderHangs(f"{do}: no answer within {deadline_s:g} s")
            data = os.read(stdout.fileno(), 1 << 16)
            if not data:
                self.is_usable = False
                raise ReaderDied(f"{do}: the process ended")
            self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise ReaderError(f"{answer['error']['type']}: {answer['error']['text']}")
        return answer

    def close(self) -> None:
        """End the process: by the end of its input, else by force (the peer may hang for ever)."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.close()
        try:
            self._process.wait(EXIT_TIMEOUT_S if self.kind == "litevfs" else 0.2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        stdout.close()

    def __enter__(self) -> Adapter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Readers:
    """Readers: litevfs serves one replica after the other in one process, the peer only the first that it sees."""

    def __init__(self) -> None:
        self._litevfs = Adapter("litevfs", "")

    @contextmanager
    def reader(self, kind: Kind, replica_url: str, environment: Mapping[str, str], *, new: bool) -> Iterator[Adapter]:
        """A reader of a replica; `new`: in a process that has read none yet. One at a time."""
        if kind == "peer" or new or not self._litevfs.is_usable:
            with Adapter(kind, replica_url, environment) as adapter:
                yield adapter
            return
        self._litevfs.call("begin", environment=_environment(replica_url, environment))
        try:
            yield self._litevfs
        finally:
            if self._litevfs.is_usable:
                self._litevfs.call("end")

    def close(self) -> None:
        """End the process of litevfs."""
        self._litevfs.close()


def _environment(replica_url: str, more: Mapping[str, str] | None) -> dict[str, str]:
    """This process's environment without what would steer a reader (the peer cannot use AWS_CA_BUNDLE either)."""
    steering = ("AWS_", "LITESTREAM_", "LITEVFS_")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(steering)}
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return inherited | {"PYTHONPATH": path, **(more or {}), "LITESTREAM_REPLICA_URL": replica_url}
