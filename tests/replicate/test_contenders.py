"""Several primaries at one place, in processes of their own, killed now and then: no acknowledged transaction is lost
unless its primary is told at its next sync. On every storage that can be written to."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import pytest

from litevfs.replica_clients.base import ReplicaClient
from litevfs.replica_clients.urls import open_replica_client
from tests.replicate.contender import contend
from tests.replicate.places import WITH_SERVERS, Place, environment_of, place
from tests.replicate.support import files_of, opened, states
from tests.support import wait_until

ROOT = Path(__file__).parents[2]


class Contender(Protocol):
    """A primary; `events` is what it has said, split into words."""

    name: str

    def kill(self) -> None: ...

    def start(self) -> None: ...

    def end(self) -> None: ...

    @property
    def events(self) -> list[list[str]]: ...


class ProcessContender:
    """One of `contender.py`, started again after each kill."""

    def __init__(self, folder: Path, where: Place, name: str, mode: str) -> None:
        self.name, self.log = name, folder / f"{name}.log"
        self._arguments = [folder / f"{name}.db", where.url, name, mode, where.settle_s]
        self.start()

    def start(self) -> None:
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.replicate.contender", *map(str, self._arguments)],
                cwd=ROOT,
                env=os.environ,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.DEVNULL,  # what a replicator warns of is expected here
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


class ThreadContender:
    """The same in a thread: memory is shared by the threads of a process only. It cannot be killed."""

    def __init__(self, folder: Path, where: Place, name: str, mode: str) -> None:
        self.name, self._lines = name, list[str]()
        self._client, self._ended = open_replica_client(where.url), threading.Event()
        run = partial(contend, folder / f"{name}.db", self._client, name, mode, self._ended.wait, self._lines.append)
        self._thread = threading.Thread(target=run, args=(where.settle_s,))
        self._thread.start()

    def kill(self) -> None:
        raise NotImplementedError

    start = kill

    def end(self) -> None:
        self._ended.set()
        self._thread.join(60)
        assert not self._thread.is_alive()
        self._client.close()

    @property
    def events(self) -> list[list[str]]:
        return [line.split() for line in self._lines]


def wrong(events: list[list[str]], name: str, where: Place, ledgers: dict[int, dict[str, int]]) -> list[str]:
    """What one of them was told and is not so.

    Of a storage with conditions, that a transaction was acknowledged and is not in its TXID; of another, that too,
    unless the next answer said so.
    """
    found = [" ".join(event) for event in events if event[0] == "error"]
    for index, event in enumerate(events):
        if event[0] == "lease" and event[1] != where.lease:
            found.append(f"{name}: the lease is kept by {event[1]}")
        if event[0] != "ack" or len(event) != 3 or is_there(ledgers, int(event[2]), name, int(event[1])):
            continue
        after = [later[0] for later in events[index + 1 :] if later[0] not in ("ready", "lease", "passing")]
        if where.lease == "conditions" or (after and after[0] not in ("conflict", "killed")):
            found.append(f"{name}: {event}, then {after[:3]}")
    return found


def is_there(ledgers: dict[int, dict[str, int]], txid: int, name: str, n: int) -> bool:
    return ledgers.get(txid, {}).get(name, -1) >= n


def undone(events: list[list[str]], name: str, where: Place, newest: dict[str, int]) -> list[str]:
    """Acknowledged transactions that the newest state lacks, though every primary went on from the one before it."""
    found = []
    for event, after in zip(events, [*events[1:], ["end"]], strict=True):
        is_told = where.lease == "read-back" and after[0] in ("conflict", "killed", "passing")
        if event[0] == "ack" and len(event) == 3 and newest.get(name, -1) < int(event[1]) and not is_told:
            found.append(f"{name}: {event}, then {after}; the newest state has {newest.get(name)}")
    return found


def case(kind: str, count: int, mode: str, seconds: float, kills: int, *marks: pytest.MarkDecorator) -> Any:
    return pytest.param(kind, count, mode, seconds, kills, marks=marks, id=f"{kind} {count} {mode} {seconds:g}")


FULL = (pytest.mark.soak, pytest.mark.timeout(400))
EVERYWHERE = ("file", "ignoring file", "ignoring s3", *WITH_SERVERS)
CASES = [
    case("file", 2, "restoring", 2.0, 1),
    case("ignoring file", 2, "new-history", 3.0, 1),
    case("memory", 2, "new-history", 1.0, 0),
    *(case(kind, 2, "restoring", 5.0, 1, pytest.mark.servers) for kind in ("ignoring s3", *WITH_SERVERS)),
    *(case(kind, 2, "new-history", 60.0, 20, *FULL) for kind in EVERYWHERE),
    *(case(kind, 5, "restoring", 60.0, 20, *FULL) for kind in EVERYWHERE),
    case("memory", 2, "restoring", 60.0, 0, *FULL),
    case("memory", 5, "new-history", 60.0, 0, *FULL),
]


@pytest.mark.slow
@pytest.mark.plan("D15", "K03")
@pytest.mark.parametrize(("kind", "count", "mode", "seconds", "kills"), CASES)
def test_what_is_acknowledged_is_there_or_refused(
    tmp_path: Path, kind: str, count: int, mode: str, seconds: float, kills: int
):
    with place(kind, tmp_path / "place") as where, environment_of(where):
        make = ThreadContender if kind == "memory" else ProcessContender
        contenders: list[Contender] = [make(tmp_path, where, f"p{number}", mode) for number in range(count)]
        compete(contenders, random.Random(count), seconds, kills)
        with closing(open_replica_client(where.url)) as client:
            ledgers = ledgers_of(client)
    problems = [text for one in contenders for text in wrong(one.events, one.name, where, ledgers)]
    if mode == "restoring":
        newest = ledgers[max(ledgers)]
        problems += [text for one in contenders for text in undone(one.events, one.name, where, newest)]
    heard = Counter(event[0] for one in contenders for event in one.events)
    print(f"{kind}, {count} primaries, {mode}: lease by {where.lease}; {dict(heard)}; {max(ledgers)} TXIDs")
    assert problems == []
    assert heard["lease"] > 0
    assert heard["conflict"] > 0


def compete(contenders: list[Contender], rng: random.Random, seconds: float, kills: int) -> None:
    until = time.monotonic() + seconds
    try:
        for _ in range(kills):
            pause = time.monotonic() + seconds / kills * rng.random() * 2
            wait_until(lambda pause=pause: time.monotonic() >= min(pause, until), timeout_s=120)
            victim = rng.choice(contenders)
            victim.kill()
            victim.start()
        wait_until(lambda: time.monotonic() >= until and is_decided(contenders), timeout_s=seconds + 60)
    finally:
        for contender in contenders:
            contender.end()


def is_decided(contenders: list[Contender]) -> bool:
    """Whether one was told that it went on, and one that it may not."""
    heard = {event[0] for contender in contenders for event in contender.events}
    return {"ack", "conflict"} <= heard


def ledgers_of(client: ReplicaClient) -> dict[int, dict[str, int]]:
    return {txid: ledger(data) for txid, data in states(files_of(client))}


def ledger(data: bytes) -> dict[str, int]:
    with closing(opened(data)) as db:
        return dict(db.execute("SELECT name, n FROM ledger"))
