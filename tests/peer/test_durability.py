"""The durability campaign: one writer, MinIO, compaction every 3 s, and a primary that is killed again and again.

Beside our primary and beside Litestream's own: each TXID is restored, and has to be sound and to answer as the writer
said before its commit. What Litestream's leaves is counted, not asserted: the counts are in docs/comparison.md. The
states are rebuilt from the files of level 0 by the tests' own code; of a sample, and of each that is found wrong, the
same is asked of `litestream restore`.

    python -m pytest -n 0 -s -m soak tests/peer/test_durability.py
"""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pytest

from litevfs.ltx.decoder import decode_file
from litevfs.operations.restore import restore
from litevfs.replica_clients.base import ReplicaClient
from litevfs.replica_clients.urls import open_replica_client
from litevfs.testing.s3_server import S3Server
from tests.peer import litestream_binary as litestream
from tests.peer.durability_writer import answer_of, create, damaged_rows
from tests.replicate.support import opened
from tests.servers import running_minio, use_bucket
from tests.support import wait_until

ROOT = Path(__file__).parents[2]
SECONDS, KILLS = 120.0, 16
SAMPLE = 12
needs_litestream = pytest.mark.skipif(
    not litestream.LITESTREAM, reason="go install github.com/benbjohnson/litestream/cmd/litestream@latest"
)


@dataclass
class Counts:
    """What a run came to."""

    primary: str
    transactions: int = 0
    kills: int = 0
    states: int = 0  # TXIDs, each restored
    corrupt: int = 0  # of them, those that integrity_check or a blob's checksum finds damaged, or that do not open
    wrong: int = 0  # sound, and not what the writer said
    backwards: int = 0  # an older transaction than the state before
    gaps: int = 0  # TXIDs that no file leads to
    confirmed: int = (
        0  # of the corrupt and wrong ones tried, those that `litestream restore` restores so, or not at all
    )
    tried: int = 0
    newest_is_right: bool = False
    problems: list[str] = field(default_factory=list)


class Primary:
    """A program that replicates, started again after each kill."""

    def __init__(self, command: list[str], log: Path) -> None:
        self._command, self._log = command, log
        self.start()

    def start(self) -> None:
        self._begun = self._log.stat().st_size if self._log.exists() else 0
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                self._command, cwd=ROOT, env=os.environ, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def end(self) -> None:
        """Ask it to end, which makes it upload the rest; once it says that it replicates, and so takes signals."""
        wait_until(lambda: b"replicating" in self._log.read_bytes()[self._begun :], timeout_s=60)
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(60)
        finally:
            self.kill()


def ours(database: Path, url: str, folder: Path) -> list[str]:
    flags = ["--sync-interval", "100ms", "--level-intervals", "3s,15s,60s", "--level-0-retention", "24h"]
    return [sys.executable, "-m", "litevfs", "replicate", str(database), url, *flags]


def theirs(database: Path, url: str, folder: Path) -> list[str]:
    config = folder / "litestream.yml"
    config.write_text(
        "levels: [{interval: 3s}, {interval: 15s}, {interval: 60s}]\n"
        "snapshot: {interval: 24h, retention: 24h}\nl0-retention: 24h\n"
        f"dbs:\n- path: {database}\n  monitor-interval: 100ms\n  replica: {{url: '{url}', sync-interval: 100ms}}\n"
    )
    return [litestream.LITESTREAM, "replicate", "-config", str(config)]


@pytest.fixture
def minio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    (tmp_path / "minio").mkdir()
    with running_minio(tmp_path / "minio") as server:
        use_bucket(server, "campaign", monkeypatch)
        yield server


@contextmanager
def writing(database: Path, answers: Path, seed: int) -> Iterator[subprocess.Popen[str]]:
    program = Path(__file__).with_name("durability_writer.py")
    process = subprocess.Popen(
        [sys.executable, str(program), str(database), str(answers), str(seed)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def campaign(kind: str, seed: int, server: S3Server, folder: Path) -> Counts:
    """Run the writer and a primary, and check every state that is left."""
    database, answers = folder / "app.db", folder / "answers"
    create(database)
    url = server.url("campaign", f"{kind}-{seed}")
    counts, rng = Counts(kind, kills=KILLS), random.Random(seed)
    with ExitStack() as stack:
        primary = Primary((ours if kind == "litevfs" else theirs)(database, url, folder), folder / "primary.log")
        stack.callback(primary.kill)
        writer = stack.enter_context(writing(database, answers, seed))
        begun = time.monotonic()
        for number in range(KILLS):
            at = begun + SECONDS * (number + rng.random()) / KILLS
            wait_until(lambda at=at: time.monotonic() >= at, timeout_s=SECONDS)
            primary.kill()
            primary.start()
        wait_until(lambda: time.monotonic() >= begun + SECONDS, timeout_s=SECONDS)
        output, _ = writer.communicate(timeout=60)
        counts.transactions = int(output)
        primary.end()
    lines = answers.read_text().splitlines()
    said = {int(line.partition(" ")[0]): line.partition(" ")[2] for line in lines}
    with closing(open_replica_client(url)) as client:
        suspects = check_states(client, said, counts)
        check_by_restoring(client, url, said, suspects, counts, folder)
    return counts


def check_states(client: ReplicaClient, said: dict[int, str], counts: Counts) -> list[int]:
    """Rebuild each state of level 0 and judge it; returns the TXIDs that are corrupt or wrong."""
    pages: dict[int, bytes] = {}
    txid = newest = 0
    suspects = []
    for info in client.list_files(0):
        file = decode_file(client.read(info))
        if info.min_txid != txid + 1:
            counts.gaps += info.min_txid - txid - 1
        txid = info.max_txid
        pages |= dict(file.pages())
        pages = {pgno: page for pgno, page in pages.items() if pgno <= file.header.commit}
        zeros = bytes(file.header.page_size)
        data = b"".join(pages.get(pgno, zeros) for pgno in range(1, file.header.commit + 1))
        counts.states += 1
        problem, n = judge(data, said)
        if problem is None and n < newest:
            counts.backwards += 1
            counts.problems.append(f"TXID {txid:016x}: transaction {n} after {newest}")
        newest = max(newest, n)
        if problem is not None:
            suspects.append(txid)
            counts.problems.append(f"TXID {txid:016x}: {problem}")
            counts.wrong += problem.startswith("answers")
            counts.corrupt += not problem.startswith("answers")
    return suspects


def judge(data: bytes, said: dict[int, str]) -> tuple[str | None, int]:
    """(what is wrong with a database file, its transaction): None if it is what the writer said."""
    try:
        with closing(opened(data)) as db:
            found = [row[0] for row in db.execute("PRAGMA integrity_check(3)")]
            if found != ["ok"]:
                return f"integrity_check: {found[0]}", 0
            n = db.execute("SELECT n FROM ledger").fetchone()[0]
            if damaged := damaged_rows(db):
                return f"{damaged} blobs are damaged", n
            answer = answer_of(db)
            return (None if n == 0 or answer == said.get(n) else f"answers {answer}, not {said.get(n)}"), n
    except sqlite3.Error as error:
        return f"SQLite: {error}", 0


def check_by_restoring(
    client: ReplicaClient, url: str, said: dict[int, str], suspects: list[int], counts: Counts, folder: Path
) -> None:
    """Restore suspects by `litestream restore`, a sample by both tools, and the newest state."""
    for txid in suspects[:SAMPLE]:
        counts.tried += 1
        counts.confirmed += restored_by_litestream(url, txid, said, folder) is not None
    txids = [info.max_txid for info in client.list_files(0)]
    for txid in random.Random(1).sample(txids, min(SAMPLE, len(txids))):
        if counts.primary == "litevfs":
            target = folder / f"ours-{txid}.db"
            restore(client, target, txid=txid)
            problem, _ = judge(target.read_bytes(), said)
            by_litestream = restored_by_litestream(url, txid, said, folder)
            if problem or by_litestream:
                counts.problems.append(f"restored TXID {txid:016x}: {problem or by_litestream}")
    target = folder / "newest.db"
    if counts.primary == "litevfs":
        restore(client, target)
    else:
        litestream.run("restore", "-o", target, url)
    problem, n = judge(target.read_bytes(), said)
    counts.newest_is_right = problem is None and n == counts.transactions
    if not counts.newest_is_right:
        counts.problems.append(f"newest: transaction {n} of {counts.transactions}: {problem}")


def restored_by_litestream(url: str, txid: int, said: dict[int, str], folder: Path) -> str | None:
    target = folder / f"theirs-{txid}.db"
    if not target.exists():
        try:
            litestream.run("restore", "-txid", f"{txid:016x}", "-o", target, url)
        except litestream.LitestreamError as error:
            return str(error)
    return judge(target.read_bytes(), said)[0]


@needs_litestream
@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("kind", ["litevfs", "litestream"])
def test_each_txid_is_sound_and_what_the_writer_said(kind: str, seed: int, minio: S3Server, tmp_path: Path) -> None:
    counts = campaign(kind, seed, minio, tmp_path)
    told = asdict(counts) | {"problems": counts.problems[:5]}
    print(f"\n{kind} {litestream.version() if kind == 'litestream' else ''}: {told}")
    assert counts.states > 10
    if kind == "litevfs":
        assert counts.problems == []
        assert (counts.corrupt, counts.wrong, counts.backwards, counts.gaps) == (0, 0, 0, 0)
        assert counts.newest_is_right
