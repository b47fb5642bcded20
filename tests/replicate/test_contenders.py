"""Several primaries at one place, in processes of their own, killed now and then: no acknowledged transaction is lost
unless its primary is told at its next sync."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from litevfs.replica_clients.file import FileReplicaClient
from tests.replicate.support import files_of, opened, states, wait_until

ROOT = Path(__file__).parents[2]


class Contender:
    """One of `contender.py`, started again after each kill; `lines` is what all of them printed."""

    def __init__(self, folder: Path, replica: Path, name: str, kind: str) -> None:
        self.name, self.log = name, folder / f"{name}.log"
        self._arguments = [folder / f"{name}.db", replica, name, kind]
        self.start()

    def start(self) -> None:
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.replicate.contender", *map(str, self._arguments)],
                cwd=ROOT,
                env=os.environ,
                stdin=subprocess.PIPE,
                stdout=output,
            )

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()
        with self.log.open("ab") as output:
            output.write(b"\nkilled\n")

    def end(self) -> None:
        self._process.communicate(timeout=60)
        assert self._process.returncode == 0

    @property
    def events(self) -> list[list[str]]:
        return [line.split() for line in self.log.read_text().splitlines() if line]


def lost(contender: Contender, ledgers: dict[int, dict[str, int]]) -> list[str]:
    """Acknowledged transactions that are not in the replica though the next sync did not say so."""
    found = []
    events = contender.events
    for index, event in enumerate(events):
        if event[0] == "error":
            found.append(" ".join(event))
        if (
            event[0] == "ack"
            and len(event) == 3
            and ledgers.get(int(event[2]), {}).get(contender.name, -1) < int(event[1])
        ):
            after = [later[0] for later in events[index + 1 :] if later[0] != "ready"]
            if after and after[0] not in ("conflict", "killed"):
                found.append(f"{contender.name}: {event}, then {after[:3]}")
    return found


CASES = [
    pytest.param(2, "honest", 2.0, 0),
    pytest.param(2, "ignoring", 3.0, 1),
    pytest.param(2, "honest", 60.0, 20, marks=pytest.mark.soak),
    pytest.param(5, "honest", 60.0, 20, marks=pytest.mark.soak),
    pytest.param(2, "ignoring", 60.0, 20, marks=pytest.mark.soak),
    pytest.param(5, "ignoring", 60.0, 20, marks=pytest.mark.soak),
]


@pytest.mark.plan("D15", "K03")
@pytest.mark.parametrize(("count", "kind", "seconds", "kills"), CASES)
def test_what_is_acknowledged_is_there_or_refused(tmp_path: Path, count: int, kind: str, seconds: float, kills: int):
    replica = tmp_path / "replica"
    contenders = [Contender(tmp_path, replica, f"p{number}", kind) for number in range(count)]
    rng = random.Random(count)
    until = time.monotonic() + seconds
    try:
        for _ in range(kills):
            pause = time.monotonic() + seconds / kills * rng.random() * 2
            wait_until(lambda pause=pause: time.monotonic() >= min(pause, until), timeout_s=120)
            victim = rng.choice(contenders)
            victim.kill()
            victim.start()
        wait_until(lambda: time.monotonic() >= until and any(acks(c) for c in contenders), timeout_s=seconds + 60)
    finally:
        for contender in contenders:
            contender.end()
    client = FileReplicaClient(replica)
    ledgers = {txid: ledger(data) for txid, data in states(files_of(client))}
    client.close()
    assert [problem for contender in contenders for problem in lost(contender, ledgers)] == []
    assert sum(map(acks, contenders)) > 0


def acks(contender: Contender) -> int:
    return sum(event[0] == "ack" for event in contender.events)


def ledger(data: bytes) -> dict[str, int]:
    db = opened(data)
    try:
        return dict(db.execute("SELECT name, n FROM ledger"))
    finally:
        db.close()
